"""Weights as values of a parametric function along a trajectory: polynomial, Fourier, the ergodic winding, or
the manifold of a seeded network.

The functions (`polynomial`, `fourier`, `winding`, `manifold`) are numpy; `HyperCodec` needs torch and is imported when
asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phase8.codecs.hyper.encode import HyperCodec

__all__ = ["HyperCodec"]


def __getattr__(name: str) -> Any:
    if name == "HyperCodec":
        from phase8.codecs.hyper.encode import HyperCodec

        return HyperCodec
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
