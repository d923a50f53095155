"""How commands end when the machine or the user is in the way."""

from __future__ import annotations

import errno
import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mtrl.cli import command, importing, launch


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_imports_is_one_sentence_and_its_exit_code(number: int) -> None:
    script = (
        "import os\n"
        "from mtrl.cli import importing\n"
        f"with importing():\n    os.kill(os.getpid(), {number})\n    raise SystemExit(9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (128 + number, "")
    assert ended.stderr == "interrupted before anything was started\n"


def test_the_handlers_of_before_are_back_after_the_imports() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with importing():
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(("task", "shown"), [("日本", "\\u65e5\\u672c"), ("caf\udce9", "caf\\udce9")])
def test_a_name_that_the_terminal_cannot_show_is_escaped(
    task: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, encoding="latin-1", write_through=True))
    assert launch("mtrl.cli.train", ["--tasks", task]) == 2
    assert shown in raw.getvalue().decode("latin-1")


def test_a_module_that_a_plug_in_lacks_is_not_taken_for_a_package_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text("import absent_helpers.deep\n")
    monkeypatch.chdir(tmp_path)
    assert launch("mtrl.cli.train", ["--tasks", "MT10", "--method", "mine.py:Mine"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: 'absent_helpers' was not found. If a plug-in of yours imports it, install")
    assert "mtrl-torch[" not in said


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_too_few_file_descriptors_are_one_sentence(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def main(arguments: list[str]) -> int:
        raise OSError(number, "Too many open files", "/dev/null")

    assert main([]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "Too many open files" in error
    assert "ulimit -n" in error


def test_other_errors_of_the_system_are_defects_with_a_traceback() -> None:
    @command
    def main(arguments: list[str]) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        main([])
