"""Which trajectory carries weights best at a given rate?

    python experiments/trajectories.py

Encodes synthetic weights (Gaussian, and Student-t with 4 degrees of freedom for heavy tails) with the four
trajectories of the hyper codec over a range of settings, decodes them, and writes relative squared error against bits
per weight to `results/trajectories.md` and `.csv` beside this file. Two rates are given: `packed`, every stream at its
plain width, and `coded`, where the streams of one role cost what an adaptive order-0 arithmetic coder
(Krichevsky-Trofimov estimator) spends on them, its learning included, if that is less. Seconds are processor time on
one core. 2^(-2R) is the least error that any coder can reach on Gaussian weights at the coded rate R.

    python experiments/trajectories.py --depth

compares series over the layers (`axis=depth`) with series over blocks and with the winding at the same packed bits per
weight, and writes `results/depth.md` and `.csv`. Three sources, matrices in layers only: the embedded reference model;
*planted*: twelve layers of two kinds, quadratics of the layer's place (three Gaussian matrices times 1, x, x^2 with x
from -1 to 1) and 1 % noise; *unrelated*: twelve layers of Gaussian matrices. T planes for L layers and blocks of L
weights with as many terms take the same coefficients, so those pairs differ in a few scales only.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from phase8.codecs import EncodedGroup, Stream
from phase8.codecs.hyper import HyperCodec
from phase8.config import Axis, CompressionConfig, HyperConfig, Trajectory, Winding
from phase8.model.source import load_source

MATRICES, SHAPE, SIGMA = 2, (256, 512), 0.02
BUDGETS_BITS = (1.01, 0.135)
"""Coded bits per weight at which the best is named: about 1 and about 0.13. The streams shared by a group (16 bits for
each of K + 1 numbers) weigh up to 0.008 on this small sample, and 0.0006 on a model of 3.6 million weights."""


def winding(dims: int, grid: int, direction: Winding = Winding.primes, classes: int = 0, side: float = 0.0):
    return HyperConfig(dims=dims, grid=grid, winding=direction, classes=classes, side=side)


def series(kind: Trajectory, block_size: int, degree: int, bits: int = 8):
    return HyperConfig(trajectory_type=kind, block_size=block_size, degree=degree, coefficient_bits=bits)


def manifold(block_size: int, inputs: int, frequency: int, width: int = 32, depth: int = 2, bits: int = 8):
    return HyperConfig(
        trajectory_type=Trajectory.manifold, block_size=block_size, inputs=inputs, frequency=frequency, width=width,
        depth=depth, coefficient_bits=bits,
    )  # fmt: skip


def settings() -> list[HyperConfig]:
    """Every row of the table."""
    rows = [winding(2, 1600, Winding.power, 3, 0.1), winding(2, 1600, Winding.power, 3)]
    for dims, grid in ((2, 1600), (12, 4095), (64, 255), (96, 4095)):
        rows += [winding(dims, grid, direction) for direction in Winding]
    rows += [winding(*s) for s in ((4, 255), (4, 4095), (8, 255), (16, 65535), (112, 16383), (128, 65535))]
    rows += [winding(12, 2047, Winding.primes, 1), winding(96, 1023, Winding.primes, 3)]
    for kind in (Trajectory.polynomial, Trajectory.fourier):
        rows += [series(kind, 0, 5), series(kind, 64, 0), series(kind, 64, 3), series(kind, 64, 3, 2)]
        rows += [series(kind, 64, 15), series(kind, 64, 15, 2)]
    rows += [manifold(192, 2, frequency) for frequency in (8, 32, 128)]
    rows += [manifold(320, 4, 8), manifold(24, 2, 64, width=24, depth=1), manifold(24, 3, 32, width=24, bits=6)]
    rows += [manifold(64, 7, 4)]
    rows += [series(Trajectory.fourier, 65, 32, 2), series(Trajectory.fourier, 65, 32, 3)]
    return rows


DEPTH, DEPTH_SHAPE = 12, (128, 96)


def depth_sources() -> dict[str, dict[str, torch.Tensor]]:
    """Matrices of layers, by source."""
    rng = np.random.default_rng(1)
    reference = load_source(CompressionConfig().model.path).matrices()
    x, kinds = np.linspace(-1, 1, DEPTH), ("a", "b")
    parts = {kind: rng.standard_normal((3, *DEPTH_SHAPE)) for kind in kinds}
    planted = {
        f"layers.{n}.{kind}": sum(part * x[n] ** k for k, part in enumerate(parts[kind]))
        + 0.01 * rng.standard_normal(DEPTH_SHAPE)
        for n in range(DEPTH)
        for kind in kinds
    }
    unrelated = {name: rng.standard_normal(DEPTH_SHAPE) for name in planted}
    made = {"planted": planted, "unrelated": unrelated}
    return {"reference": {name: w for name, w in reference.items() if ".layers." in name}} | {
        source: {name: torch.from_numpy(SIGMA * w).float() for name, w in some.items()} for source, some in made.items()
    }


def depth_settings(depth: int) -> list[HyperConfig]:
    """Pairs over depth and over blocks, and windings of the same rate where there is one."""
    rows = []
    for degree in range(depth) if depth <= 4 else (0, 1, 2, 3, 5):
        for bits in (8, 4):
            rows += [replace(series(Trajectory.polynomial, depth, degree, bits), axis=axis) for axis in Axis]
    # Odd numbers of terms: Fourier series beside the polynomials of the same.
    for frequencies in range(1, 2 if depth <= 4 else 3):
        rows += [replace(series(Trajectory.fourier, depth, frequencies), axis=axis) for axis in Axis]
    return [*rows, winding(16, 4095), winding(12, 4095), winding(8, 4095), winding(4, 255), winding(4, 4095)]


def depth_table() -> None:
    """Relative squared errors at equal bits, over depth and over blocks."""
    codec, rows = HyperCodec(), []
    for source, weights in depth_sources().items():
        layers = len({name.split("layers.")[1].split(".")[0] for name in weights})
        total = sum(w.numel() for w in weights.values())
        energy = sum(float((w.double() ** 2).sum()) for w in weights.values())
        for config in depth_settings(layers):
            group = codec.encode(weights, config, importance={}, seed=0)
            decoded = codec.decode(group)
            error = sum(float(((w - torch.from_numpy(decoded[n])).double() ** 2).sum()) for n, w in weights.items())
            axis = "-" if config.trajectory_type is Trajectory.ergodic else config.axis.value
            rows.append(
                {
                    "source": source, "layers": layers, "trajectory": config.trajectory_type.value, "axis": axis,
                    "settings": describe(config), "packed": group.packed_bits() / total, "coded": rate(group) / total,
                    "error": error / energy,
                }
            )  # fmt: skip
            print(*rows[-1].values(), flush=True)
    results = Path(__file__).parent / "results"
    with (results / "depth.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows({k: f"{v:.6f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    lines = [
        "# Series over depth and over blocks",
        "",
        "Relative squared error against bits per weight; made by `python experiments/trajectories.py --depth`,"
        " whose head explains sources and columns. Over depth, `block` in the settings is for matrices without"
        " partners, of which there are none here.",
        "",
        "| source | layers | trajectory | axis | settings | packed | coded | error |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        lines.append(
            f"| {r['source']} | {r['layers']} | {r['trajectory']} | {r['axis']} | {r['settings']} | "
            f"{r['packed']:.4f} | {r['coded']:.4f} | {r['error']:.6f} |"
        )
    (results / "depth.md").write_text("\n".join(lines) + "\n")


def coded_bits(streams: list[Stream]) -> float:
    """Length of streams coded together by an adaptive order-0 coder over 2^bits symbols, or packed if that is less."""
    values = np.concatenate([s.values for s in streams])
    counts = torch.from_numpy(np.bincount(values.astype(np.int64))).double()
    counts = counts[counts > 0]
    alphabet = 2.0 ** streams[0].bits
    half = torch.tensor(0.5, dtype=torch.float64)
    nats = math.lgamma(len(values) + alphabet / 2) - math.lgamma(alphabet / 2)
    nats -= float((torch.lgamma(counts + 0.5) - torch.lgamma(half)).sum())
    return min(nats / math.log(2), float(streams[0].bits * len(values)))


def rate(group: EncodedGroup) -> float:
    """Coded bits of a whole group: streams of one role together."""
    pools: dict[str, list[Stream]] = {}
    for streams in [group.shared, *(t.streams for t in group.tensors.values())]:
        for role, stream in streams.items():
            pools.setdefault(role, []).append(stream)
    return sum(coded_bits(pool) for pool in pools.values())


def sources() -> dict[str, dict[str, torch.Tensor]]:
    rng = np.random.default_rng(0)
    draws = {
        "gaussian": lambda: rng.standard_normal(SHAPE),
        "student_t4": lambda: rng.standard_t(4, SHAPE) / math.sqrt(2.0),
    }
    return {
        name: {f"w{i}": torch.from_numpy(SIGMA * draw()).float() for i in range(MATRICES)}
        for name, draw in draws.items()
    }


def describe(config: HyperConfig) -> str:
    if config.trajectory_type is Trajectory.ergodic:
        text = f"K={config.dims} U={config.grid} {config.winding.value}"
        text += f" M={config.classes}" if config.classes else ""
        return text + (f" l={config.side} (published)" if config.side else "")
    if config.trajectory_type is Trajectory.manifold:
        network = f"K={config.inputs} F={config.frequency} net {config.width}x{config.depth}"
        return f"block={config.block_size} {network} {config.coefficient_bits}-bit"
    block = config.block_size or "tensor"
    return f"block={block} degree={config.degree} {config.coefficient_bits}-bit"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", action="store_true", help="only the comparison of series over depth")
    torch.set_num_threads(1)
    if parser.parse_args().depth:
        depth_table()
        return
    codec = HyperCodec()
    total = MATRICES * math.prod(SHAPE)
    rows = []
    for config in settings():
        row = {"trajectory": config.trajectory_type.value, "settings": describe(config)}
        for source, weights in sources().items():
            start = time.process_time()
            group = codec.encode(weights, config, importance={}, seed=0)
            seconds = time.process_time() - start
            decoded = codec.decode(group)
            error = sum(float(((w - torch.from_numpy(decoded[n])).double() ** 2).sum()) for n, w in weights.items())
            energy = sum(float((w.double() ** 2).sum()) for w in weights.values())
            bits = rate(group) / total
            row |= {f"{source}_packed": group.packed_bits() / total, f"{source}_coded": bits}
            row |= {f"{source}_error": error / energy, f"{source}_s": seconds}
        row["gaussian_limit"] = 2.0 ** (-2.0 * row["gaussian_coded"])
        rows.append(row)
        print(
            f"{row['trajectory']:10} {row['settings']:40} {row['gaussian_packed']:.3f} packed  "
            f"{row['gaussian_coded']:.3f} coded  gaussian {row['gaussian_error']:.4f} "
            f"(limit {row['gaussian_limit']:.4f})  t4 {row['student_t4_error']:.4f} at {row['student_t4_coded']:.3f}  "
            f"{row['gaussian_s']:.1f} s",
            flush=True,
        )
    write(rows, total)


def write(rows: list[dict], total: int) -> None:
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    with (results / "trajectories.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(
            {k: v if isinstance(v, str) else f"{v:.3f}" if k.endswith("_s") else f"{v:.6f}" for k, v in row.items()}
            for row in rows
        )
    lines = [
        "# Trajectories: error against rate",
        "",
        f"Relative squared error of {total:,} synthetic weights; bits per weight; made by "
        "`python experiments/trajectories.py`, whose head explains the columns.",
        "",
        "| trajectory | settings | packed | coded | Gaussian error | 2^(-2R) | t4 coded | t4 error | encode, s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in sorted(rows, key=lambda r: -r["gaussian_coded"]):
        lines.append(
            f"| {r['trajectory']} | {r['settings']} | {r['gaussian_packed']:.4f} | {r['gaussian_coded']:.4f} | "
            f"{r['gaussian_error']:.5f} | {r['gaussian_limit']:.5f} | {r['student_t4_coded']:.4f} | "
            f"{r['student_t4_error']:.5f} | {r['gaussian_s']:.1f} |"
        )
    lines.append("")
    for budget in BUDGETS_BITS:
        for source in ("gaussian", "student_t4"):
            best = min((r for r in rows if r[f"{source}_coded"] <= budget), key=lambda r: r[f"{source}_error"])
            lines.append(
                f"- Best on {source} at up to {budget} coded bits: {best['trajectory']} {best['settings']}, "
                f"error {best[f'{source}_error']:.4f} at {best[f'{source}_coded']:.4f} bits."
            )
    print("\n".join(lines[-2 * len(BUDGETS_BITS) :]))
    (results / "trajectories.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
