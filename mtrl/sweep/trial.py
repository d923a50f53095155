"""One trial as it runs in a worker of Ray: an ordinary run, started or resumed in this process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from mtrl.config.presets import build_config
from mtrl.errors import EnvironmentFailure, NonFiniteError, UserError

Outcome = Literal["done", "again", "failed"]


class Result(NamedTuple):
    """How an attempt at a trial ended; sent to the driver, so plain values only."""

    outcome: Outcome  # again: stopped or broken by its surroundings, the next attempt goes on from there
    message: str


def run_trial(config: dict[str, object], path: str, log: str, folder: str) -> Result:
    """Start the run in `path`, or continue it from its newest checkpoint, until it ends.

    In this process, not in one of its own: what kills the worker (a lost node, a killed driver) then also
    frees the run's lock, and no orphan trains beside the next attempt.

    Args:
        config: as `config_to_dict` gives it.
        path: run directory, on a file system that all nodes share.
        log: file that what the run prints is appended to.
        folder: the driver's working directory, which a user's own parts may be named from.
    """
    os.chdir(folder)
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8", buffering=1) as file, _printing_to(file.fileno()):
        from mtrl.training.run import resume_or_start

        try:
            result = resume_or_start(build_config(config), path)
        except EnvironmentFailure as error:
            return Result("again", str(error))
        except NonFiniteError as error:
            return Result("failed", str(error))
        except UserError as error:
            # The attempt before may still be writing its last checkpoint.
            return Result("again" if "is in use by" in str(error) else "failed", str(error))
    if result.exit_code:
        return Result("again", f"stopped at vector step {result.steps:,} (exit code {result.exit_code})")
    return Result("done", f"{result.steps:,} vector steps")


@contextlib.contextmanager
def _printing_to(descriptor: int) -> Iterator[None]:
    """Send standard output and error, those of child processes too, to a file; afterwards back."""
    kept = [(stream, os.dup(stream)) for stream in (1, 2)]
    try:
        for stream, _ in kept:
            os.dup2(descriptor, stream)
        yield
    finally:
        for stream, before in kept:
            os.dup2(before, stream)
            os.close(before)
