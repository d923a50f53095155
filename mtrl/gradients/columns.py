"""Gramian and weighted sum of a Jacobian of which some columns are known as outer products.

Where the parameters of a task are W[t] times a few shared sets, its gradient of the sets is W[t] outer G_t.
Inner products and the weighted sum of such columns take one pass over G, not one over the product.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mtrl.combiners.solvers.gramian import gramian, weighted_sum


class OuterProducts(NamedTuple):
    """Columns start to stop of a Jacobian: per task [S, K, M] numbers, the outer product of its factors."""

    start: int
    stop: int
    left: Tensor  # [T, S, K]
    right: Tensor  # [T, S, M]


def gramian_of(jacobian: Tensor, known: Sequence[OuterProducts]) -> Tensor:
    """Return the Gramian [T, T] of a Jacobian [T, P]; `known` columns, in their order, are not read."""
    gram = jacobian.new_zeros(len(jacobian), len(jacobian), dtype=torch.float64)
    for columns in _ranges(jacobian, known):
        if isinstance(columns, Tensor):
            gram += gramian(columns)
            continue
        for network in range(columns.left.shape[1]):
            # The inner product of two outer products is the product of their factors' inner products.
            gram += gramian(columns.left[:, network].double()) * gramian(columns.right[:, network])
    return gram.to(torch.promote_types(jacobian.dtype, torch.float32))


def combination(weights: Tensor, jacobian: Tensor, known: Sequence[OuterProducts]) -> Tensor:
    """Return `weights @ jacobian` [P], see `weighted_sum`; `known` columns, in their order, are not read."""
    sums = []
    for columns in _ranges(jacobian, known):
        if isinstance(columns, Tensor):
            sums.append(weighted_sum(weights, columns))
            continue
        shares = (weights.double().view(-1, 1, 1) * columns.left).permute(1, 2, 0)  # [S, K, T]
        sums += [weighted_sum(own, columns.right[:, network]).flatten() for network, own in enumerate(shares)]
    return torch.cat(sums)


def _ranges(jacobian: Tensor, known: Sequence[OuterProducts]) -> Iterator[Tensor | OuterProducts]:
    """Yield `known` columns, and what lies before, between and behind them as views of the Jacobian."""
    start = 0
    for columns in known:
        if columns.start > start:
            yield jacobian[:, start : columns.start]
        yield columns
        start = columns.stop
    if start < jacobian.shape[1]:
        yield jacobian[:, start:]
