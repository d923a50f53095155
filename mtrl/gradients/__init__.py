"""Per-task gradients of a network and the descent step along a combined direction. Knows no agent."""

from mtrl.gradients.mtl_step import mtl_step
from mtrl.gradients.task_jacobian import set_gradient, task_jacobian

__all__ = ["mtl_step", "set_gradient", "task_jacobian"]
