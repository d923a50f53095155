"""The training loop, top to bottom: act, step, update, store; log, evaluate, checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtrl import console
from mtrl.checkpoint import save_checkpoint
from mtrl.config import Config
from mtrl.envs import ACTION_SIZE, MetaWorldVectorEnv
from mtrl.errors import NonFiniteError, UserError
from mtrl.evaluation import Evaluation
from mtrl.evaluator import evaluate
from mtrl.logger import Logger
from mtrl.parts import Parts, act, make_policy
from mtrl.stop_signal import StopSignal

_MAX_FAILED_WRITES = 3


class TrainingLoop:
    """The training loop. Its order per vector step: act, start the environments, update, collect, store."""

    def __init__(
        self,
        config: Config,
        path: Path,
        parts: Parts,
        eval_envs: MetaWorldVectorEnv,
        logger: Logger,
        progress: console.ProgressReport,
    ) -> None:
        self.config, self.path, self.parts = config, path, parts
        self.eval_envs, self.logger, self.progress = eval_envs, logger, progress
        self.seconds = dict.fromkeys(("act", "update", "env_wait", "evaluation", "checkpoint"), 0.0)
        self.last_log = (0.0, 0)  # wall clock, vector step
        self.spent_at_log = dict(self.seconds)
        self.success: float | None = None
        self.final: Evaluation | None = None
        self.failed_writes = 0

    def run(self, start: int) -> int:
        """Go on from vector step `start`; returns the exit code: 0, or 128 + the signal that stopped it."""
        config, parts = self.config, self.parts
        if parts.obs is None:
            parts.obs, _ = parts.envs.reset()
        began = time.perf_counter()
        self.last_log = (began, start)
        with StopSignal() as stop:
            for done in range(start + 1, config.steps + 1):
                self._vector_step(done - 1)
                if done % config.train.log_interval == 0 or done == config.steps:
                    self._log(done)
                self._evaluate_if_due(done)
                stopped = stop.exit_code is not None
                if stopped or done % config.train.checkpoint_interval == 0 or done == config.steps:
                    self._save(done)
                if stopped and done < config.steps:
                    self.progress.message(
                        f"stopped at vector step {done:,}; continue with --resume {self.path}"
                    )
                    return int(stop.exit_code or 0)
        self._summary(time.perf_counter() - began, config.steps - start)
        return 0

    def _vector_step(self, step: int) -> None:
        """Move every environment by one env step and, after warm-up, update meanwhile."""
        config, parts = self.config, self.parts
        envs, obs = parts.envs, parts.obs
        assert obs is not None
        warm = step >= config.train.warmup_steps
        if warm:
            with _Timer(self.seconds, "act"):
                action = act(parts.agent, envs, obs, deterministic=False)
        else:
            action = parts.exploration.uniform(-1.0, 1.0, (envs.num_envs, ACTION_SIZE)).astype(np.float32)
        envs.step_async(action)
        if warm:
            parts.agent.anneal(step / config.steps)
            burst = config.train.warmup_updates if step == config.train.warmup_steps else 0
            with _Timer(self.seconds, "update"):
                for _ in range(config.train.updates_per_step + burst):
                    self._update()
        with _Timer(self.seconds, "env_wait"):
            next_obs, reward, terminated, truncated, infos = envs.step_wait()
        ended = terminated | truncated
        successor = infos["final_obs"] if ended.any() else next_obs
        parts.replay.add(*(self._by_task(x) for x in (obs, action, reward, successor, terminated)))
        parts.rollout.add(reward, infos["success"], ended)
        parts.obs = next_obs

    def _by_task(self, values: NDArray[Any]) -> torch.Tensor:
        """[T*E, ...] -> [T, E, ...]."""
        envs = self.parts.envs
        return torch.from_numpy(values).view(envs.num_tasks, envs.envs_per_task, *values.shape[1:])

    def _update(self) -> None:
        agent, replay = self.parts.agent, self.parts.replay
        size = self.config.sac.batch_per_task
        agent.update([replay.sample(size) for _ in range(agent.num_batches)])

    def _env_steps(self, vector_step: int) -> int:
        return vector_step * self.parts.envs.num_envs

    def _log(self, step: int) -> None:
        self._raise_if_failed()
        now = time.perf_counter()
        vector_steps = step - self.last_log[1]
        spent = {name: self.seconds[name] - self.spent_at_log[name] for name in self.seconds}
        elapsed = now - self.last_log[0] - spent["evaluation"] - spent["checkpoint"]
        self.last_log, self.spent_at_log = (now, step), dict(self.seconds)
        rate = vector_steps / max(elapsed, 1e-9)
        scalars = {
            "time/fps": rate * self.parts.envs.num_envs,
            "time/vector_steps_per_second": rate,
            "time/total_timesteps": float(self._env_steps(step)),
            **{f"time/{name}_ms": 1e3 * spent[name] / vector_steps for name in ("act", "update", "env_wait")},
            **self.parts.rollout.pop_means(),
        }
        per_task: dict[str, Any] = {}
        if step > self.config.train.warmup_steps:
            self._agent_metrics(scalars, per_task)
        self._write("log", step, lambda: self.logger.metrics(step, self._env_steps(step), scalars, per_task))
        self.progress.update(step, success=self.success, steps_per_second=rate)

    def _agent_metrics(self, scalars: dict[str, float], per_task: dict[str, Any]) -> None:
        values = {name: value.cpu().numpy() for name, value in self.parts.agent.metrics().items()}
        for name in ("critic_loss", "actor_loss", "entropy", "alpha"):
            per_task[name] = values.pop(name)
            scalars[f"train/{'ent_coef' if name == 'alpha' else name}"] = float(per_task[name].mean())
        # The critic's weights are the ones people compare; the actor's stand beside them.
        per_task["weight"] = values.pop("critic/weights")
        per_task["actor_weight"] = values.pop("actor/weights")
        for name, value in values.items():
            if value.ndim:
                per_task[name.replace("/", "_")] = value
            else:
                scalars[f"grad/{name.replace('/', '_')}"] = float(value)

    def _evaluate_if_due(self, step: int) -> None:
        settings = self.config.eval
        final = step == self.config.steps
        if not final and step % settings.interval:
            return
        episodes = settings.final_episodes_per_task if final else settings.episodes_per_task
        with _Timer(self.seconds, "evaluation"):
            result = evaluate(make_policy(self.parts.agent, self.eval_envs), self.eval_envs, episodes)
        self.success = result.mean_success
        self._write(
            "evaluation",
            step,
            lambda: self.logger.evaluation(step, self._env_steps(step), result, final=final),
        )
        self.progress.message(
            f"evaluation at {step:,}: success {result.mean_success:.3f} "
            f"(last step {result.mean_success_last:.3f}), "
            f"return {result.mean_return:.1f}"
        )
        if final:
            self.final = result

    def _save(self, step: int) -> None:
        """Write a checkpoint, unless the agent has met something non-finite."""
        self._raise_if_failed()
        keep = self.config.train.keep_checkpoints
        with _Timer(self.seconds, "checkpoint"):
            self._write(
                "checkpoint", step, lambda: save_checkpoint(self.path, step, self.parts.state(), keep=keep)
            )

    def _write(self, what: str, step: int, action: Callable[[], object]) -> None:
        """Survive a full disk for a while: training is worth more than one line or one checkpoint."""
        try:
            action()
        except OSError as error:
            self.failed_writes += 1
            message = f"{what} at vector step {step:,} could not be written: {error.strerror or error}"
            if self.failed_writes >= _MAX_FAILED_WRITES:
                raise UserError(
                    f"{message}, {self.failed_writes} failures; free space, then resume."
                ) from error
            console.warning(f"{message}; earlier ones are intact, training goes on.")
        else:
            self.failed_writes = 0

    def _raise_if_failed(self) -> None:
        names = self.parts.envs.task_names
        for network, flags in self.parts.agent.failures().items():
            bad = [names[index] for index in flags.nonzero().flatten().tolist()]
            if bad:
                raise NonFiniteError(
                    f"non-finite loss or gradient of the {network} in {', '.join(bad)}. These steps were "
                    f"skipped and no checkpoint was written since; the last good one is in '{self.path}'. "
                    "Lower the learning rates or scale the rewards (replay.reward_scaling=ema)."
                )

    def _summary(self, elapsed: float, vector_steps: int) -> None:
        split = ", ".join(
            f"{name.replace('_', ' ')} {seconds:.0f} s" for name, seconds in self.seconds.items()
        )
        self.progress.close()
        if self.final is not None:
            console.evaluation_table(self.final)
        rate = vector_steps / elapsed
        print(f"{vector_steps:,} vector steps in {elapsed:.0f} s ({rate:.1f}/s); {split}; run in {self.path}")


class _Timer:
    """Adds the time spent inside its block to one entry of a dict."""

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._name] += time.perf_counter() - self._began
