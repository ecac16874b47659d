"""Any codec in training within a budget: the weights move freely, the network sees what the codes say.

    weights       w' = decode(codes) + (w - stop(w))        straight-through: dw'/dw = 1
    codes         chosen for w, and every `every` steps again; between, the codec's own parameters are trained too

A codec that can tell the price of a code (VPTQ: `phase8.codecs.vptq.choose`) chooses by distance and price together,
which is entropy-constrained quantisation (Chou, Lookabaugh and Gray 1989); re-choosing codes while the model is trained
is what PV-Tuning does (arXiv 2405.14852), which changes some codes at a time by the gradient, where here the weights
under the codes keep count of all gradients so far. A codec without prices (SeedLM, the trajectories) encodes the
weights as they are now; its codes have a fixed size, which its settings have to bring below the budget. Its weights
begin at what the codes say, after every choice again:

    encoded       decode(codes, parameters as trained) + (w - what the codes said at the last choice)

so that what was trained is what is encoded, and codes change where the gradients have moved a weight far enough. Begun
at the original's weights, which such codes miss by far, every choice threw away what was trained.

Between two choices the network does not see where the weights go: nothing calls them back. So Adam may move them no
further by then than `NEAR` of what the codes miss; and all rates fall where the codes are fine, as they do for a
lattice (`finer`). Without either, fine codes end far worse than they began (experiments/LOG.md).

The decoder knows nothing of all this: what is exported is a group as any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from phase8.codecs.base import BudgetTrainable, Codec, EncodedGroup, Priced, Trainable, root_mean_square
from phase8.codecs.decoders import decode
from phase8.lossless import entropy

Encode = Callable[[Mapping[str, Tensor]], EncodedGroup]
"""Matrices [O, I] -> a group, as the stage's settings say."""

CHOSEN_EVERY = 10
"""Steps between two choices of a codec with prices."""
ENCODED_AGAIN = 8
"""Times that a codec without prices encodes anew in a training."""
CHOSEN_UNTIL = 0.9
"""Share of the steps after which a codec with prices keeps its codes. Choosing goes on to move them (the lengths and
codebooks change), and as the rate falls the weights no longer answer: at 40x on TinyStories the loss rose from 1.97 to
2.06 over the last twentieth of the steps, where it falls to 1.94 so. At 16x 0.75 is too early (experiments/LOG.md)."""
DISTANCE_PER_NAT = 3e5
"""The squared error, in mean squares of the weights, that is worth one nat per token. Only the scale on which the
steered price begins; the steering finds what is needed."""
LEAST_PRICE = 0.01
"""From which on `cheapen` raises the price, in the units of `Priced.choose_again`."""
NEAR = 0.3
"""How far a weight may move from choice to choice, as a share of the error that the codes leave."""
LEAST_ERROR = 1e-4
"""Taken for less: codes that miss nothing would be trained at no rate."""
COARSE = 0.6
"""Deviations: an even step whose error, a step / sqrt(12), is that of codes which bear the whole learning rate."""
CHOICES = 3
"""One after the other at one price: each goes by the lengths that the one before left."""


class Rechosen(BudgetTrainable):
    """Groups of one codec with the weights that their codes stand for.

    Args:
        groups: as they were encoded, or trained before.
        weights: where training begins, float32 [O, I], of every matrix of the groups.
        encode: encodes a group's matrices anew, for a codec without prices.
        error: of codes as these, relative to the weights (root mean squares).
        every: steps between two choices; None: `CHOSEN_EVERY`, or what makes `ENCODED_AGAIN` of them.
    """

    def __init__(
        self,
        codec: Codec,
        groups: Sequence[EncodedGroup],
        weights: Mapping[str, Tensor],
        *,
        encode: Encode,
        error: float,
        every: int | None = None,
    ) -> None:
        super().__init__()
        self._error = max(error, LEAST_ERROR)
        self._codec, self._encode, self._every = codec, encode, every
        self._coded, self._names = list(groups), list(weights)
        self.steerable = isinstance(codec, Priced)
        self.values = nn.ParameterList([nn.Parameter(weight.detach().clone()) for weight in weights.values()])
        self.inner = nn.ModuleList([codec.trainable(group) for group in groups])
        self._price, self._bytes = 0.0, self.coded_bytes()
        self._settle()

    def weights(self) -> dict[str, Tensor]:
        """See `BudgetTrainable`."""
        found = self._stored()
        moving = zip(self._names, self.values, strict=True)
        return {name: found[name] + (value - value.detach()) for name, value in moving}

    def groups(self) -> list[EncodedGroup]:
        """See `BudgetTrainable`."""
        return [inner.export() for inner in self.inner]  # type: ignore[operator]

    def bits(self) -> Tensor:
        """Of the codes as they were chosen last: the coder's own count, a constant."""
        return torch.tensor(8.0 * self._bytes, device=self.values[0].device)

    def coded_bits(self) -> float:
        """See `BudgetTrainable`."""
        return 8.0 * self.coded_bytes()

    def coded_bytes(self) -> int:
        """See `BudgetTrainable`."""
        return sum(map(group_bytes, self.groups()))

    def finer(self, start_step: float, room_bytes: int) -> float:
        """See `BudgetTrainable`: of an even step with the codes' error."""
        return min(1.0, self._error * math.sqrt(12.0) / COARSE)

    def highest_steps(self, lr: float, steps: int) -> list[float]:
        """See `BudgetTrainable`; the codec's parameters keep their own proportion to a weight's step."""
        shares = [min(1.0, NEAR * self._error / (self._interval(steps) * lr))] * len(self.values)
        shares += [inner.relative_step / 0.01 for inner in self.inner for _ in inner.parameters()]  # type: ignore[operator]
        return [lr * share * root_mean_square(p) for share, p in zip(shares, self.parameters(), strict=True)]

    def choose_again(self, step: int, steps: int, nats_per_bit: float) -> None:
        """See `BudgetTrainable`. The last steps train the codec's parameters under codes that stay."""
        every = self._interval(steps)
        last = min(steps - every, CHOSEN_UNTIL * steps) if self.steerable else steps - every
        if step % every == 0 and step <= last:
            self._price = nats_per_bit * DISTANCE_PER_NAT
            self._choose(self._price)

    def cheapen(self, strength: float) -> int:
        """See `BudgetTrainable`: up to 1, a share of what is cheaper at the last price; then a price above that.

        To choose all codes anew at such a price, dearer ones too, changed 15 % of them and took 2 % of the bytes where
        0.2 % were wanted.
        """
        if not self.steerable:
            return 0
        before, share = self.groups(), min(1.0, strength)
        price = max(self._price, LEAST_PRICE) * math.exp((strength - share) / 8.0)
        for _ in range(CHOICES if share == 1.0 else 1):
            self._choose(price, cheaper=share)
        return sum(map(_changed, before, self.groups()))

    def codes(self) -> dict[str, Tensor]:
        """See `BudgetTrainable`."""
        found = {"price": torch.tensor(self._price, dtype=torch.float64)}
        for number, group in enumerate(self._coded):
            for path, values in _streams(group).items():
                found[f"{number}.{path}"] = torch.from_numpy(values.astype(np.int64))
        return found

    def load_codes(self, codes: Mapping[str, Tensor]) -> None:
        """See `BudgetTrainable`."""
        self._price = float(codes["price"])
        for number, group in enumerate(self._coded):
            values = {path: codes[f"{number}.{path}"].numpy() for path in _streams(group)}
            self._take(number, _with_streams(group, values), keep_parameters=True)
        self._bytes = self.coded_bytes()

    # ----------------------------------------------------------------------------------------------------------------

    def _interval(self, steps: int) -> int:
        """Steps between two choices."""
        return self._every or (CHOSEN_EVERY if self.steerable else max(1, steps // ENCODED_AGAIN))

    @torch.no_grad()
    def _choose(self, price: float, *, cheaper: float | None = None) -> None:
        weights = {name: value.detach().cpu() for name, value in zip(self._names, self.values, strict=True)}
        if not self.steerable:  # the codec's parameters were trained too
            at_choice = dict(pair for group in self._coded for pair in decode(group))
            now = self._stored()
            weights = {
                name: weight + now[name].cpu() - torch.from_numpy(at_choice[name]) for name, weight in weights.items()
            }
        for number, group in enumerate(self.groups()):
            own = {name: weights[name] for name in group.tensors}
            if isinstance(self._codec, Priced):
                chosen = self._codec.choose_again(group, own, price, cheaper=cheaper)
                self._take(number, chosen, keep_parameters=True)
            else:
                self._take(number, self._encode(own), keep_parameters=False)
        self._settle()
        self._bytes = self.coded_bytes()

    @torch.no_grad()
    def _settle(self) -> None:
        """Weights under codes without prices go to what the codes say."""
        if not self.steerable:
            stored = self._stored()
            for name, value in zip(self._names, self.values, strict=True):
                value.copy_(stored[name])

    def _stored(self) -> dict[str, Tensor]:
        """What the codes say."""
        found: dict[str, Tensor] = {}
        for inner in self.inner:
            assert isinstance(inner, Trainable)
            found |= inner.weights()
        return found

    def _take(self, number: int, group: EncodedGroup, *, keep_parameters: bool) -> None:
        """Puts a group in another's place. The parameters stay the objects that the optimiser knows.

        Args:
            keep_parameters: their values stay too (codes over codebooks that are trained on); else they are those of
                the group (coefficients that were fitted anew).
        """
        device, old = self.values[0].device, self.inner[number]
        fresh = self._codec.trainable(group).to(device)
        for (path, new), kept in zip(list(fresh.named_parameters()), old.parameters(), strict=True):
            if not keep_parameters:
                kept.data.copy_(new.data)
            owner, _, leaf = path.rpartition(".")
            fresh.get_submodule(owner)._parameters[leaf] = kept
        self.inner[number] = fresh
        self._coded[number] = group


def group_bytes(group: EncodedGroup) -> int:
    """Bytes of a group's streams, coded as a file codes them: those of one role together."""
    return sum(len(entropy.encode(values, bits)[1]) for (_, _, bits), values in group.pooled().items())


def relative_error(groups: Sequence[EncodedGroup], weights: Mapping[str, Tensor]) -> float:
    """Of what groups decode to, over all of their matrices: root mean square of the error by that of the weights."""
    error = energy = 0.0
    for name, decoded in (pair for group in groups for pair in decode(group)):
        error += float((torch.from_numpy(decoded) - weights[name]).square().sum(dtype=torch.float64))
        energy += float(weights[name].square().sum(dtype=torch.float64))
    return math.sqrt(error / energy) if energy else 0.0


def _streams(group: EncodedGroup) -> dict[str, np.ndarray]:
    found = {f"shared/{role}": stream.values for role, stream in group.shared.items()}
    for name, tensor in group.tensors.items():
        found |= {f"{name}/{role}": stream.values for role, stream in tensor.streams.items()}
    return found


def _with_streams(group: EncodedGroup, values: Mapping[str, np.ndarray]) -> EncodedGroup:
    def taken(path: str, old: np.ndarray) -> np.ndarray:
        return values[path].astype(old.dtype)

    tensors = {}
    for name, tensor in group.tensors.items():
        streams = {r: replace(s, values=taken(f"{name}/{r}", s.values)) for r, s in tensor.streams.items()}
        tensors[name] = replace(tensor, streams=streams)
    shared = {r: replace(s, values=taken(f"shared/{r}", s.values)) for r, s in group.shared.items()}
    return replace(group, tensors=tensors, shared=shared)


def _changed(before: EncodedGroup, after: EncodedGroup) -> int:
    pairs = zip(_streams(before).values(), _streams(after).values(), strict=True)
    return sum(int((one != other).sum()) for one, other in pairs)
