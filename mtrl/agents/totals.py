"""Means over updates of numbers by task, kept on the device and read once per log line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mtrl.agents.base import Metrics
from mtrl.gradients.per_task import Descent, StepReport

_NORMS = ("critic_grad_norm", "critic/update_norm", "actor_grad_norm", "actor/update_norm")
_MOST_TASKS_IN_PAIRS = 25  # a log line with a number for each pair of 50 tasks would take 70 kB
Counted = tuple[Tensor, Tensor]  # values [T], and bool [T], the tasks for which they count


class TaskTotals(nn.Module):
    """Sums over updates; an update counts for a task only if it evaluated that task.

    Args:
        names: of the numbers. Those of the gradients' norms are added to them.
        num_tasks: T.
    """

    def __init__(self, names: Sequence[str], num_tasks: int) -> None:
        super().__init__()
        self._names = (*names, *_NORMS)
        # For each name a row of sums and a row that counts the updates in the sum.
        self.sums: Tensor = nn.Buffer(torch.zeros(2 * len(self._names), num_tasks))
        self._constants: Tensor = nn.Buffer(torch.stack((self.sums[0], self.sums[0] + 1)), persistent=False)

    @property
    def ones(self) -> Tensor:
        """Says of a number that it counts for all tasks."""
        return self._constants[1]

    def of_actor(self, names: Sequence[str], actor: StepReport) -> dict[str, Counted]:
        """Return the actor's losses and the `names` of its `aux`, means [N] of the tasks it evaluated."""
        tasks, aux = actor.evaluations[0].tasks, actor.evaluations[0].aux
        rows = [actor.losses, *(self._whole(means, tasks) for means in aux)]
        return {name: (row, actor.evaluated) for name, row in zip(("actor_loss", *names), rows, strict=True)}

    def add(self, numbers: Mapping[str, Counted], critic: StepReport, actor: StepReport | None) -> None:
        """Count one update; names left out do not count. `actor` is None if the actor made no step."""
        zeros, ones = self._constants
        found = dict(numbers)
        for name, report in (("critic", critic), ("actor", actor)):
            if report is not None:
                found[f"{name}/update_norm"] = (report.gradient_norm.expand_as(ones), ones)
                if report.task_norms is not None:
                    found[f"{name}_grad_norm"] = (report.task_norms, report.evaluated)
        pairs = [found.get(name, (zeros, zeros)) for name in self._names]
        # Two launches on CUDA, however many totals there are.
        self.sums += torch.stack([row.to(zeros.dtype) for pair in pairs for row in pair])

    def _whole(self, means: Tensor, tasks: Tensor | None) -> Tensor:
        """Lay out means [N] of some tasks as [T], 0 for the other tasks."""
        return means if tasks is None else means.new_zeros(self.sums.shape[1]).index_copy_(0, tasks, means)

    def pop_means(self) -> dict[str, Tensor]:
        """Return the means since the last call, then start again: [T], and 0-dim norms of the directions."""
        sums, counts = self.sums[::2], self.sums[1::2]
        result = dict(zip(self._names, (sums / counts.clamp(min=1)).unbind(), strict=True))
        for name in ("critic_grad_norm", "actor_grad_norm"):
            if not counts[self._names.index(name)].any():  # the method forms no gradients of single tasks
                del result[name]
        for name in ("critic/update_norm", "actor/update_norm"):
            result[name] = result[name][0]
        self.sums.zero_()
        return result


def as_metrics(values: Mapping[str, Tensor], *, critic: Descent, actor: Descent) -> Metrics:
    """Return the numbers of one log line: [T] and [T, T] by task, 0-dim ones as "grad/...".

    `values` are joined by those of the networks' combiners.
    """
    values = dict(values)
    for name, network in (("critic", critic), ("actor", actor)):
        values |= {f"{name}/{key}": value for key, value in network.combiner.metrics().items()}
    arrays = {name: value.cpu().numpy().copy() for name, value in values.items()}
    scalars: dict[str, float] = {}
    # "weight" is the critics': people compare these. The actor's get a name of their own.
    per_task = {"weight": arrays.pop("critic/weights"), "actor_weight": arrays.pop("actor/weights")}
    for name, array in arrays.items():
        if array.ndim == 2 and len(array) > _MOST_TASKS_IN_PAIRS:
            continue
        if array.ndim:
            per_task[name.replace("/", "_")] = array
        else:
            scalars[f"grad/{name.replace('/', '_')}"] = float(array)
    return Metrics(scalars, per_task)
