"""Controls of the trained lattice: other things of a few bits a weight, trained by the same trainer on the same tokens.

    PHASE8_TINYSTORIES=DIRECTORY python -m experiments.controls      # rows of the scoreboard

    ternary     -1, 0, 1 times the mean magnitude of a matrix (Ma et al. 2024, arXiv 2402.17764, section 2), from the
                original's weights, narrowed where the ratio asks for it; written with the lattice's coder, a real file
    littlebit   diag(h) sign(U) diag(l) sign(V)^T diag(g) of a rank that the ratio allows, begun by Dual-SVID (Lee et
                al. 2025, arXiv 2506.13771, section 3); no format holds it, so its bytes are counted: 1 bit a sign, 16
                a scale
    student     a narrower network begun at random numbers, a lattice of some 4 bits a weight: distilled, then stored

Minimal, from the papers' formulas; activations stay in 32 bits, as everywhere here. TinyStories, 1,500 steps of 2,048
tokens, as `experiments.stories` takes for the lattice. What is there already is not measured again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.frontier_gpu import randomise
from experiments.score import load, score
from experiments.scoreboard import CONTROL, add_row, read_rows
from experiments.stories import CACHE, LENGTH, ROW_STEPS, story_text
from phase8.artifact.write import contents
from phase8.codecs.base import BudgetTrainable, EncodedGroup, round_through
from phase8.codecs.decoders import decode
from phase8.codecs.lattice.encode import pack
from phase8.lossless import contexts
from phase8.model.source import SourceModel
from phase8.train.shape import Shape
from phase8.train.slicing import Narrow
from phase8.train.whole import TrainedStage
from phase8.train.within_budget import Plan


class Fixed(BudgetTrainable):
    """Codes whose size no price changes."""

    steerable = False

    def bits(self) -> Tensor:
        """Nothing to steer."""
        return torch.zeros(())

    def coded_bits(self) -> float:
        """See `BudgetTrainable`."""
        return 8.0 * self.coded_bytes()

    def cheapen(self, strength: float) -> int:
        """Changes nothing."""
        return 0


class Ternary(Fixed):
    """Matrices of -1, 0 and 1 times a scale: the mean magnitude of the weights under them."""

    def __init__(self, weights: dict[str, Tensor], shapes: dict[str, tuple[int, int]]) -> None:
        super().__init__()
        self._names, self._shapes = list(weights), shapes
        self.values = nn.ParameterList([nn.Parameter(weight.clone()) for weight in weights.values()])

    def _parts(self, value: Tensor) -> tuple[Tensor, Tensor]:
        scale = value.detach().abs().mean().half().float().clamp_min(2.0**-24)
        return scale, (value.detach() / scale).round().clamp(-1.0, 1.0)

    def weights(self) -> dict[str, Tensor]:
        """See `BudgetTrainable`."""
        found = {}
        for name, value in zip(self._names, self.values, strict=True):
            scale, signs = self._parts(value)
            found[name] = round_through(value, signs * scale)
        return found

    def _integers(self) -> dict[str, np.ndarray]:
        pairs = zip(self._names, self.values, strict=True)
        return {name: self._parts(value)[1].to(torch.int64).numpy() for name, value in pairs}

    def coded_bytes(self) -> int:
        """See `BudgetTrainable`."""
        return len(contexts.encode(list(self._integers().values())))

    def groups(self) -> list[EncodedGroup]:
        """See `BudgetTrainable`."""
        steps = {name: float(self._parts(v)[0]) for name, v in zip(self._names, self.values, strict=True)}
        return [pack(self._integers(), steps, self._shapes)]


class LittleBit(Fixed):
    """Factors of signs between scales of rows, ranks and columns."""

    def __init__(self, weights: dict[str, Tensor], bits_per_weight: float) -> None:
        super().__init__()
        self._names, self.factors = list(weights), nn.ParameterList()
        for weight in weights.values():
            rows, columns = weight.shape
            rank = max(1, int((bits_per_weight * weight.numel() - 16 * (rows + columns)) / (rows + columns + 16)))
            u, s, v = torch.linalg.svd(weight.float(), full_matrices=False)
            rank = min(rank, len(s))
            u_OR, v_IR = u[:, :rank] * s[:rank].sqrt(), v[:rank].T * s[:rank].sqrt()
            h_O, lu_R = _first(u_OR.abs())
            g_I, lv_R = _first(v_IR.abs())
            self.factors.extend(nn.Parameter(x.contiguous()) for x in (u_OR, v_IR, h_O, g_I, lu_R * lv_R))

    def weights(self) -> dict[str, Tensor]:
        """See `BudgetTrainable`."""
        found = {}
        for number, name in enumerate(self._names):
            u, v, h, g, scales = self.factors[5 * number : 5 * number + 5]
            signs = [round_through(x.clamp(-1.0, 1.0), torch.where(x >= 0, 1.0, -1.0)) for x in (u, v)]
            h, g, scales = (round_through(x, x.half().float()) for x in (h, g, scales))
            found[name] = h[:, None] * ((signs[0] * scales) @ signs[1].T) * g
        return found

    def coded_bytes(self) -> int:
        """A bit for every sign, 16 for every scale."""
        bits = [x.numel() * (1 if x.dim() == 2 else 16) for x in self.factors]
        return (sum(bits) + 7) // 8

    def groups(self) -> list[EncodedGroup]:
        """None: no format of ours holds it."""
        return []


def _first(magnitudes: Tensor) -> tuple[Tensor, Tensor]:
    """The best product of a column and a row."""
    u, s, v = torch.linalg.svd(magnitudes, full_matrices=False)
    sign = torch.sign(u[:, 0].sum())
    return u[:, 0] * sign * s[0].sqrt(), v[0] * sign * s[0].sqrt()


@dataclass(frozen=True)
class Control:
    """What to train, and at which size."""

    method: str
    setting: str
    shape: Shape
    kind: str
    ratio: float
    """Of the student's budget; for the others a budget that nothing exceeds."""
    bits: float = 0.0
    """A weight, of LittleBit."""
    note: str = ""


COUNTED = "bytes counted: 1 bit a sign, 16 a scale, and the artifact's side information; no file"
CONTROLS = (
    Control("ternary student, distilled", "whole width", Shape(), "ternary", 4.0),
    Control("ternary student, distilled", "width 48 of 64", Shape(width=0.75, units=0.75), "ternary", 4.0),
    Control("ternary student, distilled", "width 40 of 64", Shape(width=0.625, units=0.625), "ternary", 4.0),
    Control("LittleBit-style factors, distilled", "1.7 bits a weight", Shape(), "littlebit", 4.0, 1.7, COUNTED),
    Control("LittleBit-style factors, distilled", "0.65 bits a weight", Shape(), "littlebit", 4.0, 0.65, COUNTED),
    Control("dense student, distilled", "width 40 of 64, 16x", Shape(width=0.625, units=0.625), "student", 16.0),
    Control("dense student, distilled", "width 24 of 64, 40x", Shape(width=0.375, units=0.375), "student", 40.0),
    Control("dense student, distilled", "width 32 of 64, 40x", Shape(width=0.5, units=0.5), "student", 40.0),
)


class ControlStage(TrainedStage):
    """A trained stage whose codes are a control's."""

    control: Control

    def _narrow(self) -> Narrow | None:
        part = super()._narrow()
        if self.control.kind == "student" and part is not None:
            randomise(part.network)
        return part

    def _start(self, network: nn.Module, part: Narrow | None) -> Any:
        trainable, vectors = super()._start(network, part)
        own = dict(network.named_parameters())
        weights = {name: own[name].detach().float() for name in self._coded_names()}
        if self.control.kind == "ternary":
            return Ternary(weights, {name: self._matrix_shape(name) for name in weights}), vectors
        if self.control.kind == "littlebit":
            return LittleBit(weights, self.control.bits), vectors
        return trainable, vectors


def measure(source: SourceModel, control: Control) -> dict[str, Any]:
    """Trains one and scores it."""
    text = story_text(source)

    def size(groups: Any) -> int:
        return sum(map(len, contents(groups, source, stage="hyper").values()))

    stage = ControlStage(source, text.tokens_NT, shape=control.shape, start_step=0.3, size=size, cache_dir=CACHE)
    stage.control = control
    begin = time.monotonic()
    trained = stage.run(int(source.original_bytes / control.ratio), replace(Plan(steps=ROW_STEPS), seed=0))
    seconds = time.monotonic() - begin
    network = load("tinystories").network
    assert stage._in_hand is not None
    with torch.no_grad():
        own = dict(network.named_parameters())
        found = {n: torch.from_numpy(w) for group in trained.groups for n, w in decode(group)}
        if control.kind == "littlebit":
            found |= stage._in_hand[0].weights()
        for name, weight in found.items():
            own[name].copy_(weight)
    counted = stage._in_hand[0].coded_bytes() if control.kind == "littlebit" else 0
    total = size(trained.groups) + counted
    bits = score(network, source.tokenizer, model="tinystories")["bits_per_byte"]
    return {
        "artifact_bytes": total,
        "ratio": source.original_bytes / total,
        "bits_per_byte": bits,
        "training_s": seconds,
    }


def main() -> int:
    """Measures what is missing."""
    source = load("tinystories")
    for control in CONTROLS:
        setting = f"{control.setting}, {ROW_STEPS:,} steps"
        row = ("tinystories", control.method, setting)
        if any((one["model"], one["method"], one["setting"]) == row for one in read_rows()):
            continue
        found = measure(source, control)
        print(control.method, setting, found, flush=True)
        add_row(
            {
                "method": control.method,
                "setting": setting,
                "ours": False,
                "group": CONTROL,
                "model": "tinystories",
                "retention_raw": None,
                "retention_chance_corrected": None,
                "seed": 0,
                "trained_tokens": ROW_STEPS * 16 * LENGTH,
                "command": "python -m experiments.controls",
                **({"note": control.note} if control.note else {}),
                **found,
            }
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
