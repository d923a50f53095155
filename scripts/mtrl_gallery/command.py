"""The command line of the gallery."""

import sys
from pathlib import Path
from typing import Annotated

from pydantic import Field

from mtrl.cli import command
from mtrl.cli.flags import parse_command
from mtrl.cli.named_files import check_writable
from mtrl.config.values import settings
from mtrl.errors import UserError


@settings("--")
class _Flags:
    """Draw every method's trajectories on the toy landscapes of the CAGrad and Nash-MTL papers."""

    methods: tuple[str, ...] = ()
    """Methods to run; none given: all but torchjd, which belongs to another library."""
    steps: Annotated[int, Field(gt=0)] = 20_000
    """Steps of Adam; of plain gradient descent for a method that is an optimiser of its own."""
    lr: Annotated[float, Field(gt=0)] = 3e-3
    """Learning rate of these steps."""
    long: tuple[str, ...] = ()
    """Methods to run with three times --steps at a third of --lr, also beside --methods; by default none."""
    out: str = "gallery"
    """Folder for the pictures, final.json and table.md; made if missing."""


@command
def main(arguments: list[str]) -> int:
    """Draw the gallery."""
    flags = parse_command(_Flags, arguments)
    from mtrl.combiners import COMBINERS
    from mtrl_gallery.descent import descend, former_rows, write_table

    own = sorted(set(COMBINERS) - {"torchjd"})
    methods = dict.fromkeys((*(flags.methods or own), *flags.long))
    for name in methods:
        _ = COMBINERS[name]  # raises where there is none
    out, runs = Path(flags.out), []
    check_writable(out / "table.md")
    former_rows(out)  # raises where the rows could not be added to those of other methods
    for name in methods:
        scale = 3 if name in flags.long else 1
        try:
            runs.append(descend(name, steps=flags.steps * scale, lr=flags.lr / scale))
        except ValueError as error:
            print(f"{name}: left out. {error}", file=sys.stderr)
        else:
            print(f"{name}: done", file=sys.stderr)
    try:
        print(write_table(runs, out), end="")
        from mtrl_gallery.pictures import draw

        print(*draw(runs, out), sep="\n")
    except ImportError as error:
        raise UserError("the pictures need matplotlib: pip install 'mtrl-torch[report]'.") from error
    except OSError as error:
        raise UserError(f"cannot write to '{out}': {error.strerror}. Choose another --out.") from error
    return 0
