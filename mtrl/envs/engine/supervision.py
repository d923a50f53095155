"""Workers that are restarted when they die, raise or hang, as often as a budget allows.

A killed process or a rare crash of the simulation should not end a run of days; a crash that comes back each
time should. So the budget counts all restarts and never refills. A restarted worker has no environments: they
are built and reset before the next step, which may fail again, so `begin` loops.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrl.envs.engine.episodes import Episodes
from mtrl.envs.engine.pool import Failure, WorkerPool
from mtrl.envs.engine.worker import Build, Parcel, Rules
from mtrl.errors import EnvironmentFailure

Notify = Callable[[str], None]


def warn(text: str) -> None:
    """Tell the user by a RuntimeWarning, the default way."""
    warnings.warn(text, RuntimeWarning, stacklevel=2)


@dataclass
class Blueprint:
    """What all environments are made of."""

    suite: Parcel
    tasks: Sequence[str]  # of each row
    seed: int
    rules: Rules
    render_mode: str | None
    goals: Mapping[str, Any]  # of each task, those in force

    def of(self, rows: Sequence[int], episodes: Episodes, restart: int) -> Build:
        """Return what the worker of these rows needs."""
        envs = [(row, self.tasks[row], episodes.dynamics(row, self.seed, restart)) for row in rows]
        goals = {task: self.goals[task] for _, task, _ in envs}
        return Build(self.suite, envs, goals, self.rules, self.render_mode)


class Supervisor:
    """Calls to the workers of a pool and what to do when one fails.

    Args:
        pool: the workers.
        blueprint: of the environments, with the goals that are in force when a worker is restarted.
        episodes: tells which episode a failing row was in.
        max_restarts: restarts allowed over the life of this object.
        notify: called with one text per restart.
    """

    def __init__(
        self, pool: WorkerPool, blueprint: Blueprint, episodes: Episodes, max_restarts: int, notify: Notify
    ) -> None:
        self._pool, self._blueprint, self._episodes = pool, blueprint, episodes
        self._tasks = tuple(blueprint.tasks)
        self._max_restarts, self._notify = max_restarts, notify
        self.restarts = 0
        self.revived: set[int] = set()  # workers restarted by the last `begin`
        self.adrift: set[int] = set()  # workers whose environments are in no episode, or that are dead
        self._fatal: str | None = None  # why there will be no more steps

    def start(self) -> list[str]:
        """Make the environments in all workers, anew if they have some; return notes for users, each once."""
        notes = self._build(range(len(self._pool.rows)))
        if self._pool.failures:
            self._give_up("")
        return list(dict.fromkeys(note for own in notes.values() for note in own))

    def _build(self, workers: Sequence[int]) -> dict[int, Any]:
        rows = self._pool.rows
        builds = {
            worker: (self._blueprint.of(rows[worker], self._episodes, self.restarts),) for worker in workers
        }
        return self._pool.scatter("build", builds, starting=True)

    def draw_goals(self, seed: int) -> tuple[dict[str, Any], list[str]]:
        """Return the suite's goals, drawn by one worker, and notes for users."""
        drawn: tuple[dict[str, Any], list[str]]
        drawn = self.all_of("draw_goals", {0: (self._blueprint.suite, seed)}, starting=True)[0]
        return drawn

    def all_of(self, name: str, args: Mapping[int, tuple[Any, ...]], *, starting: bool = False) -> list[Any]:
        """Return the workers' results in the order of `args`; EnvironmentFailure if one of them fails."""
        self.check()
        results = self._pool.scatter(name, args, starting=starting)
        if any(worker not in results for worker in args):
            self._give_up("")
        return [results[worker] for worker in args]

    def each(self, name: str, *args: Any) -> list[Any]:
        """Return every worker's result of the same call; EnvironmentFailure if one of them fails."""
        return self.all_of(name, dict.fromkeys(range(len(self._pool.rows)), args))

    def begin(self, workers: Collection[int] = ()) -> None:
        """Begin an episode in all environments of these workers, and of those that have failed or do so now.

        Raises:
            EnvironmentFailure: the budget is spent; `revived` and `adrift` tell how far it went.
        """
        self.check()
        self.revived.clear()
        pending = set(workers)
        while pending or self._pool.failures:
            failed = self._restart_failed()
            pending |= failed
            self.revived |= failed
            self.adrift |= pending
            begun = self._pool.scatter("reset", dict.fromkeys(pending, ())).keys()
            pending -= begun
            self.adrift -= begun

    def failed_rows(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return masks [N] of the rows that the last `begin` revived and of those left in no episode."""
        masks = np.zeros(len(self._tasks), np.bool_), np.zeros(len(self._tasks), np.bool_)
        for mask, workers in zip(masks, (self.revived - self.adrift, self.adrift), strict=True):
            for worker in workers:
                mask[list(self._pool.rows[worker])] = True
        return masks

    def states(self) -> list[Any]:
        """Return the state of each row's environment, None for those of workers that have failed."""
        workers = set(range(len(self._pool.rows))) - self.adrift
        envs: list[Any] = [None] * len(self._tasks)
        for worker, states in self._pool.scatter("get_state", dict.fromkeys(workers, ())).items():
            for row, state in zip(self._pool.rows[worker], states, strict=True):
                envs[row] = state
        return envs

    def restore(self, states: Sequence[Any]) -> None:
        """Put each row's environment into its state; EnvironmentFailure if a worker fails."""
        own = [{row: states[row] for row in rows} for rows in self._pool.rows]
        self.all_of("set_state", {worker: (of_rows,) for worker, of_rows in enumerate(own)})

    def render(self, rows: Sequence[int]) -> dict[int, Any]:
        """Return a frame of each of these rows; a worker that dies of it is replaced in the next step."""
        self.check()
        everyone = range(len(self._pool.rows))
        frames: dict[int, Any] = {}
        for own in self._pool.scatter("render", dict.fromkeys(everyone, (rows,))).values():
            frames.update(own)
        if self._pool.failures:
            failures = [self._describe(failure) for failure in self._pool.failures.values()]
            raise EnvironmentFailure("\n".join(["rendering failed:", *failures]))
        return frames

    def _restart_failed(self) -> set[int]:
        """Restart the workers that have failed, with environments but in no episode; return them."""
        restarted: set[int] = set()
        while self._pool.failures:
            failures = list(self._pool.failures.values())
            self.adrift |= self._pool.failures.keys()
            if self.restarts + len(failures) > self._max_restarts:
                self._give_up(
                    f"{self.restarts} of at most {self._max_restarts} restarts are used up; "
                    "if the cause lies outside of the program, allow more with max_restarts."
                )
            for failure in failures:
                self.restarts += 1
                self._notify(
                    f"{self._describe(failure)}\nIt is restarted ({self.restarts} of at most "
                    f"{self._max_restarts} restarts); its unfinished episodes are dropped."
                )
                self._pool.restart(failure.worker)
                restarted.add(failure.worker)
            self._build([failure.worker for failure in failures])
        return restarted

    def check(self) -> None:
        """Raise EnvironmentFailure if there will be no more steps."""
        if self._fatal is not None:
            raise EnvironmentFailure(self._fatal)

    def _give_up(self, advice: str) -> None:
        failures = [self._describe(failure) for failure in self._pool.failures.values()]
        self._fatal = "\n".join([*failures, advice]).rstrip()
        raise EnvironmentFailure(self._fatal)

    def _describe(self, failure: Failure) -> str:
        rows = self._pool.rows[failure.worker]
        tasks = ", ".join(dict.fromkeys(self._tasks[row] for row in rows))
        pid = self._pool.pids[failure.worker]
        name = f"environment worker {failure.worker} of {len(self._pool.rows)} (pid {pid}; tasks: {tasks})"
        if failure.row is not None:
            name += f", in task {self._tasks[failure.row]} ({self._episodes.where(failure.row)}),"
        end = "" if "\n" in failure.reason else "."
        return f"{name} {failure.reason.rstrip()}{end}"
