"""MOORE: experts whose outputs are made orthogonal, mixed by task weights, with a head per task."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtrl.networks.base import Parameters
from mtrl.networks.families import Sized
from mtrl.networks.initial import (
    Fresh,
    Layout,
    at_least,
    dense_layer,
    dense_layers,
    torch_default,
    xavier_uniform,
)
from mtrl.networks.layers import Weights

_SMALLEST = 1e-8  # added to lengths, so that equal experts give no NaN (metaworld-algorithms does the same)


@dataclass(kw_only=True, eq=False)
class MOORE(Sized):
    """MOORE: experts made orthogonal for each sample, mixed by weights of the task, with a head per task.

    Experts v_i are perceptrons without an activation at their end and without the task identity. Gram-Schmidt
    makes them orthonormal: u_i is v_i - sum_{j<i} (v_i . u_j) u_j at length 1. The torso is
    tanh(sum_i W[t, i] u_i), and each task has a linear head.

    Source: Hendawy et al., "Multi-Task Reinforcement Learning with Mixture of Orthogonal Experts" (ICLR 2024,
    arXiv 2311.11385), section 4, with the authors' code (moore/utils). Weights start as there: W and the
    heads Xavier-uniform; the experts at torch's default, because `ParallelLayer` overwrites their Xavier
    weights. Deviations: 1e-8 is added to lengths; the agent clamps log standard deviations to [-20, 2], not
    to [-10, 2]. Heads are not combined: each follows its own task's gradient.

    Args:
        task_identity: "one_hot", which stands for W and the heads.
        width: units per layer of an expert.
        depth: layers of an expert.
        experts: number of experts; 4 on MT10 and 6 on MT50 in the paper.
    """

    depth: int = 3
    experts: int = 4

    papers = ("hendawy2024moore",)
    given = ("width", "depth")

    def __post_init__(self) -> None:
        at_least(1, width=self.width, depth=self.depth, experts=self.experts)
        if self.experts > self.width:
            raise ValueError(
                f"experts must be at most the width {self.width}, or they cannot be orthogonal; "
                f"found {self.experts}."
            )

    def layout(self) -> Layout:
        """Return experts [S*E, ...], W [S, T, E] and heads [T, S, ...]."""
        stack, tasks, width = self.stack, self.num_tasks, self.width
        sizes = [self.inputs, *[width] * self.depth]
        shared = dense_layers("experts", stack * self.experts, sizes, torch_default, biases=torch_default)
        shared["mixture.table"] = Fresh((stack, tasks, self.experts), xavier_uniform(tasks, self.experts))
        draw = xavier_uniform(width, self.outputs)
        heads = dense_layer("head", (tasks, stack), width, self.outputs, draw, torch_default(width))
        return Layout(shared, heads, frozenset({"mixture.table"}))

    def apply(self, parameters: Parameters, inputs: Tensor, tasks: Tensor | None = None) -> Tensor:
        """Map inputs [T, B, I] to outputs [S, T, B, outputs] (`Network.apply`)."""
        weights = Weights(parameters, tasks, parameters["experts.0.weight"].dim() == 3)
        x = inputs.expand(self.stack * self.experts, -1, -1, -1)
        experts = weights.layers("experts", self.depth, x).unflatten(0, (self.stack, self.experts))
        basis = orthonormal(experts.unbind(1))
        mixture = weights.table("mixture.table").unsqueeze(2).unbind(-1)  # E times [S, T, 1]
        pairs = zip(mixture, basis, strict=True)
        mixed = torch.stack([share.unsqueeze(-1) * vector for share, vector in pairs]).sum(0)
        return weights.head("head", torch.tanh(mixed))


def orthonormal(vectors: tuple[Tensor, ...]) -> list[Tensor]:
    """Return an orthonormal basis of vectors [..., D], by classical Gram-Schmidt in their order.

    All coefficients of a vector come from the vector itself, as in the authors' code.
    """
    basis: list[Tensor] = []
    for vector in vectors:
        rest = vector
        for unit in basis:
            rest = rest - (vector * unit).sum(-1, keepdim=True) * unit
        basis.append(rest / (torch.linalg.vector_norm(rest, dim=-1, keepdim=True) + _SMALLEST))
    return basis
