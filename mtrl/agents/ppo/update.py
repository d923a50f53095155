"""The update of multi-task PPO: what a rollout is worth, and steps on minibatches of it.

A minibatch step is a fixed sequence of operations on tensors that keep their memory and never reads back to
the host, so on CUDA a graph can hold it. Actor and critic are two networks with a method each: the actor's
losses may have either sign, the critic's are never negative.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtrl.agents.actor_critic import ActorCritic
from mtrl.agents.base import TaskSpec
from mtrl.agents.ppo.advantages import advantages, explained_variance, standardised
from mtrl.agents.ppo.pop_art import PopArt
from mtrl.agents.ppo.rollout import Minibatch, Rollout
from mtrl.config.schema import Config
from mtrl.gradients.descent import set_lr
from mtrl.networks.base import Parameters
from mtrl.networks.gaussian import deviation, raw_action, raw_entropy, raw_log_prob

LEARNING_RATES = (1e-5, 1e-2)  # between which the actor's learning rate adapts
_LARGEST_LOG_RATIO = 80.0
_OF_ACTOR = ("entropy", "std", "kl", "clip_fraction")


class ActorAux(NamedTuple):
    """What one evaluation of the actor's losses met, means [N] over the rows of N tasks."""

    entropy: Tensor  # nats, of the Gaussian before squashing
    std: Tensor  # of the Gaussian, mean over actions
    kl: Tensor  # nats, an estimate of KL(policy of the rollout, policy now)
    clip_fraction: Tensor  # of rows whose ratio lies beyond the clip


class PPOUpdate(ActorCritic):
    """The networks, combiners and optimisers of PPO, and the steps that change them.

    Attributes:
        explained_variance: of the newest rollout's values, [T].
        actor_lr: the actor's learning rate, as the updates so far have left it (`ppo.target_kl`).
    """

    def __init__(self, config: Config, spec: TaskSpec, device: torch.device) -> None:
        pops = config.ppo.value_norm == "pop_art"
        super().__init__(
            config,
            spec,
            device,
            config.ppo,
            critic={"stack": 1, "inputs": spec.obs_dim, "outputs": 1},
            critic_heads=PopArt.heads(spec.num_tasks) if pops else {},
            of_actor=_OF_ACTOR,
            squash=config.ppo.squash,
        )
        self.ppo, self.actor_lr = config.ppo, config.ppo.actor_lr
        self.pop_art = PopArt(spec.num_tasks).to(device) if pops else None
        self.entropy_weight: Tensor = nn.Buffer(torch.tensor(config.ppo.entropy, device=device))
        self.explained_variance: Tensor = nn.Buffer(torch.zeros(spec.num_tasks, device=device))

    @torch.no_grad()
    def draw(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Return samples of the policy before squashing, [T, E, A], for observations [T, E, O]."""
        return raw_action(self.policy_outputs(self.actor.flat.named(), self.standardised(obs)), noise)

    @torch.no_grad()
    def assess(self, rollout: Rollout, rows: int) -> None:
        """Write log-probabilities, advantages and the critic's targets of a full rollout into it.

        Policy and critic have not changed since its first step, so this can wait until the rollout is full,
        and acting needs the actor alone. The networks see `rows` rows of each task at a time. The statistics
        of returns take in this rollout before the steps on it.
        """
        ppo, parameters = self.ppo, self.critic.flat.named()
        log_prob, advantage, target = rollout.learnt_from

        def values(obs: Tensor) -> Tensor:
            return self.values(self.value_outputs(parameters, obs))

        log_prob.copy_(self._in_parts(self._log_prob, rows, rollout.obs, rollout.raw))
        value = self._in_parts(values, rows, rollout.obs).unflatten(1, (rollout.steps, rollout.envs))
        reward, terminated, ended, lost = rollout.outcome
        following = torch.cat((value[:, 1:], torch.zeros_like(value[:, :1])), dim=1)
        for step, successor in rollout.successors():
            true = values(self.standardised(successor))
            last = step == rollout.steps - 1
            following[:, step] = true if last else torch.where(ended[:, step], true, following[:, step])
        flags = {"terminated": terminated, "ended": ended, "lost": lost}
        found = advantages(reward, value, following, **flags, gamma=ppo.gamma, gae_lambda=ppo.gae_lambda)
        raw, value, weight = found.flatten(1), value.flatten(1), rollout.weight
        returns = raw + value
        self.explained_variance.copy_(explained_variance(value, returns, weight))
        advantage.copy_(standardised(raw, weight, dim=(1,)) if ppo.advantages == "per_task" else raw)
        if self.pop_art is not None:
            self.pop_art.add(returns, weight, parameters)
            returns = self.pop_art.target(returns)
        target.copy_(returns)

    def step(self, batches: Sequence[Minibatch]) -> None:
        """Step the critic and the actor on K = `num_batches` independent minibatches.

        The networks share nothing, so their order does not matter.
        """
        work = [self._as_seen(batch) for batch in batches]
        critic = self.critic.step(partial(self.critic_loss, work))
        actor = self.actor.step(partial(self.actor_loss, work))
        with torch.no_grad():
            self.totals.add(critic, actor)

    def critic_loss(
        self, work: Sequence[Minibatch], parameters: Parameters, index: int, tasks: Tensor | None
    ) -> tuple[Tensor, None]:
        """Critic losses [T] on minibatch `index`, or [N] of some tasks (`LossFunction`)."""
        own = work[index].of_tasks(tasks)
        outputs = self.value_outputs(parameters, own.obs, tasks)
        squares = (outputs - own.target).square()
        return 0.5 * self.ppo.value_coefficient * _mean(squares, own.weight), None

    def actor_loss(
        self, work: Sequence[Minibatch], parameters: Parameters, index: int, tasks: Tensor | None
    ) -> tuple[Tensor, ActorAux]:
        """Actor losses [T] on minibatch `index`, or [N] of some tasks (`LossFunction`).

        The clipped surrogate (PPO, arXiv 1707.06347, equation 7) minus the weighted entropy.
        """
        own, clip = work[index].of_tasks(tasks), self.ppo.clip
        outputs = self.policy_outputs(parameters, own.obs, tasks)
        # Beyond 88 the ratio would be infinite. Its gradient is then NaN, even where the clip leaves it out.
        log_ratio = (raw_log_prob(outputs, own.raw) - own.log_prob).clamp(max=_LARGEST_LOG_RATIO)
        ratio = log_ratio.exp()
        bounded = ratio.clamp(1.0 - clip, 1.0 + clip)
        surrogate = torch.maximum(-own.advantage * ratio, -own.advantage * bounded)
        entropy = raw_entropy(outputs)
        losses = _mean(surrogate - self.entropy_weight * entropy, own.weight)
        with torch.no_grad():
            beyond = ((ratio - 1.0).abs() > clip).to(ratio.dtype)
            rows = (entropy, deviation(outputs).mean(-1), _divergence(log_ratio, ratio), beyond)
            return losses, ActorAux(*(_mean(row.detach(), own.weight) for row in rows))

    def anneal(self, progress: float) -> None:
        """Set learning rates and the entropy's weight for `progress` in [0, 1] through the run."""
        ppo = self.ppo
        share = 1.0 - progress * (1.0 - ppo.final_lr_fraction)
        set_lr(self.actor.optimizer, ppo.actor_lr * share if ppo.target_kl is None else self.actor_lr)
        set_lr(self.critic.optimizer, ppo.critic_lr * share)
        last = ppo.entropy if ppo.final_entropy is None else ppo.final_entropy
        self.entropy_weight.fill_(ppo.entropy + progress * (last - ppo.entropy))

    def adapt(self, rollout: Rollout, rows: int) -> None:
        """Choose the actor's next learning rate by how far the update of a rollout went, if `ppo.target_kl`.

        Call it once for each rollout, because it reads the divergence back to the host. The divergence is the
        mean over all rows and tasks; it is computed on `rows` rows of each task at a time.
        """
        if self.ppo.target_kl is not None:
            divergence = float(self.divergence(rollout, rows).mean())
            self.actor_lr = adapted(self.actor_lr, divergence, self.ppo.target_kl)

    @torch.no_grad()
    def divergence(self, rollout: Rollout, rows: int) -> Tensor:
        """Return the estimated KL(policy of an assessed rollout, policy now) of each task, [T] in nats."""
        now = self._in_parts(self._log_prob, rows, rollout.obs, rollout.raw)
        log_ratio = now - rollout.learnt_from[0]
        return _mean(_divergence(log_ratio, log_ratio.exp()), rollout.weight)

    def _log_prob(self, obs: Tensor, raw: Tensor) -> Tensor:
        """Log-probabilities [T, R] of samples at standardised observations, under the policy now."""
        return raw_log_prob(self.policy_outputs(self.actor.flat.named(), obs), raw)

    def value_outputs(self, parameters: Parameters, obs: Tensor, tasks: Tensor | None = None) -> Tensor:
        """Outputs of the critic [T, B] for standardised observations; parameters of the same tasks."""
        outputs = self.critic_network.apply(parameters, obs, tasks)[0].squeeze(-1)
        return outputs if self.pop_art is None else self.pop_art.output(parameters, outputs)

    def values(self, outputs: Tensor) -> Tensor:
        """Values [T, B] in units of reward of the critic's outputs [T, B]."""
        return outputs if self.pop_art is None else self.pop_art.value(outputs)

    def _as_seen(self, batch: Minibatch) -> Minibatch:
        advantage = batch.advantage
        if self.ppo.advantages == "minibatch":
            advantage = standardised(advantage, batch.weight, dim=(0, 1))
        return batch._replace(obs=self.standardised(batch.obs), advantage=advantage)

    def _in_parts(self, function: Callable[..., Tensor], rows: int, obs: Tensor, *more: Tensor) -> Tensor:
        """Evaluate a function of rows [T, R, ...] part by part, which bounds the memory of activations."""
        parts = zip(*(tensor.split(rows, dim=1) for tensor in (obs, *more)), strict=True)
        return torch.cat([function(self.standardised(first), *rest) for first, *rest in parts], dim=1)


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean [N] over the rows [N, B] of weight 1; 0 without any."""
    return (values * weight).sum(1) / weight.sum(1).clamp(min=1.0)


def _divergence(log_ratio: Tensor, ratio: Tensor) -> Tensor:
    """Estimate of the divergence at each row: never negative and of small variance.

    Schulman, 2020, "Approximating KL divergence", the third estimator.
    """
    return ratio - 1.0 - log_ratio


def adapted(lr: float, divergence: float, target: float) -> float:
    """Return `lr`, lower after an update that went too far, higher after one that hardly moved the policy.

    Rudin et al. (CoRL 2021, arXiv 2109.11978), with the factors and bounds of their code (rsl_rl). Deviation:
    that code decides at each minibatch, from the closed form for two Gaussians instead of an estimate from
    samples, and moves the critic's learning rate too.
    """
    if divergence > 2.0 * target:
        return max(lr / 1.5, LEARNING_RATES[0])
    return min(lr * 1.5, LEARNING_RATES[1]) if divergence < 0.5 * target else lr
