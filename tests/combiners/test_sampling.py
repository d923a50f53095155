"""Methods that look at some tasks per update: CAGrad-Fast and SDMGrad-OS."""

from __future__ import annotations

import functools

import pytest
import torch

from mtrl.combiners import make_combiner
from mtrl.combiners._random import shuffled
from tests.helpers.evaluators import Linear
from tests.helpers.literature import simplex_projection
from tests.helpers.matrices import jacobian
from tests.helpers.properties import assert_best_in_ball, assert_direction_oriented

ZERO = torch.zeros(1, dtype=torch.int64)


def test_draws_are_without_repetition_equally_frequent_and_follow_the_counter() -> None:
    counts, tasks = torch.zeros(10), torch.arange(10).unsqueeze(0)
    for step in range(2000):
        drawn = shuffled(tasks, torch.tensor([step]), ZERO)[0, :4]
        assert len(set(drawn.tolist())) == 4
        counts[drawn] += 1.0
    # Each count is binomial(2000, 0.4), standard deviation 22.
    assert (counts - 800.0).abs().max() < 100.0
    assert torch.equal(*(shuffled(tasks, torch.tensor([7]), ZERO) for _ in range(2)))


@pytest.mark.parametrize("seed", range(5))
def test_cagrad_fast_solves_cagrad_between_the_sampled_and_the_pooled_tasks(seed: int) -> None:
    rows = jacobian("conflicting", 10, seed=seed)
    source = Linear(rows)
    combiner = make_combiner("cagrad_fast", num_tasks=10, sampled=4, c=0.9, rescale=0)
    direction = combiner.direction(source)
    ((_, _, tasks),) = source.asked
    assert tasks is not None, "all tasks were evaluated"
    assert (len(tasks), source.backwards) == (3, 1)
    others = [task for task in range(10) if task not in tasks.tolist()]
    pooled = rows[others].mean(dim=0)
    # The mean of all ten weighs the pooled gradient seven times: it is not the mean of the four.
    problem = torch.cat((rows[tasks], pooled.expand(7, -1)))
    torch.testing.assert_close(problem.mean(dim=0), rows.mean(dim=0))
    assert_best_in_ball(problem, direction, c=0.9)
    torch.testing.assert_close(combiner.last_weights.double() @ rows, direction, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_sdmgrad_os_solves_sdmgrad_between_the_sampled_tasks(seed: int) -> None:
    rows = jacobian("conflicting", 10, seed=seed)
    source = Linear(rows)
    direction = make_combiner("sdmgrad_os", num_tasks=10, sampled=4, lam=0.6).direction(source)
    ((_, _, tasks),) = source.asked
    assert tasks is not None, "all tasks were evaluated"
    assert (len(tasks), source.backwards) == (4, 0)
    assert_direction_oriented(rows[tasks], direction, lam=0.6)


@pytest.mark.parametrize("name", ["cagrad_fast", "sdmgrad_os"])
def test_every_task_is_met_and_restored_instances_draw_the_same(name: str) -> None:
    rows = jacobian("iid", 10, seed=1)
    original, restored = (make_combiner(name, num_tasks=10, sampled=4) for _ in range(2))
    seen = set()
    for _ in range(30):
        source = Linear(rows)
        original.direction(source)
        assert source.asked[0].tasks is not None
        seen |= set(source.asked[0].tasks.tolist())
    assert seen == set(range(10))
    restored.load_state_dict(original.state_dict())
    for _ in range(3):
        assert torch.equal(original.combine(rows), restored.combine(rows))


ORDER = (3, 0, 6, 1, 5, 2, 4)


@pytest.mark.parametrize(("name", "count"), [("cagrad_fast", 2), ("sdmgrad_os", 3)])
def test_an_order_is_gone_through_round_and_round(name: str, count: int) -> None:
    combiner = make_combiner(name, num_tasks=7, sampled=3, order=ORDER)
    rows, seen = jacobian("iid", 7, seed=1), []
    for _ in range(7):
        source = Linear(rows)
        combiner.direction(source)
        assert source.asked[0].tasks is not None
        seen += source.asked[0].tasks.tolist()
    begin = ORDER.index(seen[0])
    assert seen == [ORDER[(begin + place) % 7] for place in range(7 * count)]
    assert sorted(seen) == sorted(list(range(7)) * count)


@pytest.mark.dear
def test_where_a_round_begins_is_drawn_so_that_no_task_is_preferred() -> None:
    counts = torch.zeros(7)
    rows = jacobian("iid", 7, seed=1)
    for stream in range(700):
        combiner = make_combiner("sdmgrad_os", num_tasks=7, sampled=3, order=ORDER)
        combiner.seed(stream)
        combiner.combine(rows)
        counts[combiner.last_weights != 0.0] += 1.0
    # Each count is binomial(700, 3/7), standard deviation 13; weights of 0 from the minimum are none here.
    assert (counts - 300.0).abs().max() < 65.0


def test_tasks_in_an_order_survive_a_checkpoint() -> None:
    rows = jacobian("iid", 7, seed=1)
    original, restored = (make_combiner("sdmgrad_os", num_tasks=7, sampled=3, order=ORDER) for _ in range(2))
    for _ in range(4):
        original.combine(rows)
    restored.load_state_dict(original.state_dict())
    assert torch.equal(original.combine(rows), restored.combine(rows))


@pytest.mark.parametrize("name", ["cagrad_fast", "sdmgrad_os"])
def test_an_order_must_hold_every_task_once(name: str) -> None:
    with pytest.raises(ValueError, match=r"order must hold each task number below 3 once; found \(0, 0, 1\)"):
        make_combiner(name, num_tasks=3, order=(0, 0, 1))


@pytest.mark.parametrize("batches", [1, 3])
def test_the_published_sdmgrad_loop_follows_its_description(batches: int) -> None:
    first, second, third = (jacobian("iid", 5, seed=seed) for seed in range(3))
    source = Linear(first, second, third)

    combiner = make_combiner("sdmgrad", num_tasks=5, solver="paper", batches=batches)
    left, right, last = (first, second, third) if batches == 3 else (first, first, first)
    products = left @ right.T
    products = products / products.diagonal().abs().add(1e-4).sqrt().mean() ** 2
    w = torch.full((5,), 0.2, dtype=torch.float64)
    for _ in range(3):
        direction = combiner.direction(source)
        parameter = torch.nn.Parameter(w.clone())
        optimizer = torch.optim.SGD([parameter], lr=10.0, momentum=0.5)
        for _ in range(20):
            parameter.grad = products @ (parameter.detach() + 0.6 / 5)
            optimizer.step()
            parameter.data.copy_(torch.tensor(simplex_projection(parameter.tolist()), dtype=w.dtype))
        w = parameter.detach().clone()
        torch.testing.assert_close(direction, (w + 0.6 / 5) @ last / 1.6)


def test_three_batches_need_the_published_loop() -> None:
    with pytest.raises(ValueError, match="batches = 3 needs solver = 'paper'"):
        make_combiner("sdmgrad", num_tasks=3, batches=3)


def test_sampled_must_be_positive() -> None:
    for name in ("cagrad_fast", "sdmgrad_os"):
        with pytest.raises(ValueError, match="sampled"):
            functools.partial(make_combiner, name, num_tasks=3)(sampled=0)
