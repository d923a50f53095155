"""One owner per run directory: the lock is the `filelock` library's, who owns it stands beside it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from mtrl.errors import UserError
from mtrl.runs import console

LOCK_NAME = "run.lock"
OWNER_NAME = "run.owner"
_NO_LOCKS_HERE = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


class RunLock:
    """Exclusive hold on a directory until `release`; the kernel drops it when the process ends, however.

    Raises:
        UserError: another process, or another part of this one, holds it; the message names it.
        OSError: the directory cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self._owner, self._file = directory / OWNER_NAME, directory / LOCK_NAME
        lock = FileLock(self._file, thread_local=False)
        self._lock: FileLock | None = lock
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise UserError(
                f"run directory '{directory}' is in use by {self._read_owner()}. "
                "Wait for that run or stop it, or start another run with another --run-dir."
            ) from error
        except (OSError, NotImplementedError) as error:  # the latter of a file system without any flock
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS_HERE:
                raise
            self._lock = None
            console.warning(f"the file system of '{directory}' has no locks: make sure no second run uses it")
        try:
            owner = {"pid": os.getpid(), "host": socket.gethostname()}
            self._owner.write_text(json.dumps(owner), encoding="utf-8")
        except OSError:
            self.release(remove=True)
            raise

    def release(self, *, remove: bool = False) -> None:
        """Give the hold up; `remove` the file of the lock too, which only who discards the directory should.

        The file stays else: a process that opened it before it was removed would lock something nobody else
        sees.
        """
        # The directory may have been moved or removed meanwhile; closing the file is what ends the hold.
        for file in (self._owner, self._file) if remove else (self._owner,):
            with contextlib.suppress(OSError):
                file.unlink()
        if self._lock is not None:
            self._lock.release()

    def _read_owner(self) -> str:
        try:
            owner = json.loads(self._owner.read_bytes())
            return f"process {owner['pid']} on host {owner['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"
