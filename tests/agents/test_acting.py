"""`ActingPolicy` on a CPU."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from mtrl.agents.acting import ActingPolicy
from mtrl.agents.base import TaskSpec
from mtrl.errors import UserError

SPEC = TaskSpec(("a", "b"), 3, 4, 2)


@pytest.fixture
def two_threads() -> Iterator[None]:
    former = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(former)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("fails", [False, True])
def test_actions_are_computed_on_one_thread_and_learning_keeps_its_own(fails: bool) -> None:
    seen: list[int] = []

    def act(obs: Tensor, noise: Tensor) -> Tensor:
        seen.append(torch.get_num_threads())
        if fails:
            raise RuntimeError
        return obs[..., :2]

    policy = ActingPolicy(act, SPEC, None, torch.device("cpu"))
    obs = np.arange(24, dtype=np.float32).reshape(6, 4)
    if fails:
        with pytest.raises(RuntimeError):
            policy(obs)
    else:
        np.testing.assert_array_equal(policy(obs), obs[:, :2])
    assert seen == [1]
    assert torch.get_num_threads() == 2


def test_observations_of_another_number_of_environments_are_refused() -> None:
    policy = ActingPolicy(lambda obs, noise: obs, SPEC, None, torch.device("cpu"))
    with pytest.raises(
        UserError, match=r"expected observations \[6, 4\], 3 for each of 2 tasks; found \[4, 4\]"
    ):
        policy(np.zeros((4, 4), np.float32))
