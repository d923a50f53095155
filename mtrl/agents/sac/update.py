"""One update of multi-task SAC: a fixed sequence of operations on tensors that stay in place.

Critics descend, then the actor, then the temperatures; targets follow. Nothing here reads back to the host,
so that on CUDA the whole of it is one graph; with a delayed actor two, with and without its step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtrl import seeds
from mtrl.agents.base import TaskSpec
from mtrl.agents.sac import losses
from mtrl.agents.sac.critic_head import CriticHead
from mtrl.agents.sac.methods import make_combiners
from mtrl.agents.sac.observation_norm import ObservationNorm
from mtrl.agents.sac.replay import Batch
from mtrl.agents.sac.totals import Sampled, UpdateTotals
from mtrl.agents.sac.value_distribution import Atoms
from mtrl.combiners import Combiner
from mtrl.config.schema import Config
from mtrl.gradients.descent import Descent, adam_step, make_adam, set_lr
from mtrl.gradients.flat_parameters import FlatParameters
from mtrl.gradients.jacobian import LossFunction
from mtrl.networks.base import Network, Parameters
from mtrl.networks.build import network_arguments
from mtrl.networks.gaussian import mode_action, sample_action
from mtrl.networks.make import make_network


class ActorEvaluation(NamedTuple):
    """What one evaluation of the actor's losses sampled; N tasks."""

    log_prob: Tensor  # [N, B]
    value: Tensor  # [N, B], the critics', of the sampled actions
    tasks: Tensor | None  # int64 [N]; None: all


class CriticEvaluation(NamedTuple):
    """What one evaluation of the critics' losses compared; N tasks."""

    batch: int
    tasks: Tensor | None  # int64 [N]; None: all
    outputs: Tensor  # of the twins, [2, N, B] or with a distribution behind
    target: Tensor


class SACUpdate(nn.Module):
    """What an update changes: a policy, twin critics, target critics, temperatures, and their combiners.

    Args:
        config: of the run; of it `network`, `sac`, `seed` and the methods are read.
        spec: sizes.
        device: where parameters live.

    Attributes:
        actor_arguments: of the actor's network, as `make_network` takes them.
        num_batches: K, independent batches that `step` takes.
        target_entropy: of each task's policy, nats; by default minus the number of action dimensions.
    """

    def __init__(self, config: Config, spec: TaskSpec, device: torch.device) -> None:
        super().__init__()
        self.num_tasks, self.sac = spec.num_tasks, config.sac
        wanted = config.sac.target_entropy
        self.target_entropy = -float(spec.action_dim) if wanted is None else wanted
        network = config.network
        atoms = Atoms(network.value_low, network.value_high, network.value_bins)
        self.head = CriticHead(network.critic_loss, config.sac.q_reduce, atoms)
        self.observation_norm: ObservationNorm | None = None
        if network.observation_norm == "warmup":
            self.observation_norm = ObservationNorm(spec.obs_dim).to(device)
        architecture, sizes = network.architecture, {"num_tasks": spec.num_tasks}
        self.actor_arguments = network_arguments(
            network, "actor", **sizes, stack=1, inputs=spec.obs_dim, outputs=2 * spec.action_dim
        )
        critic_arguments = network_arguments(
            network,
            "critic",
            **sizes,
            stack=2,
            inputs=spec.obs_dim + spec.action_dim,
            outputs=self.head.outputs,
        )
        self.actor_network = make_network(architecture, self.actor_arguments)
        self.critic_network = make_network(architecture, critic_arguments)
        combiners = make_combiners(config, spec.num_tasks)
        initial = torch.Generator().manual_seed(seeds.integer(config.seed, "networks"))

        def descent(network: Network, combiner: Combiner, lr: float) -> Descent:
            flat = FlatParameters(*network.initial_parameters(initial)).to(device)
            sac = config.sac
            return Descent(
                flat, combiner.to(device), lr=lr, eps=sac.adam_eps, max_norm=sac.max_grad_norm
            ).to(device)  # fmt: skip

        self.actor = descent(self.actor_network, combiners.actor, config.sac.actor_lr)
        self.critic = descent(self.critic_network, combiners.critic, config.sac.critic_lr)
        self.num_batches = max(combiner.num_batches for combiner in combiners)
        self.target: Tensor
        self.register_buffer("target", self.critic.flat.vector.detach().clone())
        self.averaged_actor: Tensor | None
        average = None if config.sac.actor_average_rate is None else self.actor.flat.vector.detach().clone()
        self.register_buffer("averaged_actor", average)
        temperatures = spec.num_tasks if config.sac.temperature == "per_task" else 1
        start = torch.full((temperatures,), config.sac.initial_temperature, device=device).log()
        self.log_alpha = nn.Parameter(start)
        self.temperature_optimizer = make_adam(self.log_alpha, lr=config.sac.temperature_lr)
        self.totals = UpdateTotals(spec.num_tasks).to(device)
        self._evaluations: list[CriticEvaluation] = []  # in the last update, see `critic_losses`

    @property
    def optimizers(self) -> tuple[torch.optim.Adam, ...]:
        """Of the actor, the critics and the temperatures."""
        return self.actor.optimizer, self.critic.optimizer, self.temperature_optimizer

    @property
    def capturable(self) -> bool:
        """Whether an update never reads back to the host, so that a CUDA graph can hold it."""
        return self.critic.combiner.capturable and self.actor.combiner.capturable

    @property
    def alpha(self) -> Tensor:
        """Temperatures [T]."""
        return self.log_alpha.detach().exp().expand(self.num_tasks)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Tensor | None) -> Tensor:
        """Return actions [T, E, A] in [-1, 1] for observations [T, E, O].

        With standard normal noise [T, E, A] a sample of the policy; without, its mode, with the parameters
        averaged over updates where `actor_average_rate` asks for that.
        """
        obs = self._seen(obs)
        if noise is None:
            return mode_action(self._policy(self.actor.flat.named(self.averaged_actor), obs))
        return sample_action(self._policy(self.actor.flat.named(), obs), noise).action

    def step(self, batches: Sequence[Batch], noise: Tensor, *, actor_too: bool = True) -> None:
        """One step of critics and targets, and if `actor_too` of actor and temperatures.

        Args:
            batches: K = `num_batches` independent ones.
            noise: [K, 2, T, B, A], standard normal, what critic targets and the actor draw actions with.
            actor_too: whether actor, its average and the temperatures move as well.
        """
        if self.observation_norm is not None:
            batches = [
                batch._replace(obs=self._seen(batch.obs), next_obs=self._seen(batch.next_obs))
                for batch in batches
            ]
        alpha = self.alpha
        critic = self.critic.step(self.critic_losses(batches, noise[:, 0], alpha), alpha)
        actor = sampled = None
        if actor_too:
            seen: list[ActorEvaluation] = []
            actor = self.actor.step(self.actor_losses(batches, noise[:, 1], alpha, seen), alpha)
            self._step_temperatures(seen[0])
            sampled = self._means(seen[0])
        with torch.no_grad():
            self.target.lerp_(self.critic.flat.vector, self.sac.tau)
            rate = self.sac.actor_average_rate
            if rate is not None and self.averaged_actor is not None and actor_too:
                self.averaged_actor.lerp_(self.actor.flat.vector, rate)
            self.totals.add(critic, actor, sampled, alpha)

    def critic_losses(self, batches: Sequence[Batch], noise: Tensor, alpha: Tensor) -> LossFunction:
        """Critic losses [T], or [N] of some tasks; targets of a batch are computed once.

        noise [K, T, B, A]. Evaluations up to the first one of all tasks are remembered.
        """
        targets: dict[int, Tensor] = {}
        self._evaluations = []

        @torch.no_grad()
        def target(index: int, tasks: Tensor | None) -> Tensor:
            batch = batches[index].of_tasks(tasks)
            own_noise, own_alpha = _of_tasks(noise[index], tasks), _of_tasks(alpha, tasks)
            outputs = self._policy(self.actor.flat.named(), batch.next_obs, tasks)
            next_action = sample_action(outputs, own_noise)
            frozen = self.critic.flat.named(self.target)
            next_q = self._values(frozen, batch.next_obs, next_action.action, tasks)

            def backup(values: Tensor) -> Tensor:
                return losses.td_target(batch, next_action, values, own_alpha, self.sac.gamma)

            return self.head.target(next_q, backup)

        def function(parameters: Parameters, index: int, tasks: Tensor | None) -> Tensor:
            if tasks is None and index not in targets:
                targets[index] = target(index, None)
            known = targets.get(index)
            known = target(index, tasks) if known is None else _of_tasks(known, tasks)
            batch = batches[index].of_tasks(tasks)
            outputs = self._values(parameters, batch.obs, batch.action, tasks)
            if all(seen.tasks is not None for seen in self._evaluations):
                self._evaluations.append(CriticEvaluation(index, tasks, outputs.detach(), known))
            return self.head.error(outputs, known)

        return function

    def actor_losses(
        self,
        batches: Sequence[Batch],
        noise: Tensor,
        alpha: Tensor,
        seen: list[ActorEvaluation],
    ) -> LossFunction:
        """Actor losses [T], or [N] of some tasks; what each evaluation sampled goes to `seen`.

        noise [K, T, B, A].
        """
        frozen = self.critic.flat.named()

        def function(parameters: Parameters, index: int, tasks: Tensor | None) -> Tensor:
            obs = _of_tasks(batches[index].obs, tasks)
            sampled = sample_action(self._policy(parameters, obs, tasks), _of_tasks(noise[index], tasks))
            q = self.head.value(self._values(frozen, obs, sampled.action, tasks))
            seen.append(ActorEvaluation(sampled.log_prob.detach(), q.detach(), tasks))
            return losses.actor_loss(sampled, q, _of_tasks(alpha, tasks))

        return function

    def anneal(self, progress: float) -> None:
        """Set the step sizes for `progress` in [0, 1] through the run."""
        sac = self.sac
        if sac.final_lr_fraction == 1.0:
            return
        fall = max(progress - sac.lr_hold_fraction, 0.0) / max(1.0 - sac.lr_hold_fraction, 1e-9)
        lrs = (sac.actor_lr, sac.critic_lr, sac.temperature_lr)
        for optimizer, lr in zip(self.optimizers, lrs, strict=True):
            set_lr(optimizer, lr * sac.final_lr_fraction**fall)

    def td_error(self) -> Tensor | None:
        """Mean distance of values to their targets in the last update, [T], in units of scaled reward.

        Of at most `sac.batch_per_task` samples of each task: a rough number, but one that costs an update
        nothing. None where the method looks at some tasks only, or before the first update.
        """
        whole = [seen for seen in self._evaluations if seen.tasks is None]
        return self.head.distance(whole[0].outputs, whole[0].target) if whole else None

    def td_errors(self) -> list[tuple[int, Tensor | None, Tensor]]:
        """The same for each sample that the last update looked at: batch, tasks (or None), errors [N, B]."""
        return [
            (seen.batch, seen.tasks, self.head.distances(seen.outputs, seen.target))
            for seen in self._evaluations
        ]

    def _step_temperatures(self, seen: ActorEvaluation) -> None:
        """Move the temperatures of the evaluated tasks."""
        log_prob, _, tasks = seen
        temperature = self.log_alpha.detach().requires_grad_()
        own = _of_tasks(temperature.expand(self.num_tasks), tasks)
        per_task = losses.temperature_loss(own, log_prob, self.target_entropy)
        # Per-task temperatures are separate parameters: a sum gives each its own gradient. A shared one
        # takes the mean over tasks, as one loss over the whole batch would.
        total = per_task.sum() / (len(per_task) if len(self.log_alpha) == 1 else 1)
        (gradient,) = torch.autograd.grad(total, temperature)
        adam_step(self.temperature_optimizer, self.log_alpha, gradient)

    def _means(self, seen: ActorEvaluation) -> Sampled:
        means = seen.value.mean(1), -seen.log_prob.mean(1)
        if seen.tasks is None:
            return Sampled(*means)
        return Sampled(*(m.new_zeros(self.num_tasks).index_copy(0, seen.tasks, m) for m in means))

    def _seen(self, obs: Tensor) -> Tensor:
        """Observations as the networks see them."""
        result: Tensor = obs if self.observation_norm is None else self.observation_norm(obs)
        return result

    def _policy(self, parameters: Parameters, obs: Tensor, tasks: Tensor | None = None) -> Tensor:
        """Outputs of the actor's network [T, B, 2A]."""
        return self.actor_network.apply(parameters, obs, tasks)[0]

    def _values(
        self, parameters: Parameters, obs: Tensor, action: Tensor, tasks: Tensor | None = None
    ) -> Tensor:
        """Both critics' values [2, T, B], or logits [2, T, B, N] of a distribution."""
        return self.critic_network.apply(parameters, torch.cat((obs, action), dim=-1), tasks).squeeze(-1)


def _of_tasks(values: Tensor, tasks: Tensor | None) -> Tensor:
    """Rows of the tasks of an index [N]; None: all."""
    return values if tasks is None else values.index_select(0, tasks)
