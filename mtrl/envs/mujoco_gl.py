"""Which renderer MuJoCo loads, decided by an environment variable when it is imported."""

from __future__ import annotations

import os
import sys
from ctypes.util import find_library


def variables(render_mode: str | None) -> dict[str, str]:
    """Return environment variables for workers that render, or do not.

    A renderer that is named by MUJOCO_GL but not installed makes `import mujoco` fail: workers that render
    nothing load none. Without MUJOCO_GL MuJoCo opens a window even for frames, on a screen that may be
    another machine's or long gone: EGL, where it is installed, needs none.
    """
    if render_mode is None:
        return {"MUJOCO_GL": "disabled"}
    window = render_mode == "human" or os.environ.get("MUJOCO_GL") or not sys.platform.startswith("linux")
    return {} if window or find_library("EGL") is None else {"MUJOCO_GL": "egl"}
