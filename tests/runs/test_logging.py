from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

import mtrl
from mtrl.runs.evaluation import Evaluation
from mtrl.runs.logging import Logger

TASKS = ("reach-v3", "push-v3")
CONFIG: dict[str, Any] = {
    "tasks": TASKS,
    "seed": 3,
    "sac": {"gamma": 0.99, "max_grad_norm": None},
    "method": "cagrad",
    "flag": True,
}
VERSIONS = {"torch": "2.13.0", "mujoco": "3.3.0"}
RESULT = Evaluation(
    TASKS,
    np.array([[True, True, True, False], [False, False, False, True]]),
    np.array([[True, False, False, False], [False, False, False, True]]),
    np.array([[100.0, 200.0, 300.0, 400.0], [1.0, 2.0, 3.0, 4.0]]),
)
ENV_STEPS = 2  # environment steps of a vector step: two tasks, one copy each


def open_logger(run_dir: Path, resume_step: int | None = None) -> Logger:
    return Logger(run_dir, TASKS, config=CONFIG, versions=VERSIONS, resume_step=resume_step)


def log_steps(logger: Logger, steps: list[int], offset: float = 0.0) -> None:
    for step in steps:
        value = step + offset
        logger.metrics(step, ENV_STEPS * step, {"train/critic_loss": value}, {"alpha": [value, -value]})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def events(run_dir: Path) -> Any:
    accumulator = EventAccumulator(str(run_dir), size_guidance={"scalars": 0, "tensors": 0})
    return accumulator.Reload()


def curve(run_dir: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(run_dir).Scalars(tag)]


# -- lines --------------------------------------------------------------------------------------------------


def test_a_line_of_metrics_holds_steps_scalars_and_tasks_at_once(tmp_path: Path) -> None:
    logger = open_logger(tmp_path)
    logger.metrics(
        500, 1000, {"train/critic_loss": np.float64(0.5), "time/fps": 123}, {"alpha": (0.25, 0.75)}
    )
    (line,) = lines(tmp_path / "metrics.jsonl")  # before closing: a kill loses nothing
    logger.close()
    assert 0 <= line.pop("wall_s") < 60
    assert line == {
        "vector_step": 500,
        "env_steps": 1000,
        "train/critic_loss": 0.5,
        "time/fps": 123.0,
        "alpha": {"reach-v3": 0.25, "push-v3": 0.75},
    }


def test_values_that_are_not_finite_are_null_and_no_point(tmp_path: Path) -> None:
    logger = open_logger(tmp_path)
    logger.metrics(1, 2, {"a/b": math.nan, "a/c": math.inf}, {"success": [math.nan, 1.0]})
    logger.close()
    (line,) = lines(tmp_path / "metrics.jsonl")
    assert line["a/b"] is None and line["a/c"] is None
    assert line["success"] == {"reach-v3": None, "push-v3": 1.0}
    assert set(events(tmp_path).Tags()["scalars"]) == {"success/push-v3"}


def test_per_task_values_must_match_the_tasks(tmp_path: Path) -> None:
    logger = open_logger(tmp_path)
    with pytest.raises(ValueError, match="shorter"):
        logger.metrics(1, 2, {}, {"alpha": [1.0]})
    logger.close()
    assert lines(tmp_path / "metrics.jsonl") == []


def test_a_line_of_evaluation_holds_every_task_and_the_means(tmp_path: Path) -> None:
    logger = open_logger(tmp_path)
    logger.evaluation(500, 1000, RESULT, final=True)
    logger.close()
    (line,) = lines(tmp_path / "evaluations.jsonl")
    assert 0 <= line.pop("wall_s") < 60
    assert line == {
        "vector_step": 500,
        "env_steps": 1000,
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


# -- TensorBoard --------------------------------------------------------------------------------------------


def test_curves_are_over_environment_steps(tmp_path: Path) -> None:
    logger = open_logger(tmp_path)
    log_steps(logger, [10, 20])
    logger.evaluation(20, 40, RESULT, final=False)
    logger.close()
    assert curve(tmp_path, "train/critic_loss") == [(20, 10.0), (40, 20.0)]
    assert curve(tmp_path, "alpha/push-v3") == [(20, -10.0), (40, -20.0)]
    expected = {
        "eval/success_rate": 0.5,
        "eval/success_rate_last": 0.25,
        "eval/mean_reward": 126.25,
        "success/reach-v3": 0.75,
        "success_last/push-v3": 0.25,
        "return/reach-v3": 250.0,
    }
    for tag, value in expected.items():
        assert curve(tmp_path, tag) == [(40, value)]


def test_a_run_is_one_directory_with_one_event_file(tmp_path: Path) -> None:
    logger = open_logger(tmp_path)
    log_steps(logger, [1])
    logger.close()
    logger.close()
    assert not any(entry.is_dir() for entry in tmp_path.iterdir())
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1


def test_the_layout_puts_all_tasks_in_one_chart(tmp_path: Path) -> None:
    open_logger(tmp_path).close()
    (event,) = events(tmp_path).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for chart in layout.category[0].chart}
    assert charts["success per task"] == ["success/.*"]
    assert {"return/.*", "alpha/.*", "critic_loss/.*", "weight/.*"} < {tags[0] for tags in charts.values()}


def test_the_configuration_is_text_and_hyper_parameters(tmp_path: Path) -> None:
    open_logger(tmp_path).close()
    found = events(tmp_path)
    text = {
        tag: found.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode()
        for tag in ("config", "versions")
    }
    block = text["config"].removeprefix("```yaml\n").removesuffix("```")
    assert yaml.safe_load(block) == {**CONFIG, "tasks": list(TASKS)}
    assert "| mujoco | 3.3.0 |" in text["versions"]

    data = plugin_data_pb2.HParamsPluginData
    contents = {tag: data.FromString(content) for tag, content in found.PluginTagToContent("hparams").items()}
    start = contents["_hparams_/session_start_info"].session_start_info.hparams
    assert start["sac.gamma"].number_value == 0.99
    assert start["method"].string_value == "cagrad"
    assert start["tasks"].string_value == "reach-v3, push-v3"
    experiment = contents["_hparams_/experiment"].experiment
    assert [info.name.tag for info in experiment.metric_infos] == ["eval/success_rate"]
    assert "eval/success_rate" not in found.Tags()["scalars"]  # no made-up point at step 0


# -- resume -------------------------------------------------------------------------------------------------


def wait_for_the_next_second() -> None:
    # Event files are named by the second, and TensorBoard reads them in the order of their names.
    time.sleep(1.01 - time.time() % 1)


def test_resume_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    logger = open_logger(tmp_path)
    log_steps(logger, [10, 20, 30, 40])
    logger.evaluation(20, 40, RESULT, final=False)
    logger.evaluation(40, 80, RESULT, final=False)
    logger.close()
    wait_for_the_next_second()
    logger = open_logger(tmp_path, resume_step=20)
    log_steps(logger, [30, 40, 50], offset=0.5)
    logger.close()

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
        (ENV_STEPS * line["vector_step"], line["train/critic_loss"]) for line in metrics
    ]
    assert curve(tmp_path, "eval/success_rate") == [(40, 0.5)]
    assert len(events(tmp_path).Tensors("custom_scalars__config__")) == 1


def test_resume_between_two_lines_or_before_the_first(tmp_path: Path) -> None:
    logger = open_logger(tmp_path)
    log_steps(logger, [10, 20])
    logger.close()
    wait_for_the_next_second()
    logger = open_logger(tmp_path, resume_step=15)
    log_steps(logger, [20], offset=0.5)
    logger.close()
    assert curve(tmp_path, "train/critic_loss") == [(20, 10.0), (40, 20.5)]
    wait_for_the_next_second()
    logger = open_logger(tmp_path, resume_step=5)
    log_steps(logger, [10], offset=0.75)
    logger.close()
    assert curve(tmp_path, "train/critic_loss") == [(20, 10.75)]
    assert [line["vector_step"] for line in lines(tmp_path / "metrics.jsonl")] == [10]


@pytest.mark.parametrize(
    "damage", [b'{"vector_step": 15, "env_st', b"\x00\x00\x00\n", b"[1]\n", b'{"a": 1}\n']
)
def test_resume_drops_a_broken_last_line(tmp_path: Path, damage: bytes) -> None:
    logger = open_logger(tmp_path)
    log_steps(logger, [10])
    logger.close()
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(damage)
    logger = open_logger(tmp_path, resume_step=20)
    log_steps(logger, [30])
    logger.close()
    assert [line["vector_step"] for line in lines(tmp_path / "metrics.jsonl")] == [10, 30]


def test_resume_counts_the_time_on(tmp_path: Path) -> None:
    logger = open_logger(tmp_path)
    log_steps(logger, [10])
    logger.close()
    path = tmp_path / "metrics.jsonl"
    (line,) = lines(path)
    path.write_text(json.dumps({**line, "wall_s": 1000.0}) + "\n")
    logger = open_logger(tmp_path, resume_step=10)
    log_steps(logger, [20])
    logger.close()
    assert 1000.0 <= lines(path)[-1]["wall_s"] < 1060.0


def test_a_purge_that_is_killed_keeps_the_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = open_logger(tmp_path)
    log_steps(logger, [10, 20])
    logger.close()
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def killed(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        open_logger(tmp_path, resume_step=10)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    open_logger(tmp_path, resume_step=10).close()
    assert [line["vector_step"] for line in lines(tmp_path / "metrics.jsonl")] == [10]
    assert not list(tmp_path.glob(".tmp-*"))


# -- full disks ---------------------------------------------------------------------------------------------

FULL_DISK = """
    import json, pathlib, resource, sys
    from mtrl.runs.logging import Logger

    logger = Logger(pathlib.Path(sys.argv[1]), ["reach-v3"], config={}, versions={})
    logger.metrics(1, 1, {"a/b": 1.0}, {})
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (pathlib.Path(sys.argv[1]) / "metrics.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, unlimited[1]))
    try:
        logger.metrics(2, 2, {"a/b": 2.0}, {})
    except OSError as error:
        print("refused", error.errno)
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    logger.metrics(3, 3, {"a/b": 3.0}, {})
    # Now the lines fit, the curves do not.
    events = next(pathlib.Path(sys.argv[1]).glob("events*")).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (events, unlimited[1]))
    for step in range(4, 8):
        logger.metrics(step, step, {"a/b": 4.0}, {})
    logger.close()
"""


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
    assert [line["vector_step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 3, 4, 5, 6, 7]
    assert done.stderr.count("warning: TensorBoard curves end here") == 1


def test_only_the_logger_imports_tensorboard() -> None:
    package = Path(mtrl.__file__).parent
    importing = {
        path.name for path in package.rglob("*.py") if "utils.tensorboard import" in path.read_text()
    }
    assert importing == {"logger.py"}
