"""Held noise: normal at every step, held for Zeta(2) steps, the same after a resume, larger in some."""

from __future__ import annotations

import pytest
import torch

from mtrl.agents.sac.noise_hold import NoiseHold, indices, spread_over_copies

LEAD, ACTION = (4, 50), 2


def _draws(hold: NoiseHold, steps: int) -> torch.Tensor:
    return torch.stack([hold.draw(torch.empty(*LEAD, ACTION)) for _ in range(steps)])


def _hold(longest: int = 16, device: str = "cpu") -> NoiseHold:
    return NoiseHold(LEAD, ACTION, longest=longest, device=torch.device(device), seed=0)


def test_noise_is_standard_normal_at_each_step() -> None:
    noise = _draws(_hold(), 400)
    assert noise.mean().item() == pytest.approx(0.0, abs=0.05)
    assert noise.std().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_lengths_follow_the_truncated_zeta_distribution_with_deterministic_kernels(device: str) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        noise = _draws(_hold(longest=4, device=device), 2000)
    finally:
        torch.use_deterministic_algorithms(False)
    # All action components of a copy change together; runs that touch neither end are whole.
    changes = (noise[1:] != noise[:-1]).any(-1)
    assert torch.equal(changes, (noise[1:] != noise[:-1]).all(-1))
    lengths_seen = torch.cat([copy.nonzero().flatten().diff() for copy in changes.flatten(1).unbind(1)])
    weights = torch.tensor([1.0, 1 / 4, 1 / 9, 1 / 16])
    for length, share in enumerate(weights / weights.sum(), start=1):
        seen = (lengths_seen == length).float().mean().item()
        assert seen == pytest.approx(share.item(), abs=0.01), length
    assert int(lengths_seen.max()) == 4


def test_a_table_of_uniform_numbers_gives_the_same_distribution() -> None:
    """CUDA draws by it. Every number of a fine grid is met once, so shares are exact but for the grid."""
    grid = (torch.arange(100_000) + 0.5) / 100_000
    drawn = indices(grid, _hold(longest=4)._bounds)
    weights = torch.tensor([1.0, 1 / 4, 1 / 9, 1 / 16])
    shares = drawn.bincount(minlength=4) / len(grid)
    torch.testing.assert_close(shares, weights / weights.sum(), atol=1e-4, rtol=0.0)
    assert indices(torch.tensor([0.0, 1.0 - 2**-24]), _hold(longest=4)._bounds).tolist() == [0, 3]


def test_restored_state_continues_the_same_noise() -> None:
    one, other = _hold(), _hold()
    _draws(one, 7)
    other.load_state_dict(one.state_dict())
    assert torch.equal(_draws(one, 5), _draws(other, 5))


def test_copies_noise_is_a_geometric_ladder_and_what_is_held_stays_as_it_was() -> None:
    hold, same = _hold(), _hold()
    spread = spread_over_copies(hold.draw, 4.0, LEAD[1], torch.device("cpu"))
    for _ in range(20):
        noise, plain = spread(torch.empty(*LEAD, ACTION)), same.draw(torch.empty(*LEAD, ACTION))
        ratio = (noise / plain)[:, [0, -1]]
        torch.testing.assert_close(ratio, torch.tensor([1.0, 4.0]).unsqueeze(-1).expand_as(ratio))
        steps = (noise / plain)[:, 1:] / (noise / plain)[:, :-1]
        torch.testing.assert_close(steps, torch.full_like(steps, 4.0 ** (1 / (LEAD[1] - 1))))
