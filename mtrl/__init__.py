"""Multi-task reinforcement learning on Meta-World with interchangeable gradient combiners."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtrl.config import Config
    from mtrl.gradients import set_gradient, task_jacobian
    from mtrl.train import train

__all__ = ["Config", "set_gradient", "task_jacobian", "train"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Lazy, so that neither `--help` nor an environment worker pays for importing torch.
    if name == "Config":
        from mtrl.config import Config

        return Config
    if name == "train":
        import mtrl.train

        return mtrl.train  # the module is callable: see its last lines
    if name in ("set_gradient", "task_jacobian"):
        import mtrl.gradients

        return getattr(mtrl.gradients, name)
    raise AttributeError(f"module 'mtrl' has no attribute '{name}'")
