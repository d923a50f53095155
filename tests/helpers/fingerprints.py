"""What seven updates do to an agent, as a few numbers per method: a change of the updates shows in them.

`python -m tests.helpers.fingerprints FILE.json` adds those that the file lacks, of all methods and recipes,
with a digest of every bit of the state. Digests are equal on one kind of processor only. What the file has
stays as it is: it is what updates are compared with.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtrl.agents import AGENTS
from mtrl.agents.base import TaskSpec, Transitions
from mtrl.combiners import COMBINERS
from mtrl.config.presets import build_config, load_preset
from mtrl.training.resolve import resolve

_SMALL = {"network": {"actor_width": 32, "critic_width": 32}, "replay": {"capacity_per_task": 2_000}}
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "sac_laptop": ("sac_laptop", {}),
    "laptop_v1": ("laptop_v1", {}),
    "mt10 with task heads": ("mt10", {"network": {"heads": "per_task"}, "sac": {"batch_per_task": 8}}),
}
TASKS, OBS, ACTIONS = 10, 39, 4


def fingerprint(recipe: str, method: str) -> tuple[dict[str, list[float]], str]:
    """Return what seven updates change, per network, and a digest of the agent's whole state.

    The numbers of a network: the length of the move of its parameters, and the move's products with two fixed
    random directions of length sqrt(P), which are of the same order.
    """
    options: dict[str, Any] = {"aggregator": "UPGrad"} if method == "torchjd" else {}
    if "shift" in inspect.signature(COMBINERS[method]).parameters:
        options["shift"] = "minimum"
    preset, changes = RECIPES[recipe]
    of_method = {"method": method, "method_options": options, "tasks": ("MT10",)}
    config = resolve(build_config(load_preset(preset), _SMALL, changes, of_method))
    copies = config.env.envs_per_task
    spec = TaskSpec(tuple(f"t{number}" for number in range(TASKS)), copies, OBS, ACTIONS)
    agent: Any = AGENTS["sac"](
        dataclasses.replace(config, train=dataclasses.replace(config.train, warmup_steps=40)),
        spec,
        torch.device("cpu"),
    )
    networks = {"actor": agent.update.actor, "critic": agent.update.critic}
    before = {name: network.flat.vector.detach().clone() for name, network in networks.items()}
    rng, rows = np.random.default_rng(0), TASKS * copies

    def transitions() -> Transitions:
        return Transitions(
            rng.normal(size=(rows, OBS)).astype(np.float32),
            rng.uniform(-1, 1, (rows, ACTIONS)).astype(np.float32),
            rng.normal(size=rows).astype(np.float32),
            rng.normal(size=(rows, OBS)).astype(np.float32),
            rng.random(rows) < 0.05,
            rng.random(rows) < 0.05,
            np.zeros(rows, bool),
        )

    for _ in range(40):
        agent.observe(transitions())
    for number in range(7):
        agent.act(transitions().obs)
        agent.learn(number / 7)
    moves = {
        name: _numbers(network.flat.vector.detach() - before[name]) for name, network in networks.items()
    }
    metrics = agent.metrics()
    digest = hashlib.sha256()
    for tree in (agent.state(), metrics.scalars, metrics.per_task):
        _feed(digest, tree)
    return moves, digest.hexdigest()[:16]


def _numbers(move: torch.Tensor) -> list[float]:
    directions = torch.randn(2, len(move), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return [float(move.double().norm()), *(directions @ move.double()).tolist()]


def _feed(digest: Any, tree: Any) -> None:
    if callable(tree):
        tree = tree()
    if isinstance(tree, dict):
        for key in sorted(tree, key=str):
            digest.update(str(key).encode())
            _feed(digest, tree[key])
    elif isinstance(tree, list | tuple):
        for value in tree:
            _feed(digest, value)
    elif isinstance(tree, torch.Tensor | np.ndarray):
        digest.update(str(tree.dtype).encode() + np.ascontiguousarray(tree).tobytes())
    else:
        digest.update(repr(tree).encode())


def main(path: Path) -> None:
    """Add the fingerprints that a file lacks; those of methods that are gone are dropped."""
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found = {}
    for recipe in RECIPES:
        for method in sorted(COMBINERS):
            name = f"{recipe}/{method}"
            found[name] = stored[name] if name in stored else fingerprint(recipe, method)
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in found.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
