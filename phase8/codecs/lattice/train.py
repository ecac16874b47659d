"""A lattice in training: the weights move freely, the network sees them rounded, and every integer has its price.

    stored        w' = step round(w / step)             straight-through: dw'/dw = 1
    step          d w' / d ln step = w' - w             Esser et al. 2020 (LSQ), section 2.1, in the logarithm
    price         bits(u), u = w / step                 under a two-sided geometric law, scale b from the mean |q|

The price is the code length of the bin that u falls into, made smooth: with the Laplace density of scale b, in steps,

    d bits / du = sign(u) / (b ln 2)                                      outside the zero bin, |u| >= 1/2
                = sinh(u / b) / (b ln 2 (exp(1 / (2 b)) - cosh(u / b)))   inside it

so that a weight inside the zero bin is hardly pulled, and one outside costs 1 / (b ln 2) bits a step. A gradient of the
real coder's contexts was tried in a pilot and did harm: it makes what is sparse already cheaper to keep sparse.

Worked example: mean |q| = 0.2 gives b = 0.62: a weight one step out costs 2.3 bits more than zero, so at a price of
1e-6 nats a bit it has to be worth 2.3e-6 nats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from phase8.codecs.base import EncodedGroup, Trainable

_LEAST_SCALE = 0.05
LN2 = math.log(2.0)


def laplace_scale(mean_magnitude: float) -> float:
    """Scale b, in steps, of the Laplace law whose rounded values have this mean magnitude."""
    m = max(mean_magnitude, 1e-4)
    x = (math.sqrt(1.0 + 4.0 * m * m) - 1.0) / (2.0 * m)  # e^(-1 / (2 b)): m = x / (1 - x^2)
    return max(_LEAST_SCALE, -1.0 / (2.0 * math.log(x)))


def ideal_bits(q: Tensor) -> float:
    """Code length of integers under a law with a free share of zeros and geometric magnitudes, signs included."""
    zeros = 1.0 - torch.count_nonzero(q).item() / q.numel()
    filled = 1.0 - zeros
    if filled == 0.0:
        return 0.0
    places = 0.0 if zeros == 0.0 else -(filled * math.log2(filled) + zeros * math.log2(zeros))
    mean = float(q.abs().sum()) / (filled * q.numel())  # of the magnitudes of what is not zero, at least 1
    more = 0.0 if mean <= 1.0 + 1e-9 else math.log2(mean) + (mean - 1.0) * math.log2(mean / (mean - 1.0))
    return q.numel() * (places + filled * (1.0 + more))


class _Rounded(torch.autograd.Function):
    """w, ln step -> step round(w / step), straight-through."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, log_step: Tensor) -> Tensor:
        step = log_step.exp().to(torch.float16).float()
        rounded = (w / step).round_().mul_(step)
        ctx.save_for_backward(w, rounded)
        return rounded

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        w, rounded = ctx.saved_tensors
        return grad, torch.dot(grad.reshape(-1), (rounded - w).reshape(-1)).reshape(())


class _Price(torch.autograd.Function):
    """w, ln step -> bits of round(w / step); gradient as the module's text says."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, log_step: Tensor) -> Tensor:
        step = stored_step(log_step)
        u = w / step
        magnitude = u.round().abs_()
        ctx.step, ctx.b = step, laplace_scale(float(magnitude.mean()))
        ctx.save_for_backward(u)
        return torch.tensor(ideal_bits(magnitude))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        (u,), b = ctx.saved_tensors, ctx.b
        up = u.clamp(-0.5, 0.5).div_(b).exp_()  # e^(u / b): b >= 0.05, so at most e^10; outside the bin the slope is 1
        down = up.reciprocal()
        slope = (up - down).div_(up.add_(down).sub_(2.0 * math.exp(0.5 / b)).neg_()).clamp_(-1.0, 1.0)
        slope.mul_(float(grad) / (b * LN2 * ctx.step))
        return slope, -torch.dot(slope.reshape(-1), u.reshape(-1)).mul(ctx.step).reshape(())


class LatticeTrainable(Trainable):
    """Weights and logarithms of the steps as parameters.

    Args:
        parts: the stored part of every matrix, float32 [o, i], not rounded.
        steps: the step of every matrix.
        shapes: the whole matrix's shape [O, I], for `export`.
    """

    relative_step = 0.01

    def __init__(
        self, parts: Mapping[str, Tensor], steps: Mapping[str, float], shapes: Mapping[str, tuple[int, int]]
    ) -> None:
        super().__init__()
        self._names, self._shapes = list(parts), dict(shapes)
        self.values = nn.ParameterList([nn.Parameter(part.clone()) for part in parts.values()])
        self.log_steps = nn.ParameterList([nn.Parameter(torch.tensor(math.log(steps[name]))) for name in parts])

    def weights(self) -> dict[str, Tensor]:
        """The stored parts, float32 [o, i]."""
        pairs = zip(self._names, self.values, self.log_steps, strict=True)
        return {name: _Rounded.apply(value, log_step) for name, value, log_step in pairs}

    def bits(self) -> Tensor:
        """What the integers cost, by `ideal_bits`; differentiable as the module's text says."""
        return sum(_Price.apply(value, step) for value, step in zip(self.values, self.log_steps, strict=True))

    @torch.no_grad()
    def integers(self) -> dict[str, np.ndarray]:
        """The integers as they are now, int64 [o, i], under the steps as they are stored."""
        found = {}
        for name, value, log_step in zip(self._names, self.values, self.log_steps, strict=True):
            found[name] = (value / stored_step(log_step)).round().to(torch.int64).cpu().numpy()
        return found

    @torch.no_grad()
    def widen_zero(self, reach: float) -> int:
        """Sets to zero what is less than `reach` steps beyond the zero bin's edge; returns how many that were."""
        changed = 0
        for value, log_step in zip(self.values, self.log_steps, strict=True):
            u = value / stored_step(log_step)
            near = (u.abs() < 0.5 + reach) & (u.round() != 0)
            value.masked_fill_(near, 0.0)
            changed += int(near.sum())
        return changed

    def export(self, shapes: Mapping[str, tuple[int, int]] | None = None) -> EncodedGroup:
        """See `Trainable.export`; `shapes` are the whole matrices', where they are larger than the stored parts."""
        from phase8.codecs.lattice.encode import pack

        steps = {name: stored_step(step) for name, step in zip(self._names, self.log_steps, strict=True)}
        return pack(self.integers(), steps, shapes or self._shapes)


def stored_step(log_step: Tensor) -> float:
    """The step as float16 holds it."""
    return float(log_step.detach().exp().to(torch.float16))
