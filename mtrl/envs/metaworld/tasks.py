"""Names of tasks and benchmarks, costs of a step, and sources of goal sets. Does not import metaworld."""

from collections import Counter
from collections.abc import Sequence

from mtrl.errors import UserError, unknown_name

OBS_SIZE = 39
"""Entries of an observation, the same in all tasks."""
ACTION_SIZE = 4
"""Entries of an action: hand displacement in x, y, z and gripper effort."""

GOALS_PER_TASK = 50
"""Goals per task in every upstream benchmark."""

# CPU time of an env step and its share of a reset every 500 steps, relative to MT50's mean, for half random
# actions and half actions of upstream's scripted policies. Measured on one core of an x86-64 server. Only the
# proportions matter, and only for speed.
STEP_COSTS = {
    "assembly-v3": 1.22, "basketball-v3": 0.86, "bin-picking-v3": 1.15, "box-close-v3": 1.23,
    "button-press-topdown-v3": 1.12, "button-press-topdown-wall-v3": 0.99, "button-press-v3": 1.61,
    "button-press-wall-v3": 1.01, "coffee-button-v3": 1.04, "coffee-pull-v3": 1.30,
    "coffee-push-v3": 1.08, "dial-turn-v3": 0.81, "disassemble-v3": 0.99, "door-close-v3": 0.98,
    "door-lock-v3": 0.83, "door-open-v3": 0.88, "door-unlock-v3": 0.78, "hand-insert-v3": 1.11,
    "drawer-close-v3": 0.89, "drawer-open-v3": 0.71, "faucet-open-v3": 0.91, "faucet-close-v3": 0.87,
    "hammer-v3": 1.10, "handle-press-side-v3": 0.78, "handle-press-v3": 0.74, "handle-pull-side-v3": 0.92,
    "handle-pull-v3": 0.70, "lever-pull-v3": 0.88, "pick-place-wall-v3": 1.12,
    "pick-out-of-hole-v3": 0.86, "pick-place-v3": 1.12, "plate-slide-v3": 0.87,
    "plate-slide-side-v3": 1.34, "plate-slide-back-v3": 0.74, "plate-slide-back-side-v3": 0.87,
    "peg-insert-side-v3": 1.23, "peg-unplug-side-v3": 1.01, "soccer-v3": 1.05, "stick-push-v3": 1.43,
    "stick-pull-v3": 1.52, "push-v3": 1.02, "push-wall-v3": 1.12, "push-back-v3": 0.92, "reach-v3": 0.67,
    "reach-wall-v3": 0.68, "shelf-place-v3": 1.06, "sweep-into-v3": 1.24, "sweep-v3": 0.85,
    "window-open-v3": 0.85, "window-close-v3": 0.92,
}  # fmt: skip
"""MT50's tasks, in its order, and the cost of a step of each, which balances the workers."""

_MT10 = (
    "reach-v3", "push-v3", "pick-place-v3", "door-open-v3", "drawer-open-v3", "drawer-close-v3",
    "button-press-topdown-v3", "peg-insert-side-v3", "window-open-v3", "window-close-v3",
)  # fmt: skip
_MT25 = (
    *_MT10,
    "coffee-pull-v3", "pick-out-of-hole-v3", "disassemble-v3", "pick-place-wall-v3", "basketball-v3",
    "stick-pull-v3", "button-press-wall-v3", "faucet-open-v3", "door-lock-v3", "lever-pull-v3",
    "sweep-into-v3", "faucet-close-v3", "coffee-button-v3", "button-press-topdown-wall-v3",
    "dial-turn-v3",
)  # fmt: skip
_MT50 = tuple(STEP_COSTS)

BENCHMARKS: dict[str, tuple[str, ...]] = {"MT10": _MT10, "MT25": _MT25, "MT50": _MT50}
"""Task names of each benchmark, in metaworld 3.1.1's order, which is the order of the task axis."""


def resolve_tasks(tasks: str | Sequence[str]) -> tuple[str, ...]:
    """Return the task names of a benchmark name, of a task name or of a sequence of task names.

    A sequence of one benchmark name counts as that benchmark.

    Raises:
        UserError: an unknown name, a benchmark among other names, a duplicate, or no task at all.
    """
    names = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    if not names:
        raise UserError(f"tasks must name a task or a benchmark ({', '.join(BENCHMARKS)}); found none.")
    if len(names) == 1 and names[0] in BENCHMARKS:
        return BENCHMARKS[names[0]]
    for name in names:
        if name in BENCHMARKS:
            raise UserError(
                f"a benchmark cannot be combined with other names: found '{name}' among {len(names)} names. "
                f"Give either {name} or a list of task names."
            )
        if name not in _MT50:
            raise UserError(unknown_name("task or benchmark", str(name), (*BENCHMARKS, *_MT50)))
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(
            f"each task may be given once; found {', '.join(twice)} more than once. "
            "For several copies of every task set envs_per_task."
        )
    return names


def goal_source(tasks: Sequence[str]) -> dict[str, str]:
    """Return, for each task, the benchmark ("MT25" or "MT50") whose goal sets it uses.

    Upstream draws all goals of a benchmark from one random stream, task after task, so a task's goals depend
    on the tasks before it. MT10's tasks are the first of MT25, so both have the same goals. The full MT50
    uses MT50's goals. Any other list uses MT25's goals for tasks in MT25 and MT50's for the rest, so that
    removing a task from it does not change the goals of another.
    """
    if set(tasks) == set(_MT50):
        return dict.fromkeys(tasks, "MT50")
    return {name: "MT25" if name in _MT25 else "MT50" for name in tasks}
