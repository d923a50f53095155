"""Per-task gradients of a network and the descent step along a combined direction. Knows no agent."""

from mtrl.gradients.block_diagonal import block_diagonal_penalty
from mtrl.gradients.mtl_step import mtl_step
from mtrl.gradients.task_jacobian import set_gradient, task_jacobian

__all__ = ["block_diagonal_penalty", "mtl_step", "set_gradient", "task_jacobian"]
