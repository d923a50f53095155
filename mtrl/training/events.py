"""Requests that signals and callbacks make of a run, the events it reports and its result."""

import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple, Self

from mtrl.runs.log import Evaluation

_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Slurm (--signal) and other schedulers warn with one of these some time before they kill.
_SAVE = (signal.SIGUSR1, signal.SIGUSR2)


class Requests:
    """What signals and callbacks ask of a run; a context manager that restores the caller's handlers.

    A handler only notes the request. The loop answers it between two vector steps, where the state of the run
    can be saved. SIGINT, SIGTERM and SIGHUP ask to stop, SIGUSR1 and SIGUSR2 to save and go on. A Ctrl-C
    after another stop signal raises KeyboardInterrupt.

    Attributes:
        exit_code: None until a stop is asked for; then 128 + the signal's number (130 for Ctrl-C, 143 for
            SIGTERM), or 0 if a callback asked.
        save: whether a checkpoint is asked for; the loop clears it when it begins one.
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
                # nohup ignores SIGHUP so that the run outlives its terminal.
                if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number in _SAVE:
            self.save = True
        elif not self.exit_code:  # None, or 0 after a callback's request: this is the first signal
            self.exit_code = 128 + number
        elif number == signal.SIGINT:  # kernels, shells and schedulers send the others twice by themselves
            raise KeyboardInterrupt


class TrainResult(NamedTuple):
    """How a call of `train`, `resume_training` or `resume_or_start` ended.

    Attributes:
        exit_code: 0, or 128 + the signal that stopped it: 130 for Ctrl-C, 143 for SIGTERM.
        evaluation: the final one; None if the run stopped before it, or was complete before this call.
        path: the run directory.
        seconds: of the training loop in this call, with evaluations and checkpoints, without the start.
        steps: vector steps done, former calls included.
    """

    exit_code: int
    evaluation: Evaluation | None
    path: Path
    seconds: float
    steps: int


@dataclass(frozen=True)
class Event:
    """Something that has just happened in a run; the argument of callbacks.

    Attributes:
        kind: "log" after a line of metrics, "evaluation" or "checkpoint".
        vector_step: vector steps done.
        total_steps: length of the run in vector steps.
        path: the run directory; for a checkpoint, the checkpoint's directory.
        metrics: for a log line: tag -> value, and group -> {task: value}; else empty.
        evaluation: for an evaluation; else None.
        final: whether this evaluation completes the run.
    """

    kind: Literal["log", "evaluation", "checkpoint"]
    vector_step: int
    total_steps: int
    path: Path
    metrics: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    final: bool = False
    _requests: Requests = field(default_factory=Requests, repr=False)

    def stop(self) -> None:
        """Ask the run to write a checkpoint and stop after this vector step; it can be resumed."""
        if self._requests.exit_code is None:
            self._requests.exit_code = 0

    def save(self) -> None:
        """Ask for a checkpoint after this vector step.

        At one step the checkpoint comes before the evaluation. So a request that is made in the event of an
        evaluation is met one step later.
        """
        self._requests.save = True


Callback = Callable[[Event], None]  # an exception in it ends the run; the last checkpoint stays
