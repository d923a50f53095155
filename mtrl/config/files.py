"""Paths of users, files that are replaced as a whole, names that are safe for files. Imports no torch."""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from mtrl.errors import UserError

TEMPORARY_PREFIX = ".tmp-"
UNFINISHED = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}\d+-.+")  # names that killed processes leave
_LONGEST_NAME = 100  # bytes; file systems allow 255


def temporary_path(path: Path) -> Path:
    """Return where this process keeps an unfinished file or folder; `UNFINISHED` matches its name."""
    return path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}")


def write_file(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Replace a file atomically: after a kill, a power cut or on a full disk it is the old or the new one.

    The content of a large file may come in pieces. A symbolic link is replaced, not followed: a run from
    elsewhere may hold links to any file.
    """
    temporary = temporary_path(path)
    try:
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as file:
            file.writelines((content,) if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())  # before the rename, which may reach the disk first
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def expand(path: str | Path) -> Path:
    """Return the path with `~` expanded. Raises UserError for "" or if the home directory is unknown."""
    if path == "":  # for `Path` the working directory
        raise UserError("expected a path; found an empty text. Is a variable not set?")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"'{path}' cannot be expanded: the home directory is unknown. Write the whole path."
        ) from error


def file_name(text: str, longest: int = _LONGEST_NAME) -> str:
    """Return `text` as the name of one file or folder: no separator, no leading dot, not too long.

    Every name that comes from a configuration goes through this function before it is part of a path.
    """
    name = re.sub(r"[^\w.,=+-]+", "-", text).strip("-").lstrip(".-") or "_"
    if len(name.encode()) <= longest:
        return name
    # The digest keeps names apart that begin alike.
    end = f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return name.encode()[: longest - len(end)].decode(errors="ignore") + end


def paths_in(folder: Path, names: Iterable[str], suffix: str = "") -> dict[str, Path]:
    """Return a path in `folder` for each name; different names get different paths.

    Raises:
        UserError: a symbolic link, `folder` or one in it, leads out of the parent of `folder`.
    """
    paths: dict[str, Path] = {}
    taken: set[str] = set()
    for name in names:
        safe = plain = file_name(name)
        number = 1
        while safe.casefold() in taken:  # some file systems ignore case
            number += 1
            safe = f"{plain}-{number}"
        taken.add(safe.casefold())
        paths[name] = folder / (safe + suffix)
        target = paths[name].resolve()
        if not target.is_relative_to(folder.parent.resolve()):
            raise UserError(
                f"'{paths[name]}' is a link to '{target}', outside of '{folder.parent}': remove it."
            )
    return paths
