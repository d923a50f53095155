"""IMTL-G: the direction with the same projection onto every task's unit gradient."""

from torch import Tensor

from mtrl.combiners.base import GramCombiner
from mtrl.combiners.solvers.equal import equal_projections


class IMTLG(GramCombiner):
    """IMTL-G (impartial learning): weights of sum 1 whose direction projects equally onto all unit gradients.

    Liu et al., ICLR 2021 (openreview IMPnRXEWpvr), in its symmetric form: w_i = v_i / |g_i|, scaled to sum(w)
    = 1, for the cosines C v = 1. v / sum(v) is the point of least norm in the affine hull of the unit
    gradients. Weights may be negative.

    Deviations from the paper: a negative sum of weights is scaled to -1, because scaling it to 1 would make
    all tasks worse. A sum below a thousandth of the weights' magnitudes counts as a thousandth of them;
    otherwise the direction could be arbitrarily long. A ridge at the rounding level of the Gramian's dtype
    lets the direction vanish where dependent gradients admit no equal projections. Tasks with a zero gradient
    weigh 0.
    """

    name = "imtl_g"
    papers = ("liu2021imtl",)

    def _weights(self, gram: Tensor) -> Tensor:
        return equal_projections(gram, projected=False)
