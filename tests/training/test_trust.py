"""Runs from strangers: code that their configuration names runs after consent only."""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mtrl.cli.evaluate import main as evaluate_main
from mtrl.errors import UserError
from mtrl.export.run import export_run
from mtrl.registry import locate
from mtrl.report.load import load_runs
from mtrl.sweep.plan import plan
from mtrl.training import trust
from mtrl.training.run import evaluate_run, resume_or_start, resume_training
from mtrl.training.trust import load_trusted
from tests.helpers.short_runs import counting, random_run

ENTRIES: dict[str, Callable[..., Any]] = {
    "evaluate": lambda run, **how: evaluate_run(run, episodes=1, device="cpu", **how),
    "export": export_run,
    "resume": resume_training,
}
# What a stranger may write: every key that names code, as a file and as a module.
NAMING: dict[str, Callable[[str], dict[str, Any]]] = {
    "method": lambda name: {"method": name},
    "critic_method": lambda name: {"critic_method": name},
    "base of a method": lambda name: {"method": "every", "method_options": {"base": name}},
    "method_defaults": lambda name: {"method_defaults": {name: {}}},
    "suite": lambda name: {"suite": name},
    "agent": lambda name: {"agent": name},
    "architecture": lambda name: {"network": {"architecture": name}},
    "sink": lambda name: {"train": {"sinks": [name]}},
    "environment": lambda name: {
        "suite": "gymnasium",
        "tasks": ["task-1"],
        "suite_options": {"environments": {"task-1": {"id": name}}},
    },
    "short environment": lambda name: {
        "suite": "gymnasium",
        "tasks": ["task-1"],
        "suite_options": {"environments": {"task-1": name}},
    },
    "task": lambda name: {"suite": "gymnasium", "tasks": [name], "suite_options": {}},
}


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that leaves `ran` beside itself when anything imports it."""
    folder = tmp_path / "theirs"
    (folder / "package").mkdir(parents=True)
    code = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"
    for name in ("evil.py", "package/__init__.py", "package/evil.py"):
        (folder / name).write_text(code + "from mtrl.combiners.mean import Mean\n")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return folder


def _ran(folder: Path) -> bool:
    return any(folder.rglob("ran"))


@functools.cache
def _files_of_a_run() -> dict[Path, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        random_run(run)
        return {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def _stranger(run: Path, changes: dict[str, Any]) -> Path:
    if not run.exists():
        for name, content in _files_of_a_run().items():
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_bytes(content)
    values = yaml.safe_load((run / "config.yaml").read_text())
    for key, value in changes.items():
        merge = isinstance(value, dict) and key in ("network", "train")
        values[key] = {**values[key], **value} if merge else value
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    return run


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("key", NAMING)
@pytest.mark.parametrize("name", ["evil.py:Mean", "package.evil:Mean"])
def test_nothing_that_a_stored_configuration_names_runs_without_consent(
    entry: str, key: str, name: str, evil: Path
) -> None:
    run = _stranger(evil / "run", NAMING[key](name))
    with pytest.raises(UserError, match=r"names code.*evil\.py\).*--trust"):
        ENTRIES[entry](run)
    load_runs(run)
    assert not _ran(evil)


def test_with_consent_the_file_is_named_and_run(evil: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _stranger(evil / "run", {"method": "evil.py:Mean"})
    line = [str(run), "--episodes", "1", "--device", "cpu", "--allow-version-mismatch"]
    assert evaluate_main(line) == 2
    assert not _ran(evil)
    assert evaluate_main([*line, "--trust"]) == 0
    assert f"method 'evil.py:Mean' ({evil / 'evil.py'})" in capsys.readouterr().out
    assert _ran(evil)


def test_code_that_the_program_has_imported_needs_no_consent_unless_the_run_holds_it(evil: Path) -> None:
    run = _stranger(evil / "run", {})  # of a suite that these tests import
    assert evaluate_run(run, episodes=1, device="cpu", allow_version_mismatch=True).episodes_per_task == 1
    (run / "inside.py").write_text((evil / "evil.py").read_text())
    inside = f"{run / 'inside.py'}:Mean"
    named = counting(method=inside)
    _stranger(run, {"method": inside})
    with pytest.raises(UserError, match="names code"):
        load_trusted(run, trust=False, named=named)
    assert load_trusted(run, trust=True, named=named).method == inside


def test_a_requeued_job_names_its_code_itself_and_runs_no_other(evil: Path) -> None:
    run = _stranger(evil / "run", {"method": "evil.py:Mean"})
    with pytest.raises(UserError, match=r"another configuration: method evil\.py:Mean \(here mean\)"):
        resume_or_start(counting(), run)
    assert not _ran(evil)
    (evil / "mine.py").write_text((evil / "evil.py").read_text())
    _stranger(run, {"method": "mine.py:Mean"})
    named = counting(method="mine.py:Mean")
    assert load_trusted(run, trust=False, named=named).method == named.method


def test_a_sweep_runs_no_code_of_the_runs_that_it_finds(evil: Path) -> None:
    _stranger(evil / "sweep" / "mean" / "seed0", {"method": "evil.py:Mean"})
    layers = [{"suite": "tests.helpers.counting_env:CountingSuite", "tasks": ["task-1"]}]
    with pytest.raises(UserError, match="another configuration"):
        plan(layers, methods=["mean"], seeds=[0], settings={}, grid={}, out=evil / "sweep")
    assert not _ran(evil)


def test_the_file_of_a_module_is_found_without_importing_its_package(evil: Path) -> None:
    assert locate("package.evil:Mean") == evil / "package" / "evil.py"
    assert locate("package:Mean") == evil / "package" / "__init__.py"
    assert locate("no.such.module:Mean") is None
    assert not _ran(evil)


@pytest.fixture
def installed(evil: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages: `env_pack` requires Gymnasium, `other_pack` does not."""
    site = evil / "site"
    for name, line in (("env_pack", "Requires-Dist: gymnasium>=1.0\n"), ("other_pack", "")):
        (site / name).mkdir(parents=True)
        for module in ("__init__.py", "inner.py"):
            (site / name / module).write_text((evil / "evil.py").read_text())
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{line}")
        (info / "top_level.txt").write_text(name)
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    monkeypatch.setattr(trust, "_INSTALLED", {*trust._INSTALLED, site})
    trust._packages_for_gymnasium.cache_clear()
    yield site
    trust._packages_for_gymnasium.cache_clear()


@pytest.mark.dear
@pytest.mark.parametrize(
    ("name", "free"),
    [("env_pack:Env-v0", True), ("env_pack.inner:Env-v0", False), ("other_pack:Env-v0", False)],
)
def test_an_id_in_an_installed_package_for_gymnasium_needs_no_consent(
    name: str, free: bool, installed: Path, evil: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, key in enumerate(("task", "environment", "short environment")):
        run = _stranger(evil / f"run{number}", NAMING[key](name))
        if free:
            assert load_trusted(run, trust=False).suite == "gymnasium"
            assert str(installed / "env_pack" / "__init__.py") in "".join(capsys.readouterr().out.split())
        else:
            with pytest.raises(UserError, match="names code"):
                load_trusted(run, trust=False)
    assert not _ran(evil)


def test_the_name_of_such_a_package_is_code_anywhere_else(installed: Path, evil: Path) -> None:
    both = NAMING["task"]("env_pack:Mean") | {"method": "env_pack:Mean"}
    for changes in (both, {"method": "env_pack:Mean"}, {"suite": "env_pack:Mean"}):
        with pytest.raises(UserError, match="names code"):
            load_trusted(_stranger(evil / "run", changes), trust=False)
    (evil / "env_pack.py").write_text((evil / "evil.py").read_text())
    sys.path.insert(0, str(evil))  # hides the installed package, as `python -m` does in that folder
    with pytest.raises(UserError, match="names code"):
        load_trusted(_stranger(evil / "hidden", NAMING["task"]("env_pack:Env-v0")), trust=False)
    assert not _ran(evil)
