"""The training loop: vector steps, log lines, checkpoints and evaluations.

Their order at one vector step decides what a killed run loses:

1. The log line: every vector step that a checkpoint counts is in the log.
2. The checkpoint. It is written in the first seconds of the evaluation that follows, which takes minutes: a
   run killed during the evaluation loses only that evaluation.
3. The evaluation. A run is complete when its final evaluation is written; until then it can be resumed.

Before them comes the learning of an agent that is behind (`LearnsBetweenSteps`). A run that is stopped in the
middle of it saves there, and the resumed run learns on and writes the lines of that vector step.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrl.agents.base import CountsUpdates, NotesSuccess
from mtrl.config.presets import save_config
from mtrl.config.schema import Config
from mtrl.envs import TaskVectorEnv
from mtrl.errors import EnvironmentFailure, NonFiniteError
from mtrl.runs import console
from mtrl.runs.checkpoint_writer import CheckpointWriter, Saving, Writes
from mtrl.runs.directory import CONFIG_NAME, has_checkpoint, way_to_go_on
from mtrl.runs.jsonl import read_evaluations
from mtrl.runs.log import Evaluation, Log, by_task
from mtrl.training.best import BestPolicy, Outcome
from mtrl.training.build import with_restart
from mtrl.training.evaluate import evaluate
from mtrl.training.events import Callback, Event, Requests, TrainResult
from mtrl.training.guard import DivergenceGuard
from mtrl.training.stepper import RunState, Stepper, timed


class _StopInEvaluation(Exception):
    """Ends an evaluation on a stop signal; resume makes that evaluation from the start."""


class TrainingLoop:
    """The loop around `Stepper`: logs, checkpoints, evaluations, and the end of a run.

    `path` is the run directory, which the caller has locked; each of `callbacks` is called with each `Event`.
    """

    def __init__(
        self,
        config: Config,
        path: Path,
        state: RunState,
        eval_envs: TaskVectorEnv,
        log: Log,
        progress: console.RunProgress,
        requests: Requests,
        writer: CheckpointWriter,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.config, self.path, self.state, self.eval_envs = config, path, state, eval_envs
        self.log, self.progress, self.requests = log, progress, requests
        self.callbacks = callbacks
        self.stepper = Stepper(config, state)
        self.writes = Writes(path)
        self.saving = Saving(writer, self.writes, log.flush, self._saved)
        self.guard = DivergenceGuard(
            state.agent.bounds(), state.envs.task_names, config.train.on_divergence, console.warning
        )
        self.former_restarts = state.restarts
        self.learnt_since_save = False  # whether the agent has learnt after the vector step of the checkpoint
        self.guard.remember(read_evaluations(path))
        self.best = BestPolicy(path, state.envs.task_names, self.saving)
        self.seconds = {"evaluation": 0.0, "checkpoint": 0.0}
        self.final: Evaluation | None = None
        self.began = time.perf_counter()
        self.last_log = (self.began, 0, 0)  # wall clock, vector step, updates of the agent
        self.spent_at_log = self._spent()

    def run(self, start: int, *, resumed: bool, evaluated: bool) -> TrainResult:
        """Train from vector step `start` to the end.

        Args:
            start: vector steps done.
            resumed: whether the state comes from a checkpoint of `start`.
            evaluated: whether the evaluation at `start`, if one is due there, has been written.

        Raises:
            EnvironmentFailure: workers failed more often than allowed; a checkpoint was written.
            NonFiniteError: the agent met non-finite numbers; no checkpoint was written since.
            UserError: a disk stayed full.
            KeyboardInterrupt: Ctrl-C after a stop signal; its text says how to continue.
        """
        try:
            return self._run(start, resumed=resumed, evaluated=evaluated)
        except KeyboardInterrupt as error:
            text = f"interrupted at once; {way_to_go_on(self.path)}"
            raise KeyboardInterrupt(text) from error

    def _run(self, start: int, *, resumed: bool, evaluated: bool) -> TrainResult:
        self.began = time.perf_counter()
        self.last_log = (self.began, start, self._updates() or 0)
        self.saving.saved_at = start if resumed else None  # nothing new to save if no step is made
        self.stepper.begin()
        if self.config.train.keep_best:
            self.best.find(start, self.state.agent.policy_state)
        if self.state.behind:  # the former process was stopped while the agent learnt
            self._settle(start)
        elif resumed and not evaluated:  # it ended after the checkpoint, before the evaluation
            self._evaluate_if_due(start)
        elif resumed and not self.state.success_noted:  # the checkpoint predates the evaluation of its step
            tasks = read_evaluations(self.path)[-1]["tasks"]
            rates = [tasks[name]["success"] for name in self.state.envs.task_names]
            self._note_success(np.array(rates, np.float64))  # None becomes NaN
        step = start
        while step < self.config.steps and not self.requests.stop and self.stepper.failure is None:
            try:
                self.stepper.vector_step(step)
            except NonFiniteError:
                self._raise_if_failed()  # if the agent has failed already, name the tasks that made it fail
                raise
            step += 1
            self._settle(step)
        return self._end(start, step)

    def _settle(self, step: int) -> None:
        """Let the agent learn what it has to, then log, save and evaluate if that is due after `step`."""
        self.progress.step(step, self._training_seconds())
        self.saving.poll()
        self.stepper.catch_up(step, lambda: self._go_on_learning(step))
        if self.state.behind:  # a stop in the middle: the resumed run writes the lines of this vector step
            return
        self._log_if_due(step)
        self._save_if_due(step)
        self._evaluate_if_due(step)

    def _go_on_learning(self, step: int) -> bool:
        """Answer signals while the agent learns; return whether to go on."""
        if self.requests.stop:
            return False
        self.progress.step(step, self._training_seconds(), "learning")
        self.saving.poll()
        if self.requests.save:
            self._save(step)
        self.learnt_since_save = True
        return True

    def _end(self, start: int, step: int) -> TrainResult:
        self.saving.finish()  # the checkpoint under way may be that of this step
        if self.saving.saved_at != step or self.learnt_since_save:
            self._save(step, last=True)
        self.writes.presence.check()
        elapsed = time.perf_counter() - self.began
        advice = f"stopped at vector step {step:,}; {way_to_go_on(self.path)}"
        if self.stepper.failure is not None:
            raise EnvironmentFailure(f"{self.stepper.failure}\n{advice}") from self.stepper.failure
        self.progress.close()
        if self.final is None:
            self.progress.message(advice)
            return TrainResult(self.requests.exit_code or 0, None, self.path, elapsed, step)
        if self._updates() == 0:
            console.warning(
                f"the agent has made no update: {step:,} vector steps end within its warm-up or before "
                "its first full rollout to learn from. These are results of an untrained policy."
            )
        console.evaluation_table(self.final)
        split = ", ".join(
            f"{name.replace('_', ' ')} {seconds:.0f} s" for name, seconds in self._spent().items()
        )
        console.say(
            f"{step - start:,} vector steps in {elapsed:.0f} s ({(step - start) / elapsed:.1f}/s); {split}; "
            f"run in {self.path}"
        )
        return TrainResult(0, self.final, self.path, elapsed, step)

    def _spent(self) -> dict[str, float]:
        """Return the seconds spent so far, by activity."""
        return self.stepper.seconds | self.seconds

    def _training_seconds(self) -> float:
        return time.perf_counter() - self.began - sum(self.seconds.values())

    def _tell(self, kind: Any, step: int, **what: Any) -> None:
        values = {"path": self.path} | what
        event = Event(kind, step, self.config.steps, _requests=self.requests, **values)
        for callback in self.callbacks:
            callback(event)

    def _log_if_due(self, step: int) -> None:
        if step % self.config.train.log_interval and step != self.config.steps:
            return
        self._raise_if_failed()
        agent = self.state.agent.metrics()
        episodes, own_episodes = self.state.rollout.pop_means()
        scalars: dict[str, float] = self._speed(step) | episodes | agent.scalars
        per_task: dict[str, Any] = dict(agent.per_task) | own_episodes
        stamp = self.log.stamp(step, self.state.envs.num_envs)
        self.writes.attempt("log", step, lambda: self.log.metrics(stamp, scalars, per_task))
        self.guard.metrics(step, per_task)
        self.progress.line(step, scalars["time/vector_steps_per_second"])
        if self.callbacks:
            names = self.state.envs.task_names
            named = {group: by_task(names, values) for group, values in per_task.items()}
            self._tell("log", step, metrics=scalars | named)

    def _speed(self, step: int) -> dict[str, float]:
        """Return what the log says about time and workers since the last log line."""
        now, total, updates = time.perf_counter(), self._spent(), self._updates()
        vector_steps = step - self.last_log[1]
        each = max(vector_steps, 1)  # none lies between a resume in the middle of learning and its log line
        spent = {name: seconds - self.spent_at_log[name] for name, seconds in total.items()}
        elapsed = now - self.last_log[0] - spent["evaluation"] - spent["checkpoint"]
        made = {} if updates is None else {"time/updates_per_step": (updates - self.last_log[2]) / each}
        self.last_log, self.spent_at_log = (now, step, updates or 0), total
        rate, envs = vector_steps / max(elapsed, 1e-9), self.state.envs
        return {
            **made,
            "time/fps": rate * envs.num_envs,
            "time/vector_steps_per_second": rate,
            "time/total_timesteps": float(step * envs.num_envs),
            "env/restarts": float(self._restarts()),
            **({"env/last_restart_step": float(steps[-1])} if (steps := self.state.restart_steps) else {}),
            **{f"time/{name}_ms": 1e3 * spent[name] / each for name in self.stepper.seconds},
        }

    def _updates(self) -> int | None:
        """Return how many updates the agent has made, if it counts them."""
        return self.state.agent.updates if isinstance(self.state.agent, CountsUpdates) else None

    def _raise_if_failed(self) -> None:
        names = self.state.envs.task_names
        for network, tasks in self.state.agent.failures().items():
            bad = [names[index] for index in tasks]
            kept = (
                f"; the last good one is in '{self.path}'"
                if has_checkpoint(self.path)
                else ", and none before"
            )
            raise NonFiniteError(
                f"non-finite loss or gradient of the {network} in {', '.join(bad)}. No checkpoint was "
                f"written since{kept}. In a new run, lower the learning rates or scale the rewards."
            )

    def _save_if_due(self, step: int) -> None:
        last = step == self.config.steps
        if last or step % self.config.train.checkpoint_interval == 0 or self.requests.save:
            self._save(step, last=last)

    def _save(self, step: int, *, last: bool = False) -> None:
        """Begin a checkpoint; raise NonFiniteError if the agent has met something non-finite."""
        self._raise_if_failed()
        self.requests.save = self.learnt_since_save = False
        self.state.restarts = self._restarts()
        with timed(self.seconds, "checkpoint"):
            self.saving.begin(step, self.state.tree, last=last)
        if self.state.resume == "restart" and self.config.env.resume != "restart":
            self.config = with_restart(self.config)
            self.writes.attempt("config", step, lambda: save_config(self.config, self.path / CONFIG_NAME))

    def _saved(self, step: int, path: Path) -> None:
        self._tell("checkpoint", step, path=path)

    def _restarts(self) -> int:
        """Return how many workers were restarted, those of former processes included."""
        return self.former_restarts + self.state.envs.restarts + self.eval_envs.restarts

    def _evaluate_if_due(self, step: int) -> None:
        settings, final = self.config.eval, step == self.config.steps
        due = final or (step > 0 and step % settings.interval == 0)
        if not due or self.requests.stop or self.stepper.failure is not None:
            return
        self._raise_if_failed()
        episodes = settings.final_episodes_per_task if final else settings.episodes_per_task
        began, saving = time.perf_counter(), self.seconds["checkpoint"]
        policy = self.state.agent.policy(self.eval_envs.envs_per_task)
        try:
            self.eval_envs.renew()
            result = evaluate(
                policy, self.eval_envs, episodes, between_steps=lambda: self._between_evaluation_steps(step)
            )
        except _StopInEvaluation:
            return
        except EnvironmentFailure as failure:
            self.stepper.failure = failure
            return
        finally:
            saving = self.seconds["checkpoint"] - saving
            self.seconds["evaluation"] += time.perf_counter() - began - saving
        stamp = self.log.stamp(step, self.state.envs.num_envs)
        self.writes.attempt(
            "evaluation", step, lambda: self.log.evaluation(stamp, result, final=final), last=final
        )
        self.progress.success = result.mean_success
        self.progress.message(console.evaluation_line(step, result))
        if self.config.train.keep_best:
            self.best.offer(step, Outcome.of_result(result), self.state.agent.policy_state)
        self._note_success(result.success.mean(axis=1))
        self.guard.evaluation(step, result.task_means()["success"], result.episodes_per_task)
        if final:
            self.final = result
        self._tell("evaluation", step, evaluation=result, final=final)

    def _note_success(self, rates: NDArray[Any]) -> None:
        self.state.success_noted = True
        if isinstance(self.state.agent, NotesSuccess):
            self.state.agent.note_success(rates)

    def _between_evaluation_steps(self, step: int) -> None:
        """Answer signals during an evaluation: schedulers kill half a minute after their warning."""
        if self.requests.stop:
            raise _StopInEvaluation
        self.saving.poll()
        if self.requests.save:
            self._save(step)
        self.progress.step(step, self._training_seconds(), "evaluating")
