"""Means of an update's numbers by task, between two log lines."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtrl.gradients.descent import StepReport

_NORMS = ("critic_grad_norm", "critic/update_norm", "actor_grad_norm", "actor/update_norm")


class TaskTotals(nn.Module):
    """Sums over updates; an update counts for a task only if it evaluated that task.

    Args:
        of_actor: names of the means that the actor's losses have in their `aux`.
        num_tasks: T.
        others: names of numbers that come from neither network.

    Attributes:
        names: of all numbers.
    """

    def __init__(self, of_actor: Sequence[str], num_tasks: int, others: Sequence[str] = ()) -> None:
        super().__init__()
        self._of_actor = ("actor_loss", *of_actor)
        self.names = ("critic_loss", *self._of_actor, *others, *_NORMS)
        # For each name a row of sums and a row that counts the updates in the sum.
        self.sums: Tensor = nn.Buffer(torch.zeros(2 * len(self.names), num_tasks))
        self._constants: Tensor = nn.Buffer(torch.stack((self.sums[0], self.sums[0] + 1)), persistent=False)

    def add(self, critic: StepReport, actor: StepReport | None, **others: Tensor) -> None:
        """Count one update; `actor` is None if the actor made no step, `others` are values [T]."""
        zeros, ones = self._constants
        # By name: values [T], and 1 for the tasks for which they count. Names left out do not count.
        found = {name: (values, ones) for name, values in others.items()}
        found["critic_loss"] = (critic.losses, critic.evaluated)
        if actor is not None:
            first = actor.evaluations[0]
            rows = [actor.losses, *(self._whole(means, first.tasks) for means in first.aux)]
            found |= {name: (row, actor.evaluated) for name, row in zip(self._of_actor, rows, strict=True)}
        for name, report in (("critic", critic), ("actor", actor)):
            if report is not None:
                found[f"{name}/update_norm"] = (report.gradient_norm.expand_as(ones), ones)
                if report.task_norms is not None:
                    found[f"{name}_grad_norm"] = (report.task_norms, report.evaluated)
        pairs = [found.get(name, (zeros, zeros)) for name in self.names]
        # Two launches on CUDA, however many totals there are.
        self.sums += torch.stack([row.to(zeros.dtype) for pair in pairs for row in pair])

    def _whole(self, means: Tensor, tasks: Tensor | None) -> Tensor:
        """Lay out means [N] of some tasks as [T], 0 for the other tasks."""
        return means if tasks is None else means.new_zeros(self.sums.shape[1]).index_copy_(0, tasks, means)

    def pop_means(self) -> dict[str, Tensor]:
        """Return the means since the last call, then start again: [T], and 0-dim norms of the directions.

        NaN where no update evaluated the task or the network; task norms that no update formed are left out.
        """
        sums, counts = self.sums[::2], self.sums[1::2]
        result = dict(zip(self.names, (sums / counts).unbind(), strict=True))
        for name in ("critic_grad_norm", "actor_grad_norm"):
            if not counts[self.names.index(name)].any():  # the method forms no gradients of single tasks
                del result[name]
        for name in ("critic/update_norm", "actor/update_norm"):
            result[name] = result[name][0]
        self.sums.zero_()
        return result
