"""The parameters of one network in one vector, and their views by name. Knows no SAC."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Slot(NamedTuple):
    """Where one parameter lies in the vector."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    own_row: bool  # shape [S, T, ...], of which task t uses row t alone

    def joint(self, vector: Tensor) -> Tensor:
        """View of this parameter in a vector [P], of its shape."""
        return vector[self.start : self.stop].view(self.shape)

    def per_task(self, rows: Tensor) -> Tensor:
        """View of this parameter in rows [T, P]: [T, *shape], or [T, S, ...] where each task has a row."""
        view = rows[:, self.start : self.stop].view(-1, *self.shape)
        return view.diagonal(dim1=0, dim2=2).movedim(-1, 0) if self.own_row else view


class FlatParameters(nn.Module):
    """Named parameters of one network in one vector [P + H]: P shared first, then H of the task heads.

    `own_rows` names shared parameters of shape [S, T, ...], such as an embedding of the task identity, of
    which task t's loss uses row t alone; a loss sees their per-task form as [T, S, ...].
    """

    def __init__(
        self,
        shared: Mapping[str, Tensor],
        heads: Mapping[str, Tensor] | None = None,
        own_rows: Collection[str] = (),
    ) -> None:
        super().__init__()
        heads = heads or {}
        self._slots: list[Slot] = []
        start = 0
        for name, value in [*shared.items(), *heads.items()]:
            stop = start + value.numel()
            self._slots.append(Slot(name, tuple(value.shape), start, stop, name in own_rows))
            start = stop
        self.shared_slots = self._slots[: len(shared)]
        self.head_slots = self._slots[len(shared) :]
        self.num_shared = sum(value.numel() for value in shared.values())
        self.vector = nn.Parameter(
            torch.cat([v.detach().flatten() for v in [*shared.values(), *heads.values()]])
        )

    def named(self, vector: Tensor | None = None) -> dict[str, Tensor]:
        """Views of `vector` (default: the parameters, detached) under their names; shared ones are joint."""
        source = self.vector.detach() if vector is None else vector
        return {slot.name: slot.joint(source) for slot in self._slots}
