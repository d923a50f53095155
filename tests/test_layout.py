"""The packages of mtrl: imports point one way, nothing runs in circles, files stay small and well named."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mtrl"


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}

# What each package may import: what stands above it in this table, never what stands below.
_FLOOR = {"mtrl", "errors", "registry", "seeds"}  # the package itself says its version
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "mtrl": set(),
    "seeds": set(),
    "registry": {"errors"},
    "combiners": {"errors", "registry"},
    "device": _FLOOR,
    "config": _FLOOR,
    "envs": _FLOOR | {"device"},
    "runs": _FLOOR | {"config", "device"},
    "networks": _FLOOR | {"config"},
    "gradients": _FLOOR | {"combiners", "networks"},
    "agents": _FLOOR | {"combiners", "config", "device", "gradients", "networks"},
    "training": _FLOOR | {"agents", "combiners", "config", "device", "envs", "networks", "runs"},
    "report": _FLOOR | {"config", "runs"},
    "export": _FLOOR | {"agents", "config", "gradients", "networks", "report", "runs", "training"},
    "sweep": _FLOOR | {"config", "device", "report", "runs", "training"},
    "compat": _FLOOR | {"agents", "config", "envs", "runs", "training"},
    "cli": _FLOOR | {"combiners", "config", "envs", "export", "report", "runs", "sweep", "training"},
    "__main__": {"cli"} | _FLOOR,
}


@functools.cache
def _imports(path: Path, *, whole: bool = True) -> list[str]:
    """Modules that a file imports; `whole`: also inside functions and for the type checker only."""
    tree, found = _parsed(path), []
    for node in ast.walk(tree) if whole else tree.body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.append(full if full in MODULES else node.module)
    return found


@functools.cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _package(module: str) -> str:
    return module.split(".")[1] if "." in module else "mtrl"


def _subpackages() -> set[str]:
    return {_package(name) for name in MODULES} - {"mtrl"}


def test_every_package_has_its_place() -> None:
    assert _subpackages() <= set(ALLOWED), "give a new package its place among the others"


def test_no_loose_modules() -> None:
    loose = {path.stem for path in PACKAGE.glob("*.py")}
    assert loose == {"__init__", "__main__", "errors", "registry", "seeds"}


def test_both_maps_name_each_package() -> None:
    modules = (name.split(".") for name in MODULES)
    there = {parts[1] for parts in modules if len(parts) == 2} - {"__main__"}
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = page.partition("\n## Packages\n")[2].split("```")[1]
    docstring = ast.get_docstring(_parsed(PACKAGE / "__init__.py")) or ""
    for file, named in (
        ("docs/architecture.md", re.findall(r"^(\w+)(?:/|\.py) ", block, re.MULTILINE)),
        ("mtrl/__init__.py", re.findall(r"^    (\w+)  ?", docstring, re.MULTILINE)),
    ):
        assert sorted(named) == sorted(there), f"name each package once in {file}"


def test_imports_point_one_way() -> None:
    for name, path in MODULES.items():
        package = _package(name)
        outside = {_package(found) for found in _imports(path) if found.split(".")[0] == "mtrl"} - {package}
        assert name == "mtrl" or outside <= ALLOWED[package], name


def test_the_table_of_packages_has_no_circle() -> None:
    done: set[str] = set()
    for _ in ALLOWED:
        done |= {package for package, below in ALLOWED.items() if below <= done}
    assert done == set(ALLOWED)


def test_no_circle_among_modules() -> None:
    # Only what runs at import time counts: a circle there works or not by the order of imports.
    below = {
        name: {found for found in _imports(path, whole=False) if found in MODULES and found != name}
        for name, path in MODULES.items()
    }
    while below:
        leaves = {name for name, needed in below.items() if not needed & set(below)}
        assert leaves, f"a circle among {sorted(below)}"
        below = {name: needed for name, needed in below.items() if name not in leaves}


def test_private_modules_stay_in_their_folder() -> None:
    for name, path in MODULES.items():
        for found in _imports(path):
            parts = found.split(".")
            if parts[0] == "mtrl" and parts[-1].startswith("_") and not parts[-1].startswith("__"):
                assert path.parent.parts[-len(parts) + 1 :] == tuple(parts[:-1]), f"{name} imports {found}"


def test_combiners_need_torch_and_the_standard_library_only() -> None:
    optional = {"torchjd", "numpy", "triton"}  # TorchJD: a method's own affair; Triton comes with CUDA
    for name, path in MODULES.items():
        if _package(name) == "combiners":
            outside = {found.split(".")[0] for found in _imports(path)} - set(sys.stdlib_module_names)
            assert outside <= {"torch", "mtrl"} | optional, name


def test_the_library_imports_nothing_from_the_scripts() -> None:
    for name, path in MODULES.items():
        roots = {found.partition(".")[0] for found in _imports(path)}
        assert not {root for root in roots if root.startswith("mtrl_") or root in {"scripts", "tests"}}, name


def test_only_agents_know_which_agent_it_is() -> None:
    """An agent checks its own settings and builds its own combiners; presets may name one."""
    for name, path in MODULES.items():
        if _package(name) == "agents" or name == "mtrl.config.presets":
            continue
        for node in ast.walk(_parsed(path)):
            if isinstance(node, ast.Compare):
                sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
                of_an_agent = any(side.split(".")[-1] == "agent" for side in sides)
                texts = any(side.startswith(("'", '"')) for side in sides)
                assert not ("'sac'" in sides or (of_an_agent and texts)), f"{name}:{node.lineno}"


def test_metaworld_is_imported_by_its_own_package_only() -> None:
    for name, path in MODULES.items():
        if any(found.split(".")[0] in ("metaworld", "mujoco") for found in _imports(path)):
            assert name.startswith(("mtrl.envs.metaworld.", "mtrl.envs.gymnasium", "mtrl.envs.state")), name


def test_what_environment_workers_import_is_light() -> None:
    code = "import sys, mtrl.envs.engine.worker, mtrl.seeds; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split())
    assert {"mtrl", "mtrl.envs"} <= loaded
    assert not {"torch", "tensorboard", "metaworld", "tyro", "pydantic"} & loaded


def test_names_say_what_a_file_is_about_and_files_stay_small() -> None:
    for path in MODULES.values():
        assert path.stem not in {"utils", "misc", "common", "helpers"}, path
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


def test_tests_mirror_the_packages() -> None:
    folders = {
        path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"
    }
    assert folders - _subpackages() <= {"helpers", "scripts"}
