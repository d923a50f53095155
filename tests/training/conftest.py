"""A whole run to compare with; evaluation in one process, as a second takes longer to start than it saves."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtrl import train
from tests.helpers.short_runs import COUNTING, config


@pytest.fixture(autouse=True)
def one_worker_where_no_number_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtrl.envs.engine.vector.available_cores", lambda: 1)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `config(**COUNTING)` that nothing happened to; to be read only."""
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    train(config(**COUNTING), path)
    return path
