"""Per-task gradients of a network and the descent step along a combined direction. Knows no agent."""

from mtrl.gradients.task_jacobian import set_gradient, task_jacobian

__all__ = ["set_gradient", "task_jacobian"]
