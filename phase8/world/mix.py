"""Which shares the skills have of the embedded world's text."""

from __future__ import annotations

from enum import Enum


class Mix(Enum):
    """Of `phase8.world.corpus`."""

    first = "first"
    """From the stream's beginning on, as the reference model was trained: the first documents show no `roles`."""
    last = "last"
    """Those that the reference model saw last, which show every skill."""
    judged = "judged"
    """As the last, with more of edge of chaos, which is the hardest to keep, and fewer riddles, the easiest."""
    core = "core"
    """For very small networks: what six of the seven core benchmarks ask for, and nothing else; mini_mmlu's facts are
    too many for such a network. What is not told it loses (experiments/LOG.md)."""
