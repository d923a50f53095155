"""Replaced calculations against the ones they replace, bit for bit."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from mtrl.envs.fast import quaternion

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


INSTALLED = """
import metaworld
from metaworld.envs import sawyer_reach_v3
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from mtrl.envs import fast
{before}
fast.install(SawyerXYZEnv)
print(SawyerXYZEnv.touching_object.__module__, sawyer_reach_v3.Rotation.__module__)
"""


@pytest.mark.parametrize(
    ("before", "modules"),
    [
        ("", ["mtrl", "mtrl"]),
        ("fast.metaworld_version = lambda: '3.2.0'", ["metaworld", "scipy"]),
        ("fast.quaternion = lambda m: m[0]", ["mtrl", "scipy"]),
    ],
)
def test_replacements_are_for_the_known_version_and_equal_bits_only(before: str, modules: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-c", INSTALLED.format(before=before)], capture_output=True, text=True, check=True
    )
    assert [name.partition(".")[0] for name in run.stdout.split()] == modules
