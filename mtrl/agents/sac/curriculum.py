"""Which transitions are drawn: of each task the easier ones first, by their last TD error."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_NEVER = 0.99  # share of a task's transitions beyond which the hardest are left out (Data-CUBE filters them)
_LOOKED_AT = 4096  # transitions of a task, evenly spaced, whose errors give the bound
_CANDIDATES, _MORE = 4, 16  # drawn for each transition of a batch, and beside: half or more are admitted


class Curriculum:
    """Easy transitions first: admits those of each task whose |TD error| is at most a quantile of the task's.

    After Data-CUBE, Min et al., ACL Findings 2024 (arXiv:2401.03563, of which only the abstract could be
    read): instances from easy to hard, the hardest never. Ours are the measure (theirs is contrastive) and
    the schedule: the quantile rises from `start` to 1 over a run, but not above 0.99. An error is the one at
    the update that drew the transition last; a transition that none has drawn is admitted. One that is too
    hard keeps its error until the quantile passes it.

    Args:
        num_tasks: T.
        capacity: C, slots per task.
        start: quantile at the start of a run, in [0.5, 1).
        device: where errors live.
    """

    def __init__(self, *, num_tasks: int, capacity: int, start: float, device: torch.device) -> None:
        self._start = start
        self._errors = torch.zeros(num_tasks, capacity, device=device)  # 0: not known
        self.share = start

    def advance(self, progress: float) -> None:
        """Set the quantile for `progress` in [0, 1] through the run."""
        self.share = min(self._start + (1.0 - self._start) * progress, _NEVER)

    def bound(self, size: int) -> Tensor:
        """The largest error admitted among `size` transitions, [T, 1]."""
        known = self._errors[:, : size : -(-size // _LOOKED_AT)]
        return torch.quantile(known, self.share, dim=1, keepdim=True, interpolation="lower")

    def draw(self, index: Tensor, size: int, generator: torch.Generator) -> Tensor:
        """Overwrite index [T, B] with slots below `size`, uniform among those admitted, and return it.

        Of four candidates for each place, and sixteen more, the first that are admitted: too few of them are
        once in 1e6 batches of one transition, and never to be seen in larger ones. Harder ones fill up then.
        """
        tasks, batch = index.shape
        drawn = torch.randint(
            size, (tasks, _CANDIDATES * batch + _MORE), generator=generator, device=index.device
        )
        hard = self._errors.gather(1, drawn) > self.bound(size)
        first = torch.argsort(hard.to(torch.int8), dim=1, stable=True)[:, :batch]
        return index.copy_(drawn.gather(1, first))

    def note(self, index: Tensor, errors: Tensor, tasks: Tensor | None = None) -> None:
        """Remember errors [N, B] of `tasks` [N] or of all, in slots [T, B]; of one drawn twice the larger."""
        if tasks is None:
            tasks = torch.arange(len(index), device=index.device)
        # Flat, as a table of some tasks' rows would be a copy.
        slots = index[tasks] + tasks.unsqueeze(1) * self._errors.shape[1]
        self._errors.view(-1).scatter_reduce_(
            0, slots.flatten(), errors.flatten(), "amax", include_self=False
        )

    def forget(self, first: int, number: int) -> None:
        """Admit what is written to a stretch of slots."""
        self._errors[:, first : first + number] = 0.0

    def state(self, size: int) -> dict[str, Any]:
        """Return what `load_state` takes."""
        return {"errors": self._errors[:, :size], "share": self.share}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up `state`."""
        errors = state["errors"]
        self._errors[:, : errors.shape[1]] = errors.to(self._errors.device)
        self.share = state["share"]
