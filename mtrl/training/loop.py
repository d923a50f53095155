"""The training loop: vector step after vector step; log, evaluate, checkpoint when it is time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtrl.config.schema import Config
from mtrl.envs import MetaWorldVectorEnv
from mtrl.errors import EnvironmentFailure, NonFiniteError, UserError
from mtrl.runs import console
from mtrl.runs.checkpoint import save_checkpoint
from mtrl.runs.evaluation import Evaluation
from mtrl.runs.logging import Logger
from mtrl.training.evaluate import evaluate
from mtrl.training.parts import Parts, make_policy
from mtrl.training.signals import StopSignal
from mtrl.training.stepper import Stepper, Timer

_MAX_FAILED_WRITES = 3


class TrainingLoop:
    """The loop around `Stepper`: logs, evaluations, checkpoints, and why it ends."""

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
        self.stepper = Stepper(config, parts)
        self.seconds = {"evaluation": 0.0, "checkpoint": 0.0}
        self.last_log = (0.0, 0)  # wall clock, vector step
        self.spent_at_log = self._spent()
        self.success: float | None = None
        self.final: Evaluation | None = None
        self.failed_writes = 0

    def run(self, start: int) -> int:
        """Go on from vector step `start`; returns the exit code: 0, or 128 + the signal that stopped it.

        Raises:
            EnvironmentFailure: workers failed more often than allowed; a checkpoint was written.
        """
        config, stepper = self.config, self.stepper
        stepper.begin()
        began = time.perf_counter()
        self.last_log = (began, start)
        with StopSignal() as stop:
            for done in range(start + 1, config.steps + 1):
                stepper.vector_step(done - 1)
                if done % config.train.log_interval == 0 or done == config.steps:
                    self._log(done)
                self._evaluate_if_due(done)
                if stepper.failure is not None:
                    self._save(done)
                    advice = f"stopped at vector step {done:,}; continue with --resume {self.path}"
                    raise EnvironmentFailure(f"{stepper.failure}\n{advice}") from stepper.failure
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

    def _spent(self) -> dict[str, float]:
        """Seconds so far, by what they were spent on."""
        return self.stepper.seconds | self.seconds

    def _env_steps(self, vector_step: int) -> int:
        return vector_step * self.parts.envs.num_envs

    def _log(self, step: int) -> None:
        self._raise_if_failed()
        now = time.perf_counter()
        vector_steps = step - self.last_log[1]
        total = self._spent()
        spent = {name: seconds - self.spent_at_log[name] for name, seconds in total.items()}
        elapsed = now - self.last_log[0] - spent["evaluation"] - spent["checkpoint"]
        self.last_log, self.spent_at_log = (now, step), total
        rate = vector_steps / max(elapsed, 1e-9)
        scalars = {
            "time/fps": rate * self.parts.envs.num_envs,
            "time/vector_steps_per_second": rate,
            "time/total_timesteps": float(self._env_steps(step)),
            "env/restarts": float(self.parts.envs.restarts + self.eval_envs.restarts),
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
        if self.stepper.failure is not None or (not final and step % settings.interval):
            return
        episodes = settings.final_episodes_per_task if final else settings.episodes_per_task
        with Timer(self.seconds, "evaluation"):
            try:
                result = evaluate(make_policy(self.parts.agent, self.eval_envs), self.eval_envs, episodes)
            except EnvironmentFailure as failure:
                self.stepper.failure = failure
                return
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
        with Timer(self.seconds, "checkpoint"):
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
            f"{name.replace('_', ' ')} {seconds:.0f} s" for name, seconds in self._spent().items()
        )
        self.progress.close()
        if self.final is not None:
            console.evaluation_table(self.final)
        rate = vector_steps / elapsed
        print(f"{vector_steps:,} vector steps in {elapsed:.0f} s ({rate:.1f}/s); {split}; run in {self.path}")
