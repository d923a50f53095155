"""Textbook multi-task SAC on plain torch modules: one-hot inputs, one joint mean loss, no mtrl code inside.

An oracle: written from the paper, with nn.Linear, torch.distributions and ordinary autograd. With combiners
the joint loss gives way to one ordinary backward pass per task.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Normal, TanhTransform

from mtrl.combiners import Combiner
from tests.helpers.evaluators import Evaluator


def plain_mlp(inputs: int, outputs: int, width: int, depth: int) -> nn.Sequential:
    sizes = [inputs, *([width] * depth)]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def load_plain(model: nn.Sequential, named: dict[str, Tensor], stack: int) -> None:
    """Copy one of the stacked networks into nn.Linear layers; identity columns become one-hot inputs."""
    linears = [layer for layer in model if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for index, layer in enumerate(linears):
            name = str(index) if index < len(linears) - 1 else "head"
            weight = named[f"{name}.weight"][stack]
            if f"{name}.task" in named:
                weight = torch.cat((weight, named[f"{name}.task"][stack].T), dim=1)
            layer.weight.copy_(weight)
            layer.bias.copy_(named[f"{name}.bias"][stack])


def one_hot_inputs(values: Tensor) -> Tensor:
    """[T, B, D] -> [T*B, D + T]."""
    tasks, batch, _ = values.shape
    identity = torch.eye(tasks).unsqueeze(1).expand(tasks, batch, tasks)
    return torch.cat((values, identity), dim=-1).flatten(0, 1)


def plain_sample(model: nn.Sequential, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions [T, B, A] and log-probabilities [T, B], the densities from torch.distributions."""
    tasks, batch, _ = obs.shape
    mean, log_std = model(one_hot_inputs(obs)).view(tasks, batch, -1).chunk(2, dim=-1)
    std = log_std.clamp(-20.0, 2.0).exp()
    action = torch.tanh(mean + std * noise)
    before = mean + std * noise
    # On the known pre-image: the inverse tanh of a TransformedDistribution would lose digits.
    log_prob = Normal(mean, std).log_prob(before) - TanhTransform().log_abs_det_jacobian(before, action)
    return action, log_prob.sum(-1)


def plain_outputs(models: nn.ModuleList, obs: Tensor, action: Tensor) -> Tensor:
    """Outputs [2, T, B, N] of twin critics."""
    inputs = one_hot_inputs(torch.cat((obs, action), dim=-1))
    return torch.stack([model(inputs).view(*obs.shape[:2], -1) for model in models])


class PlainHead(NamedTuple):
    """What critics' outputs [2, T, B, N] mean; formulas other than those of the code under test."""

    loss: str = "squared"
    reduce: str = "min"
    low: float = -10.0
    high: float = 10.0
    bins: int = 1

    @property
    def atoms(self) -> Tensor:
        return torch.linspace(self.low, self.high, self.bins)

    @property
    def spacing(self) -> float:
        return (self.high - self.low) / (self.bins - 1)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Outputs are relative to the density exp(-|z| / s); s is 0.5, or the spacing if that is larger."""
        weights = torch.exp(outputs) * torch.exp(-self.atoms.abs() / max(0.5, self.spacing))
        return weights / weights.sum(-1, keepdim=True)

    def values(self, outputs: Tensor) -> Tensor:
        return outputs.squeeze(-1) if self.bins == 1 else (self.probabilities(outputs) * self.atoms).sum(-1)

    def value(self, outputs: Tensor) -> Tensor:
        both = self.values(outputs)
        return torch.minimum(both[0], both[1]) if self.reduce == "min" else (both[0] + both[1]) / 2

    def target(self, outputs: Tensor, backup: Callable[[Tensor], Tensor]) -> Tensor:
        if self.loss != "categorical":
            return backup(self.value(outputs))
        both, values = self.probabilities(outputs), self.values(outputs)
        mixed = (both[0] + both[1]) / 2
        if self.reduce == "min":
            mixed = torch.where((values[0] < values[1]).unsqueeze(-1), both[0], both[1])
        result = torch.zeros_like(mixed)
        for number, atom in enumerate(self.atoms):  # a triangle around each atom takes its share
            moved = backup(torch.full_like(values[0], float(atom))).clamp(self.low, self.high)
            share = (1 - (moved.unsqueeze(-1) - self.atoms).abs() / self.spacing).clamp(min=0)
            result += mixed[..., number : number + 1] * share
        return result

    def error(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Mean over critics and samples, [T]."""
        if self.loss == "squared":
            losses = (outputs.squeeze(-1) - target) ** 2
        elif self.loss == "huber":
            losses = nn.SmoothL1Loss(reduction="none")(outputs.squeeze(-1), torch.stack((target, target)))
        else:
            if self.loss == "histogram":
                normal = Normal(target.clamp(self.low, self.high).unsqueeze(-1), 0.75 * self.spacing)
                target = normal.cdf(self.atoms + self.spacing / 2) - normal.cdf(self.atoms - self.spacing / 2)
                target = target / target.sum(-1, keepdim=True)
            losses = -(target * self.probabilities(outputs).log()).sum(-1)
        return losses.mean(2).mean(0)


class PlainJacobian(Evaluator):
    """Per-task gradients of plain modules, where a combiner asks for them."""

    def __init__(self, module: nn.Module, losses: Callable[[], Tensor]) -> None:
        super().__init__()
        self._module, self._evaluate = module, losses
        self.losses = losses().detach()
        self.parameters = nn.utils.parameters_to_vector(module.parameters()).detach()

    def gradients_at(self, offset: Tensor | float, batch: int = 0) -> Tensor:
        parameters = list(self._module.parameters())
        rows = []
        for task, point in enumerate(self.parameters + offset * torch.ones(len(self.losses), 1)):
            nn.utils.vector_to_parameters(point, parameters)
            gradients = torch.autograd.grad(self._evaluate()[task], parameters)
            rows.append(nn.utils.parameters_to_vector(gradients))
        nn.utils.vector_to_parameters(self.parameters.clone(), parameters)
        return torch.stack(rows)


class PlainSAC:
    """Joint SAC with twin critics, per-task temperatures and gradient clipping."""

    def __init__(
        self,
        tasks: int,
        obs: int,
        action: int,
        width: int,
        depth: int,
        lr: float,
        eps: float,
        head: PlainHead = PlainHead(),  # noqa: B008
    ) -> None:
        self.head, bins = head, head.bins
        self.critic_combiner: Combiner | None = None
        self.actor_combiner: Combiner | None = None
        self.actor = plain_mlp(obs + tasks, 2 * action, width, depth)
        self.critics = nn.ModuleList(plain_mlp(obs + action + tasks, bins, width, depth) for _ in range(2))
        self.targets = nn.ModuleList(plain_mlp(obs + action + tasks, bins, width, depth) for _ in range(2))
        self.log_alpha = nn.Parameter(torch.zeros(tasks))
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=lr, eps=eps)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), lr=lr, eps=eps)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=lr)

    def update(
        self,
        obs: Tensor,
        action: Tensor,
        reward: Tensor,
        next_obs: Tensor,
        noise: tuple[Tensor, Tensor],
        *,
        actor_too: bool = True,
    ) -> None:
        """One update; `log_alpha` may be one number for all tasks, and the actor may wait (TD3's delay)."""
        alpha = self.log_alpha.detach().exp().expand(len(obs)).unsqueeze(1)
        with torch.no_grad():
            next_action, next_log_prob = plain_sample(self.actor, next_obs, noise[0])
            target = self.head.target(
                plain_outputs(self.targets, next_obs, next_action),
                lambda values: reward + 0.99 * (values - alpha * next_log_prob),
            )

        def critic_losses() -> Tensor:
            return self.head.error(plain_outputs(self.critics, obs, action), target)

        def actor_losses() -> Tensor:
            new_action, log_prob = plain_sample(self.actor, obs, noise[1])
            q = self.head.value(plain_outputs(self.critics, obs, new_action))
            return (alpha * log_prob - q).mean(1)

        self._descend(self.critic_optimizer, critic_losses, self.critics, self.critic_combiner)
        if actor_too:
            log_prob = plain_sample(self.actor, obs, noise[1])[1]
            self._descend(self.actor_optimizer, actor_losses, self.actor, self.actor_combiner)
            self.alpha_optimizer.zero_grad()
            if len(self.log_alpha) == 1:  # one loss over the whole batch, as with a single task
                (-self.log_alpha * (log_prob.detach().mean() - 4.0)).sum().backward()
            else:
                (-self.log_alpha * (log_prob.detach().mean(1) - 4.0)).sum().backward()
            self.alpha_optimizer.step()
        with torch.no_grad():
            for old, new in zip(self.targets.parameters(), self.critics.parameters(), strict=True):
                old.mul_(0.995).add_(0.005 * new)

    @staticmethod
    def _descend(
        optimizer: torch.optim.Optimizer,
        losses: Callable[[], Tensor],
        module: nn.Module,
        combiner: Combiner | None,
    ) -> None:
        optimizer.zero_grad()
        if combiner is None:
            losses().mean().backward()
        else:
            direction = combiner.direction(PlainJacobian(module, losses))
            parameters = list(module.parameters())
            parts = direction.split([parameter.numel() for parameter in parameters])
            for parameter, part in zip(parameters, parts, strict=True):
                parameter.grad = part.view_as(parameter)
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
