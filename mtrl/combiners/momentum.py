"""Momentum before combining: a method on running means of the task gradients."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_decay
from mtrl.combiners._families import Wrapper


class Momentum(Wrapper):
    """Momentum: the base method combines running means of the tasks' gradients.

    After GCond (Limarenko and Studenikina, 2025, arXiv:2509.07252), which accumulates gradients before it
    arbitrates between them: a mean over updates has less noise, so fewer conflicts come from the noise of
    one batch.

    Args:
        base: Name of the method that combines the means.
        base_options: Arguments of the base method.
        decay: Share of the means that one update keeps (0.9 is ours); 0 is the base method. The means are
            corrected for their zero start.

    The state is [T, P]. The base gets the losses unchanged. With an optimiser that has momentum, gradients
    are averaged twice. For a base that ignores the gradients' lengths, such as `nash_mtl`, the mean of a task
    whose gradients have become zero pulls at full strength, along the last of them, for hundreds of updates.
    """

    name = "momentum"
    papers = ("limarenko2025gcond",)
    credit = (
        "No paper describes this method: the paper accumulates gradients before it combines them in its "
        "own way."
    )
    row_state = ("average",)

    def __init__(
        self,
        *,
        num_tasks: int,
        base: str = "cagrad",
        base_options: Mapping[str, Any] | None = None,
        decay: float = 0.9,
    ) -> None:
        super().__init__(num_tasks=num_tasks, base=base, base_options=base_options)
        self.decay = check_decay("decay", decay)
        self.jacobians = 1 + self.base.jacobians  # the gradients, and what the base makes of their means
        self.average: Tensor
        self.share = nn.Buffer(torch.zeros(1, dtype=torch.float64))  # of the means that is data

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        self.prepare(jacobian[0])
        self.average.lerp_(jacobian.to(self.average.dtype), 1.0 - self.decay)
        self.share.mul_(self.decay).add_(1.0 - self.decay)
        average = self.average / self.share.to(self.average.dtype)
        with self.base.unchecked():  # no mean is longer than the longest gradient, and all were checked
            direction = self.base.combine(average.to(jacobian.dtype), losses)
        self.last_weights.copy_(self.base.last_weights)
        return direction
