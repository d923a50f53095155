"""What the driver is told and what it tells; a plan is shown without Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Resources(NamedTuple):
    """What each trial takes, and how many run at once at most; None: as many as fit."""

    cpus: float
    gpus: float
    parallel: int | None


class State(NamedTuple):
    """Names of the trials by what they are doing."""

    waiting: tuple[str, ...]
    running: tuple[str, ...]
    done: tuple[str, ...]
    failed: Mapping[str, str]  # with the reason
