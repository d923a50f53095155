"""Files that a command's flags name: looked at before the work begins; mistakes end without a traceback."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from mtrl.errors import UserError


@contextlib.contextmanager
def naming(path: Path, verb: Literal["read", "write"]) -> Iterator[None]:
    """Turn an OSError about a file that the user named into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot {verb} '{path}': {error.strerror or error}. Name another file.") from error


def check_readable(path: Path) -> None:
    """Raise a UserError if the file cannot be read."""
    with naming(path, "read"):
        path.open("rb").close()


def check_writable(path: Path) -> None:
    """Make the folder of a file to be written; raise a UserError if the file cannot be written there."""
    with naming(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.exists()
        path.open("ab").close()  # permissions do not tell: root has all, a read-only disk none
        if not there:
            path.unlink()
