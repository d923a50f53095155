"""The caging reward that most tasks share, in plain numbers instead of tiny arrays; bit-identical."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrl.envs.metaworld.speedups.functions import length

_HORIZONTAL = np.empty(2)  # scratch: x and z of a difference


def install(base: Any, reward_utils: Any) -> None:
    """Put the replacement into `base`, upstream's SawyerXYZEnv; tasks with a version of their own keep it.

    Args:
        base: the class.
        reward_utils: upstream's module of that name.
    """
    base._upstream_caging = base._gripper_caging_reward
    base._reward_utils = reward_utils
    base._gripper_caging_reward = _caging


def _caging(
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

    Numbers keep upstream's types where these decide the rounding: the gripper's effort is single precision.
    """
    initial, initial_tcp = self.obj_init_pos, self.init_tcp
    if (high_density and medium_density) or not all(map(_is_position, (obj_pos, initial, initial_tcp))):
        return self._upstream_caging(
            action,
            obj_pos,
            obj_radius,
            pad_success_thresh,
            object_reach_radius,
            xz_thresh,
            desired_gripper_effort,
            high_density,
            medium_density,
        )
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
        margin = abs(length(initial - initial_tcp) - object_reach_radius)
        reach = near(length(obj_pos - tcp), (0, object_reach_radius), margin, "long_tail")
        return (reward + float(reach)) / 2
    return reward


def _is_position(value: Any) -> bool:
    return type(value) is np.ndarray and value.dtype.char == "d" and value.shape == (3,)


def _horizontal(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    _HORIZONTAL[0] = first.item(0) - second.item(0)
    _HORIZONTAL[1] = first.item(2) - second.item(2)
    return length(_HORIZONTAL)
