"""Large logs and many runs: time, memory, and that thinning and caches change no number."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterable
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
EVERY_TEN = {"train": {"log_interval": 10}}


def test_of_a_long_log_a_report_reads_few_lines_evenly_and_the_last(tmp_path: Path) -> None:
    line = {"time/update_ms": 7.0, "weight": dict.fromkeys(TASKS, 0.5), "filler": "x" * 2_000}
    metrics = [{"vector_step": 10 * k, **line} for k in range(1, 5_001)]
    run = write_run(tmp_path / "run", SUCCESS, metrics=metrics, config=EVERY_TEN)
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
    found = [set(_read_steps(tmp_path / f"{k}", range(10, 10 * k + 1, 10))) for k in (100, 300, 700)]
    assert len(set.intersection(*found)) >= 100 // 8


def _read_steps(path: Path, steps: Iterable[int]) -> list[int]:
    metrics = [{"vector_step": step} for step in steps]
    run = read_run(write_run(path, SUCCESS, metrics=metrics, config=EVERY_TEN))
    return [line["vector_step"] for line in run.some_metrics(128)]


def test_a_line_that_is_lost_or_extra_costs_the_runs_of_a_row_no_other_line(tmp_path: Path) -> None:
    steps = range(10, 10_001, 10)
    whole = _read_steps(tmp_path / "whole", steps)
    for name, others in {
        "lost": [step for step in steps if step != 30],
        "doubled": [10, 20, 20, *steps[2:]],
        "between": [10, 15, 20, 25, *steps[2:]],
    }.items():
        assert len(set(whole) & set(_read_steps(tmp_path / name, others))) >= len(whole) - 1, name


@pytest.mark.parametrize("count", [127, 128, 129, 255, 256, 257, 1_000])
@pytest.mark.parametrize("rest", [0, 3])
def test_of_any_log_at_most_that_many_lines_are_read(count: int, rest: int, tmp_path: Path) -> None:
    end = 10 * count + rest
    found = _read_steps(tmp_path / "run", [*range(10, end, 10), end])
    assert len(found) <= 128
    assert len(found) >= min(64, count)
    assert found[-1] == end
    gaps = np.diff([0, *found[:-1]])
    assert gaps.min() == gaps.max()


def test_of_a_log_whose_steps_go_back_few_lines_are_read(tmp_path: Path) -> None:
    metrics = [{"wall_s": 0.0, "vector_step": step} for step in (*range(10, 10**4, 10), 2_000)]
    run = read_run(write_run(tmp_path / "run", SUCCESS, metrics=metrics))
    found = [line["vector_step"] for line in run.some_metrics(128)]
    assert found[-1] == 2_000
    assert 64 <= len(found) <= 128
    assert found == sorted(set(found))


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
