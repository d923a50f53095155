"""Gradients of chosen or pooled tasks as rows of a Jacobian.

A pooled Jacobian [N + 1, P] has a row for each of the first N of T tasks and one for the sum of all others.
"""

import torch
from torch import Tensor


def of_tasks(rows: Tensor, tasks: Tensor) -> Tensor:
    """Return the rows [N, ...] of some tasks; an expansion of one row stays an expansion."""
    if rows.stride(0) == 0:
        return rows[:1].expand(len(tasks), *rows.shape[1:])
    return rows.index_select(0, tasks)


def write(place: Tensor, gradient: Tensor) -> None:
    """Write gradients [T, ...] of single tasks to their place, [T, ...] or pooled [N + 1, ...]."""
    if len(place) == len(gradient):
        place.copy_(gradient)
        return
    singles = len(place) - 1
    place[:singles].copy_(gradient[:singles])
    torch.sum(gradient[singles:], 0, out=place[singles])


def scatter(block: Tensor, gradient: Tensor, tasks: Tensor) -> None:
    """Write gradients [N, S, ...] of a parameter with a row per task into its columns [N, S, T, ...].

    `tasks` are those of the gradients; the columns may be those of a pooled Jacobian.
    """
    singles = len(tasks) if len(block) == len(tasks) else len(block) - 1
    block.zero_()
    row = tasks[:singles].view(-1, *[1] * (block.dim() - 1))
    row = row.expand(-1, block.shape[1], 1, *block.shape[3:])
    block[:singles].scatter_(2, row, gradient[:singles].unsqueeze(2))
    if singles < len(tasks):  # the others' rows do not overlap: their sum is all of them
        block[singles].index_copy_(1, tasks[singles:], gradient[singles:].transpose(0, 1))


def same_place(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors begin at the same number (also on the meta device)."""
    storages = (one.untyped_storage()._cdata, other.untyped_storage()._cdata)
    return storages[0] == storages[1] and one.storage_offset() == other.storage_offset()
