"""What a run saves: checkpoints, written while it trains, and the best policy beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mtrl.runs.checkpoint import save_checkpoint
from mtrl.runs.checkpoint_writer import CheckpointWriter
from mtrl.runs.directory import BEST_NAME
from mtrl.runs.writes import Writes


class Saving:
    """Begins checkpoints, learns how they ended, and counts those that failed.

    Args:
        path: the run directory.
        writer: of its checkpoints.
        writes: counts failures.
        suite: versions of the suite of tasks.
        flush: writes what the log still owes: a checkpoint must not count what no log tells.
        written: called with vector step and directory of each checkpoint that is safe on disk.
    """

    def __init__(
        self,
        path: Path,
        writer: CheckpointWriter,
        writes: Writes,
        suite: Mapping[str, str],
        flush: Callable[[], None],
        written: Callable[[int, Path], None],
    ) -> None:
        self._path, self._writer, self._writes, self._suite = path, writer, writes, suite
        self._flush, self._written = flush, written
        self.saved_at: int | None = None  # vector step of the newest checkpoint that is safe

    def begin(self, step: int, state: Callable[[], Mapping[str, Any]], *, last: bool = False) -> None:
        """Begin a checkpoint; if it is the last one, wait for it. Raises as `Writes.attempt`."""
        self.finish()  # one at a time: a disk slower than the interval holds training up, and no memory fills
        if not self._writes.attempt("log", step, self._flush, last=last):
            return
        self._writer.begin(step, state())
        if last:
            self.finish(last=True)

    def poll(self) -> None:
        """Take notice of a checkpoint that has been written meanwhile."""
        if self._writer.done:
            self.finish()

    def finish(self, *, last: bool = False) -> None:
        """Wait for the checkpoint under way, if any."""
        if not self._writer.busy:
            return
        step, paths = self._writer.step, []
        if self._writes.attempt("checkpoint", step, lambda: paths.append(self._writer.result()), last=last):
            self.saved_at = step
            self._written(step, paths[0])

    def keep_best(self, step: int, policy: Any) -> None:
        """Keep this policy, all that acting needs, in place of the best so far: it stands alone."""
        self._writes.attempt(
            "best policy",
            step,
            lambda: save_checkpoint(
                self._path / BEST_NAME, step, {"policy": policy}, keep=1, suite=self._suite
            ),
        )
