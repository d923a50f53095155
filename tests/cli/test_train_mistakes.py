"""Mistakes on the command line of a training: one sentence, exit code 2, nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mtrl.cli.train import main as main_train
from tests.cli.conftest import Calls

MISTAKES = [
    ("--agent ppo --sac.gamma .9", "sac.gamma is not read by the agent ppo; found --sac.gamma. Leave it out"),
    ("--agent ppo --train.warmup-steps 9", "train.warmup_steps is not read by the agent ppo; found"),
    ("--ppo.epochs 3", "ppo.epochs is not read by the agent sac; found --ppo.epochs. Leave it out."),
    (
        "--network.value-bins 9",
        "network.value_bins is read only if network.critic_loss is categorical or histogram; here it is "
        "squared; found --network.value-bins. Leave it out.",
    ),
    ("--agent ppo --network.value-high=5", "network.value_high is not read by the agent ppo; found"),
    ("--agent ppo --sac.lr-hold-fraction .5", "sac.lr_hold_fraction is not read by the agent ppo; found"),
    ("--network moore --network.no-actor-layer-norm", "is not read by the network moore; found --network.no"),
    ("--network.identity-width 8", "if network.task_identity is embedding or file; here it is one_hot;"),
    ("--sac.lr-hold-fraction .5", "if sac.final_lr_fraction is below 1; here it is 1.0; found"),
    (
        "--method cagrad --method.critic famo --method.actor mean",
        "method is not read where critic and actor have methods of their own; found --method. Leave it out.",
    ),
    ("--method.critic famo --method.actor cagrad --method.weights 1", "method.weights is not read where"),
    ("--method.c .3", "--method mean has the options --method.weights; found --method.c."),
    ("--method pcgrad --method.c .3", "--method pcgrad has no options; found --method.c."),
    ("--sac.gama 3", "unknown flag '--sac.gama'. Did you mean '--sac.gamma'?"),
    ("--gamma 3", "unknown flag '--gamma'. Did you mean '--sac.gamma'?"),
    ("--critic-method cagrad", "unknown flag '--critic-method'. Did you mean '--method.critic'?"),
    ("--lr 3e-4", "Did you mean --sac.actor-lr or --sac.critic-lr or --sac.temperature-lr"),
    ("--device cuda:1", "CUDA_VISIBLE_DEVICES=1 and device cuda."),
    ("--tasks reach-v3,push-v3", "Separate tasks by spaces: --tasks reach-v3 push-v3."),
    ("--batch-per-tsk=3", "Did you mean '--sac.batch-per-task'?"),
    ("--stesp 3", "Did you mean '--steps'?"),
    ("--no-such-thing-at-all", "unknown flag '--no-such-thing-at-all'."),
    ("--sac.gamma x", "sac.gamma must be a finite number; found 'x' (text)."),
    ("--seed 2026-30-11", "seed must be an integer; found '2026-30-11' (text)."),
    ("--preset=2026-30-11", "unknown preset '2026-30-11'."),
    ("--seed 010", "seed must be an integer; found '010' (text)."),
    ("--steps 1:00:00", "steps must be an integer; found '1:00:00' (text)."),
    ("--seed 2e3", "seed must be an integer; found 2000.0. Write 2000."),
    ("--env.num-workers x", "env.num_workers must be an integer or null; found 'x' (text)."),
    ("--sac.gamma", "error: expected a value after --sac.gamma; found none. See --help."),
    ("--sac.gamma --seed 3", "error: expected a value after --sac.gamma; found none."),
    ("stray", "expected a flag before 'stray', as in --method cagrad."),
    ("--sac.temperature shard", "value for sac.temperature 'shard'. Did you mean 'shared'?"),
    ("--device gpu", "unknown value for device 'gpu'. Did you mean 'cpu'? Valid: auto, cpu, cuda."),
    ("--method cagard", "unknown method 'cagard'. Did you mean 'cagrad'? Valid: adatask,"),
    ("--method", "error: expected a value after --method; found none."),
    ("--method cagrad --method.cc 3", "unknown flag '--method.cc'. Did you mean '--method.c'?"),
    ("--method cagrad --method.c x", "method_options.c must be a finite number; found 'x' (text)."),
    ("--method cagrad --method.c -3", "method cagrad: c "),
    ("--method famo", "famo needs losses of at least 0, and the actor's may be negative."),
    ("--method famo", "--method.shift minimum"),
    ("--method.actor famo", "--method.actor.shift minimum (actor_method_options={'shift': 'minimum'})"),
    (
        "--method momentum --method.base famo",
        "--method.base.shift minimum (method_options={'base_options': {'shift': 'minimum'}})",
    ),
    ("--method imtl_g --method.c 3", "--method imtl_g has no options; found --method.c."),
    ("--method.actor cagrad --method.actor.d 3", "--method.actor cagrad has the options --method.actor.c, "),
    ("--method cagrad --method.actor.c 3", "--method.actor has no options; found --method.actor.c."),
    ("--suite metaword", "unknown suite 'metaword'. Did you mean 'metaworld'?"),
    ("--suite.reward-version v3", "Did you mean 'v2'?"),
    ("--agent sca", "unknown agent 'sca'. Did you mean 'sac'?"),
    ("--network.architecture mpl", "unknown network 'mpl'. Did you mean 'mlp'?"),
    ("--method absent.py:Mine", "absent.py' for the method."),
    ("--method absent_module:Mine", "no module 'absent_module'"),
    *(
        (f"--{kind} os:path", f"a {kind} must be a class or a function; found a module, 'os:path'.")
        for kind in ("agent", "method", "network", "suite")
    ),
    ("--ppo.gamma -.5 --agent ppo", "ppo.gamma must be at least 0; found -0.5."),
    ("--preset mt01", "unknown preset 'mt01'. Did you mean"),
    ("--preset absent.yaml", "cannot read absent.yaml: No such file or directory."),
    ("--tasks push-v2", "'push-v2'. Did you mean 'push-v3'?"),
    ("--tasks mt10", "'mt10'. Did you mean 'MT10'?"),
    ("--tasks", "tasks must name at least one; found none."),
    ("--tasks MT10 reach-v3", "cannot be combined"),
    ("--tasks reach-v3 --tasks=push-v3", "--tasks is given 2 times; write all its values after one --tasks."),
    ("--tasks reach-v3 reach-v3", "reach-v3 more than once"),
    ("--sac.batch-per-task -3", "sac.batch_per_task must be positive; found -3."),
    ("--sac.gamma nan", "sac.gamma must be a finite number; found 'nan' (text)."),
    ("--steps 0", "steps must be positive"),
    ("--train.warmup-steps 100", "sac.batch_per_task must be at most"),
    ("--resume somewhere --seed 3", "--resume continues a run with its own configuration"),
    ("--seed 3 --resume=somewhere", "found --seed"),
    ("--resume", "error: expected a value after --resume; found none."),
    ("--allow-version-mismatch", "needs a checkpoint; found neither --resume nor --resume-or-start"),
    ("--resume somewhere --steps -5", "--steps must be positive; found -5."),
    ("--resume somewhere --steps x", "--steps must be an integer or null; found 'x' (text)."),
]


@pytest.mark.parametrize(
    "line",
    ["--run-dir", "--resume-or-start", "--resume", "--preset", "--env.num-workers", "--seed=3 --run-dir"],
)
@pytest.mark.parametrize("attached", [False, True])
def test_the_value_of_a_shell_variable_that_is_not_set_is_refused(
    line: str, attached: bool, calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    *before, flag = line.split()
    assert main_train([*before, f"{flag}="] if attached else [*before, flag, ""], tasks=("MT10",)) == 2
    assert f"expected a value after {flag}; found an empty one" in capsys.readouterr().err
    assert (calls.made, os.listdir(tmp_path)) == ([], [])


@pytest.mark.parametrize(("line", "message"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_mistake_gives_one_message_code_2_and_leaves_nothing(
    line: str, message: str, calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_train(line.split(), preset="mt10", tasks=("MT10",)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert calls.made == []
    assert os.listdir(tmp_path) == []
