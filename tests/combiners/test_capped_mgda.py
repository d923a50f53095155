"""Capped MGDA: its two ends, its optimality, zero gradients."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import cvxpy as cp
import pytest
import torch

from mtrl.combiners import make_combiner
from mtrl.combiners.solvers import hull
from mtrl.combiners.solvers.hull import shortest_capped
from tests.combiners.solvers.problems import KINDS, drawn, dtypes, gramian_of, sizes
from tests.helpers.cases import case
from tests.helpers.matrices import FAMILIES, jacobian


@pytest.mark.dear
@sizes
@dtypes
def test_weights_are_within_the_caps_and_no_others_make_a_shorter_vector(
    dtype: torch.dtype, tasks: int
) -> None:
    for (family, decades), cap in itertools.product(KINDS, (0.15, 0.4, 0.95)):
        gram = gramian_of(drawn(family, decades, tasks, seed=3), dtype)
        exact, highest = gram.double(), max(cap, 1.0 / tasks)
        w = shortest_capped(gram, cap, eps=torch.finfo(dtype).eps)
        with case(family, decades, cap):
            assert (w >= 0.0).all()
            assert float(w.max()) <= highest + 1e-12
            assert float(w.sum()) == pytest.approx(1.0, abs=1e-12)
            # The gap bounds how far |g_w|^2 / 2 is from the least: caps go to the smallest products first.
            least, left = 0.0, 1.0
            for product in sorted((exact @ w).tolist()):
                least += min(highest, left) * product
                left = max(left - highest, 0.0)
            assert float(w @ exact @ w - least) <= 1e-5 * float(w @ exact.diagonal())


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("tasks", [2, 7])
def test_a_cap_of_one_is_mgda_and_one_over_t_the_mean(family: str, tasks: int) -> None:
    rows = jacobian(family, tasks, seed=1)
    mgda = make_combiner("mgda", num_tasks=tasks).combine(rows)
    capped = make_combiner("capped_mgda", num_tasks=tasks, cap=1.0).combine(rows)
    torch.testing.assert_close(capped, mgda, rtol=1e-6, atol=1e-7 * float(rows.norm(dim=1).min()))
    for cap in (1.0 / tasks, 0.0):
        mean = make_combiner("capped_mgda", num_tasks=tasks, cap=cap).combine(rows)
        torch.testing.assert_close(mean, rows.mean(dim=0))


@pytest.mark.parametrize("cap", [0.2, 0.3, 0.55, 0.9])
def test_a_conic_solver_agrees_whatever_the_cap(cap: float) -> None:
    for seed in range(3):
        rows = jacobian("conflicting", 6, seed)
        combiner = make_combiner("capped_mgda", num_tasks=6, cap=cap)
        direction = combiner.combine(rows)
        w = cp.Variable(6, nonneg=True)
        shortest = cp.Problem(cp.Minimize(cp.norm(rows.numpy().T @ w)), [cp.sum(w) == 1.0, w <= cap])
        shortest.solve(solver=cp.CLARABEL)
        torch.testing.assert_close(torch.from_numpy(w.value) @ rows, direction, rtol=1e-4, atol=1e-5)
        assert float(direction.norm()) == pytest.approx(float(shortest.value), rel=1e-7)
        assert abs(float(combiner.metrics()["residual"])) < 1e-9


@pytest.mark.parametrize(("tasks", "is_mean"), [(2, True), (3, True), (4, False)])
def test_the_default_cap_is_the_mean_up_to_three_tasks_as_its_page_says(tasks: int, is_mean: bool) -> None:
    rows = jacobian("spread_2", tasks, seed=1)
    direction = make_combiner("capped_mgda", num_tasks=tasks).combine(rows)
    assert torch.allclose(direction, rows.mean(dim=0)) is is_mean


def test_a_larger_cap_never_makes_a_longer_vector() -> None:
    rows = jacobian("spread_2", 8, seed=0)
    caps = torch.linspace(0.125, 1.0, 15).tolist()
    lengths = [float(make_combiner("capped_mgda", num_tasks=8, cap=cap).combine(rows).norm()) for cap in caps]
    assert all(later <= earlier * (1.0 + 1e-9) for earlier, later in itertools.pairwise(lengths))
    assert lengths[-1] < 0.5 * lengths[0]


def test_a_solve_takes_the_steps_that_the_page_on_methods_states(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    (stated,) = re.findall(r"(\d+) to (\d+) steps bring the gap", page)
    taken: list[int] = []
    own = hull._stepped

    def counted(*arguments: Any) -> Any:
        taken[-1] += 1
        return own(*arguments)

    monkeypatch.setattr(hull, "_stepped", counted)
    for family in FAMILIES:
        for tasks, cap in ((3, 0.6), (10, 0.3), (50, 0.1)):
            taken.append(0)
            make_combiner("capped_mgda", num_tasks=tasks, cap=cap).combine(jacobian(family, tasks, seed=0))
    assert int(stated[0]) <= min(taken) <= max(taken) <= int(stated[1])


def test_zero_gradients_weigh_what_the_others_caps_leave() -> None:
    rows = jacobian("iid", 5, seed=3)
    rows[1] = rows[4] = 0.0
    others = [0, 2, 3]
    combiner = make_combiner("capped_mgda", num_tasks=5, cap=0.45)
    expected = make_combiner("capped_mgda", num_tasks=3, cap=0.45).combine(rows[others])
    torch.testing.assert_close(combiner.combine(rows), expected)
    torch.testing.assert_close(combiner.last_weights[[1, 4]], torch.zeros(2, dtype=torch.float64))
    combiner = make_combiner("capped_mgda", num_tasks=5, cap=0.25)  # three caps make 0.75
    torch.testing.assert_close(combiner.combine(rows), 0.25 * rows.sum(dim=0))
    left = torch.tensor([0.25, 0.125, 0.25, 0.25, 0.125], dtype=torch.float64)
    torch.testing.assert_close(combiner.last_weights, left)
    assert abs(float(combiner.metrics()["residual"])) < 1e-9


@pytest.mark.dear
def test_a_gradient_fades_out_without_a_jump() -> None:
    rows = jacobian("conflicting", 3, seed=2)
    steps = []
    for exponent in torch.linspace(-40.0, -8.0, 321).tolist():
        scaled = rows * torch.tensor([[1.0], [10.0**exponent], [1.0]], dtype=torch.float64)
        steps.append(make_combiner("capped_mgda", num_tasks=3, cap=0.8).combine(scaled))
    rows[1] = 0.0
    steps.insert(0, make_combiner("capped_mgda", num_tasks=3, cap=0.8).combine(rows))
    changes = torch.stack(steps).diff(dim=0).norm(dim=1)
    assert float(changes.max()) < 0.1 * float(rows.norm(dim=1).max())
    assert float((steps[-1] - steps[0]).norm()) > float(changes.max())


def test_caps_outside_their_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cap must be a finite number in \[0, 1\]; found 1.5"):
        make_combiner("capped_mgda", num_tasks=3, cap=1.5)
