"""The lock of a run directory, and the watch over directory and files while they are in use."""

import contextlib
import errno
import fcntl
import json
import os
import socket
from pathlib import Path

from mtrl.config.files import write_file
from mtrl.errors import RunInUse, UserError
from mtrl.runs import console

LOCK_NAME = "run.lock"
OWNER_NAME = "run.owner"
_NO_LOCKS_HERE = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


class Presence:
    """Notices that a run's directory or files in it were removed, renamed or unmounted during the run.

    Open files stay writable then, and a new directory may take the place of the old one, so that no write
    would fail.
    """

    def __init__(self, directory: Path, *names: str) -> None:
        self._directory = directory
        paths = [directory / name for name in ("", *names)]
        self._known = {path: found for path in paths if (found := _identity(path))}

    def check(self) -> None:
        """Raise UserError if a path of the run no longer leads to the same directory or file."""
        for path, known in self._known.items():
            found = _identity(path)
            if found in (known, _UNKNOWN) or (found is None and path.name == OWNER_NAME):
                continue
            raise UserError(
                f"'{path}' {'is another one now' if found else 'is gone'}: it was removed, moved, unmounted "
                "or taken by another process. Whatever the run wrote from now on would be lost. The run is "
                "not complete. If it was moved, continue with --resume NEW_PLACE."
            )


_UNKNOWN = (-1, -1)


def _identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode of a path, None if nothing is there, _UNKNOWN if the file system fails."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:  # a network file system that does not answer now may do so later
        return _UNKNOWN
    return found.st_dev, found.st_ino


class RunLock:
    """Exclusive lock of a directory until `release` or the end of the process, even a killed one.

    Both `run.lock` and the directory itself are locked: files can be deleted while the run goes on, and not
    all network file systems lock directories. `run.owner` names the process that holds the lock, for messages
    only.

    Raises:
        RunInUse: another process, or another object of this one, holds it; the message names it.
        UserError: the lock file is a symbolic link.
        OSError: the directory cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self._owner, self._file = directory / OWNER_NAME, directory / LOCK_NAME
        self._presence = Presence(directory)
        self._held = [os.open(directory, os.O_RDONLY | os.O_DIRECTORY)]
        try:
            _lock_directory(self._held[0])
            self._held.append(_open_file(self._file))
            if not _lock_file(self._held[1], self._file):
                console.warning(
                    f"the file system of '{directory}' has no locks: make sure no second run uses it"
                )
        except BlockingIOError as error:
            self._let_go()
            raise RunInUse(
                f"run directory '{directory}' is in use by {self._read_owner()}. "
                "Wait for that run or stop it, or start another run with another --run-dir."
            ) from error
        except (OSError, UserError):
            self._let_go()
            raise
        try:
            owner = {"pid": os.getpid(), "host": socket.gethostname()}
            write_file(self._owner, json.dumps(owner).encode())
        except OSError:
            self.release(remove=True)
            raise

    def check(self) -> None:
        """Raise UserError if the directory was removed, renamed, replaced or unmounted (`Presence`)."""
        self._presence.check()

    def release(self, *, remove: bool = False) -> None:
        """Release the lock. Pass `remove` only when discarding the directory.

        Another process may have opened the lock file without having locked it yet. If the file were removed,
        that process would lock the old file and a later one a new file, and both would write to the run.
        """
        # Errors do not matter: closing the files releases the lock. If the directory was renamed, another run
        # may own these paths.
        with contextlib.suppress(OSError, UserError):
            self.check()
            for file in (self._owner, self._file) if remove else (self._owner,):
                file.unlink()
        self._let_go()

    def _let_go(self) -> None:
        for descriptor in self._held:
            with contextlib.suppress(OSError):
                # Not only closed: a forked process may hold the file as well.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _read_owner(self) -> str:
        try:
            owner = json.loads(self._owner.read_bytes())
            return f"process {owner['pid']} on host {owner['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"


def _open_file(path: Path) -> int:
    """Open a lock file, which is made if it is missing. Raises UserError if it is a symbolic link."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"'{path}' is a symbolic link: remove it.") from error
        raise


def _lock_file(descriptor: int, path: Path) -> bool:
    """Lock an open file; return whether its file system has locks.

    Raises:
        BlockingIOError: it is locked, or is no longer the file at `path`, which another process may lock.
    """
    try:
        _lock(descriptor)
    except PermissionError as error:  # how SMB, and some NFS, say that another host has locked it
        raise BlockingIOError(error.errno, error.strerror) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
        return False
    found = os.fstat(descriptor)
    if _identity(path) not in ((found.st_dev, found.st_ino), _UNKNOWN):
        raise BlockingIOError
    return True


def _lock_directory(descriptor: int) -> None:
    """Lock an open directory. Raises BlockingIOError if it is locked; file systems may not support it."""
    try:
        _lock(descriptor)
    except BlockingIOError:
        raise
    except OSError:
        return  # the lock of the file decides alone


def _lock(descriptor: int) -> None:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
