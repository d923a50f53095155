"""Capture and side streams, by a stand-in for CUDA that counts streams and records nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch

from mtrl.device.cuda import WARM_UP_CALLS, GraphedStep, SideStream, Staging


class Accelerator:
    """Stands in for CUDA: counts streams, records nothing, and may call a capture invalid at its end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, valid: bool) -> None:
        self.valid, self.streams, self.capturing, self.allocating = valid, 0, False, False
        self.device: Any = None
        self.captured_on: list[Any] = []
        self.waits: list[Any] = []  # streams and events that some stream has waited for
        self.current: Any = "default"
        self.devices: list[Any] = []  # whose current streams were asked for
        accelerator = self

        class Stream:
            def __init__(self, device: Any = None) -> None:
                accelerator.streams += 1

            def wait_stream(self, other: Any) -> None:
                accelerator.waits.append(other)

            def wait_event(self, event: Any) -> None:
                accelerator.waits.append(event)

        class Default(Stream):
            def __init__(self) -> None:
                pass

        default = Default()
        self.current = default

        @contextmanager
        def stream(other: Any) -> Iterator[None]:
            before, self.current = self.current, other
            yield
            self.current = before

        @contextmanager
        def device(chosen: Any) -> Iterator[None]:
            self.device = chosen
            yield
            self.device = None

        class Event:
            def record(self, stream: Any) -> None:
                self.stream = stream

        class Graph:
            def replay(self) -> None:
                pass

        class Capture:
            def __init__(self, graph: Any, *, stream: Any = None, **_: Any) -> None:
                self.stream = stream if stream is not None else Stream()

            def __enter__(self) -> None:
                accelerator.captured_on.append(accelerator.device)
                accelerator.current = self.stream
                accelerator.capturing = accelerator.allocating = True

            def __exit__(self, *_: Any) -> None:
                accelerator.capturing = False
                if not accelerator.valid:  # as PyTorch: neither allocator nor stream are put back
                    raise RuntimeError("operation failed due to a previous error during capture")
                accelerator.allocating = False
                accelerator.current = default

        def end(*_: Any) -> None:
            self.allocating = False

        def set_stream(chosen: Any) -> None:
            self.current = chosen

        for name, fake in {
            "Event": Event, "Stream": Stream, "stream": stream, "device": device, "CUDAGraph": Graph,
            "graph": Capture, "current_stream": self.asked, "set_stream": set_stream,
            "synchronize": lambda device=None: None, "graph_pool_handle": lambda: (0, 1),
            "current_device": lambda: 1,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda *_: None, raising=False)
        self.default = default

    def asked(self, device: Any = None) -> Any:
        self.devices.append(device)
        return self.current


def test_copies_are_waited_for_on_their_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator, zeros = Accelerator(monkeypatch, valid=True), torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *sizes, pin_memory=False, **options: zeros(*sizes, **options))
    place = mock.Mock(is_cuda=True, shape=(2,), dtype=torch.float32, device=torch.device("cuda:1"))
    staging = Staging(place)
    staging.send()
    assert accelerator.devices == [torch.device("cuda:1")]


def test_a_failed_capture_says_why_and_leaves_stream_and_allocator_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accelerator, calls = Accelerator(monkeypatch, valid=False), []

    def step() -> int:
        if accelerator.capturing:
            raise RuntimeError("the step reads the host")
        calls.append(1)
        return len(calls)

    graphed = GraphedStep(step, torch.device("cuda:1"), what="counting")
    with pytest.warns(RuntimeWarning, match="counting cannot be captured .* the step reads the host"):
        results = [graphed() for _ in range(WARM_UP_CALLS + 2)]
    assert results == list(range(1, WARM_UP_CALLS + 3))
    assert not accelerator.allocating
    assert accelerator.current is accelerator.default


def test_a_mistake_in_a_captured_step_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = Accelerator(monkeypatch, valid=False)

    def step() -> None:
        if accelerator.capturing:
            raise TypeError("a mistake")

    graphed = GraphedStep(step, torch.device("cuda:1"), what="counting")
    for _ in range(WARM_UP_CALLS):
        graphed()
    with pytest.raises(TypeError, match="a mistake"):
        graphed()
    assert not accelerator.allocating


def test_warm_up_and_capture_share_one_stream_and_capture_on_the_steps_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accelerator = Accelerator(monkeypatch, valid=True)
    device = torch.device("cuda:1")
    graphed = GraphedStep(lambda: None, device, what="counting")
    for _ in range(WARM_UP_CALLS + 2):
        graphed()
    assert accelerator.streams == 1
    assert accelerator.captured_on == [device]
    assert graphed._captured


def test_work_beside_the_updates_waits_for_what_came_before_the_mark_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accelerator = Accelerator(monkeypatch, valid=True)
    beside = SideStream(torch.device("cuda:1"))
    with beside.use():
        own = accelerator.current
    assert own is not accelerator.default
    assert accelerator.waits == [accelerator.default]  # nothing is marked: for all that came before
    beside.mark()
    for _ in range(2):
        with beside.use():
            assert accelerator.current is own
    event = accelerator.waits[1]
    assert event.stream is accelerator.default
    assert accelerator.waits[1:] == [event, event]
    assert accelerator.current is accelerator.default
