from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

import pytest
import yaml

from mtrl.combiners import COMBINERS
from mtrl.config.schema import Config, NetworkConfig
from mtrl.errors import UserError
from mtrl.networks import identity
from mtrl.networks.simba import SimBa
from mtrl.registry import REQUIRED, Option, Registry, options_of
from mtrl.training.resolve import bound_to_policy, complete

DEFAULT = 25
Solver = Literal["newton", "sgd"]


class Example:
    """Does things: in one line.

    More text with a colon: here.

    Args:
        num_tasks: not an option.
        radius: how far, relative to the
            mean: a norm.
        steps (int): how often.
        solver: which one.
        bound: an upper bound, in units of c: metres.

    Raises:
        ValueError: never.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        num_tasks: int,
        radius: float = -0.5,
        steps: int = DEFAULT,
        solver: Solver = "sgd",
        bound: float | None = None,
        **others: Any,
    ) -> None: ...


class Child(Example):
    """Inherits all arguments.

    Args:
        steps: explained anew.
    """


@dataclass(kw_only=True, eq=False)
class OwnNetwork(SimBa):
    """A dataclass that inherits fields whose types this module does not import."""

    steps: int = DEFAULT


def in_order(*, order: tuple[int, ...] = ()) -> None: ...


THINGS = Registry("thing", {}, given=("num_tasks", "inputs"))
THINGS.register("example", Example)
THINGS.register("child", Child)
THINGS.register("in_order", in_order)


def test_options_are_the_arguments_that_nobody_else_gives() -> None:
    options = THINGS.options("example")
    assert list(options.values()) == [
        Option("width", int, REQUIRED, ""),
        Option("radius", float, -0.5, "how far, relative to the mean: a norm."),
        Option("steps", int, 25, "how often."),
        Option("solver", Solver, "sgd", "which one."),
        Option("bound", float | None, None, "an upper bound, in units of c: metres."),
    ]
    child = THINGS.options("child")
    assert child == options | {"steps": Option("steps", int, 25, "explained anew.")}


def test_fields_of_a_dataclass_have_the_types_of_the_module_that_names_them() -> None:
    types = {name: option.annotation for name, option in options_of(OwnNetwork).items()}
    assert types == {name: get_type_hints(OwnNetwork)[name] for name in types}
    assert types["steps"] is int and types["identity_rows"] == identity.Rows | None


def test_types_come_from_defaults_where_there_are_no_annotations() -> None:
    def build(width=3, act="relu", extra=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        ...

    types = {name: option.annotation for name, option in options_of(build).items()}
    assert types == {"width": int, "act": str, "extra": Any}


@pytest.mark.parametrize("annotation", ["Tensr", "identity.Rowz", "int | 'str'", "list[int"])
def test_a_type_that_cannot_be_read_is_a_mistake_of_the_plug_in(annotation: str) -> None:
    def build(width: int = 3) -> None: ...

    build.__annotations__["width"] = annotation
    with pytest.raises(UserError, match="the types of build's arguments cannot be read"):
        options_of(build)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 3, "steps": 2.5}, r"opts\.steps must be an integer; found 2\.5"),
        ({"width": 3, "solver": "sdg"}, "value for opts.solver 'sdg'. Did you mean 'sgd'"),
        ({"width": 3, "stesp": 1}, "unknown option of thing 'example' 'stesp'. Did you mean 'steps'"),
        ({}, "opts: thing 'example' needs a value for its option 'width'; found none"),
    ],
)
def test_mistakes_name_option_rule_and_value(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        complete(THINGS, "example", values, "opts")


@pytest.mark.parametrize("order", [[], [2, 0, 1], (2, 0, 1)])
def test_a_list_from_yaml_is_a_tuple_of_the_type_that_is_annotated(order: Any) -> None:
    completed = complete(THINGS, "in_order", {"order": order}, "opts")
    assert completed == {"order": tuple(order)}
    with pytest.raises(UserError, match=r"opts\.order must be a list, each an integer; found 'b' \(text\)"):
        complete(THINGS, "in_order", {"order": [0, "b"]}, "opts")


@pytest.mark.parametrize("name", sorted(COMBINERS))
def test_every_option_of_every_method_is_explained(name: str) -> None:
    assert COMBINERS[name].__doc__
    undocumented = [o.name for o in COMBINERS.options(name).values() if not o.help]
    assert undocumented == []


def test_a_plug_in_may_say_that_the_engine_gives_it_more_and_its_subclass_is_another_plug_in() -> None:
    class Built(Example):
        given = ("width", "radius")

    class Own(Built): ...

    things = Registry("thing", {}, given=("num_tasks", "inputs"))
    things.register("built", Built)
    things.register("own", Own)
    assert list(things.options("built")) == ["steps", "solver", "bound"]
    assert list(things.options("own")) == list(THINGS.options("example"))


class Odd:
    """Options whose types files do not have, or that their defaults do not fit."""

    def __init__(  # type: ignore[no-untyped-def]
        self,
        *,
        num_tasks: int,
        bare=(64, 64),  # noqa: ANN001
        span: tuple[float, float] = (-1.0, 1.0),
        pairs: tuple[tuple[int, int], ...] = ((0, 1),),
        width: int = None,  # type: ignore[assignment]  # noqa: RUF013
        bound: float = math.inf,
        links: list[tuple[int, int]] = [],  # noqa: B006
        spans: dict[str, tuple[float, float]] = {},  # noqa: B006
        either: list[float] | tuple[float, float] = (0.0, 1.0),
    ) -> None: ...


def test_options_are_the_same_after_they_were_written_to_a_file() -> None:
    THINGS.register("odd", Odd)
    first = complete(THINGS, "odd", {"span": (0.0, 2.0)}, "opts")
    stored = yaml.safe_load(yaml.safe_dump(json.loads(json.dumps(first))))
    assert complete(THINGS, "odd", stored, "opts") == first
    for key, given, expected in (
        ("pairs", [[1, 2], [3, 4]], ((1, 2), (3, 4))),
        ("links", [[1, 2]], [(1, 2)]),
        ("spans", {"a": [0.0, 1.0]}, {"a": (0.0, 1.0)}),
        ("either", [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]),
    ):
        assert complete(THINGS, "odd", {key: given}, "opts")[key] == expected
    for values, message in (
        ({"span": [1.0]}, r"opts\.span must be a list of 2: a finite number, a finite number; found"),
        ({"pairs": [[1, "x"]]}, r"opts\.pairs must be a list, each a list of 2: an integer, an integer"),
        ({"width": "x"}, r"opts\.width must be an integer; found 'x'"),
    ):
        with pytest.raises(UserError, match=message):
            complete(THINGS, "odd", values, "opts")


def test_what_a_run_is_bound_to_has_mappings_whole_so_that_a_new_key_is_a_difference() -> None:
    def bound(**options: Any) -> dict[str, Any]:
        network = NetworkConfig(architecture="care", critic_options=options)
        suite = {"environments": {"a": {"id": "Pendulum-v1", **options}}}
        return bound_to_policy(Config(suite="gymnasium", network=network, suite_options=suite))

    before, now = bound(), bound(temperature=0.5)
    differing = {key for key in before if before[key] != now[key]}
    assert differing == {"network.critic_options", "suite_options.environments"}
