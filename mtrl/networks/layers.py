"""Layers on joint or per-task parameters; linear ones write weight gradients per task into the Jacobian.

In front of all of them a network may see standardised observations (`ObservationNorm`).

x is [S, T, B, I]: S networks, or S*n experts of them, on B rows of each of T tasks.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtrl.networks.base import Parameters

_SMALLEST_DEVIATION = 1e-2  # 1 cm in Meta-World, so that a coordinate at rest at first is not blown up
_CLIP = 10.0  # deviations


class PlacedParameters(dict[str, Tensor]):
    """Parameters, and the places in the Jacobian or in the direction where their gradients belong.

    A layer may write the gradient of its parameter straight to its place, which saves a copy of the Jacobian.
    `TaskGradients` copies the gradients that come as tensors of their own.

    Args:
        values: the parameters.
        places: by name.
        whole: whether all places must be written.
        pooled: whether the last row of the places, [N + 1, ...] for T tasks, is the sum over all tasks but
            the first N.

    Attributes:
        used_again: whether a place was asked for that has been claimed.
        whole: as the argument, and true once `claim_place` has returned None. While it is false, the backward
            of a layer may note factors of a gradient instead of writing it.
        outer_products: such factors by a parameter's name, left [N, S, K] and right [N, S, M]: each task's
            gradient is their outer product, [S, K, M] numbers.
    """

    def __init__(
        self, values: Parameters, places: Parameters, *, whole: bool = True, pooled: bool = False
    ) -> None:
        super().__init__(values)
        self._places, self._taken = dict(places), set[str]()
        self.whole, self._pooled, self.used_again = whole, pooled, False
        self.outer_products: dict[str, tuple[Tensor, Tensor]] = {}

    def claim_place(self, name: str, *, pools: bool = False) -> Tensor | None:
        """Return the place of a parameter's gradient; None if there is none or it has been claimed.

        Only one use of a parameter may write there. If a network uses a parameter twice, autograd adds up two
        gradients, and both cannot lie in one place. `pools` says that the caller can write pooled places.
        """
        self.used_again |= name in self._taken
        place = None if self._pooled and not pools else self._places.pop(name, None)
        if place is not None:
            self._taken.add(name)
        self.whole |= place is None
        return place


class Weights(NamedTuple):
    """The parameters of one evaluation, for layers that need not know whether they are joint or per task."""

    parameters: Parameters
    tasks: Tensor | None  # int64 [N], the tasks evaluated; None: all T
    joint: bool  # whether shared parameters are [S, ...]; else [N, S, ...]

    def dense(self, name: str, x: Tensor, identity: Tensor | None = None) -> Tensor:
        """Apply the linear layer NAME.weight [S, O, I], with NAME.bias [S, O] if there is one.

        `identity` [S, N, O] is added.
        """
        parameters = self.parameters
        weight, bias = parameters[f"{name}.weight"], parameters.get(f"{name}.bias")
        rows = None if bias is None else bias_rows(bias)
        if identity is not None:
            rows = identity if rows is None else rows + identity
        place = bias_place = None
        if isinstance(parameters, PlacedParameters):
            place = parameters.claim_place(f"{name}.weight", pools=True)
            if bias is not None and identity is None:  # else the gradient of `rows` is not that of the bias
                bias_place = parameters.claim_place(f"{name}.bias", pools=True)
        return linear(x, weight, rows, place, bias_place)

    def head(self, name: str, x: Tensor) -> Tensor:
        """Apply each task's own linear layer, the heads NAME.weight [T, S, O, I] and NAME.bias."""
        weight, bias = (self._of_tasks(self.parameters[f"{name}.{kind}"], 0) for kind in ("weight", "bias"))
        return linear(x, weight, bias_rows(bias))

    def layers(self, name: str, count: int, x: Tensor) -> Tensor:
        """Apply the linear layers NAME.0, ..., NAME.(count - 1) with ReLU between them, none at the end."""
        for number in range(count - 1):
            x = torch.relu(self.dense(f"{name}.{number}", x))
        return self.dense(f"{name}.{count - 1}", x)

    def vector(self, name: str) -> Tensor:
        """Return a shared vector [S, O] as [S, 1 or N, 1, O], which broadcasts over the rows of a batch."""
        return bias_rows(self.parameters[name]).unsqueeze(2)

    def table(self, name: str) -> Tensor:
        """Return the rows [S, N, ...] that the tasks own in a shared table [S, T, ...]."""
        own = self.parameters[name]
        return self._of_tasks(own, 1) if self.joint else own.transpose(0, 1)

    def layer_norm(self, name: str, x: Tensor, eps: float = 1e-6) -> Tensor:
        """Normalise the last axis, then apply NAME.gain and NAME.shift [S, O]; 1e-6 is Flax's epsilon."""
        x = F.layer_norm(x, x.shape[-1:], eps=eps)
        return torch.addcmul(self.vector(f"{name}.shift"), x, self.vector(f"{name}.gain"))

    def _of_tasks(self, rows: Tensor, axis: int) -> Tensor:
        # Per-task parameters come with the heads of these tasks only.
        return rows if self.tasks is None or not self.joint else rows.index_select(axis, self.tasks)


def bias_rows(bias: Tensor) -> Tensor:
    """Lay out a bias, [S, O] or one per task [T, S, O], as [S, 1, O] or [S, T, O]."""
    return bias.unsqueeze(1) if bias.dim() == 2 else bias.transpose(0, 1)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    place: Tensor | None = None,
    bias_place: Tensor | None = None,
) -> Tensor:
    """Apply a linear layer to x [S, T, B, I]; bias is [S, 1 or T, O] or None.

    The weight is joint, [S, O, I], or per task, [T, S, O, I]. Its gradient is written to `place`, if there is
    one (`PlacedParameters`), and that of the bias to `bias_place`, [S, O] or [T, S, O].
    """
    if weight.dim() == 3 and place is None:
        return _joint_product(x, weight, bias)
    result: Tensor = _Linear.apply(x, weight, bias, place, bias_place)  # type: ignore[no-untyped-call]
    return result


def _joint_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    stack, tasks, batch, inputs = x.shape
    product = torch.bmm(x.reshape(stack, tasks * batch, inputs), weight.mT).view(stack, tasks, batch, -1)
    if bias is None:
        return product
    rows = bias.unsqueeze(2)
    return product + rows if torch.is_grad_enabled() else product.add_(rows)  # in place where nothing records


class _Linear(torch.autograd.Function):
    """Linear layer that writes its gradients to their places, those of tasks apart if the weight has tasks.

    A per-task weight that is the same for all tasks arrives as a stride-0 expansion. Then the outputs and the
    input gradients are one product over all T*B rows each, and only the weight gradients are batched over
    tasks. Plain autograd would do T small products for all three.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        place: Tensor | None,
        bias_place: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.place, ctx.bias_place = place, bias_place
        ctx.bias_tasks = 0 if bias is None else bias.shape[1]
        joint = _joint(weight)
        if joint is not None:
            return _joint_product(x, joint, bias)
        product = torch.matmul(x, weight.transpose(0, 1).mT)
        return product if bias is None else product.add_(bias.unsqueeze(2))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        stack, tasks, batch, _ = x.shape
        rows, joint = grad.reshape(stack, tasks * batch, -1), _joint(weight)
        grad_weight = grad_bias = grad_x = None  # the actor's loss passes through critics that stay
        if ctx.needs_input_grad[1]:
            grad_weight = weight.new_empty(weight.shape) if ctx.place is None else ctx.place
            if weight.dim() == 3:
                torch.bmm(rows.mT, x.reshape(stack, tasks * batch, -1), out=grad_weight)
            elif len(grad_weight) == tasks:
                for network in range(stack):
                    torch.bmm(grad[network].mT, x[network], out=grad_weight[:, network])
            else:
                alone = len(grad_weight) - 1
                for network in range(stack):
                    torch.bmm(grad[network, :alone].mT, x[network, :alone], out=grad_weight[:alone, network])
                torch.bmm(grad[:, alone:].flatten(1, 2).mT, x[:, alone:].flatten(1, 2), out=grad_weight[-1])
                grad_weight = grad_weight[:1].expand(weight.shape)  # of a shape that autograd takes
        if ctx.needs_input_grad[2]:
            shape = (stack, ctx.bias_tasks, grad.shape[-1])
            grad_bias = grad.new_empty(shape) if ctx.bias_place is None else bias_rows(ctx.bias_place)
            if grad_bias.shape[1] != ctx.bias_tasks:  # pooled places
                alone = grad_bias.shape[1] - 1
                torch.sum(grad[:, :alone], 2, out=grad_bias[:, :alone])
                torch.sum(grad[:, alone:], (1, 2), out=grad_bias[:, alone])
                grad_bias = grad_bias[:, :1].expand(shape)
            elif ctx.bias_tasks > 1:
                torch.sum(grad, 2, out=grad_bias)
            else:
                torch.sum(grad, (1, 2), out=grad_bias.squeeze(1))
        if ctx.needs_input_grad[0]:
            if joint is not None:
                grad_x = torch.bmm(rows, joint).view(x.shape)
            else:
                grad_x = torch.matmul(grad, weight.transpose(0, 1))
        return grad_x, grad_weight, grad_bias, None, None


def _joint(weight: Tensor) -> Tensor | None:
    """Return the one weight [S, O, I] of all tasks; None if they have their own."""
    if weight.dim() == 3:
        return weight
    return weight[0] if weight.stride(0) == 0 else None


class ObservationNorm(nn.Module):
    """Standardises each coordinate by mean and deviation in the observations of `fit`; before, only clips.

    All tasks share the statistics, since a coordinate that rests at first in one task moves in another.
    They never change after `fit`, so that the policy stays a fixed function of the observation.

    Args:
        obs_dim: O.
    """

    def __init__(self, obs_dim: int) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.zeros(obs_dim))
        self.deviation = nn.Buffer(torch.ones(obs_dim))

    def fit(self, obs: Tensor) -> None:
        """Set mean and deviation [O] from observations [..., O]."""
        rows = obs.flatten(0, -2).double()
        self.mean.copy_(rows.mean(0))
        self.deviation.copy_(rows.std(0, correction=0).clamp(min=_SMALLEST_DEVIATION))

    def forward(self, obs: Tensor) -> Tensor:
        """Standardise observations [..., O]."""
        return ((obs - self.mean) / self.deviation).clamp_(-_CLIP, _CLIP)
