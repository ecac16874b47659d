"""Asking a network for its answers to whole texts, whatever its `forward` takes.

Shapes: B rows, L tokens of a row, V vocabulary.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn


def accepts(module: nn.Module, name: str) -> bool:
    """Whether a module's `forward` has an argument of this name."""
    return name in inspect.signature(module.forward).parameters


def logits_of(model: Any, tokens_BL: Tensor) -> Tensor:
    """The logits (B, L, V) of whole texts, without a cache; some architectures have none to switch off."""
    settings = {"use_cache": False} if accepts(model, "use_cache") else {}
    return model(input_ids=tokens_BL, **settings).logits
