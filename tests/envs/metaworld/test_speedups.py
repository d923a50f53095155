"""Replaced calculations against the ones they replace, bit for bit."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from metaworld.utils import reward_utils
from scipy.spatial.transform import Rotation

from mtrl.envs import BENCHMARKS
from mtrl.envs.engine.shared import StepResult
from mtrl.envs.engine.vector import TaskVectorEnv
from mtrl.envs.metaworld.fast_functions import norm, quaternion, quick_tolerance
from mtrl.envs.metaworld.suite import MetaWorldSuite
from tests.envs.metaworld.test_snapshot import assert_same, drive, some_goals
from tests.helpers.other_version import OtherVersionSuite

pytestmark = pytest.mark.meta
entries = st.one_of(st.floats(-1, 1), st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e-9]))


@given(st.tuples(entries, entries, entries, entries).filter(lambda q: np.linalg.norm(q) > 1e-3))
def test_quaternion_equals_scipys_bit_for_bit(q: tuple[float, ...]) -> None:
    matrix = Rotation.from_quat(q).as_matrix()
    assert quaternion(matrix).tobytes() == Rotation.from_matrix(matrix).as_quat().tobytes()


def test_quaternion_of_a_matrix_off_the_rotations_is_scipys() -> None:
    matrix = Rotation.from_quat([0.1, 0.2, 0.3, 0.4]).as_matrix() + 1e-9 * np.arange(9).reshape(3, 3)
    assert quaternion(matrix).tobytes() == Rotation.from_matrix(matrix).as_quat().tobytes()
    with pytest.raises(ValueError, match="determinant"):
        quaternion(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="determinant"):
        quaternion(np.diag([1.0, 1.0, -1.0]))


@given(
    st.floats(-2, 2),
    st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda pair: tuple(sorted(pair))),
    st.one_of(st.floats(0, 2), st.sampled_from([0.0, 1e-300, 1e-9])),
)
def test_tolerance_equals_upstreams_bit_for_bit(x: float, bounds: tuple[float, float], margin: float) -> None:
    quick = quick_tolerance(reward_utils.tolerance)
    with np.errstate(over="ignore"):
        for number in (x, np.float64(x)):
            ours = quick(number, bounds=bounds, margin=np.float64(margin), sigmoid="long_tail")
            theirs = reward_utils.tolerance(number, bounds=bounds, margin=margin, sigmoid="long_tail")
            assert type(ours) is type(theirs)
            assert ours.hex() == theirs.hex()


def test_tolerance_leaves_other_cases_and_mistakes_to_upstream() -> None:
    quick = quick_tolerance(reward_utils.tolerance)
    for sigmoid in ("gaussian", "linear", "hyperbolic"):
        assert quick(0.3, (0, 0.1), 0.5, sigmoid) == reward_utils.tolerance(0.3, (0, 0.1), 0.5, sigmoid)
    many = np.array([0.0, 0.2, 0.9])
    np.testing.assert_array_equal(
        quick(many, (0, 0.1), 0.5, "long_tail"), reward_utils.tolerance(many, (0, 0.1), 0.5, "long_tail")
    )
    with pytest.raises(ValueError, match="non-negative"):
        quick(0.3, (0, 0.1), -0.5, "long_tail")
    with pytest.raises(ValueError, match="Lower bound"):
        quick(0.3, (1, 0.1), 0.5, "long_tail")


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=7), st.integers(1, 3))
def test_norm_equals_numpys_bit_for_bit(numbers: list[float], stride: int) -> None:
    vector = np.array(numbers)[::stride]
    for ours, theirs in (
        (norm(vector), np.linalg.norm(vector)),
        (norm(vector, ord=2), np.linalg.norm(vector, ord=2)),
        (norm(vector, ord=1), np.linalg.norm(vector, ord=1)),
    ):
        assert type(ours) is type(theirs)
        assert float(ours).hex() == float(theirs).hex()


INSTALLED = """
import os, sys
import metaworld, numpy, scipy.spatial.transform
from metaworld.envs import sawyer_reach_v3 as reach
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from metaworld.utils import reward_utils
from mtrl.envs.metaworld import fast_functions
from mtrl.envs.metaworld import speedups

def check(before):
    exec(before)
    notes, tolerance = speedups.install(SawyerXYZEnv), reward_utils.tolerance
    notes = [*notes, *speedups.install(SawyerXYZEnv)]
    assert reward_utils.tolerance is tolerance  # not wrapped again for each environment
    print(SawyerXYZEnv.step.__module__, reach.Rotation.__module__, reach.np.linalg.norm.__module__,
          reward_utils.tolerance.__module__, fast_functions.vector_norm.__module__)
    assert numpy.linalg.norm is not fast_functions.norm
    assert scipy.spatial.transform.Rotation is not fast_functions._QuickRotation
    print(len(set(notes)), *notes, flush=True)

for before in sys.argv[1:]:  # each in a process without the replacements; the imports take a second
    child = os.fork()
    if not child:
        check(before)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
CASES = [  # what is changed before; whose step, Rotation, norm, tolerance and vector_norm are used; the note
    ("", "mtrl mtrl mtrl mtrl mtrl", "0"),
    (
        "speedups.version = lambda name: '3.2.0'",
        "metaworld scipy numpy metaworld mtrl",
        "1 metaworld 3.2.0",
    ),
    (
        "fast_functions.norm = lambda x: fast_functions.length(x) * (1 + 1e-15)",
        "mtrl mtrl numpy mtrl numpy",
        "1 environments are somewhat slower: numpy.linalg.norm",
    ),
    (
        "fast_functions.quaternion = lambda m: m[0]",
        "mtrl scipy mtrl mtrl mtrl",
        "1 environments are somewhat slower: scipy's Rotation",
    ),
]


@pytest.mark.dear
def test_replacements_are_for_the_known_version_and_equal_bits_only() -> None:
    command = [sys.executable, "-c", INSTALLED, *(before for before, _, _ in CASES)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 2 * len(CASES)
    for (before, modules, note), found, noted in zip(CASES, lines[::2], lines[1::2], strict=True):
        assert [name.partition(".")[0] for name in found.split()] == modules.split(), before
        assert noted.startswith(note), before


def episode(suite: type[MetaWorldSuite]) -> list[StepResult]:
    goals = {name: vectors[:2] for name, vectors in some_goals(["push-v3"], 0).items()}
    with TaskVectorEnv(
        suite(tuple(goals), num_goals=2), seed=0, num_workers=1, max_episode_steps=15, goals=goals
    ) as envs:
        envs.reset()
        return drive(envs, 40, 1)


@pytest.mark.dear
@pytest.mark.filterwarnings("ignore:Constant")  # the scripted policies' own
def test_another_version_of_metaworld_warns_once_and_gives_the_same_numbers_slowly() -> None:
    with pytest.warns(RuntimeWarning, match="metaworld 99.0 runs with upstream's own code") as caught:
        slow = episode(OtherVersionSuite)
    assert len([warning for warning in caught if "99.0" in str(warning.message)]) == 1
    assert_same(slow, episode(MetaWorldSuite))


SHARED = """
import sys
import mujoco, numpy as np
from mtrl.envs.metaworld.simulation import MetaWorldEnv, make_env
from tests.envs.metaworld.test_snapshot import simulation_arrays, some_goals

names = [name for name in sys.argv[1:] for _ in range(2)]
goals = some_goals(sys.argv[1:], 0)
alone = [MetaWorldEnv(name, goals[name]) for name in names]  # before the speed-ups: a model each
shared = [make_env(name, goals[name]) for name in names]
assert len({id(env.env.model) for env in alone}) == len(alone)
assert len({id(env.env.model) for env in shared}) <= len(shared) / 2
rng = np.random.default_rng(0)
for episode in range(2):
    for row in range(len(names)):
        goal = (row + 7 * episode) % 50
        np.testing.assert_array_equal(shared[row].reset(goal), alone[row].reset(goal))
    for _ in range(40):
        for row, action in enumerate(rng.uniform(-1, 1, (len(names), 4)).astype(np.float32)):
            ours, theirs = shared[row].step(action), alone[row].step(action)
            np.testing.assert_array_equal(ours[0], theirs[0])
            assert ours[1:] == theirs[1:], names[row]
states = [env.get_state() for env in shared]
for row in reversed(range(len(names))):  # the two copies of a task change places
    shared[row].set_state(states[row ^ 1])
for row, action in enumerate(rng.uniform(-1, 1, (len(names), 4)).astype(np.float32)):
    np.testing.assert_array_equal(shared[row ^ 1].step(action)[0], alone[row].step(action)[0])
for name in sys.argv[1:]:
    env = make_env(name, goals[name]).env
    fresh = mujoco.MjModel.from_xml_path(env.fullpath)
    ours = [array.copy() for array in simulation_arrays(env.model)]
    env.model = fresh
    env.reset_mocap_welds()
    assert len(ours) == len(simulation_arrays(fresh)) > 100
    for a, b in zip(ours, simulation_arrays(fresh)):
        np.testing.assert_array_equal(a, b, err_msg=name)
print("equal")
"""


@pytest.mark.dear
def test_environments_that_share_a_model_do_as_with_one_of_their_own() -> None:
    names = ["drawer-open-v3", "drawer-close-v3", "basketball-v3"]  # two of one file, and one with live views
    run = subprocess.run([sys.executable, "-c", SHARED, *names], capture_output=True, text=True)
    assert run.stdout.split() == ["equal"], run.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_environments_of_all_tasks_share_models_without_a_trace() -> None:
    run = subprocess.run([sys.executable, "-c", SHARED, *BENCHMARKS["MT50"]], capture_output=True, text=True)
    assert run.stdout.split() == ["equal"], run.stderr
