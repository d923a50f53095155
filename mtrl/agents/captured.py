"""An update of networks whose gradients are combined, as CUDA graphs."""

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import torch

from mtrl.combiners import Combiner
from mtrl.combiners.solvers.backends import handed_to
from mtrl.device.cuda import GraphedStep

Result = TypeVar("Result")


class CapturedUpdate(Generic[Result]):
    """Calls `step(*key)` and returns its result; on CUDA by replaying a graph (see `GraphedStep`).

    What the combiners decide on the host belongs to the key: each of their phases has a graph. Solves that a
    GPU leaves to the host divide a graph into several.

    Args:
        step: the update. It lets each combiner combine once at most.
        combiners: all that it uses.
        device: of its tensors.
    """

    def __init__(
        self, step: Callable[..., Result], combiners: Sequence[Combiner], device: torch.device
    ) -> None:
        self._step, self._combiners = step, combiners
        self._counters = [counter for combiner in combiners for counter in combiner.counters()]
        self._before = self._values()  # those of the update that is about to run
        self._graphed = GraphedStep(self._counted, device, what="the update", host_calls=handed_to)

    def __call__(self, *key: Hashable) -> Result:
        """Update once."""
        if self._graphed.eager:  # Python runs, and moves the counters itself
            return self._step(*key)
        self._before = self._values()
        phases = [phase for combiner in self._combiners for phase in combiner.phases()]
        result, moved = self._graphed(key, *phases)
        self._put_back()  # where they are after a replay, which runs no Python
        for counter, goes_on in zip(self._counters, moved, strict=True):
            if goes_on:
                counter.advance()
        return result

    def _counted(self, key: tuple[Hashable, ...], *phases: int) -> tuple[Result, list[bool]]:
        """Update, and return which counters moved: in an update of the same phases the same ones do."""
        # If a capture of this update has failed, its Python has run, up to anywhere in the update.
        self._put_back()
        for combiner in self._combiners:
            combiner.abandon_step()
        result = self._step(*key)
        return result, [new != old for new, old in zip(self._values(), self._before, strict=True)]

    def _put_back(self) -> None:
        for counter, value in zip(self._counters, self._before, strict=True):
            counter.counter = value

    def _values(self) -> list[int]:
        return [counter.counter for counter in self._counters]
