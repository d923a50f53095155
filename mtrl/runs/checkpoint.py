"""Checkpoints that survive a kill at any moment and hold no pickled objects.

Layout: `checkpoints/step_000123456/{<part>.pt, manifest.json}`. Parts hold tensors and plain values only, so
that `torch.load(weights_only=True)` reads them. The manifest has a SHA-256 of each file, because torch does
not notice flipped bits. Each part can be read without the others: evaluation needs "policy" only.
"""

import errno
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch

from mtrl.config.files import temporary_path
from mtrl.errors import OtherConfiguration, UserError
from mtrl.runs import console
from mtrl.runs.directory import CHECKPOINTS_NAME, UNSAVED_NAME, remove_unfinished
from mtrl.runs.plain_tree import from_plain, to_plain
from mtrl.runs.versions import package_versions

SCHEMA = 3
_MANIFEST = "manifest.json"
_PART_NAME = re.compile(r"[a-z][a-z0-9_]*")
# `.replaced` marks the former checkpoint of a step while a new one of the same step takes its name.
_DIRECTORY_NAME = re.compile(r"step_\d+(\.replaced)?")
# Large parts are mapped, which saves a second copy in memory; small ones are read, so that the file may go.
_MAP_FROM_BYTES = 8 << 20
_CANNOT_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP}


class _Damaged(Exception):
    """A checkpoint that cannot be trusted; the message says why."""


def save_checkpoint(
    run_dir: Path,
    step: int,
    state: Mapping[str, Any],
    *,
    keep: int,
    suite: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write one file per part of `state`, atomically, then delete all but the newest `keep` checkpoints.

    Args:
        run_dir: the run, which the caller has locked (`RunDirectory`).
        step: vector step, which names the directory. Checkpoints of later steps are deleted: they were
            damaged, and the run was resumed from an earlier one.
        state: part name (lower case, digits, underscores) -> tree of the types that `plain_tree.to_plain`
            takes, or a function that returns the tree and is called just before it is written.
        keep: at least 1.
        suite: versions of the suite of tasks, compared on loading.
        config: settings by dotted key, compared on loading.

    Returns:
        The checkpoint's directory.

    Raises:
        OSError: disk full, quota, permissions. Earlier checkpoints are intact; no unfinished file is left.
        TypeError: a value that cannot be saved; names its place in the tree.
    """
    if keep < 1 or step < 0:
        raise ValueError(f"keep must be at least 1 and step at least 0; found keep={keep}, step={step}.")
    checkpoints = run_dir / CHECKPOINTS_NAME
    checkpoints.mkdir(exist_ok=True)  # not its parents: a run directory that is gone must not come back empty
    _fsync_directory(run_dir)
    remove_unfinished(checkpoints)
    final = checkpoints / f"step_{step:09d}"
    temporary = temporary_path(final)
    temporary.mkdir()
    try:
        files = {f"{part}.pt": _write_part(temporary, part, tree) for part, tree in state.items()}
        _write_manifest(temporary, step, files, suite or {}, config)
        _fsync_directory(temporary)
        _publish(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    (run_dir / UNSAVED_NAME).unlink(missing_ok=True)  # from now on the run may not be started over
    _prune(run_dir, step, keep)
    return final


def load_checkpoint(
    run_dir: Path,
    *,
    step: int | None = None,
    parts: Collection[str] | None = None,
    suite: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    allow_version_mismatch: bool = False,
    warn: Callable[[str], None] = console.warning,
) -> tuple[int, dict[str, Any]]:
    """Read the newest checkpoint whose files match its manifest. Writes nothing, so it needs no lock.

    Args:
        run_dir: the run; a process may still be training in it.
        step: vector step of the checkpoint to read; None: the newest.
        parts: names of the parts to read, even if others are damaged or missing; None: all.
        suite: installed versions of the suite of tasks; None: not compared.
        config: settings that the checkpoint must have been written with; None: not compared.
        allow_version_mismatch: accept another version of the suite or major version of torch.
        warn: called once for each skipped checkpoint, with the reason.

    Returns:
        Vector step and parts as given to `save_checkpoint`, tensors on the CPU. Tensors of large parts are
        copy-on-write maps of the file: copy them instead of keeping them.

    Raises:
        UserError: no valid checkpoint, or the newest valid one has another format, configuration or version.
    """
    kept = sorted({_step(directory) for directory in _directories(run_dir)})
    if step is not None and step not in kept:
        found = ", ".join(map(str, kept)) or "none"
        raise UserError(
            f"'{run_dir}' has no checkpoint of vector step {step}; found {found}. Give one of these."
        )
    skipped: set[str] = set()
    while True:
        candidates = [own for own in _directories(run_dir) if step in (None, _step(own))]
        for directory in candidates:
            try:
                manifest = _verified_manifest(directory)
                names = _verified_names(directory, manifest, parts)
                _check_config(directory, manifest.get("config", {}), config or {})
                if not allow_version_mismatch:
                    _check_versions(directory, manifest["versions"], suite)
                return manifest["step"], _read_parts(directory, manifest, names)
            except _Damaged as error:
                if directory.name not in skipped:
                    warn(f"skipped checkpoint {directory.name}: {error}")
                skipped.add(directory.name)
        # A process that trains here may have deleted the listed checkpoints and written newer ones.
        if step is not None or _directories(run_dir) == candidates:
            break
    found = f"{len(skipped)} damaged" if skipped else "none"
    raise UserError(
        f"no valid checkpoint in '{run_dir / CHECKPOINTS_NAME}': expected step_* directories with "
        f"{_MANIFEST}, found {found}. Start the run anew, in another --run-dir or after removing this one."
    )


class _HashingFile(io.FileIO):
    """A new file that hashes what is written to it, so that nothing need be read back."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "xb")
        self.sha256 = hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.sha256.update(view)
        done = 0
        try:
            while done < len(view):  # the kernel takes at most 2 GiB at once
                done += super().write(view[done:])
        except OSError as error:
            self.failure = error
            raise
        return done


def _write_part(directory: Path, part: str, tree: Any) -> dict[str, Any]:
    if not _PART_NAME.fullmatch(part):
        raise ValueError(f"part name must match {_PART_NAME.pattern}; found {part!r}.")
    plain = to_plain(tree() if callable(tree) else tree, part)
    with _HashingFile(directory / f"{part}.pt") as file:
        try:
            torch.save(plain, file)
        except RuntimeError as error:
            # On a full disk torch raises a RuntimeError about its file position in place of the OSError.
            raise (file.failure or error) from error
        os.fsync(file.fileno())
        return {"sha256": file.sha256.hexdigest(), "size": os.fstat(file.fileno()).st_size}


def _write_manifest(
    directory: Path,
    step: int,
    files: dict[str, dict[str, Any]],
    suite: Mapping[str, str],
    config: Mapping[str, Any] | None,
) -> None:
    versions = {"packages": package_versions(), "suite": dict(suite)}
    manifest: dict[str, Any] = {"schema": SCHEMA, "step": step, "versions": versions, "files": files}
    if config is not None:
        manifest["config"] = _as_json(config)
    text = json.dumps({**manifest, "digest": _digest(manifest)}, indent=2)
    with open(directory / _MANIFEST, "w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())


def _digest(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the manifest's content, by which damage to a step or version is noticed."""
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _publish(temporary: Path, final: Path) -> None:
    """Rename a complete directory to its final name; a former checkpoint of the step stays until then.

    For power cuts, the caller has synchronised the files and their directory: a rename may reach the disk
    before file contents do, and would then name an empty checkpoint. The parent is synchronised here, before
    older checkpoints are deleted, because until then they may be the only ones on disk.
    """
    former = final.with_name(final.name + ".replaced")
    if final.exists():
        if former.exists():
            _delete(former)
        os.replace(final, former)
    os.replace(temporary, final)
    _fsync_directory(final.parent)
    if former.exists():
        _delete(former)


def _prune(run_dir: Path, step: int, keep: int) -> None:
    entries = _directories(run_dir)
    kept = [entry for entry in entries if _step(entry) <= step][:keep]
    for entry in entries:
        if entry not in kept:
            _delete(entry)


def _delete(directory: Path) -> None:
    # Renamed first: a kill during the deletion must not leave an incomplete checkpoint under its name.
    doomed = temporary_path(directory.with_name(f"deleted-{directory.name}"))
    os.replace(directory, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:  # some network file systems synchronise files alone
            raise
    finally:
        os.close(descriptor)


def _directories(run_dir: Path) -> list[Path]:
    """Return the checkpoints, newest first; of one step, the new one before the replaced one."""
    found = [e for e in (run_dir / CHECKPOINTS_NAME).glob("step_*") if _DIRECTORY_NAME.fullmatch(e.name)]
    return sorted(found, key=lambda entry: (_step(entry), not entry.suffix), reverse=True)


def _step(directory: Path) -> int:
    return int(directory.name.removesuffix(".replaced").removeprefix("step_"))


def _verified_manifest(directory: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((directory / _MANIFEST).read_bytes())
        intact = manifest.pop("digest") == _digest(manifest)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _Damaged(f"{_MANIFEST} is missing or unreadable") from error
    if not intact:
        raise _Damaged(f"{_MANIFEST} was changed")
    if manifest.get("schema") != SCHEMA:
        raise UserError(
            f"checkpoint '{directory}' has format {manifest.get('schema')}; this version reads {SCHEMA}. "
            "Continue the run with the version that wrote it, or start anew in another --run-dir."
        )
    if _step(directory) != manifest["step"]:
        raise _Damaged(f"its manifest belongs to step {manifest['step']}")
    return dict(manifest)


def _verified_names(directory: Path, manifest: Mapping[str, Any], parts: Collection[str] | None) -> list[str]:
    """Return the names of the files to read. If `parts` is None, the directory may hold no other file."""
    listed = list(manifest["files"])
    # Hidden files come from file systems and desktops (.nfs*, .DS_Store): they do not mean a wrong copy.
    try:
        present = {entry.name for entry in directory.iterdir() if not entry.name.startswith(".")}
    except OSError as error:  # the process that trains here may have deleted it
        raise _Damaged(f"it cannot be read: {error.strerror}") from error
    present -= {_MANIFEST}
    wanted = listed if parts is None else [f"{part}.pt" for part in parts]
    missing = {*wanted} - ({*listed} & present)
    unknown = present - {*listed} if parts is None else set()
    if missing or unknown:
        raise _Damaged(f"files missing: {sorted(missing)}, not in its manifest: {sorted(unknown)}")
    return wanted


def _check_versions(
    directory: Path, saved: Mapping[str, Mapping[str, str]], suite: Mapping[str, str] | None
) -> None:
    majors = [packages["torch"].split(".", 1)[0] for packages in (saved["packages"], package_versions())]
    before = {**saved["suite"], "torch": majors[0]}
    here = {**(saved["suite"] if suite is None else suite), "torch": majors[1]}
    differing = [
        f"{name} {before[name]} (here {here.get(name, 'absent')})"
        for name in sorted(before)  # packages without a saved version are not compared
        if before[name] != here.get(name)
    ]
    if differing:
        raise UserError(
            f"checkpoint '{directory}' was written with {', '.join(differing)}: another version gives other "
            "numbers. Install the version it was written with, or pass --allow-version-mismatch."
        )


def _check_config(directory: Path, saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    # Settings that only one side has are new or were renamed. Policies in best/ had none.
    asked = {key: value for key, value in _as_json(here).items() if key in saved}
    differing = [f"{key} {saved[key]} (here {value})" for key, value in asked.items() if saved[key] != value]
    if differing:
        raise OtherConfiguration(
            f"checkpoint '{directory}' was written with another configuration: {', '.join(differing)}. "
            "Undo the change of the run's config.yaml or of a file that it names, or start anew in another "
            "directory."
        )


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as JSON gives them back: tuples become lists."""
    found: dict[str, Any] = json.loads(json.dumps(dict(values), default=str))
    return found


def _read_parts(directory: Path, manifest: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    for name in names:  # all are checked first: if one part is damaged, the checkpoint is not used
        _verify_file(directory / name, manifest["files"][name])
    parts = {}
    for name in names:
        path = directory / name
        try:
            _check_archive(path)
            large = path.stat().st_size >= _MAP_FROM_BYTES
            plain = torch.load(path, map_location="cpu", weights_only=True, mmap=large)
            parts[name.removesuffix(".pt")] = from_plain(plain)
        except UnpicklingError as error:
            raise _Damaged(f"{name} holds other objects than tensors and plain values") from error
        except (OSError, RuntimeError, EOFError, ValueError, TypeError, KeyError, BadZipFile) as error:
            raise _Damaged(f"{name} is unreadable: {error}") from error
    return parts


def _check_archive(path: Path) -> None:
    """Refuse files whose content is larger than the file: `torch.save` compresses nothing."""
    with ZipFile(path) as archive:
        entries = archive.infolist()
    stored = all(entry.compress_type == ZIP_STORED for entry in entries)
    if not stored or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise _Damaged(f"{path.name} is compressed, which mtrl's files are not")


def _verify_file(path: Path, expected: Mapping[str, Any]) -> None:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != expected["size"]:
                raise _Damaged(f"{path.name} has {size} bytes instead of {expected['size']}")
            if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                raise _Damaged(f"{path.name} was changed: its SHA-256 differs")
    except OSError as error:
        raise _Damaged(f"{path.name} cannot be read: {error.strerror}") from error
