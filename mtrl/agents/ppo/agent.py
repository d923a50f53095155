"""The PPO agent: it acts, stores a rollout, and learns from it while the environments wait."""

import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mtrl import seeds
from mtrl.agents.acting import ActingPolicy
from mtrl.agents.actor_critic import ActorCriticAgent
from mtrl.agents.base import Bound, Floats, Metrics, TaskSpec, Transitions
from mtrl.agents.methods import network_combiner, reads_temperatures
from mtrl.agents.ppo.rollout import Rollout, rollout_bytes
from mtrl.agents.ppo.update import LEARNING_RATES, PPOUpdate
from mtrl.config.schema import Config
from mtrl.device.random_stream import RandomStream
from mtrl.errors import UserError
from mtrl.networks.gaussian import squashed

SLICE_SECONDS = 1.0  # after which `learn` returns, so that signals are answered


class PPOAgent(ActorCriticAgent[PPOUpdate]):
    """One agent for all tasks (`mtrl.agents.base.Agent`); the rollout is allocated at its first use.

    It fills a rollout with one policy. Then it is `behind`, and `learn` computes the rows' log-probabilities,
    advantages and targets and steps `ppo.epochs` times on all minibatches. Pauses of `learn` do not change
    results. Permutations are drawn before each epoch, so a captured step gets the same rows as an eager one,
    and a checkpoint holds what remains of an epoch. `updates` counts steps on single minibatches. With
    `network.observation_norm: warmup` the first rollout is used for the statistics of observations only.

    Source: Schulman et al., "Proximal Policy Optimization Algorithms" (2017, arXiv 1707.06347), with
    generalised advantage estimates (Schulman et al., ICLR 2016, arXiv 1506.02438). Options: values by PopArt
    (van Hasselt et al., NeurIPS 2016, arXiv 1602.07714; per task: Hessel et al., AAAI 2019, arXiv 1809.04474)
    and the other parts of TOPPO (Li et al., 2026, arXiv 2605.11473), see docs/ppo.md; a learning rate that
    follows the divergence (Rudin et al., CoRL 2021, arXiv 2109.11978).
    """

    papers = (
        *("schulman2017ppo", "schulman2016gae", "hasselt2016popart", "hessel2019popart", "li2026toppo"),
        "rudin2021walk",
    )
    credit = (
        "PPO and its advantages; PopArt where ppo.value_norm is pop_art; TOPPO for its presets; Rudin et al. "
        "where ppo.target_kl is set."
    )
    never_read = (
        *("sac", "replay", "train.warmup_steps", "train.warmup_updates", "train.updates_per_step"),
        *("network.value_bins", "network.value_low", "network.value_high"),
    )

    @staticmethod
    def check(config: Config, num_tasks: int) -> None:
        """Refuse settings that PPO cannot train with, before anything starts.

        Raises:
            UserError: minibatches of unequal size, advantages that are always 0, a critic of another kind, a
                learning rate that cannot adapt, or a method that cannot combine PPO's losses.
        """
        ppo, copies = config.ppo, config.env.envs_per_task
        rows = ppo.rollout_steps * copies
        if rows % ppo.minibatches:
            raise UserError(
                "ppo.minibatches must divide the rows of a task, ppo.rollout_steps x env.envs_per_task = "
                f"{rows}; found {ppo.minibatches}. Change one of the three."
            )
        together = rows if ppo.advantages == "per_task" else num_tasks * rows // ppo.minibatches
        if ppo.advantages != "none" and together == 1:
            raise UserError(
                f"ppo.advantages={ppo.advantages} would standardise the advantages of one row, which are 0 "
                "then: PPO would learn nothing. Raise ppo.rollout_steps or env.envs_per_task."
            )
        if ppo.target_kl is not None and not LEARNING_RATES[0] <= ppo.actor_lr <= LEARNING_RATES[1]:
            raise UserError(
                f"with ppo.target_kl the actor's learning rate stays between {LEARNING_RATES[0]:g} and "
                f"{LEARNING_RATES[1]:g}; found ppo.actor_lr = {ppo.actor_lr:g}. Start between them, or leave "
                "ppo.target_kl out."
            )
        for setting, only in (("critic_loss", "squared"), ("critic_dtype", "float32")):
            if (found := getattr(config.network, setting)) != only:
                raise UserError(
                    f"agent ppo needs network.{setting}={only}; found {found}. Its critic predicts "
                    "values in single precision."
                )
        for network in ("critic", "actor"):
            if reads_temperatures(network_combiner(config, network, num_tasks)):
                raise UserError(
                    "method inverse_alpha reads temperatures, which agent ppo does not have. Choose another "
                    f"method for the {network}."
                )

    def __init__(self, config: Config, spec: TaskSpec, device: torch.device) -> None:
        super().__init__(config, spec, device, PPOUpdate(config, spec, device))
        self._row_stream = RandomStream(seeds.integer(config.seed, "replay"), device)
        lead = (spec.num_tasks, spec.envs_per_task)
        self._raw = torch.zeros(*lead, spec.action_dim, device=device)  # of the newest actions
        self._explore = ActingPolicy(self._explored, spec, self._draw_noise, device)
        self._assessed = False
        self._epoch = self._minibatch = 0  # epochs done on this rollout, minibatches done of this epoch
        rows = config.ppo.rollout_steps * spec.envs_per_task
        batches, self._batch = self.update.num_batches, rows // config.ppo.minibatches
        self._order = torch.zeros(batches, spec.num_tasks, rows, dtype=torch.int64, device=device)
        self._rows = torch.zeros(batches, spec.num_tasks, self._batch, dtype=torch.int64, device=device)
        self._captured = self._captured_update(self._step_once)

    @cached_property
    def rollout(self) -> Rollout:
        """What the newest policy met; allocated at the first use, since evaluation needs none.

        Raises:
            UserError: the rollout or the gradients of a step do not fit into the device's memory.
        """
        self._check_gradients_fit()
        return Rollout(
            num_tasks=self.spec.num_tasks,
            envs_per_task=self.spec.envs_per_task,
            steps=self.config.ppo.rollout_steps,
            obs_dim=self.spec.obs_dim,
            action_dim=self.spec.action_dim,
            device=self.device,
        )

    def act(self, obs: Floats) -> Floats:
        """Return actions [T*E, A] sampled from the policy; `observe` stores the samples before squashing."""
        return self._explore(obs)

    def observe(self, transitions: Transitions) -> None:
        """Store one vector step of the policy that `act` sampled."""
        obs, _, reward, successor, terminated, truncated, lost = transitions
        first, *rest = (self._by_task(part) for part in (obs, reward, successor, terminated))
        flags = {"ended": self._by_task(terminated | truncated), "lost": self._by_task(lost)}
        self.rollout.add(first, self._raw, *rest, **flags)

    def behind(self) -> bool:
        """Return whether the rollout is full and not yet learnt from."""
        return self.rollout.full

    def learn(self, progress: float) -> None:
        """Learn from a full rollout for about a second; without one, do nothing."""
        if not self.rollout.full:
            return
        if not self._fitted:
            self._fit()
            return
        began = time.perf_counter()
        self.update.anneal(progress)
        while self.rollout.full:
            self.update_from_rollout()
            if time.perf_counter() - began > SLICE_SECONDS:
                break
        self.wait()  # otherwise steps would pile up on a device, and a signal would wait for all of them

    def update_from_rollout(self) -> None:
        """Take the next step on a minibatch of a full rollout; after the last one the rollout is empty."""
        ppo, batch = self.config.ppo, self._batch
        if not self._assessed:
            self.update.assess(self.rollout, batch)
            self._assessed = True
        if self._minibatch == 0:
            keys = torch.rand(self._order.shape, generator=self._row_stream.generator, device=self.device)
            self._order.copy_(keys.argsort(dim=-1))  # a permutation for each task
        first = self._minibatch * batch
        self._rows.copy_(self._order[..., first : first + batch])
        self._captured()
        self.updates += 1
        self._minibatch = (self._minibatch + 1) % ppo.minibatches
        self._epoch += self._minibatch == 0
        if self._epoch == ppo.epochs:
            self.update.adapt(self.rollout, batch)
            self._epoch, self._assessed = 0, False
            self.rollout.clear()

    def metrics(self) -> Metrics:
        """Return means over the steps since the last call, with the newest rollout's and combiners' numbers.

        Empty if no step was made since.
        """
        update = self.update
        if not update.totals.sums.any():
            return Metrics({}, {})
        values = update.totals.pop_means()
        values["explained_variance"] = update.explained_variance
        if update.pop_art is not None:
            values["return_mean"] = update.pop_art.mean
            values["return_deviation"] = update.pop_art.deviation
        named = ("critic_loss", "actor_loss", "entropy", "kl", "clip_fraction", "explained_variance")
        metrics = self._logged(values, *named)
        metrics.scalars["train/actor_lr"] = float(update.actor.optimizer.param_groups[0]["lr"])
        return metrics

    def bounds(self) -> dict[str, Bound]:
        """Return the range of the divergence between the rollout's policy and its successors."""
        advice = (
            "Lower ppo.actor_lr or ppo.epochs, or let learning rates fall (ppo.final_lr_fraction, target_kl)."
        )
        return {"kl": Bound(-1e-3, self.config.ppo.kl_bound, advice)}

    def facts(self) -> dict[str, str]:
        """Return sizes for the start screen; allocates the rollout, which may raise UserError."""
        ppo = self.config.ppo
        rows = ppo.rollout_steps * self.spec.envs_per_task
        rollout = (
            f"{rows:,} rows per task in {ppo.rollout_steps:,} vector steps, {ppo.epochs} x "
            f"{ppo.minibatches} minibatches of {self._batch} rows per task"
        )
        return self._facts("critic", rollout=rollout, **self._rollouts_fact())

    def _rollouts_fact(self) -> dict[str, str]:
        """Return which vector steps are not learnt from; nothing if all of them are."""
        steps = self.config.steps
        rollouts, rest = divmod(steps, self.config.ppo.rollout_steps)
        fitting = self.update.observation_norm is not None and rollouts > 0
        if rollouts == fitting:
            return {"rollouts": f"{rollouts:,} in {steps:,} vector steps: nothing is learnt"}
        notes = ["the first one only standardises observations"] if fitting else []
        notes += [f"the last {rest:,} steps are not learnt from"] if rest else []
        return {"rollouts": "; ".join([f"{rollouts:,} in {steps:,} vector steps", *notes])} if notes else {}

    @property
    def data_memory(self) -> dict[str, int]:
        """Bytes of the rollout; allocates it."""
        spec, rows = self.spec, self.rollout.rows.shape[1]
        return {"rollout": rollout_bytes(spec.num_tasks, rows, spec.obs_dim, spec.action_dim, self.device)}

    def state(self) -> dict[str, Any]:
        """Return the parts "policy" (all that acting needs), "agent" and "rollout"."""
        adapting = {} if self.config.ppo.target_kl is None else {"actor_lr": self.update.actor_lr}
        return {
            "policy": self.policy_state(),
            "agent": {**self._own_state(), "row_order": self._row_stream.state(), **adapting},
            "rollout": {
                **self.rollout.state(),
                "assessed": self._assessed,
                "epoch": self._epoch,
                "minibatch": self._minibatch,
                "order": self._order if self._minibatch else None,
            },
        }

    def load_state(self, parts: Mapping[str, Any]) -> None:
        """Restore `state`: bit for bit on the same kind of device, else with fresh noise (`RandomStream`)."""
        state, rollout = parts["agent"], parts["rollout"]
        self._load_own_state(state)
        self._row_stream.load_state(state["row_order"])
        self.update.actor_lr = state.get("actor_lr", self.update.actor_lr)
        self.rollout.load_state(rollout)
        self._assessed, self._epoch = rollout["assessed"], rollout["epoch"]
        self._minibatch = rollout["minibatch"]
        if rollout["order"] is not None:
            self._order.copy_(rollout["order"])

    def _fit(self) -> None:
        """Take the statistics of observations from the first rollout, which serves for nothing else.

        Its actions are those of a policy that saw other inputs. Some networks' fresh outputs are far from 0,
        so the ratios of the two policies' densities would be without bounds.
        """
        norm = self.update.observation_norm
        assert norm is not None
        norm.fit(self.rollout.obs)
        self._fitted = True
        self.rollout.clear()

    def _step_once(self) -> None:
        self.update.step([self.rollout.gather(rows) for rows in self._rows])

    def _explored(self, obs: Tensor, noise: Tensor) -> Tensor:
        self._raw.copy_(self.update.draw(obs, noise))
        return squashed(self._raw, self.update.squash)
