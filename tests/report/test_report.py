"""Reports on runs written by hand: numbers in the tables, files, page."""

from __future__ import annotations

import csv
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mtrl.cli.report import main as main_report
from mtrl.errors import UserError
from mtrl.report import Comparison, compare, signals, write_report
from mtrl.report.page import _summary as summary
from mtrl.report.tables import all_tables
from tests.helpers.written_runs import write_run

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib is an extra"
)
TASKS = ("reach-v3", "push-v3", "door-open-v3")
CONFLICT = ("conflict", "cosines", "weight", "grad-norm")


def _metrics(conflict: float) -> list[dict[str, Any]]:
    """Log lines at steps 10 (warm-up) and 20, in today's names and in those that matrices go by."""
    line: dict[str, Any] = {
        "vector_step": 20,
        "env_steps": 60,
        "wall_s": 9.0,
        "time/update_ms": 7.0 + conflict,
        "time/updates_per_step": 1.0,
    }
    for network in ("critic", "actor"):
        line[f"grad/{network}_conflict_fraction"] = conflict
        line[f"grad/{network}_cos_mean"] = -conflict
        line[f"{network}_grad_norm"] = {task: 3.0 - index for index, task in enumerate(TASKS)}
        line[f"{network}_cosine"] = {a: {b: 1.0 if a == b else -conflict for b in TASKS} for a in TASKS}
    line["training_success"] = {
        TASKS[0]: 1.0,
        TASKS[1]: conflict,
        TASKS[2]: None,
    }  # none of its episodes ended
    line["weight"] = line["actor_weight"] = {task: 1.0 + index for index, task in enumerate(TASKS)}
    return [{"vector_step": 10, "env_steps": 30, "wall_s": 1.0, "time/update_ms": 0.0}, line]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three methods, two seeds of two evaluations; conflict falls as the final score rises."""
    finals = {"mean": (0.25, 0.5), "cagrad": (0.5, 0.75), "pcgrad": (0.75, 1.0)}
    for index, (method, levels) in enumerate(finals.items()):
        for seed, level in enumerate(levels):
            success = {"reach-v3": (0.0, 0.0), "push-v3": (0.5, level / 2), "door-open-v3": (1.0, level)}
            metrics = _metrics(0.6 - 0.2 * index)
            write_run(
                tmp_path / "sweep" / f"{method}-{seed}", success, method=method, seed=seed, metrics=metrics
            )
    return tmp_path / "sweep"


@pytest.fixture
def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def _rows(comparison: Comparison, name: str) -> dict[str, dict[str, Any]]:
    (table,) = [table for table in all_tables(comparison) if table.name == name]
    return {str(row[0]): dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_final_table_has_mean_rank_and_chance_to_beat_averaging(sweep: Path) -> None:
    rows = _rows(compare([sweep]), "final")
    assert rows["mean"]["mean success"].value == pytest.approx(1.5 * 0.75 / 6)
    assert rows["pcgrad"]["mean success"].value == pytest.approx(1.5 * 1.75 / 6)
    assert rows["pcgrad"]["return"] == pytest.approx(100 * 1.5 * 1.75 / 6)
    assert rows["pcgrad"]["at last step"] == pytest.approx(1.5 * 1.75 / 12)
    # Nobody scores on reach: all share rank 2 there; pcgrad is first on the two others.
    assert rows["pcgrad"]["rank"] == pytest.approx((2 + 1 + 1) / 3)
    # A tie on reach, every pair won on push and door-open.
    assert rows["pcgrad"]["P(better than mean)"].value == pytest.approx((0.5 + 1 + 1) / 3)
    assert rows["cagrad"]["P(better than mean)"].value == pytest.approx((0.5 + 2 * 0.875) / 3)
    assert "published, facebookresearch/mtrl" not in rows["mean"]


def test_the_matrix_of_improvements_promises_no_test(sweep: Path) -> None:
    (table,) = [table for table in all_tables(compare([sweep])) if table.name == "improvement"]
    # Of two equal methods with two seeds, a quarter of these intervals exclude .5.
    assert "one that excludes .5 is a hint, not a test" in table.note


def test_selection_rules_stand_side_by_side(sweep: Path) -> None:
    row = _rows(compare([sweep]), "selection")["mean"]
    assert row["evaluations"] == 2
    assert row["final"].value == pytest.approx(1.5 * 0.75 / 6)
    assert row["best of mean"].value == row["mean of best"].value == pytest.approx(0.5)


def test_learning_table_has_thresholds_and_times(sweep: Path) -> None:
    row = _rows(compare([sweep]), "learning")["cagrad"]
    assert row["area under curve"].value == pytest.approx((0.5 + 1.5 * 1.25 / 6) / 2)
    assert (row["steps to 0.5"], row["seconds to 0.5"], row["steps to 0.75"]) == ("10", "5", "never")
    assert row["ms per update"] == pytest.approx(7.4)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"time/updates_per_step": 4.0}, 2.0),
        ({"time/updates_per_step": 0.64}, 12.5),
        ({"time/updates_per_step": 0.0}, None),
        ({}, None),  # a log of a former version
    ],
)
def test_milliseconds_per_update_are_those_of_the_updates_that_were_made(
    said: dict[str, float], expected: float | None, tmp_path: Path
) -> None:
    line = {"vector_step": 20, "env_steps": 60, "wall_s": 9.0, "time/update_ms": 8.0, **said}
    success = dict.fromkeys(TASKS, (0.5, 0.5))
    write_run(tmp_path / "run", success, metrics=[line])
    found = _rows(compare([tmp_path]), "learning")["mean"]["ms per update"]
    assert found == pytest.approx(np.nan if expected is None else expected, nan_ok=True)


def test_training_success_by_task_is_the_mean_over_seeds_of_what_was_logged(tmp_path: Path) -> None:
    for seed, conflict in enumerate((0.2, 0.6)):
        write_run(
            tmp_path / str(seed), dict.fromkeys(TASKS, (0.0, 0.5)), seed=seed, metrics=_metrics(conflict)
        )
    comparison = compare([tmp_path])
    series = signals.per_task(comparison, comparison.groups[0], "training", "success")
    assert series is not None
    assert series.steps.tolist() == [20]  # the line of the warm-up has none
    np.testing.assert_allclose(series.values, [[1.0, 0.4, np.nan]], rtol=1e-6)


def test_rank_agreement_over_methods_and_over_tasks(sweep: Path) -> None:
    comparison = compare([sweep])
    assert _rows(comparison, "agreement-methods")["critic: conflict fraction"]["tau"] == pytest.approx(-1.0)
    assert _rows(comparison, "agreement-tasks")["critic: gradient norm"]["mean"] == pytest.approx(-1.0)
    assert _rows(comparison, "agreement-tasks")["critic: weight"]["mean"] == pytest.approx(1.0)


def test_the_page_says_which_runs_would_not_resume_exactly(tmp_path: Path) -> None:
    env = {"num_goals": 50, "max_episode_steps": 500, "resume": "restart"}
    run = write_run(tmp_path / "run", {"reach-v3": (0.5,)}, config={"env": env})
    assert "1 with env.resume=restart" in " ".join(summary(compare([run])))


def test_unfinished_runs_are_shown_and_not_pooled(sweep: Path) -> None:
    write_run(sweep / "mean-2", dict.fromkeys(TASKS, (1.0,)), seed=2, finished=False, config={"steps": 20})
    write_run(sweep / "uw-0", dict.fromkeys(TASKS, (1.0,)), method="uw", finished=False, config={"steps": 20})
    comparison = compare([sweep])
    rows = _rows(comparison, "final")
    assert rows["mean"]["seeds"] == "2 of 3 finished"
    assert rows["mean"]["mean success"].value == pytest.approx(1.5 * 0.75 / 6)
    assert rows["uw"]["mean success"] is None
    (table,) = [table for table in all_tables(comparison) if table.name == "runs"]
    assert [row[2] for row in table.rows].count("unfinished, 10 of 20") == 2


def test_delta_m_against_single_task_runs(sweep: Path, tmp_path: Path) -> None:
    for task, level in zip(TASKS, (0.0, 0.5, 1.0), strict=True):
        write_run(tmp_path / "single" / task, {task: (0.0, level)})
    comparison = compare([sweep], single_task=[tmp_path / "single"])
    rows = _rows(comparison, "final")
    # Nobody scores on reach, which is left out; the others lose 1 - mean level each.
    assert rows["mean"]["Δm %"].value == pytest.approx(100 * (1 - 0.375))
    path = tmp_path / "single/push-v3/evaluations.jsonl"
    path.write_text(path.read_text().replace('"return": 50.0', '"return": null'))
    by_return = compare([sweep], single_task=[tmp_path / "single"], measure="return")
    # push-v3 has no number to compare with, so that door-open-v3 alone counts.
    assert _rows(by_return, "final")["mean"]["Δm %"].value == pytest.approx(100 * (1 - 0.375))
    with pytest.raises(UserError, match="none of push-v3, door-open-v3"):
        compare([sweep], single_task=[tmp_path / "single/reach-v3"])
    with pytest.raises(UserError, match="not a single-task counterpart"):
        compare([sweep], single_task=[sweep / "mean-0"])
    again: dict[str, Any] = {"same seed 0": {}, "several configurations": {"config": {"agent": "ppo"}}}
    for message, changes in again.items():
        write_run(tmp_path / message, {TASKS[0]: (0.0, 1.0)}, **changes)
        with pytest.raises(UserError, match=message):
            compare([sweep], single_task=[tmp_path / "single", tmp_path / message])


def test_a_tilde_in_out_is_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(_: Any, out: Path, **__: Any) -> None:
        raise UserError(f"to {out}")

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("mtrl.report.compare", lambda *_, **__: None)
    monkeypatch.setattr("mtrl.report.write_report", stop)
    assert main_report(["runs", "--out=~/x"]) == 2
    assert capsys.readouterr().err == f"error: to {tmp_path / 'x'}\n"


def test_published_numbers_stand_beside_runs_of_the_same_benchmark(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {"reach-v3": (0.5,)}, method="cagrad", config={"tasks": ["MT10"]})
    comparison = compare([tmp_path])
    assert _rows(comparison, "final")["cagrad"]["published, facebookresearch/mtrl"] == ".83 ± .05"
    published = _rows(comparison, "published")
    assert "v1 tasks" in published["CAGrad"]["protocol"]
    assert "v3 tasks" in published["MOORE"]["protocol"]


def test_published_numbers_of_sac_do_not_stand_beside_runs_of_ppo(tmp_path: Path) -> None:
    for name, agent in (("a", "ppo"), ("b", "sac")):
        config = {"tasks": ["MT10"], "agent": agent}
        write_run(tmp_path / name, {"reach-v3": (0.5,)}, method="cagrad", config=config)
    rows = _rows(compare([tmp_path]), "final").values()
    assert [row["published, facebookresearch/mtrl"] for row in rows] == [None, ".83 ± .05"]


def test_two_rows_of_plain_averaging_are_no_baseline_and_the_note_says_so(sweep: Path) -> None:
    write_run(sweep / "other", dict.fromkeys(TASKS, (0.0, 0.5)), config={"sac": {"gamma": 0.9}})
    tables = {table.name: table for table in all_tables(compare([sweep]))}
    assert "paired" not in tables
    assert "No row is compared with plain averaging: 2 rows have it." in tables["final"].note


def test_a_run_that_does_not_name_its_suite_is_reported(sweep: Path) -> None:
    for config in sweep.rglob("config.yaml"):
        config.write_text(config.read_text().replace("suite: metaworld\n", ""))
    assert "published" not in _rows(compare([sweep]), "final")["mean"]


def test_suites_without_success_are_compared_by_return(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", {"Pendulum": (0.25, 0.5)})
    text = re.sub(
        r'"success(_last)?": [0-9.]+', r'"success\1": null', (run / "evaluations.jsonl").read_text()
    )
    (run / "evaluations.jsonl").write_text(text)
    assert _rows(compare([tmp_path]), "final")["mean"]["mean return"].value == pytest.approx(50.0)
    with pytest.raises(UserError, match="no success rates"):
        compare([tmp_path], measure="success")


def test_tables_and_page_need_no_matplotlib(
    sweep: Path, tmp_path: Path, without_matplotlib: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_report([str(sweep), "--out", str(tmp_path / "out")]) == 0
    assert "pip install 'mtrl-torch[report]'" in capsys.readouterr().out
    assert not (tmp_path / "out/figures").exists()
    with open(tmp_path / "out/tables/final.csv") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["mean success"]) == pytest.approx(
        1.5 * 1.25 / 6
    )  # cagrad: in the order of the paths
    assert float(rows[0]["mean success low"]) < float(rows[0]["mean success high"])
    latex = (tmp_path / "out/tables/final.tex").read_text()
    assert r"\begin{tabular}" in latex
    assert r"\toprule" in latex
    assert "<table>" in (tmp_path / "out/report.html").read_text()


@pytest.mark.slow  # seconds of drawing; a page with fewer figures: test_strangers
@needs_matplotlib
def test_page_holds_its_figures_and_escapes_what_runs_are_called(sweep: Path, tmp_path: Path) -> None:
    write_run(sweep / "own", dict.fromkeys(TASKS, (0.0, 0.5)), method="<b>.py:Mine", seed=5)
    report = write_report(compare([sweep]), tmp_path, command=["a b", "--out", "c"])
    page = report.files[0].read_text()
    sources = re.findall(r"""(?:src|href)=["']([^"']*)""", page)
    assert all(source.startswith(("data:image/svg+xml;base64,", "#")) for source in sources)
    targets = [source[1:] for source in sources if source.startswith("#")]
    assert all(f'id="{target}"' in page for target in targets)
    assert "&lt;b&gt;.py:Mine" in page
    assert "<b>.py" not in page
    assert "mtrl-report &#39;a b&#39; --out c" in page
    scores = {
        "curves",
        "curves-per-task",
        "final",
        "profile",
        "improvement",
        "update-time",
        "training-success",
    }
    gradients = {f"{network}-{kind}" for network in ("critic", "actor") for kind in CONFLICT}
    assert {path.stem for path in report.files if path.suffix == ".png"} == scores | gradients
    assert len([source for source in sources if source.startswith("data:")]) == len(scores | gradients)
    for name in scores | gradients:
        assert (tmp_path / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / f"figures/{name}.svg").read_text()


def test_each_row_has_a_configuration_that_repeats_its_runs(
    sweep: Path, tmp_path: Path, without_matplotlib: None
) -> None:
    report = write_report(compare([sweep / "pcgrad-0", sweep / "pcgrad-1"]), tmp_path)
    (path,) = [path for path in report.files if path.suffix == ".yaml"]
    config = yaml.safe_load(path.read_text())
    assert (config["method"], config["tasks"], config["sac"]) == ("pcgrad", list(TASKS), {"gamma": 0.99})
    page = report.files[0].read_text()
    for seed in (0, 1):
        assert f"mtrl-train --preset configs/pcgrad.yaml --seed {seed}" in page


def test_mixed_protocols_are_refused_by_the_command(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(sweep / "long", dict.fromkeys(TASKS, (0.0, 0.5, 1.0)), seed=7)
    assert main_report([str(sweep)]) == 2
    assert "differ in steps: 20 and 30" in capsys.readouterr().err


def test_runs_without_an_evaluation_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "a", {"reach-v3": (0.0,)})
    (run / "evaluations.jsonl").write_text("")
    assert main_report([str(run)]) == 2
    assert "no evaluation yet" in capsys.readouterr().err


def test_no_runs_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_report([]) == 2
    assert "no runs" in capsys.readouterr().err


def test_rows_are_chosen_ordered_and_renamed(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = {"cagrad": "CAGrad", "mean": "Plain"}
    comparison = compare([sweep], methods=["pcgrad", "cagrad", "pcgrad"], labels={"cagrad": "CAGrad"})
    assert [row.label for row in comparison.groups] == ["pcgrad", "CAGrad"]
    assert [row.label for row in compare([sweep], labels=labels).groups] == ["CAGrad", "Plain", "pcgrad"]
    assert compare([sweep], labels=labels).baseline is not None
    write_run(sweep / "other", dict.fromkeys(TASKS, (0.0, 0.5)), config={"sac": {"gamma": 0.9}})
    with pytest.raises(UserError, match=r"'mean' is in no label, .* called gamma=0.99, gamma=0.9"):
        compare([sweep], methods=["mean"], labels={"mean": "Plain"})
    for flags in (
        ["--methods", "famo"],
        ["--labels", "famo=FAMO"],
        ["--labels", "cagrad"],
        ["--size", "wide"],
    ):
        assert main_report([str(sweep), *flags]) == 2
        assert flags[0] in capsys.readouterr().err
