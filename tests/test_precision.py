"""Which number format training takes."""

from __future__ import annotations

import torch

from phase8.config import Precision
from phase8.train import precision


def test_a_named_format_is_taken(monkeypatch):
    for native in (False, True):
        monkeypatch.setattr(precision, "cpu_multiplies_bfloat16", lambda native=native: native)
        assert precision.takes_bfloat16(Precision.bfloat16, torch.device("cpu"))
        assert not precision.takes_bfloat16(Precision.float32, torch.device("cpu"))


def test_auto_asks_the_processor(monkeypatch):
    for native in (False, True):
        monkeypatch.setattr(precision, "cpu_multiplies_bfloat16", lambda native=native: native)
        assert precision.takes_bfloat16(Precision.auto, torch.device("cpu")) is native
