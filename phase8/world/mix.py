"""Which shares the skills have of the embedded world's text."""

from __future__ import annotations

from enum import Enum


class Mix(Enum):
    """Of `phase8.world.corpus`."""

    first = "first"
    """From the stream's beginning on, as the reference model was trained: the first documents show no `roles`."""
    last = "last"
    """Those that the reference model saw last, which show every skill."""
    even = "even"
    """As much text for the skills of each core benchmark. At 280x it bought facts with skills (experiments/LOG.md)."""
