"""Steps that CUDA replays as a graph, and copies between host and device. On a CPU both are plain calls."""

import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from mtrl.errors import UserError

Result = TypeVar("Result")
Between = Callable[[Callable[[], None]], None]  # takes a call that needs the host, in the middle of a step

WARM_UP_CALLS = 3  # eager calls before the capture, in which libraries load and optimisers make their state


class GraphedStep(Generic[Result]):
    """Calls `step(*key)` and returns its result; on CUDA, from a key's fourth call on, by replaying a graph.

    A graph repeats the kernels of its capture at the addresses of its capture, without running Python. So
    everything that changes from call to call, random numbers included, must be written into the step's
    tensors before the call. What the host decides is in the key: each key has a graph of its own. The step
    must not synchronise with the host (no `item`, no branch on a value, no copy from pageable memory), except
    through `between`. If a capture fails, the step stays eager with one warning and the same results. A
    replayed step returns what it returned in the capture; its tensors are overwritten by each replay of any
    key.

    Args:
        step: reads and writes tensors of `device` that keep their address, and nothing on the host.
        device: where the step runs.
        what: names the step in the warning.
        host_calls: takes `between` and returns a context, in which functions that need the host are passed to
            `between`.

    Attributes:
        eager: whether no call is captured or replayed; True also after a capture has failed.
    """

    def __init__(
        self,
        step: Callable[..., Result],
        device: torch.device,
        *,
        what: str,
        host_calls: Callable[[Between], AbstractContextManager[None]] | None = None,
    ) -> None:
        self._step, self._device, self._what = step, device, what
        self.eager = device.type != "cuda"
        self._host_calls = host_calls or (lambda _: nullcontext())
        self._calls: dict[tuple[Hashable, ...], int] = {}
        self._captured: dict[tuple[Hashable, ...], tuple[list[Callable[[], None]], Result]] = {}
        self._stream: torch.cuda.Stream | None = None
        # Graphs of one step never run at the same time: they may share the memory of what lies in between.
        self._pool: Any = None

    def __call__(self, *key: Hashable) -> Result:
        """Run the step once, on the current stream."""
        if self.eager:
            return self._step(*key)
        if key in self._captured:
            parts, result = self._captured[key]
            for part in parts:
                part()
            return result
        calls = self._calls[key] = self._calls.get(key, 0) + 1
        if calls <= WARM_UP_CALLS:
            return self._on_another_stream(key)
        self._capture(key)  # records the step without running it
        return self(*key)

    def _on_another_stream(self, key: tuple[Hashable, ...]) -> Result:
        # PyTorch requires warm-up on a side stream: autograd and libraries remember the stream of their first
        # use, and work on the default stream cannot be captured. The two waits keep the order of the calls.
        current, other = torch.cuda.current_stream(self._device), self._side_stream()
        other.wait_stream(current)
        with torch.cuda.stream(other):
            result = self._step(*key)
        current.wait_stream(other)
        return result

    def _side_stream(self) -> torch.cuda.Stream:
        # One for all warm-up calls and captures, because cuBLAS keeps a workspace of 32 MiB per stream.
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        return self._stream

    def _capture(self, key: tuple[Hashable, ...]) -> None:
        cause: Exception | None = None
        # A graph is captured on the current device, which need not be that of the step.
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            pool = self._pool = self._pool or torch.cuda.graph_pool_handle()
            capture = _Capture(pool, self._side_stream())
            try:
                capture.begin()
                try:
                    with self._host_calls(capture.between):
                        result = self._step(*key)
                except Exception as error:  # noqa: BLE001 - raised again below, after the capture has ended
                    cause = error
                capture.end()
            except RuntimeError as error:
                # An invalid capture cannot be ended either. Then PyTorch leaves its allocator in the capture
                # and the capture's stream current.
                cause = cause or error
                _stop_capturing_memory(pool)
                torch.cuda.set_stream(current)
        if cause is None:
            self._captured[key] = capture.parts, result
            return
        if not isinstance(cause, RuntimeError):
            raise cause
        torch.cuda.synchronize(self._device)
        self.eager = True
        reason = str(cause).splitlines()[0]
        text = f"{self._what} cannot be captured as a CUDA graph and runs eagerly: {reason}"
        warnings.warn(text, RuntimeWarning, stacklevel=2)


class _Capture:
    """Records a step as graphs and the calls of the host between them, to be run in this order."""

    def __init__(self, pool: Any, stream: torch.cuda.Stream) -> None:
        self._pool, self._stream = pool, stream
        self.parts: list[Callable[[], None]] = []

    def begin(self) -> None:
        graph = torch.cuda.CUDAGraph()
        # "thread_local", because other threads, such as the logger's, may use CUDA meanwhile.
        self._open = torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        )
        self._open.__enter__()
        self.parts.append(graph.replay)

    def end(self) -> None:
        self._open.__exit__(None, None, None)

    def between(self, call: Callable[[], None]) -> None:
        """End the graph, note the call, and begin the next graph."""
        self.end()
        self.parts.append(call)
        self.begin()


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


class SideStream:
    """A second CUDA stream. On a CPU its work is plain calls.

    Its work waits for what the current stream was given before the last `mark`; without a mark, for all it
    was given.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._mark: torch.cuda.Event | None = None

    def mark(self) -> None:
        """From now on let `use` wait for the current stream's work up to this point only."""
        if self._device.type == "cuda":
            self._mark = self._mark or torch.cuda.Event()
            self._mark.record(torch.cuda.current_stream(self._device))

    @contextmanager
    def use(self) -> Iterator[None]:
        """Make this the current stream for the block. The caller waits for its results."""
        if self._device.type != "cuda":
            yield
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        if self._mark is None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        else:
            self._stream.wait_event(self._mark)
        with torch.cuda.stream(self._stream):
            yield


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
            self._sent.record(self._stream())

    def wait(self) -> None:
        """Wait until the last `send` has read the host's tensor."""
        if self._sent is not None:
            self._sent.synchronize()

    def receive(self) -> None:
        """Copy from the device, and wait for the copy and all earlier work on the current stream."""
        if self._sent is not None:
            self.host.copy_(self._device_tensor, non_blocking=True)
            self._sent.record(self._stream())
            self._sent.synchronize()

    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self._device_tensor.device)  # which need not be the current device


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
