"""Running totals of what updates report, on the device, read once per log line."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtrl.gradients.descent import StepReport

_PER_TASK = ("critic_loss", "actor_loss", "value", "entropy", "alpha", "critic_grad_norm", "actor_grad_norm")


class Sampled(NamedTuple):
    """Means over an actor step's own actions, 0 for tasks that it did not look at."""

    value: Tensor  # [T], the critics', in units of scaled reward
    entropy: Tensor  # [T], nats


class UpdateTotals(nn.Module):
    """Sums over updates; tasks that an update did not look at do not count in it."""

    sums: Tensor
    counts: Tensor
    norms: Tensor

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(len(_PER_TASK), num_tasks))
        self.register_buffer("counts", torch.zeros(len(_PER_TASK), num_tasks))
        self.register_buffer("norms", torch.zeros(2, 2))  # critic and actor: sum, number of steps

    def add(
        self, critic: StepReport, actor: StepReport | None, sampled: Sampled | None, alpha: Tensor
    ) -> None:
        """Count one update; alpha [T]. Where the actor had no step, it and what it sampled are None."""
        nothing = (torch.zeros_like(alpha), torch.zeros_like(critic.evaluated))

        def norms(report: StepReport) -> tuple[Tensor, Tensor]:
            return nothing if report.task_norms is None else (report.task_norms, report.evaluated)

        rows = [
            (critic.losses, critic.evaluated),
            nothing if actor is None else (actor.losses, actor.evaluated),
            nothing if actor is None or sampled is None else (sampled.value, actor.evaluated),
            nothing if actor is None or sampled is None else (sampled.entropy, actor.evaluated),
            (alpha, torch.ones_like(critic.evaluated)),
            norms(critic),
            nothing if actor is None else norms(actor),
        ]
        self.sums += torch.stack([values.to(self.sums.dtype) for values, _ in rows])
        self.counts += torch.stack([seen for _, seen in rows])
        for number, report in enumerate((critic, actor)):
            if report is not None:
                self.norms[number, 0] += report.gradient_norm
                self.norms[number, 1] += 1

    def pop_means(self) -> dict[str, Tensor]:
        """Return means since the last call, [T] and, of the directions' norms, 0-dim; begin anew."""
        means = self.sums / self.counts.clamp(min=1)
        result = dict(zip(_PER_TASK, means.unbind(), strict=True))
        for name in ("critic_grad_norm", "actor_grad_norm"):
            if not self.counts[_PER_TASK.index(name)].any():  # the method looks at no gradient of one task
                del result[name]
        norms = self.norms[:, 0] / self.norms[:, 1].clamp(min=1)
        result["critic/update_norm"], result["actor/update_norm"] = norms.unbind()
        for total in (self.sums, self.counts, self.norms):
            total.zero_()
        return result
