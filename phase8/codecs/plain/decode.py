"""Tensors stored as numbers: bfloat16, float16 or float32 bit patterns in row-major order.

Setting: `dtype`. Stream of a tensor: `values`. Example: [1.0, 0.5] in bfloat16 is 0x3F80, 0x3F00.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from phase8.codecs.streams import EncodedGroup, Layout, bfloat16_values, float16_values, size_of
from phase8.errors import ArtifactError

_BITS = {"bfloat16": 16, "float16": 16, "float32": 32}


def layout(settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """See `phase8.codecs.decoders`."""
    if set(settings) != {"dtype"} or not isinstance(settings["dtype"], str) or settings["dtype"] not in _BITS:
        raise ArtifactError(f"unknown settings {dict(settings)}", where="plain group", fix=f"known: dtype {set(_BITS)}")
    bits = _BITS[settings["dtype"]]
    sizes = {name: size_of(shape, name) for name, shape in shapes.items()}
    return Layout(
        tensors={name: {"values": (size, bits)} for name, size in sizes.items()}, operations=sum(sizes.values())
    )


def decode(group: EncodedGroup) -> Iterator[tuple[str, np.ndarray]]:
    """See `phase8.codecs.decoders`."""
    dtype = group.settings["dtype"]
    for name, tensor in group.tensors.items():
        bits = tensor.streams["values"].values
        if dtype == "float32":
            flat = bits.astype(np.uint32).view(np.float32)
        else:
            flat = bfloat16_values(bits) if dtype == "bfloat16" else float16_values(bits)
        yield name, flat.reshape(tensor.shape)
