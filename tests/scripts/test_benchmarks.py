"""The combiners' benchmark at tiny sizes, and what all benchmarks share."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mtrl_benchmarks import _implementations, _measures, _published, _timing, _updates, command, report
from mtrl_benchmarks._families import EXTREME, FAMILIES, jacobian, widened
from mtrl_benchmarks.combiners import ACCURACY_KEYS, ROW_KEYS
from mtrl_benchmarks.command import main as main_benchmark
from mtrl_benchmarks.nodes import ROW_KEYS as NODE_KEYS
from torch import Tensor

from mtrl.config.schema import Config
from mtrl.networks.base import NETWORKS

TINY = ["--parameters", "60", "--repetitions", "1", "--seconds", "1"]


def rows_of(arguments: list[str], folder: Path) -> list[dict[str, Any]]:
    assert main_benchmark(["combiners", *arguments, "--json", str(folder / "new" / "rows.json")]) == 0
    content = json.loads((folder / "new" / "rows.json").read_text())
    assert set(content) == {"machine", "versions", "rows"}
    assert {"cpu", "cores"} <= set(content["machine"])
    assert {"python", "torch", "torchjd", "scipy"} <= set(content["versions"])
    rows: list[dict[str, Any]] = content["rows"]
    return rows


def test_every_implementation_gets_a_row_with_the_agreed_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(["--tasks", "2", "3", "--methods", "cagrad", "mean", *TINY], tmp_path)
    assert all(tuple(row) == ROW_KEYS for row in rows)
    found = [(row["implementation"], row["method"], row["tasks"]) for row in rows]
    for tasks in (2, 3):
        for name in ("mtrl", "torchjd", "published", "published_rl"):
            assert (name, "cagrad", tasks) in found
        assert ("mtrl", "mean", tasks) in found
        objectives = [row["objective"] for row in rows if (row["method"], row["tasks"]) == ("cagrad", tasks)]
        assert objectives == pytest.approx([objectives[0]] * 4, rel=1e-2)
        assert objectives[0] <= min(objectives) * (1.0 + 1e-6)
    assert all(row["ms_weights"] > 0.0 and row["ms_combine"] > 0.0 for row in rows)
    printed = capsys.readouterr()
    assert printed.out.startswith("| implementation | method | tasks |")
    assert "objective of cagrad: dual objective, lower is better" in printed.err


def test_peers_that_are_absent_are_skipped_with_the_command_that_installs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    absent = {"torchjd", "ecos"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in absent else find(name, *rest)
    )
    rows = rows_of(["--tasks", "2", "--methods", "nash_mtl", *TINY], tmp_path)
    assert {row["implementation"] for row in rows} == {"mtrl"}
    printed = capsys.readouterr().err
    assert "torchjd: skipped, torchjd not installed: pip install 'torchjd[full]'" in printed
    assert "published: skipped, ecos not installed: pip install scipy cvxpy ecos" in printed


def test_a_peer_that_fails_has_dashes_and_the_others_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(gram: Tensor, c: float) -> Tensor:
        raise RuntimeError("no convergence")

    monkeypatch.setattr(_published, "cagrad_by_slsqp", fail)
    names = ["--implementations", "mtrl", "published"]
    ours, published = rows_of(["--tasks", "2", "--methods", "cagrad", *names, *TINY], tmp_path)
    assert ours["ms_weights"] > 0.0
    assert (published["ms_weights"], published["ms_combine"], published["objective"]) == (None, None, None)
    assert "published cagrad, 2 tasks: failed. RuntimeError: no convergence" in capsys.readouterr().err


@pytest.mark.parametrize("good", [1, 3])
def test_a_peer_that_fails_later_has_dashes_too(good: int, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[Tensor] = []

    def fail_later(value: Tensor) -> Tensor:
        calls.append(value)
        if len(calls) > good:
            raise RuntimeError("no convergence")
        return value

    functions: dict[str, Callable[[Tensor], Tensor]] = {"steady": torch.clone, "later": fail_later}
    found = _timing._turns(functions, torch.eye(2), _timing._next_gram, 5, 10.0, "cagrad")
    assert found["later"] == (None, None)
    assert found["steady"][0] is not None
    assert "later cagrad: failed. RuntimeError: no convergence" in capsys.readouterr().err
    assert len(calls) == good + 1


def test_training_is_timed_with_the_presets_own_options_of_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[Config] = []

    def measure(config: Config, steps: int) -> dict[str, Any]:
        configs.append(config)
        return {}

    monkeypatch.setattr("mtrl_benchmarks.train._measure", measure)
    assert main_benchmark(["train", "--preset", "sac_laptop", "--methods", "cagrad", "mean"]) == 0
    (name, options), (other, _) = (config.methods()["critic"] for config in configs)
    assert (name, options["c"], other) == ("cagrad", 0.1, "mean")


def test_a_solver_that_would_take_minutes_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    before: list[report.Row] = [
        {"implementation": "torchjd", "method": "cagrad", "tasks": 10, "ms_combine": 900.0},
        {"implementation": "mtrl", "method": "cagrad", "tasks": 10, "ms_combine": 1.0},
        {"implementation": "published", "method": "cagrad", "tasks": 10, "ms_combine": None},
    ]
    names = ("mtrl", "torchjd", "published")
    assert list(_timing._chosen("cagrad", names, 50, 10.0, before)) == ["mtrl", "published"]
    assert "torchjd cagrad, 50 tasks: skipped, would take about 112 s a call" in capsys.readouterr().err
    assert list(_timing._chosen("cagrad", names, 50, 20.0, before)) == list(names)


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem that is not DPP")
@pytest.mark.parametrize("method", ["cagrad", "mgda", "nash_mtl", "fairgrad", "imtl_g", "aligned_mtl"])
def test_implementations_of_a_method_agree_on_an_easy_problem(method: str) -> None:
    rows = jacobian("common", 4, seed=3)
    directions = []
    for name in ("mtrl", "torchjd", "published"):  # published_rl does not converge
        one = _implementations.implementation(name, method, 4)
        if one is not None:
            directions.append(one.combine(rows))
            if one.weights is not None:
                torch.testing.assert_close(
                    one.weights(rows @ rows.T).double() @ rows, directions[-1], rtol=2e-3, atol=2e-3
                )
    assert len(directions) > 1
    for other in directions[1:]:
        assert torch.nn.functional.cosine_similarity(other, directions[0], dim=0) > 0.995


@pytest.mark.dear
def test_accuracy_is_that_of_converged_solvers(tmp_path: Path) -> None:
    rows = rows_of(["--accuracy", "--tasks", "4", "--cases", "2"], tmp_path)
    assert all(tuple(row) == ACCURACY_KEYS for row in rows)
    assert {row["family"] for row in rows} == {*FAMILIES, *EXTREME}
    assert {row["constant"] for row in rows if row["method"] == "cagrad"} == {0.02, 0.1, 0.3, 0.5, 0.9, 1.0}
    assert {"cagrad", "conicgrad", "nash_mtl", "sdmgrad"} <= {row["method"] for row in rows}
    single = {row["method"] for row in rows if row["dtype"] == "single"}
    assert single == {row["method"] for row in rows}
    double = [row for row in rows if row["cases"] and row["dtype"] == "double"]
    # Bargains between gradients that cancel up to 1e-5 of their length are known to 1e-4, as they say.
    bargains = [
        row
        for row in double
        if row["family"] == "near_opposite_5" and row["method"] in ("fairgrad", "nash_mtl")
    ]
    assert all(row["worst"] < (1e-3 if row in bargains else 1e-5) for row in double), double


@pytest.mark.dear
def test_accuracy_measures_see_an_inaccurate_solver(tmp_path: Path) -> None:
    arguments = ["--accuracy", "--tasks", "10", "--cases", "1", "--methods", "cagrad"]
    rows = rows_of([*arguments, "--implementations", "mtrl", "published_rl"], tmp_path)
    chosen = [row for row in rows if row["family"] == "spread_3" and row["constant"] == 0.9]
    worst = {row["implementation"]: row["worst"] for row in chosen}
    assert worst["published_rl"] > 1e-2 > 1e-6 > worst["mtrl"]


def test_measures_vanish_at_solutions_known_in_closed_form() -> None:
    norms = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    gram = norms.square().diag()  # orthogonal gradients
    uneven = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
    assert _measures.bargaining_residual(gram, 0.3 / norms) == pytest.approx(0.0, abs=1e-12)
    assert _measures.bargaining_residual(gram, uneven) > 0.1
    alpha = _implementations.ALPHA
    assert _measures.fairness_residual(gram, norms ** (-2.0 * alpha / (1.0 + alpha))) < 1e-12
    assert _measures.fairness_residual(gram, uneven) > 0.1
    min_norm = norms**-2 / (norms**-2).sum()
    assert abs(_measures.simplex_gap(gram, min_norm)) < 1e-12
    assert _measures.simplex_gap(gram, uneven) > 0.1
    value = _measures.objective("mgda", gram, 5.0 * min_norm)
    assert value == pytest.approx(float((norms**-2).sum() ** -0.5))
    assert _measures.objective("mean", gram, uneven) is None
    assert _measures.objective("mgda", gram, torch.zeros(3)) is None


def test_a_widened_jacobian_keeps_its_gramian() -> None:
    rows = jacobian("conflicting", 5, seed=0)
    wide = widened(rows, 40_000, seed=0).double()
    assert wide.shape == (5, 40_000)
    error = (wide @ wide.T - rows @ rows.T).norm() / (rows @ rows.T).norm()
    assert error < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["combiner"], "unknown benchmark 'combiner'. Did you mean 'combiners'?"),
        (["combiners", "--task", "3"], "unknown flag '--task'. Did you mean '--tasks'?"),
        (["combiners", "--tasks", "x"], "invalid int value: 'x'"),
        (["combiners", "--tasks", "0"], "--tasks: must be positive; found 0"),
        (["combiners", "--repetitions", "0"], "--repetitions: must be positive; found 0"),
        (["nodes", "--tasks", "0"], "--tasks: must be positive; found 0"),
        (["update", "--threads", "-1"], "--threads: must be positive; found -1"),
        (["combiners", "--methods", "cagrat"], "unknown method 'cagrat'. Did you mean 'cagrad'?"),
        (["combiners", "--family", "spread"], "unknown --family 'spread'. Did you mean 'spread_"),
    ],
)
def test_mistakes_end_with_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_benchmark(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_the_users_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is known before anything is measured."""
    arguments = ["combiners", "--tasks", "2", "--methods", "mean", "--implementations", "mtrl", *TINY]
    assert main_benchmark([*arguments, "--json", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert f"cannot write '{tmp_path}': Is a directory. Name another file." in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("name", sorted(command.subcommands()))
def test_every_benchmark_keeps_the_contract(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"mtrl_benchmarks.{name}")
    assert all(isinstance(key, str) for key in module.ROW_KEYS)
    assert callable(module.run)
    assert main_benchmark([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert (module.__doc__ or "").splitlines()[0][:40] in text
    assert "--json" in text


def test_help_imports_no_torch() -> None:
    lines = [
        "import sys",
        "from mtrl_benchmarks.command import main as main_benchmark",
        "main_benchmark(['--help'])",
    ]
    lines += [f"main_benchmark([{name!r}, '--help'])" for name in command.subcommands()]
    lines.append("print([name for name in ('torch', 'numpy', 'gymnasium', 'mujoco') if name in sys.modules])")
    scripts = Path(report.__file__).parents[1]  # the benchmarks are not part of the installed package
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True, cwd=scripts
    )
    assert result.stdout.strip().endswith("[]")


def test_tables_align_and_json_has_no_nan(tmp_path: Path) -> None:
    rows: list[report.Row] = [
        {"name": "a", "count": 3, "ms": 1.23456},
        {"name": "longer", "count": None, "ms": math.nan},
    ]
    assert report.table(rows).splitlines() == [
        "| name   | count |    ms |",
        "| ------ | ----: | ----: |",
        "| a      |     3 | 1.235 |",
        "| longer |     - |   nan |",
    ]
    assert report.table([]) == "|  |\n|  |"
    report.write_json(tmp_path / "x.json", rows)
    assert json.loads((tmp_path / "x.json").read_text())["rows"][1] == {
        "name": "longer",
        "count": None,
        "ms": None,
    }


@pytest.mark.dear
def test_updates_of_presets_are_timed_with_all_their_settings(tmp_path: Path) -> None:
    flags = "update --preset sac_laptop ppo_laptop --methods preset mean --rounds 1 --device cpu"
    assert main_benchmark([*flags.split(), "--json", str(tmp_path / "b.json")]) == 0
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    found = [(row["implementation"], row["method"], row["width"], row["batch_per_task"]) for row in rows]
    assert found == [
        *[("mtrl, sac_laptop", method, "128, 256", 32) for method in ("preset", "mean")],
        *[("mtrl, ppo_laptop", method, "128, 256", 250) for method in ("preset", "mean")],
    ]
    assert all(row["ms"] > 0 for row in rows)


@pytest.mark.dear
def test_another_network_takes_the_place_of_a_presets(tmp_path: Path) -> None:
    flags = "update --preset ppo_laptop --network film --methods mean --rounds 1 --device cpu"
    assert main_benchmark([*flags.split(), "--json", str(tmp_path / "b.json")]) == 0
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert [row["implementation"] for row in rows] == ["mtrl, ppo_laptop, film"]
    assert _updates.of_preset("ppo_laptop", "mean", "film").network.architecture == "film"


def test_a_method_takes_the_place_of_both_of_a_preset() -> None:
    own = _updates.of_preset("toppo_mt10", "preset").methods()
    assert (own["critic"][0], own["critic"][1]["alpha"], own["actor"][0]) == ("fairgrad", 1.0, "pcgrad")
    changed = _updates.of_preset("toppo_mt10", "cagrad").methods()
    assert changed["critic"] == changed["actor"] == _updates.of_preset("mt10", "cagrad").methods()["actor"]


@pytest.mark.dear
def test_ppo_is_timed_on_minibatches_of_a_rollout_without_an_end(tmp_path: Path) -> None:
    flags = "update --agent ppo --network mlp moore --equal-size --methods mean cagrad --tasks 3 --widths 16"
    flags += f" --depth 2 --batch-per-task 8 --rounds 3 --device cpu --json {tmp_path / 'b.json'}"
    assert main_benchmark(flags.split()) == 0
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    found = {(row["implementation"], row["method"]): row for row in rows}
    names = ("ppo", "ppo, as large as mlp", "ppo, moore", "ppo, as large as moore")
    assert set(found) == {(f"mtrl, {name}", method) for name in names for method in ("mean", "cagrad")}
    # An actor of 8 outputs and one critic, both with 39 observations, a one-hot of 3 tasks, 2 layers.
    hidden = 2 * ((39 + 3 + 1) * 16 + 17 * 16)
    assert found["mtrl, ppo", "mean"]["parameters"] == hidden + 17 * 8 + 17
    problem = _updates.Problem(3, 16, 2, 8, torch.device("cpu"), agent="ppo")
    update, number = _updates.update_of(problem.config("mean"), 3, problem.device)
    agent = update.__self__  # type: ignore[attr-defined]
    before = agent.update.actor.flat.vector.detach().clone()
    for _ in range(5):
        update()
    assert (number, agent.updates, agent.behind()) == (1, 5, True)
    assert not torch.equal(agent.update.actor.flat.vector.detach(), before)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("agent", ["sac", "ppo"])
def test_directions_cost_at_most_a_third_more_than_the_mean_for_every_network(
    agent: str, tmp_path: Path
) -> None:
    flags = f"update --agent {agent} --methods mean cagrad --tasks 10 --rounds 5 --threads 1 --cpu-seconds"
    flags += f" --no-peers --device cpu --json {tmp_path / 'b.json'} --network"
    assert main_benchmark([*flags.split(), *NETWORKS]) == 0
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    ratios = {row["implementation"]: row["ratio_to_mean"] for row in rows if row["method"] == "cagrad"}
    assert len(ratios) == len(NETWORKS)
    assert all(ratio <= 1.3 for ratio in ratios.values()), ratios


@pytest.mark.dear
def test_networks_are_timed_beside_a_perceptron_of_their_size(tmp_path: Path) -> None:
    flags = "update --network moore film --equal-size --methods mean cagrad --tasks 3 --widths 16 --depth 2"
    flags += f" --batch-per-task 8 --rounds 1 --device cpu --json {tmp_path / 'b.json'}"
    assert main_benchmark(flags.split()) == 0
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    found = {(row["implementation"], row["method"]): row for row in rows}
    assert set(found) == {
        (f"mtrl, {prefix}{name}", method)
        for name in ("moore", "film")
        for prefix in ("", "as large as ")
        for method in ("mean", "cagrad")
    }
    for name in ("moore", "film"):
        own, equal = found[f"mtrl, {name}", "cagrad"], found[f"mtrl, as large as {name}", "cagrad"]
        assert equal["parameters"] == pytest.approx(own["parameters"], rel=0.05)
        width, tasks = equal["width"], 3
        # An actor of 8 outputs and two critics, each with a one-hot of the tasks and two hidden layers.
        actor = (39 + tasks + 1) * width + (width + 1) * width + (width + 1) * 8
        critic = (43 + tasks + 1) * width + (width + 1) * width + (width + 1)
        assert equal["parameters"] == actor + 2 * critic
        assert own["ratio_to_mean"] > 0


@pytest.mark.dear
def test_nodes_of_an_update_are_counted_without_a_gpu(tmp_path: Path) -> None:
    target = tmp_path / "nodes.json"
    flags = ["--tasks", "3", "--methods", "mean", "nash_mtl", "aligned_mtl", "--json", str(target)]
    assert main_benchmark(["nodes", *flags]) == 0
    rows = {row["method"]: row for row in json.loads(target.read_text())["rows"]}
    assert all(tuple(row) == NODE_KEYS for row in rows.values())
    mean, nash = rows["mean"], rows["nash_mtl"]
    assert nash["nodes"] > mean["nodes"] > 100
    assert mean["ratio_to_mean"] == 1.0
    # Three networks of three hidden layers, forward and backward, at 3 x 128 rows, are about 4 GFLOP.
    assert 2.0 < mean["gflop"] < 8.0
    assert mean["host_reads"] == mean["host_copies"] == 0
    assert rows["aligned_mtl"]["host_reads"] == 2  # its eigenvalues, for critics and actor
