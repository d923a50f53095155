"""A user's own sinks, and those of the package on a full disk."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

import mtrl
from mtrl.runs.log import Evaluation, RunInfo, Stamp
from mtrl.runs.tensorboard import TensorBoard
from tests.helpers.logs import NUM_ENVS, RESULT, TASKS, curve, events, log_steps, open_log
from tests.helpers.short_runs import lines


def test_curves_of_tasks_with_hostile_names_stay_in_the_run_and_apart(tmp_path: Path) -> None:
    run = tmp_path / "a/b/run"
    run.mkdir(parents=True)
    names = ("../../../outside", str(tmp_path / "absolute"), "a/b", "a_b", "a b", "push-v3")
    sink = TensorBoard()
    sink.open(RunInfo(run, names, {"method": "mean"}, {}, None))
    sink.metrics(Stamp(1, 1, 0.0), {}, {"alpha": {name: float(index) for index, name in enumerate(names)}})
    sink.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert len(list(run.iterdir())) == 1
    tags = events(run).Tags()["scalars"]
    assert sorted(curve(run, tag)[0][1] for tag in tags) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert "alpha/push-v3" in tags


# -- a user's own sinks -------------------------------------------------------------------------------------


class Listener:
    """A sink that keeps what it is told and fails when asked to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.heard: list[Any] = []
        self.error = error

    def open(self, run: RunInfo) -> None:
        self.heard.append(run)

    def metrics(self, stamp: Stamp, scalars: Any, per_task: Any) -> None:
        if self.error is not None:
            raise self.error
        self.heard.append((stamp.vector_step, dict(scalars), dict(per_task)))

    def evaluation(self, stamp: Stamp, result: Evaluation, *, final: bool) -> None:
        self.heard.append((stamp.env_steps, result, final))

    def close(self) -> None:
        self.heard.append("closed")


def test_a_sink_hears_everything_in_order(tmp_path: Path) -> None:
    sink = Listener()
    log = open_log(tmp_path, None, sink)
    log_steps(log, [10])
    log.evaluation(log.stamp(10, NUM_ENVS), RESULT, final=True)
    log.close()
    log.close()
    run, *rest = sink.heard
    assert (run.path, run.task_names, run.resumed_at) == (tmp_path, TASKS, None)
    assert rest == [
        (10, {"train/critic_loss": 10.0}, {"alpha": {"reach-v3": 10.0, "push-v3": -10.0}}),
        (60, RESULT, True),
        "closed",
    ]


def test_a_sink_that_cannot_write_is_left_out_with_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, other = Listener(ConnectionError("no network")), Listener()
    log = open_log(tmp_path, None, broken, other)
    log_steps(log, [10, 20])
    log.close()
    assert (
        capsys.readouterr().err
        == "warning: Listener was closed (no network); the run goes on and still writes its .jsonl files\n"
    )
    assert len(lines(tmp_path / "metrics.jsonl")) == 2
    assert broken.heard[1:] == ["closed"]
    assert len(other.heard) == 4


def test_a_defect_of_a_sink_is_not_hidden(tmp_path: Path) -> None:
    log = open_log(tmp_path, None, Listener(KeyError("a defect")))
    with pytest.raises(KeyError):
        log_steps(log, [10])
    log.close()


# -- full disks ---------------------------------------------------------------------------------------------

FULL_DISK = """
    import json, pathlib, resource, sys
    from mtrl.runs.jsonl import JsonLines
    from mtrl.runs.log import SINKS, Log, RunInfo

    info = RunInfo(pathlib.Path(sys.argv[1]), ("reach-v3",), {"method": "mean"}, {}, None)
    log = Log(info, JsonLines(), [SINKS["tensorboard"]()])
    log.metrics(log.stamp(1, 1), {"a/b": 1.0}, {})
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (pathlib.Path(sys.argv[1]) / "metrics.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, unlimited[1]))
    try:
        log.metrics(log.stamp(2, 1), {"a/b": 2.0}, {})
    except OSError as error:
        print("refused", error.errno)
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    log.metrics(log.stamp(3, 1), {"a/b": 3.0}, {})
    # Now the lines fit, the curves do not.
    events = next(pathlib.Path(sys.argv[1]).glob("events*")).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (events, unlimited[1]))
    for step in range(4, 8):
        log.metrics(log.stamp(step, 1), {"a/b": 4.0}, {})
    log.close()
"""


@pytest.mark.dear
def test_a_full_disk_never_leaves_half_a_line_and_ends_only_the_curves(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(mtrl.__file__).parent.parent)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "refused 27\n"  # EFBIG
    assert [line["vector_step"] for line in lines(tmp_path / "metrics.jsonl")] == list(
        range(1, 8)
    )  # a refused line waits
    assert done.stderr.count("warning: TensorBoard was closed") == 1
    assert done.stderr.count("\n") == 1  # no traceback of tensorboard's thread, nor others' at the end


def test_only_one_module_imports_tensorboard() -> None:
    package = Path(mtrl.__file__).parent
    importing = {
        path.name for path in package.rglob("*.py") if "utils.tensorboard import" in path.read_text()
    }
    assert importing == {"tensorboard.py"}


def test_event_files_of_a_resumed_run_sort_last_even_if_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_log(tmp_path).close()
    former = {path.name for path in tmp_path.rglob("events.out.tfevents.*")}
    monkeypatch.setattr(time, "time", lambda: 1_000_000_000.0)
    open_log(tmp_path, 40).close()
    first, second = sorted(path.name for path in tmp_path.glob("events.out.tfevents.*"))
    assert first in former
    assert second not in former
