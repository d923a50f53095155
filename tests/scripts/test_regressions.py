"""Study B's problem against plain torch, its record of runs, and its tables against numbers by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mtrl_regressions.command import Job, main
from mtrl_regressions.problem import SETTINGS, Student, draw, run
from mtrl_regressions.tables import table_of

from mtrl.report.stats import Interval


@pytest.mark.parametrize("name", SETTINGS)
def test_the_mean_is_plain_adam_on_the_mean_loss_with_every_head_on_its_own(name: str) -> None:
    setting = SETTINGS[name]
    found = run("mean", setting, seed=3, lr=0.01, steps=4, points=2)
    assert found.steps == [2, 4]
    data = draw(setting, 3, 12)
    torch.manual_seed(3)
    student = Student(shared_output=setting.opposed)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    for step in range(4):
        losses = data.units * (student(data.inputs[step]) - data.targets[step]).square().mean(1)
        optimizer.zero_grad()
        losses.mean().backward()
        if not setting.opposed:  # a head's gradient is that of its own loss, not of a sixth of it
            for parameter in student.heads.parameters():
                assert parameter.grad is not None
                parameter.grad *= 6
        optimizer.step()
    errors = (student(data.test_inputs) - data.test_targets).square().mean(1)
    torch.testing.assert_close(torch.tensor(found.errors[-1]), errors.detach(), rtol=1e-3, atol=1e-4)


def test_targets_have_unit_variance_and_those_of_a_pair_are_opposite() -> None:
    data = draw(SETTINGS["opposed, units"], 5, 2)
    torch.testing.assert_close(data.test_targets.var(1), torch.ones(6), rtol=0.15, atol=0)
    assert sorted(data.units.tolist()) == pytest.approx(np.logspace(0, 3, 6).tolist(), rel=1e-5)
    # Linear regressions on the same inputs see opposite slopes: the targets of a pair are y and -y.
    slopes = [torch.linalg.lstsq(x, y.unsqueeze(1)).solution for x, y in zip(data[2], data[3], strict=True)]
    for first, second in ((0, 1), (2, 3), (4, 5)):
        assert float(torch.cosine_similarity(slopes[first], slopes[second], dim=0)) < -0.8


def test_a_method_that_ignores_units_fits_the_same_in_all_of_them() -> None:
    equal, units = (
        run("nash_mtl", SETTINGS[name], seed=1, lr=0.01, steps=5, points=1) for name in ("equal", "units")
    )
    # The order of the units is drawn after the targets, so the problems are otherwise the same.
    np.testing.assert_allclose(equal.errors, units.errors, rtol=1e-2)


@pytest.mark.dear
def test_the_study_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--out", str(tmp_path), "--methods", "mean", "uw", "--steps", "5"]
    assert main([*arguments, "--seeds", "2"]) == 0
    record = tmp_path / "runs.jsonl"
    before = record.read_text().splitlines()
    assert len(before) == 4 * 2 * (3 + 2)
    record.write_text("\n".join(before[:-1]) + "\n" + before[-1][:20])  # killed while it wrote
    cut, former = record.read_bytes(), tmp_path / "former"
    former.hardlink_to(record)
    assert main([*arguments, "--tables-only"]) == 0
    assert record.samefile(former)
    assert former.read_bytes() == cut
    capsys.readouterr()
    assert main([*arguments, "--seeds", "2"]) == 0
    after = [{**json.loads(line), "cpu_s": 0} for line in record.read_text().splitlines()]
    assert after == [{**json.loads(line), "cpu_s": 0} for line in before]
    assert former.read_bytes() == cut  # the file was replaced as a whole
    assert capsys.readouterr().out.count("| uw |") == 4
    written = record.stat()
    assert main([*arguments, "--seeds", "2"]) == 0
    assert (record.stat().st_ino, record.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert main(["--out", str(tmp_path), "--seeds", "100"]) == 2  # the last one is for tuning
    assert "100" in capsys.readouterr().err
    assert main(["--out", str(tmp_path), "--steps", "10"]) == 2
    assert "--steps 10" in capsys.readouterr().err


def test_ratios_are_geometric_means_of_pairs_and_tuning_does_not_count() -> None:
    runs = {}
    for seed, (mean, other) in {100: (9.0, 0.1), 1: (0.4, 0.2), 2: (0.1, 0.1), 3: (0.2, 0.4)}.items():
        for method, error in (("mean", mean), ("uw", other)):
            line = {"errors": [[9.0] * 6, [error, *[0.1] * 5]], "lr": 0.02}
            runs[Job("equal", method, seed, 0.02)] = {
                "setting": "equal",
                "method": method,
                "seed": seed,
                **line,
            }
    runs[Job("equal", "gls", 1, 0.02)] = {**runs[Job("equal", "uw", 1, 0.02)], "method": "gls"}
    table = table_of(runs, "equal")
    assert "over 1 to 3 (fewer than 3: gls) seeds" in table.note
    rows = {row[0]: row for row in table.rows}
    assert rows["mean"][2] == pytest.approx((0.4 * 0.1 * 0.2) ** (1 / 3))
    alone = rows["gls"][4]
    assert isinstance(alone, Interval)
    assert alone.value == pytest.approx(0.5)  # of its only seed, and the others keep theirs
    ratio = rows["uw"][4]
    assert isinstance(ratio, Interval)
    assert ratio.value == pytest.approx(1.0)  # of 1/2, 1 and 2
    reach = 6.205346816570707 * np.log10(2.0) / np.sqrt(3)  # the .9875 quantile of t with 2 degrees
    assert (ratio.low, ratio.high) == pytest.approx((10**-reach, 10**reach))
