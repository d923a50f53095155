"""Runs from anywhere: their names are shown as text, and nothing in their files makes reading slow."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtrl.cli.report import main as main_report
from mtrl.errors import UserError
from mtrl.report import compare, signals, write_report
from mtrl.report.load import load_runs, read_run, read_runs
from mtrl.report.table import Table
from tests.helpers.written_runs import evaluation_line, write_run

SUCCESS = {"reach-v3": (0.5, 1.0)}
NAMES = (
    "=HYPERLINK(1)",
    "\x1b[31mred",
    "<script>",
    "[a](http://b)",
    "a|b",
    "$\\frac{$",
    "_hidden",
    "é日本",
    "\u202egnp",
)


def test_names_are_text_in_every_form_of_a_table() -> None:
    table = Table("t", "T", ("method", *NAMES), [[name, *range(len(NAMES))] for name in NAMES])
    forms = {"csv": table.csv(), "markdown": table.markdown(), "latex": table.latex()}
    for form, text in forms.items():
        assert all(character.isprintable() or character == "\n" for character in text), form
    assert "<script>" not in forms["markdown"]
    assert "](http" not in forms["markdown"]
    assert r"a\|b" in forms["markdown"]
    assert r"\$\textbackslash{}frac\{\$" in forms["latex"]
    assert all(
        not cell.startswith(("=", "+", "@")) for line in forms["csv"].splitlines() for cell in line.split(",")
    )
    assert Table("t", "T", ("a",), [[-0.5]]).csv() == "a\n-0.5\n"  # numbers stay numbers


@pytest.mark.dear
def test_a_report_of_oddly_named_tasks_and_methods_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    tasks = [name for name in NAMES if any(part in name for part in ("<", "frac", "é", "\u202e", "\x1b"))]
    assert len(tasks) == 5  # those that a figure could not draw; names of methods hold the others
    success = dict.fromkeys(tasks, (0.25, 0.5))
    line = {
        "vector_step": 10,
        "critic_cosine": {name: dict.fromkeys(tasks, 0.5) for name in tasks},
        "critic_weight": dict.fromkeys(tasks, 1.0),
        "training_success": dict.fromkeys(tasks, 0.5),
    }
    for number, name in enumerate(NAMES[:3]):
        method = f"{name}.py:{''.join(NAMES[3:])}"
        write_run(tmp_path / str(number), success, method=method, metrics=[line, {**line, "vector_step": 20}])
    assert main_report([str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert all(character.isprintable() or character == "\n" for character in printed)
    page = (tmp_path / "out/report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "\x1b" not in page
    figures = [path.stem for path in (tmp_path / "out/figures").glob("*.pdf")]
    assert len(figures) >= 3
    assert "critic-cosines" in figures
    sources = re.findall(r"""(?:src|href)=["']([^"']*)""", page)
    assert all(source.startswith(("data:image/svg+xml;base64,", "#")) for source in sources)
    assert len([source for source in sources if source.startswith("data:")]) == len(figures)
    for name in figures:
        assert (tmp_path / f"out/figures/{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / f"out/figures/{name}.svg").read_text()


def test_the_page_shows_no_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = str(tmp_path / "mine.py:Own")
    write_run(tmp_path / "runs/a", SUCCESS, method=method)
    write_run(tmp_path / "runs/b", SUCCESS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # figures take seconds
    command = [str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    write_report(compare([tmp_path / "runs"]), tmp_path / "out", command=command)
    page = (tmp_path / "out/report.html").read_text()
    assert str(tmp_path) not in page
    assert "mine.py:Own" in page
    assert "mtrl-report runs --out out" in page


def test_links_that_lead_in_circles_are_followed_once(tmp_path: Path) -> None:
    write_run(tmp_path / "all/run", SUCCESS)
    for name in ("p", "q", "r"):
        os.symlink(".", tmp_path / "all" / name)
    (tmp_path / "elsewhere").mkdir()
    write_run(tmp_path / "elsewhere/run", SUCCESS, seed=1)
    os.symlink(tmp_path / "elsewhere", tmp_path / "all/linked")
    start = time.process_time()
    assert [run.seed for run in read_runs(tmp_path / "all")] == [1, 0]
    assert time.process_time() - start < 2.0


@pytest.mark.parametrize("name", ["tables", "figures", "configs"])
def test_a_folder_that_is_a_link_out_of_the_report_is_refused(tmp_path: Path, name: str) -> None:
    """A folder of results from elsewhere may hold one."""
    write_run(tmp_path / "runs/run", SUCCESS)
    (tmp_path / "victim").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match=rf"out/{name}' is a link to '.*/victim', outside of .*: remove it"):
        write_report(compare([tmp_path / "runs"]), tmp_path / "out")
    assert not list((tmp_path / "victim").iterdir())
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


@pytest.mark.dear
def test_files_that_are_links_are_replaced_not_followed(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/run", SUCCESS)
    victim = tmp_path / "victim"
    victim.write_text("mine")
    first = write_report(compare([tmp_path / "runs"]), tmp_path / "first").files
    names = [path.relative_to(tmp_path / "first") for path in first]
    names = [name for name in names if name.parent.name != "configs"]  # refused, see `paths_in`
    assert {".html", ".csv", ".md", ".tex", ".png", ".svg", ".pdf"} == {name.suffix for name in names}
    for name in names:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).symlink_to(victim)
    write_report(compare([tmp_path / "runs"]), tmp_path / "out")
    assert victim.read_text() == "mine"
    assert not any((tmp_path / "out" / name).is_symlink() for name in names)


def _bomb() -> str:
    lines = ["tasks: [reach-v3]", "method: mean", "steps: 1", "seed: 0", "a0: &a0 [x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "config",
    [
        _bomb(),
        "tasks: [reach-v3]\nmethod: mean\nsteps: 1\nseed: 0\nmethod_options: &a {b: *a}",
        "a: " + "[" * 30_000,
        "a: " + "[" * 300 + "]" * 300,
        "tasks: reach-v3\nmethod: mean\nsteps: 1\nseed: 0",
        "tasks: [1]\nmethod: mean\nsteps: 1\nseed: 0",
        "tasks: [a]\nmethod: [mean]\nsteps: 1\nseed: 0",
        "tasks: [a]\nmethod: mean\nsteps: .inf\nseed: 0",
        "tasks: [a]\nmethod: mean\nsteps: 1\nseed: zero",
        "tasks: [a]\nmethod: mean\nsteps: 1\nseed: 0\nenv: 3",
        "- a",
        "",
        *("a: 2020-99-99", "a: !!bool maybe", "a: !!timestamp x", "a: !!int ''"),
        "x: !!python/object/apply:os.system [ls]",
        "b: " + "x" * 1_100_000,
    ],
)
def test_a_config_that_no_run_wrote_is_refused_at_once(config: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", SUCCESS)
    (run / "config.yaml").write_text(config)
    start = time.process_time()
    for read in (read_run, load_runs):
        with pytest.raises(UserError, match=r"config\.yaml"):
            read(run)
    assert time.process_time() - start < 2.0


LINE: dict[str, Any] = evaluation_line(30, {"reach-v3": 0.5})


@pytest.mark.parametrize("file", ["evaluations.jsonl", "metrics.jsonl"])
@pytest.mark.parametrize(
    "line",
    [
        *("{", "[" * 100_000, "null", '"text"', "[1]", "{}", "\udcff{}", '{"vector_step": 1e999}'),
        *('{"vector_step": null}', '{"vector_step": "3"}', '{"vector_step": -1}'),
        *('{"vector_step": 1, "wall_s": "x"}', '{"vector_step": 1, "wall_s": true}'),
        *(f'{{"vector_step": 1, "a": {n}}}' for n in ("NaN", "-Infinity", "1e999", "9" * 401, "9" * 9999)),
        f'{{"a": "{"x" * 52}é"}}',  # the message shows 60 bytes, which end within a character
    ],
)
def test_a_line_that_is_no_record_is_refused_with_its_file(file: str, line: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", SUCCESS, metrics=[{"vector_step": 10}])
    (run / file).write_bytes(line.encode(errors="surrogateescape") + b"\n" + (run / file).read_bytes())
    with pytest.raises(UserError, match=file):
        load_runs(run)
    assert main_report([str(run), "--out", str(tmp_path / "out")]) == 2


@pytest.mark.parametrize(
    "tasks",
    [
        [],
        {},
        "x",
        [{"reach-v3": 1}],
        {"reach-v3": 1},
        {"other": {"success": 1.0}},
        {"reach-v3": {"success": "x"}},
        {"reach-v3": {"success": True}},
    ],
)
def test_an_evaluation_that_is_no_record_is_refused(tasks: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", SUCCESS)
    with open(run / "evaluations.jsonl", "a") as file:
        file.write(json.dumps({**LINE, "tasks": tasks}) + "\n")
    with pytest.raises(UserError, match=r"evaluations\.jsonl, the evaluation at vector step 30"):
        read_run(run)


@pytest.mark.parametrize("values", [{"mean_success": "x"}, {"mean_return": False}, {"final": "no"}])
def test_a_mean_or_an_end_that_is_none_is_refused(values: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", SUCCESS)
    with open(run / "evaluations.jsonl", "a") as file:
        file.write(json.dumps({**LINE, **values}) + "\n")
    with pytest.raises(
        UserError, match=rf"evaluations\.jsonl, the evaluation at .* 30.*{next(iter(values))}"
    ):
        read_run(run)


@pytest.mark.parametrize(
    "numbers",
    [
        *({"weight": 3}, {"critic_cosine": {"reach-v3": 1}}, {"critic_loss": {"reach-v3": "x"}}),
        *({"weight": {"reach-v3": "0.5"}}, {"actor_loss": {"reach-v3": True}}, {"grad/critic_cos_min": "1"}),
        *({"critic_cosine": {"reach-v3": {"push-v3": "1"}}}, {"rollout/success_rate": True}),
        *({"time/updates_per_step": "2"}, {"time/update_ms": [1]}, {"training_success": {"push-v3": [1]}}),
    ],
)
def test_metrics_of_another_shape_are_refused_by_the_report(
    numbers: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    success = {"reach-v3": (0.5, 1.0), "push-v3": (0.5, 1.0)}
    line = {"vector_step": 10, **numbers}
    run = write_run(tmp_path / "run", success, metrics=[line])
    assert main_report([str(run), "--out", str(tmp_path / "out")]) == 2
    assert f"{run}/metrics.jsonl, the line of vector step 10: expected numbers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({"time/updates_per_step": 4}, np.nan),
        ({"time/update_ms": 4.0}, np.nan),
        ({"time/updates_per_step": 0, "time/update_ms": 0.0}, np.nan),
        ({"time/updates_per_step": 4, "time/update_ms": 2}, 0.5),
    ],
)
def test_the_time_of_an_update_is_that_of_lines_with_both_of_its_numbers(
    numbers: Any, expected: float, tmp_path: Path
) -> None:
    comparison = compare([write_run(tmp_path / "run", SUCCESS, metrics=[{"vector_step": 10, **numbers}])])
    (row,) = comparison.rows
    np.testing.assert_array_equal(signals.update_milliseconds(comparison, row), [expected])


@pytest.mark.parametrize(
    ("text", "reads"), [("", True), ("\n", True), ("{", False), ("[1]", False), ("\xff", False)]
)
def test_versions_emptied_by_a_full_disk_count_as_missing_and_damaged_ones_are_named(
    text: str, reads: bool, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", SUCCESS)
    (run / "versions.json").write_text(text, encoding="latin-1")
    if reads:
        assert read_run(run).versions == {}
    else:
        with pytest.raises(UserError, match=r"versions\.json is damaged"):
            read_run(run)


@pytest.mark.dear
def test_a_report_whose_summary_cannot_be_printed_is_written_all_the_same(tmp_path: Path) -> None:
    write_run(tmp_path / "run", SUCCESS)
    code = (
        "import runpy, sys; sys.modules['matplotlib'] = None; runpy.run_module('mtrl', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, "report", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "No space left" in done.stderr
    assert (tmp_path / "out/report.html").is_file()
