"""The guard against divergence: names the tasks whose numbers left their range, and what to try."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from mtrl.agents.base import Bound
from mtrl.errors import Diverged

# A smaller fall is usual in off-policy learning. With few episodes even this one may be chance, which is
# accepted once in a thousand evaluations of an unchanged policy.
_WAS_SOLVED, _IS_LOST, _CHANCE = 0.8, 0.2, 1e-3


class DivergenceGuard:
    """Compares logged numbers with bounds; warns about a task once until it is back in its range.

    `bounds` has the range of each per-task quantity by its name (`Agent.bounds`); `warn` is called with the
    text of a warning.
    """

    def __init__(
        self,
        bounds: Mapping[str, Bound],
        tasks: Sequence[str],
        action: Literal["warn", "stop", "off"],
        warn: Callable[[str], None],
    ) -> None:
        self._bounds, self._tasks, self._action, self._warn = bounds, tuple(tasks), action, warn
        self._warned: set[tuple[str, str]] = set()
        self._best: dict[str, tuple[float, int]] = dict.fromkeys(tasks, (0.0, 0))

    def metrics(self, step: int, per_task: Mapping[str, Sequence[float]]) -> None:
        """Check one log line: group -> T values, NaN where unknown. Raises Diverged if the run is to stop."""
        for group, bound in self._bounds.items():
            if group in per_task:
                values = dict(zip(self._tasks, map(float, per_task[group]), strict=True))
                # A comparison with NaN, an unknown number, is false.
                bad = {task: x for task, x in values.items() if x < bound.low or x > bound.high}
                rule = f"{group} beyond [{bound.low:g}, {bound.high:g}]"
                self._tell(step, group, rule, bad, bound.advice, diverged=bound.diverged)

    def evaluation(self, step: int, success: Mapping[str, float | None], episodes: int) -> None:
        """Check an evaluation: task -> success rate, None or NaN if it has none. Raises as `metrics`.

        `episodes` is their number per task.
        """
        bad = {}
        for task, rate in success.items():
            if rate is None or rate != rate or task not in self._best:
                continue
            best = self._best[task]
            fell = best[0] >= _WAS_SOLVED and rate <= _IS_LOST
            if fell and _chance(best, (rate, episodes)) < _CHANCE:
                bad[task] = rate
            self._note(task, rate, episodes)
        advice = "Lower the learning rates, or let them fall, and set train.keep_best."
        self._tell(step, "success", f"success fell from {_WAS_SOLVED:g} or more", bad, advice)

    def remember(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Take in earlier evaluations of the run, lines of evaluations.jsonl."""
        for line in lines:
            for task, values in line["tasks"].items():
                if values.get("success") is not None and task in self._best:
                    self._note(task, values["success"], values["episodes"])

    def _note(self, task: str, rate: float, episodes: int) -> None:
        if rate >= self._best[task][0]:
            self._best[task] = (rate, episodes)

    def _tell(
        self, step: int, kind: str, rule: str, bad: Mapping[str, float], advice: str, *, diverged: bool = True
    ) -> None:
        new = {task: value for task, value in bad.items() if (kind, task) not in self._warned}
        self._warned = {(one, task) for one, task in self._warned if one != kind or task in bad}
        self._warned |= {(kind, task) for task in new}
        if not new or self._action == "off":
            return
        found = ", ".join(f"{task} ({value:.3g})" for task, value in new.items())
        lead = "learning may have diverged at " * diverged
        text = f"{lead}vector step {step:,}: {rule} in {found}. {advice}"
        if diverged and self._action == "stop":
            raise Diverged(f"{text} Stopped, as train.on_divergence=stop asks for.")
        self._warn(text)


def _chance(before: tuple[float, int], now: tuple[float, int]) -> float:
    """Return the probability of so few successes now if nothing has changed (Fisher's exact test)."""
    (best, many), (rate, few) = before, now
    solved = round(rate * few)
    total = round(best * many) + solved
    ways = sum(math.comb(total, k) * math.comb(many + few - total, few - k) for k in range(solved + 1))
    return ways / math.comb(many + few, few)
