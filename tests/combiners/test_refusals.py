"""What no method lets pass: entries that are not finite, wherever they hide, and products that overflow."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mtrl.combiners import COMBINERS, Combiner, LossCombiner, make_combiner
from tests.combiners.calls import NAMES, methods
from tests.combiners.oracles import ORACLES
from tests.helpers.cases import case
from tests.helpers.evaluators import Linear
from tests.helpers.loss_methods import losses_of
from tests.helpers.matrices import jacobian

TAKES_ONE_JACOBIAN = [name for name in NAMES if not ORACLES[name].make(name, 5).needs_also]


def state(combiner: Combiner) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in combiner.state_dict().items() if value.numel()}


def unchanged(combiner: Combiner, before: dict[str, Tensor]) -> bool:
    now = {key: value for key, value in combiner.state_dict().items() if value.numel()}
    # State per parameter may have got its size meanwhile: zeros, as at first.
    return all(torch.equal(value, before.get(key, torch.zeros_like(value))) for key, value in now.items())


def spoiled(kind: str, dtype: torch.dtype) -> Tensor:
    """Rows of 5 tasks with something that is not finite in rows 1 and 3, and where it is easily missed."""
    rows = torch.randn(5, 4500, generator=torch.Generator().manual_seed(0)).to(dtype)  # two chunks and a rest
    if kind == "cancelling":  # in one column
        rows[1, 7], rows[3, 7] = math.inf, -math.inf
    elif kind == "last":
        rows[1, -1] = rows[3, -1] = math.nan
    elif kind == "beside zeros":
        rows[:, 2048:4096] = 0.0
        rows[1, 2050], rows[3, 4000] = -math.inf, math.nan
    else:  # nothing but
        rows[1], rows[3] = math.inf, math.nan
    return rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["cancelling", "last", "beside zeros", "nothing but"])
def test_no_entry_that_is_not_finite_gets_through(kind: str, dtype: torch.dtype) -> None:
    rows, losses = spoiled(kind, dtype), torch.ones(5, dtype=dtype)
    for name in TAKES_ONE_JACOBIAN:
        combiner = ORACLES[name].make(name, 5)
        before = state(combiner)
        for given in (rows, rows.T.contiguous().T):  # in either layout
            with pytest.raises(ValueError, match=r"jacobian has non-finite entries in tasks \[1, 3\]: fix"):
                combiner.combine(given, losses)
        assert unchanged(combiner, before), name


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_task_of_weight_zero_is_refused_like_any_other(bad: float) -> None:
    rows = jacobian("iid", 3, seed=0).float()
    rows[1, 2] = bad
    for weights in ((1.0, 0.0, 1.0), (1.0, 1e-60, 1.0)):  # the second is 0 in single precision
        with pytest.raises(ValueError, match=r"tasks \[1\]"):
            make_combiner("mean", num_tasks=3, weights=weights).combine(rows)
    rows[1, 2] = 0.0
    found = make_combiner("mean", num_tasks=3, weights=(1.0, 0.0, 1.0)).combine(rows)
    torch.testing.assert_close(found, rows[0] + rows[2])


@pytest.mark.parametrize("name", [name for name in NAMES if issubclass(COMBINERS[name], LossCombiner)])
def test_a_method_of_losses_learns_nothing_from_a_call_that_it_refuses(name: str) -> None:
    rows, losses = jacobian("iid", 4, seed=0), torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    refused, never = (ORACLES[name].make(name, 4) for _ in range(2))
    spoilt = rows.clone()
    spoilt[2, 3] = math.inf
    for factor in (1.0, 0.7, 0.4):
        with pytest.raises(ValueError, match=r"tasks \[2\]"):
            refused.combine(spoilt, 5.0 * losses)
        directions = [combiner.combine(rows, factor * losses) for combiner in (refused, never)]
        assert torch.equal(*directions)
        for combiner in (refused, never):
            combiner.after_step(factor * 0.9 * losses)


@methods
def test_gradients_of_an_evaluator_are_refused_by_the_number_of_their_task(name: str) -> None:
    """In `direction`, where methods ask for other batches or for some tasks only."""
    combiner = ORACLES[name].make(name, 5)
    if isinstance(combiner, LossCombiner) or not combiner.jacobians:
        return  # they take one weighted gradient
    rows = jacobian("iid", 5, seed=0)
    rows[4, 1] = math.nan
    for _ in range(30):  # until the turn comes to task 4
        before = state(combiner)
        problem = Linear(rows, losses=torch.ones(5, dtype=torch.float64))
        try:
            combiner.direction(problem)
        except ValueError as error:
            assert unchanged(combiner, before)
            if name != "cagrad_fast":  # in whose mean task 4 always is
                assert "jacobian has non-finite entries in tasks [4]" in str(error)
            return
        tasks = problem.asked[0].tasks
        assert tasks is not None
        assert 4 not in tasks.tolist()
    pytest.fail("task 4 was never evaluated, or its gradient was taken")


@pytest.mark.parametrize("name", [name for name in NAMES if ORACLES[name].make(name, 5).jacobians])
def test_long_gradients_of_an_evaluator_are_combined_or_refused_for_what_overflows(name: str) -> None:
    for scale, dtype in ((2e18, torch.float32), (1e30, torch.float32), (1e160, torch.float64)):
        combiner = ORACLES[name].make(name, 5)
        rows = (scale * torch.randn(5, 300, generator=torch.Generator().manual_seed(0)).double()).to(dtype)
        losses = losses_of(rows.double() / scale).to(dtype)
        with case(scale, dtype):
            for _ in range(6):
                before = state(combiner)
                try:
                    direction = combiner.direction(Linear(rows, losses=losses))
                except ValueError as error:
                    assert "needs products of gradients; those of tasks [" in str(error)
                    assert unchanged(combiner, before)
                    break
                combiner.after_step(losses)
                assert direction.isfinite().all()
                assert all(value.isfinite().all() for value in state(combiner).values())


@pytest.mark.parametrize("value", [1e25, math.nan])
def test_a_pooled_gradient_is_refused_by_the_tasks_in_it(value: float) -> None:
    rows = torch.ones(9, 50)
    rows[4] = value
    combiner = make_combiner("cagrad_fast", num_tasks=9, sampled=3, order=tuple(range(9)))
    for _ in range(9):
        problem = Linear(rows, losses=torch.ones(9))
        before = state(combiner)
        with pytest.raises(ValueError, match=r"products|non-finite") as raised:
            combiner.direction(problem)
        assert unchanged(combiner, before)
        tasks = problem.asked[0].tasks
        assert tasks is not None
        others = sorted(set(range(9)) - set(tasks.tolist()))
        expected = f"the mean gradient of tasks {others} are not finite in float32" if 4 in others else "[4]"
        assert expected in str(raised.value)
        combiner.load_state_dict({**combiner.state_dict(), "step": before["step"] + 1})


def test_blocks_are_refused_for_products_within_a_block_only() -> None:
    rows = 1.2e18 * torch.ones(2, 200)  # a square of 2.9e38; of half a row, 1.4e38
    rows[1] *= 1.2
    with pytest.raises(ValueError, match=r"cagrad needs products of gradients; those of tasks \[1\]"):
        make_combiner("cagrad", num_tasks=2).combine(rows)
    blocks = make_combiner("blocks", num_tasks=2, base="cagrad", sizes=(100, -1))
    assert blocks.combine(rows).isfinite().all()
    with pytest.raises(ValueError, match=r"those of tasks \[1\] overflow float32"):
        blocks.combine(torch.cat((rows[:, :100], 2.0 * rows[:, 100:] * torch.tensor([[0.1], [1.0]])), dim=1))


def test_a_direction_that_its_type_cannot_hold_is_refused() -> None:
    rows = torch.full((3, 4), 2e38)
    with pytest.raises(ValueError, match="direction of mean exceeds float32: pass the gradients in float64"):
        make_combiner("mean", num_tasks=3, weights=(1.0, 1.0, 1.0)).combine(rows)
    expected = torch.full((4,), 6e38, dtype=torch.float64)
    found = make_combiner("mean", num_tasks=3, weights=(1.0, 1.0, 1.0)).combine(rows.double())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("stch", {}),
        ("dropgrad", {"base": "stch"}),
        ("turns", {"base": "stch"}),
        ("blocks", {"base": "stch", "sizes": (3, -1)}),
        ("every", {"base": "nash_mtl", "base_options": {"max_norm": 0.0}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_direction_that_is_refused_leaves_the_state_as_it_was(name: str, options: dict[str, Any]) -> None:
    rows, losses = [1e-3 * jacobian("iid", 4, seed).half() for seed in range(6)], torch.ones(4).half()
    refused, never = (make_combiner(name, num_tasks=4, **options) for _ in range(2))
    for batch in rows:
        assert torch.equal(*(combiner.combine(batch, losses) for combiner in (refused, never)))
        before = state(refused)
        with pytest.raises(ValueError, match=f"the direction of {name} exceeds float16"):
            refused.combine(1e6 * batch, 1e-7 * losses)
        assert unchanged(refused, before)
