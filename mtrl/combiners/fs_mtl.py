"""FS-MTL: combines the task gradients and, separately, the gradients of their sharpness."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mtrl.combiners._checks import check_flag, check_number
from mtrl.combiners._families import forward_requirements, make_base
from mtrl.combiners._jacobian_at import JacobianAt
from mtrl.combiners.base import JacobianCombiner
from mtrl.combiners.solvers.gramian import lengths_of, one_over


class FSMTL(JacobianCombiner):
    """FS-MTL (flat-region multi-task learning): base(G) + base(H), H the change of G after SAM's ascent step.

    Phan et al., ICCV 2025 (arXiv:2211.13723), algorithm 1. Task t's gradient g_t is taken again at the
    parameters plus rho g_t / |g_t|, and h_t is the difference. Two independent instances of the base method
    combine G and H. Task heads ascend in a ball of their own and step by their gradients there.

    Args:
        base: Name of the method that is applied to the gradients and to their sharpness part.
        base_options: Arguments of the base method (authors' scripts: c = 0.4 for cagrad).
        rho: Radius of each task's ascent step (authors: 0.05 for the plain step, 2 in their scripts for the
            adaptive one); 0 is the base method alone.
        adaptive: Scale the step per parameter (ASAM): rho theta^2 g / |theta g|.
        local: Share b of the task's own gradient in its ascent along (1 - b) g0 + b |g0| g_t / |g_t|, with g0
            the mean gradient: the joint perturbation of SAMO (ICCV 2025). 1 is FS-MTL's.
        moved_only: Return base(G + H) instead: the base combines the gradients at the moved parameters alone,
            as SAMO's code does (base `fairgrad`, rho 0.001 and b 0.5 in most of its scripts).

    Deviation from the authors' code: the default step is the plain one. SAMO's code normalises g_t in each
    parameter tensor by itself and estimates it from differences of losses; here it is exact. For a base that
    ignores the gradients' scale (nash_mtl) the flatness part is as long as the other, however small rho is.
    `combine` raises for rho > 0, because one Jacobian holds no gradients elsewhere; use `direction`.
    """

    name = "fs_mtl"
    papers = ("phan2025flat", "ban2025samo")
    credit = "The second paper is that of the option `local`."

    def __init__(
        self,
        *,
        num_tasks: int,
        base: str = "cagrad",
        base_options: Mapping[str, Any] | None = None,
        rho: float = 0.05,
        adaptive: bool = False,
        local: float = 1.0,
        moved_only: bool = False,
    ) -> None:
        super().__init__(num_tasks=num_tasks)
        self.rho = check_number("rho", rho, low=0.0)
        self.adaptive = check_flag("adaptive", adaptive)
        self.local = check_number("local", local, low=0.0, high=1.0)
        self.moved_only = check_flag("moved_only", moved_only)
        # Neither the sum of two optimisers' steps nor the losses of a difference have a meaning.
        parts = [make_base(self.name, base, base_options, num_tasks, meets=("reads_losses",)) for _ in "GH"]
        self.loss_part, self.flat_part = parts
        forward_requirements(self, self.loss_part)
        # The gradients, offsets, ascended gradients and, but for `moved_only`, their difference.
        self.jacobians = 1 if self.rho == 0.0 else 4 - self.moved_only
        self.needs = "gradients at moved parameters" if self.rho > 0.0 else ""

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        with self.loss_part.unchecked():  # `combine` has checked the same gradients
            return self._of_losses(jacobian, losses)

    def direction(self, jacobian_at: JacobianAt) -> Tensor:
        """Return base(G) + base(H) [P], or base(G + H); task heads ascend too."""
        gradients = jacobian_at()
        losses = jacobian_at.losses
        if self.rho == 0.0:
            return self._of_losses(gradients, losses)
        values, their_gradients = jacobian_at.heads
        # Shared parameters and heads ascend by rho each: the sharpness is that of both.
        pull = self._joint(gradients)
        ascent = self._ascent(pull, jacobian_at.parameters), self._ascent(their_gradients, values)
        ascended = jacobian_at(offset=torch.cat(ascent, dim=1))  # may raise, so it comes before a base moves
        if self.moved_only:
            return self._of_losses(ascended, losses)
        return self._of_losses(gradients, losses) + self.flat_part.combine(ascended - gradients, losses)

    def _of_losses(self, gradients: Tensor, losses: Tensor | None) -> Tensor:
        """Return the base's direction [P] for G, or G + H; its weights are those of this method."""
        combined = self.loss_part.combine(gradients, losses)
        self.last_weights.copy_(self.loss_part.last_weights)
        return combined

    def metrics(self) -> dict[str, Tensor]:
        """Return the base's metrics for the gradients and, prefixed by `flat_`, for the sharpness part."""
        if self.moved_only or self.rho == 0.0:  # there is no sharpness part
            return self.loss_part.metrics()
        flat = {f"flat_{key}": value for key, value in self.flat_part.metrics().items()}
        return {**self.loss_part.metrics(), **flat}

    def _joint(self, gradients: Tensor) -> Tensor:
        """Return each task's ascent direction [T, P]: its own gradient, or a mix with the mean gradient."""
        if self.local == 1.0:
            return gradients
        mean = gradients.mean(dim=0)
        scale = lengths_of(mean.unsqueeze(0)) * one_over(lengths_of(gradients))
        largest = torch.finfo(gradients.dtype).max
        own = gradients * scale.clamp(max=largest).to(gradients.dtype).unsqueeze(-1)
        return torch.lerp(mean.expand_as(own), own, self.local)

    def _ascent(self, gradients: Tensor, parameters: Tensor) -> Tensor:
        """Return the step [T, n] of each task along its gradient [T, n]; parameters are [n] or [T, n]."""
        if gradients.shape[1] == 0:  # no heads
            return gradients
        scaled = gradients * parameters.abs() if self.adaptive else gradients
        scale = self.rho * one_over(lengths_of(scaled))
        ascent = scaled * parameters.abs() if self.adaptive else gradients
        return ascent * scale.clamp(max=torch.finfo(ascent.dtype).max).to(ascent.dtype).unsqueeze(-1)
