"""Bounds on what an update launches on a GPU: whoever unrolls a loop into small operations sees it here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mtrl_benchmarks import _nodes

from mtrl.combiners import COMBINERS
from mtrl.combiners.solvers.backends import MOST_TASKS
from mtrl.config.presets import build_config, load_preset, preset_names
from mtrl.errors import UserError

pytestmark = pytest.mark.slow  # `make ci` runs them

MEAN = 200  # nodes of joint training
RATIO = 1.5  # of a method's nodes to the mean's
# Methods that need more, with their ratio and the reason.
MORE = {
    "fs_mtl": (3.5, "two Jacobians"),
    "modo": (3.5, "three Jacobians"),
}
# What the host does between two graphs, once for each network.
HOST = {"aligned_mtl": "eigenvalues", "torchjd": "another library"}


@pytest.mark.parametrize(("preset", "tasks"), [("mt10", 10), ("mt50", 50)])
def test_every_method_is_few_nodes_and_reads_nothing(preset: str, tasks: int) -> None:
    mean = _nodes.count(preset, "mean", tasks)
    assert mean.nodes <= MEAN
    for method in COMBINERS:
        counts = _nodes.count(preset, method, tasks)
        ratio = MORE.get(method, (RATIO, ""))[0]
        assert counts.nodes <= ratio * mean.nodes, method
        assert counts.nodes > RATIO * mean.nodes or method not in MORE, f"{method} needs no exception"
        assert len(counts.host_reads) == (2 if method in HOST else 0), (method, counts.host_reads)
        assert not counts.host_copies, (method, counts.host_copies)


def test_a_preset_of_another_agent_is_refused() -> None:
    with pytest.raises(UserError, match="only SAC's updates can be counted; preset 'laptop' uses ppo"):
        _nodes.count("laptop", "mean", 10)


def _presets() -> list[tuple[str, int]]:
    """Presets that train SAC on Meta-World and their numbers of tasks; `brc` draws networks for minutes."""
    configs = {name: build_config(load_preset(name)) for name in preset_names() if name != "brc"}
    return [
        (name, 50 if config.tasks == ("MT50",) else 10)
        for name, config in configs.items()
        if (config.agent, config.suite) == ("sac", "metaworld")
    ]


@pytest.mark.parametrize(("preset", "tasks"), _presets())
def test_a_solve_adds_few_nodes_with_every_presets_networks(preset: str, tasks: int) -> None:
    mean, cagrad = (_nodes.count(preset, method, tasks) for method in ("mean", "cagrad"))
    # PaCo's gradients are products of two factors, which are summed and multiplied part by part.
    assert cagrad.nodes <= (2.1 if preset.startswith("paco") else RATIO) * mean.nodes
    assert not cagrad.host_reads + mean.host_reads
    assert not cagrad.host_copies + mean.host_copies


def test_more_tasks_than_a_kernel_holds_are_solved_between_two_graphs() -> None:
    few, many = (_nodes.count("mt10", "cagrad", tasks) for tasks in (MOST_TASKS, MOST_TASKS + 1))
    assert not few.host_reads
    assert len(many.host_reads) == 2
    assert many.nodes <= few.nodes


def test_estimates_are_means_over_updates_with_and_without_the_actor() -> None:
    """`sac_laptop` updates the actor every second time; so does the cheaper of the two."""
    counts = _nodes.count("sac_laptop", "mean", 10)
    assert counts.mean_nodes < 0.9 * counts.nodes


# In a process of its own, where the count is the first to import the agents.
_COUNT = """
from mtrl_benchmarks import _nodes
_nodes.count("mt10", "mean", 2)
from mtrl.agents.sac import update
from mtrl.gradients import descent
assert update.make_adam is descent.make_adam and update.make_adam.__module__ == descent.__name__
"""


def test_counting_leaves_no_stand_in_behind() -> None:
    scripts = Path(_nodes.__file__).parents[1]
    subprocess.run([sys.executable, "-c", _COUNT], cwd=scripts, check=True)
