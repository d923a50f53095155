"""Large logs and many runs: time, memory, and that thinning and caches change no number."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtrl.report import compare, stats
from mtrl.report.load import read_run
from mtrl.report.tables import all_tables
from tests.helpers.written_runs import write_run

TASKS = ("reach-v3", "push-v3")
SUCCESS = dict.fromkeys(TASKS, (0.5, 1.0))


def test_of_a_long_log_a_report_reads_few_lines_evenly_and_the_last(tmp_path: Path) -> None:
    line = {"time/update_ms": 7.0, "weight": dict.fromkeys(TASKS, 0.5), "filler": "x" * 2_000}
    run = write_run(
        tmp_path / "run", SUCCESS, metrics=[{"vector_step": 10 * k, **line} for k in range(1, 5_001)]
    )
    tracemalloc.start()
    read = read_run(run)
    assert read.step == 50_000
    steps = [found["vector_step"] for found in read.some_metrics(128)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert steps == [*range(640, 50_001, 640), 50_000]
    assert peak < 4e6  # the log has ten million bytes
    assert len(list(read.metrics)) == 5_000


def test_runs_of_different_lengths_share_lines_when_their_logs_are_thinned(tmp_path: Path) -> None:
    found = []
    for count in (100, 300, 700):
        metrics = [{"vector_step": 10 * k} for k in range(1, count + 1)]
        run = read_run(write_run(tmp_path / str(count), SUCCESS, metrics=metrics))
        found.append({line["vector_step"] for line in run.some_metrics(128)})
    assert len(set.intersection(*found)) >= 100 // 8


def test_the_last_line_is_found_in_a_log_whose_lines_are_longer_than_its_tail(tmp_path: Path) -> None:
    metrics = [{"vector_step": 10 * k, "filler": "x" * 1_500_000, "wall_s": k} for k in (1, 2)]
    run = read_run(write_run(tmp_path / "run", SUCCESS, metrics=metrics))
    with open(tmp_path / "run/metrics.jsonl", "a") as file:
        file.write('{"vector_step": 30, "half')
    assert (run.step, read_run(tmp_path / "run").last_metrics["vector_step"]) == (20, 20)


def _chance(a: np.ndarray, b: np.ndarray) -> Any:
    """Mann-Whitney: share of pairs of runs that the first wins, mean over tasks; ties count half."""
    pairs = np.sign(a[..., :, None, :] - b[..., None, :, :])
    return (pairs.mean(axis=(-3, -2, -1)) + 1.0) / 2.0


def test_the_chance_to_improve_from_one_matrix_is_that_of_resampled_scores() -> None:
    random = np.random.default_rng(0)
    a, b = random.integers(0, 5, (6, 7)) / 4, random.integers(1, 6, (4, 7)) / 4
    found = stats.improvement(a, b)
    slow = stats.bootstrap(_chance, a, b, resamples=4_000)
    assert found.value == pytest.approx(slow.value, abs=1e-12)
    assert [found.low, found.high] == pytest.approx([slow.low, slow.high], abs=0.02)


def test_two_halves_of_the_matrix_of_improvements_add_up_to_one(tmp_path: Path) -> None:
    for method, level in (("mean", 0.25), ("uw", 0.5), ("rlw", 0.75)):
        for seed in range(3):
            rates = {task: (0.0, level + 0.125 * ((seed + i) % 2)) for i, task in enumerate(TASKS)}
            write_run(tmp_path / f"{method}{seed}", rates, method=method, seed=seed)
    comparison = compare([tmp_path])
    (table,) = [table for table in all_tables(comparison) if table.name == "improvement"]
    cells: Any = [row[1:] for row in table.rows]
    for i in range(3):
        assert cells[i][i] is None
        for j in range(i):
            assert cells[i][j].value + cells[j][i].value == pytest.approx(1.0, abs=1e-12)
            assert cells[i][j].low + cells[j][i].high == pytest.approx(1.0, abs=1e-12)


@pytest.mark.dear
def test_tables_of_hundreds_of_rows_take_seconds_and_a_matrix_only_the_best(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for row in range(60):
        for seed in range(3):
            rates = {task: (0.0, float(random.random())) for task in TASKS}
            write_run(tmp_path / f"{row}-{seed}", rates, seed=seed, config={"sac": {"gamma": row / 100}})
    start = time.process_time()
    tables = {table.name: table for table in all_tables(compare([tmp_path]))}
    assert time.process_time() - start < 20.0
    assert len(tables["final"].rows) == 60
    assert len(tables["improvement"].rows) == 24
    assert "24 of 60 rows" in tables["improvement"].note
