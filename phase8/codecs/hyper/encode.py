"""The third stage's codec: streams for the trajectories of `polynomial`, `fourier`, `ergodic` and `manifold`.

Every matrix is flattened row by row and cut into blocks of N consecutive weights, the last one filled up with zeros.

    polynomial, fourier   w_block = step * sum_d q_d row_d     streams: coefficients (q), scale (step)
    ergodic               w_block = scale * point(theta)       streams: codes (theta), scale;
                                                               shared: centroid, side, shrink
    manifold              w_block = scale * a * network(q)     streams: coefficients (q and a), scale

Over depth (`axis=depth`) a polynomial or Fourier series runs over the layers instead: the L matrices of one kind and
shape are a stack [L, O, I], and each of the O I positions has a function of the layer's place 0 .. L - 1,

    w_l = sum_t step_t q_t row_t[l]                            streams of member t: coefficients (q_t), scale (step_t)

so that T planes stand for L matrices; T = L reproduces them to the coefficients' precision (polynomials up to 17
layers, Fourier series of an odd number). Member t of the stack carries plane t, and the members from T on nothing. A
matrix that is alone of its kind, such as the embedding, is coded in blocks beside them.

`step` and `scale` are one float16 per tensor times 2^exponent, one exponent per group, so that weights of any magnitude
keep the float16's full precision. Importance is not used: the winding's points have no axis along which to trade error.

Example: the weights [3, 2, 1, 2] as one Fourier block of degree 1 with 8 bits: coefficients 2, 0.7071, 0 and step
2 / 127 give q = 127, 45, 0, hence [3.002, 2, 0.998, 2]. Over depth, three layers with the weights 1, 2, 3 at one
position and degree 1: the plane of 2s and the plane of 0.8165s, two numbers for three.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from phase8.codecs import decoders
from phase8.codecs.base import (
    EncodedGroup,
    Importance,
    Progress,
    Trainable,
)
from phase8.codecs.hyper.decode import (
    MAX_EXPONENT,
    MAX_SIZE,
    settings_of,
)
from phase8.codecs.hyper.encode_depth import TrainableDepth, planes_of
from phase8.codecs.hyper.encode_manifold import TrainableManifold, encode_manifold
from phase8.codecs.hyper.encode_series import TrainableSeries, encode_series
from phase8.codecs.hyper.encode_winding import TrainableWinding, encode_winding
from phase8.codecs.hyper.settings import Axis, HyperConfig, Trajectory
from phase8.codecs.matrices import Matrix, extremes, matrices, size_of
from phase8.errors import CodecError


class HyperCodec:
    """Polynomial, Fourier, ergodic and manifold trajectories; `HyperConfig.trajectory_type` says which."""

    name = "hyper"

    def encode(
        self,
        weights: Mapping[str, Tensor | Matrix],
        config: HyperConfig,
        *,
        importance: Mapping[str, Importance] | None = None,
        seed: int = 0,
        on_progress: Progress | None = None,
    ) -> EncodedGroup:
        """Encodes float32 matrices [O, I]; see `Codec.encode`. `importance` is not used.

        Raises:
            CodecError: NaN or infinite weights; no matrix at all; weights beyond what a float16 scale reaches.
        """
        if not weights:
            raise CodecError("there is no matrix to encode", where="hyper", fix="check which tensors are selected")
        taken = matrices(weights)
        for name, matrix in taken.items():
            low, high = extremes(name, matrix)
            if size_of(matrix) > MAX_SIZE:
                raise CodecError(f"the matrix has more than {MAX_SIZE:,} weights", where=name, fix="protect it")
            if max(-low, high) > 2.0**MAX_EXPONENT:
                raise CodecError("the matrix holds weights above 2^60", where=name, fix="rescale the model")
        if config.trajectory_type is Trajectory.ergodic:
            return encode_winding(taken, config, seed, on_progress)
        if config.trajectory_type is Trajectory.manifold:
            return encode_manifold(taken, config, on_progress)
        return encode_series(taken, config, on_progress, planes_of(taken, config))

    def decode(self, group: EncodedGroup) -> dict[str, np.ndarray]:
        """Returns every matrix, float32 [O, I]; see `Codec.decode`.

        Raises:
            ArtifactError: settings out of range; a stream is missing, of the wrong length or out of range.
        """
        return dict(decoders.decode(group))

    def trainable(self, group: EncodedGroup) -> Trainable:
        """Returns the continuous parameters: coefficients and step, or centroid, side, shrinks and scale.

        Raises:
            ArtifactError: as `decode`.
        """
        self.decode(group)
        config = settings_of(group.settings)
        if config.trajectory_type is Trajectory.ergodic:
            return TrainableWinding(group, config)
        if config.trajectory_type is Trajectory.manifold:
            return TrainableManifold(group, config)
        if config.axis is Axis.depth:
            return TrainableDepth(group, config)
        return TrainableSeries(group, config)


CODEC = HyperCodec()
