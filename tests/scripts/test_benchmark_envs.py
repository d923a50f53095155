"""The environment benchmark on a small layout: rows, keys, what is left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mtrl_benchmarks.command import run

from mtrl.errors import UserError


@pytest.mark.meta
@pytest.mark.parametrize(
    "workers", [pytest.param(counts, marks=pytest.mark.slow) for counts in ((1,), (1, 2))]
)
def test_every_backend_that_is_there_gets_a_row(
    workers: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "envs.json"
    flags = ["--tasks", "reach-v3", "--envs-per-task", "2", "--steps", "5", "--turns", "2"]
    assert run(["envs", *flags, "--workers", *map(str, workers), "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    found = {(row["backend"], row["envs_per_task"], row["actions"], row["workers"]) for row in rows}
    ours = {("mtrl", 2, kind, w) for kind in ("random", "scripted") for w in workers}
    assert ours <= found
    assert {("physics", *rest) for _, *rest in ours} <= found
    for row in rows:
        assert row["env_steps_per_s"] > 0
        assert row["startup_s"] > 0
        assert row["tasks"] == "reach-v3"
        if row["backend"] == "mtrl":
            assert row["share_of_physics"] > 0
            assert row["memory_mb"] > 0
    output = capsys.readouterr()
    assert "left out" in output.err  # peers that are not installed or do not fit the layout
    assert "| mtrl" in output.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "0"], "must be positive"),
        (["--steps", "100", "--turns", "9"], "at most 480"),
        (["--peers", "gym_asinc"], "Did you mean 'gym_async'"),
        (["--tasks", "MT11"], "Did you mean 'MT10'"),
    ],
)
def test_mistakes_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(["envs", *flags])
