"""SDMGrad: a direction that raises the worst improvement while staying oriented towards the mean gradient."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_choice, check_number
from mtrl.combiners.base import GramCombiner
from mtrl.combiners.solvers.gramian import gramian, inner_products, weighted_sum
from mtrl.combiners.solvers.hull import hull_gap, project, shortest_in_hull

_STEPS, _STEP_SIZE, _MOMENTUM = 20, 10.0, 0.5  # the inner loop of the authors' RL code


class SDMGrad(GramCombiner):
    """SDMGrad (direction-oriented): d = (g_w + lam g0) / (1 + lam), w minimises |g_w + lam g0|.

    Xiao, Ban and Ji, NeurIPS 2023 (arXiv:2305.18409). w ranges over the simplex, g0 is the mean gradient. lam
    = 0 is MGDA (the min-norm point), lam -> infinity the mean.

    Args:
        lam: Weight of the mean gradient in the objective (0.6 in the authors' RL runs).
        solver: `exact` solves for w; `paper` continues from the last w by 20 projected momentum steps of size
            10 on the Gramian over its squared mean norm, beyond the stability limit (authors' RL code).
        batches: 1, or the paper's 3 independent batches: w from the products between the gradients of two,
            the direction from the third. Three batches need `paper`: products between two batches belong to
            no convex problem that `exact` could solve.

    Deviations from the authors' code: see `solver`; with three batches, theirs share one gradient buffer by
    mistake, so that double sampling does not take place, and heads step by the sum of all batches (here by
    the first one); critic and actor do not share w; its supervised code multiplies the direction by T and
    clips it to norm 1. A zero gradient enters the exact minimisation as lam g0, as in the published problem:
    it takes all of w if no gradient conflicts with g0, else more as lam falls. Only lam = 0 leaves it out.
    """

    name = "sdmgrad"
    papers = ("xiao2023sdmgrad",)

    def __init__(
        self,
        *,
        num_tasks: int,
        lam: float = 0.6,
        solver: Literal["exact", "paper"] = "exact",
        batches: Literal[1, 3] = 1,
    ) -> None:
        super().__init__(num_tasks=num_tasks)
        self.lam = check_number("lam", lam, low=0.0)
        check_choice("solver", solver, ("exact", "paper"))
        check_choice("batches", batches, (1, 3))
        if batches == 3 and solver == "exact":
            raise ValueError("batches = 3 needs solver = 'paper'; found 'exact'.")
        self.num_batches = batches
        self._paper = solver == "paper"
        self.w = nn.Buffer(torch.full((num_tasks,), 1.0 / num_tasks, dtype=torch.float64))

    def _weights(self, gram: Tensor) -> Tensor:
        w = self._published_steps(gram.to(torch.float64)) if self._paper else shortest_mix(gram, self.lam)
        self.w.copy_(w)
        return with_mean(w, self.lam)

    def _combine_batches(self, jacobians: Sequence[Tensor]) -> Tensor:
        first, second, third = jacobians
        direction = weighted_sum(self.weights(inner_products(first, second)), third)
        # Products of two batches have no norms and no cosines: metrics are about the batch of the direction.
        self._last_gram.copy_(gramian(third))
        return direction

    def metrics(self) -> dict[str, Tensor]:
        """Add `residual`: the KKT gap of w relative to the objective's scale.

        With `exact` up to 1e-5; in single precision up to 1e-3 for dependent gradients, and a solve among
        fifty of them may fail with a residual of 2 (docs/methods.md).
        """
        return {**super().metrics(), "residual": hull_gap(shifted(self._last_gram, self.lam), self.w)}

    def _published_steps(self, gram: Tensor) -> Tensor:
        scale = (gram.diagonal().abs() + 1e-4).sqrt().mean()
        matrix = gram / scale.square()
        w: Tensor = self.w
        velocity = torch.zeros_like(w)
        for _ in range(_STEPS):
            velocity = _MOMENTUM * velocity + matrix @ torch.add(w, self.lam / self.num_tasks)
            w = project(w - _STEP_SIZE * velocity)
        return w


def shifted(gram: Tensor, lam: float) -> Tensor:
    """Return the Gramian of g_i + lam g0; the objective is the norm of their mix over the simplex."""
    linear = gram.mean(dim=-1)
    row = torch.add(linear, linear.mean(), alpha=lam)
    return torch.add(torch.add(gram, linear.unsqueeze(-1), alpha=lam), row, alpha=lam)


def shortest_mix(gram: Tensor, lam: float) -> Tensor:
    """Return the w [T] of the simplex with the shortest g_w + lam g0, float64, for the Gramian [T, T]."""
    return shortest_in_hull(shifted(gram.to(torch.float64), lam), eps=torch.finfo(gram.dtype).eps)


def with_mean(w: Tensor, lam: float) -> Tensor:
    """Return the weights [T] of the direction: (w + lam u) / (1 + lam) for the uniform weights u."""
    return torch.add(w, lam / len(w)).div(1.0 + lam)
