"""What callers get: results, events, sinks of their own, and their process as it was."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pickle
import re
import shutil
import signal
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtrl import Config, train
from mtrl.config.schema import EvalConfig, TrainConfig
from mtrl.device import cpu
from mtrl.errors import UserError
from mtrl.runs.log import Evaluation
from mtrl.training.events import Event
from mtrl.training.run import default_run_dir, evaluate_run, resume_training
from tests.helpers.finished_runs import Finished
from tests.helpers.short_runs import assert_same_run, config, counting, lines

pytestmark = pytest.mark.usefixtures("worker_threads")


def test_the_result_is_what_the_files_say(finished: Finished) -> None:
    result, run = finished.result, finished.path
    assert (result.exit_code, result.path, result.steps) == (0, run, 60)
    assert result.seconds > 0
    assert result.evaluation is not None
    written = lines(run / "evaluations.jsonl")[-1]
    assert written["mean_return"] == result.evaluation.mean_return
    # Twenty rewards of 100 * code + step each.
    np.testing.assert_array_equal(result.evaluation.episode_return, [[2210.0] * 2, [4210.0] * 2])
    again = evaluate_run(run, episodes=2)
    np.testing.assert_array_equal(again.episode_return, result.evaluation.episode_return)
    assert evaluate_run(run, episodes=3).episodes_per_task == 3


def test_callbacks_hear_everything_in_order(finished: Finished) -> None:
    result, events = finished.result, finished.events
    saved = [event for event in events if event.kind == "checkpoint"]  # when they are safe, not when begun
    others = [event for event in events if event.kind != "checkpoint"]
    assert [(event.kind, event.vector_step) for event in others] == [
        ("log", 10), ("log", 20), ("log", 30), ("evaluation", 30), ("log", 40), ("log", 50), ("log", 60),
        ("evaluation", 60),
    ]  # fmt: skip
    assert [event.vector_step for event in saved] == [25, 50, 60]
    assert saved[-1] is events[-2]
    assert {event.total_steps for event in events} == {60}
    assert [event.final for event in events if event.kind == "evaluation"] == [False, True]
    assert events[-1].evaluation is result.evaluation
    assert events[-2].path == finished.path / "checkpoints/step_000000060"
    written = lines(finished.path / "metrics.jsonl")[-1]
    assert others[-2].metrics["critic_loss"] == written["critic_loss"]
    assert others[-2].metrics["time/fps"] == written["time/fps"]


def test_a_callback_may_stop_and_the_run_resumes_as_if_undisturbed(tmp_path: Path, undisturbed: Path) -> None:
    def stop_at_40(event: Event) -> None:
        if event.vector_step == 40:
            event.stop()

    result = train(counting(), tmp_path / "run", callbacks=[stop_at_40])
    assert (result.exit_code, result.evaluation, result.steps) == (0, None, 40)
    metrics, evaluations = tmp_path / "run/metrics.jsonl", tmp_path / "run/evaluations.jsonl"
    hour = re.sub(r'"wall_s": [\d.]+', '"wall_s": 3600.0', metrics.read_text())
    metrics.write_text(hour)
    assert resume_training(tmp_path / "run").evaluation is not None
    assert_same_run(undisturbed, tmp_path / "run")
    # Working time goes on from what the first process had written.
    assert [line["wall_s"] >= 3600.0 for line in lines(metrics)] == [True] * 6
    assert [line["wall_s"] >= 3600.0 for line in lines(evaluations)] == [False, True]


@pytest.mark.dear
def test_an_agent_that_looks_at_success_rates_resumes_as_if_undisturbed(tmp_path: Path) -> None:
    """The checkpoint of a step is taken before its evaluation, whose rates pivrg turns into preferences."""
    settings = counting(
        method="pivrg",
        eval=EvalConfig(interval=25, episodes_per_task=1, final_episodes_per_task=1),
    )

    def stop_at_30(event: Event) -> None:
        if event.vector_step == 30:
            event.stop()

    train(settings, tmp_path / "undisturbed")
    train(settings, tmp_path / "run", callbacks=[stop_at_30])
    shutil.rmtree(tmp_path / "run/checkpoints/step_000000030")  # a kill leaves that of 25
    resume_training(tmp_path / "run")
    assert_same_run(tmp_path / "undisturbed", tmp_path / "run")


def test_a_defect_of_a_callback_ends_the_run_and_what_was_saved_resumes(
    tmp_path: Path, undisturbed: Path
) -> None:
    def defect(event: Event) -> None:
        if event.kind == "log" and event.vector_step == 40:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(counting(), tmp_path / "run", callbacks=[defect])
    resume_training(tmp_path / "run")
    assert_same_run(undisturbed, tmp_path / "run")


class Listener:
    """Counts what a sink is told."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def open(self, run: Any) -> None:
        self.heard.append(f"open {run.task_names[0]} {run.config['seed']} {run.versions['counting']}")

    def metrics(self, stamp: Any, scalars: Any, per_task: Any) -> None:
        self.heard.append(f"metrics {stamp.vector_step} {stamp.env_steps}")

    def evaluation(self, stamp: Any, result: Evaluation, *, final: bool) -> None:
        self.heard.append(f"evaluation {stamp.vector_step} {final}")

    def close(self) -> None:
        self.heard.append("close")


def test_a_sink_of_the_users_own_hears_the_run(tmp_path: Path) -> None:
    sink = Listener()
    train(counting(steps=20), tmp_path / "run", sinks=[sink])
    assert sink.heard == [
        "open task-1 0 1", "metrics 10 20", "metrics 20 40", "evaluation 20 True", "close",
    ]  # fmt: skip


def test_a_sink_that_the_configuration_names_hears_the_run_and_its_continuation(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "class Mine:\n"
        "    def open(self, run): self.path = run.path.parent / 'heard'; self.say('open')\n"
        "    def metrics(self, stamp, scalars, per_task): self.say(f'metrics {stamp.vector_step}')\n"
        "    def evaluation(self, stamp, result, *, final): self.say(f'evaluation {stamp.vector_step}')\n"
        "    def close(self): self.say('close')\n"
        "    def say(self, text):\n"
        "        with self.path.open('a') as file: file.write(text + '\\n')\n"
    )
    settings = TrainConfig(
        warmup_steps=15, log_interval=10, num_threads=1, sinks=(f"{tmp_path / 'mine.py'}:Mine",)
    )
    train(counting(train=settings, steps=20), tmp_path / "run")
    resume_training(tmp_path / "run", steps=30)
    heard = (tmp_path / "heard").read_text().split("\n")
    expected = "open,metrics 10,metrics 20,evaluation 20,close,open,metrics 30,evaluation 30,close,"
    assert heard == expected.split(",")
    assert not list((tmp_path / "run").glob("events*"))


def test_a_sink_that_does_not_exist_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    settings = TrainConfig(warmup_steps=15, sinks=("tensorbord",))
    with pytest.raises(UserError, match=r"unknown sink 'tensorbord'\. Did you mean 'tensorboard'"):
        train(counting(train=settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- the caller's process -----------------------------------------------------------------------------------


def test_the_calling_process_is_left_as_it_was(tmp_path: Path) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    handlers = [signal.getsignal(number) for number in numbers]
    during: list[tuple[int, str]] = []

    def look(event: Event) -> None:
        during.append((torch.get_num_threads(), torch.get_float32_matmul_precision()))

    try:
        torch.set_num_threads(2)
        torch.set_float32_matmul_precision("medium")
        train(counting(steps=20), tmp_path / "run", callbacks=[look])
        assert set(during) == {(1, "highest")}
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (2, "medium")
        with pytest.raises(KeyError), cpu.process_settings(1, "high", torch.device("cpu")):
            raise KeyError
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (2, "medium")
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
    assert [signal.getsignal(number) for number in numbers] == handlers


def test_torchs_other_interface_to_the_precision_is_refused_in_one_sentence() -> None:
    products, before = torch.backends.cuda.matmul, torch.get_float32_matmul_precision()
    if not hasattr(products, "fp32_precision"):
        pytest.skip("torch before 2.9 has one interface")
    former = products.fp32_precision
    try:
        products.fp32_precision = "tf32"
        with (
            pytest.raises(UserError, match="has set torch"),
            cpu.process_settings(1, "auto", torch.device("cpu")),
        ):
            pass
    finally:
        products.fp32_precision = former
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("torchs", "expected"), [(1, 1), (64, 3), (2, 2)])
def test_the_learner_takes_no_more_threads_than_torch_would_and_cores_there_are(
    torchs: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtrl.device.cpu.available_cores", lambda: 3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(torchs)
        with cpu.process_settings(None, "highest", torch.device("cpu")):
            assert torch.get_num_threads() == expected
        assert torch.get_num_threads() == torchs
    finally:
        torch.set_num_threads(before)


def test_a_deterministic_run_asks_for_kernels_that_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    during: list[tuple[bool, str | None]] = []

    def look(event: Event) -> None:
        asked = torch.are_deterministic_algorithms_enabled()
        during.append((asked, os.environ.get("CUBLAS_WORKSPACE_CONFIG")))

    settings = dataclasses.replace(config().train, deterministic=True)
    train(counting(steps=20, train=settings), tmp_path / "run", callbacks=[look])
    assert set(during) == {(True, ":4096:8")}
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.gpu
def test_a_deterministic_run_on_cuda_resumes_bit_for_bit(tmp_path: Path) -> None:
    settings = dataclasses.replace(config().train, deterministic=True)
    one = counting(method="cagrad", device="cuda", train=settings)
    train(one, tmp_path / "whole")

    def stop(event: Event) -> None:
        if event.vector_step == 40:
            event.stop()

    train(one, tmp_path / "parts", callbacks=[stop])
    resume_training(tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_core_that_taskset_grants_alone_is_one_thread() -> None:
    threads, cores = torch.get_num_threads(), os.sched_getaffinity(0)
    try:
        torch.set_num_threads(8)
        os.sched_setaffinity(0, [min(cores)])
        with cpu.process_settings(None, "highest", torch.device("cpu")):
            assert torch.get_num_threads() == 1
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


def test_what_goes_to_and_from_a_process_of_a_pool_survives_pickling(finished: Finished) -> None:
    assert pickle.loads(pickle.dumps(counting())) == counting()
    result = finished.result
    again = pickle.loads(pickle.dumps(result))
    assert again.evaluation is not None
    assert result.evaluation is not None
    np.testing.assert_array_equal(again.evaluation.success, result.evaluation.success)
    assert again._replace(evaluation=None) == result._replace(evaluation=None)


@pytest.mark.slow
def test_runs_can_be_submitted_to_a_pool_of_processes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        result = pool.submit(train, counting(steps=20), tmp_path / "run").result()
    assert (result.exit_code, result.path, result.steps) == (0, tmp_path / "run", 20)
    assert result.evaluation is not None
    assert result.evaluation.episodes_per_task == 2


def test_default_directories_name_the_run_and_never_collide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = Config(tasks=("reach-v3", "push-v3"), method="cagrad", seed=4)
    assert re.fullmatch(r"runs/reach-v3\+push-v3/cagrad/seed4-\d{8}-\d{6}", str(default_run_dir(plain)))
    assert str(default_run_dir(Config())).startswith("runs/mt10/mean/seed0-")
    two = Config(critic_method="nash_mtl", actor_method="pcgrad")
    assert str(default_run_dir(two)).startswith("runs/mt10/nash_mtl-pcgrad/seed0-")
    assert str(default_run_dir(Config(tasks=("../../x",)))).startswith("runs/x/mean/")
    monkeypatch.setattr("time.strftime", lambda _: "20260101-000000")
    paths = [train(counting(steps=16)).path for _ in range(2)]
    assert [path.name for path in paths] == ["seed0-20260101-000000", "seed0-20260101-000000-2"]
