"""Scores that cost milliseconds and short retries, for one test."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.kills import be_quick
from phase8.run import retry, score


def quick_scores(source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `be_quick` replaces is put back when the test ends."""
    monkeypatch.setattr(score, "evaluate", score.evaluate)
    monkeypatch.setattr(retry, "_longer", retry._longer)
    be_quick(source, pause_s=0)
