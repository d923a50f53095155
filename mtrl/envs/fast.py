"""Upstream calculations replaced by faster ones with bit-identical results, for one upstream version.

Physics and rewards stay upstream's; what is replaced only moves numbers about: contacts are looked up in
arrays, observations written in place, and rotation matrices turned into quaternions without SciPy's general
machinery.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

_KNOWN = "3.1.1"
# SciPy's own bounds for taking a matrix as orthogonal, drawn in by a tenth; beyond them SciPy is asked.
_OFF_DIAGONAL, _DIAGONAL = 0.9e-12, 0.9e-5


def metaworld_version() -> str:
    """Return the installed version of metaworld."""
    return version("metaworld")


def install(base: Any) -> None:
    """Put the replacements into `base`, upstream's SawyerXYZEnv, for this process.

    Does nothing for another version of metaworld.
    """
    if metaworld_version() != _KNOWN or base.touching_object is _touching_object:
        return
    base.touching_object = _touching_object
    original = base._get_curr_obs_combined_no_goal
    base._get_curr_obs_combined_no_goal = lambda self: _current_obs(self, original)
    # Compilers may fuse SciPy's multiplications and additions: only equal bits on this machine count.
    if all(np.array_equal(quaternion(m), Rotation.from_matrix(m).as_quat()) for m in _probes()):
        for name, module in list(sys.modules.items()):
            if name.startswith("metaworld.envs.") and getattr(module, "Rotation", None) is Rotation:
                module.Rotation = _QuickRotation  # type: ignore[attr-defined]


def _touching_object(self: Any, object_geom_id: int) -> bool:
    """Whether both finger pads press on the geom, as `SawyerXYZEnv.touching_object` defines it.

    Upstream walks all contacts twice as Python objects; here an array of geom pairs picks those that matter.
    """
    data = self.data
    pairs = data.contact.geom
    on_object = (pairs == object_geom_id).any(axis=1)
    if not on_object.any():
        return False
    addresses = data.contact.efc_address
    for pad in ("leftpad_geom", "rightpad_geom"):
        touching = on_object & (pairs == data.geom(pad).id).any(axis=1)
        # Summed one by one and from the left, like upstream: the rounding of the sum decides its sign.
        if not sum(data.efc_force[address] for address in addresses[np.flatnonzero(touching)]) > 0:
            return False
    return True


def _current_obs(self: Any, original: Callable[[Any], NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return hand, gripper opening and objects [18], as upstream's `_get_curr_obs_combined_no_goal`."""
    position, rotation = self._get_pos_objects(), self._get_quat_objects()
    count = len(position) // 3
    if len(position) != 3 * count or len(rotation) != 4 * count or 7 * count > self._obs_obj_max_len:
        return original(self)
    obs = np.zeros(4 + self._obs_obj_max_len)
    obs[:3] = self.get_endeff_pos()
    gap = self.data.body("rightclaw").xpos - self.data.body("leftclaw").xpos
    obs[3] = min(max(math.sqrt(gap.dot(gap)) / 0.1, 0.0), 1.0)
    for i in range(count):
        obs[4 + 7 * i : 7 + 7 * i] = position[3 * i : 3 * i + 3]
        obs[7 + 7 * i : 11 + 7 * i] = rotation[4 * i : 4 * i + 4]
    return obs


class _QuickRotation:
    """The two calls upstream makes of SciPy's Rotation."""

    def __init__(self, matrix: NDArray[np.float64]) -> None:
        self._matrix = matrix

    @classmethod
    def from_matrix(cls, matrix: NDArray[np.float64]) -> _QuickRotation:
        return cls(matrix)

    def as_quat(self) -> NDArray[np.float64]:
        return quaternion(self._matrix)


def quaternion(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the unit quaternion (x, y, z, w) of a rotation matrix [3, 3], in SciPy's order of operations.

    Markley, "Unit Quaternion from Rotation Matrix", J. Guidance, Control, and Dynamics 31(2), 2008.
    """
    m = matrix.tolist()
    if matrix.shape != (3, 3) or not _is_rotation(*m):
        fallback: NDArray[np.float64] = Rotation.from_matrix(matrix).as_quat()
        return fallback
    trace = m[0][0] + m[1][1] + m[2][2]
    decision = (m[0][0], m[1][1], m[2][2], trace)
    choice = decision.index(max(decision))
    q = [0.0] * 4
    if choice == 3:
        q = [m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1], 1 + trace]
    else:
        i, j, k = choice, (choice + 1) % 3, (choice + 2) % 3
        q[i] = 1 - trace + 2 * m[i][i]
        q[j] = m[j][i] + m[i][j]
        q[k] = m[k][i] + m[i][k]
        q[3] = m[k][j] - m[j][k]
    norm = math.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3])
    return np.array([q[0] / norm, q[1] / norm, q[2] / norm, q[3] / norm])


def _is_rotation(a: Sequence[float], b: Sequence[float], c: Sequence[float]) -> bool:
    """Whether the rows are orthonormal and right-handed beyond any doubt."""
    cross = (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])
    return (
        abs(_dot(a, b)) < _OFF_DIAGONAL
        and abs(_dot(b, c)) < _OFF_DIAGONAL
        and abs(_dot(a, c)) < _OFF_DIAGONAL
        and all(abs(_dot(row, row) - 1) < _DIAGONAL for row in (a, b, c))
        and _dot(cross, c) > 0.5
    )


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _probes() -> list[NDArray[np.float64]]:
    """Rotations through every branch: random ones, half turns about axes and diagonals (ties), identity."""
    drawn = np.random.default_rng(0).normal(size=(60, 4))
    axes = [[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1.0], [1, 1, 0, 0], [0, 1, 1, 0]]
    return list(Rotation.from_quat([*drawn, *axes]).as_matrix())
