"""PaCo: each task's parameters are a combination of a few sets of parameters."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtrl.networks.base import Parameters
from mtrl.networks.families import Sized
from mtrl.networks.initial import (
    Draw,
    Fresh,
    Layout,
    Shape,
    at_least,
    dense_layer,
    he_uniform,
    normal,
    uniform,
)
from mtrl.networks.layers import PlacedParameters, linear

_TABLE = "mixture.table"


@dataclass(kw_only=True, eq=False)
class PaCo(Sized):
    """PaCo: the parameters of a task are its combination of K sets of parameters.

    theta_t = sum_k W[t, k] phi_k holds for all weights and biases of a perceptron with ReLU, its last layer
    included. The task identity is not among the inputs. Weights are combined, not outputs, which is the same
    function at a K-th of the cost.

    Source: Sun et al., "PaCo: Parameter-Compositional Multi-Task Reinforcement Learning" (NeurIPS 2022, arXiv
    2210.11653), section 3. As in the authors' code W is standard normal without bias, and the K sets start
    equal. Deviations: hidden layers are He-uniform and the last one is uniform in +-head_range, as in
    metaworld-algorithms, while the authors' actor is Xavier-uniform with heads of deviation .3 / sqrt(inputs)
    and their critics are uniform in +-1 / sqrt(inputs); actor and critics have a W each, the authors one for
    all; a task whose loss explodes is not reset; the agent clamps log standard deviations to [-20, 2], not to
    [-10, 2].

    Args:
        task_identity: "one_hot", which stands for W.
        width: units per hidden layer.
        depth: hidden layers.
        head_range: of the last layer's weights at the start.
        sets: K; 5 on MT10 in the paper, 20 on MT50 in metaworld-algorithms.
    """

    depth: int = 3
    head_range: float = 1e-3
    sets: int = 5

    papers = ("sun2022paco",)
    given = ("width", "depth", "head_range")

    def __post_init__(self) -> None:
        at_least(1, width=self.width, depth=self.depth, sets=self.sets)

    def layout(self) -> Layout:
        """Return weights [S, K, O, I], biases [S, K, O] and W [S, T, K]."""
        shared = {_TABLE: Fresh((self.stack, self.num_tasks, self.sets), normal(1.0))}
        sizes = [self.inputs, *[self.width] * self.depth, self.outputs]
        for layer in range(self.depth + 1):
            draw = he_uniform(sizes[layer]) if layer < self.depth else uniform(self.head_range)
            stack = (self.stack, self.sets)
            shared |= dense_layer(str(layer), stack, sizes[layer], sizes[layer + 1], _equal_sets(draw))
        return Layout(shared, {}, frozenset({_TABLE}))

    def apply(self, parameters: Parameters, inputs: Tensor, tasks: Tensor | None = None) -> Tensor:
        """Map inputs [T, B, I] to outputs [S, T, B, outputs] (`Network.apply`)."""
        shares = parameters[_TABLE]
        if parameters["0.weight"].dim() == 4:  # joint: a row of W per task in front, [N, S, K]
            shares = (shares if tasks is None else shares.index_select(1, tasks)).transpose(0, 1)
        x = inputs.expand(self.stack, -1, -1, -1)
        for layer in range(self.depth + 1):
            weight, bias = (_composed(parameters, f"{layer}.{kind}", shares) for kind in ("weight", "bias"))
            x = linear(torch.relu(x) if layer else x, weight, bias.transpose(0, 1))
        return x


def _composed(parameters: Parameters, name: str, shares: Tensor) -> Tensor:
    """Return the parameter of each task [N, S, ...] for shares [N, S, K] of its sets."""
    sets = parameters[name]
    dims = 3 if name.endswith("bias") else 4  # of joint ones, [S, K, ...]
    if sets.dim() == dims:
        product = torch.bmm(shares.transpose(0, 1), sets.flatten(2))  # [S, N, ...]
        joint: Tensor = product.transpose(0, 1).unflatten(2, sets.shape[2:])
        return joint
    own = parameters if isinstance(parameters, PlacedParameters) else None
    place = None if own is None else own.claim_place(name)
    result: Tensor = _Compose.apply(shares, sets, place, own, name)  # type: ignore[no-untyped-call]
    return result


class _Compose(torch.autograd.Function):
    """Combination of sets [N, S, K, ...] per task, by shares [N, S, K].

    A task's gradient of the sets is the outer product of its shares and the gradient G_t of its combined
    parameter. Its two factors are noted, or it is written straight to its place in the Jacobian: forming it
    elsewhere first made an update with a Jacobian cost three times an ordinary one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        shares: Tensor,
        sets: Tensor,
        place: Tensor | None,
        parameters: PlacedParameters | None,
        name: str,
    ) -> Tensor:
        ctx.save_for_backward(shares, sets)
        ctx.place, ctx.parameters, ctx.name = place, parameters, name
        if sets.stride(0) == 0:  # the same sets for all tasks
            product = torch.bmm(shares.transpose(0, 1), sets[0].flatten(2)).transpose(0, 1)
        else:
            product = torch.matmul(shares.unsqueeze(2), sets.flatten(3)).squeeze(2)
        composed: Tensor = product.unflatten(2, sets.shape[3:])
        return composed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        shares, sets = ctx.saved_tensors
        flat = grad.flatten(2)
        if sets.stride(0) == 0:
            grad_shares = torch.bmm(flat.transpose(0, 1), sets[0].flatten(2).mT).transpose(0, 1)
        else:
            grad_shares = torch.matmul(sets.flatten(3), flat.unsqueeze(-1)).squeeze(-1)
        if ctx.parameters is not None and not ctx.parameters.whole:
            ctx.parameters.outer_products[ctx.name] = shares, flat
            return grad_shares, grad.new_zeros(()).expand(sets.shape), None, None, None
        factors = shares.reshape(*shares.shape, *[1] * (sets.dim() - 3))
        grad_sets = sets.new_empty(sets.shape) if ctx.place is None else ctx.place
        torch.mul(factors, grad.unsqueeze(2), out=grad_sets)
        return grad_shares, grad_sets, None, None, None


def _equal_sets(draw: Draw) -> Draw:
    def drawn(shape: Shape, generator: torch.Generator) -> Tensor:
        stack, sets, *rest = shape
        return draw((stack, *rest), generator).unsqueeze(1).repeat(1, sets, *[1] * len(rest))

    return drawn
