"""What opening a file may cost, set by who opens it: every cost is checked before it is spent.

A file may come from an enemy, and `config.json` beside it from the same hand, so no number in either decides how much
memory or time is taken. What a file may cost depends on its own length, and on `Limits`, which the opener can change.
With B the file's length in bytes and W the weights that it stands for:

| cost | at most | what it is for |
| --- | --- | --- |
| `text` | 2^16 + 8 B, and 2^26 | bytes of the header and of the inflated manifest |
| `parts` | 2^12 + B / 2, and 2^22 | commas and brackets in it, which become objects; a brace counts four times |
| `weights` | 2^20 + 4096 B, and 2^26 + 128 B | numbers that are decoded |
| `values` | 2^20 + 1024 B | integers in the streams |
| `table` | 2^22 + 64 B | numbers that a group's decoder holds beside streams and weights, such as codebooks |
| `operations` | 2^26 + 4096 B + 64 W | element operations of all decoders together, about a nanosecond each |
| `steps` | 2^20 + 128 B | symbols that a loop in Python takes one by one, about a microsecond each |

Example: 705 bytes that claim one matrix of 65,536 x 4,096 under six coefficients are refused at 3.9 million weights,
from the shape alone. Honest files are far below: the smallest files per weight that this project makes (one polynomial
a matrix) have some 1,000 weights a byte, those of the target ratio 70.

A new decoder takes part by what its `layout` returns (`phase8.codecs.streams.Layout`): `operations`, `table` and, where
it decodes symbol by symbol in Python, `steps`. Nothing else is needed: `phase8.artifact.read` adds them up over the
groups and asks `Budget` before a stream is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from phase8.errors import ArtifactError


class Rate(NamedTuple):
    """So much for any file, and so much more for each of its bytes."""

    base: int
    per_byte: float
    most: int = 1 << 62
    """Whatever the length: the holes of a sparse file cost their maker nothing."""

    def of(self, file_bytes: int) -> int:
        """What a file of this length may take."""
        return min(self.most, self.base + int(self.per_byte * file_bytes))


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What an opener allows; see the table above. A file that is trusted and needs more is opened with higher ones."""

    max_file_bytes: int = 1 << 32
    max_weights: int = 1 << 34
    """Most weights whatever the file's length: four bytes of memory each."""
    text: Rate = Rate(1 << 16, 8, 1 << 26)
    parts: Rate = Rate(1 << 12, 0.5, 1 << 22)
    weights: Rate = Rate(1 << 20, 4096)
    weights_of_large: Rate = Rate(1 << 26, 128)
    """As `weights`; the smaller of the two holds. Only small files can honestly stand for so many weights a byte."""
    values: Rate = Rate(1 << 20, 1024)
    table: Rate = Rate(1 << 22, 64)
    operations: Rate = Rate(1 << 26, 4096)
    operations_per_weight: int = 64
    steps: Rate = Rate(1 << 20, 128)


TRUSTED = Limits(
    **{name: Rate(1 << 62, 0) for name in ("text", "parts", "weights", "weights_of_large", "values", "table")},
    operations=Rate(1 << 62, 0),
    steps=Rate(1 << 62, 0),
)
"""For reading back what this process has just written."""


class Budget:
    """What one file may cost.

    Args:
        limits: what the opener allows.
        file_bytes: the file's length.
        where: the file, for messages.
    """

    def __init__(self, limits: Limits, file_bytes: int, where: str = "") -> None:
        self.limits, self.file_bytes, self.where = limits, file_bytes, where
        self._spent: dict[str, int] = {}

    def most(self, cost: str, *, weights: int = 0) -> int:
        """The most of a cost, by its name in the table."""
        limits, size = self.limits, self.file_bytes
        if cost == "weights":
            return min(limits.max_weights, limits.weights.of(size), limits.weights_of_large.of(size))
        rate: Rate = getattr(limits, cost)
        return rate.of(size) + (limits.operations_per_weight * weights if cost == "operations" else 0)

    def spend(self, cost: str, amount: int, *, weights: int = 0) -> None:
        """Adds to what the file costs, before it does.

        Args:
            cost: its name in the table.
            amount: how much more of it.
            weights: W, for `operations`.

        Raises:
            ArtifactError: it is more than the file may cost.
        """
        total = self._spent.get(cost, 0) + amount
        most = self.most(cost, weights=weights)
        if total > most:
            raise ArtifactError(
                f"opening this file would take {total:,} {cost}, more than the {most:,} allowed here for "
                f"{self.file_bytes:,} bytes",
                where=self.where,
                fix=f"the file is forged; if you trust it, open it with higher `{cost}` in phase8.limits.Limits",
            )
        self._spent[cost] = total
