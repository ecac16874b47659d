"""Figures from files into plain sentences and tables in Markdown: what docs/results.md is put together with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

RESULTS = Path(__file__).parent / "results"


def load(name: str) -> Any:
    """What a file of `experiments/results/` holds: `load("fuzz.json")`."""
    text = (RESULTS / name).read_text(encoding="utf-8")
    return json.loads(text) if name.endswith(".json") else text


def wrapped(text: str) -> str:
    """A paragraph, or the points of a list, in lines of at most 120 characters."""
    hanging = "  " if text.startswith("- ") else ""
    joined = " ".join(text.split()).replace(" %", "\u00a0%")  # a figure and its unit stay on one line
    filled = fill(joined, 120, subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False)
    return filled.replace("\u00a0", " ")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def percent(share: float, digits: int = 1) -> str:
    """0.9629 -> `96.3 %`."""
    return f"{100 * share:.{digits}f} %"


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def span(values: Iterable[float], digits: int = 2) -> str:
    """The least and the largest of some figures: `0.29 to 0.35`, or one where they are alike."""
    found = [f"{value:,.{digits}f}" for value in sorted(values)]
    return found[0] if found[0] == found[-1] else f"{found[0]} to {found[-1]}"
