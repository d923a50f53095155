"""Which runs share a table and which a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mtrl.errors import UserError
from mtrl.report.comparison import compare, group
from mtrl.report.load import Run, read_run
from mtrl.report.paired import paired_table
from mtrl.report.stats import Interval
from mtrl.report.tables import runs_table
from tests.helpers.written_runs import VERSIONS, write_run

SUCCESS = {"reach-v3": (0.5, 1.0), "push-v3": (0.0, 0.5)}


def _run(path: Path, **changes: Any) -> Run:
    return read_run(write_run(path, SUCCESS, **changes))


def test_seeds_share_a_row_and_methods_do_not(tmp_path: Path) -> None:
    runs = [
        _run(tmp_path / f"{method}{seed}", method=method, seed=seed)
        for seed in (1, 0)
        for method in ("mean", "cagrad")
    ]
    groups = group(runs)
    assert [(row.label, [run.seed for run in row.runs]) for row in groups] == [
        ("mean", [0, 1]),
        ("cagrad", [0, 1]),
    ]


def test_options_and_other_settings_make_rows_and_labels(tmp_path: Path) -> None:
    settings = [
        {"method_options": {"c": 0.4}},
        {"method_options": {"c": 0.9}},
        {"method_options": {"c": 0.9}, "sac": {"gamma": 0.9}},
    ]
    runs = [_run(tmp_path / str(i), method="cagrad", config=config) for i, config in enumerate(settings)]
    assert [row.label for row in group(runs)] == [
        "c=0.4, gamma=0.99",
        "c=0.9, gamma=0.99",
        "c=0.9, gamma=0.9",
    ]
    runs.append(_run(tmp_path / "mean", method="mean"))
    assert [row.label for row in group(runs)][1:] == [
        "cagrad (c=0.9, gamma=0.99)",
        "cagrad (c=0.9, gamma=0.9)",
        "mean (gamma=0.99)",
    ]


def test_an_option_that_is_not_set_is_as_one_that_a_run_of_before_did_not_have(tmp_path: Path) -> None:
    options: list[dict[str, Any]] = [
        {"c": 0.4},
        {"c": 0.4, "preference": []},
        {"c": 0.4, "preference": [1.0, 2.0]},
    ]
    runs = [
        _run(tmp_path / str(seed), method="cagrad", seed=seed, config={"method_options": chosen})
        for seed, chosen in enumerate(options)
    ]
    groups = group(runs)
    assert [[run.seed for run in row.runs] for row in groups] == [[0, 1], [2]]
    assert groups[1].label == "preference=1.0, 2.0"


def test_networks_are_named_and_their_options_where_one_network_has_several(tmp_path: Path) -> None:
    def run(name: str, architecture: str, **options: int) -> Run:
        network = {"architecture": architecture, "options": options}
        return read_run(write_run(tmp_path / name, {"a": [0.5]}, config={"network": network}))

    runs = [run("0", "mlp"), run("1", "moore", experts=4), run("2", "care", experts=6, embedding=50)]
    assert [row.label for row in group(runs)] == [
        "architecture=mlp", "architecture=moore", "architecture=care"
    ]  # fmt: skip
    runs.append(run("3", "moore", experts=6))
    assert [row.label for row in group(runs)][1:] == [
        "architecture=moore, experts=4", "architecture=care", "architecture=moore, experts=6"
    ]  # fmt: skip


def test_options_that_tell_no_rows_apart_are_not_in_the_labels(tmp_path: Path) -> None:
    methods = {"mean": {}, "cagrad": {"c": 0.1, "rescale": 1}, "sdmgrad": {"lam": 0.6}}
    runs = [
        _run(tmp_path / method, method=method, config={"method_options": options})
        for method, options in methods.items()
    ]
    groups = group(runs)
    assert [row.label for row in groups] == ["mean", "cagrad", "sdmgrad"]
    assert [row.options for row in groups] == ["", "c=0.1, rescale=1", "lam=0.6"]
    runs.append(
        _run(tmp_path / "other", method="cagrad", config={"method_options": {"c": 0.4, "rescale": 1}})
    )
    assert [row.label for row in group(runs)] == ["mean", "cagrad (c=0.1)", "sdmgrad", "cagrad (c=0.4)"]


def test_methods_of_both_networks_name_a_row_and_no_run_of_the_plain_mean(tmp_path: Path) -> None:
    both = {"critic_method": "nash_mtl", "actor_method": "pcgrad", "critic_method_options": {"max_norm": 1}}
    other = {**both, "critic_method_options": {"max_norm": 2}}
    runs = [_run(tmp_path / str(number), config=config) for number, config in enumerate(({}, both))]
    groups = group(runs)
    assert [row.label for row in groups] == ["mean", "nash_mtl / pcgrad"]
    assert [row.method for row in groups] == ["mean", "nash_mtl / pcgrad"]
    runs.append(_run(tmp_path / "other", config=other))
    assert [row.label for row in group(runs)][1:] == [
        "nash_mtl / pcgrad (critic.max_norm=1)",
        "nash_mtl / pcgrad (critic.max_norm=2)",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"versions": {**VERSIONS, "mujoco": "3.6.0"}}, r"version of mujoco: 3\.3\.0 and 3\.6\.0"),
        ({"config": {"steps": 10}}, "steps: 20 and 10"),
        (
            {"config": {"suite_options": {"reward_version": "v1"}}},
            r"suite_options\.reward_version: v2 and v1",
        ),
        ({"config": {"env": {"num_goals": 50, "max_episode_steps": 150}}}, r"max_episode_steps: 500 and 150"),
        ({"config": {"eval": {"interval": 5}}}, r"eval\.interval: not recorded and 5"),
        ({"config": {"suite": "gymnasium"}}, "suite: metaworld and gymnasium"),
    ],
)
def test_other_protocols_are_refused_with_the_difference(changes: Any, message: str, tmp_path: Path) -> None:
    runs = [_run(tmp_path / "a"), _run(tmp_path / "b", seed=1, **changes)]
    with pytest.raises(UserError, match=message):
        group(runs)


def test_the_length_of_training_episodes_is_the_learners_and_that_of_evaluations_the_protocols(
    tmp_path: Path,
) -> None:
    env = {"num_goals": 50, "max_episode_steps": 200}
    short = {"env": env, "eval": {"max_episode_steps": 500}}
    runs = [_run(tmp_path / "a"), _run(tmp_path / "b", config=short)]
    assert [row.label for row in group(runs)] == [
        "max_episode_steps=500",
        "max_episode_steps=200",
    ]
    with pytest.raises(UserError, match=r"eval\.max_episode_steps: 500 and 200"):
        group([runs[0], _run(tmp_path / "c", config={"env": env})])


def test_other_tasks_are_refused(tmp_path: Path) -> None:
    other = read_run(write_run(tmp_path / "b", {"reach-v3": (0.0, 0.0)}, seed=1))
    with pytest.raises(UserError, match="tasks: reach-v3, push-v3 and reach-v3"):
        group([_run(tmp_path / "a"), other])


def test_one_seed_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="same seed 3"):
        group([_run(tmp_path / "a", seed=3), _run(tmp_path / "b", seed=3)])


def test_machine_and_bookkeeping_do_not_matter(tmp_path: Path) -> None:
    other = {
        "versions": {**VERSIONS, "cpu": "another", "torch": "2.7.0"},
        "config": {"device": "cuda", "train": {"log_interval": 7}},
    }
    (row,) = group([_run(tmp_path / "a"), _run(tmp_path / "b", seed=1, **other)])
    assert row.label == "mean"


def test_a_benchmark_and_its_tasks_spelt_out_are_one_protocol(tmp_path: Path) -> None:
    (row,) = group([_run(tmp_path / "a", config={"tasks": ["MT2"]}), _run(tmp_path / "b", seed=1)])
    assert len(row.runs) == 2


def _without_flag(path: Path, line: int) -> None:
    """Make an evaluation one in which the environment of push-v3 gave no flag, since it solved nothing."""
    file = path / "evaluations.jsonl"
    lines = [json.loads(text) for text in file.read_text().splitlines()]
    lines[line]["tasks"]["push-v3"] |= {"success": None, "success_last": None}
    lines[line]["mean_success"] = lines[line]["mean_success_last"] = None
    file.write_text("".join(json.dumps(one) + "\n" for one in lines))


def test_an_evaluation_without_a_flag_solved_nothing_if_the_task_gives_flags(tmp_path: Path) -> None:
    """Some environments give the flag only where an episode is solved."""
    for method, rates in {"mean": (0.5, 0.5), "cagrad": (0.25, 0.75)}.items():
        for seed in (0, 1):
            given = {"reach-v3": (1.0, 1.0), "push-v3": rates}
            write_run(tmp_path / f"{method}{seed}", given, method=method, seed=seed)
    _without_flag(tmp_path / "cagrad0", 0)
    _without_flag(tmp_path / "cagrad1", 1)
    comparison = compare([tmp_path])
    assert comparison.measure == "success"
    (cagrad,) = (row for row in comparison.rows if row.method == "cagrad")
    assert comparison.curves(cagrad).scores[:, :, 1].tolist() == [[0.0, 0.75], [0.25, 0.0]]
    assert comparison.final(cagrad, "success_last")[1].tolist() == [0.5, 0.0]
    table = paired_table(comparison)
    assert table is not None
    # Areas of the mean over both tasks: (1 + 0 + 1 + .75) / 4 and (1 + .25 + 1 + 0) / 4, less .75.
    area = dict(zip(table.columns, table.rows[0], strict=True))["area under curve"]
    assert isinstance(area, Interval)
    assert area.value == pytest.approx((0.6875 + 0.5625) / 2 - 0.75)
    runs = [
        dict(zip(runs_table(comparison).columns, row, strict=True)) for row in runs_table(comparison).rows
    ]
    assert [row["last success"] for row in runs if row["method"] == "cagrad"] == [0.875, 0.5]


def test_a_task_that_never_gives_a_flag_has_no_success(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / str(seed), {"reach-v3": (1.0,), "push-v3": (0.0,)}, seed=seed)
        _without_flag(tmp_path / str(seed), 0)
    assert compare([tmp_path]).measure == "return"
    with pytest.raises(UserError, match="no success rates"):
        compare([tmp_path], measure="success")
