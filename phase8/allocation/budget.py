"""From a byte budget for a stage's artifact to encoded groups that keep it: measure once, choose, encode, compare.

    allocator = Allocator(...)              refuses a budget below the smallest possible, before any work
    allocator.measure(...)                  once, see `measure`
    allocation = allocator.encode(budget)   as often as needed; what was encoded before is used again

Real bytes differ from the estimate, which comes from samples. Their ratio corrects the next choice, up to `_ENCODINGS`
times in all; the largest result within the budget stands. Where all were too large, packed widths decide, which entropy
coding cannot exceed.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phase8.allocation.lagrange import allocate, total_bytes
from phase8.allocation.measure import Measurement, measure
from phase8.allocation.packed import packed_bits
from phase8.codecs import EncodedGroup, Importance, get_codec
from phase8.codecs.base import Progress
from phase8.codecs.pools import pools
from phase8.codecs.settings import StageSettings
from phase8.errors import ArtifactError, ConfigError
from phase8.files import read_sealed, write_sealed
from phase8.model.source import SourceModel, in_place
from phase8.train.divergence import tensor_sensitivity

SENSITIVITY_SEQUENCES = 8
_GROWTH = 2.0
"""Power of D with which a tensor's share of the divergence is taken to grow. Alone it grows with about D^1.2, but
faster where all tensors are coded; of 1, 1.2, 1.5 and 2, 2 came out best with both codecs (experiments/LOG.md)."""
_EXACT = 1e-9
"""A relative error below this is none."""
_ENCODINGS = 3
_MARGIN = 0.998
"""What an estimate may fill of the budget, so that half of the first encodings do not end just above it."""
_CLOSE = 0.005
"""A result this near below the budget is not encoded again."""
_NAME_BYTES = 40
"""What a tensor's name, shape and streams take in the manifest at most, deflated and in base64."""
_GROUP_BYTES = 400


_FOUND = fields(Measurement)
MAX_MEASUREMENT_BYTES = 1 << 26


@dataclass(frozen=True, kw_only=True, slots=True)
class Allocation:
    """Encoded groups within a budget, and what was chosen for which tensor."""

    groups: list[EncodedGroup]
    size_bytes: int
    """Of the whole artifact, as it would be written."""
    estimated_bytes: int
    """The estimate before anything was encoded."""
    estimated_divergence: float
    """Sum of the tensors' estimated shares of the KL divergence to the original, nats per token."""
    encodings: int
    tensors: dict[str, dict[str, Any]]
    """By name: the chosen settings, bits per weight, relative error and share of the divergence, estimated."""


def _impact_of(alone_T: np.ndarray, relative_T: np.ndarray) -> np.ndarray:
    """KL / (relative error)^2 of each tensor; where its code was exact (a codebook with room for all), the median."""
    known = relative_T > _EXACT
    impact_T = alone_T / np.where(known, relative_T, 1.0) ** _GROWTH
    return np.where(known, impact_T, np.median(impact_T[known]) if known.any() else 1.0)


@dataclass
class Allocator:
    """One stage's choice of settings for the matrices of one model.

    Args:
        stage: its name.
        config: the stage's settings.
        matrices: what the stage codes, float32 [O, I] by name.
        size_of: bytes of the artifact that these coded groups would make, everything else included.
    """

    stage: str
    config: StageSettings
    matrices: Mapping[str, Tensor]
    size_of: Callable[[Sequence[EncodedGroup]], int]
    seed: int = 0
    _settings: list[StageSettings] = field(default_factory=list)
    _measured: Measurement | None = None
    _impact_TS: np.ndarray | None = None
    _importance: Mapping[str, Importance] = field(default_factory=dict)
    _encoded: dict[tuple[StageSettings, tuple[str, ...]], EncodedGroup] = field(default_factory=dict)
    """What was encoded, by settings and names."""

    def __post_init__(self) -> None:
        self._settings = self.config.alternatives()

    def smallest_bytes(self) -> int:
        """The smallest budget that is met whatever the weights are: every matrix at the cheapest settings, packed."""
        return min(self.bytes_at_most(config) for config in self._settings)

    def bytes_at_most(self, config: StageSettings) -> int:
        """At most what the artifact takes where all matrices have these settings."""
        groups = self._pools()
        bits = sum(
            packed_bits(self.stage, config, {name: tuple(self.matrices[name].shape) for name in group})
            for group in groups
        )
        return self.size_of([]) + bits // 8 + (_GROUP_BYTES + 1) * len(groups) + _NAME_BYTES * len(self.matrices)

    def _pools(self) -> list[list[str]]:
        return pools(self.matrices, self.config)

    def measure(
        self,
        source: SourceModel,
        importance: Mapping[str, Importance],
        tokens_NT: Tensor,
        budget_bytes: int,
        *,
        on_step: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Measures every candidate on every matrix, once, and how much each matrix matters at about this budget.

        Args:
            tokens_NT: held-out text, int64; the first few sequences are used.
            budget_bytes: what matters is measured with one setting for all that fits into it.
            on_step: called with the number of steps done and their total.
        """
        total = len(self._settings) + 2
        self._importance = importance
        if self._measured is None:
            self._measured = measure(
                self.stage, self._settings, self.matrices, self._pools(), importance, seed=self.seed,
                on_candidate=lambda done: on_step(done, total),
            )  # fmt: skip
        found = self._measured
        sizes = [self.bytes_at_most(config) for config in self._settings]
        reference = max((s for s, size in enumerate(sizes) if size <= budget_bytes), key=sizes.__getitem__, default=0)
        coded = {}
        for group in self.uniform(self._settings[reference]):
            for name, weights in get_codec(self.stage).decode(group).items():
                module, parameter = source.parameters[name]
                coded[name] = in_place((module, parameter), torch.from_numpy(weights)).to(parameter.device)
        on_step(total - 1, total)
        per_weight = tensor_sensitivity(source.network, coded, tokens_NT[:SENSITIVITY_SEQUENCES])
        on_step(total, total)
        alone_T = np.array([max(per_weight[name], 0.0) * self.matrices[name].numel() for name in found.names])
        relative_TS = found.distortion_TS / np.maximum(found.energy_T, 1e-300)[:, None]
        self._impact_TS = _impact_of(alone_T, relative_TS[:, reference])[:, None] * relative_TS**_GROWTH

    @property
    def measured(self) -> bool:
        """Whether `measure` or `read` has been called."""
        return self._measured is not None

    def write(self, path: Path) -> None:
        """Writes what `measure` found, completely or not at all.

        Raises:
            OutputError: the disk is full or the place is not writable.
        """
        assert self._measured is not None and self._impact_TS is not None, "call measure first"
        content = io.BytesIO()
        np.savez(content, impact_TS=self._impact_TS, **{f.name: getattr(self._measured, f.name) for f in _FOUND})
        write_sealed(path, content.getvalue())

    def read(self, path: Path, importance: Mapping[str, Importance]) -> bool:
        """Takes what `write` wrote in place of `measure`; returns True.

        Args:
            importance: as for `measure`.

        Raises:
            ArtifactError: the file is missing, damaged or of another model.
        """
        raw = read_sealed(path, MAX_MEASUREMENT_BYTES, error=ArtifactError)
        try:
            with np.load(io.BytesIO(raw), allow_pickle=False) as content:
                values = {name: content[name] for name in content.files}
            found = Measurement(**{f.name: values[f.name] for f in _FOUND} | {"names": values["names"].tolist()})
            impact_TS = values["impact_TS"]
        except Exception as error:  # a damaged archive raises what it likes: a bit can ask for a password
            raise ArtifactError(f"not a measurement: {error}", where=str(path)) from error
        pools_T = {name: g for g, pool in enumerate(self._pools()) for name in pool}
        shapes = {"T": len(self.matrices), "S": len(self._settings), "G": len(set(pools_T.values()))}
        alike = sorted(found.names) == sorted(self.matrices) and all(
            values[name].shape == tuple(shapes[letter] for letter in name.rpartition("_")[2])
            for name in values
            if name != "names"
        )
        if not alike or found.pool_T.tolist() != [pools_T[name] for name in found.names]:
            raise ArtifactError("the measurement is of other matrices or settings", where=str(path))
        if not all(np.isfinite(value).all() for name, value in values.items() if name != "names"):
            raise ArtifactError("the measurement holds a figure that is not finite", where=str(path))
        self._measured, self._impact_TS, self._importance = found, impact_TS, importance
        return True

    def uniform(self, config: StageSettings) -> list[EncodedGroup]:
        """All matrices with one of the candidate settings."""
        assert self._measured is not None, "call measure first"
        return self._groups(np.full(len(self._measured.names), self._settings.index(config)), None)

    def encode(self, budget_bytes: int, *, on_progress: Progress | None = None) -> Allocation:
        """Encodes all matrices so that the artifact is within the budget, as near to it as the settings allow.

        Raises:
            ConfigError: not even the cheapest settings are within the budget.
        """
        found, impact_TS = self._measured, self._impact_TS
        assert found is not None and impact_TS is not None, "call measure first"
        base = self.size_of([]) + _NAME_BYTES * len(found.names)
        factor, best, first_estimate = 1.0, None, 0.0
        for number in range(1, _ENCODINGS + 2):
            packed = number > _ENCODINGS
            if packed and best is not None:
                break
            sizes, charges = (found.packed_TS, found.packed_charge_GS) if packed else (found.bytes_TS, found.charge_GS)
            room = (budget_bytes - base) * (1.0 if packed else _MARGIN / factor)
            chosen_T = allocate(sizes, impact_TS, charges, found.pool_T, room)
            if chosen_T is None:  # one setting for all takes the fewest charges
                chosen_T = np.full(len(found.names), (sizes.sum(0) + charges.sum(0)).argmin())
            estimate = total_bytes(chosen_T, sizes, charges, found.pool_T)
            first_estimate = first_estimate or base + estimate
            groups = self._groups(chosen_T, on_progress)
            size = self.size_of(groups)
            if size <= budget_bytes and (best is None or size > best.size_bytes):
                best = Allocation(
                    groups=groups,
                    size_bytes=size,
                    estimated_bytes=round(first_estimate),
                    estimated_divergence=float(impact_TS[np.arange(len(chosen_T)), chosen_T].sum()),
                    encodings=number,
                    tensors=self._told(chosen_T, impact_TS),
                )
            if (1 - _CLOSE) * budget_bytes <= size <= budget_bytes:
                break
            factor = (size - base) / estimate
        if best is None:
            raise ConfigError(
                f"{self.stage} cannot reach {budget_bytes:,} bytes: with the cheapest settings it takes {size:,}",
                where=f"{self.stage}.budget_bytes or target_ratio",
                fix=f"allow {size:,} bytes or more",
            )
        return best

    def _groups(self, chosen_T: np.ndarray, on_progress: Progress | None) -> list[EncodedGroup]:
        """Encodes a choice: tensors of one pool with the same settings form a group."""
        found = self._measured
        assert found is not None
        codec = get_codec(self.stage)
        members: dict[tuple[int, int], list[str]] = {}
        for name, pool, s in zip(found.names, found.pool_T.tolist(), chosen_T.tolist(), strict=True):
            members.setdefault((pool, s), []).append(name)
        groups = []
        for (_, s), names in members.items():
            # Tensors that share nothing are encoded once each, whatever group they end up in.
            parts = [tuple(names)] if self.config.SHARES else [(name,) for name in names]
            new = [part for part in parts if (self._settings[s], part) not in self._encoded]
            fresh = [name for part in new for name in part]
            if fresh:
                encoded = codec.encode(
                    {name: self.matrices[name] for name in fresh},
                    self._settings[s],
                    importance={name: self._importance[name] for name in fresh if name in self._importance},
                    seed=self.seed,
                    on_progress=on_progress,
                )
                for part in new:
                    tensors = {name: encoded.tensors[name] for name in part}
                    self._encoded[self._settings[s], part] = replace(encoded, tensors=tensors)
            if on_progress is not None:
                on_progress(sum(self.matrices[name].numel() for name in names if name not in fresh))
            found_parts = [self._encoded[self._settings[s], part] for part in parts]
            tensors = {name: tensor for part in found_parts for name, tensor in part.tensors.items()}
            groups.append(replace(found_parts[0], tensors=tensors))
        return groups

    def _told(self, chosen_T: np.ndarray, impact_TS: np.ndarray) -> dict[str, dict[str, Any]]:
        found = self._measured
        assert found is not None
        told = {}
        for t, (name, s) in enumerate(zip(found.names, chosen_T.tolist(), strict=True)):
            told[name] = {
                **{setting: getattr(self._settings[s], setting) for setting in self.config.VARIED},
                "bits_per_weight": float(8 * found.bytes_TS[t, s] / self.matrices[name].numel()),
                "relative_error": float(found.distortion_TS[t, s] / max(found.energy_T[t], 1e-300)),
                "divergence": float(impact_TS[t, s]),
            }
        return told
