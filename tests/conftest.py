"""Settings of the whole suite: one thread per process, and a goal cache that is not the user's.

Tests that need a GPU run without the extra [test] as well, on a cluster for instance. Files that import one
of its packages are then left out, and the end of pytest's output names these packages.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

# Tensors are small here: threads would only wait for one another, and for those of the suite's other process.
# Set before torch is imported, here and in the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

# Without a GPU the solvers' kernels run in Triton's interpreter, chosen before Triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

if TYPE_CHECKING:
    from tests.helpers.finished_runs import Finished

PACKAGES = (
    "clarabel", "cvxpy", "hatchling", "hypothesis", "matplotlib", "pandas", "quadprog", "sklearn", "torchjd",
    "triton",
)  # fmt: skip
MISSING = [name for name in PACKAGES if find_spec(name) is None]
if "hypothesis" not in MISSING:
    import hypothesis

    # A busy machine is no defect, and every run of the suite sees the same examples.
    hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, database=None)
    hypothesis.settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the settings of pyproject.toml for plug-ins that are missing."""
    if find_spec("xdist") is None:
        for name in ("--numprocesses", "--maxprocesses", "--dist"):
            parser.addoption(name, help="of pytest-xdist, which is not installed")
    if find_spec("pytest_timeout") is None:
        parser.addini("timeout", help="of pytest-timeout, which is not installed")


def pytest_configure(config: pytest.Config) -> None:
    """Know the marker of a plug-in that is missing, and that of `worker_threads`."""
    config.addinivalue_line("markers", "timeout(seconds): of pytest-timeout")
    config.addinivalue_line(
        "markers", "processes: has worker processes where a file's other tests have threads"
    )


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what imports and the collection made out of later collections of garbage."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Give Python back what it frees at its end, or extensions report objects that it left."""
    gc.unfreeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which packages' tests are left out."""
    if MISSING:
        terminalreporter.write_line(f"without the extra [test]: tests of {', '.join(MISSING)} were left out")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out a file that imports a missing package."""
    if not MISSING or collection_path.suffix != ".py":
        return None
    imports = rf"^(?:import|from) (?:{'|'.join(MISSING)})\b"
    source = collection_path.read_text(encoding="utf-8")
    return True if re.search(imports, source, flags=re.MULTILINE) else None


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of the session share; take a lock in it to make something once."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def one_worker_where_no_number_is_given() -> Iterator[None]:
    """To start a second costs more than it saves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtrl.envs.engine.vector.available_cores", lambda: 1)
        yield


@pytest.fixture(scope="session", autouse=True)
def goal_cache(shared_folder: Path) -> Iterator[None]:
    """One cache for all processes of the session: the goals of a seed are drawn once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared_folder / "cache"))
        yield


@pytest.fixture
def worker_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Workers are threads; processes in slow tests and in those that are marked with `processes`."""
    if any(request.node.get_closest_marker(name) for name in ("slow", "processes")):
        yield
        return
    from tests.helpers.worker_threads import start

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtrl.envs.engine.pool.WorkerPool._start", start)
        yield


@pytest.fixture(scope="session")
def finished(shared_folder: Path) -> Finished:
    """A run of `counting()` that nothing happened to; to be read only."""
    from tests.helpers.finished_runs import made_once

    return made_once(shared_folder / "finished", steps=60)


@pytest.fixture(scope="session")
def undisturbed(finished: Finished) -> Path:
    """The directory of `finished`; to be read only."""
    return finished.path


@pytest.fixture(scope="session")
def first_half(shared_folder: Path) -> Path:
    """A run that was to end, and did, after half the steps of `finished`; to be read only."""
    from tests.helpers.finished_runs import made_once

    return made_once(shared_folder / "half", steps=30).path


@pytest.fixture
def half(first_half: Path, tmp_path: Path) -> Path:
    """A copy of `first_half`."""
    return Path(shutil.copytree(first_half, tmp_path / "half"))
