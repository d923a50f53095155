"""Checkpoints written while training goes on, by one thread, one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mtrl.runs import console
from mtrl.runs.checkpoint import save_checkpoint
from mtrl.runs.plain_tree import copied


class _Abandoned(Exception):
    """Ends a write that nobody waits for any longer; nothing half-written stays."""


class CheckpointWriter:
    """Copies what a checkpoint holds and writes the copy in a thread of its own.

    Only the copying holds training up. Parts that are functions (`Agent.state`) are called by the thread, so
    that the largest of them is never there twice. A context manager: leaving it waits for the write under
    way, or by KeyboardInterrupt abandons it after the file it is at.

    Args:
        run_dir: the run, held by the caller.
        keep: newest checkpoints that stay.
        suite: versions of the suite of tasks.
    """

    def __init__(self, run_dir: Path, *, keep: int, suite: Mapping[str, str]) -> None:
        self._run_dir, self._keep, self._suite = run_dir, keep, suite
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._future: Future[Path] | None = None
        self._abandoned = threading.Event()
        self.step = -1  # of the checkpoint begun last

    @property
    def busy(self) -> bool:
        """Whether a checkpoint has been begun whose outcome nobody has asked for."""
        return self._future is not None

    @property
    def done(self) -> bool:
        """Whether `result` would return at once."""
        return self._future is not None and self._future.done()

    def begin(self, step: int, state: Mapping[str, Any]) -> None:
        """Begin to write `state` (`save_checkpoint`); the one before must have been asked for its result."""
        assert self._future is None
        # Deferred even where they are trees: the thread looks before each part whether it is still wanted.
        parts = {
            name: self._deferred(part if callable(part) else _constant(copied(part)))
            for name, part in state.items()
        }
        self.step = step
        self._future = self._threads.submit(
            save_checkpoint, self._run_dir, step, parts, keep=self._keep, suite=self._suite
        )

    def result(self) -> Path:
        """Wait for the checkpoint that was begun and return its directory; raises what its writing raised."""
        assert self._future is not None
        # Dropped first: as long as it is there, rows that training overwrites are put aside for its parts.
        future, self._future = self._future, None
        return future.result()

    def _deferred(self, part: Callable[[], Any]) -> Callable[[], Any]:
        def tree() -> Any:
            if self._abandoned.is_set():
                raise _Abandoned
            return part()

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


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value
