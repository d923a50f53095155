"""Files of a run directory: versions, links of strangers, full disks, and what killed processes leave."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mtrl
from mtrl.config.presets import save_config
from mtrl.config.schema import Config
from mtrl.errors import UserError
from mtrl.runs.directory import RunDirectory, flag_to_go_on, has_checkpoint
from mtrl.runs.jsonl import JsonLines
from mtrl.runs.log import RunInfo
from mtrl.runs.versions import package_versions, versions
from tests.helpers.written_runs import bare_run

ROOT = Path(mtrl.__file__).parent.parent


# -- versions -----------------------------------------------------------------------------------------------


def test_versions_json_holds_what_the_interpreter_says(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run") as run:
        written = run.write_versions({"simulation": "1.2"})
        assert json.loads((run.path / "versions.json").read_text()) == written
    assert written["python"] == platform.python_version()
    assert written["torch"] == torch.__version__
    assert written["gymnasium"] == importlib.metadata.version("gymnasium")
    assert written["simulation"] == "1.2"
    assert written["mtrl"] == mtrl.__version__
    assert int(written["cores"]) >= 1 and written["cpu"]
    assert ("cuda_device" in written) == torch.cuda.is_available()
    assert package_versions().items() <= versions().items()


def test_a_run_that_went_on_under_another_version_of_its_suite_says_both(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run") as run:
        (run.path / "metrics.jsonl").write_text("{}\n")
        for now, said in (("1.2", "1.2"), ("1.3", "1.2, then 1.3"), ("1.3", "1.2, then 1.3")):
            assert run.write_versions({"simulation": now})["simulation"] == said
        assert json.loads((run.path / "versions.json").read_text())["simulation"] == "1.2, then 1.3"
        (run.path / "versions.json").write_text('{"gone": "1", "simulation": "11.3"}')
        written = run.write_versions({"simulation": "1.3", "new": "2"})
        assert (written["gone"], written["new"]) == ("1, then absent", "absent, then 2")
        assert written["simulation"] == "11.3, then 1.3"
        (run.path / "versions.json").write_text("[damaged")
        assert run.write_versions({"simulation": "1.3"})["simulation"] == "1.3"


def test_the_module_imports_no_torch() -> None:
    code = "import sys, mtrl.runs.directory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


# -- files of strangers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["versions.json", "run.owner", "run.lock", "config.yaml", "metrics.jsonl"])
def test_no_file_outside_is_written_through_a_link_in_a_run(name: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = bare_run(tmp_path / "run")
    (path / name).unlink(missing_ok=True)
    (path / name).symlink_to(victim)
    with contextlib.suppress(UserError, OSError), RunDirectory.resume(path) as run:
        run.write_versions({})
        save_config(Config(tasks=("reach-v3",)), run.config_path)
        record = JsonLines()
        record.open(RunInfo(path, ("reach-v3",), {}, {}, None))
        record.close()
    assert victim.read_text() == "precious"


def test_checkpoints_of_another_run_are_not_taken_for_one_s_own(tmp_path: Path) -> None:
    other, path = bare_run(tmp_path / "other"), bare_run(tmp_path / "run")
    (path / "checkpoints/step_000000010").rmdir()
    (path / "checkpoints").rmdir()
    (path / "checkpoints").symlink_to(other / "checkpoints")
    with pytest.raises(UserError, match="checkpoints of another run"):
        RunDirectory.resume(path)
    (path / "checkpoints").unlink()
    moved = (other / "checkpoints").rename(tmp_path / "larger-disk")
    (path / "checkpoints").symlink_to(moved)
    with RunDirectory.resume(path):  # moved to another disk, which is of use
        assert has_checkpoint(path)


@pytest.mark.parametrize("name", ["config.yaml", "versions.json"])
def test_small_files_are_the_old_or_the_new_ones_on_a_full_disk(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bare_run(tmp_path / "run")
    (path / name).write_text("{}")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with RunDirectory.resume(path) as run:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            if name == "config.yaml":
                save_config(Config(tasks=("reach-v3",)), run.config_path)
            else:
                run.write_versions({})
    assert (path / name).read_text() == "{}"
    assert not list(path.glob(".tmp-*"))


def test_what_killed_processes_leave_is_removed_and_nothing_else(tmp_path: Path) -> None:
    path = bare_run(tmp_path / "run")
    for name in (".tmp-7-config.yaml", ".mine", ".tmp-notes"):
        (path / name).write_text("")
    with RunDirectory.resume(path):
        assert {entry.name for entry in path.glob(".*")} == {".mine", ".tmp-notes"}


def test_the_flag_to_go_on_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    path = bare_run(tmp_path / "my $(run)")
    assert shlex.split(flag_to_go_on(path)) == ["--resume", str(path)]
