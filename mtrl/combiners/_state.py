"""State of methods: buffers that can be reset, a learned vector, origins of losses.

Buffers are written in place, so that a checkpoint holds all state and a CUDA graph can be replayed over it.
Nothing here waits for the device.
"""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_choice
from mtrl.combiners.solvers.adam import take_step
from mtrl.combiners.solvers.gramian import HALF


class Stateful(nn.Module):
    """A module that remembers the first value of each buffer, so that `reset` can restore it.

    Assign buffers as `self.step = nn.Buffer(...)`, with at least one dimension: torch.compile loses changes
    of 0-dim float64 buffers. Buffers named in `row_state` and `vector_state` have one entry per parameter;
    `prepare` gives them their size, and they are zero at first.

    Args:
        rows: Number of rows of the buffers in `row_state`.
    """

    row_state: ClassVar[tuple[str, ...]] = ()  # names of buffers [rows, P]
    vector_state: ClassVar[tuple[str, ...]] = ()  # names of buffers [1, P]

    def __init__(self, rows: int = 1) -> None:
        super().__init__()
        self._first: dict[str, Tensor] = {}
        self._rows = dict.fromkeys(self.vector_state, 1) | dict.fromkeys(self.row_state, rows)
        for name, count in self._rows.items():
            self.register_buffer(name, torch.zeros(count, 0))

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Register a buffer and remember the value of its first registration."""
        with torch.inference_mode(False):  # whose tensors could not be written outside of it
            if tensor is not None and tensor.is_inference():
                tensor = tensor.clone()
            super().register_buffer(name, tensor, persistent)
            if tensor is not None and name not in self._rows:
                self._first.setdefault(name, tensor.detach().clone())

    def reset(self) -> None:
        """Restore the first values of all buffers, also of those in submodules."""
        for name, value in self._first.items():
            self.get_buffer(name).copy_(value)
        for name in self._rows:
            self.get_buffer(name).zero_()
        for module in self.nearest():
            module.reset()

    @property
    def keeps_rows(self) -> bool:
        """Whether there is state per parameter, here or in a submodule."""
        return any(module._rows for module in self.modules() if isinstance(module, Stateful))

    def _snapshot(self) -> Callable[[], None]:
        """Return a function that restores the present values of all buffers and counters.

        With state per parameter it restores nothing: a copy would be large, and restoring only the rest would
        leave the two inconsistent.
        """
        if self.keeps_rows:
            return lambda: None
        kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for buffer in self.buffers():
            kinds.setdefault((buffer.dtype, buffer.device), []).append(buffer)
        # One copy of all that are alike: a method in many blocks has hundreds of buffers.
        copies = [torch.cat([buffer.flatten() for buffer in kind]) for kind in kinds.values()]
        counts = [(counter, counter.counter) for counter in self.counters()]

        def put_back() -> None:
            for kind, copy in zip(kinds.values(), copies, strict=True):
                for buffer, part in zip(kind, copy.split([one.numel() for one in kind]), strict=True):
                    buffer.copy_(part.view_as(buffer))
            for counter, count in counts:
                counter.counter = count

        return put_back

    def nearest(self) -> "Iterator[Stateful]":
        """Yield the Stateful modules within this one, but not those within them: they pass calls on."""
        inner = list(self.children())
        while inner:
            module = inner.pop(0)
            if isinstance(module, Stateful):
                yield module
            else:
                inner += module.children()

    def prepare(self, parameters: Tensor) -> None:
        """Allocate `row_state` and `vector_state` with P, dtype and device of `parameters` [P].

        A method with such state calls this in its `_combine`; once allocated, the memory stays the same. For
        half precision the state is float32: in float16 squares of gradients of 1e-4 and Adam's eps vanish.
        """
        dtype = torch.float32 if parameters.dtype in HALF else parameters.dtype
        for name, rows in self._rows.items():
            state = self.get_buffer(name)
            if state.shape[1] == 0:
                with torch.inference_mode(False):  # whose tensors could not be written outside of it
                    zeros = torch.zeros(rows, parameters.numel(), dtype=dtype, device=parameters.device)
                self.register_buffer(name, zeros)
            elif state.shape[1] != parameters.numel():
                raise ValueError(
                    f"{type(self).__name__} keeps a state of {state.shape[1]} parameters; found "
                    f"{parameters.numel()}. Make one combiner per network, and a new one when you freeze "
                    "parameters."
                )
            elif state.dtype != dtype:
                raise ValueError(
                    f"{type(self).__name__} keeps a state of {state.dtype}; found gradients of {dtype}. "
                    f"Convert them, or move the state by `.to({dtype})`."
                )
        for module in self.nearest():
            module.prepare(parameters)

    def phases(self) -> tuple[int, ...]:
        """What the host decides about the next update; updates of equal phases are the same operations."""
        return tuple(phase for module in self.nearest() for phase in module.phases())

    def counters(self) -> "list[HostCounter]":
        """Return the counters of the host in this module and those within it."""
        return [module for module in self.modules() if isinstance(module, HostCounter)]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `.half()` and the like are meant for networks. A method's float64 state (sums, learned weights) and
        # its integers (counters, streams; `.type` would convert them) move to the new device but keep their
        # dtype; state per parameter follows the gradients', as in `prepare`.
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if old is None or new is None:
                continue
            if name in self._rows:
                if new.dtype in HALF:
                    self._buffers[name] = old.to(new.device, torch.float32)
            elif old.dtype in (torch.float64, torch.int64) and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A fresh instance does not know P before its state arrives. A state saved before the first step does
        # not hold P either: it has no columns and stands for zeros.
        for name in self._rows:
            saved, own = state_dict.get(prefix + name), self.get_buffer(name)
            if saved is not None and own.shape[1] == 0:
                self.register_buffer(name, torch.zeros_like(saved, device=own.device))
            elif saved is not None and saved.numel() == 0:
                state_dict[prefix + name] = torch.zeros_like(own)
        super()._load_from_state_dict(state_dict, prefix, *args)


class HostCounter(Stateful):
    """State on the host: one integer, `counter`, zero at first, that goes round with the updates.

    It decides what an update does, and so belongs to `phases`. The update calls `advance`. A CUDA graph that
    replays an update does not run this code; whoever replays it calls `advance`.
    """

    counter = 0

    def advance(self) -> None:
        """Go on to the next update."""
        raise NotImplementedError

    def reset(self) -> None:
        """Set the counter to zero, too."""
        super().reset()
        self.counter = 0

    def get_extra_state(self) -> Tensor:
        """Return the counter, for `state_dict`."""
        return torch.tensor(self.counter)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the counter from a `state_dict`."""
        self.counter = int(state)


def move_rows(state: Tensor, kept: Tensor, added: Tensor, rows: Tensor) -> None:
    """Set `state` [T, P] to `kept * state + added * rows` in place; `kept` is [1] and `added` [T].

    Entries of `added` above the dtype's largest number, such as one over a length of 1e-40, count as that.
    """
    largest = torch.finfo(state.dtype).max
    kept, added = kept.to(state.dtype), added.clamp(max=largest).to(state.dtype).unsqueeze(-1)
    state.mul_(kept).addcmul_(rows, added)


class Learned(Stateful):
    """A vector `value` [size], float64, zero at first, updated by Adam, whose state is in buffers too.

    Args:
        size: Length of the vector.
        lr: Learning rate.
        weight_decay: Share of `value` that is added to its gradient (L2 form).
    """

    def __init__(self, size: int, *, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__()
        self.lr, self.weight_decay = lr, weight_decay
        self.value = nn.Buffer(torch.zeros(size, dtype=torch.float64))
        self.first = nn.Buffer(torch.zeros(size, dtype=torch.float64))
        self.second = nn.Buffer(torch.zeros(size, dtype=torch.float64))
        self.step = nn.Buffer(torch.zeros(1, dtype=torch.float64))

    def update(self, gradient: Tensor) -> None:
        """Take one step against `gradient` [size], float64."""
        take_step(self.value, self.first, self.second, self.step, gradient, self.lr, self.weight_decay)


_LEAST = 1e-8  # what the authors of FAMO and of DB-MTL add under their logarithms


class LossOrigin(Stateful):
    """Losses as they are, or measured from the lowest value of each task so far, plus one: at least 1.

    A critic's losses, squared errors, need no shift; the authors of FAMO, UW, GradNorm and DB-MTL use none.
    "minimum" is ours, of no paper, for losses without a known lower bound, such as SAC's actor's. Its cost: a
    loss that only falls always measures 1, and so does one that never changes (see each method).

    Args:
        shift: "none" keeps losses, but at least 1e-8; "minimum" shifts them.
    """

    def __init__(self, num_tasks: int, shift: str) -> None:
        super().__init__()
        check_choice("shift", shift, ("none", "minimum"))
        self.shifts = shift == "minimum"
        if self.shifts:
            self.lowest = nn.Buffer(torch.full((num_tasks,), torch.inf, dtype=torch.float64))

    def forward(self, losses: Tensor) -> Tensor:
        """Return the measured losses [T], float64; a loss below the origin lowers it first."""
        losses = losses.detach()
        if not self.shifts:
            return losses.to(torch.float64).clamp(min=_LEAST)
        self.lower(losses)
        return (losses - self.lowest).add_(1.0)

    def lower(self, losses: Tensor) -> None:
        """Lower the origin to these losses [T] where they are below it."""
        if self.shifts:
            torch.minimum(self.lowest, losses.detach(), out=self.lowest)

    def logarithms(self, losses: Tensor) -> Tensor:
        """Return the logarithms of the measured losses [T], float64, none of which is below the origin."""
        losses = losses.detach()
        return (losses - self.lowest).log1p_() if self.shifts else self(losses).log_()
