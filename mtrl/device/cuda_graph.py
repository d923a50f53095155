"""A step on tensors that stay in place: on CUDA captured as a graph and replayed, elsewhere just called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch

from mtrl.runs import console

WARM_UP_CALLS = 3  # eager calls before the capture: libraries load, optimisers make their state


class GraphedStep:
    """Calls `step()`; on CUDA from the fourth call on by replaying a graph of it.

    What changes from call to call, random numbers included, must be written into the step's tensors before
    it. A step that takes one of several sequences of operations has a graph for each of these phases. Where a
    capture fails the step stays eager, with one warning: the results are the same.

    Args:
        step: reads and writes tensors of `device` that keep their place, and nothing on the host.
        device: where the step runs.
        what: names the step in the warning.
        capturable: False where `step` is known to read back to the host: it stays eager without a warning.
    """

    def __init__(
        self, step: Callable[[], None], device: torch.device, *, what: str, capturable: bool = True
    ) -> None:
        self._step, self._device, self._what = step, device, what
        self._eager = device.type != "cuda" or not capturable
        self._calls: Counter[int] = Counter()
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def __call__(self, phase: int = 0) -> None:
        """Run the step once, on the current stream.

        Args:
            phase: names the sequence of operations that the step will take.
        """
        if self._eager:
            self._step()
        elif phase in self._graphs:
            self._graphs[phase].replay()
        elif self._calls[phase] < WARM_UP_CALLS:
            self._calls[phase] += 1
            self._on_another_stream()
        else:
            self._capture(phase)
            self(phase)

    def _on_another_stream(self) -> None:
        # As CUDA asks before a capture, so that nothing of the step is bound to the default stream.
        current, other = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)
        other.wait_stream(current)
        with torch.cuda.stream(other):
            self._step()
        current.wait_stream(other)

    def _capture(self, phase: int) -> None:
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        # One phase runs after the other and leaves nothing behind in memory of its own: they can share it.
        pool = next((other.pool() for other in self._graphs.values()), None)
        try:
            # Other threads (the logger's) may talk to CUDA meanwhile.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self._step()
        except RuntimeError as error:
            torch.cuda.set_stream(current)  # a failed capture may leave its own stream behind
            torch.cuda.synchronize(self._device)
            self._eager = True
            reason = str(error).splitlines()[0]
            console.warning(f"{self._what} cannot be captured as a CUDA graph and runs eagerly: {reason}")
        else:
            self._graphs[phase] = graph
