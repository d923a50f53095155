"""Aligned-MTL: the mean of task gradients that were made orthogonal and equally long."""

from typing import Literal

import torch
from torch import Tensor

from mtrl.combiners._checks import check_choice
from mtrl.combiners.base import GramCombiner


class AlignedMTL(GramCombiner):
    """Aligned-MTL: the mean of the nearest orthogonal gradients of equal length (independent components).

    Senushkin et al., CVPR 2023 (arXiv:2305.19000), algorithm 1. With the Gramian M = V diag(l) V', the
    weights are s V diag(l^-1/2) V' u for u = 1/T, over the eigenvalues above T eps times the largest.

    Args:
        scale: Length s of the aligned gradients: the smallest singular value (`min`, the paper), the `median`
            one, or the root of the mean eigenvalue (`rmse`).

    The rank jumps where an eigenvalue passes the threshold, and so does the direction's length with `min`:
    eigenvalues are known up to the rounding error of the largest. Deviation from the authors' code: u = 1/T
    instead of 1.
    """

    name = "aligned_mtl"
    capturable = False  # the eigenvalue routine checks for failure on the host

    def __init__(self, *, num_tasks: int, scale: Literal["min", "median", "rmse"] = "min") -> None:
        super().__init__(num_tasks=num_tasks)
        check_choice("scale", scale, ("min", "median", "rmse"))
        self.scale = scale

    def _weights(self, gram: Tensor) -> Tensor:
        # The routine raises for values that are not finite; the weights must carry them on instead.
        finite = gram.isfinite()
        values, vectors = torch.linalg.eigh(torch.where(finite, gram, 0.0).to(torch.float64))
        kept = values > values[-1] * (self.num_tasks * torch.finfo(gram.dtype).eps)
        inverse = torch.where(kept, values, 1.0).rsqrt() * kept
        balanced = vectors @ (inverse * vectors.mean(dim=0))
        weights = self._square(values, kept).sqrt() * balanced
        return torch.where(finite.all(), weights, torch.nan)

    def _square(self, values: Tensor, kept: Tensor) -> Tensor:
        """Return the square of s for ascending eigenvalues [T]; 0 if none is kept."""
        rank = kept.sum()
        if self.scale == "min":
            index = self.num_tasks - rank
        elif self.scale == "median":
            index = self.num_tasks - rank + (rank - 1) // 2  # the lower of two
        else:
            return (values * kept).sum() / rank.clamp(min=1)
        chosen = values.gather(0, index.clamp(max=self.num_tasks - 1).view(1)).squeeze(0)
        return chosen * (rank > 0)
