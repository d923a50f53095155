"""Running totals of what updates report, on the device, read once per log line."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtrl.gradients.descent import StepReport

_PER_TASK = ("critic_loss", "actor_loss", "entropy", "alpha", "critic_grad_norm", "actor_grad_norm")


class UpdateTotals(nn.Module):
    """Sums over updates; tasks that an update did not look at do not count in it."""

    sums: Tensor
    counts: Tensor
    norms: Tensor

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(len(_PER_TASK), num_tasks))
        self.register_buffer("counts", torch.zeros(len(_PER_TASK), num_tasks))
        self.register_buffer("norms", torch.zeros(3))  # critic, actor, number of updates

    def add(self, critic: StepReport, actor: StepReport, entropy: Tensor, alpha: Tensor) -> None:
        """Count one update; entropy and alpha [T]."""
        every = torch.ones_like(actor.evaluated)
        never, nothing = torch.zeros_like(every), torch.zeros_like(alpha)
        rows = [
            (critic.losses, critic.evaluated),
            (actor.losses, actor.evaluated),
            (entropy, actor.evaluated),
            (alpha, every),
            (nothing, never) if critic.task_norms is None else (critic.task_norms, critic.evaluated),
            (nothing, never) if actor.task_norms is None else (actor.task_norms, actor.evaluated),
        ]
        self.sums += torch.stack([values.to(self.sums.dtype) for values, _ in rows])
        self.counts += torch.stack([seen for _, seen in rows])
        one = torch.ones_like(actor.gradient_norm)
        self.norms += torch.stack((critic.gradient_norm, actor.gradient_norm, one))

    def pop_means(self) -> dict[str, Tensor]:
        """Return means since the last call, [T] and, of the directions' norms, 0-dim; begin anew."""
        means = self.sums / self.counts.clamp(min=1)
        result = dict(zip(_PER_TASK, means.unbind(), strict=True))
        for name in ("critic_grad_norm", "actor_grad_norm"):
            if not self.counts[_PER_TASK.index(name)].any():  # the method looks at no gradient of one task
                del result[name]
        norms = self.norms[:2] / self.norms[2].clamp(min=1)
        result["critic/update_norm"], result["actor/update_norm"] = norms.unbind()
        for total in (self.sums, self.counts, self.norms):
            total.zero_()
        return result
