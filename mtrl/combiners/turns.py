"""Turns: groups of tasks descend one after the other, each by its own instance of a method."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_count, check_order
from mtrl.combiners._families import forward_requirements, make_base
from mtrl.combiners._jacobian_at import JacobianAt
from mtrl.combiners._state import HostCounter
from mtrl.combiners.base import Combiner, JacobianCombiner


class Turns(HostCounter, JacobianCombiner):
    """Turns: update k combines only the tasks of group k mod `groups`, by the base method.

    The alternation of Wu et al., 2023 (arXiv:2309.12090; only the abstract could be read), in which
    sub-models take turns; their sub-model per task and its flatness are not part of this.

    Args:
        base: Name of the method that combines a group's gradients; each group has an instance.
        base_options: Arguments of the base method.
        groups: Number of groups, whose sizes differ by at most 1.
        order: All task numbers, in the order in which they fill the groups; empty: 0, 1, 2, ...
            `scripts/group.py` prints an order in which similar tasks are neighbours.

    Only the group's tasks are evaluated, so an update costs a part of a Jacobian. Tasks of other groups weigh
    0. On a GPU each group has a CUDA graph of its own. In `mtl_step` the task heads of all tasks step; in
    training those of other groups have a gradient of 0.
    """

    name = "turns"
    papers = ("wu2023flat",)
    credit = "No paper describes this method: the paper lets parts of a network take turns."
    evaluates_all = False

    def __init__(
        self,
        *,
        num_tasks: int,
        base: str = "cagrad",
        base_options: Mapping[str, Any] | None = None,
        groups: int = 2,
        order: tuple[int, ...] = (),
    ) -> None:
        super().__init__(num_tasks=num_tasks)
        groups = min(check_count("groups", groups), num_tasks)
        tasks = torch.tensor(check_order("order", order, num_tasks) or list(range(num_tasks)))
        self._groups: list[str] = []
        bases = []
        for index, part in enumerate(tasks.tensor_split(groups)):
            self._groups.append(f"_group{index}")
            self.register_buffer(self._groups[-1], part.clone(), persistent=False)
            bases.append(make_base(self.name, base, base_options, len(part)))
        self.bases = nn.ModuleList(bases)
        forward_requirements(self, bases[0])

    def phases(self) -> tuple[int, ...]:
        """Whose turn it is, and what that group's base decides."""
        return (self.counter, *self._base(self.counter).phases())

    def advance(self) -> None:
        """Go on to the next group."""
        self.counter = (self.counter + 1) % len(self._groups)

    def direction(self, jacobian_at: JacobianAt) -> Tensor:
        """Return the direction [P]; evaluates only the tasks of the group whose turn it is."""
        tasks = self.get_buffer(self._groups[self.counter])
        rows = self._seen(jacobian_at(tasks=tasks), tasks)
        losses = self._taken("losses", jacobian_at.losses)
        self._check_loss_products(losses, rows.dtype)
        return self._of_group(rows, losses[tasks])

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        tasks = self.get_buffer(self._groups[self.counter])
        return self._of_group(jacobian[tasks], None if losses is None else losses[tasks])

    def _of_group(self, rows: Tensor, losses: Tensor | None) -> Tensor:
        base, tasks = self._base(self.counter), self.get_buffer(self._groups[self.counter])
        with base.unchecked():  # rows and losses were checked before
            direction = base.combine(rows, losses)
        self.last_weights.zero_().index_copy_(0, tasks, base.last_weights)
        self.advance()
        return direction

    def _base(self, turn: int) -> Combiner:
        return cast(Combiner, self.bases[turn])

    def _after_step(self, losses: Tensor) -> None:
        before = (self.counter - 1) % len(self._groups)
        self._base(before).after_step(losses[self.get_buffer(self._groups[before])])

    def _note_success(self, rates: Tensor) -> None:
        for turn, name in enumerate(self._groups):
            self._base(turn).note_success(rates[self.get_buffer(name).to(rates.device)])
