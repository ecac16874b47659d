"""Calibrated codec variants on the reference model: output error before any training, against bytes.

    python -m experiments.codecs.calibrated          # writes experiments/results/calibrated.{json,md}

Every matrix of the embedded model is encoded with second moments from 64 sequences of 256 tokens of the embedded
world's text. Measured are the bits per weight of all streams in plain packing, codebooks included, and the mean over
weights of

    tr(dW H dW^T) / tr(W H W^T),     rows weighted by token frequency where the calibration says so,

for SeedLM with and without importances, and for VPTQ (one group per kind of matrix) with one codebook of several sizes,
with outlier columns, and with two variants that the codec does not have:

- product codebooks: the vectors of a column take turns between two codebooks. Rows do not influence one another in the
  second-order loop, so this is the same as encoding the two sets of rows as two groups;
- a codebook generated from a seed (normally distributed, shrunk by what the codebook leaves over), whose bytes are not
  counted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from phase8.calibration import collect_importance
from phase8.codecs import get_codec, vptq
from phase8.codecs.base import Importance
from phase8.codecs.kmeans import Clustering
from phase8.config import CompressionConfig, SeedLMConfig, VPTQConfig
from phase8.files import write_atomic
from phase8.models import load_source
from phase8.pipeline import plan_groups
from phase8.text import token_sequences

RESULTS = Path(__file__).parent.parent / "results"
SEQUENCES, TOKENS = 64, 256


def seeded(x_ND: np.ndarray, k: int, **_: Any) -> Clustering:
    """In place of `kmeans`: entries from a seed."""
    drawn = np.random.default_rng(5).standard_normal((k, x_ND.shape[1])).astype(np.float32)
    left_over = k ** (-2 / x_ND.shape[1])  # squared error of a codebook of this rate, at best
    return Clustering(centroids_KD=drawn * np.float32((1 - left_over) ** 0.5), objective=[])


def rows_of(importance: Importance, chosen_O: Tensor) -> Importance:
    """The importance of some rows."""
    return dataclasses.replace(importance, row_O=None if importance.row_O is None else importance.row_O[chosen_O])


def output_error(matrices: Mapping[str, Tensor], importance: Mapping[str, Importance], decoded: Mapping) -> float:
    """See the module's text."""
    total = 0.0
    for name, matrix in matrices.items():
        given = importance.get(name, Importance())
        hessian = torch.eye(matrix.shape[1]) if given.hessian_II is None else given.hessian_II
        row = torch.ones(len(matrix)) if given.row_O is None else given.row_O
        difference = torch.from_numpy(decoded[name]) - matrix
        parts = [float((((x @ hessian) * x).sum(1) * row).sum()) for x in (difference, matrix)]
        total += parts[0] / parts[1] * matrix.numel()
    return total / sum(matrix.numel() for matrix in matrices.values())


def measure(
    matrices: dict[str, Tensor], importance: dict[str, Importance], stage: str, config: Any, product: int, free: bool
) -> dict[str, float]:
    """One variant: `product` codebooks taking turns; `free` generates them from a seed and does not count them."""
    decoded = {name: np.zeros(tuple(matrix.shape), dtype=np.float32) for name, matrix in matrices.items()}
    bits, codec = 0, get_codec(stage)
    for group in plan_groups(matrices, stage, CompressionConfig()):
        for turn in range(product):
            every = getattr(config, "vector_dim", 1)
            chosen = {name: torch.arange(len(m)) // every % product == turn for name, m in group.items()}
            encoded = codec.encode(
                {name: matrix[chosen[name]] for name, matrix in group.items()},
                config,
                importance={name: rows_of(importance[name], chosen[name]) for name in group if name in importance},
                seed=0,
            )
            bits += encoded.packed_bits()
            if free:
                bits -= sum(s.bits * s.values.size for role, s in encoded.shared.items() if not role.endswith("step"))
            for name, weights in codec.decode(encoded).items():
                decoded[name][chosen[name].numpy()] = weights
    return {
        "bits_per_weight": bits / sum(matrix.numel() for matrix in matrices.values()),
        "output_error": output_error(matrices, importance, decoded),
    }


def variants() -> list[tuple[str, str, Any, int, bool]]:
    """Name, stage, config, product codebooks, seeded."""
    found: list[tuple[str, str, Any, int, bool]] = []
    for bits in (4, 1):
        for weighted in (False, True):
            name = f"SeedLM {bits} bit, {'weighted' if weighted else 'plain'}"
            found.append((name, "seedlm", SeedLMConfig(bits=bits, weighted=weighted), 1, False))
    for damping in (0.01, 1.0):
        base = VPTQConfig(hessian_damping=damping, kmeans_iterations=10)
        start = f"VPTQ, damping {damping}, v 4, "
        for size in (256, 512, 1024, 2048):
            found.append((f"{start}K {size}", "vptq", dataclasses.replace(base, codebook_size=size), 1, False))
        for share in (0.01, 0.02, 0.05):
            config = dataclasses.replace(base, outlier_columns=share, outlier_codebook_size=256)
            found.append((f"{start}K 1024, {share:.0%} outliers (v' 2, K' 256)", "vptq", config, 1, False))
        for size in (512, 1024):
            name = f"{start}product of 2 x K {size}"
            found.append((name, "vptq", dataclasses.replace(base, codebook_size=size), 2, False))
        config = dataclasses.replace(base, vector_dim=8, codebook_size=65536)
        found.append((f"VPTQ, damping {damping}, v 8, K 65536 from a seed", "vptq", config, 1, True))
    return found


def main() -> int:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "calibrated")
    options = parser.parse_args()
    source = load_source("embedded:reference")
    matrices = source.matrices()
    tokens = token_sequences(source.tokenizer, sequences=SEQUENCES, length=TOKENS, seed=1009)
    importance = collect_importance(source.network, tokens.split(16), tuple(matrices))
    rows = []
    for name, stage, config, product, free in variants():
        with mock.patch.object(vptq, "kmeans", seeded if free else vptq.kmeans):
            rows.append({"name": name, **measure(matrices, importance, stage, config, product, free)})
        print(json.dumps(rows[-1]), flush=True)
    lines = [
        "# Calibrated variants of the codecs on the reference model",
        "",
        "`python -m experiments.codecs.calibrated`: relative squared error of the layers' outputs before any training.",
        "",
        "| variant | bits/weight | output error |",
        "| --- | --- | --- |",
        *(f"| {row['name']} | {row['bits_per_weight']:.3f} | {row['output_error']:.5f} |" for row in rows),
    ]
    write_atomic(options.out.with_suffix(".json"), json.dumps(rows, indent=1) + "\n")
    write_atomic(options.out.with_suffix(".md"), "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
