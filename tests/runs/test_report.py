"""Reports against evaluations written by hand."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from mtrl.cli.commands import main_report
from mtrl.config.presets import save_config
from mtrl.config.schema import Config
from mtrl.errors import UserError
from mtrl.runs.report import final_table, read_run


def _line(step: int, **success: float) -> dict[str, Any]:
    tasks = {
        name.replace("_", "-"): {
            "success": value,
            "success_last": value / 2,
            "return": 100 * value,
            "episodes": 4,
        }
        for name, value in success.items()
    }
    mean = sum(success.values()) / len(success)
    return {
        "vector_step": step,
        "mean_success": mean,
        "mean_success_last": mean / 2,
        "mean_return": 100 * mean,
        "tasks": tasks,
    }


def _run(path: Path, *lines: dict[str, Any], mujoco: str = "3.3.0") -> Path:
    path.mkdir()
    save_config(Config(tasks=("reach-v3", "push-v3"), method="mean"), path / "config.yaml")
    (path / "versions.json").write_text(json.dumps({"metaworld": "3.1.1", "mujoco": mujoco}))
    (path / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_table_averages_the_last_evaluations_of_all_runs(tmp_path: Path) -> None:
    first = _run(tmp_path / "a", _line(10, reach_v3=0.0, push_v3=0.0), _line(20, reach_v3=1.0, push_v3=0.5))
    second = _run(tmp_path / "b", _line(20, reach_v3=0.5, push_v3=0.0))
    table = final_table([read_run(first), read_run(second)])
    assert "| reach-v3 | 0.75 | 0.38 | 75 |" in table
    assert "| push-v3 | 0.25 | 0.12 | 25 |" in table
    assert "| **mean** | 0.50 | 0.25 | 50 |" in table


def test_a_half_written_last_line_is_dropped(tmp_path: Path) -> None:
    run = _run(tmp_path / "a", _line(10, reach_v3=1.0, push_v3=1.0))
    with open(run / "evaluations.jsonl", "a") as file:
        file.write('{"vector_step": 20, "mean_s')
    assert [line["vector_step"] for line in read_run(run).evaluations] == [10]


def test_runs_of_other_simulator_versions_do_not_share_a_table(tmp_path: Path) -> None:
    runs = [
        read_run(_run(tmp_path / name, _line(10, reach_v3=1.0, push_v3=1.0), mujoco=version))
        for name, version in (("a", "3.3.0"), ("b", "3.6.0"))
    ]
    with pytest.raises(UserError, match=r"different mujoco versions .*3\.3\.0.*3\.6\.0"):
        final_table(runs)


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is an extra")
def test_script_writes_a_picture_and_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _run(tmp_path / "a", _line(10, reach_v3=0.0, push_v3=0.5), _line(20, reach_v3=1.0, push_v3=0.5))
    assert main_report([str(run), "--out", str(tmp_path / "report")]) == 0
    assert (tmp_path / "report/success.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "report/table.md").read_text() in capsys.readouterr().out


@pytest.mark.parametrize("lines", [None, ()])
def test_what_is_no_run_or_has_no_evaluation_is_refused(
    lines: tuple[dict[str, Any], ...] | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a"
    if lines is not None:
        _run(path, *lines)
    assert main_report([str(path)]) == 2
    assert "error: " in capsys.readouterr().err
