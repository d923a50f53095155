"""The parameters of one network in one vector, and their places in it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Slice(NamedTuple):
    """Where one parameter lies in the vector."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    own_row: bool  # the shape is [S, T, ...], and task t uses row t alone

    def joint(self, vector: Tensor) -> Tensor:
        """View of this parameter, in its shape, in a vector [P]."""
        return vector[self.start : self.stop].view(self.shape)

    def per_task(self, rows: Tensor) -> Tensor:
        """View of this parameter in rows [T, P]: [T, *shape], or [T, S, ...] of each task's own row."""
        view = rows[:, self.start : self.stop].view(-1, *self.shape)
        return view.diagonal(dim1=0, dim2=2).movedim(-1, 0) if self.own_row else view


class FlatParameters(nn.Module):
    """Named parameters of one network in one vector [P + H]: P shared ones, then H of the task heads.

    `own_rows` names shared parameters [S, T, ...] of which task t's loss uses row t alone, such as an
    embedding of the task identity. Their per-task form is [T, S, ...].
    """

    def __init__(
        self,
        shared: Mapping[str, Tensor],
        heads: Mapping[str, Tensor] | None = None,
        own_rows: Collection[str] = (),
    ) -> None:
        super().__init__()
        named = [*shared.items(), *(heads or {}).items()]
        self._slices: list[Slice] = []
        start = 0
        for name, value in named:
            stop = start + value.numel()
            self._slices.append(Slice(name, tuple(value.shape), start, stop, name in own_rows))
            start = stop
        self.shared_slices, self.head_slices = self._slices[: len(shared)], self._slices[len(shared) :]
        self.num_shared = sum(value.numel() for value in shared.values())
        self.vector = nn.Parameter(torch.cat([value.detach().flatten() for _, value in named]))

    @property
    def module_sizes(self) -> list[int]:
        """How many of the P shared parameters belong to each layer, by the part of a name before its dot."""
        layers = groupby(self.shared_slices, key=lambda part: part.name.rpartition(".")[0])
        return [sum(part.stop - part.start for part in layer) for _, layer in layers]

    @property
    def shared(self) -> Tensor:
        """Shared parameters [P], detached."""
        return self.vector.detach()[: self.num_shared]

    def named(self, vector: Tensor | None = None) -> dict[str, Tensor]:
        """Views of `vector` (default: the detached parameters) by name; shared parameters are joint."""
        source = self.vector.detach() if vector is None else vector
        return {part.name: part.joint(source) for part in self._slices}
