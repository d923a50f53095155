"""What pyproject.toml promises: versions and bounds in one place, commands that exist."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder

import mtrl
from mtrl.cli import EXTRAS
from tests.conftest import PACKAGES

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def bounds(lines: list[str], sign: str) -> dict[str, str]:
    """Return package -> version without trailing zeros, for requirements "package{sign}version"."""
    pairs = (line.split("#")[0].strip().partition(sign) for line in lines)
    return {name.casefold(): re.sub(r"(\.0)+$", "", version) for name, _, version in pairs if version}


def test_the_lowest_versions_that_ci_tries_are_the_lower_bounds() -> None:
    promised = bounds([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["train"]], ">=")
    del promised["torch"]  # pinned by .ci/constraints.txt
    assert bounds((ROOT / ".ci/lowest.txt").read_text().splitlines(), "==") == promised


@pytest.mark.parametrize("entry", sorted(PROJECT["scripts"].values()))
def test_every_console_command_exists(entry: str) -> None:
    module, _, function = entry.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_every_command_that_the_pages_print_exists() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "configs").glob("*.yaml")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    scripts = set(re.findall(r"\bpython (scripts/\w+\.py)", text))
    assert scripts  # the pattern still finds what the pages print
    assert {name for name in scripts if not (ROOT / name).is_file()} == set()
    assert set(re.findall(r"^ *(mtrl-[a-z]+) ", text, flags=re.MULTILINE)) <= set(PROJECT["scripts"])


def test_the_version_of_the_citation_is_the_packages() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == mtrl.__version__


def test_the_wheel_holds_the_package_and_its_presets_alone(tmp_path: Path) -> None:
    wheel = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0] for name in names} == {"mtrl", f"mtrl_torch-{mtrl.__version__}.dist-info"}
    assert {f"mtrl/_presets/{path.name}" for path in (ROOT / "configs").glob("*.yaml")} <= names


def test_everything_that_is_imported_is_declared() -> None:
    names = {"PIL": "pillow", "yaml": "PyYAML", "stable_baselines3": "stable-baselines3"}
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for name in extras for line in extras[name])]
    declared = {re.split(r"[\[=<>]", line)[0].casefold() for line in lines}
    nodes = [n for path in (ROOT / "mtrl").rglob("*.py") for n in ast.walk(ast.parse(path.read_text()))]
    modules = [n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)]
    modules += [alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names]
    imported = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names)
    others = {"mtrl", "pandas"}  # pandas only on request
    undeclared = {names.get(name, name).casefold() for name in imported} - declared - others
    assert undeclared == set()
    # A missing package is named with the extra that installs it.
    assert imported - EXTRAS.keys() <= others | {"torch", "numpy", "triton"}
    assert set(EXTRAS.values()) <= set(extras)


@pytest.mark.dear
def test_combiners_and_gradients_need_torch_and_numpy_alone() -> None:
    """Combiners load themselves and torch only, and an optional package when it is asked for."""
    train = [re.split("[=<>]", line)[0] for line in PROJECT["optional-dependencies"]["train"]]
    code = (
        "import sys\n"
        f"for name in {[*map(str.casefold, train), 'yaml']!r}: sys.modules[name] = None\n"
        "del sys.modules['safetensors']\n"
        "sys.modules['rich'] = type(sys)('rich')\n"  # one without a spec
        "from mtrl.combiners import make_combiner\n"
        "print(*sys.modules)\n"
        "import mtrl\n"
        "mtrl.set_gradient, mtrl.task_jacobian\n"
        "make_combiner('cagrad', num_tasks=2)\n"
        "print(*(name for name in dir(mtrl) if getattr(mtrl, name) and name in mtrl.__all__))\n"
        "try: mtrl.Config\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stderr == ""
    loaded, offered, said = done.stdout.split("\n", 2)
    assert "torchjd" not in loaded.split()
    ours = {name for name in loaded.split() if name.startswith("mtrl.")}
    assert {name for name in ours if not name.startswith("mtrl.combiners")} == {
        "mtrl.errors",
        "mtrl.registry",
    }
    assert offered.split() == ["load_policy", "make_combiner", "mtl_step", "set_gradient", "task_jacobian"]
    assert said == "mtrl.Config needs 'pydantic': pip install 'mtrl-torch[train]'.\n"


@pytest.mark.slow
def test_gpu_tests_are_collected_with_torch_numpy_pytest_and_the_extra_train_alone() -> None:
    """As on a cluster. A name that sys.modules has without a module counts as missing."""
    missing = dict.fromkeys(("xdist", "pytest_timeout", *PACKAGES))
    code = f"import sys, pytest; sys.modules.update({missing!r}); sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "-m", "gpu", "--collect-only", "-p", "no:cacheprovider"]
    alone = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("test_a_replayed_update_equals_an_eager_one[cagrad]", "test_gramians_on_cuda_are_those"):
        assert name in done.stdout
    assert "tests of clarabel, cvxpy" in done.stdout
