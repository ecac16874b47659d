"""The decoding half of every codec: integer streams -> float32 weights, in numpy alone.

This is the only decoder. The codecs in `phase8.codecs` call it, and so does `phase8.runtime`, which runs where neither
torch nor transformers is installed. All arithmetic is element-wise float32 in a fixed order, so that every machine gets
the same bits; `docs/format.md` states the formulas. Each codec's `decode.py` has

    layout(settings, shapes) -> Layout    which streams there must be; checks every setting, takes no memory
    decode(group) -> (name, weights) ...  one tensor after the other; the group was compared with its layout before

A file may be hostile. What is not covered by the layout (an index beyond its codebook, a seed of 0) is checked where it
is used, and no tensor leaves this module with a NaN or an infinity in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from phase8.codecs.stages import CODECS
from phase8.codecs.streams import EncodedGroup, Layout, check_group, finite
from phase8.errors import ArtifactError

_DECODERS: dict[str, ModuleType] = {name: import_module(f"phase8.codecs.{name}.decode") for name in CODECS}


def _decoder(codec: str) -> ModuleType:
    decoder = _DECODERS.get(codec)
    if decoder is None:
        raise ArtifactError(
            f"there is no codec called {codec!r}", where="manifest", fix=f"known: {', '.join(_DECODERS)}"
        )
    return decoder


def layout(codec: str, settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """Returns the streams that a group of this codec, these settings and shapes consists of.

    Raises:
        ArtifactError: no such codec; settings or shapes that it cannot have.
    """
    return _decoder(codec).layout(settings, shapes)


def check(group: EncodedGroup) -> None:
    """Compares a group with its layout.

    Raises:
        ArtifactError: streams that do not fit the shapes or settings.
    """
    check_group(group, layout(group.codec, group.settings, group.shapes))


def decode(group: EncodedGroup) -> Iterator[tuple[str, np.ndarray]]:
    """Yields every tensor of a group: its name and its weights, float32 in its shape, C-contiguous, finite.

    Raises:
        ArtifactError: streams that do not fit the shapes or settings, values out of range, weights that overflow.
    """
    check(group)
    # Overflow to infinity is found below, and is the file's fault, not a reason for a warning.
    with np.errstate(all="ignore"):
        for name, weights in _decoder(group.codec).decode(group):
            yield name, finite(weights, name)
