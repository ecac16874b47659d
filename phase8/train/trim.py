"""Takes cheaper codes until they fit the budget, as few as that takes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from phase8.codecs.base import BudgetTrainable
from phase8.errors import CodecError

STRONGEST = 64.0
"""Of a change to cheaper codes; see `BudgetTrainable.cheapen`."""
CODED_AT_MOST = 24
"""Times that `trim` asks the real coder."""
ENOUGH = 0.9995
"""Of the budget, at which it stops."""


@torch.no_grad()
def trim(trainable: BudgetTrainable, budget_bytes: int) -> tuple[int, int]:
    """Takes cheaper codes until they fit, as few as that takes; a lattice sets the integers nearest to zero to zero.

    The estimate says how strong a change is needed, the real coder how far that was off: far, where most of the codes
    have to change, as when a training was stopped early.

    Returns:
        Bytes of the codes, and how many were changed.

    Raises:
        CodecError: the cheapest codes do not fit.
    """
    kept = [parameter.detach().clone() for parameter in trainable.parameters()], trainable.codes()
    size = trainable.coded_bytes()
    if size <= budget_bytes:
        return size, 0
    share = size / (float(trainable.bits()) / 8)
    low, high, found = 0.0, STRONGEST, None
    for left in reversed(range(CODED_AT_MOST)):
        last_hope = found is None and left == 0
        if last_hope:
            strength = STRONGEST
        elif found is not None and left % 2:  # lest the estimate come nearer from one side alone
            strength = (low + high) / 2
        else:
            strength = _strength(trainable, kept, budget_bytes / share, low, high)
        changed = trainable.cheapen(strength)
        size = trainable.coded_bytes()
        share = size / (float(trainable.bits()) / 8)
        if size > budget_bytes:
            if strength == STRONGEST:
                break
            low = strength
        else:
            high, found = strength, (size, changed)
            if size >= ENOUGH * budget_bytes:
                return found
        _restore(trainable, *kept)
    if found is None:
        raise CodecError(
            f"the codes take {size:,} bytes where {budget_bytes:,} are allowed", where="training",
            fix="choose settings with fewer bits a weight, or allow more bytes",
        )  # fmt: skip
    trainable.cheapen(high)
    return found


def _strength(
    trainable: BudgetTrainable,
    kept: tuple[list[Tensor], Mapping[str, Tensor]],
    wanted: float,
    low: float,
    high: float,
) -> float:
    """The gentlest change, between one that is too weak and one that is strong enough, whose estimate fits; halfway
    where that is no news."""
    weak, strong = low, high
    for _ in range(24):
        middle = (weak + strong) / 2
        trainable.cheapen(middle)
        fits = float(trainable.bits()) / 8 <= wanted
        weak, strong = (weak, middle) if fits else (middle, strong)
        _restore(trainable, *kept)
    least = 1e-3 * (high - low)
    if high < STRONGEST and not low + least < strong < high - least:
        return (low + high) / 2
    return strong


def _restore(trainable: BudgetTrainable, parameters: list[Tensor], codes: Mapping[str, Tensor]) -> None:
    for parameter, saved in zip(trainable.parameters(), parameters, strict=True):
        parameter.copy_(saved)
    trainable.load_codes(codes)
