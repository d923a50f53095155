"""The table of paired differences: which runs are paired, over what, and how wide the intervals are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtrl.errors import UserError
from mtrl.report import compare
from mtrl.report.paired import paired_table
from mtrl.report.tables import final_table, learning_table
from tests.helpers.written_runs import write_run


def _paired(path: Path, comparisons: int | None = None) -> tuple[dict[str, dict[str, Any]], str]:
    """Return the rows by method, and the note."""
    table = paired_table(compare([path], comparisons=comparisons))
    assert table is not None
    return {str(row[0]): dict(zip(table.columns, row, strict=True)) for row in table.rows}, table.note


def test_paired_differences_are_between_runs_of_one_seed(tmp_path: Path) -> None:
    """Seed 2 has no partner, and seeds of a method are in another order than those of the mean."""
    scores = {
        "mean": {0: 0.1, 1: 0.5, 2: 0.9},
        "cagrad": {1: 0.7, 0: 0.2, 3: 0.0},
        "pcgrad": {0: 0.1, 1: 0.5},
    }
    for method, seeds in scores.items():
        for seed, level in seeds.items():
            metrics = [
                {"vector_step": step, "env_steps": step, "wall_s": 1.0, "rollout/success_rate": rate}
                for step, rate in ((10, 0.0), (20, 2 * level))
            ]
            success = {"reach-v3": (0.0, level), "push-v3": (0.0, level)}
            write_run(tmp_path / f"{method}-{seed}", success, method=method, seed=seed, metrics=metrics)
    rows, _ = _paired(tmp_path)
    assert list(rows) == ["cagrad", "pcgrad"]
    assert rows["cagrad"]["seeds"] == 2
    # Differences .1 and .2, half of them in an area from 0 on; two comparisons, so the .9875 quantile.
    reach = 25.451699579357055 * (0.1 / np.sqrt(2)) / np.sqrt(2)
    for name, factor in (
        ("final success", 1.0),
        ("area under curve", 0.5),
        ("area under training success", 1.0),
    ):
        assert rows["cagrad"][name] == pytest.approx(
            tuple(factor * x for x in (0.15, 0.15 - reach, 0.15 + reach))
        )
        assert rows["pcgrad"][name] == pytest.approx((0.0, 0.0, 0.0))
    # A part of a study of seven comparisons: Student's t of one degree of freedom is a tangent.
    part, note = _paired(tmp_path, comparisons=7)
    reach = np.tan(np.pi * (0.5 - 0.05 / 14)) * 0.05
    assert part["cagrad"]["final success"] == pytest.approx((0.15, 0.15 - reach, 0.15 + reach))
    assert "for 7 planned comparisons of a column together" in note
    with pytest.raises(UserError, match=r"--comparisons 1: 2 rows .* give 2 or more"):
        compare([tmp_path], comparisons=1)


def test_paired_areas_are_over_the_evaluations_that_both_sides_have(tmp_path: Path) -> None:
    """Both methods have the same scores; one run has lost an evaluation, and one its log."""
    for method in ("mean", "cagrad"):
        for seed in (0, 1, 2):
            metrics = [
                {"vector_step": 10, "env_steps": 10, "wall_s": 1.0, "rollout/success_rate": 0.1 * seed}
            ]
            damaged = method == "cagrad" and seed == 2
            run = write_run(
                tmp_path / f"{method}-{seed}",
                {"reach-v3": (0.9, 0.1 * seed, 0.9)},
                method=method,
                seed=seed,
                metrics=[] if damaged else metrics,
            )
            if damaged:
                lines = (run / "evaluations.jsonl").read_text().splitlines(keepends=True)
                (run / "evaluations.jsonl").write_text(lines[0] + lines[2])
    table = learning_table(compare([tmp_path]))
    for cells in table.rows:
        area: Any = cells[table.columns.index("area under curve")]
        assert area.value == pytest.approx(0.9)  # of the first and the last evaluation
    rows, note = _paired(tmp_path)
    row = rows["cagrad"]
    assert row["area under curve"] == pytest.approx((0.0, 0.0, 0.0))
    assert row["area under training success"] == pytest.approx((0.0, 0.0, 0.0))
    assert "1 pair without it in their logs" in note


@pytest.mark.parametrize(
    ("last", "why"), [("mean", "its runs are unfinished"), ("imtl_g", "none has the method mean")]
)
def test_without_plain_averaging_a_report_says_why_nothing_is_compared(
    last: str, why: str, tmp_path: Path
) -> None:
    for method in (last, "cagrad", "pcgrad"):
        rates = {"reach-v3": (0.5,) if method == last else (0.0, 0.5)}
        write_run(tmp_path / method, rates, method=method, finished=method != last, config={"steps": 20})
    comparison = compare([tmp_path])
    assert paired_table(comparison) is None
    assert f"No row is compared with plain averaging: {why}." in final_table(comparison).note
