"""DropGrad: noise on every task's gradient before another method combines them."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_choice, check_count, check_number
from mtrl.combiners._families import Wrapper
from mtrl.combiners._random import int32s
from mtrl.combiners.base import LossCombiner
from mtrl.combiners.solvers.gramian import column_blocks, weighted_sum

_BITS_OF_ONE = 0x3F800000  # 1.0 in float32
_LARGEST = 1.0 - 2.0**-24  # of the float32 numbers below 1


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
        schedule: `constant`, or `linear`: the rate, or the deviation of normal noise, is 0 in the first
            update and whole from `ramp` updates later on.
        ramp: Updates over which a linear schedule grows (authors' code: all epochs of the training).

    An update forms its T P numbers from P + T hashes of a counter in the state. Normal numbers end at 5.3
    standard deviations.
    """

    name = "dropgrad"
    papers = ("tseng2020dropgrad",)
    credit = "The paper treats meta-learning; noise on the gradients of tasks is this project's use of it."

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
        if not (isinstance(self.base, LossCombiner) and self.base.combines_by_weights):
            self.jacobians = 1 + self.base.jacobians  # the gradients, and what the base makes of noisy ones

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        if self.rate == 0.0:
            with self.base.unchecked():  # `combine` has checked the same gradients
                direction = self.base.combine(jacobian, losses)
        elif isinstance(self.base, LossCombiner) and self.base.combines_by_weights:
            # The base's weights are known first, so noisy gradients are summed by blocks: the first use of
            # memory for all of them would take longer than the noise.
            given = losses if losses is not None else jacobian.new_ones(self.num_tasks)
            weights = self.base.weights(given)
            direction = torch.empty_like(jacobian[0])
            for columns, noisy in self._noisy_blocks(jacobian):
                direction[columns] = weighted_sum(weights, noisy)
        else:
            noisy = torch.empty_like(jacobian)
            for columns, block in self._noisy_blocks(jacobian):
                noisy[:, columns] = block
            direction = self.base.combine(noisy, losses)
        self.step.add_(1)
        self.last_weights.copy_(self.base.last_weights)
        return direction

    def _noisy_blocks(self, jacobian: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield the columns and the noisy gradients of each block of columns."""
        grown = torch.ones_like(self.step, dtype=torch.float64)
        if self.schedule == "linear":
            grown = (self.step.to(torch.float64) / self.ramp).clamp(max=1.0)
        kept = 1.0 - self.rate * grown
        # Of the 2^32 numbers that can be drawn those below this one keep an entry.
        bound = (kept * 2.0**32 - 2.0**31).clamp(max=2.0**31 - 1.0).to(torch.int32)
        inverse = kept.reciprocal().to(jacobian.dtype)
        # A hash per column times an odd hash per row, modulo 2^32: hashing every entry takes a hundred times
        # as long as the mean. Within a row the numbers are as independent as the hashes of the columns.
        own = -torch.arange(1, len(jacobian) + 1, dtype=torch.int64, device=jacobian.device)
        factors = int32s(own, self.step, self.stream).unsqueeze(-1) | 1
        for columns in column_blocks(jacobian):
            keys = torch.arange(columns.start + 1, columns.stop + 1, device=jacobian.device)
            drawn = int32s(keys, self.step, self.stream) * factors
            if self.kind == "binary":
                # 1 where an entry stays: written as the bits of 1.0, the integers need no conversion.
                noise = drawn.lt_(bound).mul_(_BITS_OF_ONE).view(torch.float32)
                yield columns, (jacobian[:, columns] * noise).mul_(inverse).to(jacobian.dtype)
            else:  # sqrt(2) erfinv of uniform numbers on (-1, 1) is normal
                uniform = drawn.float().mul_(2.0**-31).clamp_(-_LARGEST, _LARGEST)
                deviation = grown * math.sqrt(self.rate / (1.0 - self.rate))
                noise = uniform.erfinv_().mul_((math.sqrt(2.0) * deviation).float()).add_(1.0)
                yield columns, (jacobian[:, columns] * noise).to(jacobian.dtype)
