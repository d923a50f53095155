"""Methods around another: what they change, how often they ask for a Jacobian, whose turn it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from mtrl.combiners import COMBINERS, GramCombiner, JacobianAt, JacobianCombiner, make_combiner
from mtrl.combiners.affinity import Affinity
from mtrl.combiners.cagrad import CAGrad
from mtrl.combiners.dropgrad import DropGrad
from mtrl.combiners.mean import Mean
from mtrl.combiners.pivrg import PIVRG
from tests.helpers.evaluators import Linear, Quadratics
from tests.helpers.loss_methods import losses_of
from tests.helpers.matrices import jacobian

WRAPPERS = ["affinity", "blocks", "dropgrad", "every", "fs_mtl", "momentum", "smoothed", "turns"]


@pytest.mark.parametrize("name", WRAPPERS)
def test_options_of_the_base_are_checked_by_the_base(name: str) -> None:
    with pytest.raises(ValueError, match="c must be a finite number"):
        make_combiner(name, num_tasks=4, base="cagrad", base_options={"c": -1.0})
    with pytest.raises(ValueError, match="unknown argument 'radius' of cagrad"):
        make_combiner(name, num_tasks=4, base="cagrad", base_options={"radius": 1.0})
    with pytest.raises(ValueError, match="base must be another method"):
        make_combiner(name, num_tasks=4, base=name)
    with pytest.raises(ValueError, match="base must be a method that takes one Jacobian; found 'modo'"):
        make_combiner(name, num_tasks=4, base="modo")


@pytest.mark.parametrize("name", ["affinity", "blocks", "dropgrad", "every", "momentum", "turns"])
def test_options_reach_the_base(name: str) -> None:
    rows = jacobian("conflicting", 4, seed=1)
    options: dict[str, dict[str, Any]] = {
        "blocks": {"sizes": (-1,)},
        "dropgrad": {"rate": 0.0},
        "momentum": {"decay": 0.0},
        "turns": {"groups": 1},
    }
    still = options.get(name, {})
    wrapped = make_combiner(name, num_tasks=4, base="cagrad", base_options={"c": 0.2, "rescale": 0}, **still)
    alone = make_combiner("cagrad", num_tasks=4, c=0.2, rescale=0)
    losses = torch.ones(4, dtype=torch.float64)
    assert torch.equal(wrapped.combine(rows, losses), alone.combine(rows))


@pytest.mark.dear
@pytest.mark.parametrize("name", WRAPPERS)
def test_every_base_is_served_or_refused_when_the_method_is_made(name: str) -> None:
    served = 0
    for base in COMBINERS:
        options = {"sizes": (3, -1)} if name == "blocks" else {}
        try:
            combiner = make_combiner(name, num_tasks=4, base=base, **options)
        except ValueError as error:
            assert str(error).startswith("base must be"), (base, error)
            continue
        served += 1
        rows = jacobian("iid", 4, seed=0)
        for losses in (losses_of(rows), 0.9 * losses_of(rows)):
            assert combiner.direction(Linear(rows, losses=losses)).isfinite().all(), base
            combiner.after_step(0.95 * losses)
    assert served >= 15


class Demanding(GramCombiner):
    """The mean, with requirements of its caller; notes what it gets."""

    name = "demanding"

    def __init__(self, *, num_tasks: int, requirement: str) -> None:
        super().__init__(num_tasks=num_tasks)
        if requirement == "batches":
            self.num_batches = 2
        else:
            setattr(self, requirement, True)
        self.seen: list[str] = []

    def _weights(self, gram: Tensor) -> Tensor:
        return torch.full_like(gram[0], 1.0 / len(gram))

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        if losses is not None:
            self.seen.append("reads_losses")
        return super()._combine(jacobian, losses)

    def _after_step(self, losses: Tensor) -> None:
        self.seen.append("looks_again")


@pytest.mark.parametrize(
    "requirement", ["reads_losses", "positive_losses", "looks_again", "preconditioned", "batches"]
)
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_base_of_ones_own_gets_all_that_it_requires_or_is_refused(name: str, requirement: str) -> None:
    options: dict[str, Any] = {"base": f"{__name__}:Demanding", "base_options": {"requirement": requirement}}
    if name == "blocks":
        options["sizes"] = (3, -1)
    if requirement == "batches":
        with pytest.raises(ValueError, match=r"takes one Jacobian; found .*Demanding', which needs .* 2 in"):
            make_combiner(name, num_tasks=4, **options)
        return
    served = name not in ("every", "smoothed") and (name != "fs_mtl" or requirement == "reads_losses")
    if not served:
        with pytest.raises(ValueError, match=rf"works within {name}; found .*Demanding', which \w+ "):
            make_combiner(name, num_tasks=4, **options)
        return
    combiner = make_combiner(name, num_tasks=4, **options)
    assert getattr(combiner, requirement)
    rows = jacobian("iid", 4, seed=0)
    combiner.direction(Linear(rows))
    combiner.after_step(torch.ones(4, dtype=torch.float64))
    if requirement in ("reads_losses", "looks_again"):
        assert any(requirement in base.seen for base in combiner.modules() if isinstance(base, Demanding))
    if requirement == "positive_losses":
        with pytest.raises(ValueError, match=r"losses of at least 0; found others in tasks \[2\]"):
            combiner.direction(Linear(rows, losses=torch.tensor([1.0, 1.0, -1.0, 1.0]).double()))


@pytest.mark.parametrize("name", ["every", "smoothed"])
def test_a_base_without_weights_of_the_gramian_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="weights depend on the Gramian alone; found 'graddrop'"):
        make_combiner(name, num_tasks=4, base="graddrop")


class HalvedCAGrad(CAGrad):
    """Half of CAGrad's direction, by a `_combine` of its own."""

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        return 0.5 * super()._combine(jacobian, losses)


class HalvedMean(Mean):
    """Half of the mean, by a `_combine` of its own."""

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        return 0.5 * super()._combine(jacobian, losses)


@pytest.mark.parametrize(("base", "halved"), [("cagrad", "HalvedCAGrad"), ("mean", "HalvedMean")])
@pytest.mark.parametrize("name", ["affinity", "blocks", "dropgrad", "every", "momentum", "smoothed"])
def test_a_base_that_combines_in_its_own_way_is_heard_or_refused(name: str, base: str, halved: str) -> None:
    rows, losses = jacobian("iid", 4, seed=0), torch.ones(4, dtype=torch.float64)
    options: dict[str, Any] = {"sizes": (3, -1)} if name == "blocks" else {}
    if name in ("every", "smoothed"):
        with pytest.raises(ValueError, match=rf"Gramian alone; found .*:{halved}"):
            make_combiner(name, num_tasks=4, base=f"{__name__}:{halved}")
        return
    whole, half = (
        make_combiner(name, num_tasks=4, base=own, **options) for own in (base, f"{__name__}:{halved}")
    )
    torch.testing.assert_close(half.combine(rows, losses), 0.5 * whole.combine(rows, losses))


class HalvedLate(CAGrad):
    """Half of CAGrad's direction, by a `direction` of its own."""

    def direction(self, jacobian_at: JacobianAt) -> Tensor:
        return 0.5 * super().direction(jacobian_at)


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_base_whose_own_direction_would_not_be_called_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"base must be .* without a `direction` of its own.*:HalvedLate"):
        make_combiner(name, num_tasks=4, base=f"{__name__}:HalvedLate")


class ThreeBatches(JacobianCombiner):
    """The sum of the mean gradients of three batches."""

    name = "three_batches"
    num_batches = 3

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        return jacobian.mean(0)

    def _combine_batches(self, jacobians: Sequence[Tensor]) -> Tensor:
        return torch.stack([jacobian.mean(0) for jacobian in jacobians]).sum(0)


def test_a_method_of_several_batches_only_says_how_many() -> None:
    rows, combiner = jacobian("iid", 4, seed=0), ThreeBatches(num_tasks=4)
    torch.testing.assert_close(combiner.direction(Linear(rows)), 3.0 * rows.mean(0))
    with pytest.raises(ValueError, match="needs the Jacobians of 3 independent batches, which a"):
        combiner.combine(rows)


@pytest.mark.dear
@pytest.mark.parametrize("kind", ["binary", "gaussian"])
def test_noise_has_the_papers_mean_and_variance_and_is_independent_between_tasks(
    kind: Literal["binary", "gaussian"],
) -> None:
    rate, draws = 0.2, 600
    rows = torch.tensor([[1.0, -3.0], [2.0, 0.5]], dtype=torch.float64)
    combiner = DropGrad(num_tasks=2, rate=rate, kind=kind)
    one, two = rows.clone(), rows.clone()
    one[1], two[0] = 0.0, 0.0
    other = DropGrad(num_tasks=2, rate=rate, kind=kind)
    first = torch.stack([combiner.combine(one) for _ in range(draws)]) * 2.0 / rows[0] - 1.0
    second = torch.stack([other.combine(two) for _ in range(draws)]) * 2.0 / rows[1] - 1.0
    variance = rate / (1.0 - rate)
    noise = torch.cat((first, second), dim=1)  # the same counters: each column is one entry's noise minus 1
    covariance = noise.T @ noise / draws
    assert noise.mean(dim=0).abs().max() < 5.0 * math.sqrt(variance / draws)
    torch.testing.assert_close(
        covariance, variance * torch.eye(4, dtype=torch.float64), rtol=0.0, atol=8.0 * variance / draws**0.5
    )


def test_a_linear_schedule_grows_from_nothing() -> None:
    rows = torch.ones(2, 4000, dtype=torch.float64)
    combiner = DropGrad(num_tasks=2, rate=0.5, schedule="linear", ramp=4)
    dropped = []
    for _ in range(6):
        noise = combiner.combine(rows) * 2.0
        dropped.append(float((noise == 0.0).double().mean()))
    expected = [min(k / 4, 1.0) * 0.5 for k in range(6)]
    assert dropped == pytest.approx([rate**2 for rate in expected], abs=0.03)  # both tasks' entries dropped


def test_streams_give_networks_noise_of_their_own() -> None:
    rows = torch.ones(2, 50)
    first, second = DropGrad(num_tasks=2, rate=0.5), DropGrad(num_tasks=2, rate=0.5)
    second.seed(1)
    assert not torch.equal(first.combine(rows), second.combine(rows))


def test_smoothed_weights_are_the_running_mean_of_the_solved_ones() -> None:
    smoothed = make_combiner("smoothed", num_tasks=3, base="nash_mtl", decay=0.8)
    base = make_combiner("nash_mtl", num_tasks=3)
    weights: Tensor | None = None
    for seed in range(5):
        rows = jacobian("iid", 3, seed=seed)
        solved = torch.linalg.lstsq(rows.T, base.combine(rows)).solution
        weights = solved if weights is None else 0.8 * weights + 0.2 * solved
        torch.testing.assert_close(smoothed.combine(rows), weights @ rows, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("base", ["cagrad", "mean", "upgrad"])
def test_momentum_combines_the_corrected_running_means_of_the_rows(base: str) -> None:
    combiner = make_combiner("momentum", num_tasks=3, base=base, decay=0.7)
    seen: list[Tensor] = []
    for seed in range(5):
        seen.append(jacobian("conflicting", 3, seed))
        shares = [0.7 ** (len(seen) - 1 - k) for k in range(len(seen))]
        means = sum(share * rows for share, rows in zip(shares, seen, strict=True)) / sum(shares)
        expected = make_combiner(base, num_tasks=3).combine(torch.as_tensor(means))
        torch.testing.assert_close(combiner.combine(seen[-1]), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["every", "normscale"])
def test_a_jacobian_is_formed_once_per_period_and_one_backward_pass_in_between(name: str) -> None:
    combiner = make_combiner(name, num_tasks=3, refresh_every=4)
    solved: Tensor | None = None
    for update in range(10):
        problem = Quadratics(3, 5, seed=update)
        direction = combiner.direction(problem)
        due = update % 4 == 0
        assert (len(problem.asked), problem.backwards) == ((1, 0) if due else (0, 1))
        if due:
            solved = combiner.last_weights.double().clone()
        assert solved is not None
        expected = solved @ problem.gradients_at(0.0)
        torch.testing.assert_close(direction, expected, rtol=1e-5, atol=1e-6 * float(expected.norm()))


def test_groups_take_turns_and_only_the_group_is_evaluated() -> None:
    combiner = make_combiner("turns", num_tasks=5, base="mean", groups=2, order=(3, 0, 4, 1, 2))
    groups = [[3, 0, 4], [1, 2]]
    for update in range(5):
        problem = Linear(jacobian("iid", 5, seed=update))
        direction = combiner.direction(problem)
        group = groups[update % 2]
        torch.testing.assert_close(direction, problem.rows[group].mean(0))
        asked = problem.asked[0].tasks
        assert asked is not None
        assert asked.tolist() == group
        weights = [1.0 / len(group) if task in group else 0.0 for task in range(5)]
        torch.testing.assert_close(combiner.last_weights, torch.tensor(weights, dtype=torch.float64))


def test_each_group_has_a_method_of_its_own_which_survives_a_checkpoint() -> None:
    original, restored = (make_combiner("turns", num_tasks=4, base="adatask", groups=2) for _ in range(2))
    expected, found = [], []
    problems = [Linear(jacobian("iid", 4, seed=seed)) for seed in range(7)]
    for problem in problems[:3]:
        original.direction(problem)
    restored.load_state_dict(original.state_dict())
    for problem in problems[3:]:
        expected.append(original.direction(problem))
        found.append(restored.direction(problem))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_an_order_must_hold_every_task_once() -> None:
    with pytest.raises(ValueError, match=r"order must hold each task number below 3 once; found \(0, 0, 1\)"):
        make_combiner("turns", num_tasks=3, order=(0, 0, 1))


def test_gains_are_the_share_of_a_loss_that_a_small_step_removes() -> None:
    """Against the exact look-ahead on quadratic losses, as the step size goes to zero."""
    problem, step = Quadratics(3, 6, seed=4), 1e-7
    combiner = Affinity(num_tasks=3, base="mean", decay=0.5)
    for _ in range(4):
        combiner.direction(problem)
    gains, cosines = combiner.means()
    rows = problem.gradients_at(0.0)
    for i in range(3):
        moved = problem.parameters - step * rows[i]
        for j in range(3):
            after = moved @ problem.curvatures[j] @ moved / 2.0
            share = (1.0 - float(after / problem.losses[j])) / step
            assert float(gains[i, j]) == pytest.approx(share, rel=1e-4)
            cosine = torch.nn.functional.cosine_similarity(rows[i], rows[j], dim=0)
            assert float(cosines[i, j]) == pytest.approx(float(cosine), abs=1e-9)


def test_collecting_leaves_the_base_alone() -> None:
    wrapped, alone = make_combiner("affinity", num_tasks=4), make_combiner("cagrad", num_tasks=4)
    for seed in range(3):
        rows = jacobian("iid", 4, seed=seed)
        assert torch.equal(wrapped.combine(rows, torch.ones(4).double()), alone.combine(rows))


@pytest.mark.parametrize("wrapper", ["affinity", "dropgrad", "momentum", "turns", "fs_mtl"])
def test_states_per_parameter_of_a_base_that_splits_columns_have_the_size_of_their_block(
    wrapper: str,
) -> None:
    rows, losses = jacobian("iid", 4, seed=0), torch.ones(4, dtype=torch.float64)
    inner = "momentum" if wrapper == "fs_mtl" else "adatask"  # FS-MTL takes no optimiser
    options: dict[str, Any] = {"base": "blocks", "base_options": {"base": inner, "sizes": (3, -1)}}
    made, prepared = (make_combiner(wrapper, num_tasks=4, **options) for _ in range(2))
    prepared.prepare(rows[0])
    for _ in range(2):
        directions = [combiner.direction(Linear(rows, losses=losses)) for combiner in (made, prepared)]
        torch.testing.assert_close(*directions)


@pytest.mark.parametrize("wrapper", ["affinity", "dropgrad", "momentum", "fs_mtl"])
def test_success_rates_reach_a_base_that_splits_tasks_as_its_groups_own(wrapper: str) -> None:
    options: dict[str, Any] = {"base": "pivrg", "groups": 2, "order": (2, 0, 1, 3)}
    combiner = make_combiner(wrapper, num_tasks=4, base="turns", base_options=options)
    combiner.note_success(torch.tensor([0.0, 0.25, 0.5, 1.0]))
    found = [module.preference for module in combiner.modules() if isinstance(module, PIVRG)]
    # In each group the rates differ so much that the task with the lower one counts `bound` = 2 times more.
    for own, shares in zip(found, [[2.0, 4.0], [4.0, 2.0]] * (len(found) // 2), strict=True):
        torch.testing.assert_close(own, torch.tensor(shares, dtype=torch.float64) / 3.0)
