"""A penalty that makes the weights between features and tasks fall into blocks."""

from __future__ import annotations

import torch
from torch import Tensor


def block_diagonal_penalty(weights: Tensor, groups: int) -> Tensor:
    """Sum of the `groups` smallest eigenvalues of the graph of features and tasks, a 0-dim tensor.

    TFCL (task-feature co-clustering), Yang et al., 2020 (arXiv:2004.13930, of which only the abstract could
    be read; the form, that of generalised block-diagonal structure pursuit, NeurIPS 2019, is not verified):
    features and tasks are the nodes, |weights| the edges between them, and the Laplacian has as many zero
    eigenvalues as the graph has parts. The penalty is 0 exactly where the weights fall into at least `groups`
    blocks.

    Training has no option for it: eigenvalues are computed with a look at the host, which an update that is
    one CUDA graph cannot have, and of its use in reinforcement learning nothing is published. A loop of your
    own adds it to the losses (docs/without-rl.md).

    Args:
        weights: [H, T], from H features to T tasks' outputs; differentiable.
        groups: blocks to aim at, at most H + T.

    Raises:
        ValueError: another shape, or `groups` out of range.
    """
    if weights.dim() != 2:
        raise ValueError(f"weights must have shape [features, tasks]; found {list(weights.shape)}.")
    features, tasks = weights.shape
    if isinstance(groups, bool) or not isinstance(groups, int) or not 1 <= groups <= features + tasks:
        raise ValueError(f"groups must be an integer in [1, {features + tasks}]; found {groups!r}.")
    edges = weights.abs()
    upper = torch.cat((weights.new_zeros(features, features), edges), dim=1)
    lower = torch.cat((edges.T, weights.new_zeros(tasks, tasks)), dim=1)
    adjacency = torch.cat((upper, lower))
    values: Tensor = torch.linalg.eigvalsh(torch.diag(adjacency.sum(dim=1)) - adjacency)
    return values[:groups].sum()
