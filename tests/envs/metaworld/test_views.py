"""Views of the simulation's memory in a stored state: where they lie, and forged ones."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mtrl.envs.metaworld.simulation import _place, _view
from mtrl.envs.state import decode

pytestmark = pytest.mark.meta


@pytest.fixture
def env() -> Any:
    return SimpleNamespace(data=SimpleNamespace(qpos=np.arange(12.0), xpos=np.arange(12.0).reshape(4, 3)))


@pytest.mark.parametrize("take", [np.s_[1], np.s_[:, 2], np.s_[::-2, ::-1], np.s_[3, 2:], np.s_[1:3, :2]])
def test_a_stored_view_is_found_again(take: Any, env: Any) -> None:
    value = env.data.xpos[take]
    stored = _place({("data", "xpos"): env.data.xpos}, value)
    assert stored is not None
    found = _view(env, stored)
    assert np.array_equal(found, value)
    assert np.shares_memory(found, env.data.xpos)


GOOD = {"kind": "view", "owner": "data", "field": "qpos", "offset": 0, "shape": [2], "strides": [8]}


@pytest.mark.parametrize(
    "change",
    [
        {"strides": [1 << 40]},
        {"strides": [-8]},
        {"offset": 11},
        {"offset": 12, "shape": [1]},
        {"offset": -1},
        {"offset": 1 << 60},
        {"shape": [1 << 40], "strides": [8]},
        {"shape": [-1]},
        {"shape": [2, 2]},
        {"strides": [8.0]},
        {"owner": "__class__", "field": "__dict__"},
        {"field": "time"},
    ],
)
def test_a_view_that_does_not_lie_in_its_array_is_refused(change: dict[str, Any], env: Any) -> None:
    assert _view(env, GOOD).tolist() == [0.0, 1.0]
    with pytest.raises(ValueError, match="does not lie in that array"):
        _view(env, {**GOOD, **change})


def test_a_stored_generator_is_one_of_numpy_s_bit_generators() -> None:
    with pytest.raises(ValueError, match="no bit generator"):
        decode({"kind": "generator", "bits": "seed", "value": {}})
