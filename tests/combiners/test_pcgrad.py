from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from mtrl.combiners import make_combiner
from mtrl.combiners.pcgrad import PCGrad
from mtrl.combiners.solvers.surgery import projected
from tests.helpers.matrices import jacobian
from tests.helpers.properties import surgery


def random_order(tasks: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for task in range(tasks):
        others = torch.tensor([other for other in range(tasks) if other != task])
        rows.append(others[torch.randperm(tasks - 1, generator=generator)])
    return torch.stack(rows)


@pytest.mark.parametrize("family", ["iid", "conflicting", "spread_2"])
@pytest.mark.parametrize("tasks", [2, 3, 10])
def test_weights_give_the_direction_of_the_algorithm_on_gradients(family: str, tasks: int) -> None:
    for seed in range(5):
        rows, order = jacobian(family, tasks, seed), random_order(tasks, seed)
        torch.testing.assert_close(projected(rows @ rows.T, order) @ rows, surgery(rows, order))


def test_the_direction_follows_some_order_per_task() -> None:
    rows = jacobian("conflicting", 3, seed=1) - 0.2
    orders = [torch.tensor([a, b, c]) for a, b, c in itertools.product(*_both_orders())]
    possible = torch.stack([surgery(rows, order) for order in orders])
    combiner = make_combiner("pcgrad", num_tasks=3)
    seen = set()
    for _ in range(60):
        distances = (possible - combiner.combine(rows)).norm(dim=1)
        assert distances.min() < 1e-12
        seen.add(int(distances.argmin()))
    assert len(seen) > 4


def _both_orders() -> list[list[list[int]]]:
    return [[[1, 2], [2, 1]], [[0, 2], [2, 0]], [[0, 1], [1, 0]]]


def test_every_order_is_drawn_about_equally_often() -> None:
    combiner = PCGrad(num_tasks=4)
    counts: dict[tuple[int, ...], int] = {}
    draws = 1200
    for _ in range(draws):
        order = combiner.draw_orders()
        for task, sequence in enumerate(order.tolist()):
            assert sorted(sequence) == [other for other in range(4) if other != task]
            key = (task, *sequence)
            counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 4 * 6
    # Binomial(1200, 1/6): mean 200, standard deviation 12.9; five deviations either side.
    assert all(135 < count < 265 for count in counts.values())


def test_orders_are_independent_of_the_global_random_stream() -> None:
    rows = jacobian("conflicting", 5, seed=2)
    before = torch.get_rng_state()
    first = make_combiner("pcgrad", num_tasks=5).combine(rows)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(123)
    assert torch.equal(first, make_combiner("pcgrad", num_tasks=5).combine(rows))


def test_renaming_tasks_along_with_their_orders_changes_nothing() -> None:
    rows, order = jacobian("conflicting", 5, seed=3), random_order(5, seed=3)
    renaming = torch.tensor([2, 4, 0, 1, 3])  # new task k is old task renaming[k]
    new_name = renaming.argsort()
    renamed = rows[renaming]
    result = projected(renamed @ renamed.T, new_name[order[renaming]]) @ renamed
    torch.testing.assert_close(result, projected(rows @ rows.T, order) @ rows)


def test_gradients_without_conflict_give_the_mean() -> None:
    rows = jacobian("iid", 6, seed=4).abs()
    torch.testing.assert_close(make_combiner("pcgrad", num_tasks=6).combine(rows), rows.mean(dim=0))
