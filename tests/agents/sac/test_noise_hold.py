"""Held noise: normal at every step, held for Zeta(2) steps, the same after a resume, larger in some."""

from __future__ import annotations

import pytest
import torch

from mtrl.agents.sac.noise_hold import NoiseHold, spread_over_copies

LEAD, ACTION = (4, 50), 2


def _draws(hold: NoiseHold, steps: int) -> torch.Tensor:
    return torch.stack([hold.draw(torch.empty(*LEAD, ACTION)) for _ in range(steps)])


def _hold(longest: int = 16) -> NoiseHold:
    return NoiseHold(LEAD, ACTION, longest=longest, device=torch.device("cpu"), seed=0)


def test_noise_is_standard_normal_at_each_step() -> None:
    noise = _draws(_hold(), 400)
    assert noise.mean().item() == pytest.approx(0.0, abs=0.05)
    assert noise.std().item() == pytest.approx(1.0, abs=0.05)


def test_lengths_follow_the_truncated_zeta_distribution() -> None:
    noise = _draws(_hold(longest=4), 2000)
    # All action components of a copy change together; runs that touch neither end are whole.
    changes = (noise[1:] != noise[:-1]).any(-1)
    assert torch.equal(changes, (noise[1:] != noise[:-1]).all(-1))
    lengths_seen = torch.cat([copy.nonzero().flatten().diff() for copy in changes.flatten(1).unbind(1)])
    weights = torch.tensor([1.0, 1 / 4, 1 / 9, 1 / 16])
    for length, share in enumerate(weights / weights.sum(), start=1):
        seen = (lengths_seen == length).float().mean().item()
        assert seen == pytest.approx(share.item(), abs=0.01), length
    assert int(lengths_seen.max()) == 4


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
