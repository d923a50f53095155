"""The parameters of one network in one vector, and their places in it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import groupby
from typing import Any, NamedTuple

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


def joint_views(parts: Iterable[Slice], vector: Tensor) -> dict[str, Tensor]:
    """Views by name of parameters in a vector [P], each in its shape."""
    return {part.name: part.joint(vector) for part in parts}


def per_task_views(parts: Iterable[Slice], rows: Tensor) -> dict[str, Tensor]:
    """Views by name of parameters in rows [T, P], each with a leading task axis."""
    return {part.name: part.per_task(rows) for part in parts}


class FlatParameters(nn.Module):
    """Named parameters of one network in one vector [P + H]: P shared ones, then H of the task heads.

    `own_rows` names shared parameters [S, T, ...] of which task t's loss uses row t alone, such as an
    embedding of the task identity. Their per-task form is [T, S, ...].

    With a `dtype` of half precision networks compute with a rounded copy, and so do their gradients. The
    vector itself, which the optimiser moves, keeps its precision: steps below the rounding would be lost.
    """

    def __init__(
        self,
        shared: Mapping[str, Tensor],
        heads: Mapping[str, Tensor] | None = None,
        own_rows: Collection[str] = (),
        dtype: torch.dtype | None = None,
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
        rounds = dtype not in (None, self.vector.dtype)
        self._rounded = nn.Buffer(self.vector.detach().to(dtype), persistent=False) if rounds else None
        if rounds:
            self.register_load_state_dict_post_hook(_round_again)  # type: ignore[no-untyped-call]

    @property
    def module_sizes(self) -> list[int]:
        """How many of the P shared parameters belong to each layer, by the part of a name before its dot."""
        layers = groupby(self.shared_slices, key=lambda part: part.name.rpartition(".")[0])
        return [sum(part.stop - part.start for part in layer) for _, layer in layers]

    @property
    def shared(self) -> Tensor:
        """Shared parameters [P], detached."""
        return self.vector.detach()[: self.num_shared]

    @property
    def seen(self) -> Tensor:
        """All parameters [P + H] as networks compute with them, detached."""
        return self.vector.detach() if self._rounded is None else self._rounded

    def named(self, vector: Tensor | None = None, *, rounded: bool = True) -> dict[str, Tensor]:
        """Views by name of `seen`, or of another vector; shared parameters are joint.

        Another vector is rounded as `seen` is, unless told not to: then views of it may be written to.
        """
        source = self.seen if vector is None else vector.to(self.seen.dtype) if rounded else vector
        return joint_views(self._slices, source)

    @torch.no_grad()
    def round(self) -> None:
        """Renew what networks compute with, after the vector has moved."""
        if self._rounded is not None:
            self._rounded.copy_(self.vector)


def _round_again(flat: FlatParameters, _: Any) -> None:
    flat.round()
