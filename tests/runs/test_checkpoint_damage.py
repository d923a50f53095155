"""Checkpoints that are damaged, crafted or of other versions."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mtrl
from mtrl.errors import UserError
from mtrl.runs import checkpoint
from mtrl.runs.checkpoint import load_checkpoint, save_checkpoint
from mtrl.runs.versions import package_versions
from tests.helpers.checkpoints import Reports, assert_same, state_of

PACKAGE = Path(mtrl.__file__).parent


def test_leftovers_of_a_killed_process_are_removed_by_the_next_save_only(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, state_of(1), keep=2)
    leftover = tmp_path / "checkpoints/.tmp-1-step_000000002"
    leftover.mkdir()
    (leftover / "agent.pt").write_bytes(b"half")
    load_checkpoint(tmp_path)
    assert leftover.exists()  # it may belong to a process that is saving now
    save_checkpoint(tmp_path, 2, state_of(2), keep=2)
    assert not leftover.exists()


# -- damage -------------------------------------------------------------------------------------------------


def rewrite_manifest(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest and make its digest fit, as someone in bad faith would."""
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["digest"]
    for name, entry in manifest["files"].items():
        content = (directory / name).read_bytes()
        entry.update(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    change(manifest)
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    path.write_text(json.dumps({**manifest, "digest": digest}))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def become_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def become_empty(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: truncate(path / "agent.pt"),
    "bit flipped": lambda path: flip_a_bit(path / "agent.pt"),
    "emptied": lambda path: empty(path / "rng.pt"),
    "file missing": lambda path: (path / "rng.pt").unlink(),
    "file extra": lambda path: (path / "more.pt").write_bytes(b"x"),
    "file of another step": lambda path: shutil.copy(path.parent / "step_000000001/agent.pt", path),
    "directory instead of file": lambda path: become_a_directory(path / "rng.pt"),
    "manifest missing": lambda path: (path / "manifest.json").unlink(),
    "manifest truncated": lambda path: truncate(path / "manifest.json"),
    "manifest empty": lambda path: empty(path / "manifest.json"),
    "manifest a list": lambda path: (path / "manifest.json").write_text("[1]"),
    "manifest with a changed step": lambda path: (path / "manifest.json").write_text(
        (path / "manifest.json").read_text().replace('"step": 2', '"step": 3')
    ),
    "renamed": lambda path: path.rename(path.parent / "step_000000009"),
    "empty directory": become_empty,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_reported_once_and_the_previous_checkpoint_used(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, state_of(step), keep=2)
    damage(tmp_path / "checkpoints/step_000000002")
    reports = Reports()
    assert_same(load_checkpoint(tmp_path, warn=reports), (1, state_of(1)))
    assert len(reports) == 1 and reports[0].startswith("skipped checkpoint step_")
    shutil.rmtree(tmp_path / "checkpoints/step_000000001")
    with pytest.raises(UserError, match=r"no valid checkpoint .* found 1 damaged"):
        load_checkpoint(tmp_path, warn=reports)


@pytest.mark.dear
def test_no_flipped_bit_anywhere_goes_unnoticed(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, state_of(step), keep=2)
    generator = np.random.default_rng(0)
    for file in sorted((tmp_path / "checkpoints/step_000000002").iterdir()):
        content = file.read_bytes()
        for position in generator.integers(0, len(content), 25):
            flipped = bytearray(content)
            flipped[position] ^= 1 << int(generator.integers(8))
            file.write_bytes(flipped)
            step, state = load_checkpoint(tmp_path, warn=Reports())
            assert_same(state, state_of(step))
        file.write_bytes(content)


def test_the_skipped_checkpoint_is_a_warning_on_stderr(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, state_of(step), keep=2)
    flip_a_bit(tmp_path / "checkpoints/step_000000002/agent.pt")
    load_checkpoint(tmp_path)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "warning: skipped checkpoint step_000000002: agent.pt was changed: its SHA-256 differs"
    ]


def test_hidden_files_of_file_systems_do_no_harm(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, state_of(1), keep=1)
    (path / ".nfs000000001").write_bytes(b"")
    assert load_checkpoint(tmp_path)[0] == 1


class Bomb:
    """Creates a marker file when a pickle of it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.marker), "w"))


@pytest.mark.parametrize("part", ["agent", "rng", "counters"])
@pytest.mark.parametrize("container", ["torch", "bare pickle", "old torch"])
@pytest.mark.parametrize("map_from", [0, 1 << 30], ids=["mapped", "read"])
def test_a_file_that_would_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, container: str, map_from: int
) -> None:
    monkeypatch.setattr(checkpoint, "_MAP_FROM_BYTES", map_from)
    for step in (1, 2):
        save_checkpoint(tmp_path, step, state_of(step), keep=2)
    marker = tmp_path / "marker"
    directory = tmp_path / "checkpoints/step_000000002"
    payload = {"weight": torch.ones(2), "bomb": Bomb(marker)}
    with open(directory / f"{part}.pt", "wb") as file:
        if container == "bare pickle":
            pickle.dump(payload, file, protocol=2)
        else:
            torch.save(payload, file, _use_new_zipfile_serialization=container == "torch")
    rewrite_manifest(directory, lambda manifest: None)
    reports = Reports()
    assert_same(load_checkpoint(tmp_path, warn=reports), (1, state_of(1)))
    assert f"{part}.pt" in reports[0]
    assert not marker.exists()


@pytest.mark.parametrize("dtype", ["|O", "<U4", "|V8", "nonsense", 5], ids=str)
def test_a_crafted_array_is_refused(tmp_path: Path, dtype: Any) -> None:
    directory = save_checkpoint(tmp_path, 1, state_of(1), keep=1)
    crafted = {"__numpy__": dtype, "shape": (2,), "data": torch.zeros(16, dtype=torch.uint8)}
    with open(directory / "agent.pt", "wb") as file:
        torch.save(crafted, file)
    rewrite_manifest(directory, lambda manifest: None)
    reports = Reports()
    with pytest.raises(UserError, match="no valid checkpoint"):
        load_checkpoint(tmp_path, warn=reports)
    assert "agent.pt is unreadable" in reports[0]


def test_a_manifest_cannot_point_outside_its_directory(tmp_path: Path) -> None:
    directory = save_checkpoint(tmp_path, 1, state_of(1), keep=1)
    shutil.copy(directory / "agent.pt", directory.parent / "agent.pt")
    rewrite_manifest(
        directory,
        lambda manifest: manifest["files"].update({"../agent.pt": manifest["files"].pop("agent.pt")}),
    )
    with pytest.raises(UserError):
        load_checkpoint(tmp_path, warn=Reports())


# These unpickle what a process of the same run sends through a pipe or has just pickled, never a file.
PIPES = {"envs/engine/pool.py", "envs/engine/worker.py"}


@pytest.mark.dear
def test_the_package_never_unpickles_a_file() -> None:
    loads = 0
    for source in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            name = ast.unparse(node.func)
            assert name != "pickle.load", source
            assert name != "pickle.loads" or source.relative_to(PACKAGE).as_posix() in PIPES, source
            if name == "torch.load":
                loads += 1
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert options.get("weights_only") == "True", source
    assert loads >= 1


# -- formats, parts, versions ------------------------------------------------------------------------------


def test_another_format_is_refused_in_one_sentence(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, state_of(step), keep=2)
    rewrite_manifest(tmp_path / "checkpoints/step_000000002", lambda manifest: manifest.update(schema=1))
    with pytest.raises(UserError, match=r"has format 1; this version reads 3\. Continue"):
        load_checkpoint(tmp_path)


def test_one_part_is_read_whatever_has_happened_to_the_others(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, state_of(1), keep=1)
    (path / "rng.pt").unlink()
    flip_a_bit(path / "counters.pt")
    (path / "more.pt").write_bytes(b"x")
    assert_same(load_checkpoint(tmp_path, parts=["agent"]), (1, {"agent": state_of(1)["agent"]}))
    with pytest.raises(UserError, match="no valid checkpoint"):
        load_checkpoint(tmp_path, warn=Reports())
    flip_a_bit(path / "agent.pt")
    with pytest.raises(UserError, match="no valid checkpoint"):
        load_checkpoint(tmp_path, parts=["agent"], warn=Reports())


SUITE = {"simulation": "1.0", "physics": "2.0"}


@pytest.mark.parametrize(
    "here",
    [{**SUITE, "physics": "2.1"}, {"simulation": "1.0"}, {}],
    ids=["another", "missing", "none"],
)
def test_another_suite_is_refused_unless_allowed(tmp_path: Path, here: dict[str, str]) -> None:
    save_checkpoint(tmp_path, 1, state_of(1), keep=1, suite=SUITE)
    with pytest.raises(UserError, match=r"written with \w+ .*--allow-version-mismatch"):
        load_checkpoint(tmp_path, suite=here)
    for same in (SUITE, {**SUITE, "rewards": "3"}):  # of rewards no version is known that it was written with
        assert load_checkpoint(tmp_path, suite=same)[0] == 1
    assert load_checkpoint(tmp_path, suite=here, allow_version_mismatch=True)[0] == 1


def test_another_torch_is_refused_by_its_major_version_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 1, state_of(1), keep=1)
    here = package_versions()
    major = here["torch"].split(".")[0]

    def use(**versions: str) -> None:
        monkeypatch.setattr("mtrl.runs.checkpoint.package_versions", lambda: {**here, **versions})

    use(torch="99.0")
    with pytest.raises(UserError, match=r"torch .*\(here 99\).*--allow-version-mismatch"):
        load_checkpoint(tmp_path)
    assert load_checkpoint(tmp_path, allow_version_mismatch=True)[0] == 1
    use(numpy="99.0", torch=f"{major}.999")
    assert load_checkpoint(tmp_path)[0] == 1


def test_a_compressed_part_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = save_checkpoint(tmp_path, 1, {"policy": {"x": torch.zeros(1 << 20)}}, keep=1)
    part = directory / "policy.pt"
    with zipfile.ZipFile(part) as archive:
        content = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    assert part.stat().st_size < 100_000
    rewrite_manifest(directory, lambda manifest: None)
    monkeypatch.setattr(torch, "load", None)  # not even called
    said: list[str] = []
    with pytest.raises(UserError, match="no valid checkpoint"):
        load_checkpoint(tmp_path, warn=said.append)
    assert "compressed" in said[0]
