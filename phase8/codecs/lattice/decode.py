"""A lattice's integers back to weights: w = step q.

Of a matrix [O, I] only the upper left part [o, i] is stored; the rest is 0. A network whose residual stream was rotated
and cut to i channels needs no more (`phase8.train.slicing`), and still has its architecture's shapes.

Settings: `extents`, the stored [o, i] of each matrix in order, or the number of an earlier matrix whose integers this
one shares, under a step of its own; `coded_bytes`, the length of the coded integers.
Streams: `codes`, shared, bytes that `phase8.lossless.contexts` reads; `step` of a matrix, one float16.

Example: extents [[2, 2]], integers 1 0 / 0 -3, step 0.5, shape 2 x 3: the weights are 0.5 0 0 / 0 -1.5 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from phase8.codecs.streams import EncodedGroup, Layout, float16_values, matrix_size
from phase8.errors import ArtifactError
from phase8.lossless import contexts

MAX_CODED_BITS = 448
"""Most bits that one integer takes: 13 for its place and each of 32 levels (no probability is below 2^-13), 16 more for
its sign and the bits of a large magnitude. A file cannot claim more for the integers that it stands for."""


def parts_of(settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[int, tuple[int, int]]]:
    """Of each matrix: the number of the matrix whose integers it has (its own, or an earlier one's), their [o, i].

    Raises:
        ArtifactError: they are not parts of these shapes.
    """
    extents = settings.get("extents")
    where = "lattice group"
    if not isinstance(extents, list) or len(extents) != len(shapes):
        raise ArtifactError(f"`extents` must be a list of {len(shapes)} pairs", where=where)
    found: list[tuple[int, tuple[int, int]]] = []
    for number, (extent, (name, shape)) in enumerate(zip(extents, shapes.items(), strict=True)):
        matrix_size(shape, name)
        owner = number
        if type(extent) is int:  # an earlier matrix's, which has integers of its own
            if not (0 <= extent < number and found[extent][0] == extent):
                raise ArtifactError(
                    f"shares the integers of matrix {str(extent)[:40]}, which has none of its own", where=name
                )
            owner, extent = extent, list(found[extent][1])
        ok = isinstance(extent, list) and len(extent) == 2 and all(type(n) is int for n in extent)
        if not ok or not all(1 <= n <= whole for n, whole in zip(extent, shape, strict=True)):
            raise ArtifactError(f"{str(extent)[:40]} is no part of a matrix {shape}", where=name)
        found.append((owner, (extent[0], extent[1])))
    return found


def _own(parts: list[tuple[int, tuple[int, int]]]) -> list[tuple[int, int]]:
    """Extents of the matrices with integers of their own."""
    return [extent for number, (owner, extent) in enumerate(parts) if owner == number]


def layout(settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """See `phase8.codecs.decoders`."""
    if set(settings) != {"extents", "coded_bytes"}:
        raise ArtifactError(
            f"unknown settings {sorted(settings)}", where="lattice group", fix="known: extents, coded_bytes"
        )
    parts = parts_of(settings, shapes)
    extents = _own(parts)
    stored = sum(o * i for o, i in extents)
    waiting = sum(math.prod(parts[owner][1]) for owner in {o for n, (o, _) in enumerate(parts) if o != n})
    coded = settings["coded_bytes"]
    if type(coded) is not int or not len(extents) <= coded <= len(extents) + 8 + MAX_CODED_BITS * stored // 8:
        raise ArtifactError(f"`coded_bytes` is {coded!r}, which {stored} integers cannot take", where="lattice group")
    return Layout(
        shared={"codes": (coded, 8)},
        tensors={name: {"step": (1, 16)} for name in shapes},
        operations=sum(math.prod(shape) for shape in shapes.values()) + 64 * stored,
        table=(1 << 14) + max(map(contexts.numbers_held, extents)) + waiting,
        steps=contexts.microseconds(extents, coded),
    )


def decode(group: EncodedGroup) -> Iterator[tuple[str, np.ndarray]]:
    """See `phase8.codecs.decoders`."""
    parts = parts_of(group.settings, group.shapes)
    codes = iter(contexts.decode_each(group.shared["codes"].values.astype(np.uint8).tobytes(), _own(parts)))
    last = {owner: number for number, (owner, _) in enumerate(parts)}
    waiting: dict[int, np.ndarray] = {}
    for number, ((name, tensor), (owner, _)) in enumerate(zip(group.tensors.items(), parts, strict=True)):
        if owner == number:
            waiting[number] = next(codes)
        integers = waiting[owner] if last[owner] > number else waiting.pop(owner)
        step = float16_values(tensor.streams["step"].values)[0]
        weights = np.zeros(tensor.shape, dtype=np.float32)
        weights[: integers.shape[0], : integers.shape[1]] = integers.astype(np.float32) * step
        yield name, weights
