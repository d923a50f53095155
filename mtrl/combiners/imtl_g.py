"""IMTL-G: the direction with the same projection onto every task's unit gradient."""

import torch
from torch import Tensor

from mtrl.combiners.base import GramCombiner
from mtrl.combiners.solvers.gramian import cosines, rounding_ridge


class IMTLG(GramCombiner):
    """IMTL-G (impartial learning): weights of sum 1 whose direction projects equally onto all unit gradients.

    Liu et al., ICLR 2021 (openreview IMPnRXEWpvr), in its symmetric form: w_i = v_i / |g_i|, scaled to sum(w)
    = 1, for the cosines C v = 1. v / sum(v) is the point of least norm in the affine hull of the unit
    gradients. Weights may be negative.

    Deviations from the paper: a negative sum of weights is scaled to -1, because scaling it to 1 would make
    all tasks worse. A sum below a thousandth of the weights' magnitudes counts as that; otherwise the
    direction could be arbitrarily long. A ridge at the rounding level of the Gramian's dtype lets the
    direction vanish where dependent gradients admit no equal projections. Tasks with a zero gradient weigh 0.
    """

    name = "imtl_g"
    papers = ("liu2021imtl",)

    def _weights(self, gram: Tensor) -> Tensor:
        equal, _, inverse = equal_projections(gram)
        # Unit sum first: the solution itself may be as large as 1 / ridge.
        raw = equal / equal.sum().clamp(min=1e-300) * inverse
        total = raw.sum().abs().maximum(1e-3 * raw.abs().sum())
        return raw / torch.where(total > 0.0, total, 1.0)


def equal_projections(gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return v, C and 1 / |g_i|, float64, for the Gramian [T, T]: C v = 1, where C are the cosines.

    A ridge r makes C definite. Each further solve, for what the ridge left of the equations, multiplies its
    effect along eigenvectors of C by r / (r + eigenvalue). Along those at the level of rounding, where no
    solution exists, the ridge is only divided by the number of solves.
    """
    exact = gram.to(torch.float64)
    cosine, inverse = cosines(exact)
    tasks = len(exact)
    unit = torch.eye(tasks, dtype=cosine.dtype, device=cosine.device)
    ridged = torch.add(cosine, unit, alpha=tasks * rounding_ridge(gram))
    factor = torch.linalg.cholesky_ex(ridged, check_errors=False)[0]
    present = (exact.diagonal() > 0.0).to(exact.dtype).unsqueeze(-1)
    equal = torch.cholesky_solve(present, factor)
    for _ in range(5):
        equal = equal + torch.cholesky_solve(torch.addmm(present, cosine, equal, alpha=-1.0), factor)
    return equal.squeeze(-1), cosine, inverse
