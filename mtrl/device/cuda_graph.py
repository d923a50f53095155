"""A step on tensors that stay in place: on CUDA captured as a graph and replayed, elsewhere just called."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

Result = TypeVar("Result")

WARM_UP_CALLS = 3  # eager calls before the capture: libraries load, optimisers make their state


class GraphedStep(Generic[Result]):
    """Calls `step()` and returns its result; on CUDA from the fourth call on by replaying a graph of it.

    What changes from call to call, random numbers included, must be written into the step's tensors before
    it. Where a capture fails the step stays eager, with one warning: the results are the same. Tensors in the
    result of a replayed step are those of the capture, which each replay overwrites.

    Args:
        step: reads and writes tensors of `device` that keep their place, and nothing on the host.
        device: where the step runs.
        what: names the step in the warning.
        capturable: False where `step` is known to read back to the host: it stays eager without a warning.
    """

    def __init__(
        self, step: Callable[[], Result], device: torch.device, *, what: str, capturable: bool = True
    ) -> None:
        self._step, self._device, self._what = step, device, what
        self._eager = device.type != "cuda" or not capturable
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._captured: Result  # what the step returned while it was captured

    def __call__(self) -> Result:
        """Run the step once, on the current stream."""
        if self._eager:
            return self._step()
        if self._graph is not None:
            self._graph.replay()
            return self._captured
        if self._calls < WARM_UP_CALLS:
            self._calls += 1
            return self._on_another_stream()
        self._capture()
        return self()

    def _on_another_stream(self) -> Result:
        # As CUDA asks before a capture, so that nothing of the step is bound to the default stream.
        current, other = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)
        other.wait_stream(current)
        with torch.cuda.stream(other):
            result = self._step()
        current.wait_stream(other)
        return result

    def _capture(self) -> None:
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        try:
            # Other threads (the logger's) may talk to CUDA meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._captured = self._step()
        except RuntimeError as error:
            torch.cuda.set_stream(current)  # a failed capture may leave its own stream behind
            torch.cuda.synchronize(self._device)
            self._eager = True
            reason = str(error).splitlines()[0]
            text = f"{self._what} cannot be captured as a CUDA graph and runs eagerly: {reason}"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        else:
            self._graph = graph
