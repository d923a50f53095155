"""What to cite for a method: entries of references.bib, by the keys in its class attribute `papers`."""

import functools
import re
from pathlib import Path

from mtrl.combiners.base import Combiner


@functools.cache
def entries() -> dict[str, str]:
    """Return the entries of references.bib by their keys."""
    text = Path(__file__).with_name("references.bib").read_text(encoding="utf-8").strip()
    return {re.split(r"[{,]", entry)[1]: entry for entry in text.split("\n\n")}


def citation(cls: type[Combiner]) -> str:
    """Return the sentence about the sources of a method, if any, and their BibTeX; "" for a user's own."""
    return "\n".join([*([cls.credit] if cls.credit else ()), *(entries()[key] for key in cls.papers)])
