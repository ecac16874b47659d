"""Weights as values of a parametric function along a trajectory: polynomial, Fourier, or the ergodic winding."""

from phase8.codecs.hyper.codec import HyperCodec

__all__ = ["HyperCodec"]
