"""Gramian and weighted sum of a Jacobian of which some columns are known as outer products.

Where the parameters of a task are W[t] times a few shared sets, its gradient of the sets is W[t] outer G_t.
Inner products and the weighted sum of such columns take one pass over G, not one over the product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor

from mtrl.combiners.solvers.gramian import gramian, weighted_sum
from mtrl.gradients.flat import Slice

Factors = Mapping[str, tuple[Tensor, Tensor]]  # see `PlacedParameters.outer_products`


def gramian_of(jacobian: Tensor, parts: Sequence[Slice], factors: Factors) -> Tensor:
    """Return the Gramian [T, T] of a Jacobian [T, P]; columns with factors are not read."""
    if not factors:
        return gramian(jacobian)
    gram = jacobian.new_zeros(len(jacobian), len(jacobian), dtype=torch.float64)
    for start, stop, known in _ranges(parts, factors):
        if known is None:
            gram += gramian(jacobian[:, start:stop])
            continue
        left, right = known
        for network in range(left.shape[1]):
            # The inner product of two outer products is the product of their factors' inner products.
            gram += gramian(left[:, network].double()) * gramian(right[:, network])
    return gram.to(torch.promote_types(jacobian.dtype, torch.float32))


def combination(weights: Tensor, jacobian: Tensor, parts: Sequence[Slice], factors: Factors) -> Tensor:
    """Return `weights @ jacobian` [P], see `weighted_sum`; columns with factors are not read."""
    if not factors:
        return weighted_sum(weights, jacobian)
    result = jacobian.new_empty(jacobian.shape[1])
    for start, stop, known in _ranges(parts, factors):
        if known is None:
            result[start:stop] = weighted_sum(weights, jacobian[:, start:stop])
            continue
        left, right = known
        shares = (weights.double().view(-1, 1, 1) * left).permute(1, 2, 0)  # [S, K, T]
        sums = [weighted_sum(own, right[:, network]) for network, own in enumerate(shares)]
        result[start:stop] = torch.stack(sums).flatten()
    return result


def _ranges(parts: Sequence[Slice], factors: Factors) -> list[tuple[int, int, tuple[Tensor, Tensor] | None]]:
    """Return the columns of each part with its factors, and between them ranges without any."""
    ranges: list[tuple[int, int, tuple[Tensor, Tensor] | None]] = []
    for name, group in groupby(parts, key=lambda part: part.name if part.name in factors else None):
        members = list(group)
        known = None if name is None else factors[name]
        ranges.append((members[0].start, members[-1].stop, known))
    return ranges
