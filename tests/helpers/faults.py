"""What goes wrong on the way of a run, each until its patch is undone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from mtrl.agents.base import Policy
from mtrl.envs import TaskVectorEnv
from mtrl.runs.log import Evaluation
from mtrl.training.evaluate import evaluate
from mtrl.training.stepper import Stepper


def full_disk(*_: Any, **__: Any) -> NoReturn:
    """In the place of what writes."""
    raise OSError(28, "No space left on device")


def before_each_step(patch: pytest.MonkeyPatch, happens: Callable[[Stepper, int], None]) -> None:
    """Call `happens` with the number of each vector step, counted from 0, before it is made."""
    original = Stepper.vector_step

    def vector_step(self: Stepper, step: int) -> None:
        happens(self, step)
        original(self, step)

    patch.setattr(Stepper, "vector_step", vector_step)


def kill_a_worker(patch: pytest.MonkeyPatch, *at: int) -> None:
    """A worker of the training environments dies before these vector steps, counted from 0."""

    def kill(stepper: Stepper, step: int) -> None:
        if step in at:
            os.kill(stepper.state.envs.worker_pids[0], signal.SIGKILL)

    before_each_step(patch, kill)


def kill_a_worker_in_evaluations(patch: pytest.MonkeyPatch, *at: int) -> None:
    """A worker dies at the start of these evaluations, counted from 0."""
    calls: list[int] = []

    def kill(policy: Policy, envs: TaskVectorEnv, episodes: int, **options: Any) -> Evaluation:
        calls.append(1)
        if len(calls) - 1 in at:
            os.kill(envs.worker_pids[0], signal.SIGKILL)
        return evaluate(policy, envs, episodes, **options)

    patch.setattr("mtrl.training.loop.evaluate", kill)
