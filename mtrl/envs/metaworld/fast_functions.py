"""Replacements, with bit-identical results, of functions that upstream calls on tiny arrays.

numpy and SciPy spend most of such a call on checking arguments. The replacements handle the common case and
pass everything else on. Only names in upstream's modules are replaced. Equal formulas do not guarantee equal
bits, because compilers may fuse a multiplication and an addition. So `install` compares each of its functions
with the original on this machine and leaves it out if a bit differs. Tests alone compare `caging_reward`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

# Nine tenths of SciPy's own bounds for an orthogonal matrix; other matrices go to SciPy.
_OFF_DIAGONAL, _DIAGONAL = 0.9e-12, 0.9e-5
_SCALE = float(np.sqrt(1 / 0.1 - 1))  # of the long-tailed sigmoid, which is 0.1 at the margin
_HORIZONTAL = np.empty(2)  # scratch: x and z of a difference
_numpy_norm: Callable[..., Any] = np.linalg.norm


def install(reward_utils: Any) -> list[str]:
    """Install the functions in metaworld's modules; return a note on those left out.

    Args:
        reward_utils: upstream's module of that name.
    """
    global vector_norm
    left_out = []
    modules = [module for name, module in sys.modules.items() if _steps_environments(name)]
    if all(np.array_equal(quaternion(m), Rotation.from_matrix(m).as_quat()) for m in _rotations()):
        _exchange(modules, "Rotation", Rotation, _QuickRotation)
    else:
        left_out.append("scipy's Rotation")
    if all(_same_bits(norm(x), _numpy_norm(x)) for x in _vectors()):
        _exchange(modules, "np", np, _numpy_with_quick_norm())
    else:
        vector_norm = _numpy_norm
        left_out.append("numpy.linalg.norm")
    upstream, tolerance = reward_utils.tolerance, quick_tolerance(reward_utils.tolerance)
    if all(_same_bits(tolerance(x, **k), upstream(x, **k)) for x, k in _distances()):
        reward_utils.tolerance = tolerance
    else:
        left_out.append("metaworld's tolerance")
    if not left_out:
        return []
    names = ", ".join(left_out)
    return [f"environments are somewhat slower: {names} rounds differently on this machine."]


def _steps_environments(module: str) -> bool:
    return module.startswith("metaworld.envs.") or module == "metaworld.sawyer_xyz_env"


def _exchange(modules: Sequence[ModuleType], name: str, before: object, after: object) -> None:
    for module in modules:
        if getattr(module, name, None) is before:
            setattr(module, name, after)


def _numpy_with_quick_norm() -> ModuleType:
    quick, linalg = ModuleType("numpy"), ModuleType("numpy.linalg")
    quick.__dict__.update(np.__dict__)
    linalg.__dict__.update(np.linalg.__dict__)
    vars(linalg)["norm"], vars(quick)["linalg"] = norm, linalg
    return quick


def norm(x: Any, ord: Any = None, **others: Any) -> Any:
    """Return the Euclidean norm of a float64 vector; other calls go to `numpy.linalg.norm`."""
    if ord not in (None, 2) or others or type(x) is not np.ndarray or x.ndim != 1 or x.dtype.char != "d":
        return _numpy_norm(x, ord, **others)
    return np.float64(length(x))


def length(vector: NDArray[np.float64]) -> float:
    """Return the Euclidean norm of a float64 vector, with the rounding of numpy's product."""
    if not vector.flags.c_contiguous:
        vector = vector.copy()
    return math.sqrt(vector.dot(vector))


vector_norm: Callable[[NDArray[np.float64]], Any] = length
"""The norm that the other replacements use: numpy's where `install` has left out `norm`."""


def quick_tolerance(upstream: Callable[..., Any]) -> Callable[..., Any]:
    """Return `reward_utils.tolerance`, faster for numbers and the long-tailed sigmoid."""

    def tolerance(
        x: Any,
        bounds: tuple[float, float] = (0.0, 0.0),
        margin: Any = 0.0,
        sigmoid: str = "gaussian",
        value_at_margin: float = 0.1,
    ) -> Any:
        lower, upper = bounds
        plain = type(x) in (float, np.float64) and lower <= upper and margin >= 0
        if sigmoid != "long_tail" or value_at_margin != 0.1 or not plain:
            return upstream(x, bounds, margin, sigmoid, value_at_margin)
        if lower <= x <= upper:
            return 1.0
        if margin == 0:
            return 0.0
        # Python's numbers, because each operation on numpy's is several times slower.
        x, margin = float(x), float(margin)
        distance = (float(lower) - x if x < lower else x - float(upper)) / margin
        try:
            return 1 / ((distance * _SCALE) ** 2 + 1)
        except OverflowError:  # numpy would divide by infinity
            return 0.0

    return tolerance


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
    if matrix.shape != (3, 3) or not _is_rotation(m):
        fallback: NDArray[np.float64] = Rotation.from_matrix(matrix).as_quat()
        return fallback
    (a, b, c), (d, e, f), (g, h, k) = m
    trace = a + e + k
    largest = max(a, e, k, trace)
    # Of equal values the first one decides, as in SciPy's search for the largest.
    if largest == a:
        x, y, z, w = 1 - trace + 2 * a, d + b, g + c, h - f
    elif largest == e:
        x, y, z, w = b + d, 1 - trace + 2 * e, h + f, c - g
    elif largest == k:
        x, y, z, w = c + g, f + h, 1 - trace + 2 * k, d - b
    else:
        x, y, z, w = h - f, c - g, d - b, 1 + trace
    norm = math.sqrt(x * x + y * y + z * z + w * w)
    return np.array((x / norm, y / norm, z / norm, w / norm))


def _is_rotation(rows: Sequence[Sequence[float]]) -> bool:
    """Whether SciPy is certain to take these rows as orthonormal and right-handed."""
    (a, b, c), (d, e, f), (g, h, k) = rows
    return (
        abs(a * d + b * e + c * f) < _OFF_DIAGONAL
        and abs(d * g + e * h + f * k) < _OFF_DIAGONAL
        and abs(a * g + b * h + c * k) < _OFF_DIAGONAL
        and abs(a * a + b * b + c * c - 1) < _DIAGONAL
        and abs(d * d + e * e + f * f - 1) < _DIAGONAL
        and abs(g * g + h * h + k * k - 1) < _DIAGONAL
        and (b * f - c * e) * g + (c * d - a * f) * h + (a * e - b * d) * k > 0.5
    )


def caging_reward(
    self: Any,
    action: Any,
    obj_pos: Any,
    obj_radius: float,
    pad_success_thresh: float,
    object_reach_radius: float,
    xz_thresh: float,
    desired_gripper_effort: float = 1.0,
    high_density: bool = False,
    medium_density: bool = False,
) -> Any:
    """Return `SawyerXYZEnv._gripper_caging_reward` of the same arguments.

    The formula is upstream's, on Python numbers instead of arrays of two entries. Both are double precision.
    The gripper's effort stays single precision, like the action.
    """
    initial, initial_tcp = self.obj_init_pos, self.init_tcp
    if (high_density and medium_density) or not all(map(_is_position, (obj_pos, initial, initial_tcp))):
        bounds = obj_radius, pad_success_thresh, object_reach_radius, xz_thresh
        density = high_density, medium_density
        return self._upstream_caging(action, obj_pos, *bounds, desired_gripper_effort, *density)
    near, product = self._reward_utils.tolerance, self._reward_utils.hamacher_product
    object_y, initial_y = obj_pos.item(1), initial.item(1)
    sides = []
    for pad in ("leftpad", "rightpad"):
        y = self.get_body_com(pad).item(1)
        margin = abs(abs(y - initial_y) - pad_success_thresh)
        sides.append(near(abs(y - object_y), (obj_radius, pad_success_thresh), margin, "long_tail"))
    tcp = self.tcp_center
    margin = _horizontal(initial, initial_tcp) - xz_thresh
    beside = near(_horizontal(tcp, obj_pos), (0, xz_thresh), margin, "long_tail")
    caging = product(product(*sides), float(beside))
    effort = min(max(0, action[-1]), desired_gripper_effort) / desired_gripper_effort
    gripping = effort if caging > 0.97 else 0.0
    reward = product(caging, gripping)
    if high_density:
        return (reward + caging) / 2
    if medium_density:
        margin = abs(vector_norm(initial - initial_tcp) - object_reach_radius)
        reach = near(vector_norm(obj_pos - tcp), (0, object_reach_radius), margin, "long_tail")
        return (reward + float(reach)) / 2
    return reward


def _is_position(value: Any) -> bool:
    return type(value) is np.ndarray and value.dtype.char == "d" and value.shape == (3,)


def _horizontal(first: NDArray[np.float64], second: NDArray[np.float64]) -> Any:
    _HORIZONTAL[0] = first.item(0) - second.item(0)
    _HORIZONTAL[1] = first.item(2) - second.item(2)
    return vector_norm(_HORIZONTAL)


def _rotations() -> list[NDArray[np.float64]]:
    """Rotations that take every branch: random ones, the identity, and half turns, which have ties."""
    drawn = np.random.default_rng(0).normal(size=(60, 4))
    axes = [[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1.0], [1, 1, 0, 0], [0, 1, 1, 0]]
    return list(Rotation.from_quat([*drawn, *axes]).as_matrix())


def _vectors() -> list[NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    return [
        rng.normal(size=size) * 10.0**scale for size in (2, 3, 4, 6) for scale in range(-6, 3) for _ in "ab"
    ]


def _distances() -> list[tuple[float, dict[str, Any]]]:
    rng = np.random.default_rng(0)
    drawn = rng.uniform(-0.2, 1.0, (200, 3)).tolist()
    return [
        (x, {"bounds": (0, 0.05 * abs(upper)), "margin": abs(margin), "sigmoid": "long_tail"})
        for x, upper, margin in drawn
    ]


def _same_bits(ours: Any, theirs: Any) -> bool:
    return type(ours) is type(theirs) and float(ours).hex() == float(theirs).hex()
