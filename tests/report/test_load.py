"""Runs read from files written by hand, and tidy tables of them."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

import mtrl
from mtrl.cli.report import main as main_report
from mtrl.errors import UserError
from mtrl.report.load import load_runs, read_run, read_runs
from tests.helpers.written_runs import write_run

ROOT = Path(__file__).resolve().parents[2]
METRICS = [
    {
        "vector_step": 10,
        "env_steps": 20,
        "wall_s": 5.0,
        "time/fps": 4.0,
        "weight": {"reach-v3": 0.25, "push-v3": None},
        "critic_cosine": {"reach-v3": {"reach-v3": 1.0, "push-v3": -0.5}},
    }
]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for seed in (0, 1):
        success = {"reach-v3": (0.5, 1.0), "push-v3": (0.0, 0.25 * seed)}
        write_run(tmp_path / "sweep" / f"seed{seed}", success, seed=seed, metrics=METRICS)
    return tmp_path / "sweep"


@pytest.fixture
def without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)


@pytest.mark.usefixtures("without_pandas")
def test_tables_have_one_row_per_run_per_evaluated_task_and_per_number(sweep: Path) -> None:
    runs, evaluations, metrics = mtrl.load_runs(sweep)
    assert [(row["seed"], row["finished"], row["mean_success"]) for row in runs] == [
        (0, True, 0.5),
        (1, True, 0.625),
    ]
    assert runs[0]["config.sac.gamma"] == 0.99
    assert runs[0]["version.mujoco"] == "3.3.0"
    last = evaluations[-1]
    assert (last["run"], last["task"], last["vector_step"]) == (str(sweep / "seed1"), "push-v3", 20)
    assert (last["success"], last["success_last"], last["return"], last["episodes"]) == (0.25, 0.125, 25.0, 4)
    assert last["final"] is True
    numbers = {
        (row["name"], row["task"], row["other_task"]): row["value"] for row in metrics if row["seed"] == 0
    }
    assert numbers == {
        ("time/fps", None, None): 4.0,
        ("weight", "reach-v3", None): 0.25,
        ("weight", "push-v3", None): None,
        ("critic_cosine", "reach-v3", "reach-v3"): 1.0,
        ("critic_cosine", "reach-v3", "push-v3"): -0.5,
    }


def test_tables_are_data_frames_where_pandas_is_installed(sweep: Path) -> None:
    pytest.importorskip("pandas")
    evaluations = mtrl.load_runs(sweep).evaluations
    by_task = evaluations[evaluations.final].groupby("task").success.mean()
    assert by_task.to_dict() == {"push-v3": 0.125, "reach-v3": 1.0}


def test_runs_without_an_evaluation_have_tables_with_columns(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    (write_run(tmp_path / "run", {"reach-v3": (0.5,)}) / "evaluations.jsonl").unlink()
    _, evaluations, metrics = mtrl.load_runs(tmp_path)
    final = evaluations[evaluations.final]
    assert final.groupby(["method", "task"]).success.mean().empty
    assert metrics[metrics.name == "weight"].empty


def test_a_run_and_the_folder_that_holds_it_count_once(sweep: Path) -> None:
    assert [run.seed for run in read_runs([sweep / "seed1", sweep])] == [1, 0]


def test_a_half_written_last_line_is_dropped(sweep: Path) -> None:
    with open(sweep / "seed0/evaluations.jsonl", "a") as file:
        file.write('{"vector_step": 30, "mean_s')
    assert [line["vector_step"] for line in read_run(sweep / "seed0").evaluations] == [10, 20]


def test_a_broken_line_in_the_middle_is_named(sweep: Path) -> None:
    path = sweep / "seed0/evaluations.jsonl"
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(UserError, match=r"evaluations\.jsonl is damaged: line 1 "):
        read_run(sweep / "seed0")


def test_a_run_extended_after_its_end_is_unfinished_until_its_new_end(sweep: Path) -> None:
    config = sweep / "seed0/config.yaml"
    config.write_text(config.read_text().replace("steps: 20", "steps: 40"))
    assert not read_run(sweep / "seed0").finished


def test_the_run_of_a_part_that_is_nowhere_to_be_found_is_read(tmp_path: Path) -> None:
    method = "/nowhere/mine.py:Inverse"
    run = read_run(write_run(tmp_path / "a", {"reach-v3": (0.0,)}, method=method))
    assert run.method == method


def test_committed_results_are_read() -> None:
    run = read_run(ROOT / "results/laptop-cagrad")
    assert run.finished
    assert run.config["suite"] == "metaworld"
    assert run.config["suite_options"] == {"reward_version": "v2"}
    assert len(run.tasks) == 10


@pytest.mark.parametrize(
    ("content", "message"), [("{", "not valid YAML"), ("steps: 3", "lacks tasks, method, seed")]
)
def test_what_is_no_configuration_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        read_run(tmp_path)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run directory and holds none"):
        read_runs([tmp_path])


def test_a_folder_may_be_called_like_a_date_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main_report(["2026-30-11"]) == 2
    assert "'2026-30-11' is not a run directory and holds none" in capsys.readouterr().err


def test_what_may_not_be_read_is_named_and_not_left_out(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denied = sweep / "seed1"
    scandir, open_path = os.scandir, Path.open

    def scan(path: Any) -> Any:
        return _refused(denied) if Path(path) == denied else scandir(path)

    def opened(path: Path, *arguments: Any, **more: Any) -> Any:
        return _refused(path) if path.parent == denied else open_path(path, *arguments, **more)

    monkeypatch.setattr(os, "scandir", scan)  # permissions do not bind root, who may run the tests
    with pytest.raises(UserError, match=f"cannot read '{denied}': Permission denied"):
        read_runs(sweep)
    monkeypatch.setattr(os, "scandir", scandir)
    read = read_run(denied)
    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(UserError, match=f"cannot read '{denied}/evaluations.jsonl': Permission denied"):
        read_runs(sweep)
    with pytest.raises(UserError, match=f"cannot read '{denied}/metrics.jsonl': Permission denied"):
        list(read.metrics)


def _refused(path: Path) -> NoReturn:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def test_a_run_of_two_methods_is_not_called_by_the_name_that_neither_network_uses(tmp_path: Path) -> None:
    both = {"critic_method": "nash_mtl", "actor_method": "pcgrad"}
    for name, config in (("one", {}), ("two", both)):
        write_run(tmp_path / name, {"reach-v3": (0.0,)}, method="mean", config=config)
    results = load_runs(tmp_path)
    for table in results[:2]:
        rows = table if isinstance(table, list) else table.to_dict("records")
        assert {row["label"] for row in rows} == {"mean", "nash_mtl / pcgrad"}
        assert all(row["method"] == row["label"] for row in rows)
