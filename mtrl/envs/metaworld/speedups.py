"""Faster replacements of upstream's methods with bit-identical results, for one version of upstream.

The physics is upstream's. Replaced is the Python code around it: compiling models (once per file), the step,
observations, contacts, lookups by name, and functions of tiny arrays (`fast_functions`). Each replacement
does the same operations in the same order and precision, or leaves out operations without effect, which its
docstring names. Tests compare every task with upstream, bit for bit.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import version
from typing import Any

import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from numpy.typing import NDArray

from mtrl.envs.metaworld import fast_functions

_KNOWN = "3.1.1"
_MOCAP_QUATERNION = np.array([1.0, 0.0, 1.0, 0.0])  # upstream's, not normalised


@cache
def install(base: Any) -> list[str]:
    """Install the replacements in `base`, upstream's SawyerXYZEnv, once per process; return notes for users.

    For another version of metaworld nothing is installed.
    """
    found = version("metaworld")
    if found != _KNOWN:
        return [
            f"metaworld {found} runs with upstream's own code, two to three times slower, because the exact "
            f"speed-ups are for {_KNOWN}. Install metaworld=={_KNOWN} for full speed."
        ]
    reward_utils = sys.modules[base.__module__].__dict__["reward_utils"]
    base._upstream_step, base._upstream_caging = base.step, base._gripper_caging_reward
    base._reward_utils = reward_utils
    for name, function in {
        "step": _step,
        "reset": _reset,
        "_initialize_simulation": _initialize_simulation,
        "_gripper_caging_reward": fast_functions.caging_reward,  # some tasks override it
        "touching_object": _touching_object,
        "_get_id_main_object": _main_object,
        "get_endeff_pos": lambda self: _handles(self).hand,
        "get_body_com": lambda self, body_name: _handles(self).body(body_name),
        "_get_site_pos": lambda self, site_name: _handles(self).site(site_name).copy(),
        "tcp_center": property(_tcp_center),
    }.items():
        setattr(base, name, function)
    return fast_functions.install(reward_utils)


EDITED_MODEL_ARRAYS = ("body_pos", "body_quat", "site_pos", "site_quat", "geom_pos", "eq_data", "geom_rgba")
"""Arrays of the model into which the constructor or a reset of some task writes."""
_models: dict[str, _SharedModel] = {}  # by file


class _SharedModel:
    """The compiled model of a file, which all environments of the process use in turn.

    A model of Meta-World takes 20 MB, of which resets edit 4 kB. If each environment had its own, they would
    fill the memory, and compiling would take most of the start. Sharing is exact because `ModelLease.take`
    writes an environment's edits into the model before that environment uses it.
    """

    def __init__(self, path: str) -> None:
        self.model = mujoco.MjModel.from_xml_path(path)
        self.arrays = tuple(getattr(self.model, name) for name in EDITED_MODEL_ARRAYS)
        self.compiled = tuple(array.copy() for array in self.arrays)
        self.holder = ModelLease(self)


class ModelLease:
    """One environment's edits of a shared model."""

    def __init__(self, shared: _SharedModel) -> None:
        self._shared = shared
        self._edits: dict[int, NDArray[np.generic]] = {}  # the arrays of `shared.arrays` that it changed
        self._unsaved = False

    def take(self, *, editing: bool) -> None:
        """Put the model into the state in which this environment last left it, at first as compiled."""
        shared = self._shared
        if shared.holder is not self:
            last = shared.holder
            if last._unsaved:  # only resets edit, so most steps need no comparison
                last._save()
            for index in last._edits.keys() | self._edits.keys():
                shared.arrays[index][:] = self._edits.get(index, shared.compiled[index])
            shared.holder = self
        self._unsaved |= editing

    def _save(self) -> None:
        pairs = enumerate(zip(self._shared.arrays, self._shared.compiled, strict=True))
        self._edits = {i: now.copy() for i, (now, before) in pairs if not np.array_equal(now, before)}
        self._unsaved = False


def _initialize_simulation(env: Any) -> tuple[Any, Any]:
    """Return model and data as gymnasium's MujocoEnv does, with the model that all users of a file share."""
    shared = _models.get(env.fullpath)
    if shared is None:
        shared = _models[env.fullpath] = _SharedModel(env.fullpath)
    env._model_lease = ModelLease(shared)
    lend_model(env, editing=True)
    screen = shared.model.vis.global_
    screen.offwidth, screen.offheight = max(screen.offwidth, env.width), max(screen.offheight, env.height)
    return shared.model, mujoco.MjData(shared.model)


def lend_model(env: Any, *, editing: bool = False) -> None:
    """Prepare the shared model for `env`, before each use; does nothing if `env` has its own model.

    Args:
        env: upstream's environment.
        editing: whether the use may write into EDITED_MODEL_ARRAYS.
    """
    lease: ModelLease | None = env.__dict__.get("_model_lease")
    if lease is not None:
        lease.take(editing=editing)


class _Handles:
    """Views of one environment's simulation, each looked up by name once."""

    def __init__(self, env: Any) -> None:
        self.data = data = env.data
        self._bodies: dict[str, NDArray[np.float64]] = {}
        self._sites: dict[str, NDArray[np.float64]] = {}
        self.hand = self.body("hand")
        self.claws = self.body("rightclaw"), self.body("leftclaw")
        self.fingers = self.site("rightEndEffector"), self.site("leftEndEffector")
        self.pads = data.geom("leftpad_geom").id, data.geom("rightpad_geom").id
        self.main_object: int | None = None
        self.mocap_pos, self.mocap_quat, self.ctrl = data.mocap_pos[0], data.mocap_quat, data.ctrl
        self.delta = np.empty(3, np.float32)  # scratch

    def body(self, name: str) -> NDArray[np.float64]:
        view = self._bodies.get(name)
        if view is None:
            view = self._bodies[name] = self.data.body(name).xpos
        return view

    def site(self, name: str) -> NDArray[np.float64]:
        view = self._sites.get(name)
        if view is None:
            view = self._sites[name] = self.data.site(name).xpos
        return view


def _handles(env: Any) -> _Handles:
    handles: _Handles | None = env.__dict__.get("_handles")
    if handles is None or handles.data is not env.data:
        handles = env._handles = _Handles(env)
    return handles


def _step(self: Any, action: Any) -> tuple[NDArray[np.float64], Any, bool, bool, dict[str, Any]]:
    """Advance as `SawyerXYZEnv.step` does.

    Leaves out two operations without effect: upstream places the target sites, which the forward pass places
    again, and computes forces on bodies (`mj_rnePostConstraint`), which nothing reads. Upstream's own step
    handles a failed simulation, and actions of another dtype, which it computes in another precision.
    """
    lend_model(self)
    handles = _handles(self)
    if self._did_see_sim_exception or action.dtype != np.float32:
        result: tuple[Any, Any, bool, bool, dict[str, Any]] = self._upstream_step(action)
        return result
    hand, delta = handles.mocap_pos, handles.delta
    # In single precision, as upstream's `action * scale`. `np.clip` and `np.hstack` would spend more time on
    # checking arguments than on computing.
    np.minimum(np.maximum(action[:3], -1.0, out=delta), 1.0, out=delta)
    np.add(hand, np.multiply(delta, self.action_scale, out=delta), out=hand)
    np.minimum(np.maximum(hand, self.mocap_low, out=hand), self.mocap_high, out=hand)
    handles.mocap_quat[:] = _MOCAP_QUATERNION
    handles.ctrl[0], handles.ctrl[1] = action[3], -action[3]
    mujoco.mj_step(self.model, handles.data, nstep=self.frame_skip)
    self.curr_path_length += 1
    mujoco.mj_forward(self.model, handles.data)
    obs = np.empty(39)
    current = _current_obs(self, handles)
    obs[:18], obs[18:36] = current, self._prev_obs
    obs[36:] = 0.0 if self._partially_observable else self._get_pos_goal()
    self._prev_obs = current
    space = self.sawyer_observation_space
    np.minimum(np.maximum(obs, space.low, out=obs), space.high, out=obs)
    self._last_stable_obs = obs
    reward, info = self.evaluate_state(obs, action)
    return obs, reward, False, self.curr_path_length == self.max_path_length, info


def _current_obs(self: Any, handles: _Handles) -> NDArray[np.float64]:
    """Return hand, gripper opening and objects [18], as upstream's `_get_curr_obs_combined_no_goal`."""
    position, rotation = self._get_pos_objects(), self._get_quat_objects()
    count = len(position) // 3
    if len(position) != 3 * count or len(rotation) != 4 * count or 7 * count > self._obs_obj_max_len:
        general: NDArray[np.float64] = self._get_curr_obs_combined_no_goal()
        return general
    obs = np.zeros(4 + self._obs_obj_max_len)
    obs[:3] = handles.hand
    right, left = handles.claws
    gap = right - left
    obs[3] = min(max(fast_functions.vector_norm(gap) / 0.1, 0.0), 1.0)
    if count == 1:
        obs[4:7], obs[7:11] = position, rotation
        return obs
    for i in range(count):
        obs[4 + 7 * i : 7 + 7 * i] = position[3 * i : 3 * i + 3]
        obs[7 + 7 * i : 11 + 7 * i] = rotation[4 * i : 4 * i + 4]
    return obs


def _reset(
    self: Any, seed: int | None = None, options: dict[str, Any] | None = None
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Begin an episode as `SawyerXYZEnv.reset` does, but simulate the hand's approach only once.

    Upstream calls `reset_model` itself and again in `MujocoEnv.reset`, which clears the simulation's data in
    between. All other effects of the first call (poses in the model, the goal) depend only on the goal's
    vector, so its fifty simulated steps of the hand have no effect. The second call simulates them.
    """
    lend_model(self, editing=True)
    self.curr_path_length = 0
    self._reset_hand = lambda steps=50: place_hand(self)
    try:
        self.reset_model()
    finally:
        del self._reset_hand
    obs, info = MujocoEnv.reset(self)
    self._prev_obs = obs[:18].copy()
    obs[18:36] = self._prev_obs
    return obs, info


def place_hand(env: Any) -> None:
    """Replace the simulated approach of the hand: compute all derived quantities and move nothing."""
    mujoco.mj_forward(env.model, env.data)
    env.init_tcp = env.tcp_center


def _main_object(self: Any) -> int:
    handles = _handles(self)
    if handles.main_object is None:
        handles.main_object = self.data.geom("objGeom").id
    return handles.main_object


def _tcp_center(self: Any) -> NDArray[np.float64]:
    right, left = _handles(self).fingers
    center: NDArray[np.float64] = (right + left) / 2.0
    return center


def _touching_object(self: Any, object_geom_id: int) -> bool:
    """Whether both finger pads press on the geom, as in `SawyerXYZEnv.touching_object`.

    Upstream visits all contacts twice as Python objects; this searches a list of their pairs of geoms.
    """
    contact = self.data.contact
    on_object = [(i, pair) for i, pair in enumerate(contact.geom.tolist()) if object_geom_id in pair]
    if not on_object:
        return False
    return all(_presses(self.data, contact, pad, on_object) for pad in _handles(self).pads)


def _presses(data: Any, contact: Any, pad: int, pairs: list[tuple[int, list[int]]]) -> bool:
    # Summed from left to right as upstream does, because rounding may decide the sign of the sum.
    addresses = contact.efc_address
    return bool(sum(data.efc_force[addresses[i]] for i, pair in pairs if pad in pair) > 0)
