"""The directory of a run: who owns it, where its parts are. Imports no torch."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from mtrl.runs import console
from mtrl.errors import UserError
from mtrl.runs.versions import versions

LOCK_NAME = "run.lock"
CONFIG_NAME = "config.yaml"
VERSIONS_NAME = "versions.json"
METRICS_NAME = "metrics.jsonl"
EVALUATIONS_NAME = "evaluations.jsonl"
CHECKPOINTS_NAME = "checkpoints"
TEMPORARY_PREFIX = ".tmp-"
_EVENT_FILES = "events.out.tfevents.*"
_FILES = (CONFIG_NAME, VERSIONS_NAME, METRICS_NAME, EVALUATIONS_NAME)
_NO_LOCKS_HERE = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


class RunDirectory:
    """Exclusive hold on a run directory, from `create` or `resume` until `release`; a context manager.

    The hold is an flock on `run.lock`: the kernel drops it when the process ends, however it ends, so there
    is no stale lock to clean up. Leaving the `with` block by an exception also discards a directory that
    holds no result yet (`discard_if_empty`).
    """

    def __init__(self, path: Path, lock: int | None, created: tuple[Path, ...]) -> None:
        self._path = path
        self._lock = lock
        self._created = created  # directories made by `create`, outermost first
        self._is_new = True

    @classmethod
    def create(cls, path: Path) -> Self:
        """Make `path` (parents too) and hold it for a new run.

        Raises:
            UserError: it holds a run already, another process owns it, or it cannot be written. Nothing that
                this call made stays behind.
        """
        path = Path(path).expanduser()
        created: list[Path] = []
        try:
            _make_directories(path, created)
            lock = _lock(path)
        except OSError as error:
            _remove_empty(created)
            raise UserError(
                f"run directory '{path}' cannot be written: {_reason(error)}. "
                "Choose a writable directory with --run-dir."
            ) from error
        except UserError:
            _remove_empty(created)
            raise
        run = cls(path, lock, tuple(created))
        leftovers = [entry.name for entry in _traces_of_a_run(path)]
        if leftovers:
            run.release()
            raise UserError(
                f"'{path}' already holds a run (found {', '.join(sorted(leftovers))}). "
                f"Continue it with --resume {path}, or start elsewhere with another --run-dir."
            )
        return run

    @classmethod
    def resume(cls, path: Path) -> Self:
        """Hold an existing run; what a killed process left of an unfinished checkpoint is removed.

        Raises:
            UserError: no run with a checkpoint there, another process owns it, or it cannot be written.
        """
        path = Path(path).expanduser()
        missing = _missing_parts(path)
        if missing:
            raise UserError(
                f"'{path}' is not a run directory: expected {CONFIG_NAME} and {CHECKPOINTS_NAME}/ with a "
                f"checkpoint in it, found {missing}. Give --resume the directory that holds {CONFIG_NAME}."
            )
        try:
            lock = _lock(path)
        except OSError as error:
            raise UserError(
                f"run directory '{path}' cannot be written: {_reason(error)}. "
                "Copy the run to a writable place and resume it there."
            ) from error
        run = cls(path, lock, ())
        run._is_new = False
        for name in remove_unfinished(run.checkpoints):
            console.warning(f"removed {name}, a checkpoint that a killed process left unfinished")
        return run

    @property
    def path(self) -> Path:
        """The directory itself."""
        return self._path

    @property
    def config_path(self) -> Path:
        """Where the resolved configuration is written."""
        return self._path / CONFIG_NAME

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self._path / CHECKPOINTS_NAME

    def write_versions(self) -> dict[str, str]:
        """Write `versions.json` and return what it holds."""
        found = versions()
        (self._path / VERSIONS_NAME).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        return found

    def discard_if_empty(self) -> bool:
        """Remove a new run without a logged line or checkpoint, give up the hold, say whether it was removed.

        Only files that a run writes are removed: a directory that holds anything else stays.
        """
        if self._lock is None or not self._is_new or self._has_results():
            return False
        with contextlib.suppress(OSError):
            remove_unfinished(self.checkpoints)
            self.checkpoints.rmdir()
        for entry in _traces_of_a_run(self._path):
            if entry.is_file():
                entry.unlink(missing_ok=True)
        self.release()
        _remove_empty(self._created)
        return not self._path.exists()

    def release(self) -> None:
        """Give up the hold; further calls do nothing."""
        if self._lock is None:
            return
        lock, self._lock = self._lock, None
        # The directory may have been moved or removed meanwhile; closing is what ends the hold.
        with contextlib.suppress(OSError):
            if _is_same_file(lock, self._path / LOCK_NAME):
                (self._path / LOCK_NAME).unlink()
        os.close(lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.discard_if_empty()
        self.release()

    def _has_results(self) -> bool:
        logs = (self._path / METRICS_NAME, self._path / EVALUATIONS_NAME)
        return any(log.exists() and log.stat().st_size > 0 for log in logs) or bool(_checkpoints(self._path))


def remove_unfinished(checkpoints: Path) -> list[str]:
    """Remove what killed processes left half-written in `checkpoints`; returns the names.

    Only the run's owner may call this: no other process can be writing then.
    """
    stale = sorted(checkpoints.glob(TEMPORARY_PREFIX + "*"))
    for entry in stale:
        shutil.rmtree(entry, ignore_errors=True)
    return [entry.name for entry in stale]


def _make_directories(path: Path, created: list[Path]) -> None:
    missing: list[Path] = []
    place = path
    while not place.exists():
        missing.append(place)
        place = place.parent
    for directory in reversed(missing):
        # Another process may make the same directory now; the lock decides who keeps it.
        directory.mkdir(exist_ok=True)
        created.append(directory)
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))


def _remove_empty(directories: tuple[Path, ...] | list[Path]) -> None:
    for directory in reversed(directories):
        with contextlib.suppress(OSError):
            directory.rmdir()


def _lock(path: Path) -> int:
    """Open and lock `run.lock`; the descriptor holds the lock. Raises UserError when it is taken."""
    file = path / LOCK_NAME
    while True:
        lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = _owner(lock)
            os.close(lock)
            raise UserError(
                f"run directory '{path}' is in use by {owner}. "
                "Wait for that run or stop it, or start another run with another --run-dir."
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS_HERE:
                os.close(lock)
                raise
            console.warning(f"the file system of '{path}' has no locks: make sure no second run uses it")
        # The former owner removes the file as it leaves: a lock on a removed file protects nothing.
        if _is_same_file(lock, file):
            break
        os.close(lock)
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
    except OSError:
        file.unlink(missing_ok=True)
        os.close(lock)
        raise
    return lock


def _owner(lock: int) -> str:
    try:
        owner = json.loads(os.pread(lock, 4096, 0))
        return f"process {owner['pid']} on host {owner['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _is_same_file(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False


def _checkpoints(path: Path) -> list[Path]:
    return sorted((path / CHECKPOINTS_NAME).glob("step_*"))


def _traces_of_a_run(path: Path) -> Iterator[Path]:
    for name in (*_FILES, CHECKPOINTS_NAME):
        if (path / name).exists():
            yield path / name
    yield from path.glob(_EVENT_FILES)


def _missing_parts(path: Path) -> str:
    if not path.exists():
        return "no such directory"
    if not path.is_dir():
        return "a file"
    absent = [] if (path / CONFIG_NAME).is_file() else [f"no {CONFIG_NAME}"]
    if not _checkpoints(path):
        absent.append("no checkpoint")
    return " and ".join(absent)


def _reason(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror or error}{where}"
