"""DropGrad: noise on every task's gradient before another method combines them."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_choice, check_count, check_number
from mtrl.combiners._families import Wrapper
from mtrl.combiners._state import normals, uniform


class DropGrad(Wrapper):
    """DropGrad (gradient dropout): entries of the task gradients are multiplied by noise of mean 1.

    Tseng et al., ACCV 2020 (arXiv:2004.05859): n g replaces g, with n Bernoulli(1 - rate) / (1 - rate), or
    normal with mean 1 and variance rate / (1 - rate). The paper treats inner-loop gradients of meta-learning;
    here every entry of the Jacobian gets its own n, before the base method.

    Args:
        base: Name of the method that combines the noisy gradients.
        rate: Probability that an entry is dropped; it also sets the normal noise's variance (paper: 0.1 to
            0.2).
        kind: `binary` drops entries, `gaussian` multiplies them by normal numbers.
        schedule: `constant`, or `linear` from 0 in the first update to `rate` in update `ramp`.
        ramp: Updates over which a linear schedule grows.

    An update draws T P numbers from a counter in the state. Where the paper's linear schedule begins and ends
    could not be verified.
    """

    name = "dropgrad"
    jacobians = 4  # the gradients, the noise as int64 bits and in their dtype

    def __init__(
        self,
        *,
        num_tasks: int,
        base: str = "mean",
        base_options: Mapping[str, Any] | None = None,
        rate: float = 0.1,
        kind: Literal["binary", "gaussian"] = "binary",
        schedule: Literal["constant", "linear"] = "constant",
        ramp: int = 10_000,
    ) -> None:
        super().__init__(num_tasks=num_tasks, base=base, base_options=base_options)
        self.rate = check_number("rate", rate, low=0.0, high=0.99)  # 1 would drop everything
        check_choice("kind", kind, ("binary", "gaussian"))
        check_choice("schedule", schedule, ("constant", "linear"))
        self.kind, self.schedule = kind, schedule
        self.ramp = check_count("ramp", ramp)
        self.step = nn.Buffer(torch.zeros(1, dtype=torch.int64))

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        if self.rate > 0.0:
            jacobian = jacobian * self._noise(jacobian.numel()).view_as(jacobian).to(jacobian.dtype)
        direction = self.base.combine(jacobian, losses)
        self.last_weights.copy_(self.base.last_weights)
        return direction

    def _noise(self, count: int) -> Tensor:
        rate = torch.full_like(self.step, self.rate, dtype=torch.float64)
        if self.schedule == "linear":
            rate = rate * (self.step / self.ramp).clamp(max=1.0)
        kept = 1.0 - rate
        if self.kind == "binary":
            noise = (uniform(count, self.step, self.stream) < kept) / kept
        else:
            noise = 1.0 + (rate / kept).sqrt() * normals(count, self.step, self.stream)
        self.step.add_(1)
        return noise
