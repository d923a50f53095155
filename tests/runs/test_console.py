from __future__ import annotations

import io
import re
import sys
import time

import numpy as np
import pytest
from rich.console import Console

from mtrl.runs import console
from mtrl.runs.console import RunProgress, evaluation_table, start_screen
from mtrl.runs.log import Evaluation

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")
RESULT = Evaluation(
    ("reach-v3", "push-v3"),
    np.array([[True, True, True, False], [False, False, False, True]]),
    np.array([[True, False, False, False], [False, False, False, True]]),
    np.array([[100.0, 200.0, 300.0, 400.0], [1.0, 2.0, 3.0, 4.0]]),
)


def terminal() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=True, force_interactive=True, width=100), stream


def seen(stream: io.StringIO) -> str:
    """Text on the terminal without the escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())


def test_outside_a_terminal_nothing_has_control_codes(capsys: pytest.CaptureFixture[str]) -> None:
    start_screen("MT10", [("device", "cpu"), ("x" * 90, "y" * 90)], ["a note"])
    with RunProgress(1000, 0) as progress:
        progress.line(500, 10.0)
        progress.message("checkpoint written")
    evaluation_table(RESULT)
    console.warning("careful")
    out, err = capsys.readouterr()
    assert out and err
    assert not CONTROL.search(out) and not CONTROL.search(err)
    assert out.isascii()


def test_the_plain_start_screen_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    start_screen("MT10, cagrad", [("tasks", "10"), ("parameters", "1.2 M")], ["no GPU found"])
    assert capsys.readouterr().out.splitlines() == [
        "MT10, cagrad",
        "  tasks       10",
        "  parameters  1.2 M",
        "  no GPU found",
    ]


def test_the_start_screen_on_a_terminal_shows_the_text_as_it_is() -> None:
    target, stream = terminal()
    start_screen("run [bold]", [("tasks", "[red]10[/nothing]")], ["note [/x]"], console=target)
    for text in ("run [bold]", "[red]10[/nothing]", "note [/x]"):
        assert text in seen(stream)


def test_each_line_has_step_success_speed_and_eta(capsys: pytest.CaptureFixture[str]) -> None:
    with RunProgress(2_000_000, 0) as progress:
        progress.line(20_000, None)
        progress.success = 0.125
        progress.line(200_000, 100.0)
        progress.step(200_001, 1.0)  # a log file gets no bar
        progress.success = float("nan")
        progress.line(2_000_000, 2.46)
    assert capsys.readouterr().out.splitlines() == [
        "step 20,000 / 2,000,000 (1.0 %)  success -  - steps/s  ETA -",
        "step 200,000 / 2,000,000 (10.0 %)  success 0.125  100 steps/s  ETA 5:00:00",
        "step 2,000,000 / 2,000,000 (100.0 %)  success -  2.5 steps/s  ETA 0:00:00",
    ]


def test_a_terminal_gets_one_bar_that_moves_between_log_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    target, stream = terminal()
    progress = RunProgress(1000, 500, success=0.25, console=target)
    progress.message("resumed [at] 500")
    for step in range(501, 751):  # 25 steps a second of training, beside as much evaluation
        now[0] += 0.08
        progress.step(step, (step - 500) / 25, "evaluating" if step > 700 else "")
    progress.close()
    progress.close()
    text = seen(stream)
    assert "resumed [at] 500" in text
    assert "500/1,000  starting" in text
    shown = [int(step) for step in re.findall(r"(\d+)/1,000  success 0\.250  25 steps/s", text)]
    assert len(set(shown)) > 20  # two a second of 20 seconds
    assert "success 0.250  25 steps/s  ETA 0:00:10  evaluating" in text


def test_warnings_appear_while_the_bar_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    target, stream = terminal()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with RunProgress(10, 0, console=target):
        console.warning("disk is full")
    assert "warning: disk is full" in seen(stream)


class Gone(io.StringIO):
    """A terminal that was closed, or a log file on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize("interactive", [False, True])
def test_an_output_that_is_gone_stops_nothing(interactive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Gone())
    monkeypatch.setattr(sys, "stderr", Gone())
    target = Console(file=Gone(), force_terminal=interactive, force_interactive=interactive)
    start_screen("run", [("tasks", "10")], console=target)
    with RunProgress(10, 0, console=target) as progress:
        progress.step(3, 1.0)
        progress.line(3, 1.0)
        progress.message("saved")
    console.warning("disk is full")
    console.say("bye")
    evaluation_table(RESULT, console=target)


def test_the_evaluation_table_has_tasks_and_their_mean(capsys: pytest.CaptureFixture[str]) -> None:
    evaluation_table(RESULT)
    rows = [re.split(r"\s{2,}", line) for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        ["task (4 episodes each)", "success", "last step", "return"],
        ["reach-v3", "0.750", "0.250", "250.0"],
        ["push-v3", "0.250", "0.250", "2.5"],
        ["mean", "0.500", "0.250", "126.2"],
    ]
    target, stream = terminal()
    evaluation_table(RESULT, console=target)
    cells = [re.findall(r"[\w.-]+", line) for line in seen(stream).splitlines()]
    for row in rows[1:]:
        assert row in cells


def test_warnings_go_to_stderr_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 200
    console.warning(f"[bold]{long} :smile:")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [f"warning: [bold]{long} :smile:"]


def test_an_evaluation_averages_over_tasks_and_episodes() -> None:
    assert RESULT.episodes_per_task == 4
    assert RESULT.mean_success == pytest.approx((3 / 4 + 1 / 4) / 2)
    assert RESULT.mean_success_last == pytest.approx((1 / 4 + 1 / 4) / 2)
    assert RESULT.mean_return == pytest.approx((250.0 + 2.5) / 2)


def test_a_name_that_the_encoding_lacks_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="latin-1", write_through=True))
    console.say("task 日本")
    console.say("task café")
    assert "café" in raw.getvalue().decode("latin-1")
