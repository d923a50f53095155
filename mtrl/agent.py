"""Multi-task soft actor-critic: act, update, state. An update is a fixed sequence of tensor operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtrl import losses
from mtrl.combiners import Combiner, LossCombiner, make_combiner
from mtrl.config import NetworkConfig, SacConfig
from mtrl.gradients import FlatParameters, LossFunction, TaskGradients, all_finite, clip_by_norm
from mtrl.networks import (
    TASK_EMBEDDING,
    MLPSpec,
    Parameters,
    initial_parameters,
    mode_action,
    q_values,
    sample_action,
)
from mtrl.types import Batch


class StepReport(NamedTuple):
    """What one descent step of a network leaves behind, as device tensors."""

    losses: Tensor  # [T]
    ok: Tensor  # 0-dim bool: the step was finite and has been taken
    gradient_norm: Tensor  # 0-dim, after combining, before clipping


class Learner(nn.Module):
    """One network with its optimiser and its own combiner."""

    def __init__(
        self, parameters: FlatParameters, combiner: Combiner, *, lr: float, eps: float, max_norm: float | None
    ) -> None:
        super().__init__()
        self.flat = parameters
        self.combiner = combiner
        self.max_norm = max_norm
        self._gradients = TaskGradients(parameters, combiner.num_tasks)
        # Fused Adam skips a step on the device when found_inf is 1: no host needs to look at the gradient.
        self.optimizer = torch.optim.Adam([parameters.vector], lr=lr, eps=eps, fused=True)
        self.register_buffer("failures", torch.zeros(combiner.num_tasks, dtype=torch.bool))
        self.failures: Tensor

    def step(self, loss_function: LossFunction) -> StepReport:
        """Take one descent step; a non-finite one changes nothing but `failures` [T]."""
        combiner, flat = self.combiner, self.flat
        before = [(value, value.clone()) for value in combiner.buffers()]
        gradients = self._gradients
        gradients.start(loss_function)
        with combiner.unchecked():
            if isinstance(combiner, LossCombiner):
                shared = gradients.weighted(combiner.weights)
            else:
                shared = combiner.direction(gradients)
        gradient = torch.cat((shared, gradients.head_gradient))
        norm = clip_by_norm(gradient, self.max_norm)
        ok = all_finite(norm, gradients.losses)
        for value, old in before:
            value.copy_(torch.where(ok, value, old))
        self._note_failure(ok, gradients.finite)
        _masked_step(self.optimizer, flat.vector, gradient, ok)
        return StepReport(gradients.losses, ok, norm)

    def _note_failure(self, ok: Tensor, finite: Tensor) -> None:
        # With no single culprit every task is named: better too many names than none.
        culprits = torch.where((~finite).any(), ~finite, torch.ones_like(finite))
        self.failures |= culprits & ~ok


def _masked_step(optimizer: torch.optim.Adam, parameter: Tensor, gradient: Tensor, ok: Tensor) -> None:
    parameter.grad = gradient
    optimizer.grad_scale = None  # type: ignore[attr-defined]  # read by the fused step, as GradScaler sets it
    optimizer.found_inf = (~ok).float()  # type: ignore[attr-defined]
    optimizer.step()
    parameter.grad = None


class MTSAC(nn.Module):
    """One agent for all tasks: a policy, twin critics, target critics and temperatures.

    Args:
        num_tasks: T.
        obs_dim: O, without task identity.
        action_dim: A.
        network: architecture.
        sac: hyper-parameters.
        method: name of the gradient combiner; critic and actor get an instance each.
        method_options: the combiner's hyper-parameters.
        device: where parameters live.
        seed: initial parameters and all later sampling.
    """

    def __init__(
        self,
        *,
        num_tasks: int,
        obs_dim: int,
        action_dim: int,
        network: NetworkConfig,
        sac: SacConfig,
        method: str,
        method_options: Mapping[str, Any],
        device: torch.device,
        seed: int,
    ) -> None:
        super().__init__()
        self.num_tasks, self.sac, self.device = num_tasks, sac, device
        # Output ranges of the public Meta-World+ code: near-zero first actions and values.
        self.actor_spec = MLPSpec(
            stack=1,
            num_tasks=num_tasks,
            inputs=obs_dim,
            outputs=2 * action_dim,
            width=network.actor_width,
            depth=network.actor_depth,
            activation=network.activation,
            layer_norm=network.actor_layer_norm,
            one_hot=network.task_identity == "one_hot",
            per_task_heads=network.heads == "per_task",
            head_range=1e-3,
        )
        self.critic_spec = self.actor_spec._replace(
            stack=2,
            inputs=obs_dim + action_dim,
            outputs=1,
            width=network.critic_width,
            depth=network.critic_depth,
            layer_norm=network.critic_layer_norm,
            head_range=3e-3,
        )
        initial = torch.Generator().manual_seed(seed)
        options = {"num_tasks": num_tasks, **method_options}

        def learner(spec: MLPSpec, lr: float) -> Learner:
            flat = FlatParameters(*initial_parameters(spec, initial), own_rows=(TASK_EMBEDDING,)).to(device)
            combiner = make_combiner(method, **options).to(device)
            return Learner(flat, combiner, lr=lr, eps=sac.adam_eps, max_norm=sac.max_grad_norm).to(device)

        self.actor = learner(self.actor_spec, sac.actor_lr)
        self.critic = learner(self.critic_spec, sac.critic_lr)
        self.target: Tensor
        self.register_buffer("target", self.critic.flat.vector.detach().clone())
        temperatures = num_tasks if sac.temperature == "per_task" else 1
        start = torch.full((temperatures,), sac.initial_temperature, device=device).log()
        self.log_alpha = nn.Parameter(start)
        self.temperature_optimizer = torch.optim.Adam([self.log_alpha], lr=sac.temperature_lr, fused=True)
        self.generator = torch.Generator(device).manual_seed(seed + 1)
        self.num_batches = self.critic.combiner.num_batches
        self._sums: Tensor
        self._norms: Tensor
        self._count: Tensor
        self.register_buffer("_sums", torch.zeros(4, num_tasks, device=device))  # rows: see metrics()
        self.register_buffer("_norms", torch.zeros(2, device=device))
        self.register_buffer("_count", torch.zeros((), device=device))

    @property
    def alpha(self) -> Tensor:
        """Temperatures [T]."""
        return self.log_alpha.detach().exp().expand(self.num_tasks)

    @torch.no_grad()
    def act(self, obs: Tensor, *, deterministic: bool = False) -> Tensor:
        """Actions [T, E, A] in [-1, 1] for observations [T, E, O]."""
        parameters = self.actor.flat.named()
        if deterministic:
            return mode_action(self.actor_spec, parameters, obs)
        noise = self._noise(obs)
        return sample_action(self.actor_spec, parameters, obs, noise).action

    def update(self, batches: Sequence[Batch]) -> None:
        """One step of critics, actor, temperatures and targets on `num_batches` independent batches."""
        alpha = self.alpha
        noise = [(self._noise(batch.obs), self._noise(batch.obs)) for batch in batches]
        critic = self.critic.step(self.critic_losses(batches, [n[0] for n in noise], alpha))
        log_prob: list[Tensor] = []
        actor = self.actor.step(self.actor_losses(batches, [n[1] for n in noise], alpha, log_prob))
        entropy_target = self.sac.target_entropy
        temperature = self.log_alpha.detach().requires_grad_()
        per_task = losses.temperature_loss(temperature.expand(self.num_tasks), log_prob[0], entropy_target)
        # Per-task temperatures are separate parameters: a sum gives each its own gradient. A shared one
        # takes the mean over tasks, as one loss over the whole batch would.
        total = per_task.sum() / (self.num_tasks / len(self.log_alpha))
        (gradient,) = torch.autograd.grad(total, temperature)
        _masked_step(self.temperature_optimizer, self.log_alpha, gradient, actor.ok & torch.isfinite(total))
        with torch.no_grad():
            self.target.lerp_(self.critic.flat.vector, self.sac.tau * critic.ok)
            entropy = -log_prob[0].detach().mean(1)
            self._sums += torch.stack((critic.losses, actor.losses, entropy, alpha))
            self._norms += torch.stack((critic.gradient_norm, actor.gradient_norm))
            self._count += 1

    def anneal(self, progress: float) -> None:
        """Set the step sizes for `progress` in [0, 1] through the run."""
        sac = self.sac
        share = 1.0 - (1.0 - sac.final_lr_fraction) * progress
        lrs = (sac.actor_lr, sac.critic_lr, sac.temperature_lr)
        for optimizer, lr in zip(self._optimizers(), lrs, strict=True):
            optimizer.param_groups[0]["lr"] = lr * share

    def critic_losses(self, batches: Sequence[Batch], noise: Sequence[Tensor], alpha: Tensor) -> LossFunction:
        """Critic losses [T] as a function of (parameters, batch index); one target per batch."""
        targets: dict[int, Tensor] = {}

        @torch.no_grad()
        def target(index: int) -> Tensor:
            if index not in targets:
                batch = batches[index]
                actor = self.actor.flat.named()
                next_action = sample_action(self.actor_spec, actor, batch.next_obs, noise[index])
                frozen = self.critic.flat.named(self.target)
                next_q = q_values(self.critic_spec, frozen, batch.next_obs, next_action.action)
                targets[index] = losses.td_target(batch, next_action, next_q, alpha, self.sac.gamma)
            return targets[index]

        return lambda parameters, index: losses.critic_loss(
            self.critic_spec, parameters, batches[index], target(index)
        )

    def actor_losses(
        self, batches: Sequence[Batch], noise: Sequence[Tensor], alpha: Tensor, log_prob: list[Tensor]
    ) -> LossFunction:
        """Actor losses [T] as a function of (parameters, batch index); log-probs go to `log_prob`."""
        critic = self.critic.flat.named()

        def function(parameters: Parameters, index: int) -> Tensor:
            obs = batches[index].obs
            sampled = sample_action(self.actor_spec, parameters, obs, noise[index])
            log_prob.append(sampled.log_prob)
            return losses.actor_loss(sampled, q_values(self.critic_spec, critic, obs, sampled.action), alpha)

        return function

    def failures(self) -> dict[str, Tensor]:
        """Per network, which tasks [T] (bool, on the device) made a step non-finite since the start."""
        return {"critic": self.critic.failures, "actor": self.actor.failures}

    def metrics(self) -> dict[str, Tensor]:
        """Device tensors that describe the updates since the last call.

        Means of losses, entropy and alpha [T] and of the directions' norms before clipping; under `critic/`
        and `actor/` the combiners' reports on their last call.
        """
        count = self._count.clamp(min=1)
        names = ("critic_loss", "actor_loss", "entropy", "alpha")
        result = dict(zip(names, (self._sums / count).unbind(), strict=True))
        result["critic/update_norm"], result["actor/update_norm"] = (self._norms / count).unbind()
        for total in (self._sums, self._norms, self._count):
            total.zero_()
        for name, network in (("critic", self.critic), ("actor", self.actor)):
            for key, value in network.combiner.metrics().items():
                result[f"{name}/{key}"] = value.clone()
        return result

    def training_state(self) -> dict[str, Any]:
        """Everything that influences later updates: networks, combiners, optimisers, sampling stream."""
        return {
            "module": dict(self.state_dict()),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers()],
            "generator": self.generator.get_state(),
        }

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Restore `training_state` in place."""
        self.load_state_dict(state["module"])
        for optimizer, saved in zip(self._optimizers(), state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.generator.set_state(state["generator"])

    def _optimizers(self) -> tuple[torch.optim.Adam, ...]:
        return self.actor.optimizer, self.critic.optimizer, self.temperature_optimizer

    def _noise(self, obs: Tensor) -> Tensor:
        shape = (*obs.shape[:2], self.actor_spec.outputs // 2)
        return torch.randn(shape, generator=self.generator, device=obs.device)
