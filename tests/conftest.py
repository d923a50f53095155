"""Settings of the whole suite: one thread per process, and a goal cache that is not the user's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Tensors are small here: threads would only wait for one another, and for those of the suite's other process.
# Set before torch is imported, here and in the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis
import pytest
import torch

# Without a GPU the solvers' kernels run in Triton's interpreter, chosen before Triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A busy machine is no defect, and every run of the suite sees the same examples.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("suite")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of the session share; take a lock in it to make something once."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def goal_cache(shared_folder: Path) -> Iterator[None]:
    """One cache for all processes of the session: the goals of a seed are drawn once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared_folder / "cache"))
        yield
