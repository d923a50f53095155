"""Writes that may fail for a while: a full disk costs a line or a checkpoint; the run, if it stays full."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from mtrl.errors import UserError
from mtrl.runs import console
from mtrl.runs.directory import flag_to_go_on, has_checkpoint

MAX_FAILURES = 3  # in a row, of one kind


class Writes:
    """Counts failures in a row for each kind of write: log lines that succeed do not excuse checkpoints."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failures: Counter[str] = Counter()

    def attempt(self, kind: str, step: int, action: Callable[[], object], *, last: bool = False) -> bool:
        """Do `action`; return whether it could be written, having warned if not.

        Args:
            kind: "log", "evaluation" or "checkpoint".
            step: vector step.
            action: raises OSError if it cannot write.
            last: no later one will make up for it.

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
