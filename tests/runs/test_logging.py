"""The record of a run: curves, and where a resume goes on."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.custom_scalar import layout_pb2

from mtrl.runs.jsonl import drop_after, read_history
from mtrl.runs.log import Evaluation, RunInfo, Stamp
from tests.helpers.logs import NUM_ENVS, RESULT, TASKS, curve, events, log_steps, open_log
from tests.helpers.short_runs import lines

# -- lines --------------------------------------------------------------------------------------------------


def test_a_line_of_metrics_holds_steps_scalars_and_tasks_at_once(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.metrics(
        log.stamp(500, NUM_ENVS),
        {"train/critic_loss": np.float64(0.5), "time/fps": 123},
        {"alpha": (0.25, 0.75)},
    )
    (line,) = lines(tmp_path / "metrics.jsonl")  # before closing: a kill loses nothing
    log.close()
    assert 0 <= line.pop("wall_s") < 60
    assert line == {
        "vector_step": 500,
        "env_steps": 3000,
        "train/critic_loss": 0.5,
        "time/fps": 123.0,
        "alpha": {"reach-v3": 0.25, "push-v3": 0.75},
    }


def test_values_that_are_not_finite_are_null_and_no_point(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.metrics(log.stamp(1, NUM_ENVS), {"a/b": math.nan, "a/c": math.inf}, {"success": [math.nan, 1.0]})
    log.close()
    (line,) = lines(tmp_path / "metrics.jsonl")
    assert line["a/b"] is None and line["a/c"] is None
    assert line["success"] == {"reach-v3": None, "push-v3": 1.0}
    assert events(tmp_path).Tags()["scalars"] == ["success/push-v3"]


def test_per_task_values_must_match_the_tasks(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    with pytest.raises(ValueError, match=r"2 tasks, \[T\] or \[T, T\]; found \[1\]"):
        log.metrics(log.stamp(1, NUM_ENVS), {}, {"alpha": [1.0]})
    log.close()
    assert lines(tmp_path / "metrics.jsonl") == []


def test_values_between_two_tasks_are_for_the_record_alone(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Watching:
        def open(self, run: RunInfo) -> None: ...
        def metrics(self, stamp: Stamp, scalars: Any, per_task: Any) -> None:
            seen.append(per_task)

        def evaluation(self, stamp: Stamp, result: Evaluation, *, final: bool) -> None: ...
        def close(self) -> None: ...

    log = open_log(tmp_path, None, Watching())
    cosine = [[1.0, -0.123456], [-0.123456, 1.0]]
    log.metrics(log.stamp(1, NUM_ENVS), {}, {"alpha": [1.0, 2.0], "critic_cosine": cosine})
    log.close()
    (line,) = lines(tmp_path / "metrics.jsonl")
    first, second = TASKS
    assert line["critic_cosine"] == {first: {second: -0.1235}, second: {}}
    assert seen == [{"alpha": {first: 1.0, second: 2.0}}]


def test_a_line_of_evaluation_holds_every_task_and_the_means(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.evaluation(log.stamp(500, NUM_ENVS), RESULT, final=True)
    log.close()
    (line,) = lines(tmp_path / "evaluations.jsonl")
    assert 0 <= line.pop("wall_s") < 60
    assert line == {
        "vector_step": 500,
        "env_steps": 3000,
        "final": True,
        "episodes_per_task": 4,
        "mean_success": 0.5,
        "mean_success_last": 0.25,
        "mean_return": 126.25,
        "tasks": {
            "reach-v3": {"success": 0.75, "success_last": 0.25, "return": 250.0, "episodes": 4},
            "push-v3": {"success": 0.25, "success_last": 0.25, "return": 2.5, "episodes": 4},
        },
    }


@pytest.mark.parametrize("left", [0, 5, 10_000])
def test_lines_that_the_disk_refuses_when_it_is_asked_for_are_written_later(
    left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Network file systems and quotas take a line at first; what is left of it afterwards is not known."""
    log, path = open_log(tmp_path), tmp_path / "metrics.jsonl"
    log_steps(log, [10])
    log.flush()
    log_steps(log, [20, 30])
    safe, written, fsync = len(path.read_bytes().splitlines(keepends=True)[0]), path.stat().st_size, os.fsync

    def refuses(descriptor: int) -> None:
        os.truncate(path, min(safe + left, written))
        monkeypatch.setattr(os, "fsync", fsync)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuses)
    with pytest.raises(OSError, match="No space left"):
        log.flush()
    log_steps(log, [40])
    log.flush()
    log.close()
    assert [line["vector_step"] for line in lines(path)] == [10, 20, 30, 40]


# -- TensorBoard --------------------------------------------------------------------------------------------


def test_curves_are_over_vector_steps(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log_steps(log, [10, 20])
    log.evaluation(log.stamp(20, NUM_ENVS), RESULT, final=False)
    log.close()
    assert curve(tmp_path, "train/critic_loss") == [(10, 10.0), (20, 20.0)]
    assert curve(tmp_path, "alpha/push-v3") == [(10, -10.0), (20, -20.0)]
    means = {
        "1_success/all_tasks": 0.5,
        "3_success_at_last_step/all_tasks": 0.25,
        "2_return/all_tasks": 126.25,
    }
    for tag, value in means.items():
        assert curve(tmp_path, tag) == [(20, value)]
    for group, value in {"success": 0.75, "success_last": 0.25, "return": 250.0}.items():
        assert curve(tmp_path, f"{group}/reach-v3") == [(20, value)]


def test_success_is_the_first_group_of_charts(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.metrics(
        log.stamp(1, NUM_ENVS), {"rollout/success_rate": 0.5, "env/restarts": 0.0}, {"alpha": [1.0, 2.0]}
    )
    log.evaluation(log.stamp(1, NUM_ENVS), RESULT, final=False)
    log.close()
    tags = events(tmp_path).Tags()["scalars"]
    assert sorted({tag.split("/")[0] for tag in tags})[:2] == ["1_success", "2_return"]
    assert {"1_success/training_episodes", "env/restarts"} < set(tags)


def test_a_run_is_one_run_of_tensorboard(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log_steps(log, [1])
    log.close()
    log.close()
    board = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    assert list(board.Runs()) == ["."]
    assert len(list(tmp_path.rglob("events.out.tfevents.*"))) == 1


def test_each_number_by_task_has_one_chart_of_all_tasks(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.metrics(log.stamp(1, NUM_ENVS), {}, {"alpha": [1.0, 2.0], "training_success": [0.0, 0.5]})
    log.evaluation(log.stamp(2, NUM_ENVS), RESULT, final=False)
    log.close()
    charts = {
        chart.title: list(chart.multiline.tag) for part in _charts(tmp_path).category for chart in part.chart
    }
    assert list(charts) == ["success", "training_success", "success_last", "return", "alpha"]
    tags = events(tmp_path).Tags()["scalars"]
    for title, (expression,) in charts.items():  # TensorBoard's own rule: a tag begins with the expression
        shown = [tag for tag in tags if re.match(expression, tag)]
        assert sorted(shown) == sorted(f"{title}/{task}" for task in TASKS)


def _charts(run_dir: Path) -> Any:
    """The layout that TensorBoard shows: it takes the last that a run wrote."""
    content = events(run_dir).Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    return layout_pb2.Layout.FromString(content)


# -- resume -------------------------------------------------------------------------------------------------


def test_resume_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log_steps(log, [10, 20, 30, 40])
    log.evaluation(log.stamp(20, NUM_ENVS), RESULT, final=False)
    log.evaluation(log.stamp(40, NUM_ENVS), RESULT, final=False)
    log.close()
    log = open_log(tmp_path, resume_step=20)
    log_steps(log, [30, 40, 50], offset=0.5)
    log.close()

    metrics = lines(tmp_path / "metrics.jsonl")
    assert [(line["vector_step"], line["train/critic_loss"]) for line in metrics] == [
        (10, 10.0),
        (20, 20.0),
        (30, 30.5),
        (40, 40.5),
        (50, 50.5),
    ]
    assert [line["vector_step"] for line in lines(tmp_path / "evaluations.jsonl")] == [20]
    assert curve(tmp_path, "train/critic_loss") == [
        (line["vector_step"], line["train/critic_loss"]) for line in metrics
    ]
    assert curve(tmp_path, "1_success/all_tasks") == [(20, 0.5)]
    assert [point for point, _ in curve(tmp_path, "success/push-v3")] == [20]


def test_resume_between_two_lines_or_before_the_first(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log_steps(log, [10, 20])
    log.close()
    log = open_log(tmp_path, resume_step=15)
    log_steps(log, [20], offset=0.5)
    log.close()
    assert curve(tmp_path, "train/critic_loss") == [(10, 10.0), (20, 20.5)]
    log = open_log(tmp_path, resume_step=5)
    log_steps(log, [10], offset=0.75)
    log.close()
    assert curve(tmp_path, "train/critic_loss") == [(10, 10.75)]
    assert [line["vector_step"] for line in lines(tmp_path / "metrics.jsonl")] == [10]


@pytest.mark.parametrize(
    "damage",
    [b'{"vector_step": 15, "env_st', b'{"vector_step": 15}', b"\x00\x00\x00\n", b"[1]\n", b'{"a": 1}\n'],
)
def test_resume_drops_a_broken_last_line(tmp_path: Path, damage: bytes) -> None:
    log = open_log(tmp_path)
    log_steps(log, [10])
    log.close()
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(damage)
    log = open_log(tmp_path, resume_step=20)
    log_steps(log, [30])
    log.close()
    assert [line["vector_step"] for line in lines(tmp_path / "metrics.jsonl")] == [10, 30]


def test_resume_counts_the_time_on(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log_steps(log, [10])
    log.close()
    path = tmp_path / "metrics.jsonl"
    (line,) = lines(path)
    path.write_text(json.dumps({**line, "wall_s": 1000.0}) + "\n")
    log = open_log(tmp_path, resume_step=10)
    log_steps(log, [20])
    log.close()
    assert 1000.0 <= lines(path)[-1]["wall_s"] < 1060.0


def test_a_purge_that_is_killed_keeps_the_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = open_log(tmp_path)
    log_steps(log, [10, 20])
    log.close()
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def killed(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        open_log(tmp_path, resume_step=10)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    open_log(tmp_path, resume_step=10).close()
    assert [line["vector_step"] for line in lines(tmp_path / "metrics.jsonl")] == [10]
    assert not list(tmp_path.glob(".tmp-*"))


def test_history_says_what_a_run_has_evaluated(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    assert read_history(tmp_path).evaluated_at is None
    log_steps(log, [10, 20])
    log.evaluation(log.stamp(20, NUM_ENVS), RESULT, final=True)
    log.close()
    for history in (read_history(tmp_path), drop_after(tmp_path, 20, steps=20)):
        assert (history.evaluated_at, history.final, history.success) == (20, True, 0.5)
    history = drop_after(tmp_path, 19, steps=20)
    assert (history.evaluated_at, history.final, history.success) == (None, False, None)


def test_a_run_that_is_shortened_has_no_second_evaluation_at_its_end(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log_steps(log, [10, 20])
    for step in (10, 20):
        log.evaluation(log.stamp(step, NUM_ENVS), RESULT, final=False)
    log.close()
    assert drop_after(tmp_path, 20, steps=20).evaluated_at == 10
    assert [line["vector_step"] for line in lines(tmp_path / "metrics.jsonl")] == [10, 20]


def test_doubled_lines_are_dropped_and_a_run_that_goes_on_has_no_final_evaluation_yet(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log_steps(log, [10, 20, 20])
    for step, final in ((10, False), (20, False), (20, True)):
        log.evaluation(log.stamp(step, NUM_ENVS), RESULT, final=final)
    log.close()
    assert drop_after(tmp_path, 20, steps=20).final
    assert [line["vector_step"] for line in lines(tmp_path / "metrics.jsonl")] == [10, 20]
    evaluations = lines(tmp_path / "evaluations.jsonl")
    assert [(line["vector_step"], line["final"]) for line in evaluations] == [(10, False), (20, True)]
    assert not drop_after(tmp_path, 20, steps=40).final
    assert [line["vector_step"] for line in lines(tmp_path / "evaluations.jsonl")] == [10]


def test_a_notebook_shows_an_evaluation_as_a_table() -> None:
    numbers = np.array([[1.0, 0.0], [np.nan, np.nan]])
    returns = np.array([[1.0, 3.0], [5.0, 7.0]])
    page = Evaluation(("<b>reach</b>", "push"), numbers, numbers, returns)._repr_html_()
    assert "<td>&lt;b&gt;reach&lt;/b&gt;</td><td>0.5</td><td>0.5</td><td>2</td>" in page
    assert "<td>push</td><td>nan</td><td>nan</td><td>6</td>" in page
    assert "<td>mean</td><td>nan</td><td>nan</td><td>4</td>" in page
