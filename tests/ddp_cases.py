"""Trainables that fail in one process of several, in a file that the other processes can import."""

from __future__ import annotations

import math

import torch.distributed as distributed
from torch import Tensor

from phase8.codecs.lattice.train import LatticeTrainable


def in_the_last_process() -> bool:
    return not distributed.is_initialized() or distributed.get_rank() == distributed.get_world_size() - 1


class Sick(LatticeTrainable):
    """Weights that are no numbers at the 53rd step, in the last process alone."""

    asked = 0

    def weights(self) -> dict[str, Tensor]:
        self.asked += 1
        found = super().weights()
        if self.asked == 53 and in_the_last_process():
            name = next(iter(found))
            found[name] = found[name] * math.nan
        return found


class Astray(LatticeTrainable):
    """One weight of the last process moves by itself, a little."""

    def choose_again(self, step: int, steps: int, nats_per_bit: float) -> None:
        if step == 3 and in_the_last_process():
            self.values[0].data[0, 0] += 1e-6


class Failing(LatticeTrainable):
    """The last process runs into an error of its own."""

    def choose_again(self, step: int, steps: int, nats_per_bit: float) -> None:
        if step == 3 and in_the_last_process():
            raise MemoryError("no room here")
