"""Suites whose environments draw from their seed: evaluations repeat, and resumes draw anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mtrl.envs.engine.vector import TaskVectorEnv
from mtrl.errors import UserError
from mtrl.training.evaluate import evaluate
from tests.helpers.stateful_envs import DrawingSuite, EndingSuite

pytestmark = pytest.mark.usefixtures("worker_threads")


def test_an_evaluation_does_not_depend_on_those_before_it() -> None:
    # Copies that are done with a round play on: how long depends on goals that they draw.
    suite = EndingSuite(("one", "two"), num_goals=10)
    with TaskVectorEnv(suite, seed=0, envs_per_task=2, num_workers=1, max_episode_steps=30) as envs:

        def returns() -> Any:
            envs.renew()
            return evaluate(lambda obs: np.zeros((len(obs), 1), np.float32), envs, 20).episode_return

        np.testing.assert_array_equal(returns(), returns())


def test_environments_that_begin_anew_after_a_resume_draw_other_numbers() -> None:
    def envs() -> TaskVectorEnv:
        return TaskVectorEnv(DrawingSuite(("one",)), seed=0, num_workers=1)

    with envs() as first, envs() as second, envs() as third:
        drawn = [first.reset()[0]]
        second.set_state(first.get_state(environments=False))
        drawn.append(second.observations)
        third.set_state(second.get_state(environments=False))
        drawn.append(third.observations)
    assert len({obs.tobytes() for obs in drawn}) == 3


def test_names_of_the_engines_own_infos_are_refused() -> None:
    suite = DrawingSuite(("one",))
    suite.info_keys = ("success", "final_obs")  # type: ignore[assignment]
    with pytest.raises(UserError, match="info_keys must not contain what the engine adds; found final_obs"):
        TaskVectorEnv(suite, seed=0)
