"""Aligned-MTL: the mean of task gradients that were made orthogonal and equally long."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mtrl.combiners._checks import check_choice
from mtrl.combiners.base import GramCombiner
from mtrl.combiners.solvers.backends import problem, solve
from mtrl.combiners.solvers.operations import Array


class AlignedMTL(GramCombiner):
    """Aligned-MTL: the mean of the nearest orthogonal gradients of equal length (independent components).

    Senushkin et al., CVPR 2023 (arXiv:2305.19000), algorithm 1. With the Gramian M = V diag(l) V', the
    weights are s V diag(l^-1/2) V' u for u = 1/T, over the eigenvalues above T eps times the largest.

    Args:
        scale: Length s of the aligned gradients: the smallest singular value (`min`, the paper), the `median`
            one, or the root of the mean eigenvalue (`rmse`).

    The rank jumps where an eigenvalue passes the threshold, and so does the direction's length with `min`:
    eigenvalues are known up to the rounding error of the largest. Deviation from the authors' code: u = 1/T
    instead of 1. The host finds the eigenvalues, also for a GPU. There each update is split into two or more
    CUDA graphs.
    """

    name = "aligned_mtl"
    papers = ("senushkin2023alignedmtl",)

    def __init__(self, *, num_tasks: int, scale: Literal["min", "median", "rmse"] = "min") -> None:
        super().__init__(num_tasks=num_tasks)
        check_choice("scale", scale, tuple(_SQUARES))
        self._scale = list(_SQUARES).index(scale)

    def _weights(self, gram: Tensor) -> Tensor:
        return solve("aligned", gram, numbers=(self._scale, self.num_tasks * torch.finfo(gram.dtype).eps))


# The square of s for the eigenvalues that are kept, in ascending order.
_SQUARES: dict[str, Callable[[Array], float]] = {
    "min": lambda values: values[0],
    "median": lambda values: values[(len(values) - 1) // 2],  # the lower of two
    "rmse": lambda values: values.mean(),
}


@problem("aligned", lambda tasks: (tasks,))
def _aligned(gram: Array, scale: float, least: float) -> Array:
    # The routine raises for values that are not finite; the weights must carry them on instead.
    if not np.isfinite(gram).all():
        return np.full(len(gram), np.nan)
    values, vectors = np.linalg.eigh(gram)
    kept = values > values[-1] * least
    if not kept.any():
        return np.zeros(len(gram))
    values, vectors = values[kept], vectors[:, kept]
    square = list(_SQUARES.values())[int(scale)](values)
    weights: Array = square**0.5 * (vectors @ (values**-0.5 * vectors.mean(0)))
    return weights
