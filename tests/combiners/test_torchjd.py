"""The bridge to TorchJD: what the library returns, its weights, messages where it is absent or misused."""

from __future__ import annotations

import sys

import pytest
import torch
from torchjd import aggregation

from mtrl.combiners import make_combiner
from tests.helpers.matrices import jacobian


@pytest.mark.parametrize(
    ("aggregator", "arguments", "direct"),
    [
        ("UPGrad", "", aggregation.UPGrad()),
        ("MGDA", "", aggregation.MGDA()),
        ("CAGrad", "c=0.4, norm_eps=0.0", aggregation.CAGrad(c=0.4, norm_eps=0.0)),
        ("AlignedMTL", "scale_mode='median'", aggregation.AlignedMTL(scale_mode="median")),
        ("ConFIG", "", aggregation.ConFIG()),
        ("TrimmedMean", "trim_number=1", aggregation.TrimmedMean(trim_number=1)),
        ("GradVac", "", aggregation.GradVac()),
    ],
)
def test_directions_are_those_of_the_library(
    aggregator: str, arguments: str, direct: aggregation.Aggregator
) -> None:
    combiner = make_combiner("torchjd", num_tasks=5, aggregator=aggregator, arguments=arguments)
    for seed in range(3):
        rows = jacobian("iid", 5, seed)
        torch.manual_seed(seed)  # some draw an order
        expected = direct(rows)
        torch.manual_seed(seed)
        assert torch.equal(combiner.combine(rows), expected)


@pytest.mark.parametrize("aggregator", ["UPGrad", "ConFIG", "AlignedMTL", "Constant"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_lists_of_numbers_are_tensors_of_the_gradients_dtype(aggregator: str, dtype: torch.dtype) -> None:
    key = "weights" if aggregator == "Constant" else "pref_vector"
    rows = jacobian("iid", 3, seed=0).to(dtype)
    direct = getattr(aggregation, aggregator)(**{key: torch.tensor([1.0, 2.0, 3.0], dtype=dtype)})
    combiner = make_combiner("torchjd", num_tasks=3, aggregator=aggregator, arguments=f"{key}=[1, 2.0, 3]")
    assert torch.equal(combiner.combine(rows), direct(rows))


@pytest.mark.parametrize("aggregator", ["UPGrad", "AlignedMTL", "ConFIG", "MGDA"])
def test_half_precision_is_combined_in_single_precision(aggregator: str) -> None:
    rows = jacobian("iid", 3, seed=0).half()
    combiner = make_combiner("torchjd", num_tasks=3, aggregator=aggregator)
    assert torch.equal(combiner.combine(rows), getattr(aggregation, aggregator)()(rows.float()).half())


def test_weights_are_reported_where_the_aggregator_weighs_tasks() -> None:
    rows = jacobian("iid", 4, seed=0)
    combiner = make_combiner("torchjd", num_tasks=4, aggregator="UPGrad")
    direction = combiner.combine(rows)
    torch.testing.assert_close(combiner.metrics()["weights"].double() @ rows, direction, rtol=1e-5, atol=1e-6)
    unweighted = make_combiner("torchjd", num_tasks=4, aggregator="ConFIG")
    unweighted.combine(rows)
    assert torch.equal(unweighted.last_weights, torch.full((4,), 0.25))


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem that is not DPP")
def test_the_number_of_tasks_is_filled_in_and_reset_forgets_state() -> None:
    arguments = "update_weights_every=5, max_norm=0.0"
    combiner = make_combiner("torchjd", num_tasks=3, aggregator="NashMTL", arguments=arguments)
    combiner.combine(jacobian("iid", 3, seed=1))
    kept = combiner.last_weights.clone()
    other = jacobian("iid", 3, seed=2)
    combiner.combine(other)
    assert torch.equal(combiner.last_weights, kept)
    combiner.reset()
    combiner.combine(other)
    assert not torch.equal(combiner.last_weights, kept)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"aggregator": "upgrade"},
            r"unknown aggregator 'upgrade'. Did you mean 'UPGrad'\? Valid: AlignedMTL, ",
        ),
        ({"aggregator": "CAGrad"}, r"arguments must fit CAGrad\(c: float.*missing 1 required.*'c'"),
        ({"arguments": "radius=1"}, r"arguments must fit UPGrad\(.*found 'radius=1'"),
        ({"arguments": "0.5"}, r"arguments must read like 'c=0.4, norm_eps=0.0'; found '0.5'"),
        ({"arguments": "pref_vector=0.5"}, r"arguments must fit UPGrad\(.*found 'pref_vector=0.5'"),
        ({"arguments": "pref_vector=[1.0, 'x']"}, r"arguments must fit UPGrad\(.*TorchJD says"),
        ({"aggregator": "Constant", "arguments": "weights='x'"}, r"arguments must fit Constant\(weights"),
        ({"aggregator": "Constant", "arguments": "weights=[1, 2, 3]"}, r"Constant\(.* and num_tasks=2"),
        ({"arguments": "pref_vector=[1, 2, 3]"}, r"UPGrad\(.* and num_tasks=2"),
        ({"aggregator": "TrimmedMean", "arguments": "trim_number=1"}, r"TrimmedMean\(.* and num_tasks=2"),
        ({"arguments": "c="}, "arguments must read like"),
        ({"arguments": "c=open('x')"}, "arguments must read like"),
    ],
)
def test_mistakes_are_refused_with_what_is_valid(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_combiner("torchjd", num_tasks=2, **options)


def test_making_the_method_draws_nothing_from_the_global_stream() -> None:
    torch.manual_seed(3)
    make_combiner("torchjd", num_tasks=4, aggregator="Random")
    drawn = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(2))


def test_without_the_package_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(ValueError, match=r"needs the package torchjd: pip install 'mtrl-torch\[torchjd\]'"):
        make_combiner("torchjd", num_tasks=2)


def test_without_a_solver_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise ImportError("quadprog is missing")

    monkeypatch.setattr(aggregation.UPGrad, "__init__", refuse)
    with pytest.raises(ValueError, match=r"UPGrad needs more packages: pip install .*quadprog is missing"):
        make_combiner("torchjd", num_tasks=2)
