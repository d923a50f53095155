"""Gradients of some tasks at parameters of their own, which no method asks for so far, in `mtl_step`."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from mtrl.combiners import JacobianAt, JacobianCombiner
from tests.helpers.three_tasks import TASKS, Problem


class _Elsewhere(JacobianCombiner):
    name = "elsewhere"
    offset: Tensor
    rows: Tensor

    def direction(self, jacobian_at: JacobianAt) -> Tensor:
        mean = jacobian_at().mean(dim=0)
        self.rows = jacobian_at(offset=self.offset, tasks=torch.tensor([2, 0]))
        return mean

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        raise NotImplementedError


def test_some_tasks_at_moved_parameters_give_their_rows_and_the_gradients_of_their_heads() -> None:
    problem = Problem(optimizer=torch.optim.SGD)
    problem.combiner = combiner = _Elsewhere(num_tasks=TASKS)
    size, own = (sum(p.numel() for p in part.parameters()) for part in (problem.model, problem.heads[0]))
    combiner.offset = 0.1 * torch.randn(TASKS, size + own, dtype=torch.float64)
    rows, of_heads = [], []
    for task in range(TASKS):
        twin = copy.deepcopy(problem)
        leaves = [*twin.model.parameters(), *twin.heads[task].parameters()]
        if task != 1:  # the head of a task that is not asked for steps from where it is
            moved = nn.utils.parameters_to_vector(leaves).detach() + combiner.offset[task]
            nn.utils.vector_to_parameters(moved, leaves)
        found = torch.autograd.grad(twin.losses()[task], leaves)
        row, of_head = torch.cat([gradient.flatten() for gradient in found]).split((size, own))
        rows.append(row)
        of_heads.append(of_head)
    before = [nn.utils.parameters_to_vector(head.parameters()).detach() for head in problem.heads]
    problem.step()
    torch.testing.assert_close(combiner.rows, torch.stack((rows[2], rows[0])))
    for head, old, gradient in zip(problem.heads, before, of_heads, strict=True):
        new = nn.utils.parameters_to_vector(head.parameters()).detach()
        torch.testing.assert_close(new, old - 0.05 * gradient)
