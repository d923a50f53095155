"""The processes that take a step together: all of them step or none does.

Every process makes the same collective calls in the same order.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from mtrl.gradients.task_jacobian import dense

Result = TypeVar("Result")


class Overflow(ArithmeticError):
    """A loss scale made a loss or a gradient non-finite: the step is to be skipped."""


class Processes:
    """The processes that take a step together: those of the default group, or this one alone.

    Args:
        distributed: whether there are others.
        device: of the numbers that they exchange.
    """

    def __init__(self, distributed: bool, device: torch.device) -> None:
        self.several, self._device = distributed, device
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        if distributed and not several:
            raise ValueError(
                "distributed=True needs a process group: call torch.distributed.init_process_group first."
            )
        if not distributed and several and torch.distributed.get_world_size() > 1:
            warnings.warn(
                f"a process group of {torch.distributed.get_world_size()} processes is there, but "
                "mtl_step was called with distributed=False: each process trains a model of its own.",
                RuntimeWarning,
                stacklevel=3,
            )

    def together(self, action: Callable[[], Result]) -> Result:
        """Return `action()`, unless it fails in any process: then it raises in all of them.

        A process whose action fails makes the same collective call as the others before it raises, so that
        none waits for ever.
        """
        if not self.several:
            return action()
        result: Result | None = None
        error: Exception | None = None
        try:
            result = action()
        except Exception as raised:  # noqa: BLE001 - whatever it is, the others must learn of it
            error = raised
        worst = torch.tensor(
            0 if error is None else 1 + (not isinstance(error, Overflow)), device=self._device
        )
        torch.distributed.all_reduce(worst, torch.distributed.ReduceOp.MAX)
        if int(worst) == 0:
            return result  # type: ignore[return-value]
        if int(worst) == 1:
            raise Overflow
        if error is None or isinstance(error, Overflow):
            raise RuntimeError("another process failed (see its error); no process has taken the step.")
        raise error

    def check_equal(self, **numbers: int) -> None:
        """Raise ValueError in all processes unless each number is the same in all of them."""
        if not self.several:
            return
        mine = torch.tensor(list(numbers.values()), device=self._device)
        bounds = torch.cat((mine, -mine))
        torch.distributed.all_reduce(bounds, torch.distributed.ReduceOp.MAX)
        largest, smallest = bounds.chunk(2)
        for name, high, low in zip(numbers, largest.tolist(), (-smallest).tolist(), strict=True):
            if high != low:
                raise ValueError(f"all processes must have the same {name}; found {low} to {high}.")

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it is set in any process."""
        if not self.several:
            return list(flags)
        found = torch.tensor(flags, dtype=torch.int64, device=self._device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return [bool(flag) for flag in found]

    def average_gradients(self, leaves: Sequence[Tensor]) -> None:
        """Replace `.grad` of tensors by its mean over the processes; a process that has none counts as 0."""
        if not self.several:
            return
        for leaf, found in zip(leaves, self.any(*(leaf.grad is not None for leaf in leaves)), strict=True):
            if found:
                own = torch.zeros_like(leaf) if leaf.grad is None else dense(leaf.grad)
                leaf.grad = self.mean(own)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the processes."""
        if not self.several:
            return values
        values = values.clone(memory_format=torch.contiguous_format)  # NCCL takes no others
        torch.distributed.all_reduce(values)
        return values / torch.distributed.get_world_size()
