"""One update of multi-task SAC: a fixed sequence of operations on tensors that keep their memory.

The critics descend first, then the actor, then the temperatures; the target network follows. Nothing here
reads back to the host, so on CUDA a graph can hold an update. A delayed actor takes two graphs, one with its
step and one without.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtrl.agents.actor_critic import ActorCritic
from mtrl.agents.base import TaskSpec
from mtrl.agents.sac import losses
from mtrl.agents.sac.losses import Atoms, CriticOutputs
from mtrl.agents.sac.replay import Batch
from mtrl.config.schema import Config
from mtrl.gradients.descent import adam_step, make_adam, set_lr
from mtrl.gradients.per_task import LossEvaluation
from mtrl.networks.base import Parameters
from mtrl.networks.gaussian import noisy_action, sample_action


class Work(NamedTuple):
    """One batch and what an update adds to it. Only this class selects tasks."""

    batch: Batch
    alpha: Tensor  # temperatures [T]
    next_noise: Tensor  # [T, B, A], standard normal, for actions at the next observations
    noise: Tensor  # [T, B, A], for actions at the observations
    target: Tensor | None = None  # of the critics, [T, B] or [T, B, N]; None: not computed yet

    def for_target(self, tasks: Tensor | None) -> Work:
        """What the critics' target and loss need of these tasks; the actor's noise stays that of all."""
        alpha, next_noise = _of_tasks(tasks, self.alpha, self.next_noise)
        return self._replace(batch=self.batch.of_tasks(tasks), alpha=alpha, next_noise=next_noise)

    def for_critic(self, tasks: Tensor | None) -> list[Tensor]:
        """Observations, actions and known targets of these tasks, which the critics' loss needs."""
        assert self.target is not None
        return _of_tasks(tasks, self.batch.obs, self.batch.action, self.target)

    def for_actor(self, tasks: Tensor | None) -> list[Tensor]:
        """Observations, temperatures and noise of these tasks, which is all that the actor's loss needs."""
        return _of_tasks(tasks, self.batch.obs, self.alpha, self.noise)


def _of_tasks(tasks: Tensor | None, *parts: Tensor) -> list[Tensor]:
    """The rows of the tasks of an index [N]; None: all of them. Each selection is a launch."""
    return list(parts) if tasks is None else [part.index_select(0, tasks) for part in parts]


class CriticAux(NamedTuple):
    """What one evaluation of the critics' losses compared; N tasks."""

    outputs: Tensor  # of the twins, [2, N, B], or [2, N, B, atoms] of a distribution
    target: Tensor  # [N, B], or [N, B, atoms]


class ActorAux(NamedTuple):
    """What one evaluation of the actor's losses sampled; N tasks."""

    log_prob: Tensor  # [N], mean over samples
    value: Tensor  # [N], the critics', of the sampled actions, mean over samples


class SACUpdate(ActorCritic):
    """The networks, temperatures, combiners and optimisers of SAC, and the step that changes them.

    Attributes:
        target_entropy: of each task's policy, in nats; by default minus the number of action dimensions.
        snapshot: the actor's parameters that exploration acts with; None: the present ones.
    """

    def __init__(self, config: Config, spec: TaskSpec, device: torch.device) -> None:
        network, seen, action = config.network, spec.obs_dim, spec.action_dim
        atoms = Atoms(network.value_low, network.value_high, network.value_bins)
        outputs = CriticOutputs(network.critic_loss, config.sac.q_reduce, atoms)
        sizes = {"stack": 2, "inputs": seen + action, "outputs": outputs.number, "actions": action}
        super().__init__(
            config,
            spec,
            device,
            config.sac,
            critic=sizes,
            critic_heads={},
            of_actor=ActorAux._fields,
            others=("alpha",),
        )
        self.sac, self.critic_outputs = config.sac, outputs
        self._critic_dtype = self.critic.flat.seen.dtype
        wanted = config.sac.target_entropy
        self.target_entropy = -float(action) if wanted is None else wanted
        self.target = nn.Buffer(self.critic.flat.vector.detach().clone())
        # What exploration acts with during the updates; in checkpoints, since a resumed run acts with it.
        snapshot = config.sac.act_on_snapshot
        self.snapshot = nn.Buffer(self.actor.flat.vector.detach().clone()) if snapshot else None
        averages = config.sac.actor_average_rate is not None
        self.averaged_actor = nn.Buffer(self.actor.flat.vector.detach().clone()) if averages else None
        # Share of the initial parameters in a plain average, (1 - rate)^n after n steps.
        self.average_start = (
            nn.Buffer(torch.ones((), dtype=torch.float64, device=device)) if averages else None
        )
        temperatures = spec.num_tasks if config.sac.temperature == "per_task" else 1
        start = torch.full((temperatures,), config.sac.initial_temperature, device=device).log()
        self.log_alpha = nn.Parameter(start)
        self.temperature_optimizer = make_adam(self.log_alpha, lr=config.sac.temperature_lr)

    @property
    def optimizers(self) -> tuple[torch.optim.Adam, ...]:
        """Of the actor, the critics and the temperatures."""
        return *super().optimizers, self.temperature_optimizer

    @property
    def alpha(self) -> Tensor:
        """Temperatures [T]."""
        return self.log_alpha.detach().exp().expand(self.num_tasks)

    @property
    def acting(self) -> Tensor:
        """Parameters of the deterministic policy: the actor's, averaged if `actor_average_rate` is set."""
        return super().acting if self.averaged_actor is None else self.averaged_actor

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Return samples of the policy, or of its snapshot if one is kept: actions [T, E, A] in [-1, 1].

        Args:
            obs: [T, E, O].
            noise: standard normal, [T, E, A].
        """
        acting = self.actor.flat.named(self.snapshot)
        return noisy_action(self.policy_outputs(acting, self.standardised(obs)), noise)

    @torch.no_grad()
    def take_snapshot(self) -> None:
        """Let exploration act with the present actor until the next call; needs `sac.act_on_snapshot`."""
        assert self.snapshot is not None
        self.snapshot.copy_(self.actor.flat.vector)

    @torch.no_grad()
    def value(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return the critics' value [T, E] of actions [T, E, A] at observations [T, E, O]."""
        return self.critic_outputs.value(
            self._values(self.critic.flat.named(), self.standardised(obs), action)
        )

    def step(
        self, batches: Sequence[Batch], noise: Tensor, *, actor_too: bool = True
    ) -> list[LossEvaluation]:
        """Step the critics and the target network and, if `actor_too`, the actor and the temperatures.

        Args:
            batches: K = `num_batches` independent batches.
            noise: [K, 2, T, B, A], standard normal, for actions of the critics' targets and of the actor.
            actor_too: whether the actor, its average and the temperatures move as well.

        Returns:
            The evaluations of the critics' losses, which `td_error` and `td_errors` take.
        """
        # The order matters. All losses see the temperatures from before the update; the actor is judged by
        # the critics that have just moved; the temperatures follow the entropy that the actor's step sampled;
        # the target network moves last, and at every update. All state is written in place: a CUDA graph
        # repeats these operations on the same memory.
        alpha = self.alpha
        work = [Work(self._as_seen(batch), alpha, *pair) for batch, pair in zip(batches, noise, strict=True)]
        if self.critic.combiner.evaluates_all:
            # Targets are computed once for all evaluations. A method that looks at some of the tasks leaves
            # this to `critic_loss`, which computes the targets of these tasks alone.
            work = [own._replace(target=self.target_of(own)) for own in work]
        critic = self.critic.step(partial(self.critic_loss, work), alpha)
        actor = None
        if actor_too:
            actor = self.actor.step(partial(self.actor_loss, work), alpha)
            self._step_temperatures(actor.evaluations[0])
        with torch.no_grad():
            self.target.lerp_(self.critic.flat.vector, self.sac.tau)
            if actor_too:
                self._average()
            self.totals.add(critic, actor, alpha=alpha)
        return critic.evaluations

    def _average(self) -> None:
        """Move the actor's average, whose start is corrected as Adam corrects its moments.

        With a step of rate / (1 - (1 - rate)^n) it is the plain average of rate `rate`, without its share of
        the initial parameters, over the weight that is left: the first step gives the actor itself.
        """
        rate = self.sac.actor_average_rate
        if rate is not None and self.averaged_actor is not None and self.average_start is not None:
            self.average_start.mul_(1.0 - rate)
            step = (rate / (1.0 - self.average_start)).to(self.averaged_actor.dtype)
            self.averaged_actor.lerp_(self.actor.flat.vector, step)

    def critic_loss(
        self, work: Sequence[Work], parameters: Parameters, index: int, tasks: Tensor | None
    ) -> tuple[Tensor, CriticAux]:
        """Critic losses [T] on batch `index`, or [N] of some tasks (`LossFunction`)."""
        if work[index].target is None:
            own = work[index].for_target(tasks)
            obs, action, target = own.batch.obs, own.batch.action, self.target_of(own, tasks)
        else:
            obs, action, target = work[index].for_critic(tasks)
        outputs = self._values(parameters, obs, action, tasks)
        return self.critic_outputs.error(outputs, target), CriticAux(outputs.detach(), target)

    def actor_loss(
        self, work: Sequence[Work], parameters: Parameters, index: int, tasks: Tensor | None
    ) -> tuple[Tensor, ActorAux]:
        """Actor losses [T] on batch `index`, or [N] of some tasks (`LossFunction`)."""
        obs, alpha, noise = work[index].for_actor(tasks)
        sampled = sample_action(self.policy_outputs(parameters, obs, tasks), noise)
        values = self._values(self.critic.flat.named(), obs, sampled.action, tasks)
        log_prob, value = sampled.log_prob.mean(1), self.critic_outputs.value(values).mean(1)
        return losses.actor_loss(log_prob, value, alpha), ActorAux(log_prob.detach(), value.detach())

    @torch.no_grad()
    def target_of(self, own: Work, tasks: Tensor | None = None) -> Tensor:
        """Targets of the critics for work of all tasks, or of the tasks of an index [N]."""
        outputs = self.policy_outputs(self.actor.flat.named(), own.batch.next_obs, tasks)
        next_action = sample_action(outputs, own.next_noise)
        frozen = self.critic.flat.named(self.target)
        next_q = self._values(frozen, own.batch.next_obs, next_action.action, tasks)
        backup = partial(losses.td_target, own.batch, next_action, alpha=own.alpha, gamma=self.sac.gamma)
        return self.critic_outputs.target(next_q, backup)

    def anneal(self, progress: float) -> None:
        """Set the learning rates for `progress` in [0, 1], the fraction of the run that is over."""
        sac = self.sac
        if sac.final_lr_fraction == 1.0:
            return
        fall = max(progress - sac.lr_hold_fraction, 0.0) / max(1.0 - sac.lr_hold_fraction, 1e-9)
        lrs = (sac.actor_lr, sac.critic_lr, sac.temperature_lr)
        for optimizer, lr in zip(self.optimizers, lrs, strict=True):
            set_lr(optimizer, lr * sac.final_lr_fraction**fall)

    def td_error(self, evaluations: Sequence[LossEvaluation]) -> Tensor | None:
        """Mean distance [T] of values to their targets in the update that returned `evaluations`.

        In units of scaled reward, over one batch: a rough estimate that costs nothing extra. None if the
        method looked at some of the tasks only.
        """
        for seen in evaluations:
            if seen.tasks is None or len(seen.tasks) == self.num_tasks:
                error = self.critic_outputs.distance(*seen.aux).mean(dim=(0, 2))
                return (
                    error if seen.tasks is None else torch.empty_like(error).index_copy_(0, seen.tasks, error)
                )
        return None

    def td_errors(self, evaluations: Sequence[LossEvaluation]) -> list[tuple[int, Tensor | None, Tensor]]:
        """Distances of single samples: for each evaluation its batch, tasks (None: all) and errors [N, B]."""
        distance = self.critic_outputs.distance
        return [(seen.batch, seen.tasks, distance(*seen.aux).mean(dim=0)) for seen in evaluations]

    def _step_temperatures(self, seen: LossEvaluation) -> None:
        """Move the temperatures of the evaluated tasks."""
        gradient = losses.temperature_gradient(seen.aux.log_prob, self.target_entropy)
        if self.sac.temperature == "shared":  # the mean over tasks, as of one loss over the whole batch
            gradient = gradient.mean(0, keepdim=True)
        elif seen.tasks is not None:
            gradient = torch.zeros_like(self.log_alpha).index_copy_(0, seen.tasks, gradient)
        adam_step(self.temperature_optimizer, self.log_alpha, gradient)

    def _as_seen(self, batch: Batch) -> Batch:
        """Return a batch with standardised observations."""
        obs, next_obs = self.standardised(batch.obs), self.standardised(batch.next_obs)
        return batch._replace(obs=obs, next_obs=next_obs)

    def _values(
        self, parameters: Parameters, obs: Tensor, action: Tensor, tasks: Tensor | None = None
    ) -> Tensor:
        """Both critics' values [2, T, B], or logits [2, T, B, N] of a distribution."""
        inputs = torch.cat((obs, action), dim=-1).to(self._critic_dtype)
        return self.critic_network.apply(parameters, inputs, tasks).squeeze(-1).to(obs.dtype)
