"""PopArt: statistics are numpy's over all returns, and a change of statistics changes no value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mtrl.agents.ppo.pop_art import GAIN, SHIFT, PopArt

TASKS = 4


def _returns(seed: int, rows: int = 50) -> Tensor:
    scale = torch.tensor([1e-1, 1.0, 30.0, 4e3], dtype=torch.float64).unsqueeze(1)
    numbers = torch.randn(TASKS, rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (numbers * (seed + 1) + 3 * seed) * scale


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_values_stay_while_statistics_move(dtype: torch.dtype, tolerance: float) -> None:
    art = PopArt(TASKS)
    art = art.double() if dtype == torch.float64 else art
    parameters = {name: head.to(dtype) for name, head in PopArt.heads(TASKS).items()}
    network = torch.randn(TASKS, 20, generator=torch.Generator().manual_seed(9), dtype=dtype)
    seen = []
    for seed in range(4):
        returns = _returns(seed).to(dtype)
        before = art.value(art.output(parameters, network))
        art.add(returns, torch.ones_like(returns), parameters)
        after = art.value(art.output(parameters, network))
        largest = before.abs().amax(1, keepdim=True) + art.mean.abs().unsqueeze(1)
        assert float(((after - before) / largest).abs().max()) < tolerance
        parameters[GAIN] += 0.1 * seed  # a step of the critic
        parameters[SHIFT] -= 0.2
        seen.append(_returns(seed).numpy())
    everything = np.concatenate(seen, axis=1)
    np.testing.assert_allclose(art.mean.numpy(), everything.mean(1), rtol=1e-5)
    np.testing.assert_allclose(art.deviation.numpy(), everything.std(1, ddof=1), rtol=1e-5)
    torch.testing.assert_close(art.value(art.target(returns)), returns)
    units = art.target(torch.from_numpy(everything).to(dtype))
    torch.testing.assert_close(units.mean(1), torch.zeros(TASKS, dtype=dtype), rtol=0, atol=1e-5)
    torch.testing.assert_close(units.std(1), torch.ones(TASKS, dtype=dtype), rtol=1e-5, atol=0)


def test_rows_of_weight_zero_do_not_count_and_a_task_without_rows_keeps_its_units() -> None:
    art, parameters = PopArt(TASKS), PopArt.heads(TASKS)
    returns, weight = _returns(1).float(), torch.ones(TASKS, 50)
    weight[0, 5:], weight[1] = 0.0, 0.0
    art.add(returns, weight, parameters)
    assert float(art.mean[0]) == pytest.approx(float(returns[0, :5].mean()), rel=1e-5)
    assert (float(art.mean[1]), float(art.deviation[1])) == (0.0, 1.0)
    assert (float(parameters[GAIN][1]), float(parameters[SHIFT][1])) == (1.0, 0.0)


def test_returns_that_never_vary_are_not_blown_up() -> None:
    art, parameters = PopArt(1), PopArt.heads(1)
    art.add(torch.full((1, 30), 2.0), torch.ones(1, 30), parameters)
    assert float(art.mean) == 2.0
    assert float(art.deviation) == pytest.approx(0.01)
