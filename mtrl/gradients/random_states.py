"""States of torch's random generators, so that a function can draw the same numbers again."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def random_states(device: torch.device) -> list[Tensor]:
    """Return the states of torch's generators: of the CPU and, if it is another one, of the device."""
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(device))
    return states


@contextmanager
def replayed(states: Sequence[Tensor], device: torch.device) -> Iterator[None]:
    """Draw random numbers from these states on; afterwards the generators continue from where they were."""
    on_cpu = device.type == "cpu"
    with torch.random.fork_rng([] if on_cpu else [device], device_type=device.type):
        torch.set_rng_state(states[0])
        if not on_cpu:
            torch.get_device_module(device).set_rng_state(states[1], device)
        yield
