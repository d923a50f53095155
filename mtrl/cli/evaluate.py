"""`mtrl-evaluate`: evaluate the newest checkpoint of a run."""

import glob
import sys
from pathlib import Path
from typing import Annotated

from pydantic import Field

from mtrl.cli import command, exit_code, importing
from mtrl.cli.flags import parse_command
from mtrl.config.files import expand
from mtrl.config.schema import Device
from mtrl.config.values import settings
from mtrl.errors import EnvironmentFailure, NonFiniteError, UserError
from mtrl.runs.directory import CONFIG_NAME


@settings("--")
class _Flags:
    """Evaluate the newest checkpoints of runs: deterministic policy, fixed goals, success per task."""

    run_dirs: tuple[str, ...] = ()
    """Run directories, or patterns such as 'runs/mt10/*/*'."""
    episodes: Annotated[int, Field(gt=0)] = 50
    """Episodes per task; episode k uses goal k."""
    device: Device = "auto"
    """Device of the networks; auto: CUDA if there is one."""
    allow_version_mismatch: bool = False
    """Accept a checkpoint of another version of the suite of tasks or another major version of torch."""
    video: bool = False
    """Also film one episode of each task, into the run's folder videos/; needs the extra [video]."""
    camera: str | None = None
    """View of videos; Meta-World: side, corner, corner2 to corner4, topview, behindGripper, gripperPOV."""
    best: bool = False
    """Evaluate the policy of the best evaluation instead, which --train.keep-best keeps."""
    checkpoint: Annotated[int, Field(ge=0)] | None = None
    """Vector step of the checkpoint to evaluate instead; --train.keep-checkpoints keeps more than two."""
    trust: bool = False
    """Run code that the run's configuration names, such as a method in a file; see SECURITY.md."""


@command
def main(arguments: list[str]) -> int:
    """Evaluate runs one after another, and film them if asked to."""
    flags = parse_command(_Flags, arguments, positional="run_dirs")
    if flags.camera is not None and not flags.video:
        raise UserError("--camera chooses the view of videos; found no --video. Add it or drop --camera.")
    runs = _runs(flags.run_dirs)
    with importing():
        from mtrl.training.run import evaluate_run

    values = {name: value for name, value in vars(flags).items() if name != "run_dirs"}
    code = 0
    for run in runs:
        try:
            evaluate_run(run, **values)
        except (UserError, NonFiniteError, EnvironmentFailure) as error:  # no reason to leave out the others
            if len(runs) == 1:
                raise
            print(f"error: {error}", file=sys.stderr)
            code = code or exit_code(error)  # of the first failure
    return code


def _runs(given: tuple[str, ...]) -> list[Path]:
    """Return the run directories that are named, patterns expanded, each once."""
    found: list[Path] = []
    for text in given:
        if Path(text).exists() or not glob.has_magic(text):
            found.append(Path(text))
            continue
        matching = sorted(map(Path, glob.glob(str(expand(text)))))
        runs = [path for path in matching if (path / CONFIG_NAME).is_file()]
        if not runs:
            raise UserError(f"no run directory matches '{text}': expected directories with {CONFIG_NAME}.")
        found += runs
    if not found:
        raise UserError("no runs: give run directories that a training wrote, or a pattern.")
    return list(dict.fromkeys(found))
