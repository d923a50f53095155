"""The best policy of a run: how evaluations are compared, and what is stored of the best one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mtrl.errors import UserError
from mtrl.runs import console
from mtrl.runs.checkpoint import load_checkpoint
from mtrl.runs.checkpoint_writer import Saving
from mtrl.runs.directory import BEST_NAME, has_checkpoint
from mtrl.runs.jsonl import read_evaluations
from mtrl.runs.log import Evaluation


class Outcome(NamedTuple):
    """What an evaluation says of a policy."""

    success: float  # any-step rate over tasks and episodes; 0 in tasks that gave no flag
    episode_return: float  # mean over tasks and episodes
    known: frozenset[str]  # tasks that gave a success flag

    @classmethod
    def of_result(cls, result: Evaluation) -> Outcome:
        """Return the outcome of a new evaluation."""
        rows = zip(result.task_names, result.success, strict=True)
        known = frozenset(name for name, row in rows if not np.isnan(row).any())
        return cls(float(np.nan_to_num(result.success).mean()), result.mean_return, known)

    @classmethod
    def of_line(cls, line: Mapping[str, Any]) -> Outcome:
        """Return the outcome of a recorded evaluation, a line of evaluations.jsonl."""
        rates = {name: values["success"] for name, values in line["tasks"].items()}
        success, brought = line["mean_success"], line["mean_return"]
        if success is None:
            success = sum(rate or 0.0 for rate in rates.values()) / len(rates)
        known = frozenset(name for name, rate in rates.items() if rate is not None)
        return cls(success, math.nan if brought is None else brought, known)


class BestPolicy:
    """Keeps the policy of a run's best evaluation in `best/`, with the outcome that the next must exceed.

    Policies are compared by mean success, or by mean return as long as a task has never given a success flag.
    Some environments give the flag only where an episode is solved. So flags of all evaluations count: a task
    that has once given a flag solved nothing in evaluations without one.
    """

    def __init__(self, path: Path, tasks: Sequence[str], saving: Saving) -> None:
        self._path, self._tasks, self._saving = path, frozenset(tasks), saving
        self._known: frozenset[str] = frozenset()
        self._best: Outcome | None = None

    def find(self, start: int, policy: Callable[[], Any]) -> None:
        """Take the outcome of the stored policy, or store that of `start` if it is better.

        A process may have been killed after it wrote an evaluation's line and before it stored the policy.
        """
        lines = {line["vector_step"]: Outcome.of_line(line) for line in read_evaluations(self._path)}
        self._known = self._known.union(*(outcome.known for outcome in lines.values()))
        self._best = self._stored(lines, start)
        if start in lines:
            self.offer(start, lines[start], policy)

    def offer(self, step: int, outcome: Outcome, policy: Callable[[], Any]) -> None:
        """Store the policy of vector step `step` if its outcome is the best so far."""
        self._known |= outcome.known
        if not self._score(outcome) > self._score(self._best):
            return
        evaluation = {**outcome._asdict(), "known": sorted(self._known)}
        if self._saving.keep_best(step, {"policy": policy(), "evaluation": evaluation}):
            self._best = outcome

    def _score(self, outcome: Outcome | None) -> float:
        if outcome is None:
            return -math.inf
        return outcome.success if self._known == self._tasks else outcome.episode_return

    def _stored(self, lines: Mapping[int, Outcome], start: int) -> Outcome | None:
        folder = self._path / BEST_NAME
        if not has_checkpoint(folder):
            return None

        def warn(text: str) -> None:
            console.warning(f"{BEST_NAME}/: {text}. The next evaluation's policy takes its place.")

        try:
            step, parts = load_checkpoint(folder, allow_version_mismatch=True, warn=warn)
        except UserError:  # damaged, as said
            return None
        if found := parts.get("evaluation"):
            self._known |= frozenset(found["known"])
            return Outcome(found["success"], found["episode_return"], self._known)
        # Former versions stored the policy alone. If its line is gone, it was better than the lines before.
        before = [outcome for other, outcome in lines.items() if other != start]
        return lines.get(step, max(before, key=self._score, default=None))
