"""Mistakes in what scripts are given end with exit code 2 and a message, before minutes of work."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers.written_runs import write_run


def script(module: str) -> Callable[[list[str]], int]:
    main: Callable[[list[str]], int] = importlib.import_module(module).main
    return main


def too_late(*_: Any, **__: Any) -> None:
    raise AssertionError("the work has begun")


@pytest.mark.parametrize(
    ("module", "work", "flags", "out"),
    [
        ("soak", "soak.train", ["--out"], "no/out.txt"),
        ("mtrl_chaos.siege", "mtrl_chaos.siege.Siege", ["--out"], "no"),
        ("mtrl_gallery.command", "mtrl_gallery.descent.descend", ["--methods", "mean", "--out"], "no"),
        ("mtrl_regressions.command", "mtrl_regressions.problem.run", ["--methods", "mean", "--out"], "no"),
        ("mtrl_benchmarks.command", "mtrl_benchmarks.update.run", ["update", "--json"], "no/out.json"),
        ("mtrl_benchmarks.command", "mtrl_benchmarks.update.run", ["update", "--profile"], "no/out.json"),
    ],
)
def test_a_place_that_cannot_be_written_is_told_before_the_work(
    module: str,
    work: str,
    flags: list[str],
    out: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main = script(module)
    importlib.import_module(work.rpartition(".")[0])
    monkeypatch.setattr(work, too_late)
    (tmp_path / "file").touch()
    assert main([*flags, str(tmp_path / "file" / out)]) == 2
    assert f"error: cannot write '{tmp_path / 'file' / out}" in capsys.readouterr().err
    with pytest.raises(AssertionError, match="the work has begun"):  # in a folder that is made
        main([*flags, str(tmp_path / "new" / out)])


def test_success_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = script("mtrl_pictures.success")
    run = str(write_run(tmp_path / "run", {"reach-v3": (0.0, 0.5), "push-v3": (0.0, 1.0)}))
    (tmp_path / "file").touch()
    for arguments, message in (
        ([], "expected RUN_DIR ... OUT.png; found nothing."),
        ([run], f"expected RUN_DIR ... OUT.png; found {run}."),
        ([run, run], f"cannot write '{run}': Is a directory."),
        ([run, str(tmp_path / "file" / "out.png")], "out.png': "),
        ([run, str(tmp_path / "out.txt")], "expected a file ending in one of "),
        ([str(tmp_path / "none"), str(tmp_path / "out.png")], "none"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    picture = tmp_path / "no" / "such" / "out.png"
    assert main([run, str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("soak", ("Measure memory, file descriptors and shared memory", "(default: 200000)")),
        ("mtrl_chaos.siege", ("Disturb runs by seeded faults of every kind", "(default: 100)")),
        ("mtrl_pictures.success", ("of each task if one run is given, else the mean of each run.",)),
    ],
)
def test_help_says_what_a_script_does_and_its_defaults(
    module: str, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert script(module)(["--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert all(text in printed for text in words)


@pytest.mark.dear
def test_fewer_faults_than_methods_attack_some_of_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    siege = importlib.import_module("mtrl_chaos.siege")

    class Peaceful(siege.Siege):  # type: ignore[misc, name-defined]
        def attack(self, kind: Any) -> None:
            self.faults["killed"] += 1

        def finish(self) -> None:
            assert self.faults.total() == 1

    monkeypatch.setattr(siege, "Siege", Peaceful)
    assert siege.main(["--faults", "1", "--methods", "mean", "cagrad"]) == 0
    assert "1 faults over 1 methods" in capsys.readouterr().out


def test_a_short_soak_keeps_its_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(config: Any, run_dir: Path, callbacks: Any) -> None:
        for step in (1, 2, 3):
            callbacks[0](SimpleNamespace(kind="log", vector_step=step, stop=lambda: None))

    monkeypatch.setattr("soak.train", train)
    assert script("soak")(["--out", str(tmp_path / "soak.txt")]) == 0
    text = (tmp_path / "soak.txt").read_text()
    assert "3 samples are too few" in text
    assert len(text.splitlines()) >= 5
