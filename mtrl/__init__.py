"""Multi-task reinforcement learning on Meta-World with interchangeable gradient combiners.

What is where, from the commands down; docs/architecture.md says more:

    cli        the commands mtrl-train, -evaluate, -report, -sweep and -export
    compat     environments for Stable-Baselines3
    sweep      many runs on this machine or a cluster
    export     a trained policy as files
    report     tables, statistics and figures of runs
    training   train, resume, evaluate
    agents     SAC and PPO
    gradients  per-task gradients of any torch model, and a step along a combiner's direction
    networks   architectures, a file each
    combiners  methods, a file each
    envs       suites of tasks; worker processes
    runs       what a run leaves behind: checkpoints, logs
    config     settings and presets
    device     CUDA graphs, random streams, what this process may use
    registry   names of plug-ins and their options
    seeds      every random stream of a run
    errors     what a user can act on
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtrl.combiners import make_combiner
    from mtrl.config import Config
    from mtrl.export.policy import load_policy
    from mtrl.gradients import mtl_step, set_gradient, task_jacobian
    from mtrl.report.load import load_runs
    from mtrl.training.run import evaluate_run, resume_training, train

__all__ = [
    "Config", "evaluate_run", "load_policy", "load_runs", "make_combiner", "mtl_step", "resume_training",
    "set_gradient", "task_jacobian", "train",
]  # fmt: skip
__version__ = "0.1.0"

# Lazy: an environment worker does not pay for importing torch, and the combiners need no extra.
_HOMES = {
    "Config": "mtrl.config",
    "evaluate_run": "mtrl.training.run",
    "load_policy": "mtrl.export.policy",
    "load_runs": "mtrl.report.load",
    "make_combiner": "mtrl.combiners",
    "mtl_step": "mtrl.gradients",
    "resume_training": "mtrl.training.run",
    "set_gradient": "mtrl.gradients",
    "task_jacobian": "mtrl.gradients",
    "train": "mtrl.training.run",
}
# What homes import of the extra [train].
_NEEDS = {
    "mtrl.config": ("pydantic", "yaml"),
    "mtrl.export.policy": ("safetensors",),
    "mtrl.report.load": ("jinja2", "pydantic", "rich", "scipy", "yaml"),
    "mtrl.training.run": ("gymnasium", "pydantic", "rich", "yaml"),
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        try:
            return getattr(import_module(_HOMES[name]), name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("mtrl"):
                raise
            advice = "pip install 'mtrl-torch[train]'"
            raise ImportError(f"mtrl.{name} needs '{error.name}': {advice}.") from error
    raise AttributeError(f"module 'mtrl' has no attribute '{name}'")


def __dir__() -> list[str]:
    # Only names whose packages are installed: `help` and `inspect` get every name that is listed.
    had = (name for name in __all__ if all(map(_is_there, _NEEDS.get(_HOMES[name], ()))))
    return sorted(["__version__", *had])


def _is_there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # a module that was made by hand
        return True
