"""What a checkpoint of a full replay costs: written while training waits, and written beside it.

    PYTHONPATH=scripts python -m mtrl_chaos.checkpoint_cost MT10

Vector steps are imitated by what they do to the replay (one transition per task) and a pause.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch

from mtrl.agents.sac.replay import Replay
from mtrl.runs.checkpoint import save_checkpoint
from mtrl.runs.checkpoint_writer import CheckpointWriter

TASKS = {"MT10": 10, "MT50": 50}
OBS, ACTION, CAPACITY, PAUSE = 39, 4, 100_000, 0.005


def main(name: str) -> None:
    """Print size, seconds of both ways, and the longest gap between two steps beside the background write."""
    tasks = TASKS[name]
    replay = Replay(
        num_tasks=tasks,
        capacity_per_task=CAPACITY,
        envs_per_task=1,
        obs_dim=OBS,
        action_dim=ACTION,
        device=torch.device("cpu"),
        seed=0,
    )
    step = (torch.randn(tasks, 1, OBS), torch.randn(tasks, 1, ACTION), torch.randn(tasks, 1),
            torch.randn(tasks, 1, OBS), torch.zeros(tasks, 1))  # fmt: skip
    replay._rows.normal_()
    replay.size = replay.capacity
    with tempfile.TemporaryDirectory() as before_dir, tempfile.TemporaryDirectory() as after_dir:
        began = time.perf_counter()
        path = save_checkpoint(Path(before_dir), 1, replay.state_parts(), keep=1)
        before = time.perf_counter() - began
        size = sum(file.stat().st_size for file in path.iterdir()) / 2**20
        gaps = [_gap(replay, step) for _ in range(100)]
        with CheckpointWriter(Path(after_dir), keep=1, suite={}) as writer:
            began = time.perf_counter()
            writer.begin(1, replay.state_parts())
            held = time.perf_counter() - began
            beside = []
            while not writer.done:
                beside.append(_gap(replay, step))
            after = time.perf_counter() - began
            writer.result()
    print(
        f"{name}: {size:.0f} MiB; training waited {before:.2f} s before; now {held * 1e3:.1f} ms to begin, "
        f"written in {after:.2f} s beside {len(beside)} steps, longest step {max(beside) * 1e3:.0f} ms "
        f"(without a checkpoint {max(gaps) * 1e3:.0f} ms)"
    )


def _gap(replay: Replay, step: tuple[torch.Tensor, ...]) -> float:
    began = time.perf_counter()
    replay.add(*step)
    time.sleep(PAUSE)
    return time.perf_counter() - began


if __name__ == "__main__":
    main(sys.argv[1])
