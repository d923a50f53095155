"""A long run whose memory, descriptors and shared memory are watched: what grows without end has a slope.

python scripts/soak.py --steps 200000
python scripts/soak.py --steps 20000 --metaworld
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mtrl import Config, train
from mtrl.config.schema import EnvConfig, EvalConfig, NetworkConfig, ReplayConfig, SacConfig, TrainConfig
from mtrl.training.results import Event

COUNTING: dict[str, Any] = {
    "suite": "tests.helpers.counting_env:CountingSuite",
    "tasks": ("task-1", "task-2"),
}
METAWORLD: dict[str, Any] = {"tasks": ("reach-v3", "drawer-close-v3")}


class Sample(NamedTuple):
    """What the run and its workers take at one vector step."""

    step: int
    seconds: float
    rss_mb: float  # of this process
    workers_mb: float  # of its children
    descriptors: int
    shared: int  # entries of /dev/shm


def measure(step: int, began: float) -> Sample:
    """Read /proc."""
    own = os.getpid()
    children = [int(pid) for pid in Path(f"/proc/{own}/task/{own}/children").read_text().split()]
    shared = len(os.listdir("/dev/shm"))
    descriptors = len(os.listdir("/proc/self/fd"))
    workers = sum(map(_rss_mb, children))
    return Sample(step, time.monotonic() - began, _rss_mb(own), workers, descriptors, shared)


def _rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def report(samples: list[Sample]) -> str:
    """Slopes of the second half, when every buffer is full and every cache warm."""
    later = samples[len(samples) // 2 :]
    steps = np.array([sample.step for sample in later])
    lines = [f"{steps[-1]:,} vector steps in {samples[-1].seconds:.0f} s; slopes from step {steps[0]:,} on"]
    for name in ("rss_mb", "workers_mb", "descriptors", "shared"):
        values = np.array([float(getattr(sample, name)) for sample in later])
        slope = np.polyfit(steps, values, 1)[0] * 10_000 if len(later) > 1 else np.nan
        lines.append(f"  {name}: {values[0]:.1f} -> {values[-1]:.1f}, {slope:+.3f} per 10,000 steps")
    return "\n".join(lines)


def main() -> int:
    """Run, print a table and the slopes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--metaworld", action="store_true", help="in place of the counting suite")
    flags = parser.parse_args()
    interval = max(flags.steps // 200, 1)
    config = Config(
        **(METAWORLD if flags.metaworld else COUNTING),
        steps=flags.steps,
        device="cpu",
        env=EnvConfig(max_episode_steps=100, num_workers=1),
        replay=ReplayConfig(capacity_per_task=2_000),
        network=NetworkConfig(actor_width=16, critic_width=16, actor_depth=1, critic_depth=1),
        sac=SacConfig(batch_per_task=8),
        train=TrainConfig(
            warmup_steps=100, log_interval=interval, checkpoint_interval=interval, num_threads=1
        ),
        eval=EvalConfig(interval=5 * interval, episodes_per_task=1, final_episodes_per_task=1),
    )
    samples: list[Sample] = []
    began = time.monotonic()

    def watch(event: Event) -> None:
        if event.kind == "log":
            samples.append(measure(event.vector_step, began))
            print(*(f"{value:.1f}" for value in samples[-1]), file=sys.stderr, flush=True)
            if samples[-1].seconds > flags.seconds:
                event.stop()

    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder) / "run", callbacks=[watch])
    print(report(samples))
    return 0


if __name__ == "__main__":
    sys.exit(main())
