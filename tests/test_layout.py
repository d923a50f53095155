"""Imports follow the direction of data; the house rules on sizes and names hold."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mtrl"
MODULES = sorted(PACKAGE.rglob("*.py"))

# What each stage may import from mtrl. A stage that is not listed here fails the test: give it a place.
LEAVES = {
    "config", "cpu", "errors", "evaluation", "flat_parameters", "gram_sum", "rollout",
    "stop_signal", "types", "versions",
}  # fmt: skip
ALLOWED: dict[str, set[str]] = {
    **{leaf: set() for leaf in LEAVES},
    "config": {"errors"},
    "staging": set(),
    "memory": {"errors"},
    "replay": {"errors", "memory", "staging", "types"},
    "cuda_graph": {"console"},
    "networks": set(),
    "losses": {"networks", "types"},
    "gradients": {"flat_parameters", "gram_sum"},
    "learner": {"combiners", "flat_parameters", "gradients"},
    "sac_combiner": {"combiners", "errors"},
    "update_totals": {"learner"},
    "agent": {
        "sac_combiner",
        "config",
        "errors",
        "flat_parameters",
        "gradients",
        "learner",
        "losses",
        "memory",
        "networks",
        "types",
        "update_totals",
    },
    "updater": {"agent", "cuda_graph", "replay"},
    "policy": {"agent", "cuda_graph", "staging"},
    "evaluator": {"evaluation"},
    "console": {"evaluation"},
    "run_directory": {"console", "errors", "versions"},
    "checkpoint": {"console", "errors", "plain_tree", "run_directory", "versions"},
    "logger": {"console", "evaluation", "run_directory"},
    "method_options": {"errors"},
    "conversion": {"errors"},
    "plain_tree": set(),
    "presets": {"config", "conversion", "envs", "errors", "method_options"},
    "report": {"errors", "presets", "run_directory"},
    "gallery": {"combiners"},
    "gallery_pictures": {"gallery"},
    "start_screen": {"agent", "config", "cuda_graph", "envs", "replay", "updater"},
    "video": {"envs", "errors", "evaluator"},
}
ONLY_THEMSELVES = {"combiners"}
# The stages that know the whole Config: they build the parts, run the loop, start it, and measure all that.
MAY_SEE_EVERYTHING = {"benchmarks", "parts", "stepper", "loop", "train", "cli", "flags", "__init__"}


def _stage(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "mtrl"}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_direction_of_data(path: Path) -> None:
    stage = _stage(path)
    imported = {name.split(".")[1] for name in _imports(path) if name.startswith("mtrl.")}
    if stage in MAY_SEE_EVERYTHING:
        return
    if stage in ONLY_THEMSELVES:
        assert imported <= {stage}
    elif stage == "envs":
        assert imported <= {"envs", "errors"}
    else:
        assert stage in ALLOWED, f"give {stage} its place in the direction of imports"
        assert imported <= ALLOWED[stage] | {stage}


def test_combiners_depend_on_torch_and_the_standard_library_only() -> None:
    for path in (PACKAGE / "combiners").glob("*.py"):
        outside = {name.split(".")[0] for name in _imports(path)} - set(sys.stdlib_module_names)
        assert outside <= ({"triton"} if path.stem == "_triton" else {"torch", "mtrl"}), path.name


def test_the_combiner_of_an_optional_package_imports_it_only_when_it_is_made() -> None:
    code = "import sys, mtrl.combiners; print('torchjd' in sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert loaded.stdout.strip() == "False"


def test_only_one_module_imports_metaworld() -> None:
    users = [p for p in MODULES if any(n.split(".")[0] == "metaworld" for n in _imports(p))]
    assert [p.relative_to(PACKAGE).as_posix() for p in users] == ["envs/metaworld.py"]


@pytest.mark.parametrize(
    "module", ["mtrl", "mtrl.config.schema", "mtrl.config.presets", "mtrl.cli.train", "mtrl.envs"]
)
def test_light_modules_import_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    for heavy in ("'torch'", "'gymnasium'", "'metaworld'", "'mujoco'", "'tensorboard'"):
        assert heavy not in loaded.stdout


def test_no_vague_module_names_and_no_overlong_files() -> None:
    for path in MODULES:
        assert path.stem not in {"utils", "misc", "common", "helpers"}
        assert len(path.read_text().splitlines()) <= 320, path.name
