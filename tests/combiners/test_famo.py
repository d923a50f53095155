from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mtrl.combiners import Combiner, JacobianCombiner, make_combiner
from mtrl.combiners.famo import FAMO
from tests.helpers.evaluators import Linear
from tests.helpers.matrices import jacobian

TASKS = 4


def pairs(updates: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Losses before and after each step: positive, of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(updates, 2, TASKS, generator=generator, dtype=torch.float64)
    return list((draw + torch.tensor([0.0, 3.0, -3.0, 1.0])).exp().unbind())  # type: ignore[arg-type]


def by_autograd(steps: list[tuple[Tensor, Tensor]], weight_decay: float) -> list[Tensor]:
    """The paper's algorithm on losses of one number each, with torch's optimiser and its derivatives."""
    xi = torch.zeros(TASKS, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([xi], lr=0.025, weight_decay=weight_decay)
    weights = []
    for before, after in steps:
        shares = [float(z) / float(loss) for z, loss in zip(xi.detach().softmax(0), before, strict=True)]
        weights.append(torch.tensor(shares, dtype=torch.float64) / sum(shares))
        (xi.grad,) = torch.autograd.grad(xi.softmax(0), xi, before.log() - after.log())
        optimizer.step()
    return weights


@pytest.mark.parametrize("weight_decay", [0.0, 0.01, 1.0])
def test_weights_follow_the_paper_step_for_step(weight_decay: float) -> None:
    steps = pairs(30, seed=1)
    combiner = FAMO(num_tasks=TASKS, weight_decay=weight_decay)
    for (before, after), expected in zip(steps, by_autograd(steps, weight_decay), strict=True):
        torch.testing.assert_close(combiner.weights(before), expected)
        combiner.after_step(after)


def test_torchjd_agrees() -> None:
    library = pytest.importorskip("torchjd.scalarization")
    theirs = library.FAMO(TASKS, weight_decay=0.01).double()
    ours = FAMO(num_tasks=TASKS)
    for before, after in pairs(20, seed=2):
        losses = before.clone().requires_grad_()
        (expected,) = torch.autograd.grad(theirs(losses), losses)
        torch.testing.assert_close(ours.weights(before), expected, rtol=1e-5, atol=1e-9)
        ours.after_step(after)
        theirs.update(after)


def test_equal_progress_leaves_the_logits_alone() -> None:
    combiner = FAMO(num_tasks=TASKS, weight_decay=0.0)  # Adam would make steps of rounding errors' decay
    for before, _ in pairs(5, seed=3):
        combiner.weights(before)
        combiner.after_step(0.7 * before)
        assert combiner.xi.value.abs().max() < 1e-6  # 0.1 at full speed


def test_a_task_that_does_not_improve_gains_weight() -> None:
    combiner, losses = FAMO(num_tasks=3), torch.ones(3, dtype=torch.float64)
    for _ in range(20):
        combiner.weights(losses)
        combiner.after_step(losses * torch.tensor([0.5, 1.0, 0.5]))
    weights = combiner.weights(losses)
    assert weights[1] > 1.5 * weights[0]
    torch.testing.assert_close(weights.sum(), torch.ones_like(weights[0]))


def test_units_of_a_loss_do_not_matter_to_the_gradients_of_logarithms() -> None:
    rows, losses = jacobian("iid", 3, seed=4), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    units = torch.tensor([10.0, 0.1, 1000.0], dtype=torch.float64)
    plain, scaled = (make_combiner("famo", num_tasks=3) for _ in range(2))
    directions = []
    for combiner, factor in ((plain, torch.ones_like(units)), (scaled, units)):
        for fall in (0.9, 0.5):
            direction = combiner.combine(rows * factor.unsqueeze(-1), losses * factor)
            combiner.after_step(losses * factor * torch.tensor([fall, 1.0, 1.2]))
        directions.append(direction / direction.norm())
    torch.testing.assert_close(*directions)


def test_shifted_losses_measure_both_looks_from_one_origin() -> None:
    """After a fall of task 0 to a new minimum both of its losses count from there: 1 + 2, then 1."""
    combiner = FAMO(num_tasks=2, shift="minimum")
    combiner.weights(torch.tensor([-3.0, 5.0], dtype=torch.float64))
    combiner.after_step(torch.tensor([-5.0, 5.0], dtype=torch.float64))
    reference = FAMO(num_tasks=2)
    reference.weights(torch.tensor([3.0, 1.0], dtype=torch.float64))
    reference.after_step(torch.tensor([1.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(combiner.xi.value, reference.xi.value)
    assert combiner.origin.lowest.tolist() == [-5.0, 5.0]


def losses_after(factor: float) -> Tensor:
    return factor * torch.tensor([1.0, 2.0], dtype=torch.float64)


# turns has a `direction` of its own, the others combine what the default one hands them.
@pytest.mark.parametrize("wrapper", ["", "affinity", "dropgrad", "turns"])
@pytest.mark.parametrize("call", ["combine", "direction"])
def test_a_step_is_learned_from_once(wrapper: str, call: str) -> None:
    def make() -> Combiner:
        options = {"turns": {"groups": 1}}.get(wrapper, {})
        return make_combiner(
            wrapper or "famo", num_tasks=2, **({"base": "famo", **options} if wrapper else {})
        )

    def step(combiner: Combiner) -> None:
        rows, losses = torch.eye(2, dtype=torch.float64), losses_after(1.0)
        combiner.combine(rows, losses) if call == "combine" else combiner.direction(
            Linear(rows, losses=losses)
        )

    combiner, again = make(), make()
    names = set(combiner.state_dict())
    for _ in range(2):
        with pytest.raises(ValueError, match="learns once per step: after_step must follow"):
            combiner.after_step(losses_after(0.5))
        step(combiner)
        again.load_state_dict(combiner.state_dict())  # between a step and its `after_step`
        with pytest.raises(ValueError, match=r"call after_step\(losses\)"):
            step(again)
        for one in (combiner, again):
            one.after_step(losses_after(0.5) * torch.tensor([1.0, 1.9]))
    for key, value in combiner.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    assert set(combiner.state_dict()) == names
    step(combiner)
    combiner.load_state_dict(again.state_dict())  # which awaits nothing
    step(combiner)
    combiner.reset()
    step(combiner)


def test_a_step_that_fails_awaits_no_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    combiner, losses = make_combiner("dropgrad", num_tasks=2, base="famo"), losses_after(1.0)
    with monkeypatch.context() as broken, pytest.raises(TypeError):
        broken.setattr(FAMO, "_weights", None)
        combiner.combine(torch.eye(2), losses)
    combiner.combine(torch.eye(2), losses)


@pytest.mark.parametrize("wrapper", ["", "blocks", "momentum", "turns"])
def test_a_second_look_that_is_refused_does_not_stop_the_next_step(wrapper: str) -> None:
    options: dict[str, dict[str, Any]] = {"blocks": {"sizes": (1, 1)}, "turns": {"groups": 1}}
    given = {"base": "famo", **options.get(wrapper, {})} if wrapper else {}
    combiner = make_combiner(wrapper or "famo", num_tasks=2, **given)
    for _ in range(2):
        combiner.combine(torch.eye(2), losses_after(1.0))
        with pytest.raises(ValueError, match="non-finite"):
            combiner.after_step(losses_after(torch.inf))
    combiner.combine(torch.eye(2), losses_after(1.0))
    combiner.after_step(losses_after(0.5))


class Total(JacobianCombiner):
    """The sum of the gradients, which float16 cannot always hold."""

    name = "total"
    looks_again = True

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        return jacobian.sum(dim=0)


@pytest.mark.parametrize("wrapper", ["", "momentum"])
def test_a_direction_that_is_refused_awaits_no_losses(wrapper: str) -> None:
    own = f"{__name__}:Total"
    combiner = make_combiner(wrapper or own, num_tasks=2, **({"base": own} if wrapper else {}))
    rows = torch.full((2, 3), 60_000.0).half()
    for _ in range(2):
        with pytest.raises(ValueError, match="exceeds float16"):
            combiner.combine(rows)
    combiner.reset()
    combiner.combine(rows / 2)
