"""Speed and error of the SeedLM seed search, fast against exhaustive on the same Gaussian weights in the same run.

    OMP_NUM_THREADS=1 python experiments/codecs/seed_search.py --weights 3600000 --exhaustive-blocks 1500

Prints, per setting: processor time of the tables and lists, thousands of weights a processor second for both searches,
the relative root-mean-square error, and by how much the fast search's squared error exceeds the exhaustive one's on the
blocks that both coded. The scale of each call is its own weights' (bfloat16 of nearly the same figure).
"""

from __future__ import annotations

import argparse
import dataclasses
import time

import numpy as np
import torch

from phase8.codecs.seedlm import SeedLMCodec
from phase8.config import SeedLMConfig, SeedSearch


def timed(weights: torch.Tensor, config: SeedLMConfig) -> tuple[np.ndarray, float, float]:
    """Returns the decoded weights, the processor seconds of encoding, and the bits a weight in plain packing."""
    begin = time.process_time()
    group = SeedLMCodec().encode({"weights": weights}, config, importance={}, seed=0)
    seconds = time.process_time() - begin
    return SeedLMCodec().decode(group)["weights"], seconds, group.packed_bits() / weights.numel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=1_000_000)
    parser.add_argument("--exhaustive-blocks", type=int, default=1500)
    settings = ["8,3,4", "12,4,4", "8,3,3", "8,3,2", "8,3,1"]
    parser.add_argument("--settings", nargs="+", default=settings, help="C,P,bits")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("  C  P bits  bits/weight  tables s  fast kw/s  exhaustive kw/s  rms fast  rms exhaustive  excess squared")
    for setting in arguments.settings:
        block_size, latent_dim, bits = map(int, setting.split(","))
        fast = SeedLMConfig(block_size=block_size, latent_dim=latent_dim, bits=bits)
        exhaustive = dataclasses.replace(fast, search=SeedSearch.exhaustive)
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(arguments.weights // block_size, block_size, generator=generator) * 0.02
        begin = time.process_time()
        few = weights[: min(4096, len(weights))]
        timed(few, fast)  # builds the tables and lists, which later calls find in memory
        tables_s = time.process_time() - begin
        rebuilt, fast_s, bits_per_weight = timed(weights, fast)
        part = weights[: arguments.exhaustive_blocks]
        best, exhaustive_s, _ = timed(part, exhaustive)
        original = part.numpy().astype(np.float64)
        energy = (original**2).sum()
        fast_error = ((original - rebuilt[: len(part)]) ** 2).sum() / energy
        best_error = ((original - best) ** 2).sum() / energy
        print(
            f"{block_size:3d} {latent_dim:2d} {bits:4d}  {bits_per_weight:11.3f}  {tables_s:8.2f}"
            f"  {weights.numel() / fast_s / 1e3:9.0f}  {part.numel() / exhaustive_s / 1e3:15.1f}"
            f"  {fast_error**0.5:8.4f}  {best_error**0.5:14.4f}  {100 * (fast_error / best_error - 1):13.2f}%",
            flush=True,
        )


if __name__ == "__main__":
    main()
