"""A curriculum over transitions: batches take those of small TD error first."""

from typing import Any

import torch
from torch import Tensor

_LARGEST_SHARE = 0.99  # the hardest 1 % of a task's transitions are never drawn (Data-CUBE filters them)
_SAMPLED = 4096  # transitions of a task, at most, whose errors give the bound
_CANDIDATES, _MORE = 4, 16  # candidates per place of a batch, and further ones; at least half are admitted


def spread(size: int, device: torch.device) -> Tensor:
    """Return at most 4,096 slots below `size`, about evenly spaced but in no period.

    Slots lie in the order of time, copies side by side. A constant stride could meet the same steps of all
    episodes, or one copy alone.
    """
    if size <= _SAMPLED:
        return torch.arange(size, device=device)
    # Multiples of the golden ratio modulo 1: even for every number of points, and the gaps never repeat.
    ratio = (5.0**0.5 - 1.0) / 2.0
    places: Tensor = torch.arange(_SAMPLED, dtype=torch.float64, device=device).mul_(ratio).frac_()
    return places.mul_(size).long()


class Curriculum:
    """Admits the transitions of each task whose |TD error| is at most a quantile of the task's errors.

    After Data-CUBE, Min et al., ACL Findings 2024 (arXiv:2401.03563, of which only the abstract could be
    read): instances come from easy to hard, and the hardest never. Ours are the measure (theirs is
    contrastive) and the schedule: the quantile rises from `start` to 1 over a run, but not above 0.99. A
    transition keeps the error of the update that drew it last. One that no update has drawn is admitted.

    Args:
        num_tasks: T.
        capacity: C, slots per task.
        start: quantile at the start of a run, in [0.5, 1).
        device: of the errors.
    """

    def __init__(self, *, num_tasks: int, capacity: int, start: float, device: torch.device) -> None:
        self._start = start
        self._errors = torch.zeros(num_tasks, capacity, device=device)  # 0: not known
        self.share = start

    def advance(self, progress: float) -> None:
        """Set the quantile for `progress` in [0, 1], the fraction of the run that is over."""
        self.share = min(self._start + (1.0 - self._start) * progress, _LARGEST_SHARE)

    def bound(self, size: int) -> Tensor:
        """Return the largest admitted error [T, 1] among `size` transitions."""
        known = self._errors[:, spread(size, self._errors.device)]
        return torch.quantile(known, self.share, dim=1, keepdim=True, interpolation="lower")

    def draw(self, index: Tensor, size: int, generator: torch.Generator) -> Tensor:
        """Overwrite index [T, B] with admitted slots below `size`, drawn uniformly, and return it."""
        # A fixed number of candidates, of which the first admitted ones are taken: the host reads nothing.
        # Should too few be admitted, which happens once in 1e6 batches of one transition and less often in
        # larger ones, harder transitions fill up the batch.
        tasks, batch = index.shape
        drawn = torch.randint(
            size, (tasks, _CANDIDATES * batch + _MORE), generator=generator, device=index.device
        )
        hard = self._errors.gather(1, drawn) > self.bound(size)
        first = torch.argsort(hard.to(torch.int8), dim=1, stable=True)[:, :batch]
        return index.copy_(drawn.gather(1, first))

    def note(self, index: Tensor, errors: Tensor, tasks: Tensor | None = None) -> None:
        """Remember errors [N, B] of `tasks` [N] (None: all tasks) for the slots in index [T, B].

        If a slot was drawn twice, the larger error counts.
        """
        if tasks is None:
            tasks = torch.arange(len(index), device=index.device)
        # In a flat view: indexing by tasks would write to a copy.
        slots = (index[tasks] + tasks.unsqueeze(1) * self._errors.shape[1]).flatten()
        self._errors.view(-1).scatter_reduce_(0, slots, errors.flatten(), "amax", include_self=False)

    def forget(self, slots: Tensor) -> None:
        """Admit the slots of an index [E], which hold new transitions."""
        self._errors.index_fill_(1, slots, 0.0)

    def state(self, size: int) -> dict[str, Any]:
        """Return what `load_state` takes."""
        return {"errors": self._errors[:, :size], "share": self.share}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up `state`."""
        errors = state["errors"]
        self._errors[:, : errors.shape[1]] = errors.to(self._errors.device)
        self.share = state["share"]
