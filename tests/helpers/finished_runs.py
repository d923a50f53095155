"""Finished runs to compare with, made once for all processes of a session."""

from __future__ import annotations

import fcntl
import pickle
from pathlib import Path
from typing import NamedTuple

from mtrl import train
from mtrl.training.events import Event, TrainResult
from tests.helpers.short_runs import counting


class Finished(NamedTuple):
    """A run of `counting()` that nothing happened to."""

    path: Path
    result: TrainResult
    events: list[Event]


def made_once(folder: Path, steps: int) -> Finished:
    folder.mkdir(exist_ok=True)
    made = folder / "finished.pickle"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            events: list[Event] = []
            result = train(counting(steps=steps), folder / "run", callbacks=[events.append])
            made.write_bytes(pickle.dumps(Finished(folder / "run", result, events)))
    found: Finished = pickle.loads(made.read_bytes())
    return found
