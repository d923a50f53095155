"""A run under attack, and its comparison with the undisturbed one."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mtrl.cli import command
from mtrl.cli.flags import parse_command
from mtrl.cli.named_files import check_writable, naming
from mtrl.combiners import COMBINERS
from mtrl.config.presets import load_config, save_config
from mtrl.config.schema import (
    Config,
    EnvConfig,
    EvalConfig,
    NetworkConfig,
    NonNegativeInt,
    PositiveInt,
    ReplayConfig,
    SacConfig,
    TrainConfig,
)
from mtrl.config.values import settings
from mtrl.runs.checkpoint import load_checkpoint
from mtrl.runs.directory import has_checkpoint
from mtrl.training import build
from mtrl.training import run as runs
from mtrl_chaos.faults import BETWEEN, DAMAGE, INSIDE, MOVED, Leg, killed, send, worker_killed
from tests.helpers.loss_methods import sac_options
from tests.helpers.short_runs import COUNTING, assert_same_run

METHODS = (
    "mean",
    "cagrad",
    "nash_mtl",
    "fs_mtl",
    "sdmgrad_os",
    "adatask",
    "famo",
    "gradvac",
    "rlw",
    "pcgrad",
)
METAWORLD: dict[str, Any] = {"tasks": ("reach-v3", "drawer-close-v3")}
STEPS = 240


def configuration(method: str, seed: int, metaworld: bool) -> Config:
    """A run of seconds that saves, evaluates and wraps its replay often."""
    return Config(
        **(METAWORLD if metaworld else COUNTING),
        method=method,
        method_options=sac_options(method),
        steps=STEPS,
        seed=seed,
        device="cpu",
        env=EnvConfig(max_episode_steps=20, num_workers=1, max_restarts=10),
        replay=ReplayConfig(capacity_per_task=50),
        network=NetworkConfig(actor_width=16, critic_width=16, actor_depth=2, critic_depth=2),
        sac=SacConfig(batch_per_task=8),
        train=TrainConfig(
            warmup_steps=15,
            log_interval=5,
            checkpoint_interval=10,
            keep_checkpoints=3,
            num_threads=1,
            sinks=(),
        ),
        eval=EvalConfig(interval=40, episodes_per_task=1, final_episodes_per_task=2),
    )


# -- the siege -----------------------------------------------------------------------------------------------


def child(config: Config, run: Path, fault: Any, seed: int, output: Path, start: int) -> None:
    """One leg of a run: resume or start, disturbed by `fault`."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    leg = Leg(random.Random(seed), start)
    original = build.build_envs

    def build_envs(*arguments: Any, **options: Any) -> Any:
        leg.envs.append(original(*arguments, **(options | {"num_workers": options["num_workers"] or 1})))
        return leg.envs[-1]

    setattr(runs, "build_envs", build_envs)  # noqa: B010
    if fault is not None:
        fault(leg)
        leg.on_log(start + 60, send(signal.SIGTERM))  # so that some of the run is left for other faults
    try:
        if has_checkpoint(run):
            code = runs.resume_training(run, trust=True, callbacks=leg.callbacks).exit_code
        else:
            code = runs.resume_or_start(config, run, trust=True, callbacks=leg.callbacks).exit_code
    except KeyboardInterrupt:
        code = 130
    except Exception as error:  # noqa: BLE001
        code = 75
        with contextlib.suppress(OSError):  # the disk may be full
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(code)


class Siege:
    """One run under attack."""

    def __init__(self, folder: Path, config: Config, seed: int, say: Callable[..., None]) -> None:
        self.config, self.numbers, self.say = config, random.Random(f"{seed} {config.method}"), say
        self.folder, self.run, self.whole = folder, folder / "run", folder / "undisturbed"
        self.faults: Counter[str] = Counter()
        assert self.leg(self.whole, None) == 0, (folder / "output").read_text()

    def leg(self, run: Path, fault: Any) -> int:
        """Let the run go on in a process of its own; return its exit code."""
        start = self.step(run)
        arguments = (self.config, run, fault, self.numbers.random(), self.folder / "output", start)
        process = multiprocessing.get_context("fork").Process(target=child, args=arguments)
        process.start()
        process.join(600)
        assert process.exitcode is not None, f"{self.config.method}: a leg hangs"
        return process.exitcode

    def step(self, run: Path) -> int:
        """Return the vector step of the newest checkpoint that is whole."""
        return load_checkpoint(run, warn=lambda text: None)[0] if has_checkpoint(run) else 0

    def attack(self, kind: Any) -> None:
        """One fault, and what it must leave behind."""
        name = kind if kind == MOVED else kind.__name__
        before, backup, note = self.step(self.run), self.folder / "backup", ""
        if kind == MOVED:
            target = self.folder / f"mövèd {self.numbers.randrange(10**6)}"
            self.run = self.run.rename(target)
        elif kind in BETWEEN:
            if kind in DAMAGE and len(list((self.run / "checkpoints").glob("step_*"))) < 2:
                return
            kind(self.run, self.numbers)
            note = f"falls back to {self.step(self.run)}" if kind in DAMAGE else ""
        else:
            if kind is worker_killed:
                shutil.copytree(self.run, backup)
            code = self.leg(self.run, kind)
            note = f"exit {code}"
            if kind is worker_killed:
                note += f", {self.put_back(backup)}"
        self.faults[name] += 1
        self.say(
            self.config.method,
            sum(self.faults.values()),
            name,
            f"step {before} -> {self.step(self.run)}",
            note,
        )

    def put_back(self, backup: Path) -> str:
        """Check that the log has the replaced worker, then restore the run from `backup`."""
        saved = (
            load_checkpoint(self.run, warn=lambda text: None)[1]["loop"] if has_checkpoint(self.run) else {}
        )
        steps = saved.get("restart_steps", [])
        logged = [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        assert any(line["env/restarts"] for line in logged), "a replaced worker is not in the log"
        shutil.rmtree(self.run)
        backup.rename(self.run)
        return f"put back; saved restart steps {steps}"

    def finish(self) -> None:
        """Let the run end and compare it with the undisturbed one."""
        config = load_config(self.run / "config.yaml")
        save_config(dataclasses.replace(config, env=self.config.env), self.run / "config.yaml")
        self.leg(self.run, None)
        for name in ("metrics.jsonl", "evaluations.jsonl"):
            steps = [json.loads(line)["vector_step"] for line in (self.run / name).read_text().splitlines()]
            interval = 5 if name == "metrics.jsonl" else 40
            assert steps == list(range(interval, STEPS + 1, interval)), (
                f"{name} has gaps or duplicates: {steps}"
            )
        assert_same_run(self.whole, self.run, counters=False)


@settings("--")
class _Flags:
    """Disturb runs by seeded faults of every kind and compare each, bit for bit, with an undisturbed run.

    Each part of a run between two faults is a process forked from this one, which has done the imports. A
    fault happens at a vector step, write or env step drawn from the seed. A replaced worker loses episodes,
    so the numbers may differ: the log must say so, and the run is put back to before the fault.
    """

    faults: PositiveInt = 100
    """In all; dealt out evenly to the methods."""
    methods: tuple[str, ...] = METHODS
    """Methods of the runs, one run each."""
    seed: NonNegativeInt = 0
    """Of the faults and of the runs."""
    metaworld: bool = False
    """Two tasks of Meta-World in place of the counting suite."""
    out: str | None = None
    """Folder for the log; None: standard output alone."""


@command
def main(arguments: list[str]) -> int:
    """Attack, compare, say so."""
    flags = parse_command(_Flags, arguments)
    for name in flags.methods:
        _ = COMBINERS[name]  # raises where there is none
    suite = "metaworld" if flags.metaworld else "counting"
    log = None if flags.out is None else Path(flags.out, f"{suite}-seed{flags.seed}.txt")
    if log is not None:
        check_writable(log)
    lines: list[str] = []

    def say(*words: object) -> None:
        lines.append("  ".join(str(word) for word in words if word != ""))
        print(lines[-1], flush=True)

    torch.set_num_threads(1)  # a process with more cannot be forked
    began, attacked, failed = time.monotonic(), 0, 0
    kinds: list[Any] = []
    total: Counter[str] = Counter()
    numbers = random.Random(flags.seed)
    for index, method in enumerate(flags.methods):
        share = flags.faults * (index + 1) // len(flags.methods) - flags.faults * index // len(flags.methods)
        if share == 0:
            continue
        attacked += 1
        with tempfile.TemporaryDirectory() as folder:
            siege = Siege(Path(folder), configuration(method, flags.seed, flags.metaworld), flags.seed, say)
            try:
                while siege.faults.total() < share:
                    if siege.faults.total() == 0 or siege.step(siege.run) >= STEPS - 50:
                        siege.attack(numbers.choice(BETWEEN) if siege.run.exists() else killed)
                        continue
                    if not kinds:  # every kind once before any comes again
                        kinds = [*INSIDE, *BETWEEN, MOVED]
                        numbers.shuffle(kinds)
                    siege.attack(kinds.pop())
                siege.finish()
                verdict = "bit-equal to the undisturbed run"
            except AssertionError as error:
                failed += 1
                verdict = f"DIFFERS: {error}\n{(Path(folder) / 'output').read_text()[-3000:]}"
            say(method, f"{siege.faults.total()} faults:", verdict)
            total += siege.faults
    say(
        f"{total.total()} faults over {attacked} methods in {time.monotonic() - began:.0f} s, seed "
        f"{flags.seed}, {'Meta-World' if flags.metaworld else 'counting suite'}; {failed} runs differ"
    )
    say(", ".join(f"{name} {count}" for name, count in sorted(total.items())))
    if log is not None:
        with naming(log, "write"):
            log.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return int(failed > 0)
