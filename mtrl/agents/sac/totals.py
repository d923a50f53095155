"""Running totals of what updates report, on the device, read once per log line."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtrl.gradients.descent import StepReport

_PER_TASK = ("critic_loss", "actor_loss", "entropy", "alpha")


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
        self.sums += torch.stack((critic.losses, actor.losses, entropy, alpha))
        seen = (critic.evaluated, actor.evaluated, actor.evaluated, torch.ones_like(actor.evaluated))
        self.counts += torch.stack(seen)
        one = torch.ones_like(actor.gradient_norm)
        self.norms += torch.stack((critic.gradient_norm, actor.gradient_norm, one))

    def pop_means(self) -> dict[str, Tensor]:
        """Return means since the last call, [T] and, of the directions' norms, 0-dim; begin anew."""
        means = self.sums / self.counts.clamp(min=1)
        result = dict(zip(_PER_TASK, means.unbind(), strict=True))
        norms = self.norms[:2] / self.norms[2].clamp(min=1)
        result["critic/update_norm"], result["actor/update_norm"] = norms.unbind()
        for total in (self.sums, self.counts, self.norms):
            total.zero_()
        return result
