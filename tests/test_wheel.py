"""An installed wheel, without the source tree: what README prints for it, and every preset."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml

from mtrl.config.presets import load_preset, preset_names
from tests.test_pages import ROOT, blocks

pytestmark = pytest.mark.slow

SETTINGS = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


class Installed:
    """A fresh environment that has the dependencies, then the wheel that README's commands build."""

    def __init__(self, folder: Path) -> None:
        self.clone, self.elsewhere, self.bin = folder / "clone", folder / "elsewhere", folder / "venv/bin"
        self.elsewhere.mkdir()
        for name in ("mtrl", "configs"):
            shutil.copytree(ROOT / name, self.clone / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, self.clone)
        venv.create(folder / "venv", symlinks=True)
        site = next((folder / "venv").glob("lib/python*/site-packages"))
        for path in Path(sysconfig.get_path("purelib")).iterdir():
            if not path.name.startswith(("mtrl", "_mtrl", "__editable__")) and path.suffix != ".pth":
                (site / path.name).symlink_to(path)
        (self.bin / "pip").write_text(f'#!/bin/sh\nexec "{self.bin}/python" -m pip "$@"\n')
        (self.bin / "pip").chmod(0o755)

    def run(self, command: str, folder: Path | None = None) -> str:
        """Run a line as a shell would, outside the clone by default; return what it prints."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP"))}
        environment = {**kept, **SETTINGS, "PATH": f"{self.bin}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=folder or self.elsewhere,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """README's lines from `pip wheel` to `pip install`, run in a copy of the clone, which then goes away."""
    made = Installed(tmp_path_factory.mktemp("wheel"))
    (block,) = (body for body in blocks(ROOT / "README.md", "sh") if "pip wheel" in body)
    for line in block.splitlines():
        if line.startswith("pip "):
            made.run(line, made.clone)
    shutil.rmtree(made.clone)
    return made


def test_the_wheel_is_what_is_imported_and_has_every_file(installed: Installed) -> None:
    place = Path(installed.run("python -c 'import mtrl; print(mtrl.__path__[0])'").strip())
    assert place.is_relative_to(installed.bin.parent)
    kinds = ["*.py", "*.yaml", "*.html", "*.css", "*.js", "*.j2", "*.json", "*.bash", "*.typed", "*.bib"]
    files = {path.relative_to(ROOT / "mtrl") for kind in kinds for path in (ROOT / "mtrl").rglob(kind)}
    assert {str(path) for path in files if not (place / path).is_file()} == set()


@pytest.mark.parametrize("preset", preset_names())
def test_a_preset_says_what_it_would_train(installed: Installed, preset: str) -> None:
    config = yaml.safe_load(installed.run(f"mtrl-train --preset {preset} --method cagrad --print-config"))
    own = load_preset(preset)  # of the clone
    assert config["method"] == "cagrad"
    assert (config["tasks"], config["steps"]) == (list(own["tasks"]), own.get("steps", config["steps"]))


def test_the_module_has_the_commands(installed: Installed) -> None:
    printed = installed.run("python -m mtrl train --preset laptop --method cagrad --print-config")
    assert yaml.safe_load(printed)["tasks"] == ["MT10"]
    for command in ("evaluate", "report", "export", "sweep"):
        assert "usage" in installed.run(f"python -m mtrl {command} --help").lower()


def test_a_run_from_training_to_export(installed: Installed) -> None:
    installed.run("mtrl-train --preset debug --method cagrad --tasks reach-v3 push-v3 --run-dir runs/cagrad")
    installed.run("mtrl-train --preset debug --method mean --tasks reach-v3 push-v3 --run-dir runs/mean")
    installed.run("mtrl-train --resume runs/cagrad --steps 140")
    installed.run("mtrl-train --resume runs/mean --steps 140")
    assert "reach-v3" in installed.run("mtrl-evaluate runs/cagrad --episodes 1")
    installed.run("mtrl-report runs/cagrad runs/mean --out report && test -s report/report.html")
    installed.run("python -m mtrl export runs/cagrad --out policy && test -s policy/policy.safetensors")
    code = "import mtrl; print(mtrl.load_policy('policy').task_names)"
    assert "push-v3" in installed.run(f'python -c "{code}"')
    installed.run("mtrl-sweep --methods mean cagrad --tasks MT10 --seeds 1 --dry-run")


def test_advice_to_install_an_extra_works_where_the_wheel_is_installed(installed: Installed) -> None:
    """Messages say `pip install 'mtrl-torch[train]'`: pip finds the installed package, not the index."""
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "mtrl").rglob("*.py"))
    advised = set(re.findall(r"pip install '(mtrl-torch\[(?:train|report|torchjd)\])'", text))
    assert advised
    for requirement in sorted(advised):
        installed.run(f"pip install --dry-run '{requirement}'")
