"""The driver of sweeps on a stand-in for Ray that makes each attempt at once, in this process."""

from __future__ import annotations

import errno
import importlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import mtrl.sweep
from mtrl.cli.sweep import main as main_sweep
from tests.helpers.short_runs import COUNTING


class RayError(Exception):
    """What Ray raises where a worker or its node is gone."""


class RayTaskError(RayError):
    """What Ray raises where the trial's own code has raised."""


class Attempt:
    """One attempt at a trial: what Ray calls a reference."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: RayError | None = None
        try:
            self.result = function()
        except RayError as error:
            self.error = error


class StandIn(ModuleType):
    """What the driver asks of Ray, on one node of one CPU."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.exceptions = ModuleType("ray.exceptions")
        vars(self.exceptions).update(RayError=RayError, RayTaskError=RayTaskError)
        self.started: list[str] = []  # the trials' directories, one per attempt
        self.lost = 0  # how many of the next attempts lose their worker

    def init(self, **options: Any) -> None: ...

    def shutdown(self) -> None: ...

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 1.0}}]

    def remote(self, **options: Any) -> Callable[[Callable[..., Any]], SimpleNamespace]:
        def attempt(function: Callable[..., Any], config: Any, path: str, *rest: str) -> Any:
            self.started.append(Path(path).parent.name)
            if self.lost:
                self.lost -= 1
                raise RayError
            return function(config, path, *rest)

        return lambda function: SimpleNamespace(
            remote=lambda *arguments: Attempt(lambda: attempt(function, *arguments))
        )

    def wait(self, references: list[Attempt], **options: Any) -> tuple[list[Attempt], list[Attempt]]:
        return references, []

    def get(self, reference: Attempt) -> Any:
        if reference.error:
            raise reference.error
        return reference.result


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The stand-in, for the driver alone: nobody else keeps a driver that was imported with it."""
    ray = StandIn()
    before = sys.modules.pop("mtrl.sweep.driver", None)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ray", ray)
        patch.setitem(sys.modules, "ray.exceptions", ray.exceptions)
        # Not `from mtrl.sweep import driver`, which returns what another file has imported with Ray itself.
        driver = importlib.import_module("mtrl.sweep.driver")
        patch.setattr(driver, "_POLL_SECONDS", 0.0)
        patch.setattr(driver, "_WAIT_BEFORE_RETRY", 0.0)
        yield ray
    del sys.modules["mtrl.sweep.driver"], mtrl.sweep.driver
    if before:
        sys.modules["mtrl.sweep.driver"] = mtrl.sweep.driver = before


def sweep(out: Path, *arguments: str) -> int:
    flags = ("--preset", "debug", "--tasks", *COUNTING["tasks"], "--cpus-per-trial", "1", "--out", str(out))
    fixed = (f"suite={COUNTING['suite']}", "device=cpu", "train.num_threads=1", "steps=80")
    return main_sweep([*flags, "--methods", "mean", "--seeds", "1", "--set", *fixed, *arguments])


def test_a_ray_that_does_not_start_here_is_no_missing_cluster(
    ray: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**options: Any) -> None:
        raise RuntimeError("no free port")

    monkeypatch.setattr(ray, "init", fail)
    assert sweep(tmp_path) == 2
    assert "Ray could not be started on this machine: no free port" in capsys.readouterr().err


@pytest.mark.dear
def test_a_sweep_goes_on_beside_a_failed_trial_and_runs_nothing_twice(
    ray: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Steps of such a size leave numbers that are not finite.
    assert sweep(tmp_path, "--grid", "sac.critic_lr=0.001,1.0e+30") == 1
    printed = capsys.readouterr()
    assert "1 trial(s) finished" in printed.out
    assert "mean,sac.critic_lr=1e+30/seed0 failed: non-finite" in printed.err
    good = tmp_path / "mean,sac.critic_lr=0.001"
    written = {path: path.stat().st_mtime_ns for path in good.rglob("*.jsonl")}
    assert len(written) == 2
    assert sweep(tmp_path, "--grid", "sac.critic_lr=0.001") == 0
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert sweep(tmp_path, "--grid", "sac.critic_lr=0.001,1.0e+30") == 1
    assert ray.started == [good.name, "mean,sac.critic_lr=1e+30", "mean,sac.critic_lr=1e+30"]


@pytest.mark.dear
@pytest.mark.parametrize(("lost", "code", "attempts"), [(1, 0, 2), (5, 1, 3)])
def test_a_trial_that_lost_its_worker_is_tried_again_as_often_as_allowed(
    lost: int, code: int, attempts: int, ray: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ray.lost = lost
    assert sweep(tmp_path, "--retries", "2") == code
    assert ray.started == ["mean"] * attempts
    assert ("mean/seed0 failed: RayError" in capsys.readouterr().err) == bool(code)


def test_as_many_trials_begin_at_once_as_fit_or_as_are_asked_for(
    ray: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at_once: list[int] = []

    def wait(references: list[Any], **options: Any) -> tuple[list[Any], list[Any]]:
        at_once.append(len(references))
        return references[:1], references[1:]

    ended = SimpleNamespace(exit_code=0, steps=80)
    monkeypatch.setattr("mtrl.training.run.resume_or_start", lambda *_, **__: ended)
    monkeypatch.setattr(ray, "wait", wait)
    taus = "sac.tau=.01,.02,.03,.04,.05,.06,.07"
    for parallel, expected in (
        ((), [5, 5, 5, 4, 3, 2, 1]),  # 1 // .2 is four
        (("--parallel", "3"), [3, 3, 3, 3, 3, 2, 1]),
        (("--parallel", "8"), [7, 6, 5, 4, 3, 2, 1]),  # a cluster grows by those that wait in Ray's queue
    ):
        at_once.clear()
        capsys.readouterr()
        assert sweep(tmp_path, "--grid", taus, "--cpus-per-trial", ".2", *parallel) == 0
        assert at_once == expected
    assert max(re.findall(r"(\d+) running", capsys.readouterr().out)) == "5"


def test_nodes_that_are_too_small_are_refused_before_anything_starts(
    ray: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(tmp_path, "--cpus-per-trial", "2") == 2
    assert (
        "no node has the 2 CPUs and 0 GPUs of one trial; the largest have 1 and 0" in capsys.readouterr().err
    )
    assert ray.started == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("twice", [False, True])
def test_a_stop_signal_lets_running_trials_save(
    twice: bool,
    number: signal.Signals,
    ray: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    running, told = object(), []
    waits: list[float] = []

    def wait(references: list[Any], **options: Any) -> tuple[list[Any], list[Any]]:
        waits.append(options["timeout"])
        if len(waits) == 1 or twice:
            os.kill(os.getpid(), number)
        saved.append(options["timeout"])
        return [], references

    saved: list[float] = []
    start = SimpleNamespace(remote=lambda *_: running)
    monkeypatch.setattr(ray, "remote", lambda **_: lambda function: start)
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(
        ray, "cancel", lambda reference, force: told.append((reference, force)), raising=False
    )
    inherited = signal.signal(number, signal.SIG_DFL)  # nohup's ignored SIGHUP would stay ignored
    try:
        before = signal.getsignal(number)
        assert sweep(tmp_path) == 128 + number
        assert signal.getsignal(number) is before
    finally:
        signal.signal(number, inherited)
    assert told == [(running, False)]
    assert saved[-1] >= 30  # it waits until they have saved
    assert "The same command continues the sweep." in capsys.readouterr().err


def test_whatever_ends_the_driver_the_running_trials_are_told_to_save(
    ray: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []

    def wait(references: list[Any], **options: Any) -> tuple[list[Any], list[Any]]:
        if not told:
            raise RuntimeError("a defect of the driver")
        return references, []

    start = SimpleNamespace(remote=lambda *_: "running")
    monkeypatch.setattr(ray, "remote", lambda **_: lambda function: start)
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "cancel", lambda reference, force: told.append(reference), raising=False)
    with pytest.raises(RuntimeError, match="a defect of the driver"):
        sweep(tmp_path)
    assert told == ["running"]


def test_a_sweep_whose_output_is_lost_ends_as_any_other(
    ray: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    ended = SimpleNamespace(exit_code=0, steps=80)
    monkeypatch.setattr("mtrl.training.run.resume_or_start", lambda *_, **__: ended)
    monkeypatch.setattr("builtins.print", full)
    assert sweep(tmp_path) == 0


def test_a_hangup_of_the_terminal_does_not_reach_rays_processes(
    ray: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks: list[set[int]] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    monkeypatch.setattr(ray, "init", lambda **_: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
    monkeypatch.setattr(
        "mtrl.training.run.resume_or_start", lambda *_, **__: SimpleNamespace(exit_code=0, steps=80)
    )
    assert sweep(tmp_path) == 0
    assert masks == [before | {signal.SIGHUP}]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--gpus-per-trial", "1.5"), ("--gpus-per-trial", ".00001"), ("--cpus-per-trial", ".00001")],
)
def test_parts_that_ray_cannot_reserve_are_refused_before_it_starts(
    flag: str,
    value: str,
    ray: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 1.0, "GPU": 2.0}}])
    assert sweep(tmp_path, flag, value) == 2
    assert f"error: {flag} must be" in capsys.readouterr().err
    assert ray.started == []


def test_the_log_of_a_trial_has_the_traceback_of_its_defect(
    ray: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*_: Any, **__: Any) -> None:
        raise RayTaskError("a defect of the trial")

    monkeypatch.setattr("mtrl.training.run.resume_or_start", defect)
    assert sweep(tmp_path) == 1
    text = (tmp_path / "logs/mean-seed0.log").read_text()
    assert "Traceback" in text
    assert "a defect of the trial" in text
