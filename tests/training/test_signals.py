"""Signals at every moment of a run: while it starts, steps, evaluates. On the counting suite."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mtrl import train
from mtrl.agents.sac.agent import SACAgent
from mtrl.config.schema import EvalConfig
from mtrl.runs.checkpoint import load_checkpoint
from mtrl.runs.directory import has_checkpoint
from mtrl.training.evaluate import evaluate
from mtrl.training.events import Event, Requests
from mtrl.training.run import resume_or_start, resume_training
from tests.helpers.short_runs import assert_same_run, counting, lines

pytestmark = pytest.mark.usefixtures("worker_threads")

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAVES = (signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture(autouse=True)
def _nobody_ignores_hangups() -> Iterator[None]:
    """As in a terminal: under nohup a run ignores SIGHUP, and so would these."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", STOPS)
def test_the_first_stop_is_a_request_and_a_ctrl_c_after_it_stops_at_once(number: int) -> None:
    """Terminals that close and schedulers send SIGHUP or SIGTERM twice within a millisecond."""
    before = [signal.getsignal(one) for one in (*STOPS, *SAVES)]
    with pytest.raises(KeyboardInterrupt), Requests() as requests:
        for _ in range(1 if number == signal.SIGINT else 3):
            send(number)
        assert requests.stop
        assert requests.exit_code == 128 + number
        assert not requests.save
        send(signal.SIGINT)
    assert [signal.getsignal(one) for one in (*STOPS, *SAVES)] == before


@pytest.mark.parametrize("number", SAVES)
def test_a_warning_asks_for_a_checkpoint_alone(number: int) -> None:
    with Requests() as requests:
        send(number)
        assert requests.save
        assert not requests.stop


def test_a_run_that_nohup_started_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Requests() as requests:
            send(signal.SIGHUP)
            assert not requests.stop
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def in_an_evaluation(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Send a signal before the fourth env step of the first evaluation; returns a counter of env steps."""
    counter: list[int] = []

    def signalled(policy: Any, envs: Any, episodes: int, *, between_steps: Any) -> Any:
        def between() -> None:
            if len(counter) == 3:
                send(number)
            between_steps()
            counter.append(1)

        return evaluate(policy, envs, episodes, between_steps=between)

    monkeypatch.setattr("mtrl.training.loop.evaluate", signalled)
    return counter


@pytest.mark.dear
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in STOPS[::2])]
)
def test_a_stop_in_an_evaluation_is_answered_before_its_next_env_step(
    number: int,
    tmp_path: Path,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        counter = in_an_evaluation(patch, number)
        result = train(counting(), run)
    assert len(counter) == 3
    assert (result.exit_code, result.evaluation, result.steps) == (128 + number, None, 30)
    assert load_checkpoint(run)[0] == 30
    assert f"stopped at vector step 30; continue with --resume {run}" in capsys.readouterr().out
    assert resume_training(run).exit_code == 0
    assert_same_run(undisturbed, run)


def test_a_warning_in_an_evaluation_saves_at_once_and_goes_on(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []

    def note(event: Event) -> None:
        if event.kind == "checkpoint":
            saved.append(event.vector_step)

    counter = in_an_evaluation(monkeypatch, signal.SIGUSR1)
    result = train(counting(), tmp_path / "run", callbacks=[note])
    assert saved == [25, 30, 50, 60]
    assert len(counter) == 20 + 40  # two evaluations to their ends
    assert result.exit_code == 0
    assert_same_run(undisturbed, tmp_path / "run")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR2, 0)])
def test_between_steps_both_save_at_the_step_they_meet(number: int, code: int, tmp_path: Path) -> None:
    saved: list[int] = []

    def signal_at_40(event: Event) -> None:
        if event.kind == "log" and event.vector_step == 40:
            send(number)
        if event.kind == "checkpoint":
            saved.append(event.vector_step)

    assert train(counting(), tmp_path / "run", callbacks=[signal_at_40]).exit_code == code
    assert saved == ([25, 40] if code else [25, 40, 50, 60])


@pytest.mark.dear
@pytest.mark.parametrize(
    ("step", "how"), [(20, "repeat its command with --resume-or-start"), (40, "continue with --resume")]
)
def test_a_second_stop_leaves_at_once_and_says_how_to_go_on(step: int, how: str, tmp_path: Path) -> None:
    def stop_twice(event: Event) -> None:
        if event.kind == "log" and event.vector_step == step:
            while step == 40 and not has_checkpoint(run):  # that of step 25 is written beside training
                time.sleep(0.01)
            send(signal.SIGINT)
            send(signal.SIGINT)

    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt, match=f"interrupted at once; {how} {run}$"):
        train(counting(), run, callbacks=[stop_twice])
    assert resume_or_start(counting(), run).steps == 60


def test_a_stop_while_the_environments_start_leaves_a_run_that_can_be_resumed(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*arguments: Any) -> tuple[str, list[tuple[str, str]], list[str]]:
        send(signal.SIGTERM)
        return "title", [], []

    with monkeypatch.context() as patch:
        patch.setattr("mtrl.training.run.describe", stopped)
        result = train(counting(), tmp_path / "run")
    assert (result.exit_code, result.steps) == (143, 0)
    assert lines(tmp_path / "run" / "metrics.jsonl") == []
    assert resume_training(tmp_path / "run").steps == 60
    assert_same_run(undisturbed, tmp_path / "run")


@pytest.mark.parametrize(
    "kind", ["checkpoint", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("log", "evaluation"))]
)
def test_a_hang_up_right_after_something_was_written_is_not_lost(kind: str, tmp_path: Path) -> None:
    heard: list[Event] = []

    def hang_up(event: Event) -> None:
        if event.kind == kind and event.vector_step in (10, 25, 30) and not heard:
            heard.append(event)
            send(signal.SIGHUP)

    result = train(counting(), tmp_path / "run", callbacks=[hang_up])
    assert (result.exit_code, result.evaluation) == (128 + signal.SIGHUP, None)
    assert load_checkpoint(tmp_path / "run")[0] == result.steps < 60


def test_an_agent_is_told_of_an_evaluation_once_if_a_callback_stops_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At vector step 40 no checkpoint is due: the one of the stop has what the agent was told."""
    told: list[list[float]] = []
    monkeypatch.setattr(SACAgent, "note_success", lambda agent, rates: told.append(rates.tolist()))
    settings = counting(eval=EvalConfig(interval=40, episodes_per_task=1, final_episodes_per_task=1))
    stop = [lambda event: event.stop() if event.kind == "evaluation" else None]
    train(settings, tmp_path / "run", callbacks=stop)
    assert load_checkpoint(tmp_path / "run")[0] == 40
    assert len(told) == 1
    resume_training(tmp_path / "run")
    assert len(told) == 2  # that of vector step 60
