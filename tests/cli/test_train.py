from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

import mtrl
from mtrl.cli.train import main as main_train
from mtrl.combiners import COMBINERS
from mtrl.config import Config
from mtrl.config.presets import build_config, load_preset
from mtrl.errors import EnvironmentFailure, NonFiniteError, UserError
from mtrl.networks.base import NETWORKS
from mtrl.training.resolve import resolve, written_out
from tests.cli.conftest import Calls, helped, train_mt10

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def test_without_flags_the_scripts_preset_is_trained(calls: Calls) -> None:
    assert train_mt10() == 0
    assert calls.config == resolve(Config())
    assert calls.run_dir is None


def test_flags_reach_every_section(calls: Calls) -> None:
    flags = "--sac.gamma 0.98 --network.critic_width 512 --train.num-threads=2 --steps 1000 --seed 3"
    flags += " --device cpu --env.envs_per_task 2 --replay.reward-scaling ema --eval.interval=7"
    flags += " --network.actor-layer-norm --sac.max-grad-norm None --run_dir here"
    assert train_mt10(*flags.split()) == 0
    config = calls.config
    assert (config.sac.gamma, config.network.critic_width, config.train.num_threads) == (0.98, 512, 2)
    assert (config.steps, config.seed, config.device, config.env.envs_per_task) == (1000, 3, "cpu", 2)
    assert (config.replay.reward_scaling, config.eval.interval) == ("ema", 7)
    assert (config.network.actor_layer_norm, config.sac.max_grad_norm) == (True, None)
    assert calls.run_dir == Path("here")


def test_flag_beats_preset_beats_default(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("sac: {gamma: 0.9, tau: 0.1}\n")
    assert train_mt10("--preset", "mine.yaml", "--sac.tau", "0.2") == 0
    sac = calls.config.sac
    assert (sac.gamma, sac.tau, sac.batch_per_task) == (0.9, 0.2, 128)


@pytest.mark.parametrize("preset", ["overnight", "mine.yaml"])
def test_a_preset_of_other_tasks_is_refused_by_the_script_of_one_benchmark(
    calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str], preset: str
) -> None:
    (tmp_path / "mine.yaml").write_text("tasks: [reach-v3]\n")
    assert train_mt10("--preset", preset) == 2
    assert re.search(r"trains MT10; .* names (MT50|reach-v3)\. .*--tasks", capsys.readouterr().err)
    for line in (["--preset", preset, "--tasks", "MT10"], ["--preset=laptop"]):
        assert train_mt10(*line) == 0
        assert calls.config.tasks == ("MT10",)
        calls.made.clear()


def test_tasks_may_be_replaced(calls: Calls) -> None:
    assert train_mt10("--tasks", "reach-v3", "push-v3", "--method", "cagrad", "--seed", "4") == 0
    assert calls.config.tasks == ("reach-v3", "push-v3")


def test_method_options_are_typed_and_complete(calls: Calls) -> None:
    assert train_mt10("--method", "cagrad", "--method.c", "0.4") == 0
    assert calls.config.method == "cagrad"
    assert calls.config.method_options == {"c": 0.4, "rescale": 1, "solver": "exact", "preference": ()}


def test_preset_supplies_method_options_below_the_flags(calls: Calls) -> None:
    assert main_train(["--method=cagrad"], preset="mt50", tasks=("MT50",)) == 0
    assert calls.config.method_options["c"] == 0.5
    calls.made.clear()
    assert main_train(["--method=cagrad", "--method.c", "0.7"], preset="mt50", tasks=("MT50",)) == 0
    assert calls.config.method_options["c"] == 0.7


def test_each_network_may_have_a_method_of_its_own(calls: Calls) -> None:
    line = "--method.critic cagrad --method.critic.c .3 --method.actor fs_mtl --method.actor.rho 0.1"
    assert train_mt10(*line.split()) == 0
    config = calls.config
    assert (config.method, config.critic_method, config.actor_method) == ("mean", "cagrad", "fs_mtl")
    assert config.critic_method_options["c"] == 0.3
    assert config.actor_method_options["rho"] == 0.1


def test_a_method_on_the_command_line_replaces_both_of_a_preset(calls: Calls) -> None:
    assert train_mt10("--preset", "toppo_mt10", "--method", "cagrad") == 0
    assert calls.config.methods() == dict.fromkeys(("critic", "actor"), ("cagrad", ANY))


def test_the_base_of_a_wrapper_has_options_of_its_own(
    calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    def base_options(*arguments: str) -> Any:
        calls.made.clear()
        assert main_train(["--method", "fs_mtl", *arguments], preset="mt50", tasks=("MT50",)) == 0
        return calls.config.method_options["base_options"]

    assert base_options()["c"] == 0.5  # the preset's for cagrad, which is the default base
    assert base_options("--method.base", "cagrad", "--method.base.c", ".4")["c"] == 0.4
    assert base_options("--method.base", "fairgrad", "--method.base.alpha", "2")["alpha"] == 2.0
    assert main_train(["--method=fs_mtl", "--method.base=mgda", "--method.base.c=1", "--tasks=reach-v3"]) == 2
    assert "--method.base mgda has no options; found --method.base.c." in capsys.readouterr().err


def test_a_wrapper_within_a_wrapper_has_flags_too(calls: Calls) -> None:
    line = "--method affinity --method.base momentum --method.base.base uw --method.base.base.shift minimum"
    assert train_mt10(*line.split()) == 0
    inner = calls.config.method_options["base_options"]
    assert (inner["base"], inner["base_options"]["shift"]) == ("uw", "minimum")
    calls.made.clear()
    line = "--method momentum --method.base smoothed --method.base.base cagrad --method.base.base.c .3"
    assert train_mt10(*line.split()) == 0
    assert calls.config.method_options["base_options"]["base_options"]["c"] == 0.3


def test_an_order_of_tasks_is_given_as_numbers(calls: Calls) -> None:
    order = [str(task) for task in (3, 0, 6, 1, 9, 5, 2, 8, 7, 4)]
    assert train_mt10("--method", "sdmgrad_os", "--method.order", *order, "--method.sampled", "3") == 0
    assert calls.config.method_options == {"sampled": 3, "lam": 0.6, "order": (3, 0, 6, 1, 9, 5, 2, 8, 7, 4)}


def test_the_suite_has_typed_options(calls: Calls) -> None:
    assert train_mt10("--suite", "metaworld", "--suite.reward-version", "v1") == 0
    assert calls.config.suite_options == {"reward_version": "v1"}


def _without_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if not key.endswith("_options")}


def _defaults(name: str) -> dict[str, Any]:
    """What a method is made with if nobody says more than how losses are shifted."""
    signature = inspect.signature(COMBINERS[name]).parameters
    options = {key: value.default for key, value in signature.items() if key != "num_tasks"}
    return options | ({"shift": "minimum"} if "shift" in options else {})


@pytest.mark.parametrize("name", ["cagrad", "sdmgrad_os", "dropgrad", "fs_mtl", "famo", "nash_mtl", "mean"])
def test_a_method_is_trainable_with_its_defaults(calls: Calls, name: str) -> None:
    expected = _defaults(name)
    assert train_mt10("--method", name, *(["--method.shift", "minimum"] if "shift" in expected else [])) == 0
    assert _without_options(calls.config.method_options) == _without_options(expected)


def test_every_method_has_its_defaults_in_a_configuration() -> None:
    for name in COMBINERS:
        expected = _defaults(name)
        shift = {"method_options": {"shift": "minimum"}} if "shift" in expected else {}
        config = resolve(build_config(load_preset("mt10"), {"method": name, **shift}))
        assert _without_options(config.method_options) == _without_options(expected), name


def test_print_config_prints_what_would_be_trained(
    calls: Calls, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = ["--preset", "mt10_fast", "--method", "cagrad", "--sac.gamma", "0.9"]
    assert train_mt10(*line, "--print-config") == 0
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    assert calls.made == []
    assert train_mt10(*line) == 0
    assert written_out(build_config(load_preset("mine.yaml"))) == calls.config


def test_train_script_without_tasks_says_what_to_give(
    calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_train([]) == 2
    assert "--tasks MT10" in capsys.readouterr().err
    assert main_train(["--preset", "laptop", "--method", "cagrad"]) == 0
    assert calls.config.tasks == ("MT10",)
    calls.made.clear()
    assert main_train(["--preset", "mt50"]) == 0
    assert calls.config.tasks == ("MT50",)
    calls.made.clear()
    assert main_train(["--tasks", "reach-v3"]) == 0
    assert calls.config.tasks == ("reach-v3",)


def test_one_command_for_jobs_that_are_requeued_takes_every_flag_and_one_directory(
    calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_mt10("--resume-or-start", "runs/a", "--seed", "3") == 0
    assert train_mt10("--resume-or-start", "runs/a", "--seed", "3", "--allow-version-mismatch") == 0
    assert calls.made == [
        (
            "resume_or_start",
            (resolve(Config(seed=3)), Path("runs/a")),
            {"allow_version_mismatch": any_version, "trust": False},
        )
        for any_version in (False, True)
    ]
    assert train_mt10("--resume-or-start", "runs/a", "--run-dir", "runs/b") == 2
    assert "found --run-dir too" in capsys.readouterr().err


def test_resume_passes_only_what_was_given(calls: Calls) -> None:
    assert train_mt10("--resume", "runs/a") == 0
    assert train_mt10("--resume=runs/a", "--steps", "500", "--device", "cpu") == 0
    assert train_mt10("--resume", "runs/a", "--allow-version-mismatch") == 0
    given = [(None, None, False), (500, "cpu", False), (None, None, True)]
    assert calls.made == [
        (
            "resume_training",
            (Path("runs/a"),),
            {"steps": steps, "device": device, "allow_version_mismatch": allowed, "trust": False},
        )
        for steps, device, allowed in given
    ]


@pytest.mark.parametrize(
    ("ending", "code", "message"),
    [
        (143, 143, ""),
        (130, 130, ""),
        (UserError("no GPU"), 2, "error: no GPU\n"),
        (NonFiniteError("reward of push-v3"), 1, "error: reward of push-v3\n"),
        (EnvironmentFailure("worker 3 died"), 75, "error: worker 3 died\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_exit_code_tells_how_training_ended(
    calls: Calls, capsys: pytest.CaptureFixture[str], ending: int | BaseException, code: int, message: str
) -> None:
    calls.ending = ending
    assert train_mt10() == code
    assert capsys.readouterr().err == message


def test_a_defect_of_the_program_is_not_disguised_as_a_mistake(calls: Calls) -> None:
    calls.ending = ZeroDivisionError("a defect")
    with pytest.raises(ZeroDivisionError):
        train_mt10()


def test_help_shows_flags_with_their_meaning_and_lists_the_methods(
    calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    text = helped(capsys, "--preset", "laptop")
    for words in ("--sac.gamma FLOAT Discount per env step. (default: 0.99)", "--preset {brc,", "--resume"):
        assert words in text
    assert "(default: laptop)" in text and "Actor and critics (SAC: two, PPO: one)." in text
    for name, method in COMBINERS.items():
        assert f"{name} {(method.__doc__ or '').splitlines()[0]}" in text
    for name, network in NETWORKS.items():
        assert f"{name} {(network.__doc__ or '').splitlines()[0]}" in text
    assert "--method.c " not in text


def test_help_shows_no_default_for_tasks_where_they_must_be_given(
    calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, shown in (([], "required"), (["--preset", "laptop"], "default: MT10")):
        assert main_train([*flags, "--help"]) == 0
        text = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert f"a preset may name them. ({shown})" in text
    assert "(default: MT10)" in helped(capsys)
    assert main_train(["--method", "mean"]) == 2
    assert "no tasks: give --tasks MT10" in capsys.readouterr().err


def test_help_of_a_method_shows_its_options_and_no_others(
    calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    text = helped(capsys, "--preset", "mt50", "--method", "cagrad")
    assert re.search(r"--method\.c FLOAT Radius of the ball [^(]*\([^)]*\)\. \(default: 0\.5\)", text)
    assert "--method.rho" not in text
    assert "methods:" not in text
    assert "--method.alpha" in helped(capsys, "--method", "fairgrad")


@pytest.mark.parametrize(
    ("network", "option", "value", "message"),
    [
        ("moore", "experts", "0", "network moore: experts must be positive; found 0"),
        ("soft_modules", "layers", "x", "network.options.layers must be an integer; found 'x'"),
        ("paco", "sets", "2.5", "network.options.sets must be an integer; found 2.5"),
        ("care", "expert", "3", "Did you mean '--network.options.experts'"),
    ],
)
def test_options_of_the_library_s_networks_have_help_types_and_ranges(
    calls: Calls, capsys: pytest.CaptureFixture[str], network: str, option: str, value: str, message: str
) -> None:
    if option != "expert":
        assert f"--network.options.{option} INT" in helped(capsys, "--network", network)
    assert train_mt10("--network", network, f"--network.options.{option}", value) == 2
    assert message in capsys.readouterr().err


def test_a_network_refuses_identities_that_it_does_not_place(
    calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_mt10("--network", "moore", "--network.task-identity", "none") == 2
    assert "network.task_identity must be one_hot for the network moore" in capsys.readouterr().err
    assert train_mt10("--network", "paco", "--network.heads", "per_task") == 2
    assert "needs an architecture with task heads (mlp); found paco" in capsys.readouterr().err


def test_help_shows_the_values_of_the_preset(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    text = helped(capsys, "--preset", "mtrl_compat")
    assert re.search(r"--env\.max-episode-steps INT [^(]*\([^)]*\)\. \(default: 150\)", text)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert train_mt10("--version") == 0
    assert capsys.readouterr().out == f"mtrl {mtrl.__version__}\n"


def test_none_as_a_networks_method_is_that_of_both(calls: Calls) -> None:
    assert train_mt10("--method", "cagrad", "--method.critic", "none") == 0
    assert calls.config.critic_method is None
