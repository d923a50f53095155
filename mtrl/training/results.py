"""What a run hands out: its result at the end, an event to callbacks on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mtrl.runs.evaluation import Evaluation
from mtrl.training.signals import Requests


class TrainResult(NamedTuple):
    """How a call of `train`, `resume_training` or `resume_or_start` ended."""

    exit_code: int  # 0, or 128 + the signal that stopped it: 130 for Ctrl-C, 143 for SIGTERM
    evaluation: Evaluation | None  # the final one; None: stopped before it, `resume_training` goes on
    path: Path  # the run directory
    seconds: float  # of this call's training, evaluations and checkpoints included
    steps: int  # vector steps done in all


@dataclass(frozen=True)
class Event:
    """Something that has just happened in a run, as given to callbacks.

    Attributes:
        kind: "log" after a line of metrics, "evaluation" or "checkpoint".
        vector_step: vector steps done.
        total_steps: length of the run.
        path: the run directory; of a checkpoint, its own.
        metrics: of a log line: tag -> value, and group -> {task: value}; else empty.
        evaluation: of an evaluation; else None.
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
        """Ask the run to stop after this vector step: it writes a checkpoint and can be resumed."""
        if self._requests.exit_code is None:
            self._requests.exit_code = 0

    def save(self) -> None:
        """Ask for a checkpoint after this vector step."""
        self._requests.save = True


Callback = Callable[[Event], None]  # an exception that it raises ends the run; the last checkpoint stays
