"""What pages say about every plug-in of a kind: options of methods, and papers, read from the plug-ins."""

import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtrl.agents import AGENTS
from mtrl.combiners import COMBINERS, _checks, make_combiner
from mtrl.networks.base import NETWORKS
from mtrl.registry import Option, Registry

OPTIONS = "<!-- options of methods -->"
PAPERS = {f"<!-- papers of {kind.kind}s -->": kind for kind in (COMBINERS, NETWORKS, AGENTS)}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs' event: replace a mark by a section per plug-in."""
    if OPTIONS in markdown:
        markdown = markdown.replace(OPTIONS, "\n\n".join(map(options_of, COMBINERS)))
    for mark, registry in PAPERS.items():
        if mark in markdown:
            sections = (papers_of(registry, name) for name in registry)
            markdown = markdown.replace(mark, "\n\n".join(sections))
    return markdown


def papers_of(registry: Registry, name: str) -> str:
    """Return a heading, the sentence about the sources, and their BibTeX."""
    credit, entries = registry.citation(name)
    block = f"```bibtex\n{entries}\n```" if entries else ""
    return "\n\n".join(filter(None, (f"### `{name}`", credit, block)))


def options_of(method: str) -> str:
    """Return a heading, what the method does, and a table of its options."""
    lines = [f"### `{method}`", "", COMBINERS.summary(method), ""]
    options = COMBINERS.options(method)
    if not options:
        return "\n".join([*lines, "It has no options."])
    found = ranges(method)
    lines += ["| option | type | default | range | meaning |", "|---|---|---|---|---|"]
    for name, option in options.items():
        cells = (f"`{name}`", type_of(option), f"`{option.default!r}`", found.get(name, ""), option.help)
        lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(lines)


def ranges(method: str) -> dict[str, str]:
    """Return option -> the rule by which the method checks it, seen while an instance is made.

    The rules stand in the calls of `_checks` alone; a second list of them could become untrue.
    """
    cls = COMBINERS[method]
    rules: dict[str, str] = {}

    def look(frame: types.FrameType, event: str, _: Any) -> None:
        code, caller = frame.f_code, frame.f_back
        if event != "call" or Path(code.co_filename) != Path(_checks.__file__) or caller is None:
            return
        if type(caller.f_locals.get("self")) is cls:  # not a method that this one wraps
            rule = _rule(code.co_name, frame.f_locals)
            if rule:  # a choice stands in the type
                rules[frame.f_locals["name"]] = rule

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        make_combiner(method, num_tasks=3)
    finally:
        sys.setprofile(before)
    return rules


def _rule(check: str, arguments: Mapping[str, Any]) -> str:
    if check == "check_number":
        low, high = arguments["low"], arguments["high"]
        return f"at least {low:g}" if high >= _checks._MOST else f"{low:g} to {high:g}"
    return {
        "check_decay": "0 to 0.99999",
        "check_count": "at least 1",
        "check_weights": "empty, or one number of at least 0 per task, not all 0",
        "check_order": "empty, or each task number once",
    }.get(check, "")


def type_of(option: Option) -> str:
    """Return the type as Python writes it, without the name of its module."""
    hint = option.annotation
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(f"`{value!r}`" for value in typing.get_args(hint))
    text = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    return f"`{text.replace('typing.', '').replace('collections.abc.', '')}`"
