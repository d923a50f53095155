"""The lock of a run directory, and the watch over directory and files while they are in use."""

import contextlib
import errno
import fcntl
import json
import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

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
        if self._file.is_symlink():
            raise UserError(f"'{self._file}' is a symbolic link: remove it.")
        lock = FileLock(self._file, thread_local=False)
        self._lock: FileLock | None = lock
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        self._presence = Presence(directory)
        try:
            _lock_directory(self._directory)
            lock.acquire(blocking=False)
        except (Timeout, BlockingIOError) as error:
            os.close(self._directory)
            raise RunInUse(
                f"run directory '{directory}' is in use by {self._read_owner()}. "
                "Wait for that run or stop it, or start another run with another --run-dir."
            ) from error
        except (OSError, NotImplementedError) as error:  # NotImplementedError: no flock at all
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS_HERE:
                os.close(self._directory)
                raise
            self._lock = None
            console.warning(f"the file system of '{directory}' has no locks: make sure no second run uses it")
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

        A process that waits has opened the lock file already. If the file were removed, that process would
        lock the old file and a later one a new file, and both would write to the run.
        """
        # Errors do not matter: closing the files releases the lock. If the directory was renamed, another run
        # may own these paths.
        with contextlib.suppress(OSError, UserError):
            self.check()
            for file in (self._owner, self._file) if remove else (self._owner,):
                file.unlink()
        if self._lock is not None:
            self._lock.release()
        with contextlib.suppress(OSError):
            # Not only closed: a forked process may hold the file as well.
            fcntl.flock(self._directory, fcntl.LOCK_UN)
        os.close(self._directory)

    def _read_owner(self) -> str:
        try:
            owner = json.loads(self._owner.read_bytes())
            return f"process {owner['pid']} on host {owner['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"


def _lock_directory(descriptor: int) -> None:
    """Lock an open directory. Raises BlockingIOError if it is locked; file systems may not support it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return  # the lock of the file decides alone
