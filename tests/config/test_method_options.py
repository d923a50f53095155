from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Literal, Optional, get_type_hints

import pytest

from mtrl.combiners import COMBINERS
from mtrl.config.method_options import MethodSpec, OptionSpec, method_options, read_methods


def from_runtime(combiner: Any) -> list[tuple[str, Any, Any]]:
    hints = get_type_hints(combiner.__init__)
    return [
        (name, hints[name], parameter.default)
        for name, parameter in inspect.signature(combiner).parameters.items()
        if name != "num_tasks"
    ]


def test_every_registered_method_is_found_and_no_other() -> None:
    assert list(method_options()) == sorted(COMBINERS)


@pytest.mark.parametrize("name", sorted(COMBINERS))
def test_options_equal_the_arguments_of_the_imported_class(name: str) -> None:
    spec = method_options()[name]
    assert spec.name == name
    assert [(option.name, option.type, option.default) for option in spec.options] == from_runtime(
        COMBINERS[name]
    )


@pytest.mark.parametrize("name", sorted(COMBINERS))
def test_method_and_its_options_are_explained(name: str) -> None:
    spec = method_options()[name]
    assert spec.summary
    assert all(option.help for option in spec.options), [
        option.name for option in spec.options if not option.help
    ]


def test_reading_the_options_imports_no_torch() -> None:
    code = (
        "import sys; from mtrl.config.method_options import method_options; "
        "assert method_options(); print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def read(folder: Path, source: str) -> dict[str, MethodSpec]:
    (folder / "method.py").write_text(textwrap.dedent(source))
    return read_methods(folder)


def test_types_defaults_and_help_of_all_kinds_of_options(tmp_path: Path) -> None:
    methods = read(
        tmp_path,
        '''
        DEFAULT = 25
        Solver = Literal["newton", "sgd"]

        class Any1(GramCombiner):
            """Does things: in one line.

            More text with a colon: here.

            Args:
                num_tasks: not an option.
                radius: how far, relative to the
                    mean: a norm.
                steps (int): how often.
                exact: whether exact.
                solver: which one.
                bound: an upper bound, in units of c: metres.

            Raises:
                ValueError: never.
            """

            name: ClassVar[str] = "any_one"

            def __init__(
                self,
                *,
                num_tasks: int,
                radius: float = -0.5,
                steps: int = DEFAULT,
                exact: bool = False,
                solver: Solver = "sgd",
                bound: float | None = None,
                base: "str" = "x",
            ) -> None: ...
        ''',
    )
    assert methods == {
        "any_one": MethodSpec(
            "any_one",
            "Does things: in one line.",
            (
                OptionSpec("radius", float, -0.5, "how far, relative to the mean: a norm."),
                OptionSpec("steps", int, 25, "how often."),
                OptionSpec("exact", bool, False, "whether exact."),
                OptionSpec("solver", Literal["newton", "sgd"], "sgd", "which one."),
                OptionSpec("bound", Optional[float], None, "an upper bound, in units of c: metres."),  # noqa: UP045
                OptionSpec("base", str, "x", ""),
            ),
        )
    }


def test_a_subclass_without_init_has_the_options_of_its_base(tmp_path: Path) -> None:
    methods = read(
        tmp_path,
        '''
        class Base(GramCombiner):
            """Base.

            Args:
                c: radius.
            """
            name = "base"
            def __init__(self, *, num_tasks: int, c: float = 1.0) -> None: ...

        class Child(Base):
            """Child."""
            name = "child"

        class Abstract(Base):
            """No name of its own: no method."""
        ''',
    )
    assert sorted(methods) == ["base", "child"]
    assert methods["child"].options == methods["base"].options == (OptionSpec("c", float, 1.0, "radius."),)


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("c: float", "must have an annotation and a default"),
        ("c=1.0", "must have an annotation and a default"),
        ("c: dict[str, int] = None", "an option must be float, int, bool, str"),
        ("c: float = compute()", "it must be a literal"),
    ],
)
def test_an_argument_that_cannot_be_an_option_is_named(tmp_path: Path, argument: str, complaint: str) -> None:
    source = f"""
        class Bad(GramCombiner):
            name = "bad"
            def __init__(self, *, num_tasks: int, {argument}) -> None: ...
    """
    with pytest.raises(TypeError, match=rf"method\.py: argument 'c' of Bad .*{complaint}"):
        read(tmp_path, source)
