"""Checkpoints written while training goes on, by one thread, one at a time; writes that fail are counted."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mtrl.errors import UserError
from mtrl.runs import console
from mtrl.runs.checkpoint import save_checkpoint
from mtrl.runs.directory import BEST_NAME, flag_to_go_on, has_checkpoint
from mtrl.runs.plain_tree import copied

MAX_FAILURES = 3  # in a row, of one kind


class Writes:
    """Tolerates failing writes for a while: a full disk costs a line or a checkpoint; later the run.

    Failures in a row are counted for each kind of write: log lines that succeed do not excuse checkpoints.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failures: Counter[str] = Counter()

    def attempt(self, kind: str, step: int, action: Callable[[], object], *, last: bool = False) -> bool:
        """Do `action`; return whether it succeeded, having warned if not.

        Args:
            kind: "log", "evaluation", "checkpoint" or "best policy".
            step: vector step.
            action: raises OSError if it cannot write.
            last: no later write will make up for it.

        Raises:
            UserError: it was the last, or the third of its kind in a row to fail.
        """
        try:
            action()
        except OSError as error:
            self._failures[kind] += 1
            message = f"{kind} at vector step {step:,} could not be written: {error.strerror or error}"
            if last or self._failures[kind] >= MAX_FAILURES:
                count = "it was the last" if last else f"{MAX_FAILURES} failures in a row"
                raise UserError(f"{message} ({count}). The run is not complete; {self._way_on()}") from error
            console.warning(f"{message}; training goes on.")
            return False
        self._failures[kind] = 0
        return True

    def _way_on(self) -> str:
        flag = flag_to_go_on(self._path)
        if has_checkpoint(self._path):
            return f"earlier checkpoints are intact. Free space, then go on with {flag}"
        return f"it has no checkpoint yet. Free space, then start it anew with {flag}"


class _Abandoned(Exception):
    """Ends a write that nobody waits for any longer; nothing half-written stays."""


class CheckpointWriter:
    """Copies what a checkpoint holds and writes the copy in a thread of its own.

    Only the copying holds training up. Parts that are functions (`Agent.state`) are called by the thread, so
    that the largest of them never exists twice. A context manager: leaving it waits for the write under way;
    a KeyboardInterrupt abandons it before its next part.

    Args:
        run_dir: the run, held by the caller.
        keep: newest checkpoints that stay.
        suite: versions of the suite of tasks.
    """

    def __init__(self, run_dir: Path, *, keep: int, suite: Mapping[str, str]) -> None:
        self.run_dir, self.suite = run_dir, suite
        self.step = -1  # of the checkpoint begun last
        self._keep = keep
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._future: Future[Path] | None = None
        self._abandoned = threading.Event()

    @property
    def busy(self) -> bool:
        """Whether a checkpoint has been begun whose outcome nobody has asked for."""
        return self._future is not None

    @property
    def done(self) -> bool:
        """Whether `result` would return at once."""
        return self._future is not None and self._future.done()

    def begin(self, step: int, state: Mapping[str, Any]) -> None:
        """Begin to write `state` (`save_checkpoint`); call `result` for the checkpoint before it first."""
        assert self._future is None
        parts = {
            name: self._deferred(part if callable(part) else copied(part)) for name, part in state.items()
        }
        self.step = step
        self._future = self._threads.submit(
            save_checkpoint, self.run_dir, step, parts, keep=self._keep, suite=self.suite
        )

    def result(self) -> Path:
        """Wait for the checkpoint that was begun and return its directory; raises what its writing raised."""
        assert self._future is not None
        # Dropped first: while the future lives, replay keeps copies of overwritten rows for its parts.
        future, self._future = self._future, None
        return future.result()

    def _deferred(self, part: Any) -> Callable[[], Any]:
        """Return a function that gives the part, or ends the write if it is no longer wanted."""

        def tree() -> Any:
            if self._abandoned.is_set():
                raise _Abandoned
            return part() if callable(part) else part

        return tree

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._abandoned.set()
        try:
            if self.busy:
                self.result()
        except _Abandoned:
            pass
        except OSError as failure:
            console.warning(f"checkpoint at vector step {self.step:,} could not be written: {failure}")
        finally:
            self._threads.shutdown()


class Saving:
    """Begins checkpoints, takes notice of how they ended, and keeps the best policy beside them.

    Args:
        writer: of the run's checkpoints.
        writes: counts failures.
        flush: writes the log lines that wait: a checkpoint must not be ahead of the log.
        written: called with vector step and directory of each checkpoint that is safe on disk.
    """

    def __init__(
        self,
        writer: CheckpointWriter,
        writes: Writes,
        flush: Callable[[], None],
        written: Callable[[int, Path], None],
    ) -> None:
        self._writer, self._writes, self._flush, self._written = writer, writes, flush, written
        self.saved_at: int | None = None  # vector step of the newest checkpoint that is safe

    def begin(self, step: int, state: Callable[[], Mapping[str, Any]], *, last: bool = False) -> None:
        """Begin a checkpoint; if it is the last one, wait for it. Raises as `Writes.attempt`."""
        # One at a time: a disk slower than the interval holds training up instead of filling memory.
        self.finish()
        # A resume cuts the log to the checkpoint's step; lines it lacks could not be written again.
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
        """Replace the best policy so far by this one; it can act without the run's other checkpoints."""
        best, parts, suite = self._writer.run_dir / BEST_NAME, {"policy": policy}, self._writer.suite
        self._writes.attempt(
            "best policy", step, lambda: save_checkpoint(best, step, parts, keep=1, suite=suite)
        )
