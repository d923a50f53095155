from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mtrl.combiners import COMBINERS, Combiner, make_combiner
from mtrl.combiners.fs_mtl import FSMTL
from tests.helpers.evaluators import Linear, Quadratics
from tests.helpers.matrices import jacobian

pytest.importorskip("torchjd")  # one of all methods

MADE = {name: make_combiner(name, num_tasks=3) for name in COMBINERS}
UNFIT = sorted(name for name, made in MADE.items() if made.positive_losses or made.preconditioned)
BASES = sorted(name for name, made in MADE.items() if name not in UNFIT and not made.needs_also)


def made(base: str, tasks: int = 3, **options: Any) -> Combiner:
    """FS-MTL whose parts draw the same numbers as the base alone."""
    combiner = make_combiner("fs_mtl", num_tasks=tasks, base=base, **options)
    assert isinstance(combiner, FSMTL)
    for part in (combiner.loss_part, combiner.flat_part):
        part.load_state_dict(make_combiner(base, num_tasks=tasks).state_dict())
    return combiner


def sharpness(problem: Quadratics, step: Callable[[Tensor], Tensor]) -> Tensor:
    gradients = problem.gradients_at(0.0)
    return torch.stack([a @ step(g) for a, g in zip(problem.curvatures, gradients, strict=True)])


@pytest.mark.parametrize("base", BASES)
def test_the_change_of_gradients_is_combined_apart(base: str) -> None:
    problem, rho = Quadratics(3, 5, seed=1), 0.07
    change = sharpness(problem, lambda g: rho * g / g.norm())
    first, second = (make_combiner(base, num_tasks=3) for _ in range(2))
    expected = first.combine(problem.gradients_at(0.0), problem.losses) + second.combine(
        change, problem.losses
    )
    result = made(base, rho=rho).direction(problem)
    torch.testing.assert_close(result, expected, rtol=1e-7, atol=1e-9)
    assert len(problem.asked) == 2


def test_the_adaptive_step_is_scaled_per_parameter() -> None:
    problem, rho = Quadratics(3, 5, seed=2), 0.3
    theta = problem.parameters
    change = sharpness(problem, lambda g: rho * theta.square() * g / (theta.abs() * g).norm())
    expected = (problem.gradients_at(0.0) + change).mean(dim=0)
    result = make_combiner("fs_mtl", num_tasks=3, base="mean", rho=rho, adaptive=True).direction(problem)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("local", [0.0, 0.3, 1.0])
def test_a_share_of_the_ascent_may_be_the_mean_gradients_as_in_samo(local: float) -> None:
    problem, rho = Quadratics(3, 5, seed=2), 0.3
    mean = problem.gradients_at(0.0).mean(dim=0)

    def joint(gradient: Tensor) -> Tensor:
        along: Tensor = (1.0 - local) * mean + local * mean.norm() * gradient / gradient.norm()
        step: Tensor = along * (rho / along.norm())
        return step

    expected = (problem.gradients_at(0.0) + sharpness(problem, joint)).mean(dim=0)
    result = make_combiner("fs_mtl", num_tasks=3, base="mean", rho=rho, local=local).direction(problem)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("base", ["mean", "fairgrad", "pcgrad"])
def test_samo_combines_the_gradients_at_the_moved_parameters_alone(base: str) -> None:
    problem, rho = Quadratics(3, 5, seed=2), 0.3
    moved = problem.gradients_at(0.0) + sharpness(problem, lambda g: rho * g / g.norm())
    expected = make_combiner(base, num_tasks=3).combine(moved, problem.losses)
    combiner = made(base, rho=rho, moved_only=True)
    torch.testing.assert_close(combiner.direction(problem), expected)
    assert not any(key.startswith("flat_") for key in combiner.metrics())


@pytest.mark.parametrize("base", BASES)
def test_without_a_radius_it_is_exactly_the_base(base: str) -> None:
    problem = Quadratics(4, 6, seed=3)
    combiner = made(base, 4, rho=0.0)
    result = combiner.direction(problem)
    assert not any(key.startswith("flat_") for key in combiner.metrics())
    alone = make_combiner(base, num_tasks=4).combine(problem.gradients_at(0.0), problem.losses)
    assert torch.equal(result, alone)
    assert problem.asked == [(None, 0, None)]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("adaptive", [False, True])
def test_flat_losses_add_nothing(base: str, adaptive: bool) -> None:
    rows = jacobian("iid", 3, seed=4)
    flat = Linear(rows)
    flat.parameters = torch.ones(rows.shape[1], dtype=torch.float64)
    result = made(base, adaptive=adaptive).direction(flat)
    assert torch.equal(result, make_combiner(base, num_tasks=3).combine(rows, flat.losses))


@pytest.mark.parametrize("base", UNFIT)
def test_a_base_that_is_an_optimiser_or_needs_positive_losses_is_refused(base: str) -> None:
    with pytest.raises(ValueError, match=f"base must be a method that works within fs_mtl; found {base!r}"):
        make_combiner("fs_mtl", num_tasks=3, base=base)


def test_a_zero_gradient_is_not_displaced() -> None:
    problem = Quadratics(3, 5, seed=5)
    problem.curvatures[1] = 0.0
    make_combiner("fs_mtl", num_tasks=3, base="mean", rho=0.5).direction(problem)
    offset = problem.asked[1].offset
    assert offset is not None
    torch.testing.assert_close(offset.norm(dim=1), torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64))


@pytest.mark.parametrize("rho", [0.0, 0.05])
def test_the_last_weights_are_those_of_the_gradients(rho: float) -> None:
    combiner = make_combiner("fs_mtl", num_tasks=3, base="mgda", rho=rho)
    combiner.direction(Quadratics(3, 5, seed=6))
    assert torch.equal(combiner.last_weights, combiner.metrics()["weights"])
    assert combiner.last_weights.tolist() != [1 / 3] * 3


@pytest.mark.parametrize("local", [1.0, 0.5])
@pytest.mark.parametrize("length", [1e-30, 1e30])
def test_the_ascent_has_its_radius_however_long_single_precision_gradients_are(
    length: float, local: float
) -> None:
    problem = Linear(length * jacobian("iid", 3, seed=1).float())
    make_combiner("fs_mtl", num_tasks=3, base="mean", rho=0.5, local=local).direction(problem)
    offset = problem.asked[1].offset
    assert offset is not None
    torch.testing.assert_close(offset.norm(dim=1), torch.full((3,), 0.5))


def test_a_short_gradient_in_float16_has_a_finite_ascent() -> None:
    problem = Linear(torch.tensor([[1.0, 1.0], [1e-6, 0.0]], dtype=torch.float16))
    make_combiner("fs_mtl", num_tasks=2, base="mean", rho=0.5, local=0.5).direction(problem)
    offset = problem.asked[1].offset
    assert offset is not None
    assert offset.isfinite().all()


def test_both_parts_carry_their_own_state_through_a_checkpoint() -> None:
    first, second = (FSMTL(num_tasks=4, base="pcgrad") for _ in range(2))
    for seed in range(3):
        first.direction(Quadratics(4, 6, seed))
    first.flat_part.combine(jacobian("iid", 4, seed=0))  # the parts' counters now differ
    second.load_state_dict(first.state_dict())
    for seed in range(3, 6):
        assert torch.equal(first.direction(Quadratics(4, 6, seed)), second.direction(Quadratics(4, 6, seed)))


def test_inside_an_update_the_parts_check_nothing_either() -> None:
    rows = torch.full((2, 3), float("nan"))
    combiner = make_combiner("fs_mtl", num_tasks=2)
    with combiner.unchecked():
        combiner.direction(Linear(rows))
    with pytest.raises(ValueError, match="non-finite"):
        combiner.direction(Linear(rows))


def test_options_reach_the_base_and_are_checked_by_it() -> None:
    problem = Quadratics(4, 6, seed=7)
    options = {"c": 0.3, "rescale": 0}
    result = make_combiner("fs_mtl", num_tasks=4, base_options=options, rho=0.0).direction(problem)
    alone = make_combiner("cagrad", num_tasks=4, c=0.3, rescale=0).combine(problem.gradients_at(0.0))
    assert torch.equal(result, alone)
    with pytest.raises(ValueError, match="unknown argument 'cc' of cagrad"):
        make_combiner("fs_mtl", num_tasks=4, base_options={"cc": 1.0})


def test_a_bare_jacobian_is_refused_instead_of_making_it_its_base() -> None:
    with pytest.raises(ValueError, match=r"fs_mtl needs gradients at moved parameters.*mtl_step"):
        make_combiner("fs_mtl", num_tasks=2).combine(torch.eye(2))
