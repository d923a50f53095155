"""`mtrl-evaluate`: evaluate the newest checkpoint of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from mtrl.cli import command, importing
from mtrl.cli.flags import parse_command
from mtrl.config.schema import Device
from mtrl.config.values import settings
from mtrl.errors import UserError


@settings("--")
class _Flags:
    """Evaluate the newest checkpoint of a run: deterministic policy, fixed goals, success per task."""

    run_dir: str
    """Run directory that a training wrote."""
    episodes: Annotated[int, Field(gt=0)] = 50
    """Episodes per task; episode k uses goal k."""
    device: Device = "auto"
    """Device of the networks; auto: CUDA if there is one."""
    allow_version_mismatch: bool = False
    """Accept a checkpoint of another metaworld, mujoco or major version of torch."""
    video: bool = False
    """Also film one episode of each task, into the run's folder videos/; needs the extra [video]."""
    camera: str | None = None
    """View of videos; Meta-World: side, corner, corner2 to corner4, topview, behindGripper, gripperPOV."""
    best: bool = False
    """Evaluate the policy of the best evaluation instead, which --train.keep-best keeps."""
    trust: bool = False
    """Run code that the run's configuration names, such as a method in a file; see SECURITY.md."""


@command
def main(arguments: list[str]) -> int:
    """Evaluate a run, and film it if asked to."""
    flags = parse_command(_Flags, arguments, positional="run_dir")
    if flags is None:
        return 0
    if flags.camera is not None and not flags.video:
        raise UserError("--camera chooses the view of videos; found no --video. Add it or drop --camera.")
    with importing():
        from mtrl.training.run import evaluate_run

    values = {name: value for name, value in vars(flags).items() if name != "run_dir"}
    evaluate_run(Path(flags.run_dir), **values)
    return 0
