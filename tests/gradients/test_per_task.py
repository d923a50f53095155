"""Per-task gradients against a loop of autograd.grad over plain parameters, and against torch.func."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from mtrl.gradients.descent import clip_by_norm
from mtrl.gradients.per_task import FlatParameters, Jacobians, TaskGradients
from mtrl.networks.base import Parameters
from mtrl.networks.mlp import MLP

TASKS = 4


def _problem(
    *, layer_norm: bool = False, one_hot: bool = True, heads: bool = False, stack: int = 2
) -> tuple[MLP, FlatParameters, Tensor, Tensor]:
    network = MLP(
        stack=stack, num_tasks=TASKS, inputs=5, outputs=2, width=7, depth=2, activation="silu",
        layer_norm=layer_norm, task_identity="one_hot" if one_hot else "none", per_task_heads=heads,
        head_range=0.5,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    shared, head, own_rows = network.initial_parameters(generator)
    flat = FlatParameters(
        {name: value.double() for name, value in shared.items()},
        {name: value.double() for name, value in head.items()},
        own_rows=own_rows,
    )
    inputs = torch.randn(TASKS, 6, 5, generator=generator).double()
    targets = torch.randn(TASKS, 6, 2, generator=generator).double()
    return network, flat, inputs, targets


def _losses(network: MLP, inputs: Tensor, targets: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    return (network.apply(parameters, inputs) - targets).square().mean(dim=(0, 2, 3))


def _gradients(
    flat: FlatParameters,
    losses: Callable[[Parameters, int, Tensor | None], Tensor],
    buffers: Jacobians | None = None,
    trouble: Tensor | None = None,
) -> TaskGradients:
    def loss_function(parameters: Parameters, batch: int, tasks: Tensor | None) -> tuple[Tensor, int]:
        return losses(parameters, batch, tasks), batch

    return TaskGradients(flat, loss_function, TASKS, {} if buffers is None else buffers, trouble=trouble)


def _loop(
    network: MLP, flat: FlatParameters, inputs: Tensor, targets: Tensor, offset: Tensor | None = None
) -> Tensor:
    """One ordinary backward per task over the joint parameter vector [T, P + H]."""
    rows = []
    for task in range(TASKS):
        vector = flat.vector.detach().clone()
        if offset is not None:
            vector[: flat.num_shared] += offset[task]
        vector.requires_grad_()
        loss = _losses(network, inputs, targets, flat.named(vector))[task]
        rows.append(torch.autograd.grad(loss, vector)[0])
    return torch.stack(rows)


@pytest.mark.parametrize("stack", [1, 2])
@pytest.mark.parametrize("one_hot", [True, False])
@pytest.mark.parametrize("layer_norm", [True, False])
def test_jacobian_equals_a_loop_of_backward_passes(stack: int, one_hot: bool, layer_norm: bool) -> None:
    network, flat, inputs, targets = _problem(stack=stack, one_hot=one_hot, layer_norm=layer_norm)
    gradients = _gradients(flat, lambda p, _, tasks: _losses(network, inputs, targets, p))
    torch.testing.assert_close(gradients(), _loop(network, flat, inputs, targets))
    expected = _losses(network, inputs, targets, flat.named())
    torch.testing.assert_close(gradients.losses, expected)


def test_jacobian_equals_torch_func() -> None:
    network, flat, inputs, targets = _problem()
    gradients = _gradients(flat, lambda p, _, tasks: _losses(network, inputs, targets, p))
    reference = torch.func.jacrev(lambda v: _losses(network, inputs, targets, flat.named(v)))(
        flat.vector.detach()
    )
    torch.testing.assert_close(gradients(), reference)


@pytest.mark.parametrize("layer_norm", [True, False])
def test_offsets_perturb_each_task_by_its_own_row(layer_norm: bool) -> None:
    network, flat, inputs, targets = _problem(layer_norm=layer_norm)
    gradients = _gradients(flat, lambda p, _, tasks: _losses(network, inputs, targets, p))
    offset = 0.1 * torch.randn(TASKS, flat.num_shared).double()
    before = flat.vector.detach().clone()
    torch.testing.assert_close(gradients(offset), _loop(network, flat, inputs, targets, offset))
    assert torch.equal(flat.vector.detach(), before)


@pytest.mark.parametrize("heads", [True, False])
def test_weighted_gradient_equals_weights_times_jacobian(heads: bool) -> None:
    network, flat, inputs, targets = _problem(heads=heads)
    weights = torch.tensor([0.1, 0.0, 0.5, 0.4]).double()
    cheap = _gradients(flat, lambda p, _, tasks: _losses(network, inputs, targets, p))
    full = _gradients(flat, lambda p, _, tasks: _losses(network, inputs, targets, p))
    torch.testing.assert_close(cheap.weighted(lambda losses: weights), weights @ full())
    torch.testing.assert_close(cheap.head_gradient, full.head_gradient)


def test_heads_get_their_own_tasks_gradient_and_stay_out_of_the_jacobian() -> None:
    network, flat, inputs, targets = _problem(heads=True)
    gradients = _gradients(flat, lambda p, _, tasks: _losses(network, inputs, targets, p))
    jacobian = gradients()
    reference = _loop(network, flat, inputs, targets)
    assert jacobian.shape == (TASKS, flat.num_shared)
    torch.testing.assert_close(jacobian, reference[:, : flat.num_shared])
    # A head appears in its own task's loss only, so the sum over tasks is each head's own gradient.
    torch.testing.assert_close(gradients.head_gradient, reference[:, flat.num_shared :].sum(0))


def test_a_network_used_twice_in_a_loss_gets_both_contributions() -> None:
    network, flat, inputs, targets = _problem()

    def losses(parameters: Mapping[str, Tensor]) -> Tensor:
        first = _losses(network, inputs, targets, parameters)
        return first + 3.0 * _losses(network, inputs.flip(1), targets.sin(), parameters)

    jacobian = _gradients(flat, lambda p, _, tasks: losses(p))()
    rows = []
    for task in range(TASKS):
        vector = flat.vector.detach().clone().requires_grad_()
        rows.append(torch.autograd.grad(losses(flat.named(vector))[task], vector)[0])
    torch.testing.assert_close(jacobian, torch.stack(rows))


def test_batches_are_told_apart_and_the_first_one_defines_the_losses() -> None:
    network, flat, inputs, targets = _problem()
    gradients = _gradients(flat, lambda p, k, tasks: _losses(network, inputs + k, targets, p))
    first, second = gradients(), gradients(batch=1)
    torch.testing.assert_close(first, _loop(network, flat, inputs, targets))
    torch.testing.assert_close(second, _loop(network, flat, inputs + 1, targets))
    torch.testing.assert_close(gradients.losses, _losses(network, inputs, targets, flat.named()))


@pytest.mark.parametrize("heads", [True, False])
@pytest.mark.parametrize("one_hot", [True, False])
def test_some_tasks_alone_give_their_rows(heads: bool, one_hot: bool) -> None:
    network, flat, inputs, targets = _problem(heads=heads, one_hot=one_hot)
    chosen: list[Tensor | None] = []

    def losses(parameters: Mapping[str, Tensor], _: int, tasks: Tensor | None) -> Tensor:
        chosen.append(tasks)
        assert tasks is not None
        return _losses(network, inputs[tasks], targets[tasks], parameters)

    reference = _loop(network, flat, inputs, targets)
    buffers: Jacobians = {}
    for order in ([2, 0], [1, 3]):  # the second step reuses the first one's memory
        gradients = _gradients(flat, losses, buffers)
        jacobian = gradients(tasks=torch.tensor(order))
        torch.testing.assert_close(jacobian, reference[order, : flat.num_shared])
        expected = torch.zeros(TASKS).double()
        expected[order] = _losses(network, inputs, targets, flat.named())[order]
        torch.testing.assert_close(gradients.losses, expected)
        assert gradients.evaluated.tolist() == [task in order for task in range(TASKS)]
        torch.testing.assert_close(gradients.head_gradient, reference[order, flat.num_shared :].sum(0))


def test_moved_heads_of_some_tasks_leave_the_gradients_of_the_other_heads() -> None:
    network, flat, inputs, targets = _problem(heads=True)

    def losses(parameters: Mapping[str, Tensor], _: int, tasks: Tensor | None) -> Tensor:
        rows = slice(None) if tasks is None else tasks
        return _losses(network, inputs[rows], targets[rows], parameters)

    gradients, order, size = _gradients(flat, losses), [2, 0], flat.num_shared
    gradients()
    rows, of_heads = torch.empty(len(order), size).double(), gradients.head_gradient.clone()
    offset = 0.1 * torch.randn(TASKS, size + gradients.heads[0].shape[1]).double()
    for place, task in enumerate(order):
        vector, start = flat.vector.detach().clone(), size
        vector[:size] += offset[task, :size]
        for head in [flat.named(vector)[part.name][task] for part in flat.head_slices]:
            head += offset[task, start : start + head.numel()].view(head.shape)
            start += head.numel()
        vector.requires_grad_()
        loss = _losses(network, inputs, targets, flat.named(vector))[task]
        (found,) = torch.autograd.grad(loss, vector)
        rows[place] = found[:size]
        of_heads = torch.where(found[size:] != 0.0, found[size:], of_heads)
    torch.testing.assert_close(gradients(offset, tasks=torch.tensor(order)), rows)
    torch.testing.assert_close(gradients.head_gradient, of_heads)


def test_all_tasks_in_another_order_leave_nothing_in_the_next_step_s_rows() -> None:
    network, flat, inputs, targets = _problem(one_hot=True)

    def losses(parameters: Mapping[str, Tensor], _: int, tasks: Tensor | None) -> Tensor:
        rows = slice(None) if tasks is None else tasks
        return _losses(network, inputs[rows], targets[rows], parameters)

    reference = _loop(network, flat, inputs, targets)[:, : flat.num_shared]
    buffers: Jacobians = {}
    for tasks in (torch.tensor([3, 1, 0, 2]), None, torch.tensor([1, 0, 2, 3])):
        rows = _gradients(flat, losses, buffers)(tasks=tasks)
        torch.testing.assert_close(rows, reference if tasks is None else reference[tasks])


@pytest.mark.parametrize("order", [[2, 0, 3, 1], [1, 3, 0, 2]])
@pytest.mark.parametrize("singles", range(TASKS))
@pytest.mark.parametrize("kind", ["heads", "one_hot", "twice", "no places"])
def test_pooled_gradients_are_rows_and_the_mean_of_the_others(
    kind: str, singles: int, order: list[int]
) -> None:
    network, flat, inputs, targets = _problem(heads=kind == "heads", one_hot=kind == "one_hot")

    def losses(parameters: Mapping[str, Tensor], _: int, tasks: Tensor | None) -> Tensor:
        rows = slice(None) if tasks is None else tasks
        if kind == "no places":  # as a network whose layers are not ours
            parameters = dict(parameters)
        values = _losses(network, inputs[rows], targets[rows], parameters)
        if kind == "twice":  # a network that uses its parameters again
            values = values + _losses(network, inputs[rows] + 1, targets[rows], parameters)
        return values

    reference = _loop(network, flat, inputs, targets)
    if kind == "twice":
        reference = reference + _loop(network, flat, inputs + 1, targets)
    shared = reference[:, : flat.num_shared]
    buffers: Jacobians = {}
    for tasks in (order, order[::-1]):  # the second step reuses the first one's memory
        gradients = _gradients(flat, losses, buffers)
        rows = gradients.pooled(torch.tensor(tasks), singles)
        expected = torch.cat((shared[tasks[:singles]], shared[tasks[singles:]].mean(dim=0, keepdim=True)))
        torch.testing.assert_close(rows, expected)
        torch.testing.assert_close(gradients.losses, losses(flat.named(), 0, None))
        assert gradients.evaluated.tolist() == [1.0] * TASKS
        torch.testing.assert_close(gradients.head_gradient, reference[:, flat.num_shared :].sum(0))


def test_jacobians_of_one_step_live_side_by_side() -> None:
    network, flat, inputs, targets = _problem()
    gradients = _gradients(flat, lambda p, _, tasks: _losses(network, inputs, targets, p))
    offset = 0.1 * torch.randn(TASKS, flat.num_shared).double()
    first, second = gradients(), gradients(offset)
    torch.testing.assert_close(first, _loop(network, flat, inputs, targets))
    torch.testing.assert_close(second, _loop(network, flat, inputs, targets, offset))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_task_is_flagged_and_only_that_one(bad: float) -> None:
    network, flat, inputs, targets = _problem()
    inputs[2, 0, 0] = bad
    trouble = torch.zeros(TASKS)
    _gradients(flat, lambda p, _, tasks: _losses(network, inputs, targets, p), trouble=trouble)()
    assert trouble.isnan().tolist() == [False, False, True, False]
    assert trouble[[0, 1, 3]].tolist() == [0.0, 0.0, 0.0]


def test_clipping_equals_torch_and_returns_the_norm_before() -> None:
    gradient = torch.randn(100)
    parameter = torch.nn.Parameter(torch.zeros(100))
    parameter.grad = gradient.clone()
    expected_norm = torch.nn.utils.clip_grad_norm_([parameter], 1.0)
    norm = clip_by_norm(gradient, 1.0)
    torch.testing.assert_close(norm, expected_norm)
    torch.testing.assert_close(gradient, parameter.grad)
    short = torch.full((4,), 0.1)
    clip_by_norm(short, 1.0)
    assert torch.equal(short, torch.full((4,), 0.1))
    clip_by_norm(gradient.mul_(100), None)
    assert float(gradient.norm()) > 50
