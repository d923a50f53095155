"""Turns: groups of tasks descend one after the other, each by a method of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_count, check_order
from mtrl.combiners._families import forward_requirements, make_base
from mtrl.combiners.base import Combiner, JacobianAt, JacobianCombiner


class Turns(JacobianCombiner):
    """Turns: update k combines only the tasks of group k mod `groups`, by the base method.

    The alternation of Wu et al., IEEE TMI 2025 (arXiv:2309.12090, of which only the abstract could be read),
    where sub-models take turns; their sub-model per task and its flatness are not part of this.

    Args:
        base: Name of the method that combines a group's gradients; each group has an instance.
        base_options: Arguments of the base method.
        groups: Number of groups, whose sizes differ by at most 1.
        order: All task numbers, in the order in which they fill the groups; empty: 0, 1, 2, ... One that
            puts tasks that go together next to each other is printed by `scripts/group.py`.

    Only the group's tasks are evaluated, so that an update costs a part of a Jacobian. Weights are those
    within the group, 0 for all others. A GPU runs updates eagerly, not as a CUDA graph.
    """

    name = "turns"
    capturable = False
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
        self.turn = 0

    def direction(self, jacobian_at: JacobianAt) -> Tensor:
        """Return the direction [P]; nothing of the other groups is computed."""
        tasks = self.get_buffer(self._groups[self.turn])
        return self._of_group(jacobian_at(tasks=tasks), jacobian_at.losses[tasks])

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        tasks = self.get_buffer(self._groups[self.turn])
        return self._of_group(jacobian[tasks], None if losses is None else losses[tasks])

    def _of_group(self, rows: Tensor, losses: Tensor | None) -> Tensor:
        base, tasks = self._base(self.turn), self.get_buffer(self._groups[self.turn])
        direction = base.combine(rows, losses)
        self.last_weights.zero_().index_copy_(0, tasks, base.last_weights)
        self.turn = (self.turn + 1) % len(self._groups)
        return direction

    def _base(self, turn: int) -> Combiner:
        return cast(Combiner, self.bases[turn])

    def _after_step(self, losses: Tensor) -> None:
        before = (self.turn - 1) % len(self._groups)
        self._base(before).after_step(losses[self.get_buffer(self._groups[before])])

    def reset(self) -> None:
        """Begin with the first group again."""
        super().reset()
        self.turn = 0

    def get_extra_state(self) -> Tensor:
        """Return whose turn it is, for `state_dict`."""
        return torch.tensor(self.turn)

    def set_extra_state(self, state: Tensor) -> None:
        """Take up `get_extra_state`."""
        self.turn = int(state)
