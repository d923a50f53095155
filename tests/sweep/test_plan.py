"""The trials of a sweep and what it says of them, without Ray."""

from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mtrl.config.presets import build_config, config_to_dict
from mtrl.errors import UserError
from mtrl.report.load import Run, read_run
from mtrl.sweep.plan import Resources, State, Trial, parse_grid, parse_settings, plan, progress
from mtrl.sweep.show import Watch, show_plan
from tests.helpers.written_runs import evaluation_line, write_run

LAYERS = ({"tasks": ("reach-v3",), "steps": 20},)


def _plan(
    out: Path,
    *grid: str,
    methods: tuple[str, ...] = ("mean", "cagrad"),
    seeds: int = 2,
    fixed: tuple[str, ...] = (),
) -> list[Trial]:
    settings = parse_settings(fixed)
    return plan(
        LAYERS, methods=methods, seeds=range(seeds), settings=settings, grid=parse_grid(grid), out=out
    )


def _written(trial: Trial, **changes: Any) -> None:
    """Leave what a run of this trial leaves: two evaluations, of .25 and .75, in five seconds each."""
    config = config_to_dict(trial.config)
    write_run(trial.path, {"reach-v3": (0.25, 0.75)}, config={**config, **changes})


class _Stop(Exception):
    pass


def _stop_at(seen: list[State]) -> Callable[[State], None]:
    def watch(state: State) -> None:
        seen.append(state)
        raise _Stop

    return watch


def test_every_method_seed_and_point_of_the_grid_is_a_trial(tmp_path: Path) -> None:
    trials = _plan(tmp_path, "sac.gamma=.98,.99", fixed=("sac.tau=0.01",))
    assert [trial.name for trial in trials] == [
        f"{method},sac.gamma={gamma}/seed{seed}"
        for method in ("mean", "cagrad")
        for gamma in (0.98, 0.99)
        for seed in (0, 1)
    ]
    last = trials[-1]
    assert (last.config.method, last.config.seed, last.config.sac.gamma, last.config.sac.tau) == (
        "cagrad",
        1,
        0.99,
        0.01,
    )
    assert last.path == tmp_path / last.name


def test_trials_of_two_methods_are_named_after_both(tmp_path: Path) -> None:
    trials = _plan(tmp_path, fixed=("critic_method=nash_mtl",), seeds=1)
    assert [trial.name for trial in trials] == ["nash_mtl-mean/seed0", "nash_mtl-cagrad/seed0"]
    varied = _plan(tmp_path, "critic_method=nash_mtl,pcgrad", methods=("mean",), seeds=1)
    assert [trial.name for trial in varied] == [
        "mean,critic_method=nash_mtl/seed0",
        "mean,critic_method=pcgrad/seed0",
    ]


def test_seeds_of_all_settings_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = pytest.importorskip("mtrl.sweep.driver")
    monkeypatch.setattr("ray.nodes", list)  # Ray is not started
    seen: list[State] = []
    # The driver shows its queue and is stopped before anything starts.
    with pytest.raises(_Stop):
        driver.run(_plan(tmp_path), tmp_path, Resources(1, 0, 1), retries=0, watch=_stop_at(seen))
    assert list(seen[0].waiting) == ["mean/seed0", "cagrad/seed0", "mean/seed1", "cagrad/seed1"]


def test_an_option_of_one_method_leaves_the_others_alone(tmp_path: Path) -> None:
    trials = _plan(tmp_path, "cagrad.c=0.2,0.4", seeds=1)
    assert [trial.name for trial in trials] == ["mean/seed0", "cagrad,c=0.2/seed0", "cagrad,c=0.4/seed0"]
    assert [trial.config.method_options.get("c") for trial in trials] == [None, 0.2, 0.4]


@pytest.mark.parametrize("text", ["sac.gamma", "sac.gamma=", "=1", "sac.gamma=[1"])
def test_what_is_no_grid_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--grid takes KEY=VALUE"):
        parse_grid([text])


def test_options_of_a_method_of_ones_own_are_varied_beside_another(tmp_path: Path) -> None:
    own = "mtrl.combiners.cagrad:CAGrad"
    trials = _plan(tmp_path, f"{own}.c=0.2,0.4", methods=("mean", own), seeds=1)
    assert [(trial.config.method, trial.config.method_options.get("c")) for trial in trials] == [
        ("mean", None), (own, 0.2), (own, 0.4)
    ]  # fmt: skip


def test_constants_have_one_value_and_no_part_in_the_name(tmp_path: Path) -> None:
    trials = _plan(tmp_path, fixed=("cagrad.c=0.2", "sac.tau=0.01"), seeds=1)
    assert [trial.name for trial in trials] == ["mean/seed0", "cagrad/seed0"]
    assert [trial.config.method_options.get("c") for trial in trials] == [None, 0.2]
    with pytest.raises(UserError, match=r"--set takes one value per key; found several for sac\.tau"):
        _plan(tmp_path, fixed=("sac.tau=0.01,0.02",))


def test_an_option_of_one_method_wins_over_that_of_all_in_any_order(tmp_path: Path) -> None:
    def options(*grid: str, fixed: tuple[str, ...] = ()) -> dict[str, Any]:
        trials = _plan(tmp_path, *grid, fixed=fixed, methods=("cagrad", "conicgrad"), seeds=1)
        return {trial.name: trial.config.method_options["c"] for trial in trials}

    both = {"cagrad/seed0": 0.5, "conicgrad/seed0": 0.4}
    assert options(fixed=("cagrad.c=0.5", "method_options.c=0.4")) == both
    assert options(fixed=("method_options.c=0.4", "cagrad.c=0.5")) == both
    assert options(fixed=("cagrad.c=0.5", "method_options={c: 0.4}")) == both
    expected = {"cagrad/seed0": 0.5, "conicgrad,method_options.c=0.3/seed0": 0.3}
    assert options("method_options.c=0.3", fixed=("cagrad.c=0.5",)) == expected
    expected = {"cagrad,c=0.1/seed0": 0.1, "cagrad,c=0.2/seed0": 0.2, "conicgrad/seed0": 0.4}
    assert options("cagrad.c=0.1,0.2", fixed=("method_options.c=0.4",)) == expected


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    ("owner", "name", "option", "value"),
    [
        ("critic_method", "cagrad", "critic_method_options.c", 0.11),
        ("network.architecture", "moore", "network.options.experts", 3),
        ("smoothed.base", "cagrad", "smoothed.base_options.c", 0.11),
    ],
)
def test_options_hold_in_any_order_with_the_name_of_their_plug_in(
    owner: str, name: str, option: str, value: Any, order: int, tmp_path: Path
) -> None:
    keys = (f"{option}={value}", f"{owner}={name}")[::order]
    for fixed, grid in ((keys, ()), ((), keys), (keys[:1], keys[1:])):
        (trial,) = _plan(tmp_path, *grid, fixed=fixed, methods=("smoothed",), seeds=1)
        place: Any = config_to_dict(trial.config)
        for part in option.replace("smoothed.", "method_options.").split("."):
            place = place[part]
        assert place == value


def test_an_option_that_one_value_of_a_grid_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"method 'pcgrad' has no options; found 'c' = 0\.11"):
        _plan(tmp_path, "critic_method=cagrad,pcgrad", fixed=("critic_method_options.c=.11",))


def test_a_key_in_both_flags_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sac\.gamma is in --set and in --grid"):
        _plan(tmp_path, "sac.gamma=.98,.99", fixed=("sac.gamma=.9",))


def test_the_folder_of_a_sweep_is_one_name_and_a_tilde_is_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mtrl.cli.sweep import main

    seen: list[Path] = []

    def stop(*_: Any, out: Path, **__: Any) -> None:
        seen.append(out)
        raise UserError("seen")

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("mtrl.sweep.plan.plan", stop)
    for flags in ([], ["--out=~/x"]):
        assert main(["--tasks", "../../x/A-v5", "--methods", "mean", *flags]) == 2
    assert seen == [Path("runs/x-a-v5-sweep"), tmp_path / "x"]


def test_lists_and_words_are_values_of_a_grid() -> None:
    assert parse_grid(["train.sinks=[tensorboard, wandb]", "device=cpu,cuda"]) == {
        "train.sinks": [["tensorboard", "wandb"]],
        "device": ["cpu", "cuda"],
    }


def test_numbers_of_a_grid_are_read_as_those_of_a_preset(tmp_path: Path) -> None:
    trials = _plan(tmp_path, "sac.actor_lr=3e-4,.5e-3", methods=("mean",), seeds=1)
    assert [trial.config.sac.actor_lr for trial in trials] == [0.0003, 0.0005]
    with pytest.raises(
        UserError, match=r"must be one of warn, stop, off; found false\. Write it in quotes: 'off'"
    ):
        _plan(tmp_path, fixed=("train.on_divergence=off",))


@pytest.mark.parametrize("setting", ["seed=5", "method=pcgrad", "tasks=[push-v3]"])
def test_what_flags_choose_is_no_setting(setting: str, tmp_path: Path) -> None:
    key = setting.partition("=")[0]
    with pytest.raises(UserError, match=f"--seeds and --first-seed, .*found {key} in --set or --grid"):
        _plan(tmp_path, fixed=(setting,))
    with pytest.raises(UserError, match=f"found {key} in --set or --grid"):
        _plan(tmp_path, setting)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("sac.gama=0.9", "sac.gama"),
        ("sac.gamma=2", "sac.gamma"),
        ("sac.gamma=.9,.9", "twice"),
        ("network.value_bins=9,21", "network.value_bins is read only if .* found it in --set or --grid"),
    ],
)
def test_mistakes_are_found_before_anything_starts(grid: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        _plan(tmp_path, grid)


def test_a_folder_with_another_run_is_refused_and_the_same_run_is_not(tmp_path: Path) -> None:
    (trial,) = _plan(tmp_path, methods=("mean",), seeds=1)
    _written(trial)
    assert progress(_plan(tmp_path, methods=("mean",), seeds=1)[0]) == (20, True, 10.0, 0.75)
    with pytest.raises(UserError, match=r"another configuration: sac\.gamma 0\.99 \(here 0\.9\)"):
        _plan(tmp_path, methods=("mean",), seeds=1, fixed=("sac.gamma=0.9",))


def test_a_finished_run_goes_on_where_the_sweep_is_longer(tmp_path: Path) -> None:
    (trial,) = _plan(tmp_path, methods=("mean",), seeds=1)
    _written(trial)
    longer = trial._replace(config=build_config(*LAYERS, {"method": "mean", "seed": 0, "steps": 40}))
    assert progress(longer) == (20, False, 10.0, 0.75)


def test_the_plan_tells_what_is_left_and_what_it_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = _plan(tmp_path)
    _written(trials[0])
    show_plan(trials, Resources(cpus=2, gpus=0, parallel=1))
    shown = capsys.readouterr().out
    assert "4 trials of 2 CPUs" in shown
    assert "60 of 80 vector steps left" in shown
    assert "--seeds 1 measures" in shown  # nothing is known of cagrad's pace
    _written(trials[2])
    show_plan(trials, Resources(cpus=2, gpus=0, parallel=1))
    # Two trials of 20 steps at half a second each.
    assert f"About {20 / 3600:.2f} hours" in capsys.readouterr().out


def test_progress_without_a_terminal_is_a_line_per_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = _plan(tmp_path)
    names = [trial.name for trial in trials]
    with Watch(trials) as watch:
        watch(State(tuple(names[1:]), (names[0],), (), {}))
        watch(State(tuple(names[1:]), (names[0],), (), {}))
        _written(trials[0])
        watch(State((), (names[1],), (names[0],), {names[2]: "broken"}))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("1 of 4 trials finished, 1 running, 1 failed; 25% of 80 vector steps")


def test_progress_reads_a_run_again_only_after_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = _plan(tmp_path, methods=("mean",), seeds=1)[0]
    _written(trial)
    read: list[Path] = []

    def counted(path: Path) -> Run:
        read.append(path)
        return read_run(path)

    monkeypatch.setattr("mtrl.sweep.plan.read_run", counted)
    assert [progress(trial).success for _ in range(3)] == [0.75] * 3
    assert len(read) == 1
    with open(trial.path / "evaluations.jsonl", "a") as file:
        file.write(json.dumps(evaluation_line(30, {"reach-v3": 0.5})) + "\n")
    assert progress(trial).success == 0.5
    longer = trial._replace(config=dataclasses.replace(trial.config, steps=1_000))
    assert not progress(longer).finished
    assert len(read) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--steps 200", "--steps is a setting of the trials; a sweep takes it as --set steps=VALUE"),
        (
            "--sac.actor-lr=1e-3",
            "--sac.actor-lr is a setting of the trials; a sweep takes it as --set sac.a",
        ),
        ("--method cagrad", "unknown flag '--method'. Did you mean '--methods'?"),
        ("--seed 3", "unknown flag '--seed'. Did you mean '--seeds'?"),
        ("--network moore", "as --set network.architecture=VALUE"),
        ("--suite.pad-observations", "as --set suite_options.pad_observations=VALUE"),
        ("--sac.no-act-on-snapshot", "as --set sac.act_on_snapshot=VALUE"),
        ("--method.critic famo", "as --set critic_method=VALUE"),
        ("--method.c .4", "as --set METHOD.c=VALUE"),
        ("--method.critic.c .4", "as --set critic_method_options.c=VALUE"),
        ("--method.base cagrad", "as --set METHOD.base=VALUE"),
        ("--method.base.c .4", "as --set METHOD.base_options.c=VALUE"),
    ],
)
def test_flags_of_a_training_are_told_how_a_sweep_takes_them(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from mtrl.cli.sweep import main

    assert main(["--tasks", "MT10", "--methods", "mean", *words.split()]) == 2
    assert message in capsys.readouterr().err


def test_a_sweep_that_is_shorter_than_its_runs_is_refused(tmp_path: Path) -> None:
    (trial,) = _plan(tmp_path, methods=("mean",), seeds=1)
    _written(trial)
    with pytest.raises(UserError, match=r"seed0' has done 20 vector steps; found steps=10\. Give at least"):
        _plan(tmp_path, methods=("mean",), seeds=1, fixed=("steps=10",))
    _plan(tmp_path, methods=("mean",), seeds=1, fixed=("steps=30",))


def test_output_that_is_lost_ends_no_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    trials = _plan(tmp_path)
    monkeypatch.setattr("builtins.print", full)
    for live in (None, SimpleNamespace(start=full, update=full, stop=full)):
        watch = Watch(trials)
        watch._live = live  # type: ignore[assignment]
        with watch:
            watch(State((), (), (), {trials[0].name: "broken"}))
