"""Finished runs to compare with."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from filelock import FileLock

from mtrl import train
from mtrl.training.events import Event, TrainResult
from tests.helpers.short_runs import counting


class Finished(NamedTuple):
    """A run of `counting()` that nothing happened to."""

    path: Path
    result: TrainResult
    events: list[Event]


@pytest.fixture(scope="session")
def finished(shared_folder: Path) -> Finished:
    """Made once for all processes of the session; to be read only."""
    return _made_once(shared_folder / "finished", steps=60)


@pytest.fixture(scope="session")
def undisturbed(finished: Finished) -> Path:
    """The directory of `finished`; to be read only."""
    return finished.path


@pytest.fixture(scope="session")
def first_half(shared_folder: Path) -> Path:
    """A run that was to end, and did, after half the steps of `finished`; to be read only."""
    return _made_once(shared_folder / "half", steps=30).path


@pytest.fixture
def half(first_half: Path, tmp_path: Path) -> Path:
    """A copy of `first_half`."""
    return Path(shutil.copytree(first_half, tmp_path / "half"))


def _made_once(folder: Path, steps: int) -> Finished:
    folder.mkdir(exist_ok=True)
    made = folder / "finished.pickle"
    with FileLock(folder / "lock"):
        if not made.exists():
            events: list[Event] = []
            result = train(counting(steps=steps), folder / "run", callbacks=[events.append])
            made.write_bytes(pickle.dumps(Finished(folder / "run", result, events)))
    found: Finished = pickle.loads(made.read_bytes())
    return found
