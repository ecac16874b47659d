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
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from phase8.codecs.base import BudgetTrainable, EncodedGroup, Trainable, root_mean_square
from phase8.lossless import contexts

_LEAST_SCALE = 0.05
MOST_BITS = 8.0
"""For each weight; room for more does not make steps finer."""
REFINED = 2
"""Times that the real coder is asked for the step that suits the room."""
LN2 = math.log(2.0)


def laplace_scale(mean_magnitude: Tensor) -> Tensor:
    """Scale b, in steps, of the Laplace law whose rounded values have this mean magnitude; float64, elementwise."""
    m = mean_magnitude.double().clamp_min(1e-4)
    x = ((1.0 + 4.0 * m * m).sqrt() - 1.0) / (2.0 * m)  # e^(-1 / (2 b)): m = x / (1 - x^2)
    return (-0.5 / x.log()).clamp_min(_LEAST_SCALE)


def ideal_bits(count: Tensor, filled: Tensor, total: Tensor) -> Tensor:
    """Code length of integers under a law with a free share of zeros and geometric magnitudes, signs included.

    Args:
        count, filled, total: how many integers, how many of them not zero, sum of their magnitudes; elementwise.

    Returns:
        float64, where the arguments are, so that a GPU is not waited for.
    """
    filled, total = filled.double(), total.double()
    share, mean = filled / count, (total / filled.clamp_min(1.0)).clamp_min(1.0)  # mean of what is not zero
    places = -torch.special.xlogy(share, share) - torch.special.xlogy(1.0 - share, 1.0 - share)
    more = mean.log() - torch.special.xlogy(mean - 1.0, 1.0 - 1.0 / mean)
    return (count * places + filled * (LN2 + more)) / LN2


def gaussian_step(bits: float) -> float:
    """The step, in standard deviations, at which a Gaussian matrix takes so many bits a weight: its differential
    entropy log2(sigma sqrt(2 pi e)) less log2(step), which holds for small steps (Gish and Pierce 1968)."""
    return math.sqrt(2.0 * math.pi * math.e) * 2.0**-bits


def kept_part(matrix: Tensor) -> Tensor:
    """Without rows and columns of zeros alone, which a shape leaves out and which stay so (`phase8.train.heads`)."""
    taken = matrix != 0
    rows, columns = taken.any(1), taken.any(0)
    return matrix if bool(rows.all() & columns.all()) or not rows.any() else matrix[rows][:, columns]


class _Rounded(torch.autograd.Function):
    """w, ln step, the step as it is stored -> step round(w / step), straight-through."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, log_step: Tensor, step: Tensor) -> Tensor:
        rounded = (w / step).round_().mul_(step)
        ctx.save_for_backward(w, rounded)
        return rounded

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        w, rounded = ctx.saved_tensors
        return grad, torch.dot(grad.reshape(-1), (rounded - w).reshape(-1)).reshape(()), None


class _Stored(torch.autograd.Function):
    """ln step, the step as it is stored -> the step, straight-through."""

    @staticmethod
    def forward(ctx: Any, log_step: Tensor, step: Tensor) -> Tensor:
        ctx.save_for_backward(step)
        return step.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad * ctx.saved_tensors[0], None


class _Price(torch.autograd.Function):
    """Stored steps and numbers of integers [S], then w of every matrix, then ln step of every matrix -> bits of all
    round(w / step); gradient as the module's text says. What is one number a matrix is computed for all at once."""

    @staticmethod
    def forward(ctx: Any, steps_S: Tensor, count_S: Tensor, *tensors: Tensor) -> Tensor:
        values = tensors[: len(tensors) // 2]
        us = [w / step for w, step in zip(values, steps_S.unbind(), strict=True)]
        sums, filled = [], []
        for u in us:
            magnitude = u.round().abs_()
            sums.append(magnitude.sum(dtype=torch.float64))
            filled.append(magnitude.clamp_max_(1.0).sum(dtype=torch.float64))  # count_nonzero takes ten times as long
        total_S = torch.stack(sums)
        ctx.save_for_backward(steps_S, laplace_scale(total_S / count_S), *us)
        return ideal_bits(count_S, torch.stack(filled), total_S).sum().float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        steps_S, b_S, *us = ctx.saved_tensors
        edges_S, rates_S = 2.0 * (0.5 / b_S).exp(), grad / (b_S * LN2 * steps_S)
        slopes, pulls = [], []
        scalars = (steps_S.unbind(), b_S.float().unbind(), edges_S.float().unbind(), rates_S.float().unbind())
        for u, step, b, edge, rate in zip(us, *scalars, strict=True):
            up = u.clamp(-0.5, 0.5).div_(b).exp_()  # b >= 0.05, so at most e^10; beyond the bin the slope is 1
            down = up.reciprocal()
            slope = (up - down).div_(up.add_(down).sub_(edge).neg_()).clamp_(-1.0, 1.0).mul_(rate)
            slopes.append(slope)
            pulls.append(-torch.dot(slope.reshape(-1), u.reshape(-1)).mul(step).reshape(()))
        return None, None, *slopes, *pulls


class LatticeTrainable(BudgetTrainable, Trainable):
    """Weights and logarithms of the steps as parameters.

    Args:
        parts: the stored part of every matrix with integers of its own, float32 [o, i], not rounded.
        steps: the step of every matrix, in the order of the file.
        shapes: the whole matrix's shape [O, I], for `export`.
        shared: matrices that have an earlier one's integers, under a step of their own, and that one's name.
    """

    relative_step = 0.01

    def __init__(
        self,
        parts: Mapping[str, Tensor],
        steps: Mapping[str, float],
        shapes: Mapping[str, tuple[int, int]],
        shared: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self._names, self._shapes, self._shared = list(parts), dict(shapes), dict(shared or {})
        self._order = [name for name in steps if name in parts or name in self._shared]
        self.values = nn.ParameterList([nn.Parameter(part.clone()) for part in parts.values()])
        names = [*self._names, *self._shared]
        self.log_steps = nn.ParameterList([nn.Parameter(torch.tensor(math.log(steps[name]))) for name in names])
        counts = [kept_part(part).numel() for part in parts.values()]
        self.register_buffer("count_S", torch.tensor(counts, dtype=torch.float64), persistent=False)

    @property
    def extents(self) -> dict[str, tuple[int, ...]]:
        """What is stored of every matrix with integers of its own, [o, i]."""
        return {name: tuple(value.shape) for name, value in zip(self._names, self.values, strict=True)}

    def weights(self) -> dict[str, Tensor]:
        """The stored parts, float32 [o, i], of every matrix."""
        names = [*self._names, *self._shared]
        logs = dict(zip(names, self.log_steps, strict=True))
        stored = dict(zip(names, self._stored_steps(), strict=True))
        found = {n: _Rounded.apply(v, logs[n], stored[n]) for n, v in zip(self._names, self.values, strict=True)}
        own = {owner: _Stored.apply(logs[owner], stored[owner]) for owner in dict.fromkeys(self._shared.values())}
        for name, owner in self._shared.items():
            found[name] = found[owner] * (_Stored.apply(logs[name], stored[name]) / own[owner])
        return found

    def _stored_steps(self) -> tuple[Tensor, ...]:
        return stored_step(torch.stack(list(self.log_steps))).unbind()

    def bits(self) -> Tensor:
        """What the integers cost, by `ideal_bits`; differentiable as the module's text says."""
        logs = list(self.log_steps)[: len(self.values)]  # the sharing ones' steps come after
        return _Price.apply(stored_step(torch.stack(logs)), self.count_S, *self.values, *logs)

    def integers(self) -> dict[str, np.ndarray]:
        """The integers as they are now, int32 [o, i], under the steps as they are stored."""
        return dict(zip(self._names, self._each(), strict=True))

    @torch.no_grad()
    def _each(self) -> Iterator[np.ndarray]:
        for value, log_step in zip(self.values, self.log_steps, strict=False):
            beyond = contexts.LARGEST + 1  # what is too large stays too large, and is refused where it is coded
            yield (value / stored_step(log_step)).round_().clamp_(-beyond, beyond).to(torch.int32).cpu().numpy()

    def coded_bits(self) -> float:
        """See `BudgetTrainable`."""
        return contexts.code_length_bits(self._each())

    def coded_bytes(self) -> int:
        """See `BudgetTrainable`."""
        return len(contexts.encode(self._each()))

    def highest_steps(self, lr: float, steps: int) -> list[float]:
        """See `BudgetTrainable`; a step moves in its logarithm."""
        return [lr * root_mean_square(kept_part(value)) for value in self.values] + [lr] * len(self.log_steps)

    def _bits(self, room_bytes: int) -> float:
        """For each weight."""
        return min(MOST_BITS, 8.0 * room_bytes / float(self.count_S.sum()))

    def finer(self, start_step: float, room_bytes: int) -> float:
        """By which factor, at most 1, steps of `start_step` deviations are too coarse for the room, if the weights are
        Gaussian."""
        return min(1.0, gaussian_step(self._bits(room_bytes)) / start_step)

    @torch.no_grad()
    def refine(self, start_step: float, room_bytes: int) -> float:
        """Makes steps of `start_step` deviations finer where the room leaves more bits a weight than they take.

        Begins with the step that suits Gaussian weights, then asks the real coder: a bit more a weight is half a step.

        Returns:
            The factor of the steps, at most 1.
        """
        factor, begun = self.finer(start_step, room_bytes), [float(log_step) for log_step in self.log_steps]
        for asked in range(REFINED + 1):
            for log_step, begin in zip(self.log_steps, begun, strict=True):
                log_step.fill_(begin + math.log(factor))
            if factor == 1.0 or asked == REFINED:
                break
            too_few = self._bits(room_bytes) - self.coded_bits() / float(self.count_S.sum())
            factor = min(1.0, factor * 2.0**-too_few)
        return factor

    @torch.no_grad()
    def cheapen(self, strength: float) -> int:
        """Sets to zero what is less than `strength` steps beyond the zero bin's edge; returns how many that were."""
        changed = 0
        for value, log_step in zip(self.values, self.log_steps, strict=False):
            u = value / stored_step(log_step)
            near = (u.abs() < 0.5 + strength) & (u.round() != 0)
            value.masked_fill_(near, 0.0)
            changed += int(near.sum())
        return changed

    def groups(self) -> list[EncodedGroup]:
        """See `BudgetTrainable`."""
        return [self.export()]

    def export(self) -> EncodedGroup:
        """See `Trainable.export`."""
        from phase8.codecs.lattice.encode import pack

        names = [*self._names, *self._shared]
        steps = {name: float(stored_step(step)) for name, step in zip(names, self.log_steps, strict=True)}
        return pack(self.integers(), {n: steps[n] for n in self._order}, self._shapes, self._shared)


def stored_step(log_step: Tensor) -> Tensor:
    """The step as float16 holds it, float32; elementwise."""
    return log_step.detach().exp().to(torch.float16).float()
