"""How environments are dealt out to workers."""

from __future__ import annotations

import pytest

from mtrl.envs.engine.pool import balanced
from mtrl.envs.metaworld.tasks import BENCHMARKS
from mtrl.envs.metaworld.tasks import STEP_COSTS as _COSTS


@pytest.mark.parametrize("benchmark", BENCHMARKS)
@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("workers", [1, 2, 7, 1000])
def test_every_row_has_one_worker_and_no_worker_is_idle(benchmark: str, copies: int, workers: int) -> None:
    tasks = [name for name in BENCHMARKS[benchmark] for _ in range(copies)]
    rows = balanced(tasks, workers, _COSTS)
    assert sorted(row for own in rows for row in own) == list(range(len(tasks)))
    assert len(rows) == min(workers, len(tasks))
    assert all(own and list(own) == sorted(own) for own in rows)


@pytest.mark.parametrize(("benchmark", "workers"), [("MT10", 2), ("MT10", 3), ("MT50", 2), ("MT50", 8)])
def test_workers_differ_by_no_more_than_the_dearest_task(benchmark: str, workers: int) -> None:
    tasks = BENCHMARKS[benchmark]
    loads = [sum(_COSTS[tasks[row]] for row in own) for own in balanced(tasks, workers, _COSTS)]
    assert max(loads) - min(loads) <= max(_COSTS[name] for name in tasks)


def test_tasks_without_a_known_cost_are_dealt_evenly() -> None:
    assert [len(own) for own in balanced(["task-1"] * 7, 3, {})] == [3, 2, 2]


def test_every_task_has_a_cost() -> None:
    assert set(_COSTS) == set(BENCHMARKS["MT50"])
