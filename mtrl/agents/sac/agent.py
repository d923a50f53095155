"""Multi-task soft actor-critic: act, update, state. An update is a fixed sequence of tensor operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtrl.agents.sac import losses
from mtrl.agents.sac.batch import Batch
from mtrl.agents.sac.combiner import sac_combiner
from mtrl.agents.sac.totals import UpdateTotals
from mtrl.config.schema import NetworkConfig, SacConfig
from mtrl.device.memory import check_fits
from mtrl.gradients.descent import Learner, make_adam, masked_step, set_lr
from mtrl.gradients.flat_parameters import FlatParameters
from mtrl.gradients.jacobian import LossFunction
from mtrl.networks.mlp import (
    TASK_EMBEDDING,
    MLPSpec,
    Parameters,
    initial_parameters,
    mode_action,
    of_tasks,
    q_values,
    sample_action,
)


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
        self.num_tasks, self.obs_dim, self.action_dim = num_tasks, obs_dim, action_dim
        self.sac, self.device = sac, device
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

        def learner(spec: MLPSpec, lr: float) -> Learner:
            flat = FlatParameters(*initial_parameters(spec, initial), own_rows=(TASK_EMBEDDING,)).to(device)
            combiner = sac_combiner(method, method_options, num_tasks, sac.jacobian_chunk).to(device)
            return Learner(
                flat, combiner, lr=lr, eps=sac.adam_eps, max_norm=sac.max_grad_norm,
                jacobian_chunk=sac.jacobian_chunk,
            ).to(device)  # fmt: skip

        self.actor = learner(self.actor_spec, sac.actor_lr)
        self.critic = learner(self.critic_spec, sac.critic_lr)
        check_fits(
            self.jacobian_bytes,
            device,
            what=f"the gradients of {num_tasks} tasks",
            advice="Use smaller networks (network.critic_width) or, with a method that needs the Gramian "
            "alone, sac.jacobian_chunk=1000000.",
        )
        self.target: Tensor
        self.register_buffer("target", self.critic.flat.vector.detach().clone())
        self.averaged_actor: Tensor | None
        average = None if sac.actor_average_rate is None else self.actor.flat.vector.detach().clone()
        self.register_buffer("averaged_actor", average)
        temperatures = num_tasks if sac.temperature == "per_task" else 1
        start = torch.full((temperatures,), sac.initial_temperature, device=device).log()
        self.log_alpha = nn.Parameter(start)
        self.temperature_optimizer = make_adam(self.log_alpha, lr=sac.temperature_lr)
        self.generator = torch.Generator(device).manual_seed(seed + 1)
        self.num_batches = self.critic.combiner.num_batches
        self.totals = UpdateTotals(num_tasks).to(device)

    @property
    def state_bytes(self) -> int:
        """Bytes of parameters, targets and buffers, and of Adam's moments and the gradient."""
        trained = sum(value.nbytes for value in self.parameters())
        return 4 * trained + sum(value.nbytes for value in self.buffers())

    @property
    def jacobian_bytes(self) -> int:
        """Bytes of the per-task gradients that actor and critic keep."""
        return self.actor.jacobian_bytes + self.critic.jacobian_bytes

    @property
    def alpha(self) -> Tensor:
        """Temperatures [T]."""
        return self.log_alpha.detach().exp().expand(self.num_tasks)

    @property
    def capturable(self) -> bool:
        """Whether an update never reads back to the host, so that a CUDA graph can hold it."""
        return self.critic.combiner.capturable

    @torch.no_grad()
    def act(self, obs: Tensor, *, deterministic: bool = False, noise: Tensor | None = None) -> Tensor:
        """Actions [T, E, A] in [-1, 1] for observations [T, E, O].

        Drawn with standard normal `noise` [T, E, A], by default from the agent's stream; deterministic: the
        modes of the policy, averaged over updates where `actor_average_rate` asks for that.
        """
        if deterministic:
            return mode_action(self.actor_spec, self.actor.flat.named(self.averaged_actor), obs)
        noise = self.drawn(obs.shape[:2]) if noise is None else noise
        return sample_action(self.actor_spec, self.actor.flat.named(), obs, noise).action

    def drawn(self, lead: Sequence[int]) -> Tensor:
        """Return standard normal noise for actions, [*lead, A], from the agent's stream."""
        return self.draw(torch.empty(*lead, self.action_dim, device=self.device))

    def draw(self, noise: Tensor) -> Tensor:
        """Overwrite a tensor on the agent's device with standard normal noise from its stream; return it."""
        return noise.normal_(generator=self.generator)

    def update(self, batches: Sequence[Batch], noise: Tensor | None = None) -> None:
        """Call `step`, with noise from the agent's stream by default."""
        if noise is None:
            noise = self.drawn((len(batches), 2, *batches[0].reward.shape))
        self.step(batches, noise)

    def step(self, batches: Sequence[Batch], noise: Tensor) -> None:
        """One step of critics, actor, temperatures and targets on K = `num_batches` independent batches.

        `noise` [K, 2, T, B, A], standard normal, is what critic targets and the actor draw actions with.
        """
        alpha = self.alpha
        critic = self.critic.step(self.critic_losses(batches, noise[:, 0], alpha))
        log_prob: list[tuple[Tensor, Tensor | None]] = []
        actor = self.actor.step(self.actor_losses(batches, noise[:, 1], alpha, log_prob))
        entropy = self._update_temperature(*log_prob[0], actor.ok)
        with torch.no_grad():
            self.target.lerp_(self.critic.flat.vector, self.sac.tau * critic.ok)
            rate = self.sac.actor_average_rate
            if rate is not None and self.averaged_actor is not None:
                self.averaged_actor.lerp_(self.actor.flat.vector, rate)
            self.totals.add(critic, actor, entropy, alpha)

    def _update_temperature(self, log_prob: Tensor, tasks: Tensor | None, ok: Tensor) -> Tensor:
        """Move the temperatures of the evaluated tasks; returns their entropies [T], 0 for others."""
        temperature = self.log_alpha.detach().requires_grad_()
        own = temperature.expand(self.num_tasks)
        own = own if tasks is None else own.index_select(0, tasks)
        per_task = losses.temperature_loss(own, log_prob, self.sac.target_entropy)
        # Per-task temperatures are separate parameters: a sum gives each its own gradient. A shared one
        # takes the mean over tasks, as one loss over the whole batch would.
        total = per_task.sum() / (len(per_task) if len(self.log_alpha) == 1 else 1)
        (gradient,) = torch.autograd.grad(total, temperature)
        masked_step(self.temperature_optimizer, self.log_alpha, gradient, ok & torch.isfinite(total))
        entropy = -log_prob.detach().mean(1)
        return entropy if tasks is None else entropy.new_zeros(self.num_tasks).index_copy(0, tasks, entropy)

    def anneal(self, progress: float) -> None:
        """Set the step sizes for `progress` in [0, 1] through the run."""
        sac = self.sac
        if sac.final_lr_fraction == 1.0:
            return
        fall = max(progress - sac.lr_hold_fraction, 0.0) / max(1.0 - sac.lr_hold_fraction, 1e-9)
        lrs = (sac.actor_lr, sac.critic_lr, sac.temperature_lr)
        for optimizer, lr in zip(self._optimizers(), lrs, strict=True):
            set_lr(optimizer, lr * sac.final_lr_fraction**fall)

    def critic_losses(self, batches: Sequence[Batch], noise: Tensor, alpha: Tensor) -> LossFunction:
        """Critic losses [T], or [N] of some tasks; targets of a batch are computed once.

        noise [K, T, B, A].
        """
        targets: dict[int, Tensor] = {}

        @torch.no_grad()
        def target(index: int, tasks: Tensor | None) -> Tensor:
            batch, own_noise, own_alpha = batches[index].of_tasks(tasks), noise[index], alpha
            if tasks is not None:
                own_noise, own_alpha = own_noise.index_select(0, tasks), alpha.index_select(0, tasks)
            actor = of_tasks(self.actor_spec, self.actor.flat.named(), tasks)
            next_action = sample_action(self.actor_spec, actor, batch.next_obs, own_noise)
            frozen = of_tasks(self.critic_spec, self.critic.flat.named(self.target), tasks)
            next_q = q_values(self.critic_spec, frozen, batch.next_obs, next_action.action)
            return losses.td_target(batch, next_action, next_q, own_alpha, self.sac.gamma)

        def function(parameters: Parameters, index: int, tasks: Tensor | None) -> Tensor:
            if tasks is None and index not in targets:
                targets[index] = target(index, None)
            known = targets.get(index)
            if tasks is not None:
                known = target(index, tasks) if known is None else known.index_select(0, tasks)
            assert known is not None
            return losses.critic_loss(self.critic_spec, parameters, batches[index].of_tasks(tasks), known)

        return function

    def actor_losses(
        self,
        batches: Sequence[Batch],
        noise: Tensor,
        alpha: Tensor,
        log_prob: list[tuple[Tensor, Tensor | None]],
    ) -> LossFunction:
        """Actor losses [T], or [N] of some tasks; log-probs go to `log_prob`, each with its tasks.

        noise [K, T, B, A].
        """
        frozen = self.critic.flat.named()

        def function(parameters: Parameters, index: int, tasks: Tensor | None) -> Tensor:
            obs, own_noise, own_alpha = batches[index].obs, noise[index], alpha
            if tasks is not None:
                obs, own_noise, own_alpha = (x.index_select(0, tasks) for x in (obs, own_noise, alpha))
            sampled = sample_action(self.actor_spec, parameters, obs, own_noise)
            log_prob.append((sampled.log_prob, tasks))
            critic = of_tasks(self.critic_spec, frozen, tasks)
            q = q_values(self.critic_spec, critic, obs, sampled.action)
            return losses.actor_loss(sampled, q, own_alpha)

        return function

    def failures(self) -> dict[str, Tensor]:
        """Per network, which tasks [T] (bool, on the device) made a step non-finite since the start."""
        return {"critic": self.critic.failures, "actor": self.actor.failures}

    def metrics(self) -> dict[str, Tensor]:
        """Device tensors that describe the updates since the last call.

        Means of losses, entropy and alpha [T] and of the directions' norms before clipping; under `critic/`
        and `actor/` the combiners' reports on their last call.
        """
        result = self.totals.pop_means()
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
            # The groups hold step sizes and what the device asks for: those are this agent's own.
            optimizer.load_state_dict({**optimizer.state_dict(), "state": saved["state"]})
        self.generator.set_state(state["generator"])

    def _optimizers(self) -> tuple[torch.optim.Adam, ...]:
        return self.actor.optimizer, self.critic.optimizer, self.temperature_optimizer
