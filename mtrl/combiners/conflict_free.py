"""ConFIG: the direction that has the same cosine with all task gradients."""

import torch
from torch import Tensor

from mtrl.combiners.base import GramCombiner
from mtrl.combiners.imtl_g import equal_projections


class ConFIG(GramCombiner):
    """ConFIG (conflict-free inverse gradients): equal cosines with all gradients, their mean projection long.

    Liu, Chu and Thuerey, ICLR 2025 (arXiv:2408.11104), equation 2 as in the authors' code. With the unit
    gradients U, d points along pinv(U) 1 and is as long as the mean projection of the gradients onto it.
    `imtl_g` scales the same direction to weights of sum 1; here the gradients bound the length.

    Deviations from the authors' code: the mean of the projections instead of their sum; the pseudo-inverse is
    taken of the cosines, with a ridge at the dtype's rounding level instead of a cut-off. Tasks with a zero
    gradient weigh 0.
    """

    name = "config"
    papers = ("liu2025config",)

    def _weights(self, gram: Tensor) -> Tensor:
        return config_weights(gram)


def config_weights(gram: Tensor) -> Tensor:
    """Return the weights [T] of ConFIG's direction for the Gramian [T, T]."""
    equal, cosine, inverse = equal_projections(gram)
    tasks = len(equal)
    rounding = tasks * torch.finfo(gram.dtype).eps
    # A largest weight of 1: where no direction exists the solution itself is as large as 1 / ridge.
    scaled = equal / equal.abs().amax().clamp(min=1e-300)
    products = cosine @ scaled
    # Below the cosines' rounding error the squared length is unknown; the direction then vanishes.
    square = (scaled @ products).clamp(min=rounding * scaled.abs().sum().square())
    length = (products * gram.diagonal().to(torch.float64).clamp(min=0.0).sqrt()).sum() / tasks
    return scaled * inverse * length / torch.where(square > 0.0, square, 1.0)
