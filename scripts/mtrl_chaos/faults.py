"""Faults: what disturbs a leg (one process of a run) from inside, or damages files between two legs."""

import dataclasses
import os
import random
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtrl.config.presets import load_config, save_config
from mtrl.runs import checkpoint
from mtrl.training import evaluate as evaluation
from mtrl.training import loop
from mtrl.training.events import Event

# -- faults inside of a leg: each arms itself in the child -------------------------------------------------


class Leg:
    """What a fault sees of the process it is to disturb."""

    def __init__(self, random_numbers: random.Random, start: int) -> None:
        self.random, self.start = random_numbers, start
        self.envs: list[Any] = []  # of training, of evaluation
        self.at = start + random_numbers.randrange(5, 31, 5)
        self.callbacks: list[Callable[[Event], None]] = []

    def on_log(self, step: int, action: Callable[[], None]) -> None:
        """Do something at the first log line from this step on."""
        done: list[bool] = []

        def callback(event: Event) -> None:
            if event.kind == "log" and event.vector_step >= step and not done:
                done.append(True)
                action()

        self.callbacks.append(callback)

    def in_evaluation(self, action: Callable[[], None]) -> None:
        """Do something before an env step of the next evaluation."""
        original, left = evaluation.evaluate, [self.random.randrange(1, 15)]

        def evaluate(policy: Any, envs: Any, episodes: int, *, between_steps: Callable[[], None]) -> Any:
            def between() -> None:
                left[0] -= 1
                if left[0] == 0:
                    action()
                between_steps()

            return original(policy, envs, episodes, between_steps=between)

        setattr(loop, "evaluate", evaluate)  # noqa: B010


def send(*numbers: int) -> Callable[[], None]:
    """Return an action that sends these signals to the process."""

    def action() -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    return action


def killed(leg: Leg) -> None:
    """SIGKILL of the run."""
    leg.on_log(leg.at, send(signal.SIGKILL))


def killed_in_a_save(leg: Leg) -> None:
    """SIGKILL before a write, sync, rename or removal of a checkpoint."""
    left = [leg.random.randrange(1, 150)]
    for owner, name in ((checkpoint._HashingFile, "write"), (os, "fsync"), (os, "replace"), (os, "rmdir")):
        original = getattr(owner, name)

        def counted(*arguments: Any, _original: Any = original, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return _original(*arguments, **options)

        setattr(owner, name, counted)


def terminated(leg: Leg) -> None:
    """A stop signal."""
    leg.on_log(leg.at, send(leg.random.choice((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))))


def interrupted_twice(leg: Leg) -> None:
    """Ctrl-C, and again at once."""
    leg.on_log(leg.at, send(signal.SIGINT, signal.SIGINT))


def warned_then_killed(leg: Leg) -> None:
    """What Slurm does before its time limit."""
    leg.on_log(leg.at, send(signal.SIGUSR1))
    leg.on_log(leg.at + 5, send(signal.SIGKILL))


def terminated_in_evaluation(leg: Leg) -> None:
    """SIGTERM between two env steps of an evaluation."""
    leg.in_evaluation(send(signal.SIGTERM))


def killed_in_evaluation(leg: Leg) -> None:
    """SIGKILL between two env steps of an evaluation."""
    leg.in_evaluation(send(signal.SIGKILL))


def evaluation_worker_killed(leg: Leg) -> None:
    """SIGKILL of a worker of an evaluation."""
    leg.in_evaluation(lambda: os.kill(leg.envs[1].worker_pids[0], signal.SIGKILL))


def disk_full_for_a_while(leg: Leg) -> None:
    """No file may grow beyond a size, for some steps."""

    def bound(size: int) -> Callable[[], None]:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    leg.on_log(leg.at, bound(leg.random.choice((0, 500, 3000))))
    leg.on_log(leg.at + leg.random.choice((5, 10, 15, 60)), bound(resource.RLIM_INFINITY))


def worker_killed(leg: Leg) -> None:
    """SIGKILL of a worker of training; the run goes on and is killed later."""
    leg.on_log(leg.at, lambda: os.kill(leg.envs[0].worker_pids[0], signal.SIGKILL))
    leg.on_log(leg.at + 15, send(signal.SIGKILL))


# -- faults between legs: each damages what is on disk ------------------------------------------------------


def some_file(run: Path, numbers: random.Random) -> Path:
    """Return a file of the newest checkpoint."""
    newest = max((run / "checkpoints").glob("step_*"), key=lambda path: int(path.name[5:].split(".")[0]))
    return numbers.choice(sorted(newest.iterdir()))


def flipped_bit(run: Path, numbers: random.Random) -> None:
    """One bit of the newest checkpoint."""
    path = some_file(run, numbers)
    content = bytearray(path.read_bytes())
    content[numbers.randrange(len(content))] ^= 1 << numbers.randrange(8)
    path.write_bytes(content)


def truncated(run: Path, numbers: random.Random) -> None:
    """A file of the newest checkpoint loses its end."""
    path = some_file(run, numbers)
    os.truncate(path, numbers.randrange(path.stat().st_size))


def missing_file(run: Path, numbers: random.Random) -> None:
    """A file of the newest checkpoint is gone."""
    some_file(run, numbers).unlink()


def extra_file(run: Path, numbers: random.Random) -> None:
    """A file in the newest checkpoint that is not of it."""
    (some_file(run, numbers).parent / "stray.pt").write_bytes(b"stray")


def half_a_line(run: Path, numbers: random.Random) -> None:
    """The log ends in the middle of a line."""
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"vector_step": 9')


def other_number_of_workers(run: Path, numbers: random.Random) -> None:
    """One worker becomes two, or two one."""
    config = load_config(run / "config.yaml")
    workers = 3 - (config.env.num_workers or 1)
    save_config(
        dataclasses.replace(config, env=dataclasses.replace(config.env, num_workers=workers)),
        run / "config.yaml",
    )


INSIDE = (
    killed,
    killed_in_a_save,
    terminated,
    interrupted_twice,
    warned_then_killed,
    terminated_in_evaluation,
    killed_in_evaluation,
    evaluation_worker_killed,
    disk_full_for_a_while,
    worker_killed,
)
DAMAGE = (flipped_bit, truncated, missing_file, extra_file)
BETWEEN = (*DAMAGE, half_a_line, other_number_of_workers)
MOVED = "moved_directory"
