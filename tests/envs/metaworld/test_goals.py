from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import metaworld
import numpy as np
import pytest
from numpy.typing import NDArray

from mtrl.envs.metaworld.simulation import generate_goals
from mtrl.envs.metaworld.suite import goal_sets
from mtrl.envs.metaworld.tasks import BENCHMARKS
from tests.helpers.faults import full_disk

TASKS = ("reach-v3", "push-v3")
pytestmark = pytest.mark.meta
Goals = dict[str, NDArray[np.float64]]


class Generator:
    """Recognisable goals, and a record of the calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[str, ...], int]] = []

    def __call__(self, names: Sequence[str], seed: int) -> Goals:
        self.calls.append((tuple(names), seed))
        return {name: np.full((50, 3), 10.0 * seed + i) for i, name in enumerate(names)}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "mtrl" / "goals"


def upstream_goals(benchmark: metaworld.Benchmark) -> Goals:
    found: dict[str, list[NDArray[np.float64]]] = {}
    for task in benchmark.train_tasks:
        found.setdefault(task.env_name, []).append(pickle.loads(task.data)["rand_vec"])
    return {name: np.array(vectors) for name, vectors in found.items()}


def test_generating_leaves_the_global_random_state_alone() -> None:
    np.random.seed(7)
    before = np.random.get_state(legacy=True)
    generate_goals(["reach-v3"], 3)
    assert repr(np.random.get_state(legacy=True)) == repr(before)


def test_goals_of_the_first_tasks_do_not_depend_on_the_rest() -> None:
    whole = generate_goals(["reach-v3", "push-v3"], 3)
    np.testing.assert_array_equal(generate_goals(["reach-v3"], 3)["reach-v3"], whole["reach-v3"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MT10", "MT25", "MT50"])
def test_goals_of_the_larger_benchmarks_equal_upstream(name: str) -> None:
    ours = generate_goals(BENCHMARKS[name], 11)
    theirs = upstream_goals(getattr(metaworld, name)(seed=11))
    for task in theirs:
        np.testing.assert_array_equal(ours[task], theirs[task])


def test_second_start_reads_the_cache(cache: Path) -> None:
    generate = Generator()
    first = goal_sets(TASKS, 4, "1", generate)
    second = goal_sets(TASKS, 4, "1", generate)
    assert generate.calls == [(("reach-v3", "push-v3"), 4)]
    for name in TASKS:
        np.testing.assert_array_equal(first[name], second[name])


def test_seed_and_version_have_goals_of_their_own(cache: Path) -> None:
    generate = Generator()
    goal_sets(TASKS, 4, "1", generate)
    assert goal_sets(TASKS, 5, "1", generate)["reach-v3"][0, 0] == 50.0
    goal_sets(TASKS, 4, "2", generate)
    assert len(generate.calls) == 3


def test_another_list_reuses_the_tasks_already_generated(cache: Path) -> None:
    generate = Generator()
    goal_sets(TASKS, 0, "1", generate)
    goal_sets(["push-v3"], 0, "1", generate)
    assert len(generate.calls) == 1


@pytest.mark.parametrize(
    "damage", ["truncated", "flipped", "encrypted", "array", "pickled", "wrong shape", "empty"]
)
def test_damaged_file_is_generated_again(cache: Path, damage: str) -> None:
    generate = Generator()
    good = goal_sets(TASKS, 0, "1", generate)
    (path,) = cache.rglob("push-v3.npz")
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "encrypted":  # says one bit of the archive's directory
        content[content.rfind(b"PK\x01\x02") + 8] ^= 1
        path.write_bytes(content)
    elif damage == "array":  # instead of an archive of arrays
        with path.open("wb") as file:
            np.save(file, np.zeros((50, 3)))
    elif damage == "pickled":
        np.savez(path, rand_vec=np.array([{"no": "objects"}], dtype=object))
    elif damage == "wrong shape":
        np.savez(path, rand_vec=np.zeros((49, 3)))
    else:
        path.write_bytes(b"")
    with pytest.warns(RuntimeWarning, match=r"goal cache .*push-v3\.npz is unusable"):
        again = goal_sets(TASKS, 0, "1", generate)
    np.testing.assert_array_equal(again["push-v3"], good["push-v3"])
    goal_sets(TASKS, 0, "1", generate)
    assert len(generate.calls) == 2


def test_unwritable_cache_costs_a_warning_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "not-a-folder"
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    with pytest.warns(RuntimeWarning, match="cannot be written"):
        found = goal_sets(TASKS, 0, "1", Generator())
    assert found["push-v3"].shape == (50, 3)


def test_without_a_home_goals_go_to_the_temporary_files_and_no_folder_is_named_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # what it does without HOME and passwd entry
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.warns(RuntimeWarning, match="no home folder.*Set HOME"):
        goal_sets(TASKS, 0, "1", Generator())
    assert not (tmp_path / "~").exists()
    assert len(list(tmp_path.rglob("push-v3.npz"))) == 1


def test_failed_write_leaves_neither_a_partial_nor_a_temporary_file(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.replace", full_disk)
    with pytest.warns(RuntimeWarning, match="No space left"):
        goal_sets(TASKS, 0, "1", Generator())
    assert [path for path in cache.rglob("*") if path.is_file()] == []
