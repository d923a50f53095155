"""Writes checkpoints in a thread while training goes on, and counts failing writes."""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mtrl.errors import UserError
from mtrl.runs import console
from mtrl.runs.checkpoint import save_checkpoint
from mtrl.runs.directory import BEST_NAME, LOG_NAMES, has_checkpoint, way_to_go_on
from mtrl.runs.lock import OWNER_NAME, Presence
from mtrl.runs.plain_tree import copied

MAX_FAILURES = 3  # in a row, of one kind


class Writes:
    """Tolerates a few failing writes in a row, then ends the run.

    Each kind of write has its own count: log lines that succeed do not reset that of the checkpoints.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.presence = Presence(path, *LOG_NAMES, OWNER_NAME)
        self._failures: Counter[str] = Counter()

    def attempt(self, kind: str, step: int, action: Callable[[], object], *, last: bool = False) -> bool:
        """Call `action`; return whether it succeeded. Print a warning if it raised an OSError.

        Args:
            kind: "log", "evaluation", "checkpoint", "best policy" or "config".
            step: vector step.
            action: the write.
            last: no later write of this kind follows.

        Raises:
            UserError: the last write failed, or the third of its kind in a row; or the run directory or a log
                was removed, moved, unmounted or replaced.
        """
        self.presence.check()  # before the write, which may end up in another run's directory
        try:
            action()
            if last:
                self.presence.check()  # nothing is written later, so nothing would notice
        except OSError as error:
            self.presence.check()
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
        found = "earlier checkpoints are intact" if has_checkpoint(self._path) else "it has no checkpoint yet"
        return f"{found}. Free space, then {way_to_go_on(self._path)}"


class _Abandoned(Exception):
    """Ends an abandoned write; `save_checkpoint` then removes its unfinished files."""


class CheckpointWriter:
    """Copies the state and writes the copy in its own thread, one checkpoint at a time.

    Training waits for the copying only. Parts that are functions (`Agent.state`) are called by the thread, so
    that no second copy of the largest parts is made. A context manager: leaving it waits for a write that has
    begun; after a KeyboardInterrupt that write ends before its next part.

    Args:
        run_dir: the run, which the caller has locked.
        keep: number of newest checkpoints to keep.
        suite: versions of the suite of tasks.
        config: settings that a process which loads a checkpoint must share, by dotted key.
    """

    def __init__(
        self, run_dir: Path, *, keep: int, suite: Mapping[str, str], config: Mapping[str, Any] | None = None
    ) -> None:
        self.run_dir = run_dir
        self.about = {"suite": suite, "config": config}  # what a later process compares
        self.step = -1  # of the checkpoint begun last
        self._keep = keep
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._future: Future[Path] | None = None
        self._abandoned = threading.Event()

    @property
    def busy(self) -> bool:
        """Whether a checkpoint has begun and `result` has not been called for it."""
        return self._future is not None

    @property
    def done(self) -> bool:
        """Whether that write has ended, also if it failed: `result` does not wait."""
        return self._future is not None and self._future.done()

    def begin(self, step: int, state: Mapping[str, Any]) -> None:
        """Begin to write `state` (`save_checkpoint`); the one before must have been ended by `result`."""
        assert self._future is None
        own = {name: part if callable(part) else copied(part) for name, part in state.items()}
        parts = {name: partial(self._tree, part) for name, part in own.items()}
        self.step = step
        self._future = self._threads.submit(
            save_checkpoint, self.run_dir, step, parts, keep=self._keep, **self.about
        )

    def result(self) -> Path:
        """Wait for the checkpoint that has begun and return its directory. Raises as `save_checkpoint`."""
        assert self._future is not None
        # Forgotten first: a failed write's error holds its parts, for which replay keeps overwritten rows.
        future, self._future = self._future, None
        return future.result()

    def _tree(self, part: Any) -> Any:
        if self._abandoned.is_set():
            raise _Abandoned
        return part() if callable(part) else part

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
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
    """Saves checkpoints of a run through a `CheckpointWriter`, and its best policy.

    Args:
        writer: writes the checkpoints.
        writes: counts failures.
        flush: writes pending log lines; a checkpoint must not be ahead of the log.
        written: called with vector step and directory of each checkpoint once it is on disk.
    """

    def __init__(
        self,
        writer: CheckpointWriter,
        writes: Writes,
        flush: Callable[[], None],
        written: Callable[[int, Path], None],
    ) -> None:
        self._writer, self._writes, self._flush, self._written = writer, writes, flush, written
        self.saved_at: int | None = None  # vector step of the newest checkpoint on disk

    def begin(self, step: int, state: Callable[[], Mapping[str, Any]], *, last: bool = False) -> None:
        """Begin a checkpoint; if it is the last one, wait for it. Raises as `Writes.attempt`."""
        # One at a time: if the disk is slower than the interval, training waits instead of filling memory.
        self.finish()
        # A resumed run goes on after the checkpoint's step: lines missing before it would stay missing.
        if not self._writes.attempt("log", step, self._flush, last=last):
            return
        self._writer.begin(step, state())
        if last:
            self.finish(last=True)

    def poll(self) -> None:
        """Report a checkpoint that has been written since the last call."""
        if self._writer.done:
            self.finish()

    def finish(self, *, last: bool = False) -> None:
        """Wait for a checkpoint that has begun, if there is one."""
        if not self._writer.busy:
            return
        step, paths = self._writer.step, []
        if self._writes.attempt("checkpoint", step, lambda: paths.append(self._writer.result()), last=last):
            self.saved_at = step
            self._written(step, paths[0])

    def keep_best(self, step: int, parts: Mapping[str, Any]) -> bool:
        """Replace the stored best policy by this one, with its evaluation; return whether that succeeded."""

        def save() -> None:
            best = self._writer.run_dir / BEST_NAME
            best.mkdir(exist_ok=True)
            save_checkpoint(best, step, parts, keep=1, **self._writer.about)

        return self._writes.attempt("best policy", step, save)
