"""ConFIG: the direction that has the same cosine with all task gradients."""

from torch import Tensor

from mtrl.combiners.base import GramCombiner
from mtrl.combiners.solvers.equal import equal_projections


class ConFIG(GramCombiner):
    """ConFIG (conflict-free inverse gradients): equal cosines with all gradients, mean projection as length.

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
        return equal_projections(gram, projected=True)
