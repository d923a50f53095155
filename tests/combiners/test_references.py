"""What to cite for each method: complete entries that agree with the docstrings, shown by --help."""

from __future__ import annotations

import inspect
import re
import unicodedata

import pytest
import torch
from torch import Tensor

from mtrl.cli.train import main
from mtrl.combiners import COMBINERS, GramCombiner
from mtrl.combiners.references import citation, entries

REQUIRED = {"inproceedings": {"booktitle"}, "article": {"journal"}, "misc": {"eprint", "archivePrefix"}}
# Other papers that a docstring names: an option's order of tasks, and the method that an option is not.
BESIDE = {"2401.03563", "2306.03792"}
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


@pytest.mark.parametrize("key", entries())
def test_an_entry_has_what_a_bibliography_needs(key: str) -> None:
    kind, named, found = fields(entries()[key])
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


@pytest.mark.parametrize("method", COMBINERS)
def test_a_method_and_its_docstring_name_the_same_papers(method: str) -> None:
    """First authors, years and numbers stand in both, written independently of each other."""
    cls = COMBINERS[method]
    assert cls.papers or cls.credit, "a method has papers, or says in a sentence why not"
    named = {fields(entries()[key])[2].get("eprint") for key in cls.papers}
    assert set(re.findall(r"arXiv:(\d{4}\.\d{5})", inspect.getdoc(cls) or "")) - BESIDE <= named
    whole = plain(" ".join((inspect.getdoc(cls) or "").split()) + cls.credit)
    for key in cls.papers if method not in DATED else ():
        _, _, found = fields(entries()[key])
        surname = plain(found["author"].split(" and ")[0]).split()[-1]
        unread = method == "capped_mgda"  # named by its number alone
        assert surname in whole or key == "ban2025samo" or unread, (key, surname)
        assert found["year"] in whole, (key, found["year"])


def test_every_entry_is_used() -> None:
    assert {key for name in COMBINERS for key in COMBINERS[name].papers} == set(entries())


@pytest.mark.parametrize(
    "flags", ["--method nash_mtl", "--method mean", "--method.actor fs_mtl --method.actor.base pcgrad"]
)
def test_help_prints_what_to_cite(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*flags.split(), "--help"]) == 0
    printed = capsys.readouterr().out
    for name in set(flags.split()) & set(COMBINERS):
        assert citation(COMBINERS[name]) in printed
        assert COMBINERS[name].credit or "@" in printed


def test_a_method_of_ones_own_needs_no_papers() -> None:
    class Own(GramCombiner):
        """Mine."""

        name = "own"

        def _weights(self, gram: Tensor) -> Tensor:
            return torch.ones(len(gram))

    assert citation(Own) == ""
