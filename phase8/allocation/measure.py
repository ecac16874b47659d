"""What each candidate setting costs and damages, per tensor, measured on a sample of its rows.

Distortion of a tensor with error e: D = sum_o r_o e_o H e_o^T (`Importance`). Of a sample, the share D / D(weights) is
taken, and stands for all rows: rows of one matrix are damaged in proportion to their energy.

Shape legend: O rows and I columns of a matrix, R sampled rows, T tensors, S candidates, G pools.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from phase8.codecs import EncodedGroup, Importance, Stream, decoders, get_codec
from phase8.codecs.settings import StageSettings
from phase8.lossless import entropy

_GROUP_BITS = 8 * 300
"""What a group adds to the manifest and in coding tables, about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """Every candidate on every tensor."""

    names: list[str]
    pool_T: np.ndarray
    """Number of the pool that each tensor belongs to."""
    packed_TS: np.ndarray
    """Bytes of each tensor's own streams in plain packing, whole tensor."""
    bytes_TS: np.ndarray
    """The same after entropy coding, estimated from the sample."""
    packed_charge_GS: np.ndarray
    charge_GS: np.ndarray
    """Bytes of what a pool's tensors share with a setting, packed and estimated."""
    distortion_TS: np.ndarray
    """D of the whole tensor, estimated."""
    energy_T: np.ndarray
    """D of an error as large as the tensor itself: D / energy is a relative error."""


def weighted_energy(error_OI: Tensor, importance: Importance) -> Tensor:
    """D of each row, float64 [O]: r_o e_o H e_o^T; without a Hessian the squared length, without row weights r = 1."""
    product_OI = error_OI if importance.hessian_II is None else error_OI @ importance.hessian_II
    energy_O = (product_OI * error_OI).double().sum(1)
    return energy_O if importance.row_O is None else energy_O * importance.row_O.double()


def sampled_rows(rows: int, columns: int, settings: StageSettings | type[StageSettings]) -> Tensor:
    """Which rows of a matrix are measured: runs at even distances, all rows of a small matrix; int64 [R], ascending."""
    run, most = settings.SAMPLED_ROWS, settings.SAMPLED_WEIGHTS
    wanted = max(1, round(most / (run * columns)))
    if wanted * run >= rows:
        return torch.arange(rows)
    starts = torch.arange(wanted) * (rows - run) // max(wanted - 1, 1)
    return (starts[:, None] + torch.arange(run)).reshape(-1).unique()


def measure(
    stage: str,
    settings: Sequence[StageSettings],
    matrices: Mapping[str, Tensor],
    pools: Sequence[Sequence[str]],
    importance: Mapping[str, Importance],
    *,
    seed: int,
    on_candidate: Callable[[int], None],
) -> Measurement:
    """Encodes a sample of every matrix with every candidate.

    Args:
        settings: S candidates.
        matrices: float32 [O, I] by name.
        pools: names of the matrices that share parameters when they have the same settings; every name once.
        importance: may lack names.
        on_candidate: called with the number of candidates done.
    """
    codec = get_codec(stage)
    names = [name for pool in pools for name in pool]
    place = {name: t for t, name in enumerate(names)}
    weights = {name: importance.get(name, Importance()) for name in names}
    chosen = {name: sampled_rows(*matrices[name].shape, settings[0]) for name in names}
    samples = {name: matrices[name][rows] for name, rows in chosen.items()}
    partial = {
        name: Importance(hessian_II=w.hessian_II, row_O=None if w.row_O is None else w.row_O[chosen[name]])
        for name, w in weights.items()
    }
    sample_energy = {name: float(weighted_energy(samples[name], partial[name]).sum()) for name in names}
    energy_T = np.array([float(weighted_energy(matrices[name], weights[name]).sum()) for name in names])

    shape_TS = len(names), len(settings)
    packed_TS, bytes_TS, distortion_TS = np.zeros(shape_TS), np.zeros(shape_TS), np.zeros(shape_TS)
    packed_GS, charge_GS = np.zeros((len(pools), len(settings))), np.zeros((len(pools), len(settings)))
    for s, config in enumerate(settings):
        for g, pool in enumerate(pools):
            inside = {name: samples[name] for name in pool}
            group = codec.encode(inside, config, importance={name: partial[name] for name in pool}, seed=seed)
            left = _coded_share(group)
            full = decoders.layout(group.codec, group.settings, {name: tuple(matrices[name].shape) for name in pool})
            shared = [(count * bits, left[role, bits]) for role, (count, bits) in full.shared.items()]
            packed_GS[g, s] = (sum(bits for bits, _ in shared) + _GROUP_BITS) / 8
            charge_GS[g, s] = (sum(bits * share for bits, share in shared) + _GROUP_BITS) / 8
            for name, decoded_RI in codec.decode(group).items():
                t = place[name]
                own = [(count * bits, left[role, bits]) for role, (count, bits) in full.tensors[name].items()]
                packed_TS[t, s] = sum(bits for bits, _ in own) / 8
                bytes_TS[t, s] = sum(bits * share for bits, share in own) / 8
                error = weighted_energy(samples[name] - torch.from_numpy(decoded_RI), partial[name]).sum()
                share = float(error) / sample_energy[name] if sample_energy[name] > 0 else 0.0
                distortion_TS[t, s] = share * energy_T[t]
        on_candidate(s + 1)
    return Measurement(
        names=names,
        pool_T=np.array([g for g, pool in enumerate(pools) for _ in pool]),
        packed_TS=packed_TS,
        bytes_TS=bytes_TS,
        packed_charge_GS=packed_GS,
        charge_GS=charge_GS,
        distortion_TS=distortion_TS,
        energy_T=energy_T,
    )


def _coded_share(group: EncodedGroup) -> dict[tuple[str, int], float]:
    """By role and width of a stream: what entropy coding leaves of the packed bits, all tensors' streams together."""
    streams: dict[tuple[str, int], list[Stream]] = {}
    for owner in (group.shared, *(tensor.streams for tensor in group.tensors.values())):
        for role, stream in owner.items():
            streams.setdefault((role, stream.bits), []).append(stream)
    shares = {}
    for (role, bits), pool in streams.items():
        values = np.concatenate([stream.values.astype(np.uint32) for stream in pool])
        shares[role, bits] = min(1.0, 8 * len(entropy.encode(values, bits)[1]) / max(1, bits * values.size))
    return shares
