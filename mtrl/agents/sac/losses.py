"""SAC's losses per task, and the meaning of the critics' outputs: a value, or a distribution over atoms.

Pure functions of networks' outputs, `[T, B, ...] -> [T]`, which never mix tasks. The N atoms lie equally
spaced on [low, high], at a distance D. Equations of "SAC" are those of arXiv 1812.05905.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mtrl.agents.sac.replay import Batch
from mtrl.networks.gaussian import SampledAction

_HISTOGRAM_DEVIATION = 0.75  # in units of D (HL-Gauss, arXiv 2403.03950, section 4.1)
_INITIAL_SPREAD = 0.5  # of values, in units of scaled reward; D where that is larger


def td_target(
    batch: Batch, next_action: SampledAction, next_q: Tensor, alpha: Tensor, gamma: float
) -> Tensor:
    """Soft Bellman target, shaped as next_q (SAC, eq. 3 and 5).

    Args:
        batch: transitions; truncated ones have not_terminated 1 and are bootstrapped.
        next_action: actions sampled at the next observations, with log-probabilities [T, B].
        next_q: target critics' value [T, B] at next observations and next_action, or [N, T, B] of N atoms.
        alpha: temperatures [T].
        gamma: discount per env step, used if the batch has none of its own.
    """
    soft_value = torch.addcmul(next_q, alpha.unsqueeze(1), next_action.log_prob, value=-1.0)
    if batch.discount is None:
        return torch.addcmul(batch.reward, batch.not_terminated, soft_value, value=gamma)
    return torch.addcmul(batch.reward, batch.discount * batch.not_terminated, soft_value)


def actor_loss(log_prob: Tensor, q: Tensor, alpha: Tensor) -> Tensor:
    """Return alpha * log pi - Q of each task: [T] (SAC, eq. 7).

    Args:
        log_prob: of reparametrised actions at the batch's observations, mean over samples [T].
        q: the critics' value of these actions, mean over samples [T].
        alpha: temperatures [T].
    """
    return alpha * log_prob - q


def temperature_gradient(log_prob: Tensor, target_entropy: float) -> Tensor:
    """Derivative [T] by log alpha of the loss -log alpha (log pi + target_entropy).

    Descent moves the policy's entropy towards target_entropy (nats). SAC (eq. 18) multiplies the entropy's
    error by alpha. This multiplies it by log alpha, as the Meta-World+ code does, so that the gradient does
    not vanish with alpha.

    Args:
        log_prob: mean over samples [T].
        target_entropy: in nats.
    """
    return -target_entropy - log_prob


class CriticOutputs(NamedTuple):
    """Maps the twin critics' outputs to values, targets and losses.

    Outputs are values [2, T, B], or logits [2, T, B, N] relative to those of a Laplace distribution around 0.
    Fresh critics put out about 0. As plain logits that would be a uniform distribution, whose spread
    bootstrapping would preserve for about ten thousand updates.
    """

    loss: Literal["squared", "huber", "categorical", "histogram"]
    reduce: Literal["min", "mean"]  # of the twins
    atoms: Atoms

    @property
    def number(self) -> int:
        """Outputs of each critic."""
        return self.atoms.number if self.distributional else 1

    @property
    def distributional(self) -> bool:
        """Whether outputs are logits over atoms."""
        return self.loss in ("categorical", "histogram")

    def value(self, outputs: Tensor) -> Tensor:
        """The twins' value [T, B]."""
        q = self._each(outputs)
        return q.amin(0) if self.reduce == "min" else q.mean(0)

    def target(self, outputs: Tensor, backup: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the target of `error`: values [T, B], or probabilities [T, B, N].

        Args:
            outputs: the target critics' at the next observations and actions.
            backup: the Bellman backup of their values, [T, B] or with one set for each atom [N, T, B].
        """
        if self.loss != "categorical":
            value = backup(self.value(outputs))
            return value if self.loss != "histogram" else gaussian(self.atoms, value, _HISTOGRAM_DEVIATION)
        probabilities = torch.softmax(self._logits(outputs), dim=-1)
        if self.reduce == "mean":
            probabilities = probabilities.mean(0)
        else:
            first, second = self._each(outputs)  # of the twins, the one with the smaller mean
            probabilities = torch.where((first < second).unsqueeze(-1), probabilities[0], probabilities[1])
        moved = backup(self.atoms.values(outputs).view(-1, 1, 1))
        return project(self.atoms, probabilities, moved.movedim(0, -1))

    def error(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Loss of both critics on target, mean over samples and critics: [T]."""
        if self.distributional:
            errors = cross_entropy(self._logits(outputs), target)
        elif self.loss == "huber":  # halved, and linear beyond errors of 1
            errors = F.huber_loss(outputs, target.expand_as(outputs), reduction="none")
        else:
            errors = F.mse_loss(outputs, target.expand_as(outputs), reduction="none")
        return errors.mean(dim=(0, 2))

    def distance(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Distance [2, T, B] of both critics' values to the target's mean."""
        mean = self.atoms.mean(target) if self.distributional else target
        return (self._each(outputs) - mean).abs()

    def _logits(self, outputs: Tensor) -> Tensor:
        return outputs + _initial_logits(self.atoms, outputs.dtype, outputs.device)

    def _each(self, outputs: Tensor) -> Tensor:
        """Values [2, T, B] of both critics."""
        if not self.distributional:
            return outputs
        return self.atoms.mean(torch.softmax(self._logits(outputs), dim=-1))


class Atoms(NamedTuple):
    """N values, equally spaced on [low, high], ends included."""

    low: float
    high: float
    number: int

    @property
    def spacing(self) -> float:
        """D."""
        return (self.high - self.low) / (self.number - 1)

    def position(self, values: Tensor) -> Tensor:
        """Places of values in units of D, 0 at the lowest atom; values beyond the ends count as the ends."""
        return ((values - self.low) / self.spacing).clamp(0.0, self.number - 1.0)

    def mean(self, probabilities: Tensor) -> Tensor:
        """Mean value [...] of the distributions with probabilities [..., N]."""
        # Not a matrix product, which may round the values to TF32.
        return (probabilities * self.values(probabilities)).sum(-1)

    def values(self, like: Tensor) -> Tensor:
        """The atoms [N], with dtype and device of `like`; not to be written to."""
        return _values(self, like.dtype, like.device)


# Cached, because a captured graph must not copy them from the host at each update.
@lru_cache
def _values(atoms: Atoms, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.linspace(atoms.low, atoms.high, atoms.number, dtype=dtype, device=device)


@lru_cache
def _initial_logits(atoms: Atoms, dtype: torch.dtype, device: torch.device) -> Tensor:
    # With a spread far below D learning would first raise a distant atom's logit for thousands of updates.
    return _values(atoms, dtype, device).abs() / -max(_INITIAL_SPREAD, atoms.spacing)


def project(atoms: Atoms, probabilities: Tensor, values: Tensor) -> Tensor:
    """Return probabilities [..., N] of N atoms for probabilities [..., M] of values [..., M].

    The categorical projection (C51, arXiv 1707.06887, equation 7): each value's mass is split between the two
    atoms beside it, such that the mean stays. Values beyond the ends count as the ends.
    """
    position = atoms.position(values)
    if position.device.type != "cpu":
        return _shared_out(position, probabilities, atoms.number)
    # On a CPU the M * N numbers of `_shared_out` for each sample would take as long as all other losses.
    below = position.floor()
    above_share = position - below
    left = below.nan_to_num(0.0).long()  # the share of a NaN is NaN, which the loss shows
    result = probabilities.new_zeros(*probabilities.shape[:-1], atoms.number)
    result.scatter_add_(-1, left, probabilities * (1.0 - above_share))
    # The last atom has none above it, and above_share is 0 there.
    right = (left + 1).clamp(max=atoms.number - 1)
    return result.scatter_add_(-1, right, probabilities * above_share)


def _shared_out(position: Tensor, probabilities: Tensor, number: int) -> Tensor:
    """Split mass [..., M] at positions [..., M] between the neighbouring ones of N atoms: [..., N].

    Sums have a fixed order, unlike a GPU's scatter_add_, and are no matrix product, which may be in TF32.
    """
    places = torch.arange(number, dtype=position.dtype, device=position.device)
    share = (1.0 - (position.unsqueeze(-1) - places).abs()).clamp(min=0.0)
    return (probabilities.unsqueeze(-1) * share).sum(-2)


def gaussian(atoms: Atoms, values: Tensor, deviation: float) -> Tensor:
    """Return probabilities [..., N] of normal distributions around values [...], cut off at the ends.

    The mass of each atom is that of the interval of width D around it (HL-Gauss, arXiv 2403.03950, eq. 6).
    The deviation is in units of D. Values beyond the ends count as the ends. In that paper's code the bins
    fill [low, high]; here the atoms do, and the outer intervals reach D / 2 beyond.
    """
    position = atoms.position(values)
    edges = torch.arange(atoms.number + 1, dtype=values.dtype, device=values.device) - 0.5
    cumulative = torch.erf((edges - position.unsqueeze(-1)) / (math.sqrt(2.0) * deviation))
    mass = cumulative.diff(dim=-1)
    return mass / mass.sum(-1, keepdim=True)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy [...] of predictions with logits [..., N] relative to target probabilities [..., N]."""
    return -(target * F.log_softmax(logits, dim=-1)).sum(-1)
