"""Groups and orders of tasks against every possibility."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from mtrl_grouping.command import affinities
from mtrl_grouping.command import main as main_group
from mtrl_grouping.groups import best_groups, group_gain, task_order, trip_length

from mtrl import train
from mtrl.combiners.affinity import Affinity
from mtrl.errors import UserError
from tests.helpers.short_runs import COUNTING, config


def by_trying_all(gains: np.ndarray, budget: int, largest: int) -> float:
    tasks = range(len(gains))
    groups = [g for size in range(1, largest + 1) for g in itertools.combinations(tasks, size)]
    return max(
        sum(group_gain(gains, group) for group in chosen)
        for count in range(1, budget + 1)
        for chosen in itertools.combinations(groups, count)
        if set().union(*chosen) == set(tasks)
    )


@pytest.mark.parametrize(("tasks", "budget", "largest"), [(4, 2, 4), (5, 3, 3), (8, 2, 8)])
def test_groups_are_the_best_of_all(tasks: int, budget: int, largest: int) -> None:
    gains = np.random.default_rng(tasks).normal(size=(tasks, tasks))
    groups = best_groups(gains, budget=budget, largest=largest)
    assert len(groups) <= budget
    assert set().union(*groups) == set(range(tasks))
    assert sum(group_gain(gains, g) for g in groups) == pytest.approx(by_trying_all(gains, budget, largest))


def test_planted_blocks_are_found() -> None:
    gains = -np.ones((6, 6))
    blocks = [[0, 3, 5], [1, 2, 4]]
    for block in blocks:
        gains[np.ix_(block, block)] = 1.0
    assert sorted(map(sorted, best_groups(gains, budget=2))) == blocks


def test_sizes_that_cannot_hold_all_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="2 groups of 1 to 2 tasks must be able to hold all 5 tasks"):
        best_groups(np.eye(5), budget=2, largest=2)


@pytest.mark.parametrize("tasks", [3, 6, 8])
def test_the_order_is_the_shortest_round_trip(tasks: int) -> None:
    similarity = np.random.default_rng(tasks).uniform(-1.0, 1.0, size=(tasks, tasks))
    similarity = (similarity + similarity.T) / 2.0
    cost = 1.0 - similarity
    shortest = min(trip_length(cost, (0, *others)) for others in itertools.permutations(range(1, tasks)))
    order = task_order(similarity, steps=5000)
    assert sorted(order) == list(range(tasks))
    assert trip_length(cost, order) == pytest.approx(shortest)


@pytest.mark.dear
@pytest.mark.usefixtures("worker_threads")
def test_a_run_is_grouped_and_ordered_by_what_it_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = ("task-1", "task-2", "task-3")
    run = tmp_path / "run"
    assert train(config(**COUNTING | {"tasks": tasks}, method="affinity", steps=30), run).exit_code == 0
    capsys.readouterr()
    assert main_group([str(run), "--groups", "1"]) == 0
    groups, order = capsys.readouterr().out.splitlines()
    assert groups.split() == ["--tasks", *tasks]  # whatever the gains: one group holds all
    flag, *numbers = order.split()
    assert (flag, sorted(numbers)) == ("--method.order", ["0", "1", "2"])
    config_path = run / "config.yaml"
    config_path.write_text(config_path.read_text().replace("- task-1\n- task-2\n- task-3\n", "- MT3\n"))
    assert main_group([str(run), "--groups", "1"]) == 0
    assert capsys.readouterr().out.split()[:4] == ["--tasks", *tasks]  # a benchmark's name is no task
    (run / "evaluations.jsonl").unlink()
    assert main_group([str(run), "--groups", "1"]) == 2
    assert "has affinities of 3 tasks and names 1: MT3" in capsys.readouterr().err
    config_path.write_text(config_path.read_text().replace("- MT3\n", "- task-1\n- task-2\n- task-3\n"))
    assert main_group([str(run), "--groups", "2", "--largest", "1"]) == 2
    assert "2 groups of 1 to 1 tasks must be able to hold all 3 tasks" in capsys.readouterr().err


@pytest.mark.dear
def test_a_run_without_affinities_says_what_to_do(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_group([str(undisturbed)]) == 2
    assert "has collected no affinities: train it with --method affinity" in capsys.readouterr().err
    assert main_group([str(tmp_path / "nothing")]) == 2


def test_affinities_are_read_from_the_state_of_the_network() -> None:
    combiner = Affinity(num_tasks=3)
    combiner.combine(torch.eye(3, dtype=torch.float64), torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    state = {f"critic.combiner.{key}": value for key, value in combiner.state_dict().items()}
    gains, _ = affinities(state, "critic")
    torch.testing.assert_close(gains, torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64).diag())
    with pytest.raises(UserError, match="the run's actor has collected no affinities"):
        affinities(state, "actor")
