"""Sweeps on Ray: as the command runs them, with a node and the driver killed on the way."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mtrl.report import compare
from mtrl.report.load import read_runs
from mtrl.report.tables import all_tables

ROOT = Path(__file__).resolve().parents[2]
COUNTING = ("--tasks", "task-0", "task-1", "--set", "suite=tests.helpers.counting_env:CountingSuite")
SEVEN = ("mean", "pcgrad", "cagrad", "nash_mtl", "sdmgrad", "conicgrad", "fs_mtl")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ray's processes, started elsewhere, import what this one does."""
    paths = (str(ROOT), str(ROOT / "scripts"), os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def _command(out: Path, *arguments: str) -> list[str]:
    flags = ("--preset", "debug", "--cpus-per-trial", "1", "--out", str(out), *arguments)
    return [sys.executable, "-m", "mtrl", "sweep", *flags]


def _final(out: Path) -> int:
    return sum(run.finished for run in read_runs(out)) if list(out.rglob("config.yaml")) else 0


def _scores(out: Path) -> dict[str, list[Any]]:
    """Tables of results, without those of times and places."""
    tables = all_tables(compare([out]))
    return {
        table.name: list(table.rows) for table in tables if table.name in ("final", "per-task", "selection")
    }


def _until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.3)


@pytest.mark.slow
@pytest.mark.usefixtures("environment")
def test_a_sweep_goes_on_beside_a_failed_trial_and_runs_nothing_twice(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "sweep"
    # Steps of such a size leave numbers that are not finite.
    grid = (*COUNTING, "device=cpu", "--grid", "sac.critic_lr=0.001,1.0e+30")
    command = _command(out, "--methods", "mean", "--seeds", "1", *grid)
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert first.returncode == 1, first.stdout + first.stderr
    assert "1 trial(s) finished" in first.stdout
    assert "mean,sac.critic_lr=1e+30/seed0 failed: non-finite" in first.stderr
    good = out / "mean,sac.critic_lr=0.001"
    written = {path: path.stat().st_mtime for path in good.rglob("*.jsonl")}
    assert len(written) == 2
    assert "evaluation at 120" in (out / "logs/mean,sac.critic_lr=0.001-seed0.log").read_text()
    again = [*command[:-1], "sac.critic_lr=0.001"]
    second = subprocess.run(again, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert second.returncode == 0, second.stdout + second.stderr
    assert {path: path.stat().st_mtime for path in written} == written


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("environment")
def test_ctrl_c_saves_what_runs_and_the_same_command_ends_it(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "sweep"
    command = _command(out, "--methods", "mean", "--seeds", "1", *COUNTING, "device=cpu", "steps=2_000")
    interrupted = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    run = out / "mean/seed0"
    _until(lambda: (run / "metrics.jsonl").is_file() and (run / "metrics.jsonl").stat().st_size > 0, 250)
    interrupted.send_signal(signal.SIGINT)
    _, message = interrupted.communicate(timeout=120)
    assert interrupted.returncode == 130
    assert message.endswith("The same command continues the sweep.\ninterrupted\n")
    assert "stopped at vector step" in (out / "logs/mean-seed0.log").read_text()
    assert _final(out) == 0
    subprocess.run(command, cwd=ROOT, check=True, timeout=400)
    assert _final(out) == 1


def _family(root: int) -> dict[int, str]:
    """Pids and start times of a process and all its descendants."""
    status = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
            status[int(path.parent.name)] = int(fields[1]), fields[19]
    found = {root}
    while more := {pid for pid, (parent, _) in status.items() if parent in found} - found:
        found |= more
    return {pid: status[pid][1] for pid in found & status.keys()}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("environment")
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs Linux")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_no_process_of_a_stopped_or_killed_sweep_stays(number: signal.Signals, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "sweep"
    command = _command(out, "--methods", "mean", "--seeds", "1", *COUNTING, "device=cpu", "steps=90_000")
    driver = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    run = out / "mean/seed0"
    _until(lambda: (run / "metrics.jsonl").is_file() and (run / "metrics.jsonl").stat().st_size > 0, 250)
    family = _family(driver.pid)
    assert len(family) > 5
    if number == signal.SIGHUP:  # from a terminal, to all
        os.killpg(driver.pid, number)
    else:
        driver.send_signal(number)
    _, message = driver.communicate(timeout=120)
    assert driver.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    if number != signal.SIGKILL:
        assert message.endswith(f"The same command continues the sweep.\nstopped by {number.name}\n")
        assert "stopped at vector step" in (out / "logs/mean-seed0.log").read_text()
    _until(lambda: not any(_family(pid).get(pid) == start for pid, start in family.items()), 15)


class _Cluster:
    """A head and workers of one CPU each, all on this machine."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        self.address: str = self._cluster.address
        self._node = self._cluster.add_node(num_cpus=1)

    def kill_node(self) -> None:
        self._cluster.remove_node(self._node, allow_graceful=False)

    def add_node(self) -> None:
        self._node = self._cluster.add_node(num_cpus=1)

    def shutdown(self) -> None:
        self._cluster.shutdown()


@pytest.fixture
def cluster(environment: None) -> Iterator[_Cluster]:
    pytest.importorskip("ray")
    started = _Cluster()
    yield started
    started.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.filterwarnings("default")  # Ray's own
def test_a_killed_node_and_a_killed_driver_change_no_number(tmp_path: Path, cluster: _Cluster) -> None:
    shared = (
        "--methods", *SEVEN, "--seeds", "2", "--tasks", "reach-v3", "drawer-close-v3",
        "--set", "device=cpu", "train.num_threads=1", "train.checkpoint_interval=20",
    )  # fmt: skip
    disturbed, calm = tmp_path / "disturbed", tmp_path / "calm"
    command = _command(disturbed, *shared, "--address", cluster.address)
    driver = subprocess.Popen(command, cwd=ROOT)
    _until(lambda: _final(disturbed) >= 2, 600)
    _until(lambda: _in_progress(disturbed), 300)
    cluster.kill_node()
    before = _final(disturbed)
    _until(lambda: _final(disturbed) >= before + 2 and _in_progress(disturbed), 600)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    finished = {run.path for run in read_runs(disturbed) if run.finished}
    written = {path: (path / "metrics.jsonl").stat().st_mtime for path in finished}
    cluster.add_node()
    assert subprocess.run(command, cwd=ROOT, timeout=900, check=False).returncode == 0
    assert {path: (path / "metrics.jsonl").stat().st_mtime for path in finished} == written, "ran again"
    assert subprocess.run(_command(calm, *shared), cwd=ROOT, timeout=900, check=False).returncode == 0
    assert _scores(disturbed) == _scores(calm)
    assert _losses(disturbed) == _losses(calm)


def _in_progress(out: Path) -> bool:
    """Whether some trial has logged and is not finished."""
    return any(run.metrics and not run.finished for run in read_runs(out))


def _losses(out: Path) -> dict[str, list[Any]]:
    """Critic losses of every run and log line: they tell runs apart even where all scores are zero."""
    return {
        f"{run.method}/{run.seed}": [(line["vector_step"], line.get("critic_loss")) for line in run.metrics]
        for run in read_runs(out)
    }
