"""Which renderer MuJoCo loads, decided by an environment variable when it is imported."""

from __future__ import annotations


def variables(render_mode: str | None) -> dict[str, str]:
    """Return environment variables for workers that render, or do not.

    A renderer that is named by MUJOCO_GL but not installed makes `import mujoco` fail: workers that render
    nothing load none.
    """
    return {} if render_mode is not None else {"MUJOCO_GL": "disabled"}
