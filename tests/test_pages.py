"""README and docs: every Python block runs, shortened, and every command that a page prints is read.

docs/extending.md and docs/without-rl.md have tests of their own (test_docs.py, gradients/test_without_rl.py).
The blocks of docs/architecture.md are excerpts of code.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

import mtrl
from mtrl.cli.evaluate import _Flags as EvaluateFlags
from mtrl.cli.export import _Flags as ExportFlags
from mtrl.cli.flags import parse_command
from mtrl.cli.report import _Flags as ReportFlags
from mtrl.cli.sweep import main as main_sweep
from mtrl.cli.train import main as main_train
from mtrl.config.presets import build_config, load_preset
from mtrl.config.schema import Config
from mtrl.errors import UserError
from tests.helpers.written_runs import write_run

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", flags=re.MULTILINE | re.DOTALL)
ELSEWHERE = {"extending.md", "architecture.md", "without-rl.md"}
PRESETS = {"train_mt10": "mt10", "train_mt50": "mt50"}
PARSED = {
    "evaluate": (EvaluateFlags, "run_dirs"),
    "export": (ExportFlags, "run_dir"),
    "report": (ReportFlags, "runs"),
}


def blocks(page: Path, *languages: str) -> list[str]:
    return [
        body for language, body in BLOCK.findall(page.read_text(encoding="utf-8")) if language in languages
    ]


def with_python() -> list[Path]:
    return [page for page in PAGES if blocks(page, "python", "py") and page.name not in ELSEWHERE]


class _Wandb:
    """Stands in for the package, which is not installed for the tests."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: self


@pytest.mark.dear
@pytest.mark.meta
@pytest.mark.parametrize("page", with_python(), ids=lambda page: page.name)
def test_every_python_block_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order and in one namespace; runs are those of the preset `debug`, loops are of three turns."""

    def short(**settings: Any) -> Config:
        lengths = {"steps": 20, "train": {"warmup_steps": 10}, "env": {"max_episode_steps": 5}}
        return build_config(load_preset("debug"), {**settings, "tasks": list(settings["tasks"]), **lengths})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mtrl, "Config", short)
    monkeypatch.setitem(sys.modules, "wandb", _Wandb())
    for seed in range(2):  # the runs that docs/results-schema.md reads
        rates = {"reach-v3": (0.5, 1.0), "push-v3": (0.0, seed / 2)}
        write_run(tmp_path / f"runs/mt10-sweep/cagrad/{seed}", rates, method="cagrad", seed=seed)
    names: dict[str, Any] = {"__name__": "page"}
    for body in blocks(page, "python", "py"):
        exec(compile(re.sub(r"range\(\d{3,}\)", "range(3)", body), str(page), "exec"), names)


def commands(page: Path) -> list[list[str]]:
    """The commands of a page as words, without what the shell would do with them."""
    text = "\n".join(blocks(page, "sh", "bash")).replace("\\\n", " ")
    text = re.sub(r'"?\$\{?\w+\}?"?|"\$SCRATCH/', "1", re.sub(r'"\$SCRATCH/mt10"', "out", text))
    found = []
    for line in text.splitlines():
        for part in re.split(r"&&|;|\||\bdo\b| -- |&\s*$|</dev/null", line):
            words = shlex.split(part, comments=True)
            if words and (words[0].startswith("mtrl-") or words[:1] == ["python"]) and "..." not in words:
                found.append(words)
    return found


def all_commands() -> list[Any]:
    seen = {shlex.join(words): (page.name, words) for page in PAGES for words in commands(page)}
    return [pytest.param(words, id=f"{page}: {text[:60]}") for text, (page, words) in seen.items()]


@pytest.mark.parametrize("words", all_commands())
def test_every_command_of_a_page_is_read(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, arguments = words[0], words[1:]
    if program == "python":
        if arguments[0] == "-m":
            return  # environments and modules of others
        if arguments[0] in {"watch.py", "act.py"}:
            return  # files of docs/extending.md
        assert (ROOT / arguments[0]).is_file()
        program, arguments = Path(arguments[0]).stem, arguments[1:]
    name = program.removeprefix("mtrl-")
    monkeypatch.chdir(tmp_path)
    if name in PARSED:
        flags, positional = PARSED[name]
        parse_command(flags, arguments, positional=positional)
    elif name == "sweep":
        arguments = [word for word in arguments if word != "--dry-run"]
        # One seed shows that all is read, and takes less than the hundreds of runs of a study.
        arguments = shlex.split(re.sub(r"--seeds \d+", "--seeds 1", shlex.join(arguments)))
        assert main_sweep([*arguments, "--dry-run"]) == 0, capsys.readouterr().err
    elif name.startswith("train") and name != "train_single_task":
        if "--resume" in arguments or "points.yaml" in arguments or "--suite" in arguments:
            return  # run by the tests of their pages, or of resuming
        # What stands for variables of a loop: a seed, a task, more flags.
        joined = shlex.join(arguments).replace("SEED", "0").replace("--tasks 1", "--tasks reach-v3")
        arguments = shlex.split(
            re.sub(r" FLAGS| 1(?= --run-dir)", "", joined).replace("--seed --", "--seed 1 --")
        )
        preset = {"preset": PRESETS[name]} if name in PRESETS else {}
        try:
            code = main_train([*arguments, "--print-config"], **preset)
        except UserError as error:
            raise AssertionError(f"{words}: {error}") from error
        assert code == 0, capsys.readouterr().err
    else:  # a script of its own: every flag is one that its code names
        sources = [ROOT / f"scripts/{name}.py", *(ROOT / "scripts").glob("mtrl_*/*.py")]
        code_text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
        for flag in (word.partition("=")[0] for word in arguments if word.startswith("--")):
            field = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
            assert f'"{flag}"' in code_text or field in code_text, flag


def test_the_pages_have_commands_and_blocks() -> None:
    assert len(all_commands()) > 25
    assert {page.name for page in with_python()} >= {"README.md", "results-schema.md"}
