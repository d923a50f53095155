"""Distributions over atoms against closed forms and plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mtrl.agents.sac.losses import Atoms, CriticOutputs, cross_entropy, gaussian, project

ATOMS = Atoms(-2.0, 3.0, 11)
_SPACING = 0.5


def _projected_by_loop(atoms: Atoms, probabilities: list[float], values: list[float]) -> list[float]:
    """Algorithm 1 of C51, entry by entry, written from the paper."""
    mass = [0.0] * atoms.number
    width = (atoms.high - atoms.low) / (atoms.number - 1)
    for probability, value in zip(probabilities, values, strict=True):
        position = (min(max(value, atoms.low), atoms.high) - atoms.low) / width
        lower, upper = math.floor(position), math.ceil(position)
        if lower == upper:
            mass[lower] += probability
        else:
            mass[lower] += probability * (upper - position)
            mass[upper] += probability * (position - lower)
    return mass


def test_projection_agrees_with_the_papers_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.softmax(torch.randn(4, 5, 11, generator=generator, dtype=torch.float64), -1)
    values = torch.randn(4, 5, 11, generator=generator, dtype=torch.float64) * 3
    values[0, 0] = ATOMS.values(values)  # exactly on the atoms
    result = project(ATOMS, probabilities, values)
    for row in range(4):
        for column in range(5):
            expected = _projected_by_loop(
                ATOMS, probabilities[row, column].tolist(), values[row, column].tolist()
            )
            torch.testing.assert_close(result[row, column], torch.tensor(expected, dtype=torch.float64))


def test_the_projection_of_single_values_keeps_them_within_the_atoms() -> None:
    values = torch.tensor([-2.0, -1.999, 0.3, 0.5, 2.99, 3.0, 7.0, -9.0], dtype=torch.float64).unsqueeze(-1)
    mass = project(ATOMS, torch.ones_like(values), values)
    assert ((mass > 0).sum(-1) <= 2).all()
    torch.testing.assert_close(mass @ ATOMS.values(mass), values.squeeze(-1).clamp(-2.0, 3.0))


def test_gaussian_mass_is_that_of_the_normal_distribution_between_the_atoms_borders() -> None:
    value, deviation = torch.tensor([0.13], dtype=torch.float64), 0.75
    normal = torch.distributions.Normal(value, deviation * _SPACING)
    atoms = ATOMS.values(value)
    mass = normal.cdf(atoms + _SPACING / 2) - normal.cdf(atoms - _SPACING / 2)
    torch.testing.assert_close(gaussian(ATOMS, value, deviation)[0], mass / mass.sum())


def test_mean_and_cross_entropy_agree_with_torchs_own() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 11, generator=generator)
    target = torch.softmax(torch.randn(6, 11, generator=generator), -1)
    torch.testing.assert_close(ATOMS.mean(target), target @ torch.linspace(-2.0, 3.0, 11))
    torch.testing.assert_close(
        cross_entropy(logits, target), torch.nn.functional.cross_entropy(logits, target, reduction="none")
    )


def _backup(reward: float, discount: float) -> object:
    def backup(values: Tensor) -> Tensor:
        return reward + discount * values.expand(*values.shape[:-2], 1, 1)

    return backup


@pytest.mark.parametrize("loss", ["squared", "huber", "categorical", "histogram"])
@pytest.mark.parametrize("reduce", ["min", "mean"])
def test_targets_have_the_mean_of_the_backed_up_value(loss: str, reduce: str) -> None:
    """1 task, 1 sample, twins with different values, all mass well inside the atoms."""
    critic = CriticOutputs(loss, reduce, Atoms(-10.0, 10.0, 201))  # type: ignore[arg-type]
    values = torch.tensor([1.5, 2.5], dtype=torch.float64).view(2, 1, 1)
    outputs = values
    if critic.distributional:
        logits = gaussian(critic.atoms, values, 3.0).clamp(min=1e-30).log()
        outputs = logits + critic.atoms.values(values).abs() / 0.5
    expected = 0.5 + 0.9 * (1.5 if reduce == "min" else 2.0)
    torch.testing.assert_close(critic.value(outputs).item(), 1.5 if reduce == "min" else 2.0)
    target = critic.target(outputs, _backup(0.5, 0.9))  # type: ignore[arg-type]
    mean = target @ critic.atoms.values(target) if critic.distributional else target
    torch.testing.assert_close(mean.item(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", ["categorical", "histogram"])
@pytest.mark.parametrize("atoms", [Atoms(-10.0, 10.0, 101), Atoms(-2.0, 10.0, 61)])
def test_fresh_critics_are_sure_of_values_around_zero_whatever_the_atoms(loss: str, atoms: Atoms) -> None:
    critic = CriticOutputs(loss, "mean", atoms)  # type: ignore[arg-type]
    assert critic.value(torch.zeros(2, 1, 1, atoms.number)).abs().item() < 0.02
    weights = torch.exp(-torch.linspace(atoms.low, atoms.high, atoms.number).abs() / 0.5)
    entropy = torch.distributions.Categorical(weights).entropy()
    own = (weights / weights.sum()).view(1, 1, -1)
    found = critic.error(torch.zeros(2, 1, 1, atoms.number), own)
    torch.testing.assert_close(found[0], entropy)


@pytest.mark.parametrize("loss", ["categorical", "histogram"])
def test_widely_spaced_atoms_are_learnt_as_fast_as_narrow_ones(loss: str) -> None:
    critic = CriticOutputs(loss, "mean", Atoms(-1000.0, 1000.0, 51))  # type: ignore[arg-type]
    outputs = torch.zeros(2, 1, 1, 51, requires_grad=True)
    optimizer = torch.optim.Adam([outputs], lr=0.1)
    target = critic.target(outputs.detach(), lambda values: values * 0.0 + 600.0)
    for _ in range(200):
        optimizer.zero_grad()
        critic.error(outputs, target).sum().backward()
        optimizer.step()
    assert critic.value(outputs).item() == pytest.approx(600.0, rel=0.05)


def test_huber_is_half_the_square_up_to_an_error_of_one_and_linear_beyond() -> None:
    critic = CriticOutputs("huber", "min", ATOMS)
    outputs = torch.tensor([[[0.5, 3.0]], [[0.0, -4.0]]])
    # (.125 + 2.5 + 0 + 3.5) / 4
    torch.testing.assert_close(critic.error(outputs, torch.zeros(1, 2)), torch.tensor([6.125 / 4]))


def test_a_value_that_is_no_number_leaves_no_distribution_behind() -> None:
    values = torch.tensor([[0.0, math.nan], [0.0, 1.0]])
    found = project(ATOMS, torch.full_like(values, 0.5), values)
    assert found.isfinite().all(-1).tolist() == [False, True]
