"""Steps that CUDA replays as a graph, and copies between host and device. On a CPU both are plain calls."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from mtrl.errors import UserError

Result = TypeVar("Result")

WARM_UP_CALLS = 3  # eager calls before the capture, in which libraries load and optimisers make their state


class GraphedStep(Generic[Result]):
    """Calls `step()` and returns its result; on CUDA, from the fourth call on, by replaying a graph.

    A graph repeats the kernels of its capture at the addresses of its capture, without running Python. So
    everything that changes from call to call, random numbers included, must be written into the step's
    tensors before the call. The step must not synchronise with the host: no `item`, no branch on a value, no
    copy from pageable memory. If a capture fails, the step stays eager with one warning and the same results.
    A replayed step returns the tensors of the capture, which each replay overwrites.

    Args:
        step: reads and writes tensors of `device` that keep their address, and nothing on the host.
        device: where the step runs.
        what: names the step in the warning.
        capturable: False if `step` is known to synchronise with the host; it stays eager without a warning.
    """

    def __init__(
        self, step: Callable[[], Result], device: torch.device, *, what: str, capturable: bool = True
    ) -> None:
        self._step, self._device, self._what = step, device, what
        self._eager = device.type != "cuda" or not capturable
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream: torch.cuda.Stream | None = None
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
        self._capture()  # records the step without running it
        return self()

    def _on_another_stream(self) -> Result:
        # PyTorch requires warm-up on a side stream: autograd and libraries remember the stream of their first
        # use, and work on the default stream cannot be captured. The two waits keep the order of the calls.
        current, other = torch.cuda.current_stream(self._device), self._side_stream()
        other.wait_stream(current)
        with torch.cuda.stream(other):
            result = self._step()
        current.wait_stream(other)
        return result

    def _side_stream(self) -> torch.cuda.Stream:
        # One for all warm-up calls and the capture, because cuBLAS keeps a workspace of 32 MiB per stream.
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        return self._stream

    def _capture(self) -> None:
        graph, cause = torch.cuda.CUDAGraph(), None
        # A graph is captured on the current device, which need not be that of the step.
        with torch.cuda.device(self._device):
            current, pool = torch.cuda.current_stream(), torch.cuda.graph_pool_handle()
            try:
                # "thread_local", because other threads, such as the logger's, may use CUDA meanwhile.
                capture = torch.cuda.graph(
                    graph, pool=pool, stream=self._side_stream(), capture_error_mode="thread_local"
                )
                with capture:
                    try:
                        self._captured = self._step()
                    except Exception as error:  # noqa: BLE001 - raised again below, after the capture has ended
                        cause = error
            except RuntimeError as error:
                # An invalid capture cannot be ended either. Then PyTorch leaves its allocator in the capture
                # and the capture's stream current.
                cause = cause or error
                _stop_capturing_memory(pool)
                torch.cuda.set_stream(current)
        if cause is None:
            self._graph = graph
            return
        if not isinstance(cause, RuntimeError):
            raise cause
        torch.cuda.synchronize(self._device)
        self._eager = True
        reason = str(cause).splitlines()[0]
        text = f"{self._what} cannot be captured as a CUDA graph and runs eagerly: {reason}"
        warnings.warn(text, RuntimeWarning, stacklevel=2)


def _stop_capturing_memory(pool: tuple[int, int]) -> None:
    """Make the allocator of the current device stop allocating from the pool of a failed capture."""
    device = torch.cuda.current_device()
    # PyTorch before 2.8 calls the first function by the other name.
    for name in ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"):
        if (end := getattr(torch._C, name, None)) is not None:
            end(device, pool)
            break
    if (release := getattr(torch._C, "_cuda_releasePool", None)) is not None:
        release(device, pool)


@torch.no_grad()
def load_in_place(optimizer: torch.optim.Optimizer, saved: Mapping[Any, Mapping[str, Any]]) -> None:
    """Restore the "state" of an optimiser's state_dict, but not its parameter groups.

    Tensors that the optimiser has are overwritten where they are. `load_state_dict` would replace them, and a
    captured graph would continue with the old ones. New tensors are copies, which keep no file mapped. The
    parameter groups hold step sizes and flags of the device, which stay.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    own = {number: optimizer.state[p] for number, p in enumerate(parameters) if p in optimizer.state}
    if saved.keys() - own.keys():  # an optimiser without state, which no graph has captured
        optimizer.load_state_dict({**optimizer.state_dict(), "state": copy.deepcopy(dict(saved))})
        return
    for number, values in own.items():
        for name, value in values.items():
            new = saved.get(number, {}).get(name)
            if not isinstance(value, Tensor):
                values[name] = new
            elif new is None:  # saved before the first step
                value.zero_()
            else:
                value.copy_(new)


class Staging:
    """Pinned host counterpart of a device tensor for asynchronous copies; on the CPU the tensor itself.

    Attributes:
        host: tensor on the host, with the shape and dtype of the device tensor. Write to it only after
            `wait` or `receive`.
    """

    def __init__(self, device_tensor: Tensor) -> None:
        self._device_tensor = device_tensor
        self._sent: torch.cuda.Event | None = None
        if device_tensor.is_cuda:
            self.host = torch.zeros(device_tensor.shape, dtype=device_tensor.dtype, pin_memory=True)
            self._sent = torch.cuda.Event()
        else:
            self.host = device_tensor

    def send(self) -> None:
        """Start the copy to the device; later operations on the current stream see its result."""
        if self._sent is not None:
            self._device_tensor.copy_(self.host, non_blocking=True)
            self._sent.record()

    def wait(self) -> None:
        """Wait until the last `send` has read the host's tensor."""
        if self._sent is not None:
            self._sent.synchronize()

    def receive(self) -> None:
        """Copy from the device, and wait for the copy and all earlier work on the current stream."""
        if self._sent is not None:
            self.host.copy_(self._device_tensor, non_blocking=True)
            self._sent.record()
            self._sent.synchronize()


def resolve_device(name: str) -> torch.device:
    """Return the device of `auto`, `cpu` or `cuda`.

    Raises:
        UserError: `cuda` was asked for and torch finds no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda needs a CUDA GPU and a CUDA build of torch; found "
            f"torch {torch.__version__} without a usable GPU. Use --device auto or --device cpu."
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
