"""The price of a bit, steered so that the size follows a schedule.

    loss = divergence + price * bits

The size starts at what the start takes and is to fall geometrically to the budget over the first part of the training,
then to stay there. The price follows the size: with e = ln(size / scheduled size), every step

    ln price += GAIN * clip(8 (e + LEAD de/dstep), -1, 1)

Sizes answer a price some tens of steps late, so the error is taken `LEAD` steps ahead; without that the size swings by
a factor of two (seen on the embedded model at 40x).

Worked example: size 10 % above the schedule and steady gives e = 0.095, so the price rises by 3 % a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

GAIN = 0.04
LEAD = 25.0
EVERY = 4
"""Steps between two looks at the size."""
LOWEST, FIRST, HIGHEST = 1e-11, 1e-7, 1e-2
"""Nats per token and bit."""


@dataclass
class Price:
    """Nats per token that a bit may cost, and the schedule that it serves."""

    start_bits: float
    budget_bits: float
    ramp: float
    """Share of the steps over which the size falls to the budget."""
    value: float = FIRST
    error: float = 0.0
    slope: float = 0.0

    def scheduled_bits(self, share: float) -> float:
        """The size wanted when this share of the steps is done."""
        part = 1.0 if self.ramp <= 0.0 else min(1.0, share / self.ramp)
        if self.start_bits <= self.budget_bits:
            return self.budget_bits
        return self.start_bits * (self.budget_bits / self.start_bits) ** part

    def look(self, bits: float, share: float) -> None:
        """Takes note of the size, every `EVERY` steps."""
        error = math.log(max(bits, 1.0) / self.scheduled_bits(share))
        self.slope, self.error = (error - self.error) / EVERY, error

    def step(self) -> None:
        """Moves the price by one step."""
        pull = max(-1.0, min(1.0, 8.0 * (self.error + LEAD * self.slope)))
        self.value = min(HIGHEST, max(LOWEST, self.value * math.exp(GAIN * pull)))
