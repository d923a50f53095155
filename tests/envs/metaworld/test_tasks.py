from __future__ import annotations

import subprocess
import sys

import pytest
from metaworld import env_dict

from mtrl.envs import BENCHMARKS, resolve_tasks
from mtrl.envs.metaworld.tasks import goal_source
from mtrl.errors import UserError


@pytest.mark.parametrize(
    ("name", "upstream"),
    [("MT10", env_dict.MT10_V3), ("MT25", env_dict.MT25_V3), ("MT50", env_dict.MT50_V3)],
)
def test_benchmark_lists_equal_upstream_in_order(name: str, upstream: dict[str, object]) -> None:
    assert resolve_tasks(name) == tuple(upstream)


def test_one_benchmark_in_a_sequence_counts_as_the_benchmark() -> None:
    assert resolve_tasks(["MT10"]) == BENCHMARKS["MT10"]


def test_order_of_given_tasks_is_kept() -> None:
    assert resolve_tasks(["push-v3", "reach-v3"]) == ("push-v3", "reach-v3")
    assert resolve_tasks("sweep-v3") == ("sweep-v3",)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("MT100", "Did you mean 'MT10'"),
        (["reach-v3", "pusch-v3"], "unknown task or benchmark 'pusch-v3'. Did you mean 'push-v3'"),
        (["reach-v3", "push-v3", "reach-v3"], "reach-v3 more than once"),
        (["MT10", "reach-v3"], "a benchmark cannot be combined"),
        ([], "must name a task or a benchmark"),
    ],
)
def test_wrong_task_lists_are_refused_with_advice(tasks: str | list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve_tasks(tasks)


def test_resolving_names_imports_no_simulator_and_no_torch() -> None:
    code = (
        "import sys; from mtrl.envs import resolve_tasks; resolve_tasks('MT50'); "
        "print([m for m in ('metaworld', 'mujoco', 'torch', 'gymnasium', 'numpy') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_goals_of_a_task_do_not_depend_on_the_rest_of_a_list() -> None:
    names = ["sweep-v3", "push-v3", "dial-turn-v3"]
    whole = goal_source(names)
    for name in names:
        assert goal_source([other for other in names if other != name]).items() <= whole.items()


def test_every_benchmark_uses_its_own_goals() -> None:
    # MT10 is the beginning of MT25, drawn from the same stream: they share goals by construction.
    assert set(goal_source(BENCHMARKS["MT10"]).values()) == {"MT25"}
    assert set(goal_source(BENCHMARKS["MT25"]).values()) == {"MT25"}
    assert set(goal_source(BENCHMARKS["MT50"]).values()) == {"MT50"}
