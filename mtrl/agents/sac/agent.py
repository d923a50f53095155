"""The SAC agent: it acts, stores transitions and updates its networks while the environments step."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtrl import seeds
from mtrl.agents.acting import ActingPolicy
from mtrl.agents.actor_critic import ActorCriticAgent
from mtrl.agents.base import Bound, Floats, Metrics, TaskSpec, Transitions
from mtrl.agents.methods import network_combiner, reads_temperatures
from mtrl.agents.sac.episode_starts import EpisodeStarts
from mtrl.agents.sac.noise_hold import NoiseHold, spread_over_copies
from mtrl.agents.sac.replay import Replay, replay_bytes
from mtrl.agents.sac.update import SACUpdate
from mtrl.config.schema import Config
from mtrl.device.cuda import SideStream
from mtrl.errors import UserError
from mtrl.gradients.per_task import LossEvaluation

_TEMPERATURES = (1e-7, 1e4)  # no reward scale needs a temperature outside: it has diverged


class SACAgent(ActorCriticAgent[SACUpdate]):
    """One agent for all tasks (`mtrl.agents.base.Agent`); the replay is allocated at its first use.

    It warms up with uniformly random actions for `train.warmup_steps` vector steps, or longer if restarted
    environments have left less than a batch. The first `learn` after that makes `train.warmup_updates`
    additional updates. Random numbers come from streams of the agent and are drawn before each update: so a
    captured update gets the same numbers as an eager one, and a checkpoint holds the streams.

    Source: Haarnoja et al., "Soft Actor-Critic" (ICML 2018, arXiv 1801.01290), with temperatures that follow
    the entropy (Haarnoja et al., 2018, arXiv 1812.05905), one for each task.
    """

    papers = ("haarnoja2018sac", "haarnoja2018temperature")
    never_read = ("ppo",)

    @staticmethod
    def check(config: Config, num_tasks: int) -> None:
        """Refuse settings that SAC cannot train with, before anything starts.

        Raises:
            UserError: two settings that exclude each other, or a method that cannot combine SAC's losses or
                has nothing to read.
        """
        batch, copies = config.sac.batch_per_task, config.env.envs_per_task
        warmup = config.train.warmup_steps * copies
        if warmup < batch:
            raise UserError(
                "sac.batch_per_task must be at most the transitions per task collected in warm-up, "
                f"train.warmup_steps x env.envs_per_task = {warmup}; "
                f"found {batch}. Raise train.warmup_steps or lower sac.batch_per_task."
            )
        if config.sac.noise_spread > 1 and copies == 1:
            raise UserError(
                f"sac.noise_spread = {config.sac.noise_spread:g} gives the copies of a task different noise; "
                "found env.envs_per_task = 1. Raise env.envs_per_task to 2 or more, or leave "
                "sac.noise_spread at 1."
            )
        start, (least, most) = config.sac.initial_temperature, _TEMPERATURES
        if config.train.on_divergence == "stop" and not least <= start <= most:
            raise UserError(
                f"sac.initial_temperature must lie in [{least:g}, {most:g}], outside of which training "
                f"counts as diverged; found {start:g}. Choose another, or set train.on_divergence=warn."
            )
        low, high = config.network.value_low, config.network.value_high
        if not low < high:
            raise UserError(f"network.value_low must be below network.value_high; found {low} and {high}.")
        capacity = config.replay.capacity_per_task
        if (kept := capacity // copies * copies) < max(batch, copies):
            raise UserError(
                f"replay.capacity_per_task must hold sac.batch_per_task = {batch} transitions in whole "
                f"vector steps of env.envs_per_task = {copies}; found {capacity}, of which {kept} are usable."
            )
        replay = config.replay
        if replay.return_quantile is not None and replay.reward_scaling != "return":
            raise UserError(
                f"replay.return_quantile = {replay.return_quantile:g} needs replay.reward_scaling = return; "
                f"found {replay.reward_scaling}. Set both, or leave the quantile out."
            )
        for network in ("critic", "actor"):
            combiner = network_combiner(config, network, num_tasks)
            if config.sac.temperature == "shared" and reads_temperatures(combiner):
                raise UserError(
                    "method inverse_alpha weighs tasks by their temperatures and needs "
                    "sac.temperature=per_task; found shared, with which it is the mean. Set it to per_task, "
                    f"or choose another method for the {network}."
                )

    def __init__(self, config: Config, spec: TaskSpec, device: torch.device) -> None:
        super().__init__(config, spec, device, SACUpdate(config, spec, device))
        self._evaluations: list[LossEvaluation] = []  # of the critics' losses in the newest update
        self._observed = 0  # vector steps
        self._starts = EpisodeStarts(spec, config.sac.gamma)
        self._exploration = seeds.generator(config.seed, "exploration")
        self._hold: NoiseHold | None = None
        if config.sac.noise_hold > 1:
            lead = (spec.num_tasks, spec.envs_per_task)
            seed = seeds.integer(config.seed, "noise_hold")
            self._hold = NoiseHold(
                lead, spec.action_dim, longest=config.sac.noise_hold, device=device, seed=seed
            )
        draw: Callable[[Tensor], Tensor] = self._draw_noise if self._hold is None else self._hold.draw
        if config.sac.noise_spread > 1:
            draw = spread_over_copies(draw, config.sac.noise_spread, spec.envs_per_task, device)
        self._side_stream = SideStream(device) if config.sac.act_on_snapshot else None
        self._explore = ActingPolicy(self.update.act, spec, draw, device, self._side_stream)
        batches, sizes = self.update.num_batches, (spec.num_tasks, config.sac.batch_per_task)
        self._rows = torch.zeros(batches, *sizes, dtype=torch.int64, device=device)
        self._noise = torch.zeros(batches, 2, *sizes, spec.action_dim, device=device)
        self._captured = self._captured_update(self._update_once)

    @cached_property
    def replay(self) -> Replay:
        """Transitions to learn from; allocated at the first use, since evaluation needs none.

        Raises:
            UserError: the replay or the gradients of an update do not fit into the device's memory.
        """
        self._check_gradients_fit()
        replay = self.config.replay
        return Replay(
            num_tasks=self.spec.num_tasks,
            capacity_per_task=replay.capacity_per_task,
            envs_per_task=self.spec.envs_per_task,
            obs_dim=self.spec.obs_dim,
            action_dim=self.spec.action_dim,
            device=self.device,
            seed=seeds.integer(self.config.seed, "replay"),
            reward_scaling=replay.reward_scaling,
            return_bound=replay.return_bound,
            return_quantile=replay.return_quantile,
            n_step=replay.n_step,
            gamma=self.config.sac.gamma,
            curriculum=replay.curriculum,
        )

    @property
    def warm(self) -> bool:
        """Whether warm-up is over."""
        enough = self.replay.size >= self.config.sac.batch_per_task
        return self._observed >= self.config.train.warmup_steps and enough

    def act(self, obs: Floats) -> Floats:
        """Return a sample of the policy [T*E, A]; during warm-up uniformly random actions."""
        if self.warm:
            self._fit_observations()
            return self._explore(obs)
        shape = (len(obs), self.spec.action_dim)
        return self._exploration.uniform(-1.0, 1.0, shape).astype(np.float32)

    def observe(self, transitions: Transitions) -> None:
        """Store one vector step. Time limits are bootstrapped, but they end an n-step window."""
        obs, action, reward, successor, terminated, truncated, lost = transitions
        parts = (self._by_task(part) for part in (obs, action, reward, successor, terminated))
        flags = {"ended": self._by_task(terminated | truncated), "lost": self._by_task(lost)}
        self.replay.add(*parts, **flags)
        self._starts.add(transitions)
        self._observed += 1

    def learn(self, progress: float) -> None:
        """Make the updates of one vector step, none during warm-up; on CUDA this only starts them."""
        if not self.warm:
            return
        train = self.config.train
        self._fit_observations()
        self.update.anneal(progress)
        if self._side_stream is not None:
            self.update.take_snapshot()  # the last `act` has returned, so nobody reads the former one
            self._side_stream.mark()
        if self.replay.curriculum is not None:
            self.replay.curriculum.advance(progress)
        burst = train.warmup_updates if self.updates == 0 else 0
        for _ in range(train.updates_per_step + burst):
            self.update_from_replay()

    def update_from_replay(self) -> None:
        """Update once, on freshly drawn batches.

        Raises:
            ValueError: fewer than `sac.batch_per_task` transitions are stored per task.
        """
        for rows in self._rows:
            self.replay.draw(rows)
        self._draw_noise(self._noise)
        self._evaluations = self._captured(self.updates % self.config.sac.actor_every == 0)
        self.updates += 1

    def wait(self) -> None:
        """Wait for the updates that `learn` started, unless a snapshot acts."""
        if self._side_stream is None:
            super().wait()

    def metrics(self) -> Metrics:
        """Return means over the updates since the last call, and the combiners' metrics of the newest one."""
        if self.updates == 0:
            return Metrics({}, {})
        values = self.update.totals.pop_means()
        values["entropy"] = -values.pop("log_prob")
        values["high_reward_share"] = self.replay.high_reward_share()
        if (error := self.update.td_error(self._evaluations)) is not None:
            values["td_error"] = error
        if self.replay.reward_scale is not None:
            values["reward_scale"] = self.replay.reward_scale
        metrics = self._logged(values | self._calibration(), "critic_loss", "actor_loss", "entropy")
        metrics.scalars["train/ent_coef"] = float(metrics.per_task["alpha"].mean())
        return metrics

    def _calibration(self) -> dict[str, Tensor]:
        """Return, by task, the mean critic value at episode starts and the episodes' mean scaled return."""
        obs, action, realised = (self._by_task(part) for part in self._starts.newest)
        value = self.update.value(obs.to(self.device), action.to(self.device))
        realised = realised.to(self.device)
        scale = 1.0 if self.replay.reward_scale is None else self.replay.reward_scale
        return {
            "start_value": torch.where(realised.isnan(), torch.nan, value).nanmean(1),
            "start_return": (realised.nanmean(1) / scale).float(),
        }

    def bounds(self) -> dict[str, Bound]:
        """Return the ranges of critic loss, actor loss (about minus Q), temperature and returns of atoms."""
        sac, network = self.config.sac, self.config.network
        lower = "Lower sac.critic_lr or sac.gamma."
        if self.config.replay.reward_scaling != "return":
            lower = "Lower sac.critic_lr or sac.gamma, or scale the rewards (replay.reward_scaling=return)."
        temperature = "Set sac.target_entropy (one value for all tasks), or lower sac.temperature_lr."
        bounds = {
            "critic_loss": Bound(0.0, sac.critic_loss_bound, lower),
            "actor_loss": Bound(-sac.q_bound, sac.q_bound, lower),
            "alpha": Bound(*_TEMPERATURES, temperature),
        }
        if self.update.critic_outputs.distributional:
            low, high = network.value_low, network.value_high
            scale = "scale the rewards (replay.reward_scaling=return)"
            if self.config.replay.reward_scaling == "return":
                scale = "lower replay.return_bound"
            atoms = (
                "The critics have no atoms for such returns: widen network.value_low and network.value_high, "
                f"or {scale}."
            )
            # A scale may put returns on the last atom; they are beyond it by rounding then.
            rounding = 3e-7
            ends = low - rounding * abs(low), high + rounding * abs(high)
            bounds["start_return"] = Bound(*ends, atoms, diverged=False)
        return bounds

    def facts(self) -> dict[str, str]:
        """Return sizes for the start screen; allocates the replay, which may raise UserError."""
        return self._facts("critics", batch=f"{self.config.sac.batch_per_task} transitions per task")

    @property
    def data_memory(self) -> dict[str, int]:
        """Bytes of the replay; allocates it."""
        spec, capacity = self.spec, self.replay.capacity
        return {"replay": replay_bytes(spec.num_tasks, capacity, spec.obs_dim, spec.action_dim)}

    def state(self) -> dict[str, Any]:
        """Return the parts "policy" (all that acting needs), "agent", "replay" and the replay's pieces."""
        return {
            "policy": self.policy_state(),
            "agent": {
                **self._own_state(each_steps=self.config.sac.actor_every == 1),
                "exploration": self._exploration.bit_generator.state,
                "noise_hold": None if self._hold is None else self._hold.state_dict(),
                "starts": self._starts.state_dict(),
                "observed": self._observed,
            },
            **self.replay.state_parts(),
        }

    def load_state(self, parts: Mapping[str, Any]) -> None:
        """Restore `state`: bit for bit on the same kind of device, else with fresh noise (`RandomStream`)."""
        state = parts["agent"]
        self._load_own_state(state)
        self._exploration.bit_generator.state = state["exploration"]
        if self._hold is not None:
            self._hold.load_state_dict(state["noise_hold"])
        self._starts.load_state_dict(state["starts"])
        self._observed = state["observed"]
        self.replay.load_state_parts(parts)
        if self._side_stream is not None:
            self._side_stream.mark()

    def _fit_observations(self) -> None:
        """Fix the standardisation of observations when warm-up is over, before anything depends on it."""
        if not self._fitted and self.update.observation_norm is not None:
            self.update.observation_norm.fit(self.replay.observations)
            self._fitted = True
            if self._side_stream is not None:  # which acts next; a resumed run has a mark from before
                self._side_stream.mark()

    def _update_once(self, actor_too: bool) -> list[LossEvaluation]:
        batches = [self.replay.gather(rows) for rows in self._rows]
        evaluations = self.update.step(batches, self._noise, actor_too=actor_too)
        if self.replay.curriculum is not None:
            for batch, tasks, errors in self.update.td_errors(evaluations):
                self.replay.curriculum.note(self._rows[batch], errors, tasks)
        return evaluations
