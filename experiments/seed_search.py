"""Speed and error of the SeedLM seed search, fast against exhaustive.

    python -m experiments.seed_search          # writes experiments/results/seed_search.{json,md,png}

For every setting, on Gaussian weights and on the matrices of the embedded reference model:

1. the fast search of all weights (`SeedLMCodec.encode`, so all else that encoding takes is counted), with one thread
   and with two, in alternating order; the median of the rounds, in wall time and in processor time;
2. the exhaustive search of a sample of the same blocks, divided by the same scale, with one thread;
3. by how much the fast search's squared error exceeds the exhaustive one's on that sample. The standard error is that
   of a ratio of two means over blocks (delta method).

The exhaustive search compares, with quantised coefficients, every seed that could win; the tables and lists of a
setting are made once a process, and their time is given apart. Processor time tells the cost where other programs
share the machine; wall time is what a user waits on an idle one.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import matplotlib
import torch

from phase8.codecs.matrices import matrices, size_of
from phase8.codecs.seedlm import lfsr, seed_search
from phase8.codecs.seedlm.decode import code_values
from phase8.codecs.seedlm.encode import SeedLMCodec, blocks_of, scale_of
from phase8.config import SeedLMConfig, SeedSearch
from phase8.files import write_atomic
from phase8.model.source import load_source

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

RESULTS = Path(__file__).parent / "results"
SETTINGS = ("8,3,4", "12,4,4", "8,3,3", "8,3,2", "8,3,1")


def ignore(_: int) -> None:
    """Progress that nobody watches."""


def block_errors(blocks_NC: torch.Tensor, config: SeedLMConfig) -> torch.Tensor:
    """Searches the blocks; returns their squared errors, float64 [N]."""
    seeds, exponents, codes = seed_search.search(blocks_NC, config, ignore)
    bases = torch.from_numpy(lfsr.bases(seeds.numpy(), config.block_size, config.latent_dim, config.seed_bits))
    coefficients = code_values(codes, config.bits) * torch.exp2(exponents)[:, None]
    return (blocks_NC - torch.bmm(bases, coefficients[:, :, None])[:, :, 0]).double().square().sum(1)


def timed(call: Any) -> tuple[float, float]:
    """Wall and processor seconds of a call."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def measure(weights: dict[str, torch.Tensor], config: SeedLMConfig, sample: int, rounds: int) -> dict[str, Any]:
    """One setting on one set of weights."""
    count = sum(matrix.numel() for matrix in weights.values())
    runs: dict[int, list[tuple[float, float]]] = {1: [], 2: []}

    def encode() -> None:
        SeedLMCodec().encode(weights, config, importance={}, seed=0)

    for number in range(rounds):
        for threads in (1, 2) if number % 2 == 0 else (2, 1):
            torch.set_num_threads(threads)
            runs[threads].append(timed(encode))
    torch.set_num_threads(1)

    blocks = torch.cat(
        [
            blocks_of(each, scale_of(name, each, config), config, slice(0, -(-size_of(each) // config.block_size)))
            for name, each in matrices(weights).items()
        ]
    )
    chosen = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(1))[:sample].sort().values
    fast = block_errors(blocks, config)[chosen]
    best = torch.empty(0)

    def search() -> None:
        nonlocal best
        best = block_errors(blocks[chosen], dataclasses.replace(config, search=SeedSearch.exhaustive))

    exhaustive_wall, exhaustive_processor = timed(search)
    excess = float(fast.sum() / best.sum()) - 1.0
    spread = fast - (1.0 + excess) * best
    row = {
        "weights": count,
        "sample_blocks": len(chosen),
        "excess": excess,
        "excess_stderr": float(spread.std() / best.mean()) / math.sqrt(len(chosen)),
        "relative_rms": math.sqrt(float(fast.sum() / blocks[chosen].double().square().sum())),
        "exhaustive_per_s": len(chosen) * config.block_size / exhaustive_wall,
        "exhaustive_per_processor_s": len(chosen) * config.block_size / exhaustive_processor,
    }
    for threads, times in runs.items():
        row[f"fast_{threads}_per_s"] = count / statistics.median(wall for wall, _ in times)
        row[f"fast_{threads}_per_processor_s"] = count / statistics.median(processor for _, processor in times)
    return row


def as_markdown(found: dict[str, Any]) -> str:
    """The results as a page."""
    lines = [
        "# SeedLM: speed and error of the seed search",
        "",
        f"`python -m experiments.seed_search {found['arguments']}`: {found['rounds']} rounds in "
        "alternating order, medians; "
        "thousands of weights per second of wall time, in brackets per second of processor time. K = 16. Excess: "
        "squared error of the fast search over that of the exhaustive one on the same blocks, with its standard error.",
        "",
        "| weights | C, P, bits | bits/weight | tables, s | fast, 1 thread | fast, 2 threads | exhaustive, 1 thread "
        "| relative RMS error | excess squared error |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in found["rows"]:
        speeds = [
            f"{row[f'{name}_per_s'] / 1e3:.0f} ({row[f'{name}_per_processor_s'] / 1e3:.0f})"
            for name in ("fast_1", "fast_2", "exhaustive")
        ]
        cells = [
            f"{row['source']}, {row['weights'] / 1e6:.1f} M",
            row["setting"].replace(",", ", "),
            f"{row['bits_per_weight']:.3f}",
            f"{row['tables_s']:.1f}",
            *speeds,
            f"{row['relative_rms']:.4f}",
            f"{100 * row['excess']:.2f} % +- {100 * row['excess_stderr']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "At 1 bit both searches choose a seed and its signs together; see `phase8/codecs/seedlm/seed_search.py`.",
    ]
    return "\n".join(lines) + "\n"


def plot(found: dict[str, Any]) -> bytes:
    """Speed against excess error, as a PNG."""
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for source, marker in (("Gaussian", "o"), ("reference", "s")):
        rows = [row for row in found["rows"] if row["source"] == source]
        x = [row["fast_2_per_s"] / 1e6 for row in rows]
        y, bars = [100 * row["excess"] for row in rows], [200 * row["excess_stderr"] for row in rows]
        axes.errorbar(x, y, yerr=bars, fmt=marker, capsize=3, label=f"{source} weights")
        for row, at, excess in zip(rows, x, y, strict=True):
            axes.annotate(row["setting"], (at, excess), textcoords="offset points", xytext=(6, 5), fontsize=8)
    axes.axhline(1.0, color="grey", linestyle="--", linewidth=1)
    axes.axvline(1.0, color="grey", linestyle="--", linewidth=1)
    axes.set(xlabel="million weights per second, 2 threads", ylabel="excess squared error, % (bars: 2 standard errors)")
    axes.set(xlim=(0, None), title="SeedLM fast search against exhaustive search (C, P, bits)")
    axes.legend()
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    plt.close(figure)
    return buffer.getvalue()


def main() -> int:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=8_000_000, help="Gaussian weights")
    parser.add_argument("--sample", type=int, default=4000, help="blocks that are also searched exhaustively")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--settings", nargs="+", default=SETTINGS, help="C,P,bits")
    parser.add_argument("--out", type=Path, default=RESULTS / "seed_search")
    options = parser.parse_args()
    torch.set_num_threads(1)
    side = math.isqrt(options.weights)
    gaussian = {"weights": torch.randn(side, side, generator=torch.Generator().manual_seed(0)) * 0.02}
    reference = load_source("embedded:reference").matrices()
    arguments = f"--weights {options.weights} --sample {options.sample} --rounds {options.rounds}"
    arguments += f" --settings {' '.join(options.settings)}"
    found: dict[str, Any] = {"arguments": arguments, "rounds": options.rounds, "rows": []}
    for setting in options.settings:
        block_size, latent_dim, bits = map(int, setting.split(","))
        config = SeedLMConfig(block_size=block_size, latent_dim=latent_dim, bits=bits)
        few = torch.randn(4096, block_size, generator=torch.Generator().manual_seed(2))
        _, tables_s = timed(lambda: seed_search.search(few, config, ignore))  # noqa: B023  called at once
        for source, weights in (("Gaussian", gaussian), ("reference", reference)):
            row = {
                "setting": setting,
                "source": source,
                "bits_per_weight": (config.seed_bits + config.exponent_bits + latent_dim * bits) / block_size,
                "tables_s": tables_s,
                **measure(weights, config, options.sample, options.rounds),
            }
            found["rows"].append(row)
            print(json.dumps(row), flush=True)
    write_atomic(options.out.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
    write_atomic(options.out.with_suffix(".md"), as_markdown(found))
    write_atomic(options.out.with_suffix(".png"), plot(found))
    print(as_markdown(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
