"""Signals as requests: stop cleanly (SIGINT, SIGTERM, SIGHUP), or save and go on (SIGUSR1, SIGUSR2)."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Slurm (--signal) and other schedulers warn with one of these some time before they kill.
_SAVE = (signal.SIGUSR1, signal.SIGUSR2)


class Requests:
    """What signals and callbacks ask of a run; a context manager that puts the caller's handlers back.

    A second stop signal stops at once, by KeyboardInterrupt.

    Attributes:
        exit_code: None until a stop is asked for; then 128 + the signal's number (130 for Ctrl-C, 143 for
            SIGTERM), or 0 if a callback asked.
        save: whether a checkpoint is asked for; whoever writes it sets it back.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self.save = False
        self._before: dict[signal.Signals, Any] = {}

    @property
    def stop(self) -> bool:
        """Whether the run is to stop."""
        return self.exit_code is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids handlers
            for number in (*_STOP, *_SAVE):
                # nohup ignores SIGHUP: a run started with it is to outlive its terminal.
                if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number in _SAVE:
            self.save = True
        elif self.exit_code:
            raise KeyboardInterrupt
        else:
            self.exit_code = 128 + number
