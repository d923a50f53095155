"""Errors that a user can act on: the message says what was expected, what was found and what to do."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class UserError(ValueError):
    """A mistake in flags, presets, paths or the machine; printed without a traceback, exit code 2."""


class RunInUse(UserError):
    """Another process works on the run directory."""


class OtherConfiguration(UserError):
    """A checkpoint was written with other settings than those it is read with."""


class NonFiniteError(RuntimeError):
    """A non-finite action, observation, reward, loss or gradient; names the tasks, exit code 1."""


class Diverged(NonFiniteError):
    """Numbers are finite but out of range, and `train.on_divergence` is "stop"."""


class EnvironmentFailure(RuntimeError):
    """An environment worker died, raised or stopped answering; names worker and task, exit code 75.

    Attributes:
        step_result: what `step_wait` would have returned, lost rows marked, if a step was under way.
    """

    step_result: Any = None


def unknown_name(kind: str, found: str, valid: Iterable[str]) -> str:
    """Return the message for a name outside `valid`: the nearest valid name, then all, if any."""
    names = sorted(valid)
    listed = f" Valid: {', '.join(names)}." if names else ""
    return f"unknown {kind} '{found}'.{did_you_mean(found, names)}{listed}"


def did_you_mean(found: str, valid: Iterable[str], cutoff: float = 0.5) -> str:
    """Return " Did you mean 'X'?", "" if no name in `valid` is near; if it is a mapping, X is the value."""
    by_folded = {name.casefold(): name for name in valid}
    near = difflib.get_close_matches(found.casefold(), by_folded, n=1, cutoff=cutoff)
    if not near:
        return ""
    name = by_folded[near[0]]
    meant = valid[name] if isinstance(valid, Mapping) else name
    return "" if meant == found else f" Did you mean '{meant}'?"
