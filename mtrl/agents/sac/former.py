"""Checkpoints of former versions: their entries in the form that `SACUpdate` reads now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

_FAILURES = ("actor.failures", "critic.failures")
# Rows of the former totals with their sign now, in the order of the present ones.
_ROWS = ((0, 1.0), (1, 1.0), (3, -1.0), (2, 1.0), (4, 1.0), (5, 1.0))
_ACTOR_NORMS = 6


def translated(update: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state dict of an update of this or a former version in the present form.

    The totals of a log line were `sums` and `counts` of [7, T] (critic loss, actor loss, value,
    entropy, temperature, gradient norms of critic and actor) and `norms` [2, 2]; now there is one row of
    sums and one of counts per number, with log-probabilities in place of entropies. Failed tasks were a
    buffer of each network; a checkpoint never holds one, because a failed update is not saved. The actor's
    average was plain: without `average_start` it goes on as it is.
    """
    now = {name: value for name, value in update.items() if name not in _FAILURES}
    if "averaged_actor" in now:
        now.setdefault("average_start", torch.zeros((), dtype=torch.float64))
    if "totals.counts" in now:
        sums, counts, norms = now.pop("totals.sums"), now.pop("totals.counts"), now.pop("totals.norms")
        pairs = [(sign * sums[row], counts[row]) for row, sign in _ROWS]
        wide = [tuple(part.expand_as(sums[0]) for part in network) for network in norms]
        pairs += [wide[0], (sums[_ACTOR_NORMS], counts[_ACTOR_NORMS]), wide[1]]
        now["totals.sums"] = torch.stack([row for pair in pairs for row in pair])
    return now
