"""Exports the policy of a run directory, with a model card: Markdown with the front matter that hubs read."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save

import mtrl
from mtrl.agents.base import Exportable
from mtrl.config.files import TEMPORARY_PREFIX, expand, write_file
from mtrl.config.labels import RESTART, described_methods, method_label, methods_of, tasks_label, with_options
from mtrl.config.presets import config_to_dict
from mtrl.errors import UserError
from mtrl.export.policy import DEVIATION, FORMAT, MEAN, PARAMETER, SPEC_NAME, TENSORS_NAME
from mtrl.networks.make import describe_network
from mtrl.report.load import read_run
from mtrl.report.table import escaped
from mtrl.runs.checkpoint import load_checkpoint
from mtrl.training.build import build_agent, suite_of
from mtrl.training.resolve import bound_to_policy
from mtrl.training.trust import load_trusted

CARD_NAME = "README.md"
_USE = """\
import mtrl

policy = mtrl.load_policy("."{own})  # needs torch, numpy and safetensors
actions, _ = policy.predict(observations)  # [tasks, {obs}] -> [tasks, {act}], rows as in policy.task_names
action, _ = policy.for_task({task!r}).predict(observation)  # [{obs}] -> [{act}]
"""
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
    path = expand(run_dir)
    run = read_run(path)
    folder = path / "policy" if out is None else expand(out)
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
    if not isinstance(agent, Exportable):
        raise UserError(
            f"the agent {config.agent} cannot be exported: it has no method `gaussian_policy` "
            "(mtrl.agents.base.Exportable)."
        )
    agent.load_policy(state["policy"])
    policy = agent.gaussian_policy()
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
    card = _model_card(description).encode()
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


def _model_card(policy: Mapping[str, Any]) -> str:
    """Return the model card for the content of policy.json; it names no licence."""
    config = policy["config"]
    tasks = policy["tasks"]
    name = tasks_label(tasks, many=f"tasks of {config['suite']}")
    title = f"{config['agent'].upper()} with {method_label(config)} on {name}"
    architecture = policy["network"]["architecture"]
    own = f", architecture={architecture!r}" if ":" in architecture else ""  # code that must be trusted
    use = _USE.format(obs=policy["obs_dim"], act=policy["action_dim"], task=tasks[0], own=own)
    front = yaml.safe_dump(_front_matter(title, policy), sort_keys=False, allow_unicode=True)
    sections = [
        f"---\n{front}---\n\n# {title}\n",
        f"One policy for {len(tasks)} tasks of the suite `{config['suite']}`, trained by "
        f"multi-task reinforcement learning with mtrl. Actions lie in [-1, 1].{_stretching(policy)}\n",
        f"## Use\n\n```python\n{use}```\n",
        f"## Results\n\n{_results(policy)}\n",
        f"## Training\n\n{_list(_facts(policy))}\n",
        f"## Versions\n\n{_list(policy['versions'])}\n",
    ]
    return "\n".join(sections)


def _front_matter(title: str, policy: Mapping[str, Any]) -> dict[str, Any]:
    tags = ["reinforcement-learning", "multi-task", policy["config"]["suite"]]
    tags += dict.fromkeys(name for name, _ in methods_of(policy["config"]).values())
    matter: dict[str, Any] = {"library_name": "mtrl", "tags": tags}
    if policy["evaluation"] is None:
        return matter
    kinds = {"success": ("success_rate", "success at any step"), "return": ("mean_reward", "mean return")}
    results = [
        {
            "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
            "dataset": {"type": task, "name": task},
            "metrics": [
                {"type": kind, "name": name, "value": values[key]}
                for key, (kind, name) in kinds.items()
                if values[key] is not None
            ],
        }
        for task, values in policy["evaluation"]["tasks"].items()
    ]
    return matter | {"model-index": [{"name": title, "results": results}]}


def _stretching(policy: Mapping[str, Any]) -> str:
    """Return how actions become those of the environments, where these have other bounds."""
    bounds = {
        task: (low, high)
        for task, (low, high) in policy["action_bounds"].items()
        if set(low) != {-1} or set(high) != {1}
    }
    if not bounds:
        return ""
    rows = "\n".join(f"| {escaped(task)} | {low} | {high} |" for task, (low, high) in bounds.items())
    return (
        " Environments take `low + (action + 1) / 2 * (high - low)`, rounded if their actions are integers:"
        f"\n\n| task | low | high |\n|---|---|---|\n{rows}"
    )


def _results(policy: Mapping[str, Any]) -> str:
    evaluation, step = policy["evaluation"], policy["vector_step"]
    if evaluation is None:
        return f"Not evaluated: the run has no evaluation up to vector step {step:,}."
    earlier = (
        f"From an evaluation at vector step {evaluation['vector_step']:,}; the exported parameters are "
        f"newer, from vector step {step:,}.\n\n"
    )
    about = (
        f"Deterministic policy, {evaluation['episodes_per_task']} episodes per task, goals fixed. Success: "
        "the task reported success at any step of the episode; in the second column at its last step.\n"
    )
    rows = [
        f"| {escaped(task)} | {_cells(values, 'success', 'success_last', 'return')} |"
        for task, values in evaluation["tasks"].items()
    ]
    head = ["| task | success | success at the last step | return |", "|---|---|---|---|"]
    mean = f"| mean | {_cells(evaluation, 'mean_success', 'mean_success_last', 'mean_return')} |"
    text = "\n".join([about, *head, *rows, mean])
    return text if evaluation["vector_step"] == step else earlier + text


def _cells(values: Mapping[str, Any], *keys: str) -> str:
    cells = ("-" if values[key] is None else f"{values[key]:.{1 if 'return' in key else 2}f}" for key in keys)
    return " | ".join(cells)


def _facts(policy: Mapping[str, Any]) -> dict[str, Any]:
    config = policy["config"]
    env = config["env"]
    length = config["eval"].get("max_episode_steps") or env["max_episode_steps"]
    return {
        "agent": config["agent"],
        **described_methods(config),
        "suite": with_options(config["suite"], config["suite_options"]),
        "seed": config["seed"],
        "vector steps": f"{policy['vector_step']:,} of {config['steps']:,}, "
        f"{env['envs_per_task']} environment{'s' if env['envs_per_task'] > 1 else ''} per task",
        "episodes": f"{env['max_episode_steps']} steps in training, {length} in the evaluation",
        "network": describe_network(policy["network"]["architecture"], policy["network"]["arguments"]),
        "observations": f"{policy['obs_dim']} numbers"
        + (", standardised by the policy" if policy["standardises_observations"] else ""),
        **({"resume": RESTART} if env.get("resume") == "restart" else {}),
    }


def _list(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"* {name}: {value}" for name, value in facts.items())
