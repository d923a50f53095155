"""What to cite for methods, networks and agents: complete entries that agree with docstrings, in --help."""

from __future__ import annotations

import inspect
import re
import unicodedata

import pytest
import torch
from torch import Tensor

from mtrl.agents import AGENTS
from mtrl.cli.train import main
from mtrl.combiners import COMBINERS, GramCombiner
from mtrl.networks.base import NETWORKS
from mtrl.registry import Registry

REGISTRIES = (COMBINERS, NETWORKS, AGENTS)
ENTRIES = [pytest.param(registry, key, id=key) for registry in REGISTRIES for key in registry.references]
PLUGINS = [pytest.param(registry, name, id=name) for registry in REGISTRIES for name in registry]
REQUIRED = {"inproceedings": {"booktitle"}, "article": {"journal"}, "misc": {"eprint", "archivePrefix"}}
# Other papers that a docstring names: an option's order of tasks, the method that an option is not, the one
# of which FiLM is a baseline.
BESIDE = {"2401.03563", "2306.03792", "2102.06177"}
# The docstring says when a preprint appeared, the entry when its conference was, in another order of authors.
DATED = {"ngdiff"}


def fields(entry: str) -> tuple[str, str, dict[str, str]]:
    """The kind, key and fields of an entry; braces must close."""
    head = re.match(r"@(\w+)\{(\w+),\n", entry)
    assert head
    lines = entry.splitlines()[1:-1]
    matches = [re.fullmatch(r"  (\w+) = \{(.*)\},", line) for line in lines]
    assert all(matches)
    found = {match[1]: match[2] for match in matches if match}
    assert entry.endswith("\n}")
    assert all(value.count("{") == value.count("}") for value in found.values())
    return head[1], head[2], found


def plain(text: str) -> str:
    """Without accents, TeX's and others."""
    text = re.sub(r"\{?\\[^a-zA-Z]?\{?([a-zA-Z])\}*", r"\1", text)
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


@pytest.mark.parametrize(("registry", "key"), ENTRIES)
def test_an_entry_has_what_a_bibliography_needs(registry: Registry, key: str) -> None:
    kind, named, found = fields(registry.references[key])
    assert named == key
    assert {"author", "title", "year"} | REQUIRED[kind] <= set(found)
    authors = found["author"].split(" and ")
    assert all(len(author.split()) >= 2 for author in authors)
    assert "et al" not in found["author"]
    assert 2010 <= int(found["year"]) <= 2026
    assert found["year"] in key
    surname = re.sub(r"[^a-z]", "", plain(authors[0]).split()[-1].lower())
    assert key.startswith(surname.replace("-", ""))
    if "eprint" in found:
        assert re.fullmatch(r"\d{4}\.\d{5}", found["eprint"])
        assert 2000 + int(found["eprint"][:2]) <= int(found["year"])


@pytest.mark.parametrize(("registry", "name"), PLUGINS)
def test_a_plug_in_and_its_docstring_name_the_same_papers(registry: Registry, name: str) -> None:
    """First authors, years and numbers stand in both, written independently of each other."""
    cls = registry[name]
    credit = registry.citation(name)[0]
    assert cls.papers or credit, "a plug-in has papers, or says in a sentence why not"
    named = {fields(registry.references[key])[2].get("eprint") for key in cls.papers}
    assert set(re.findall(r"arXiv[: ](\d{4}\.\d{5})", inspect.getdoc(cls) or "")) - BESIDE <= named
    whole = plain(" ".join((inspect.getdoc(cls) or "").split()) + credit)
    for key in cls.papers if name not in DATED else ():
        _, _, found = fields(registry.references[key])
        surname = plain(found["author"].split(" and ")[0]).split()[-1]
        unread = name == "capped_mgda"  # named by its number alone
        assert surname in whole or key == "ban2025samo" or unread, (key, surname)
        assert found["year"] in whole, (key, found["year"])


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.kind)
def test_every_entry_is_used(registry: Registry) -> None:
    assert {key for name in registry for key in registry[name].papers} == set(registry.references)


def test_help_prints_what_to_cite_for_what_flags_name(capsys: pytest.CaptureFixture[str]) -> None:
    cases: dict[str, list[tuple[Registry, str]]] = {
        "--method nash_mtl --network brc --agent ppo": [
            (COMBINERS, "nash_mtl"), (NETWORKS, "brc"), (AGENTS, "ppo")
        ],
        "--method mean": [(COMBINERS, "mean")],
        "--method.actor fs_mtl --method.actor.base pcgrad": [(COMBINERS, "fs_mtl"), (COMBINERS, "pcgrad")],
        "--network mlp": [(NETWORKS, "mlp")],
    }  # fmt: skip
    for flags, expected in cases.items():
        assert main([*flags.split(), "--help"]) == 0
        printed = capsys.readouterr().out
        for registry, name in expected:
            credit, entries = registry.citation(name)
            assert credit or entries
            assert credit in printed and entries in printed
            assert f"to cite for {name}:" in printed
        kinds = {registry.kind for registry, _ in expected}
        assert ("networks:\n" in printed) == ("network" not in kinds)
        assert ("methods:\n" in printed) == ("method" not in kinds)
        assert printed.count("to cite for") == len(expected) + ("--method.actor" in flags)


def test_a_method_of_ones_own_needs_no_papers_and_may_bring_whole_entries() -> None:
    class Own(GramCombiner):
        """Mine."""

        name = "own"

        def _weights(self, gram: Tensor) -> Tensor:
            return torch.ones(len(gram))

    class Cited(Own):
        """Mine, published."""

        name, papers = "cited", ("@misc{me2026own}",)

    registry = Registry("method", {})
    registry.register("own", Own)
    registry.register("cited", Cited)
    assert registry.citation("own") == ("", "")
    assert registry.citation("cited") == ("", "@misc{me2026own}")
    Cited.papers = "@misc{me2026own}"  # type: ignore[assignment]  # what a user may write
    assert registry.citation("cited") == ("", "@misc{me2026own}")
