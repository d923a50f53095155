"""An agent that learns in slices between vector steps: in which order, and what signals do to it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from mtrl import train
from mtrl.config.schema import EvalConfig, TrainConfig
from mtrl.errors import UserError
from mtrl.runs.checkpoint import load_checkpoint
from mtrl.runs.log import RunInfo, Stamp
from mtrl.training.events import Event
from mtrl.training.run import resume_training
from tests.helpers.short_runs import assert_same_run, counting, lines
from tests.helpers.sliced_agent import ROLLOUT, SLICES, SlicedAgent

pytestmark = pytest.mark.usefixtures("worker_threads")

# Every second rollout ends with a log line and every fourth with an evaluation; a checkpoint falls between.
SETTINGS = counting(
    agent="tests.helpers.sliced_agent:SlicedAgent",
    steps=27,
    train=TrainConfig(log_interval=6, checkpoint_interval=9, num_threads=1, sinks=()),
    eval=EvalConfig(interval=12, episodes_per_task=1, final_episodes_per_task=1),
)


def in_slice(patch: pytest.MonkeyPatch, number: int, signal_number: int) -> None:
    """A signal arrives in this slice, counted from 1."""
    learn = SlicedAgent.learn

    def signalled(self: SlicedAgent, progress: float) -> None:
        learn(self, progress)
        if self.record and self.record[-1] != "act" and self.slices == number:
            os.kill(os.getpid(), signal_number)

    patch.setattr(SlicedAgent, "learn", signalled)


@pytest.fixture(scope="module")
def undisturbed_slices(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A run that nothing happens to, and what its agent was asked for; to be read only."""
    run, agents = tmp_path_factory.mktemp("slices") / "run", list[SlicedAgent]()
    made = SlicedAgent.__init__

    def noted(self: SlicedAgent, *arguments: Any) -> None:
        made(self, *arguments)
        agents.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SlicedAgent, "__init__", noted)
        train(SETTINGS, run)
    return run, agents[0].record


def test_slices_come_after_the_step_that_asks_for_them_and_before_the_next_action(
    undisturbed_slices: tuple[Path, list[Any]],
) -> None:
    run, record = undisturbed_slices
    rollouts = [["act"] * ROLLOUT + [end / 27] * SLICES for end in (6, 12, 18, 24)]
    assert record == [*(event for rollout in rollouts for event in rollout), *["act"] * 3]
    logged = [line["train/slices"] for line in lines(run / "metrics.jsonl")]
    assert logged == [4, 8, 12, 16, 16]


def test_a_stop_in_the_middle_saves_there_and_the_resumed_run_is_the_undisturbed_one(
    tmp_path: Path, undisturbed_slices: tuple[Path, list[Any]]
) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        in_slice(patch, 6, signal.SIGTERM)  # the second of four, after vector step 12
        assert train(SETTINGS, run).steps == 12
    assert load_checkpoint(run)[1]["rest"] == {"collected": 12, "left": 2, "slices": 6}
    assert [line["vector_step"] for line in lines(run / "metrics.jsonl")] == [6]
    assert not (run / "evaluations.jsonl").read_text()
    with pytest.MonkeyPatch.context() as patch:
        in_slice(patch, 7, signal.SIGTERM)  # again, in the same vector step
        assert resume_training(run).steps == 12
    assert load_checkpoint(run)[1]["rest"]["left"] == 1
    assert resume_training(run).exit_code == 0
    assert_same_run(undisturbed_slices[0], run)


def test_a_warning_in_the_middle_saves_there_and_a_later_kill_repeats_no_line(
    tmp_path: Path, undisturbed_slices: tuple[Path, list[Any]]
) -> None:
    run = tmp_path / "run"

    def killed(event: Event) -> None:
        if event.kind == "evaluation":  # of vector step 12: later than the checkpoint from its middle
            raise RuntimeError("killed")

    with pytest.MonkeyPatch.context() as patch:
        in_slice(patch, 6, signal.SIGUSR1)
        with pytest.raises(RuntimeError, match="killed"):
            train(SETTINGS, run, callbacks=[killed])
    assert load_checkpoint(run)[1]["rest"]["left"] == 2
    assert [line["vector_step"] for line in lines(run / "metrics.jsonl")] == [6, 12]
    curves = _Curves()
    assert resume_training(run, sinks=[curves]).exit_code == 0
    assert_same_run(undisturbed_slices[0], run)
    # The line of vector step 12 is written again, so the points of former processes end before it.
    assert curves.valid == 11
    assert curves.steps == [12, 18, 24, 27]


class _Curves:
    """A sink that notes the vector steps of its points."""

    def open(self, run: RunInfo) -> None:
        assert run.resumed_at is not None
        self.valid = run.resumed_at.vector_step
        self.steps: list[int] = []

    def metrics(self, stamp: Stamp, *_: Any) -> None:
        self.steps.append(stamp.vector_step)

    def evaluation(self, *_: Any, **__: Any) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize("part", ["envs", "loop"])
def test_an_agent_with_a_part_of_the_engines_is_refused_before_environments_start(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_environments(*_: Any, **__: Any) -> None:
        raise AssertionError("environments were started")

    monkeypatch.setattr("mtrl.training.run.build_envs", no_environments)
    monkeypatch.setattr(SlicedAgent, "state", lambda agent: {"policy": {}, part: {}})
    with pytest.raises(UserError, match=rf"found {part} in SlicedAgent\.state\(\)\. Choose another name"):
        train(SETTINGS, tmp_path / "run")
    assert not (tmp_path / "run").exists()
