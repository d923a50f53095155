"""ConFIG: the direction with one cosine to all task gradients, as long as they project onto it."""

from __future__ import annotations

import torch
from torch import Tensor

from mtrl.combiners.base import GramCombiner
from mtrl.combiners.imtl_g import equal_projections


class ConFIG(GramCombiner):
    """ConFIG (conflict-free inverse gradients): equal cosines with all gradients, their mean projection long.

    Liu, Chu and Thuerey, ICLR 2025 (arXiv:2408.11104), equation 2 as the authors' code has it: with U the
    unit gradients, d is along pinv(U) 1 and has the length of the gradients' projections onto it. Where
    `imtl_g` scales the same direction to weights of sum 1, the length here is bounded by the gradients'.

    Deviations from the authors' code: the mean of the projections instead of their sum; the pseudo-inverse is
    that of the cosines, with a ridge at the rounding level of the Gramian's dtype in place of a cut-off.
    Tasks without a gradient weigh nothing.
    """

    name = "config"

    def _weights(self, gram: Tensor) -> Tensor:
        return config_weights(gram)


def config_weights(gram: Tensor) -> Tensor:
    """Return the weights [T] of ConFIG's direction for the Gramian [T, T]."""
    equal, cosine, inverse = equal_projections(gram)
    tasks = len(equal)
    rounding = tasks * torch.finfo(gram.dtype).eps
    # Largest weight of a unit gradient 1: the solution is as large as 1 / ridge where no direction exists.
    scaled = equal / equal.abs().amax().clamp(min=1e-300)
    products = cosine @ scaled
    # Below the rounding error of the cosines the square of the direction's length is unknown; the direction
    # then vanishes instead of pointing anywhere.
    square = (scaled @ products).clamp(min=rounding * scaled.abs().sum().square())
    length = (products * gram.diagonal().to(torch.float64).clamp(min=0.0).sqrt()).sum() / tasks
    return scaled * inverse * length / torch.where(square > 0.0, square, 1.0)
