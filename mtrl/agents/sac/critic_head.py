"""What the critics' outputs mean: a number, or a distribution over atoms; their target and their loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mtrl.agents.sac import losses
from mtrl.agents.sac.value_distribution import Atoms, expectation, gaussian, project

_HISTOGRAM_DEVIATION = 0.75  # in units of the atoms' distance (HL-Gauss, arXiv 2403.03950, section 4.1)
_INITIAL_SPREAD = 0.5  # of values, in units of scaled reward


class CriticHead(NamedTuple):
    """Maps the twin critics' outputs to values, targets and losses.

    Outputs are [2, T, B]; of a distribution [2, T, B, N], relative to the logits of a Laplace distribution
    around 0. The outputs of fresh critics are near 0: as plain logits they would say that any value of the
    range is as likely, and targets repeat that width, which shrinks by gamma^n per backup, for ten thousand
    updates.
    """

    loss: Literal["squared", "huber", "categorical", "histogram"]
    reduce: Literal["min", "mean"]  # of the twins
    atoms: Atoms

    @property
    def outputs(self) -> int:
        """Outputs of each critic."""
        return self.atoms.number if self.loss in ("categorical", "histogram") else 1

    def value(self, outputs: Tensor) -> Tensor:
        """The twins' value [T, B]."""
        q = self._each(outputs)
        return q.amin(0) if self.reduce == "min" else q.mean(0)

    def target(self, outputs: Tensor, backup: Callable[[Tensor], Tensor]) -> Tensor:
        """What `error` compares outputs with: [T, B], or probabilities [T, B, N].

        Args:
            outputs: the target critics' at the next observations and actions.
            backup: maps values there, [T, B] or one set of them for each atom [N, T, B], to values here.
        """
        if self.loss == "categorical":
            probabilities = torch.softmax(self._logits(outputs), dim=-1)
            if self.reduce == "mean":
                probabilities = probabilities.mean(0)
            else:
                first, second = self._each(outputs)
                lower = (first < second).unsqueeze(-1)
                probabilities = torch.where(lower, probabilities[0], probabilities[1])
            moved = backup(self.atoms.values(outputs).view(-1, 1, 1))
            return project(self.atoms, probabilities, moved.movedim(0, -1))
        value = backup(self.value(outputs))
        return gaussian(self.atoms, value, _HISTOGRAM_DEVIATION) if self.loss == "histogram" else value

    def error(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Loss of both critics on target, mean over samples and critics: [T]."""
        return _ERRORS[self.loss](self._logits(outputs) if self.outputs > 1 else outputs, target)

    def distance(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Mean distance of the twins' values to the target's mean: [T]."""
        return self._apart(outputs, target).mean(dim=(0, 2))

    def distances(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The same of each sample: [T, B]."""
        return self._apart(outputs, target).mean(dim=0)

    def _apart(self, outputs: Tensor, target: Tensor) -> Tensor:
        mean = target @ self.atoms.values(target) if self.outputs > 1 else target
        return (self._each(outputs) - mean).abs()

    def _logits(self, outputs: Tensor) -> Tensor:
        return outputs + _initial_logits(self.atoms, outputs.dtype, outputs.device)

    def _each(self, outputs: Tensor) -> Tensor:
        return expectation(self.atoms, self._logits(outputs)) if self.outputs > 1 else outputs


@lru_cache
def _initial_logits(atoms: Atoms, dtype: torch.dtype, device: torch.device) -> Tensor:
    return (
        torch.linspace(atoms.low, atoms.high, atoms.number, dtype=dtype, device=device).abs()
        / -_INITIAL_SPREAD
    )


_ERRORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squared": losses.squared_error,
    "huber": losses.huber_error,
    "categorical": losses.distribution_error,
    "histogram": losses.distribution_error,
}
