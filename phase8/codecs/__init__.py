"""Codecs by name. Heavy imports happen when a codec is asked for: what only decodes runs without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
    """Returns the codec called `name`: `plain`, `seedlm`, `vptq` or `hyper`.

    Raises:
        ArtifactError: there is no such codec.
    """
    if name == "plain":
        from phase8.codecs.plain.encode import PlainCodec

        return PlainCodec()
    if name == "seedlm":
        from phase8.codecs.seedlm.encode import SeedLMCodec

        return SeedLMCodec()
    if name == "vptq":
        from phase8.codecs.vptq.encode import VPTQCodec

        return VPTQCodec()
    if name == "hyper":
        from phase8.codecs.hyper.encode import HyperCodec

        return HyperCodec()
    raise ArtifactError(
        f"there is no codec called {name!r}", where="the artifact's manifest", fix="known: plain, seedlm, vptq, hyper"
    )
