"""Critics in bfloat16 against those in float32: gradients, what the optimiser keeps, and resuming."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtrl.agents.base import Transitions
from mtrl.agents.sac.agent import SACAgent
from mtrl.agents.sac.replay import Batch
from mtrl.agents.sac.update import SACUpdate, Work
from mtrl.combiners import COMBINERS
from mtrl.combiners.solvers.gramian import inner_products, weighted_sum
from mtrl.gradients.per_task import TaskGradients
from tests.helpers.agents import ACTION, OBS, TASKS, sac_agent, sac_config, sac_update

NETWORKS: list[dict[str, Any]] = [
    {"critic_loss": "categorical", "critic_layer_norm": True},
    {"critic_block": "residual", "heads": "per_task"},
    {"task_identity": "none", "activation": "tanh"},
    {"architecture": "simba_v2"},
]


def _live(agent: SACAgent, steps: int, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    for _ in range(steps):
        obs = random.normal(size=(TASKS, OBS)).astype(np.float32)
        action, reward = agent.act(obs), random.normal(size=TASKS).astype(np.float32)
        agent.learn(0.0)
        none = np.zeros(TASKS, bool)
        agent.observe(Transitions(obs, action, reward, obs, none, none, none))


def _jacobian(update: SACUpdate) -> tuple[Tensor, Tensor]:
    """Per-task gradients of the critics, and their heads' gradients, of one fixed batch."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(1))
    batch = Batch(
        draw(TASKS, 16, OBS),
        draw(TASKS, 16, ACTION),
        draw(TASKS, 16),
        draw(TASKS, 16, OBS),
        torch.ones(TASKS, 16),
    )
    noise = draw(2, TASKS, 16, ACTION)
    work = [Work(batch, update.alpha, noise[0], noise[1])]
    gradients = TaskGradients(update.critic.flat, partial(update.critic_loss, work), TASKS, {})
    rows, seen = gradients().double(), []

    def noted(gram: Tensor) -> Tensor:
        seen.append(gram)
        return torch.ones(TASKS, dtype=torch.float64)

    gradients.combined(noted)
    (gram,) = seen
    # Exact for the rows that are combined, although these are rounded.
    torch.testing.assert_close(gram.double(), rows @ rows.T, rtol=1e-5, atol=1e-8)
    return rows, gradients.head_gradient


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_gradients_of_each_task_point_as_in_float32(network: dict[str, Any]) -> None:
    exact, half = (sac_update(sac_config(**network, critic_dtype=dtype)) for dtype in ("float32", "bfloat16"))
    assert torch.equal(exact.critic.flat.vector, half.critic.flat.vector)
    (rows, head), (found, found_head) = _jacobian(exact), _jacobian(half)
    assert not torch.equal(rows, found)
    assert float(torch.cosine_similarity(rows, found, dim=1).min()) > 0.998
    torch.testing.assert_close(found.norm(dim=1), rows.norm(dim=1), rtol=0.02, atol=0)
    assert found_head.dtype == torch.float32
    torch.testing.assert_close(
        found_head, head, rtol=0.05, atol=0.02 * float(head.abs().max()) if len(head) else 0
    )


def test_steps_below_the_rounding_are_kept() -> None:
    """A learning rate of 1e-6 is a thousandth of bfloat16's spacing at a weight of .25."""
    agent = sac_agent(sac_config(critic_dtype="bfloat16", sac={"critic_lr": 1e-6}))
    flat = agent.update.critic.flat
    before = flat.vector.detach().clone()
    _live(agent, 8 + 50)
    moved = (flat.vector.detach() - before).abs()
    assert flat.vector.dtype == torch.float32
    assert float(moved.median()) > 1e-6
    assert float(moved.max()) <= 60e-6
    assert torch.equal(flat.seen, flat.vector.detach().bfloat16())
    assert agent.update.actor.flat.seen.dtype == torch.float32


def test_a_resumed_agent_goes_on_bit_for_bit() -> None:
    config = sac_config("cagrad", critic_dtype="bfloat16", critic_loss="categorical")
    agent, other = sac_agent(config), sac_agent(config)
    _live(agent, 15)
    other.load_state(copy.deepcopy(agent.state()))
    for each in (agent, other):
        _live(each, 3, seed=1)
    assert torch.equal(agent.update.critic.flat.vector, other.update.critic.flat.vector)
    assert torch.equal(agent.update.target, other.update.target)


@pytest.mark.parametrize(
    "method",
    [
        name if name in ("mean", "cagrad", "pcgrad", "adatask", "modo", "fs_mtl", "m_config", "momentum")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in sorted(COMBINERS)
        if name != "torchjd"  # it solves in NumPy, which has no bfloat16
    ],
)  # fmt: skip
@pytest.mark.parametrize("heads", ["shared", "per_task"])
def test_every_method_moves_the_critics_about_as_in_float32(method: str, heads: str) -> None:
    """Three updates, by plain steps of the same lengths: Adam would enlarge the rounding of tiny entries."""
    moves = []
    for dtype in ("float32", "bfloat16"):
        agent = sac_agent(sac_config(method, heads=heads, critic_dtype=dtype, sac={"adam_eps": 1.0}))
        before = agent.update.critic.flat.vector.detach().clone()
        _live(agent, 8 + 3)
        assert not agent.failures()
        assert all(
            np.isfinite(value).all()
            for name, value in agent.metrics().per_task.items()
            if "start" not in name
        )
        moves.append(agent.update.critic.flat.vector.detach() - before)
    assert moves[0].any()
    assert float(torch.cosine_similarity(moves[0], moves[1], dim=0)) > 0.9


def test_products_of_half_precision_rows_are_exact_for_these_rows() -> None:
    """Over several blocks of columns and a rest, and with a nearly dependent pair."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(4, 50_001, generator=generator).bfloat16()
    left[1] = left[0] * 1.01
    right = torch.randn(4, 50_001, generator=generator).bfloat16()
    for pair in ((left, left), (left, right)):
        exact = pair[0].double() @ pair[1].double().T
        found = inner_products(*pair)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0.02)
    weights = torch.rand(4, generator=generator, dtype=torch.float64)
    expected = weights @ left.double()
    torch.testing.assert_close(weighted_sum(weights, left).double(), expected, rtol=2**-8, atol=1e-6)
