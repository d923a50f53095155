"""Restarts workers that die, raise or hang, as often as a budget allows.

A killed process or a rare crash of the simulation should not end a run of days. A crash that returns each
time should, so the budget counts all restarts and never refills. A restarted worker has no environments:
they are built and reset before the next step. That may fail again, so `begin` loops.
"""

import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrl.envs.engine.episodes import Episodes
from mtrl.envs.engine.pool import Failure, WorkerPool
from mtrl.envs.engine.worker import Blueprint
from mtrl.errors import EnvironmentFailure, UserError

Notify = Callable[[str], None]
# Exceptions of these classes come again at each attempt; others may be due to the machine.
_MISTAKES = {"ArithmeticError", "AssertionError", "AttributeError", "ImportError", "LookupError", "NameError"}
_MISTAKES |= {"SyntaxError", "TypeError", "ValueError"}


def warn(text: str) -> None:
    """Tell the user by a RuntimeWarning."""
    warnings.warn(text, RuntimeWarning, stacklevel=2)


class Supervisor:
    """Sends commands to the workers of a pool and restarts those that fail.

    Args:
        pool: the workers.
        blueprint: of the environments; its goals may be replaced before workers are started or restarted.
        episodes: tells which episode a failing row was in.
        seed: of the environments' own randomness.
        max_restarts: restarts allowed over the life of this object.
        notify: called with one text per restart.
    """

    def __init__(
        self,
        pool: WorkerPool,
        blueprint: Blueprint,
        episodes: Episodes,
        *,
        seed: int,
        max_restarts: int,
        notify: Notify,
    ) -> None:
        self._pool, self._blueprint, self._episodes = pool, blueprint, episodes
        self._tasks, self._seed = tuple(blueprint.tasks), seed
        self._max_restarts, self._notify = max_restarts, notify
        self.restarts = 0
        self.former = 0  # restarts of this run's former processes, and resumes that began environments anew
        self.revived: set[int] = set()  # workers restarted by the last `begin`
        self.adrift: set[int] = set()  # workers that are dead or whose environments are in no episode
        self._fatal: str | None = None  # why no more steps are possible

    def start(self) -> list[str]:
        """Make the environments in all workers, in place of any before; return each note for users once.

        Raises:
            UserError: the suite's code raises an exception that is a mistake in it.
            EnvironmentFailure: a worker failed otherwise.
        """
        notes = self._build(range(len(self._pool.rows)), self.former)
        self._check_started()
        return list(dict.fromkeys(note for own in notes.values() for note in own))

    def _check_started(self) -> None:
        if failures := self._pool.failures.values():
            self._give_up("", UserError if all(map(_is_mistake, failures)) else EnvironmentFailure)

    def renew(self) -> None:
        """Make the environments in all workers anew; the next reset restarts workers that fail."""
        self.check()
        self._build(range(len(self._pool.rows)), 0)

    def _build(self, workers: Sequence[int], restart: int) -> dict[int, Any]:
        def seeds(worker: int) -> dict[int, np.random.SeedSequence]:
            rows = self._pool.rows[worker]
            return {row: self._episodes.dynamics(row, self._seed, restart) for row in rows}

        builds = {worker: (self._blueprint, seeds(worker)) for worker in workers}
        return self._pool.scatter("build", builds, starting=True)

    def draw_goals(self, seed: int) -> tuple[dict[str, Any], list[str]]:
        """Have one worker draw the suite's goals; return them and notes for users. Raises as `start`."""
        results = self._pool.scatter("draw_goals", {0: (self._blueprint.suite, seed)}, starting=True)
        self._check_started()
        drawn: tuple[dict[str, Any], list[str]] = results[0]
        return drawn

    def begin(self, workers: Collection[int] = ()) -> None:
        """Begin an episode in all environments of these workers and of all that have failed or fail now.

        Once the run is to stop, failed workers are left as they are, in `adrift`: nobody needs a new one.

        Raises:
            UserError: the suite's code raises one, as it would again.
            EnvironmentFailure: no restarts are left; `revived` and `adrift` are valid nevertheless.
        """
        self.check()
        self.revived.clear()
        pending = set(workers)
        while pending or self._pool.failures:
            restarted = self._restart_failed()
            pending |= restarted
            self.revived |= restarted
            self.adrift |= pending
            pending -= self._pool.failures.keys()  # left as they are
            if not pending:
                break
            begun = self._pool.scatter("reset", dict.fromkeys(pending, ())).keys()
            pending -= begun
            self.adrift -= begun
        for failure in self._pool.failures.values():
            self._notify(
                f"{self._describe(failure)}\nThe run is to stop, so it is not restarted; its unfinished "
                "episodes are dropped."
            )

    def failed_rows(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return two masks [N]: rows revived by the last `begin`, and rows that are in no episode."""
        masks = np.zeros(len(self._tasks), np.bool_), np.zeros(len(self._tasks), np.bool_)
        for mask, workers in zip(masks, (self.revived - self.adrift, self.adrift), strict=True):
            for worker in workers:
                mask[list(self._pool.rows[worker])] = True
        return masks

    def states(self) -> list[Any]:
        """Return the state of each row's environment, None where its worker has failed."""
        workers = set(range(len(self._pool.rows))) - self.adrift
        envs: list[Any] = [None] * len(self._tasks)
        for worker, states in self._pool.scatter("get_state", dict.fromkeys(workers, ())).items():
            for row, state in zip(self._pool.rows[worker], states, strict=True):
                envs[row] = state
        return envs

    def try_states(self, rows: Sequence[int]) -> list[tuple[str | None, list[Any]]]:
        """Return the workers' results of `try_states`; the next reset restarts workers that fail."""
        workers = range(len(self._pool.rows))
        found = self._pool.scatter("try_states", dict.fromkeys(workers, (rows,)), starting=True).values()
        return [*found, *((self._describe(failure), []) for failure in self._pool.failures.values())]

    def restore(self, states: Sequence[Any]) -> None:
        """Put each row's environment into its state; EnvironmentFailure if a worker fails."""
        own = [{row: states[row] for row in rows} for rows in self._pool.rows]
        self.check()
        self._pool.scatter("set_state", {worker: (of_rows,) for worker, of_rows in enumerate(own)})
        if self._pool.failures:
            self._give_up("")

    def render(self, rows: Sequence[int]) -> dict[int, Any]:
        """Return a frame of each of these rows; the next step restarts a worker that dies of it."""
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
        """Restart failed workers and make their environments, until the run is to stop; return them."""
        restarted: set[int] = set()
        while self._pool.failures:
            failures = list(self._pool.failures.values())
            self.adrift |= self._pool.failures.keys()
            if any(UserError.__name__ in failure.classes for failure in failures):
                self._give_up("", UserError)
            if self._pool.hurried():
                break
            if self.restarts + len(failures) > self._max_restarts:
                self._give_up(
                    f"{self.restarts} of at most {self._max_restarts} restarts are used up. "
                    "If the cause lies outside of the program, allow more with max_restarts."
                )
            for failure in failures:
                self.restarts += 1
                self._notify(
                    f"{self._describe(failure)}\nIt is restarted ({self.restarts} of at most "
                    f"{self._max_restarts} restarts); its unfinished episodes are dropped."
                )
                self._pool.restart(failure.worker)
                restarted.add(failure.worker)
            self._build([failure.worker for failure in failures], self.former + self.restarts)
        return restarted

    def check(self) -> None:
        """Raise EnvironmentFailure if no more steps are possible."""
        if self._fatal is not None:
            raise EnvironmentFailure(self._fatal)

    def _give_up(self, advice: str, kind: type[Exception] = EnvironmentFailure) -> None:
        failures = [self._describe(failure) for failure in self._pool.failures.values()]
        self._fatal = "\n".join([*failures, advice]).rstrip()
        raise kind(self._fatal)

    def _describe(self, failure: Failure) -> str:
        rows = self._pool.rows[failure.worker]
        tasks = ", ".join(dict.fromkeys(self._tasks[row] for row in rows))
        pid = self._pool.pids[failure.worker]
        name = f"environment worker {failure.worker} of {len(self._pool.rows)} (pid {pid}; tasks: {tasks})"
        if failure.row is not None:
            name += f", in task {self._tasks[failure.row]} ({self._episodes.where(failure.row)}),"
        end = "" if "\n" in failure.reason else "."
        return f"{name} {failure.reason.rstrip()}{end}"


def _is_mistake(failure: Failure) -> bool:
    """Return whether a worker failed by a mistake in the suite's code."""
    classes = set(failure.classes)
    of_files = "OSError" in classes or "opening file" in failure.reason  # MuJoCo's is a ValueError
    return not (of_files or "MemoryError" in classes or _MISTAKES.isdisjoint(classes))
