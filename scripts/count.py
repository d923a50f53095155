"""Counts what a reader has to read: lines and files of the library, and what one update runs through.

    python scripts/count.py             # a table
    python scripts/count.py --json      # the same as one line of JSON

One update is that of the preset `sac_laptop` with CAGrad, critics and actor, on random transitions; not the
first, which allocates. Lines are distinct lines that ran. A call from file to file is a call of a function
of the library by a function of another of its files, neither of them in a solver.
"""

import argparse
import json
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

import mtrl
from mtrl.agents import AGENTS
from mtrl.agents.base import TaskSpec, Transitions
from mtrl.config.presets import build_config, load_preset

PACKAGE = str(Path(mtrl.__file__).parent)
SOLVERS = str(Path(PACKAGE, "combiners", "solvers"))


class Trace:
    """What is executed in the library's files while it is installed with `sys.settrace`."""

    def __init__(self) -> None:
        self.lines: set[tuple[str, int]] = set()
        self.calls: list[tuple[str, str]] = []  # caller's file, called function's file

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        """Take note of a call and follow its lines."""
        path = frame.f_code.co_filename
        if not path.startswith(PACKAGE):
            return None
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(PACKAGE):
            caller = caller.f_back
        if caller is not None and caller.f_code.co_filename != path:
            self.calls.append((caller.f_code.co_filename, path))
        return self._line

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line

    @property
    def files(self) -> set[str]:
        """Files with an executed line."""
        return {path for path, _ in self.lines}

    @property
    def jumps(self) -> list[tuple[str, str]]:
        """Calls from file to file of which neither is a solver."""
        return [(a, b) for a, b in self.calls if not b.startswith(SOLVERS) and not a.startswith(SOLVERS)]


def library() -> dict[str, int]:
    """Lines and files of the package."""
    files = [path.read_text(encoding="utf-8") for path in Path(PACKAGE).rglob("*.py")]
    return {"library lines": sum(len(text.splitlines()) for text in files), "library files": len(files)}


def update() -> Trace:
    """Trace one update of `sac_laptop` with CAGrad."""
    small = {"replay": {"capacity_per_task": 2_000}, "tasks": ("MT10",), "method": "cagrad"}
    config = build_config(load_preset("sac_laptop"), small)
    copies = config.env.envs_per_task
    spec = TaskSpec(tuple(f"task {number}" for number in range(10)), copies, 39, 4)
    agent: Any = AGENTS["sac"](config, spec, torch.device("cpu"))
    rng = np.random.default_rng(0)
    rows = spec.num_tasks * copies
    none = np.zeros(rows, dtype=bool)

    def floats(*shape: int) -> Any:
        return rng.normal(size=(rows, *shape)).astype(np.float32)

    for _ in range(60):
        agent.observe(Transitions(floats(39), floats(4), floats(), floats(39), none, none, none))
    agent._observed = config.train.warmup_steps
    agent.act(floats(39))
    for _ in range(config.sac.actor_every):  # the traced one moves the actor, too
        agent.update_from_replay()
    trace = Trace()
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        agent.update_from_replay()
    finally:
        sys.settrace(before)
    return trace


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--calls", action="store_true", help="list the calls from file to file")
    arguments = parser.parse_args()
    trace = update()
    counts = {
        **library(),
        "executed lines of an update": len(trace.lines),
        "calls from file to file outside the solvers": len(trace.jumps),
        "files of an update": len(trace.files),
    }
    if arguments.json:
        print(json.dumps(counts))
        return
    for name, value in counts.items():
        print(f"{name:45} {value:>8,}")
    if arguments.calls:
        for caller, called in trace.jumps:
            print(Path(caller).relative_to(PACKAGE), "->", Path(called).relative_to(PACKAGE))


if __name__ == "__main__":
    main()
