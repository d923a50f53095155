"""Entry points: train, resume, evaluate a run."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch

from mtrl.agents.sac.agent import MTSAC
from mtrl.config.presets import config_to_dict, load_config, save_config
from mtrl.config.schema import Config, Device
from mtrl.device import cpu
from mtrl.envs import MetaWorldVectorEnv
from mtrl.errors import UserError
from mtrl.runs import console
from mtrl.runs.checkpoint import load_checkpoint
from mtrl.runs.directory import RunDirectory
from mtrl.runs.logging import Logger
from mtrl.training.evaluate import evaluate
from mtrl.training.loop import TrainingLoop
from mtrl.training.parts import Parts, build_agent, build_envs, make_policy
from mtrl.training.start_screen import describe
from mtrl.training.video import record


def train(config: Config, run_dir: str | Path) -> int:
    """Train one agent; the run directory must be new.

    Returns:
        0 when finished; 130 or 143 when stopped by Ctrl-C or SIGTERM after writing a checkpoint.

    Raises:
        UserError: a mistake in config, run directory or machine; nothing is left behind.
        NonFiniteError: a non-finite action, observation, reward, loss or gradient; names the tasks.
        EnvironmentFailure: an environment worker died, raised or hung.
    """
    device = resolve_device(config.device)
    with RunDirectory.create(Path(run_dir)) as run:
        save_config(config, run.config_path)
        return _run(config, run, device, checkpoint=None)


def resume_training(
    run_dir: str | Path,
    *,
    steps: int | None = None,
    device: Device | None = None,
    allow_version_mismatch: bool = False,
) -> int:
    """Continue a run from its newest valid checkpoint; `steps` extends it. Returns and raises as `train`."""
    with RunDirectory.resume(Path(run_dir)) as run:
        config = load_config(run.config_path)
        config = dataclasses.replace(config, steps=steps or config.steps, device=device or config.device)
        resolved = resolve_device(config.device)
        checkpoint = load_checkpoint(run.path, allow_version_mismatch=allow_version_mismatch)
        if checkpoint[0] >= config.steps:
            raise UserError(
                f"the run in '{run.path}' is complete: {checkpoint[0]} of {config.steps} vector steps done. "
                f"Pass --steps with a larger number to extend it."
            )
        save_config(config, run.config_path)
        return _run(config, run, resolved, checkpoint)


def evaluate_run(
    run_dir: str | Path,
    *,
    episodes: int = 50,
    device: Device = "auto",
    allow_version_mismatch: bool = False,
    video: bool = False,
) -> int:
    """Evaluate a run's newest checkpoint, print a table and return 0; the run itself stays as it is.

    With `video` one more episode of each task is filmed, into the run's folder `videos`.
    """
    path = Path(run_dir)
    if not (path / "config.yaml").is_file():
        raise UserError(f"'{path}' is not a run directory: expected config.yaml in it, found none.")
    config = load_config(path / "config.yaml")
    resolved = resolve_device(device)
    step, state = load_checkpoint(path, allow_version_mismatch=allow_version_mismatch)
    with closing(build_envs(config, num_workers=None)) as envs:
        agent = build_agent(config, envs, resolved)
        agent.load_training_state(state["agent"])
        result = evaluate(make_policy(agent, envs), envs, episodes)
        print(f"{path}: checkpoint of vector step {step:,}")
        console.evaluation_table(result)
        if video:
            _film(config, agent, envs, path / "videos")
    return 0


def _film(config: Config, agent: MTSAC, envs: MetaWorldVectorEnv, folder: Path) -> None:
    policy = make_policy(agent, envs)
    steps, version = config.env.max_episode_steps, config.env.reward_version
    files = record(
        policy, envs.goal_sets, envs.envs_per_task, folder, seed=config.seed, steps=steps, version=version
    )
    print(f"videos: {', '.join(map(str, files))}")


def resolve_device(name: str) -> torch.device:
    """Return the device of `auto`, `cpu` or `cuda`.

    Raises:
        UserError: CUDA was asked for and torch finds none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda needs a CUDA GPU and a CUDA build of torch; found "
            f"torch {torch.__version__} without a usable GPU. Use --device auto or --device cpu."
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _run(
    config: Config, run: RunDirectory, device: torch.device, checkpoint: tuple[int, dict[str, Any]] | None
) -> int:
    cpu.configure(config.train.num_threads, config.train.matmul_precision)
    print("starting the environments (the first run of a seed also draws its goals)", flush=True)
    with ExitStack() as stack:
        envs = stack.enter_context(closing(build_envs(config, num_workers=config.env.num_workers)))
        parts = Parts(config, envs, device)
        start = 0
        if checkpoint is not None:
            start = checkpoint[0]
            parts.load_state(checkpoint[1])
        # The learner waits while these run, so they may take all cores.
        eval_envs = stack.enter_context(closing(build_envs(config, num_workers=None)))
        title, facts, notes = describe(config, parts.agent, envs, run.path, start)
        console.start_screen(title, facts, notes)
        resume_step = start if checkpoint is not None else None
        logger = Logger(
            run.path,
            envs.task_names,
            config=config_to_dict(config),
            versions=run.write_versions(),
            resume_step=resume_step,
        )
        stack.callback(logger.close)
        progress = stack.enter_context(console.ProgressReport(config.steps, start))
        loop = TrainingLoop(config, run.path, parts, eval_envs, logger, progress)
        return loop.run(start)
