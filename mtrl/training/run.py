"""Entry points: train a run, resume it, evaluate it."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from numbers import Integral
from pathlib import Path
from typing import Any

import torch

from mtrl.config.files import expand, file_name
from mtrl.config.labels import method_label, tasks_folder
from mtrl.config.presets import config_to_dict, save_config
from mtrl.config.schema import Config, Device
from mtrl.device import cpu
from mtrl.device.cuda import resolve_device
from mtrl.envs.suite import TaskSuite
from mtrl.errors import UserError
from mtrl.runs import console
from mtrl.runs.checkpoint import load_checkpoint
from mtrl.runs.checkpoint_writer import CheckpointWriter
from mtrl.runs.directory import BEST_NAME, CONFIG_NAME, RunDirectory, has_checkpoint
from mtrl.runs.jsonl import History, JsonLines, drop_after, lost_lines, read_history
from mtrl.runs.log import SINKS, Evaluation, Log, RunInfo, Sink, Stamp
from mtrl.training.build import build_agent, build_envs, settle_resume, suite_of, training_workers
from mtrl.training.evaluate import evaluate
from mtrl.training.events import Callback, Requests, TrainResult
from mtrl.training.loop import TrainingLoop
from mtrl.training.resolve import bound_to_policy, bound_to_run, check_same_run, resolve, unread_facts
from mtrl.training.start_screen import describe
from mtrl.training.starting_over import is_complete_without_checkpoints
from mtrl.training.stepper import RunState, agent_parts
from mtrl.training.trust import load_trusted, remember
from mtrl.training.video import check_filming, record


def train(
    config: Config,
    run_dir: str | Path | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    sinks: Sequence[Sink] = (),
) -> TrainResult:
    """Train one agent. Restores the process's threads, precision, allocator and signal handlers at the end.

    Args:
        config: of the run.
        run_dir: a new directory; None: `default_run_dir`, numbered if it is taken.
        callbacks: each is called with an `Event` after each log line, checkpoint and evaluation, in the
            thread of the run; it may ask to stop.
        sinks: receive the run's numbers, as do the JSON lines and the sinks that `config` names.

    Returns:
        How the run ended. If Ctrl-C, SIGTERM or a callback stopped it, it has written a checkpoint.

    Raises:
        UserError: a mistake in config, run directory or machine (nothing is left behind), or a disk that
            stayed full.
        NonFiniteError: a non-finite action, observation, reward, loss or gradient; names the tasks.
        EnvironmentFailure: an environment worker died, raised or hung.
    """
    config = resolve(config)
    remember(config)
    device = resolve_device(config.device)
    if run_dir is None:
        directory = RunDirectory.create_numbered(default_run_dir(config))
    else:
        directory = RunDirectory.create(expand(run_dir))
    with directory as run:
        return _run(config, run, device, callbacks, sinks)


def resume_training(
    run_dir: str | Path,
    *,
    steps: int | None = None,
    device: Device | None = None,
    allow_version_mismatch: bool = False,
    trust: bool = False,
    callbacks: Sequence[Callback] = (),
    sinks: Sequence[Sink] = (),
) -> TrainResult:
    """Continue a run from its newest valid checkpoint and return as `train` does.

    If only the final evaluation of the run is missing, that is made.

    Args:
        run_dir: of the run.
        steps: new length of the run in vector steps; None: as before.
        device: from now on; None: as before.
        allow_version_mismatch: accept a checkpoint of another version of the suite of tasks (Meta-World,
            MuJoCo, ...) or another major version of torch.
        trust: run code that the stored configuration names and that the user of this process has not named
            (`mtrl.training.trust`).
        callbacks: as for `train`.
        sinks: as for `train`.

    Raises:
        UserError: no run or no checkpoint there, a complete run, settings or versions other than the
            checkpoint's, code without `trust`, a run that another process works on; as `train`.
        NonFiniteError: as `train`.
        EnvironmentFailure: as `train`.
    """
    with RunDirectory.resume(expand(run_dir)) as run:
        changes: dict[str, Any] = {"steps": steps, "device": device}
        given = {key: value for key, value in changes.items() if value is not None}
        config = dataclasses.replace(load_trusted(run.path, trust=trust), **given)
        return _resume(resolve(config), run, allow_version_mismatch, callbacks, sinks)


def resume_or_start(
    config: Config,
    run_dir: str | Path,
    *,
    allow_version_mismatch: bool = False,
    trust: bool = False,
    callbacks: Sequence[Callback] = (),
    sinks: Sequence[Sink] = (),
) -> TrainResult:
    """Continue the run in `run_dir`, or start it there: one command for jobs that are killed and requeued.

    A run that ended before its first checkpoint starts again in its directory; nothing else is deleted there.
    A complete run returns at once without an evaluation. The other arguments are those of `train` and
    `resume_training`.

    Raises:
        UserError: the run there has another configuration or has lost its checkpoints; as `train` and
            `resume_training`.
        NonFiniteError: as `train`.
        EnvironmentFailure: as `train`.
    """
    config, path = resolve(config), expand(run_dir)
    remember(config)
    if not has_checkpoint(path):
        if is_complete_without_checkpoints(config, path):
            console.say(f"the run in '{path}' is complete already")
            return TrainResult(0, None, path, 0.0, config.steps)
        device = resolve_device(config.device)
        with RunDirectory.create(path, start_over=True) as run:
            return _run(config, run, device, callbacks, sinks)
    if (path / CONFIG_NAME).is_file():
        check_same_run(config, path)
        # With the settings: a file of task rows may have been moved, and must hold the same.
        step, _ = load_checkpoint(path, parts=(), config=bound_to_run(config), allow_version_mismatch=True)
        if _is_complete(read_history(path), step, config.steps):
            console.say(f"the run in '{path}' is complete already")
            return TrainResult(0, None, path, 0.0, step)
    with RunDirectory.resume(path) as run:
        load_trusted(run.path, trust=trust, named=config)
        return _resume(config, run, allow_version_mismatch, callbacks, sinks)


def evaluate_run(
    run_dir: str | Path,
    *,
    episodes: int = 50,
    device: Device = "auto",
    allow_version_mismatch: bool = False,
    video: bool = False,
    camera: str | None = None,
    best: bool = False,
    checkpoint: int | None = None,
    trust: bool = False,
) -> Evaluation:
    """Evaluate a run's newest checkpoint, print a table and return the results; write nothing but videos.

    Args:
        run_dir: of the run.
        episodes: of each task.
        device: where to compute.
        allow_version_mismatch: as for `resume_training`.
        video: also film one episode of each task, into the run's folder `videos`.
        camera: one of the suite's `cameras`; None: its first.
        best: evaluate the policy that `train.keep_best` keeps.
        checkpoint: evaluate the checkpoint of this vector step, if `train.keep_checkpoints` has kept it.
        trust: as for `resume_training`.

    Raises:
        UserError: no run, no such checkpoint or no best policy there; versions other than the checkpoint's;
            code without `trust`; arguments that do not fit each other, the suite or the machine.
        NonFiniteError: a non-finite action, observation or reward; names the tasks.
        EnvironmentFailure: an environment worker died, raised or hung.
    """
    if isinstance(episodes, bool) or not isinstance(episodes, Integral) or episodes < 1:
        raise UserError(f"episodes must be a positive integer; found {episodes!r}.")
    path = expand(run_dir)
    if not (path / CONFIG_NAME).is_file():
        raise UserError(f"'{path}' is not a run directory: expected {CONFIG_NAME} in it, found none.")
    config = resolve(load_trusted(path, trust=trust))
    resolved = resolve_device(device)
    suite = suite_of(config)
    if video:
        check_filming(suite, camera)
    if best and checkpoint is not None:
        raise UserError(f"found both `best` and checkpoint {checkpoint}. Give one of them.")
    if best and not has_checkpoint(path / BEST_NAME):
        raise UserError(
            f"'{path}' keeps no best policy: found no {BEST_NAME}/. Train with train.keep_best=true."
        )
    step, state = load_checkpoint(
        path / BEST_NAME if best else path,
        step=checkpoint,
        suite=suite.versions(),
        parts=("policy",),
        config=bound_to_policy(config),
        allow_version_mismatch=allow_version_mismatch,
    )
    with (
        _process_settings(config, resolved),
        closing(build_envs(config, num_workers=None, evaluation=True)) as envs,
    ):
        agent = build_agent(config, envs, resolved)
        agent.load_policy(state["policy"])
        result = evaluate(agent.policy(envs.envs_per_task), envs, int(episodes))
        console.say(f"{path}: checkpoint of vector step {step:,}")
        console.evaluation_table(result)
        if video:

            def of_task(task: str) -> TaskSuite:
                return suite_of(dataclasses.replace(config, tasks=(task,)))

            policy = agent.policy(envs.envs_per_task)
            files = record(policy, envs, of_task, path / "videos", seed=config.seed, camera=camera)
            console.say(f"videos: {', '.join(map(str, files))}")
    return result


def default_run_dir(config: Config) -> Path:
    """Return runs/TASKS/METHOD/seedN-DATE-TIME."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    method = file_name(method_label(vars(config)))  # a user's own may be path/to/file.py:Name
    return Path("runs", tasks_folder(config.tasks), method, f"seed{config.seed}-{stamp}")


def _resume(
    config: Config,
    run: RunDirectory,
    allow_version_mismatch: bool,
    callbacks: Sequence[Callback],
    sinks: Sequence[Sink],
) -> TrainResult:
    device = resolve_device(config.device)
    suite = suite_of(config).versions()
    step, state = load_checkpoint(
        run.path, suite=suite, config=bound_to_run(config), allow_version_mismatch=allow_version_mismatch
    )
    if step > config.steps:
        raise UserError(
            f"the run in '{run.path}' has already done {step} vector steps; --steps must be at least that."
        )
    if _is_complete(read_history(run.path), step, config.steps):
        raise UserError(
            f"the run in '{run.path}' is complete: it has done {step} vector steps of {config.steps}. "
            "Pass --steps with a larger number to extend it."
        )
    return _run(config, run, device, callbacks, sinks, (step, state))


def _run(
    config: Config,
    run: RunDirectory,
    device: torch.device,
    callbacks: Sequence[Callback],
    sinks: Sequence[Sink],
    checkpoint: tuple[int, dict[str, Any]] | None = None,
) -> TrainResult:
    """Train in `run` from a checkpoint's vector step and state, from the start without one."""
    sinks = [*(SINKS[name]() for name in config.train.sinks), *sinks]
    with _writing(run.path):
        save_config(config, run.config_path)
        if checkpoint is None:
            run.mark_unsaved()
    with ExitStack() as stack:
        # Signals are noted from here on and answered before the first vector step, so that a run that is
        # asked to stop while its environments start can still write a checkpoint.
        requests = stack.enter_context(Requests())
        stack.enter_context(_process_settings(config, device))
        suite = suite_of(config)
        agent = build_agent(config, suite, device)
        agent_facts = agent.facts()  # before the environments start: a lack of memory shows here
        agent_parts(agent)  # now, not at the first checkpoint
        console.say("starting the environments (the first start may take a minute)")
        notify = console.once()  # both sets of environments give the same warnings about the suite
        workers = training_workers(config, device)
        envs = build_envs(config, num_workers=workers, notify=notify, suite=suite)
        stack.enter_context(closing(envs))
        settled = settle_resume(config, envs)
        if settled != config:
            config = settled
            with _writing(run.path):
                save_config(config, run.config_path)
        state = RunState(config, envs, device, agent)
        if checkpoint is None:
            start, history = 0, read_history(run.path)
        else:
            start, history = checkpoint[0], _restored(state, config, run.path, checkpoint)
        envs.hurry_when(lambda: requests.stop)  # before, environments need their time, and nothing is lost
        # The learner waits while these run, so they may take all cores.
        eval_envs = build_envs(config, num_workers=None, evaluation=True, notify=notify)
        stack.enter_context(closing(eval_envs))
        eval_envs.hurry_when(lambda: requests.stop)
        own = {**agent_facts, **unread_facts(config)}
        if state.restart_steps:
            steps = ", ".join(f"{number:,}" for number in state.restart_steps)
            own["replaced"] = f"workers at vector steps {steps}: an undisturbed run has other numbers"
        title, facts, notes = describe(config, own, envs, run.path, start, device)
        console.start_screen(title, facts, notes)
        with _writing(run.path):
            versions = run.write_versions(envs.versions)
            resumed_at = None
            if checkpoint is not None:
                logged = _logged(state, start)
                resumed_at = Stamp(logged, logged * envs.num_envs, history.wall_s)
            info = RunInfo(run.path, envs.task_names, config_to_dict(config), versions, resumed_at)
            log = Log(info, JsonLines(), sinks)
        stack.callback(log.close)
        progress = stack.enter_context(console.RunProgress(config.steps, start, success=history.success))
        keep = config.train.keep_checkpoints
        writer = stack.enter_context(
            CheckpointWriter(run.path, keep=keep, suite=envs.versions, config=bound_to_run(config))
        )
        loop = TrainingLoop(config, run.path, state, eval_envs, log, progress, requests, writer, callbacks)
        run.check()  # the loop watches the directory and the logs from here on
        evaluated = history.evaluated_at == start and (history.final or start < config.steps)
        return loop.run(start, resumed=checkpoint is not None, evaluated=evaluated)


def _restored(state: RunState, config: Config, path: Path, checkpoint: tuple[int, dict[str, Any]]) -> History:
    """Load a checkpoint into `state`, drop the log lines after it, and return the history of the rest."""
    step, parts = checkpoint
    state.load(parts)
    parts.clear()  # large parts are maps of files, which would stay on the disk
    logged = _logged(state, step)  # later lines are written again
    with _writing(path):
        history = drop_after(path, logged, config.steps)
    intervals = {"log_interval": config.train.log_interval, "eval_interval": config.eval.interval}
    for sentence in lost_lines(history.steps, logged, **intervals):
        console.warning(sentence)
    return history


def _logged(state: RunState, step: int) -> int:
    """Return the last vector step whose lines a checkpoint of `step` comes after.

    One from the middle of the agent's learning comes before the lines of its own vector step.
    """
    return step - 1 if state.behind else step


def _process_settings(config: Config, device: torch.device) -> contextlib.AbstractContextManager[None]:
    train = config.train
    return cpu.process_settings(
        train.num_threads, train.matmul_precision, device, deterministic=train.deterministic
    )


def _is_complete(history: History, step: int, steps: int) -> bool:
    """Return whether the final evaluation is written and there is a checkpoint of the same step."""
    return history.final and history.evaluated_at == step == steps


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn errors of a full or read-only disk into a UserError before training starts."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"run directory '{path}' cannot be written: {error.strerror or error}. Free space, or choose "
            "another --run-dir."
        ) from error
