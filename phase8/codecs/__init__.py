"""Codecs by name. Heavy imports happen when a codec is asked for: what only decodes runs without torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from phase8.codecs.stages import CODECS
from phase8.codecs.streams import EncodedGroup, EncodedTensor, Stream
from phase8.errors import ArtifactError

if TYPE_CHECKING:
    from phase8.codecs.base import Codec, Importance, Trainable

__all__ = ["Codec", "EncodedGroup", "EncodedTensor", "Importance", "Stream", "Trainable", "get_codec"]


def __getattr__(name: str) -> Any:
    if name in ("Codec", "Importance", "Trainable"):
        from phase8.codecs import base

        return getattr(base, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def get_codec(name: str) -> Codec:
    """Returns the codec called `name`, one of `phase8.codecs.stages.CODECS`.

    Raises:
        ArtifactError: there is no such codec.
    """
    if name not in CODECS:
        raise ArtifactError(
            f"there is no codec called {name!r}", where="the artifact's manifest", fix=f"known: {', '.join(CODECS)}"
        )
    return import_module(f"phase8.codecs.{name}.encode").CODEC
