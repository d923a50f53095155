"""Exports the policy of a run directory."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save

import mtrl
from mtrl.agents.base import Exportable
from mtrl.config.files import TEMPORARY_PREFIX, write_file
from mtrl.config.presets import config_to_dict
from mtrl.errors import UserError
from mtrl.export.card import model_card
from mtrl.export.policy import DEVIATION, FORMAT, MEAN, PARAMETER, SPEC_NAME, TENSORS_NAME
from mtrl.report.load import read_run
from mtrl.runs.checkpoint import load_checkpoint
from mtrl.runs.directory import expand
from mtrl.training.resolve import bound_to_policy, build_agent, suite_of
from mtrl.training.trust import load_trusted

CARD_NAME = "README.md"
_SQUASH = {"tanh": "tanh of", "clip": "clipped to [-1, 1]:"}


def export_run(run_dir: str | Path, out: str | Path | None = None, *, trust: bool = False) -> Path:
    """Write the policy of a run's newest checkpoint as safetensors, JSON and a model card.

    Args:
        run_dir: the run; a process may still be training in it.
        out: a new or empty folder, or one of an earlier export, which is replaced; None: `policy` in the run.
        trust: whether to run code that the run's configuration names (`mtrl.training.trust`).

    Returns:
        The folder.

    Raises:
        UserError: no run, no valid checkpoint, an agent that cannot be exported, or a folder that holds
            something else or cannot be written.
    """
    path = expand(Path(run_dir))
    run = read_run(path)
    folder = path / "policy" if out is None else expand(Path(out))
    found = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    unfinished = {name for name in found if name.startswith(TEMPORARY_PREFIX)}
    if not found <= unfinished and not found & {SPEC_NAME, TENSORS_NAME}:
        raise UserError(f"'{folder}' holds something other than an exported policy. Choose another --out.")
    config = load_trusted(path, trust=trust)
    # Nothing is computed with the parameters here, so versions of torch and of the suite do not matter.
    step, state = load_checkpoint(
        path, parts=("policy",), config=bound_to_policy(config), allow_version_mismatch=True
    )
    suite = suite_of(config)
    agent = build_agent(config, suite, torch.device("cpu"))
    if not hasattr(agent, "gaussian_policy"):
        raise UserError(
            f"the agent {config.agent} cannot be exported: it has no method `gaussian_policy` "
            "(mtrl.agents.base.Exportable)."
        )
    agent.load_policy(state["policy"])
    policy = cast("Exportable", agent).gaussian_policy()
    tensors = {PARAMETER + name: value for name, value in policy.parameters.items()}
    if policy.standardisation is not None:
        tensors[MEAN], tensors[DEVIATION] = policy.standardisation
    content = tensor_bytes(tensors)
    known = [line for line in run.evaluations if line["vector_step"] <= step]
    description = {
        "format": FORMAT,
        "sha256": hashlib.sha256(content).hexdigest(),
        "tasks": list(suite.task_names),
        "obs_dim": suite.obs_dim,
        "action_dim": suite.action_dim,
        "action_bounds": {task: list(bounds) for task, bounds in suite.action_bounds.items()},
        "action": f"{_SQUASH[policy.squash]} the outputs' first half; the second half are log deviations",
        "squash": policy.squash,
        "network": {"architecture": policy.architecture, "arguments": dict(policy.arguments)},
        "standardises_observations": policy.standardisation is not None,
        "vector_step": step,
        "config": config_to_dict(config),
        # It may belong to earlier parameters: the card compares its vector step with that of the checkpoint.
        "evaluation": known[-1] if known else None,
        "versions": {**run.versions, "mtrl": mtrl.__version__},
    }
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    card = model_card(description).encode()
    _write(folder, {TENSORS_NAME: content, CARD_NAME: card, SPEC_NAME: text.encode()})
    return folder


def tensor_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Return the content of a .safetensors file; tensors are float32, on any device."""
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise TypeError(f"tensors must be float32; found {tensor.dtype} for '{name}'.")
    # Cloned: safetensors refuses tensors that share memory, and parameters are views of one vector.
    own = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    content: bytes = save(own, {"format": "pt"})
    return content


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files one by one, SPEC_NAME last: it has the hash of the tensors."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            for unfinished in folder.glob(f"{TEMPORARY_PREFIX}*-{name}"):  # of an export that was killed
                unfinished.unlink(missing_ok=True)
            write_file(folder / name, content)
    except OSError as error:
        raise UserError(f"cannot write to '{folder}': {error.strerror}. Choose another --out.") from error
