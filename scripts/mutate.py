"""Removes each protection of docs/reliability.md in a copy by a small patch and checks that its test fails.

    python scripts/mutate.py            # all rows: minutes
    python scripts/mutate.py R2 R12     # some

A row is proven if its test passes with the protection and fails without it.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Mutation(NamedTuple):
    """A row of the table: file and text of its protection, the text without it, the test that must fail."""

    row: str
    file: str
    protection: str
    without: str
    test: str


_RUN, _DONE = "tests/training/test_run.py", "tests/training/test_completion.py"
_FAULTS, _LOST = "tests/training/test_faults.py", "tests/training/test_lost_files.py"
_SAVED, _CUT = "tests/runs/test_checkpoint_damage.py", "tests/runs/test_checkpoint_crash.py"
MUTATIONS = (
    Mutation("R1", "mtrl/training/stepper.py", 'self.rollout.load_state_dict(loop["rollout"])', "pass",
             f"{_RUN}::test_stopped_and_resumed_equals_uninterrupted[famo]"),
    Mutation("R2", "mtrl/runs/checkpoint.py", "os.replace(final, former)", "_delete(final)",
             f"{_CUT}::test_a_kill_at_any_moment_leaves_the_old_or_the_new_checkpoint_whole"),
    Mutation("R3", "mtrl/device/cpu.py", "torch.use_deterministic_algorithms(True)", "pass",
             "tests/training/test_results.py::test_a_deterministic_run_asks_for_kernels_that_are"),
    Mutation("R4", "mtrl/training/stepper.py", 'lost = terminated | truncated, infos["restarted"]',
             "lost = terminated | truncated, infos['restarted'] & False",
             f"{_FAULTS}::test_a_killed_worker_is_replaced_and_nothing_invented_is_stored"),
    Mutation("R5", "mtrl/envs/engine/pool.py", 'f"raised:\\n{text}"', '"failed"',
             "tests/envs/engine/test_faults.py::test_exception_arrives_with_traceback_and_task"),
    Mutation("R6", "mtrl/envs/engine/pool.py",
             "return 1000 * min(_SLICE_SECONDS, max(0.0, deadline - time.monotonic()))",
             "return None",
             "tests/envs/engine/test_restarts.py::test_a_stopped_worker_counts_as_hung"),
    Mutation("R7", "mtrl/envs/engine/vector.py", 'check_finite(reward, self._row_tasks, "reward")', "pass",
             "tests/envs/engine/test_vector.py::test_non_finite_simulation_names_the_task"),
    Mutation("R8", "mtrl/envs/engine/vector.py", 'check_finite(actions, self._row_tasks, "action")', "pass",
             "tests/envs/engine/test_vector.py::test_non_finite_action_reaches_no_environment"),
    Mutation("R9", "mtrl/training/loop.py", "for network, tasks in self.state.agent.failures().items():",
             "for network, tasks in {}.items():",
             f"{_FAULTS}::test_a_non_finite_reward_in_replay_stops_the_run_with_the_tasks_name"),
    Mutation("R10", "mtrl/combiners/solvers/surgery.py", "np.where(lengths > 0.0, 1.0 / lengths, 0.0)",
             "1.0 / lengths",
             "tests/combiners/test_every_method.py::test_zero_gradients_give_no_direction"),
    Mutation("R11", "mtrl/runs/checkpoint_writer.py",
             "if last or self._failures[kind] >= MAX_FAILURES:", "if False:",
             f"{_DONE}::test_log_lines_that_succeed_do_not_excuse_checkpoints_that_fail"),
    Mutation("R12", "mtrl/runs/checkpoint.py",
             'if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:', "if False:",
             f"{_SAVED}::test_no_flipped_bit_anywhere_goes_unnoticed"),
    Mutation("R13", "mtrl/runs/checkpoint.py", "weights_only=True, mmap", "weights_only=False, mmap",
             f"{_SAVED}::test_a_file_that_would_run_code_is_refused"),
    Mutation("R14", "mtrl/cli/__init__.py", 'code, message = exit_code(error), f"error: {error}"', "raise",
             "tests/cli/test_evaluate.py::test_mistake_in_evaluation"),
    Mutation("R15", "mtrl/training/loop.py", "raise _StopInEvaluation", "pass",
             "tests/training/test_signals.py::test_a_stop_in_an_evaluation_is_answered_before_its_next_env_step"),
    Mutation("R16", "mtrl/runs/lock.py", "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass",
             "tests/runs/test_directory.py::test_a_second_process_is_refused_with_pid_and_host"),
    Mutation("R17", "mtrl/runs/tensorboard.py",
             "None if run.resumed_at is None else run.resumed_at.vector_step + 1", "None",
             "tests/runs/test_logging.py::test_resume_drops_what_came_after_the_checkpoint"),
    Mutation("R18", "mtrl/runs/jsonl.py", 'if not raw.endswith(b"\\n"):', "if False:",
             "tests/runs/test_logging.py::test_resume_drops_a_broken_last_line"),
    Mutation("R19", "mtrl/agents/sac/replay.py", "= weakref.WeakSet()", "= set()",
             "tests/agents/sac/test_replay.py::test_rows_are_put_aside_only_as_long_as_somebody_may_read_them"),
    Mutation("R20", "mtrl/envs/engine/pool.py",
             "        _kill(process)\n    for process in processes:\n        process.wait()",
             "        process.poll()",
             "tests/envs/engine/test_faults.py::test_close_ends_all_workers_in_the_middle_of_a_step_too"),
    Mutation("R21", "mtrl/envs/engine/worker.py",
             "import numpy as np\n", "import numpy as np\nimport torch\n",
             "tests/envs/engine/test_faults.py::test_workers_load_no_torch"),
    Mutation("R22", "mtrl/envs/engine/episodes.py",
             'seeds.sequence(seed, "goals", key) for key in self._keys',
             'seeds.sequence(seed, "goals", (row,)) for row, key in enumerate(self._keys)',
             "tests/envs/engine/test_vector.py::test_goal_streams_do_not_depend_on_other_tasks_or_copies"),
    Mutation("R23", "mtrl/training/loop.py", "policy = self.state.agent.policy(self.eval_envs.envs_per_task)",
             "policy = self.state.agent.act", f"{_RUN}::test_evaluation_leaves_training_untouched"),
    Mutation("R24", "mtrl/training/stepper.py", 'infos["final_obs"] if ended.any() else next_obs', "next_obs",
             f"{_RUN}::test_the_true_final_observation_is_stored_at_truncation_and_bootstrapped"),
    Mutation("R25", "mtrl/device/random_stream.py", 'if state["device"] == self._device.type:', "if True:",
             "tests/agents/sac/test_agent.py::test_a_checkpoint_of_another_device_goes_on"),
    Mutation("R27", "mtrl/runs/checkpoint.py",
             "if before[name] != here.get(name)", "if False",
             f"{_SAVED}::test_another_suite_is_refused_unless_allowed"),
    Mutation("R28", "mtrl/agents/actor_critic.py", 'self.update.load_state_dict(state["update"])',
             'self.update.load_state_dict({k: v for k, v in state["update"].items() if "combiner" not in k}, '
             "strict=False)",
             "tests/agents/sac/test_agent.py::test_saved_state_continues_bit_for_bit[famo]"),
    Mutation("R29", "mtrl/runs/lock.py",
             "if found in (known, _UNKNOWN) or (found is None and path.name == OWNER_NAME):", "if True:",
             "tests/training/test_directory_lost.py::"
             "test_a_run_whose_directory_is_gone_stops_and_never_says_complete"),
    Mutation("R30", "mtrl/runs/jsonl.py", "            file.sync()\n", "",
             f"{_LOST}::test_the_log_is_on_disk_before_a_checkpoint_that_counts_its_lines"),
    Mutation("R31", "mtrl/training/best.py", "if start in lines:", "if False:",
             f"{_LOST}::test_the_best_policy_is_made_up_for_after_a_kill_while_it_was_saved"),
    Mutation("R32", "mtrl/config/files.py", "os.replace(temporary, path)", "path.write_bytes(content)",
             "tests/runs/test_run_files.py::test_no_file_outside_is_written_through_a_link_in_a_run"),
    Mutation("R33", "mtrl/export/policy.py",
             'if architecture is None and spec["architecture"] not in NETWORKS:', "if False:",
             "tests/export/test_strange_files.py::test_code_that_the_files_name_is_not_run"),
    Mutation("R34", "mtrl/config/files.py",
             'name = re.sub(r"[^\\w.,=+-]+", "-", text).strip("-").lstrip(".-") or "_"', "name = text",
             "tests/config/test_labels.py::test_names_from_a_configuration_stay_in_their_folder_and_apart"),
    Mutation("R35", "mtrl/runs/checkpoint.py", "            _check_archive(path)\n", "",
             f"{_SAVED}::test_a_compressed_part_is_refused_before_it_is_unpacked"),
    Mutation("R36", "mtrl/runs/lock.py", "            _lock_directory(self._held[0])\n", "",
             "tests/runs/test_directory.py::test_a_lock_file_that_is_deleted_lets_no_second_process_in"),
    Mutation("R37", "mtrl/sweep/driver.py",
             "            raise Stopped(number)", "            raise SystemExit(1)",
             "tests/sweep/test_driver.py::test_a_stop_signal_lets_running_trials_save"),
    Mutation("R38", "mtrl/envs/metaworld/simulation.py",
             "if 0 not in shape and first >= 0 and last + flat.itemsize <= flat.nbytes:", "if True:",
             "tests/envs/metaworld/test_views.py::test_a_view_that_does_not_lie_in_its_array_is_refused"),
)  # fmt: skip


def passes(folder: Path, test: str) -> tuple[bool, str]:
    """Run one test in a copy of the project; return whether it passed, and the end of its output."""
    options = ["-q", "-x", "-p", "no:cacheprovider", "-n0", "--timeout=150", "-m", "not gpu"]
    command = [sys.executable, "-B", "-m", "pytest", *options, test]
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{folder / 'scripts'}"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    # 0: passed, 1: failed. Otherwise no test ran, which proves nothing.
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{test}: pytest ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr}")
    return done.returncode == 0, done.stdout[-1500:]


def check(folder: Path, mutation: Mutation) -> str:
    """Return 'proven', or why the row is not proven."""
    path = folder / mutation.file
    original = path.read_text(encoding="utf-8")
    if original.count(mutation.protection) != 1:
        return f"{mutation.file} does not have the text of the protection once: {mutation.protection}"
    good, output = passes(folder, mutation.test)
    if not good:
        return f"the test fails with the protection\n{output}"
    path.write_text(original.replace(mutation.protection, mutation.without), encoding="utf-8")
    try:
        good, _ = passes(folder, mutation.test)
    finally:
        path.write_text(original, encoding="utf-8")
    return "NOT NOTICED" if good else "proven"


def main() -> int:
    """Check the rows named on the command line, or all."""
    parser = argparse.ArgumentParser(
        description="Remove protections of docs/reliability.md: tests must fail."
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows to check, such as R10; all by default")
    rows = parser.parse_args().rows
    if unknown := sorted(set(rows) - {mutation.row for mutation in MUTATIONS}):
        known = ", ".join(dict.fromkeys(mutation.row for mutation in MUTATIONS))
        parser.error(f"no row {', '.join(unknown)}. Rows: {known}.")
    chosen = [mutation for mutation in MUTATIONS if not rows or mutation.row in rows]
    began, bad = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in ("mtrl", "scripts", "tests", "configs"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, folder / name)
        for mutation in chosen:
            verdict = check(folder, mutation)
            bad += verdict != "proven"
            print(f"{mutation.row}: {verdict}  ({mutation.test})", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} rows proven in {time.monotonic() - began:.0f} s")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
