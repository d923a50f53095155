"""The directory of a run and the names of its files. Imports no torch."""

import contextlib
import json
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from mtrl.config.files import UNFINISHED, expand, write_file
from mtrl.errors import UserError
from mtrl.runs import console
from mtrl.runs.lock import RunLock
from mtrl.runs.versions import versions

CONFIG_NAME = "config.yaml"
VERSIONS_NAME = "versions.json"
METRICS_NAME = "metrics.jsonl"
EVALUATIONS_NAME = "evaluations.jsonl"
UNSAVED_NAME = "run.unsaved"  # there until the first checkpoint is written
CHECKPOINTS_NAME = "checkpoints"
BEST_NAME = "best"  # policy of the best evaluation
LOG_NAMES = (METRICS_NAME, EVALUATIONS_NAME)
EVENT_FILES = "events.out.tfevents.*"
# Order of removal: run.unsaved after the logs, config.yaml last, so that starting over can be interrupted.
_FILES = (*LOG_NAMES, VERSIONS_NAME, UNSAVED_NAME, CONFIG_NAME)
THEN = ", then "  # between the versions that a run has had


class RunDirectory:
    """A run directory, locked from `create` or `resume` until `release`; a context manager.

    An exception in the `with` block also removes a new directory without results (`discard_if_empty`).

    Attributes:
        path: the directory itself.
        config_path: the file of the resolved configuration.
        checkpoints: the folder of the checkpoints.
    """

    def __init__(self, path: Path, lock: RunLock, created: tuple[Path, ...], *, is_new: bool) -> None:
        self.path, self.config_path, self.checkpoints = path, path / CONFIG_NAME, path / CHECKPOINTS_NAME
        self._lock: RunLock | None = lock
        self._created = created  # directories made by `create`, innermost first
        self._is_new = is_new

    @classmethod
    def create(cls, path: Path, *, start_over: bool = False) -> Self:
        """Make `path` (parents too) and lock it for a new run.

        Args:
            path: of the run.
            start_over: remove the files of a run there without a checkpoint. The caller has made sure that
                it ended before its first one.

        Raises:
            UserError: it holds a run already, another process has locked it, or it cannot be written.
                Directories made by this call are removed again.
        """
        path = expand(path)
        created: list[Path] = []
        try:
            created = _missing(path)
            path.mkdir(parents=True, exist_ok=True)  # another process may make them too
            lock = RunLock(path)
        except OSError as error:
            _remove_empty(created)
            raise _unwritable(path, error, "Choose a writable directory with --run-dir.") from error
        except UserError:
            _remove_empty(created)
            raise
        run = cls(path, lock, tuple(created), is_new=True)
        if start_over and (path / CONFIG_NAME).is_file() and not has_checkpoint(path):
            run._remove_traces()
        traces = sorted({entry.name for entry in _traces_of_a_run(path)})
        if traces:
            run.release()
            raise UserError(f"'{path}' already holds a run (found {', '.join(traces)}). {_way_on(path)}")
        return run

    @classmethod
    def create_numbered(cls, path: Path) -> Self:
        """Lock a new directory: `path`, or if that exists `path-2`, `path-3`, ... Raises as `create`."""
        path = expand(path)
        for number in range(1, 10_000):
            candidate = path if number == 1 else path.with_name(f"{path.name}-{number}")
            created: list[Path] = []
            try:
                created = _missing(candidate)
                with contextlib.suppress(OSError):  # which the next line meets again
                    candidate.parent.mkdir(parents=True, exist_ok=True)
                candidate.mkdir()  # if several processes try, exactly one succeeds
            except FileExistsError:
                continue
            except OSError:
                _remove_empty(created)  # `create` meets the same error and explains it
                return cls.create(candidate)
            run = cls.create(candidate)
            run._created = tuple(created)
            return run
        raise UserError(f"no free directory name near '{path}'. Choose one with --run-dir.")

    @classmethod
    def resume(cls, path: Path) -> Self:
        """Lock an existing run and remove checkpoints that a killed process left unfinished.

        Raises:
            UserError: no run with a checkpoint there, another process has locked it, or it cannot be written.
        """
        path = expand(path)
        if (path / CONFIG_NAME).is_file() and not has_checkpoint(path):
            raise UserError(f"the run in '{path}' cannot be resumed. {_way_on(path)}")
        if not (path / CONFIG_NAME).is_file():
            found = f"no {CONFIG_NAME}" if path.exists() else "no such directory"
            raise UserError(
                f"'{path}' is not a run directory: expected {CONFIG_NAME} and {CHECKPOINTS_NAME}/ with a "
                f"checkpoint in it, found {found}. Give --resume the directory that holds {CONFIG_NAME}."
            )
        try:
            lock = RunLock(path)
        except OSError as error:
            raise _unwritable(path, error, "Copy the run to a writable place and resume it there.") from error
        run = cls(path, lock, (), is_new=False)
        other = run.checkpoints.resolve().parent
        if run.checkpoints.is_symlink() and (other / CONFIG_NAME).exists():
            run.release()
            raise UserError(
                f"'{run.checkpoints}' is a link to the checkpoints of another run, '{other}', which this run "
                "would delete. Copy the run with its checkpoints."
            )
        (path / UNSAVED_NAME).unlink(missing_ok=True)  # a kill may have come between a checkpoint and this
        for place in (run.checkpoints, path / BEST_NAME / CHECKPOINTS_NAME, path):
            for name in remove_unfinished(place):
                console.warning(f"removed {name}, which a killed process left unfinished")
        return run

    def mark_unsaved(self) -> None:
        """Note that the run has no checkpoint yet; `save_checkpoint` and `resume` remove the note.

        Without the note only a run without results may be started over: others had checkpoints.
        """
        write_file(self.path / UNSAVED_NAME, b"No checkpoint yet: --resume-or-start starts over.\n")

    def check(self) -> None:
        """Raise UserError if the directory was removed, renamed or unmounted since it was locked."""
        if self._lock is not None:
            self._lock.check()

    def write_versions(self, suite: Mapping[str, str]) -> dict[str, str]:
        """Write `versions.json`, including the versions of the suite of tasks, and return its content.

        If the run is resumed with another version of a package or another commit, both are kept ("3.3.0, then
        3.4.0"); what was not there before, or is not there now, is "absent".
        """
        path = self.path / VERSIONS_NAME
        found = {**versions(), **suite}
        with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
            before = json.loads(path.read_bytes())
            for name in {**found, **before}.keys() - {"platform", "cpu", "cores"}:
                now, former = found.get(name, "absent"), before.get(name, "absent")
                found[name] = former if former.rpartition(THEN)[2] == now else f"{former}{THEN}{now}"
        write_file(path, (json.dumps(found, indent=2) + "\n").encode())
        return found

    def discard_if_empty(self) -> bool:
        """If a new run has no log line and no checkpoint, remove it; return whether the directory is gone.

        Only files that a run writes are removed: a directory that holds other files stays.
        """
        if self._lock is None or not self._is_new or self._has_results():
            return False
        try:
            self.check()
        except UserError:
            return False  # what is at this path now is not this run
        self._remove_traces()
        lock, self._lock = self._lock, None
        lock.release(remove=True)
        _remove_empty(self._created)
        return not self.path.exists()

    def release(self) -> None:
        """Release the lock; further calls do nothing."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.discard_if_empty()
        self.release()

    def _has_results(self) -> bool:
        logs = [self.path / name for name in LOG_NAMES]
        return any(log.exists() and log.stat().st_size > 0 for log in logs) or has_checkpoint(self.path)

    def _remove_traces(self) -> None:
        with contextlib.suppress(OSError):
            remove_unfinished(self.checkpoints)
        if (self.path / BEST_NAME / CHECKPOINTS_NAME).is_dir():
            shutil.rmtree(self.path / BEST_NAME, ignore_errors=True)
        for entry in _traces_of_a_run(self.path):
            with contextlib.suppress(OSError):
                if entry.is_file():
                    entry.unlink()
                else:
                    entry.rmdir()  # only if nothing else is in it


def remove_unfinished(folder: Path) -> list[str]:
    """Remove unfinished files and checkpoints of killed processes in `folder`; return their names.

    The caller must hold the run's lock, so that no other process is writing them.
    """
    stale = sorted(entry for entry in folder.glob(".*") if UNFINISHED.fullmatch(entry.name))
    for entry in stale:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    return [entry.name for entry in stale]


def _missing(path: Path) -> list[Path]:
    """Return which of a path and the folders above it do not exist, innermost first."""
    return [place for place in (path, *path.parents) if not place.exists()]


def _remove_empty(directories: Sequence[Path]) -> None:
    for directory in directories:
        with contextlib.suppress(OSError):
            directory.rmdir()


def has_checkpoint(path: Path) -> bool:
    """Return whether there is a checkpoint, valid or damaged."""
    return any((path / CHECKPOINTS_NAME).glob("step_*"))


def flag_to_go_on(path: Path) -> str:
    """Return the flag, with its value, that continues the run in `path`."""
    flag = "--resume" if has_checkpoint(path) else "--resume-or-start"
    return f"{flag} {shlex.quote(str(path))}"


def way_to_go_on(path: Path) -> str:
    """Return the advice, for the end of a sentence, that continues the run in `path` or starts it anew."""
    how = "continue" if has_checkpoint(path) else "repeat its command"  # the configuration must be the same
    return f"{how} with {flag_to_go_on(path)}"


def _traces_of_a_run(path: Path) -> Iterator[Path]:
    """Yield the files and folders that a run writes."""
    yield from path.glob(EVENT_FILES)
    if (path / BEST_NAME / CHECKPOINTS_NAME).is_dir():
        yield path / BEST_NAME
    for name in (CHECKPOINTS_NAME, *_FILES):
        if (path / name).exists():
            yield path / name


def _way_on(path: Path) -> str:
    if not (path / CONFIG_NAME).is_file():
        return f"Without {CONFIG_NAME} it cannot be continued: choose another --run-dir."
    if has_checkpoint(path):
        return f"Continue it with {flag_to_go_on(path)}, or start elsewhere with another --run-dir."
    return (
        f"It has no checkpoint. If it ended before its first checkpoint, {way_to_go_on(path)}, or delete the "
        "directory; otherwise choose another --run-dir."
    )


def _unwritable(path: Path, error: OSError, way_on: str) -> UserError:
    where = f" ({error.filename})" if error.filename else ""
    return UserError(f"run directory '{path}' cannot be written: {error.strerror or error}{where}. {way_on}")
