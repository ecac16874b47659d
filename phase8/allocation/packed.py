"""What the settings among which an allocation chooses take in plain packing."""

from __future__ import annotations

from phase8.codecs import decoders
from phase8.codecs.settings import Shapes, StageSettings


def packed_bits(stage: str, settings: StageSettings, shapes: Shapes) -> int:
    """Packed bits of one group of matrices, codebooks and scales included (`docs/format.md`, section 6)."""
    found = decoders.layout(stage, settings.stored(shapes), shapes)
    sizes = [found.shared, *found.tensors.values()]
    return sum(count * bits for streams in sizes for count, bits in streams.values())
