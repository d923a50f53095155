"""Measures memory, file descriptors and shared memory in a long run; a leak shows as a slope.

python scripts/soak.py --steps 200000 --out results/soak/counting.txt
python scripts/soak.py --steps 20000 --metaworld --out results/soak/metaworld.txt
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mtrl import Config, train
from mtrl.cli import command
from mtrl.cli.flags import parse_command
from mtrl.cli.named_files import check_writable, naming
from mtrl.config.schema import (
    EnvConfig,
    EvalConfig,
    NetworkConfig,
    Positive,
    PositiveInt,
    ReplayConfig,
    SacConfig,
    TrainConfig,
)
from mtrl.config.values import settings
from mtrl.training.events import Event
from tests.helpers.short_runs import COUNTING

METAWORLD: dict[str, Any] = {"tasks": ("reach-v3", "drawer-close-v3")}
BLOCKS = 20  # of neighbouring samples: their means are nearly independent
FEWEST = 6  # samples for a slope


class Sample(NamedTuple):
    """Resources of the run and its workers at one vector step."""

    step: int
    seconds: float
    cpu_s: float  # of this process so far; unlike wall time it does not depend on the machine's load
    rss_mb: float  # of this process
    pss_mb: float
    workers_rss_mb: float  # of its children
    workers_pss_mb: float
    shared_mb: float  # shared memory of all of them, each page once
    descriptors: int  # of all of them
    mappings: int  # of the arrays that the engine shares


def measure(step: int, began: float) -> Sample:
    """Return a sample, read from /proc."""
    own = os.getpid()
    children = [int(pid) for pid in Path(f"/proc/{own}/task/{own}/children").read_text().split()]
    memory = {pid: _memory_mb(pid) for pid in (own, *children)}

    def workers(name: str) -> float:
        return sum(memory[pid][name] for pid in children)

    return Sample(
        step,
        time.monotonic() - began,
        time.process_time(),
        memory[own]["Rss"],
        memory[own]["Pss"],
        workers("Rss"),
        workers("Pss"),
        sum(entries["Pss_Shmem"] for entries in memory.values()),
        sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in memory),
        sum(Path(f"/proc/{pid}/maps").read_text().count("mtrl-envs") for pid in memory),
    )


def _memory_mb(pid: int) -> dict[str, float]:
    rows = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return {row[0].rstrip(":"): int(row[1]) / 1024 for row in rows}


def slope(samples: list[Sample], name: str) -> tuple[float, float]:
    """Return the slope per 10,000 steps and the half width of its 95 % interval.

    The line is fitted to the means of blocks: single samples are not independent, so their interval would be
    too narrow.
    """
    blocks = np.array_split(np.array([(sample.step, getattr(sample, name)) for sample in samples]), BLOCKS)
    steps, values = np.array([block.mean(0) for block in blocks if len(block)]).T
    line = stats.linregress(steps / 10_000, values)
    return float(line.slope), float(stats.t.ppf(0.975, len(steps) - 2) * line.stderr)


def report(samples: list[Sample]) -> str:
    """Return the slopes of the second half, in which all buffers and caches are full, as text."""
    later = samples[len(samples) // 2 :]
    if len(later) < FEWEST:
        return f"{len(samples)} samples are too few for slopes."
    last = later[-1]
    lines = [
        f"{last.step:,} vector steps in {last.seconds:.0f} s; slopes per 10,000 steps with 95 % intervals, "
        f"from step {later[0].step:,} on"
    ]
    for name in Sample._fields[3:]:
        values = [getattr(sample, name) for sample in later]
        if min(values) == max(values):
            lines.append(f"  {name}: {values[0]:.2f}, constant")
            continue
        number, width = slope(later, name)
        lines.append(
            f"  {name}: {values[0]:.2f} -> {values[-1]:.2f} (least {min(values):.2f}, most "
            f"{max(values):.2f}), {number:+.3f} +- {width:.3f}"
        )
    middle = later[len(later) // 2]
    earlier_cost = (middle.cpu_s - later[0].cpu_s) / (middle.step - later[0].step)
    later_cost = (last.cpu_s - middle.cpu_s) / (last.step - middle.step)
    lines.append(
        f"  CPU ms per step: {1e3 * earlier_cost:.3f} in the third quarter, {1e3 * later_cost:.3f} after"
    )
    return "\n".join(lines)


def _table(samples: list[Sample]) -> str:
    rows = ("\t".join(f"{value:.10g}" for value in sample) for sample in samples)
    return "\n".join(["\t".join(Sample._fields), *rows])


@settings("--")
class _Flags:
    """Measure memory, file descriptors and shared memory in a long run; a leak shows as a slope."""

    steps: PositiveInt = 200_000
    """Vector steps of the run."""
    seconds: Positive | None = None
    """Stop after this time; None: at the last step."""
    metaworld: bool = False
    """Two tasks of Meta-World in place of the counting suite."""
    out: str | None = None
    """File for the slopes and all samples; None: slopes on standard output alone."""


@command
def main(arguments: list[str]) -> int:
    """Train; print samples and slopes."""
    flags = parse_command(_Flags, arguments)
    out = None if flags.out is None else Path(flags.out)
    if out is not None:
        check_writable(out)
    interval = max(flags.steps // 200, 1)
    config = Config(
        **(METAWORLD if flags.metaworld else COUNTING),
        steps=flags.steps,
        device="cpu",
        env=EnvConfig(max_episode_steps=100, num_workers=1),
        replay=ReplayConfig(capacity_per_task=2_000),
        network=NetworkConfig(actor_width=16, critic_width=16, actor_depth=1, critic_depth=1),
        sac=SacConfig(batch_per_task=8, actor_every=10),
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
            if out is not None:  # each time, in case the run is killed
                with naming(out, "write"):
                    out.write_text(f"{report(samples)}\n\n{_table(samples)}\n", encoding="utf-8")
            if flags.seconds is not None and samples[-1].seconds > flags.seconds:
                event.stop()

    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder) / "run", callbacks=[watch])
    print(report(samples))
    return 0


if __name__ == "__main__":
    sys.exit(main())
