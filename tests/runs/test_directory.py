from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import mtrl
from mtrl.config.files import expand
from mtrl.errors import RunInUse, UserError
from mtrl.runs.directory import RunDirectory
from mtrl.runs.lock import RunLock
from tests.helpers.written_runs import bare_run

ROOT = Path(mtrl.__file__).parent.parent


@contextlib.contextmanager
def other_owner(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a new run at `path`."""
    script = """
        import sys, time, pathlib
        from mtrl.runs.directory import RunDirectory
        run = RunDirectory.create(pathlib.Path(sys.argv[1]))
        print("held", flush=True)
        time.sleep(600)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def unprivileged(path: Path) -> Iterator[None]:
    """`path` is read-only for the body; as root that takes another user id."""
    mode = path.stat().st_mode
    path.chmod(0o555)
    uid = os.geteuid()
    parents = [parent for parent in path.parents if uid == 0 and parent.stat().st_mode & 0o005 != 0o005]
    modes = [parent.stat().st_mode for parent in parents]
    for parent in parents:
        parent.chmod(0o755)
    if uid == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if uid == 0:
            os.seteuid(0)
        path.chmod(mode)
        for parent, parent_mode in zip(parents, modes, strict=True):
            parent.chmod(parent_mode)


# -- create -------------------------------------------------------------------------------------------------


def test_create_makes_parents_and_names_the_parts(tmp_path: Path) -> None:
    path = tmp_path / "läufe" / "mt10 čagrad" / "seed0"
    with RunDirectory.create(path) as run:
        assert path.is_dir()
        assert run.path == path
        assert run.config_path == path / "config.yaml"
        assert run.checkpoints == path / "checkpoints"


def test_an_existing_directory_with_other_files_is_taken(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with RunDirectory.create(tmp_path):
        pass
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", "run.lock"]


@pytest.mark.parametrize(
    "trace", ["config.yaml", "metrics.jsonl", "checkpoints", "events.out.tfevents.1700000000.host.1.0"]
)
def test_a_directory_that_holds_a_run_is_refused_with_advice(tmp_path: Path, trace: str) -> None:
    (tmp_path / trace).write_text("x")
    advice = "--resume-or-start" if trace == "config.yaml" else "Without config.yaml it cannot be continued"
    with pytest.raises(UserError, match=rf"already holds a run \(found {trace}\).*{advice}.*--run-dir"):
        RunDirectory.create(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([trace, "run.lock"])


def test_a_directory_with_a_checkpoint_is_to_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"already holds a run .*Continue it with --resume "):
        RunDirectory.create(bare_run(tmp_path / "run"))


def test_what_ended_before_its_first_checkpoint_can_be_started_over(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path) as run:
        write_preamble(run)
        (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"cannot be resumed.*before its first checkpoint.*--resume-or-start"):
        RunDirectory.resume(tmp_path)
    with RunDirectory.create(tmp_path, start_over=True):
        assert sorted(os.listdir(tmp_path)) == ["notes.txt", "run.lock", "run.owner"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.out.tfevents.1.host.1.0", "best/checkpoints/x"])
def test_files_without_a_configuration_are_not_taken_for_a_run_to_start_over(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("of another program")
    with pytest.raises(UserError, match=r"already holds a run .*choose another --run-dir"):
        RunDirectory.create(tmp_path, start_over=True)
    assert (tmp_path / name).read_text() == "of another program"


def test_a_run_with_a_checkpoint_is_never_started_over(tmp_path: Path) -> None:
    bare_run(tmp_path)
    with pytest.raises(UserError, match="already holds a run"):
        RunDirectory.create(tmp_path, start_over=True)
    assert (tmp_path / "checkpoints/step_000000010").is_dir()


def test_directories_of_the_same_name_are_numbered(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "seed0-now"
    with (
        RunDirectory.create_numbered(path) as one,
        RunDirectory.create_numbered(path) as two,
        RunDirectory.create_numbered(path) as three,
    ):
        assert [run.path.name for run in (one, two, three)] == ["seed0-now", "seed0-now-2", "seed0-now-3"]
    with pytest.raises(KeyError), RunDirectory.create_numbered(tmp_path / "other" / "run"):
        raise KeyError
    assert os.listdir(tmp_path) == ["runs"]


def test_no_path_is_not_taken_for_the_working_directory() -> None:
    with pytest.raises(UserError, match="expected a path; found an empty text"):
        expand("")


def test_a_home_that_nobody_has_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="Write the whole path"):
        RunDirectory.create(Path("~no-such-user/run"))
    assert os.listdir(tmp_path) == []


def test_a_path_below_a_file_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file/run", tmp_path / "file/a/b"):
        with pytest.raises(UserError, match=r"cannot be written.*--run-dir"):
            RunDirectory.create(path)
    assert os.listdir(tmp_path) == ["file"]


def test_an_unwritable_place_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with unprivileged(place):
        for path in (place, place / "runs/seed0"):
            with pytest.raises(UserError, match=r"cannot be written: Permission denied"):
                RunDirectory.create(path)
    assert os.listdir(place) == []


def test_a_failure_halfway_removes_the_directories_made_so_far(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="File name too long"):
        RunDirectory.create(tmp_path / "a" / "b" / ("x" * 300))
    assert os.listdir(tmp_path) == []


# -- one owner ----------------------------------------------------------------------------------------------


def test_a_second_process_is_refused_with_pid_and_host(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with other_owner(path) as owner:
        expected = rf"in use by process {owner.pid} on host {socket.gethostname()}\..*--run-dir"
        with pytest.raises(UserError, match=expected):
            RunDirectory.create(path)
        bare_run(path)
        with pytest.raises(UserError, match=expected):
            RunDirectory.resume(path)
        assert owner.poll() is None
        assert (path / "run.lock").exists()


def test_a_killed_owner_leaves_no_stale_lock(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with other_owner(path) as owner:
        bare_run(path)
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        assert (path / "run.lock").exists()
        with RunDirectory.resume(path) as run:
            assert run.path == path


def test_a_second_hold_in_the_same_process_is_refused(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run") as run:
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
            RunDirectory.create(run.path)
        run.release()
        run.release()
        RunDirectory.create(run.path).release()


def test_a_lock_whose_owner_has_not_signed_yet_is_respected(tmp_path: Path) -> None:
    (tmp_path / "run.lock").touch()
    with open(tmp_path / "run.lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="in use by another process"):
            RunDirectory.create(tmp_path)
    assert not (tmp_path / "run.owner").exists()


def test_a_lock_on_a_removed_file_is_not_a_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock
    removed: list[int] = []

    def removes_before_locking(descriptor: int, operation: int) -> None:
        if not removed:
            (tmp_path / "run.lock").unlink()
            removed.append(descriptor)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", removes_before_locking)
    with pytest.raises(UserError, match="in use"):
        RunDirectory.create(tmp_path)
    with RunDirectory.create(tmp_path):
        assert json.loads((tmp_path / "run.owner").read_text())["pid"] == os.getpid()
        with pytest.raises(UserError, match="in use"):
            RunDirectory.create(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_locks_is_a_warning_whatever_a_killed_run_has_left(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuses(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuses)
    path = bare_run(tmp_path / "run")
    (path / "run.lock").touch()
    (path / "run.owner").write_text(json.dumps({"pid": 1, "host": "another"}))
    with RunDirectory.resume(path):
        assert "has no locks" in capsys.readouterr().err


def test_a_lock_file_that_is_deleted_lets_no_second_process_in(tmp_path: Path) -> None:
    path = bare_run(tmp_path / "run")
    with RunDirectory.resume(path):
        (path / "run.lock").unlink()
        with pytest.raises(UserError, match="is in use by process"):
            RunDirectory.resume(path)
    with RunDirectory.resume(path):
        pass


# -- resume -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("present", "found"),
    [
        (None, "no such directory"),
        ((), "no config.yaml"),
        (("checkpoints/step_000000010",), "no config.yaml"),
    ],
    ids=str,
)
def test_resume_says_what_is_missing(tmp_path: Path, present: tuple[str, ...] | None, found: str) -> None:
    path = tmp_path / "run"
    if present is not None:
        path.mkdir()
        for name in present:
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).touch()
    with pytest.raises(
        UserError, match=rf"is not a run directory: expected config.yaml and checkpoints/.*found {found}\."
    ):
        RunDirectory.resume(path)
    assert not (path / "run.lock").exists()


def test_a_moved_run_can_be_resumed(tmp_path: Path) -> None:
    bare_run(tmp_path / "old").rename(tmp_path / "neu ü")
    with RunDirectory.resume(tmp_path / "neu ü") as run:
        assert run.config_path.read_text() == "seed: 0\n"


def test_a_read_only_run_cannot_be_resumed(tmp_path: Path) -> None:
    path = bare_run(tmp_path / "run")
    with unprivileged(path), pytest.raises(UserError, match="cannot be written"):
        RunDirectory.resume(path)


def test_resume_removes_an_unfinished_checkpoint_with_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bare_run(tmp_path / "run")
    leftover = path / "checkpoints/.tmp-77-step_000000020"
    leftover.mkdir()
    (leftover / "agent.pt").write_bytes(b"half")
    with RunDirectory.resume(path):
        assert os.listdir(path / "checkpoints") == ["step_000000010"]
    assert capsys.readouterr().err.count("warning: removed .tmp-77-step_000000020") == 1


# -- nothing left behind ------------------------------------------------------------------------------------


def write_preamble(run: RunDirectory) -> None:
    run.config_path.write_text("seed: 0\n")
    run.write_versions({})
    run.checkpoints.mkdir()
    for name in ("metrics.jsonl", "evaluations.jsonl", "events.out.tfevents.1.host.1.0"):
        (run.path / name).touch()


def test_a_run_that_fails_before_its_first_result_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), RunDirectory.create(tmp_path / "runs/seed0") as run:
        write_preamble(run)
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_a_directory_that_existed_before_stays_when_its_run_fails(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(KeyError), RunDirectory.create(tmp_path) as run:
        write_preamble(run)
        raise KeyError
    assert os.listdir(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("result", ["metrics.jsonl", "evaluations.jsonl", "checkpoints/step_000000001"])
def test_a_run_with_results_stays_when_it_fails(tmp_path: Path, result: str) -> None:
    path = tmp_path / "run"
    with pytest.raises(KeyError), RunDirectory.create(path) as run:
        write_preamble(run)
        (path / result).write_text("{}\n")
        raise KeyError
    assert {"config.yaml", "versions.json"} < set(os.listdir(path))
    assert not (path / "run.owner").exists()


def test_a_resumed_run_is_never_discarded(tmp_path: Path) -> None:
    path = bare_run(tmp_path / "run")
    before = set(os.listdir(path))
    with pytest.raises(KeyError), RunDirectory.resume(path):
        raise KeyError
    assert set(os.listdir(path)) == before | {"run.lock"}


def test_a_run_that_ends_well_keeps_its_files(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run") as run:
        run.config_path.write_text("seed: 0\n")
    assert sorted(os.listdir(tmp_path / "run")) == ["config.yaml", "run.lock"]


def test_a_lock_that_a_server_refuses_means_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode) and operation != fcntl.LOCK_UN:
            raise PermissionError(errno.EACCES, "Permission denied")  # as on an SMB mount

    monkeypatch.setattr("mtrl.runs.lock.fcntl.flock", flock)
    with pytest.raises(RunInUse):
        RunLock(tmp_path)
