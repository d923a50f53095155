"""Goal stream, current goal and env steps of the episode of every environment, kept by the learner.

Workers do not keep them because a worker's death would lose them: the n-th episode of an environment gets the
n-th goal of its stream, whether or not a restart cut an earlier episode short.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrl import seeds


class Episodes:
    """Episodes of the N rows of the vector environment; `goal` and `elapsed` describe the current ones.

    Args:
        tasks: task of each row.
        copies: copy number of each row within its task.
        num_goals: goals to draw from.
        upcoming: int64 [N], the goal of each row's next episode, in memory that the workers read.
    """

    def __init__(
        self, tasks: Sequence[str], copies: Sequence[int], num_goals: int, upcoming: NDArray[np.int64]
    ) -> None:
        self._keys = [(zlib.crc32(task.encode()), copy) for task, copy in zip(tasks, copies, strict=True)]
        self._num_goals = num_goals
        self._upcoming = upcoming
        self._streams: list[np.random.Generator] = []
        self._before: list[dict[str, Any]] = []  # each stream's state before it drew the upcoming goal
        self.goal = np.full(len(tasks), -1, np.int64)
        self.elapsed = np.zeros(len(tasks), np.int64)

    def seed(self, seed: int) -> None:
        """Start each row's stream from (seed, task, copy), so that it depends on no other environment."""
        sequences = [seeds.sequence(seed, "goals", key) for key in self._keys]
        self._streams = [np.random.default_rng(sequence) for sequence in sequences]
        self._before = [dict(stream.bit_generator.state) for stream in self._streams]
        self._draw(range(len(self._streams)))

    def dynamics(self, row: int, seed: int, restart: int) -> np.random.SeedSequence:
        """Return the seed of an environment's randomness beyond its goals; each restart gets another."""
        return seeds.sequence(seed, "environments", (*self._keys[row], restart))

    def began(self, rows: Sequence[int] | NDArray[np.int64]) -> None:
        """Record that these rows have begun the episode with their upcoming goal."""
        self.goal[rows] = self._upcoming[rows]
        self.elapsed[rows] = 0
        self._draw(rows)

    @contextmanager
    def beginning(self, goals: Sequence[int] | None) -> Iterator[None]:
        """Enclose a reset of all rows to `goals` (the streams stay unchanged); None: to the goals drawn."""
        drawn = self._upcoming.copy()
        if goals is not None:
            self._upcoming[:] = goals
        try:
            yield
            self.goal[:], self.elapsed[:] = self._upcoming, 0
        finally:
            self._upcoming[:] = drawn
        if goals is None:
            self._draw(range(len(drawn)))

    def where(self, row: int) -> str:
        """Describe the current episode of a row, for messages."""
        if self.goal[row] < 0:
            return f"copy {self._keys[row][1]}, before its first episode"
        return f"copy {self._keys[row][1]}, goal {self.goal[row]}, env step {self.elapsed[row]}"

    def stored(self, row: int, state: dict[str, Any] | None) -> dict[str, Any]:
        """Return the entry of a row in a saved state; `state` is what its worker returned, None if lost."""
        own = {"goal": int(self.goal[row]), "elapsed": int(self.elapsed[row]), "rng": dict(self._before[row])}
        return {**own, **(state or {"obs": None, "env": None})}

    def restore(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Restore each row's stream, current goal and env steps from what `stored` returned."""
        for row, state in enumerate(states):
            self._streams[row].bit_generator.state = state["rng"]
            self.goal[row], self.elapsed[row] = state["goal"], state["elapsed"]
        self._draw(range(len(states)))

    def _draw(self, rows: Sequence[int] | NDArray[np.int64]) -> None:
        for row in rows:
            stream = self._streams[row]
            self._before[row] = dict(stream.bit_generator.state)
            self._upcoming[row] = stream.integers(self._num_goals)
