"""Calibrated codec variants on the reference model: output error before any training, against bytes.

    python -m experiments.calibrated          # writes experiments/results/calibrated.{json,md}

Every matrix of the embedded model is encoded with second moments from 64 sequences of 256 tokens of the embedded
world's text. Measured are the bits per weight of all streams in plain packing, codebooks included, and the mean over
weights of

    tr(dW H dW^T) / tr(W H W^T),     rows weighted by token frequency where the calibration says so,

for SeedLM with and without importances, and for VPTQ (one group per kind of matrix unless told otherwise) with one
learned codebook of several sizes, and with outlier columns, product codebooks, residual codebooks, codebooks from a
seed, and codebooks for a few layers each. The last column compares with one learned codebook for all layers at the same
bits per weight: the logarithm of its error, interpolated between the two nearest sizes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phase8.codecs import get_codec
from phase8.codecs.base import Importance
from phase8.codecs.pools import pools
from phase8.config import SeedLMConfig, Sharing, VPTQConfig
from phase8.files import write_atomic
from phase8.model.importance import collect_importance
from phase8.model.source import load_source
from phase8.model.text import token_sequences

RESULTS = Path(__file__).parent / "results"
SEQUENCES, TOKENS = 64, 256
ONE_CODEBOOK = (64, 128, 256, 512, 1024, 2048)


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
    matrices: dict[str, Tensor], importance: dict[str, Importance], stage: str, config: Any
) -> dict[str, float]:
    """One variant."""
    decoded: dict[str, np.ndarray] = {}
    bits, codec = 0, get_codec(stage)
    for names in pools(matrices, config):
        group = {name: matrices[name] for name in names}
        inside = {name: importance[name] for name in group if name in importance}
        encoded = codec.encode(group, config, importance=inside, seed=0)
        bits += encoded.packed_bits()
        decoded |= codec.decode(encoded)
    return {
        "bits_per_weight": bits / sum(matrix.numel() for matrix in matrices.values()),
        "output_error": output_error(matrices, importance, decoded),
    }


def variants() -> list[tuple[str, str, Any]]:
    """Name, stage, config; of every damping, one learned codebook of several sizes comes first."""
    found: list[tuple[str, str, Any]] = []
    for bits in (4, 1):
        for weighted in (False, True):
            name = f"SeedLM {bits} bit, {'weighted' if weighted else 'plain'}"
            found.append((name, "seedlm", SeedLMConfig(bits=bits, weighted=weighted)))
    for damping in (0.01, 1.0):
        base = VPTQConfig(hessian_damping=damping, kmeans_iterations=10)

        def add(what: str, start: str = f"VPTQ, damping {damping}, ", base: VPTQConfig = base, **changes: Any) -> None:
            found.append((start + what, "vptq", replace(base, **changes)))

        for size in ONE_CODEBOOK:
            add(f"v 4, K {size}", codebook_size=size)
        for share in (0.01, 0.02, 0.05):
            add(f"v 4, K 1024, {share:.0%} outliers (v' 2, K' 256)", outlier_columns=share, outlier_codebook_size=256)
        for v, product, size in ((8, 2, 512), (8, 2, 1024), (4, 2, 32), (8, 4, 32), (8, 2, 256)):
            add(f"v {v}, product of {product} x K {size}", vector_dim=v, product=product, codebook_size=size)
        for v, size in ((4, 32), (8, 1024)):
            add(f"v {v}, residual 2 x K {size}", vector_dim=v, codebook_size=size, num_codebooks=2)
        for layers in (1, 2):
            for size in (128, 256):
                add(f"v 4, K {size}, {layers} layer(s) of a kind share", codebook_size=size, share_layers=layers)
            add(f"v 4, K 512, all kinds of {layers} layer(s) share", codebook_size=512, share=Sharing.model,
                share_layers=layers)  # fmt: skip
        add("v 4, K 1024, all matrices share", share=Sharing.model)
    return found


def against_one_codebook(row: Mapping[str, Any], rows: list[dict[str, Any]]) -> float | None:
    """Output error in relation to one learned codebook's at equal bits; None for these, and outside their range."""
    start = row["name"].partition(", v ")[0]
    points = [other for other in rows if other["name"] in {f"{start}, v 4, K {size}" for size in ONE_CODEBOOK}]
    bits = [point["bits_per_weight"] for point in points]
    if row in points or not points or not min(bits) <= row["bits_per_weight"] <= max(bits):
        return None
    logarithm = np.interp(row["bits_per_weight"], bits, np.log([point["output_error"] for point in points]))
    return float(row["output_error"] / np.exp(logarithm))


def percent(row: Mapping[str, Any]) -> str:
    ratio = row["against_one_codebook"]
    return "-" if ratio is None else f"{100 * ratio - 100:+.1f} %"


def as_markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# Calibrated variants of the codecs on the reference model",
        "",
        "`python -m experiments.calibrated`: relative squared error of the layers' outputs before any training.",
        "",
        "| variant | bits/weight | output error | against one learned codebook at equal bits |",
        "| --- | --- | --- | --- |",
        *(
            f"| {row['name']} | {row['bits_per_weight']:.3f} | {row['output_error']:.5f} | {percent(row)} |"
            for row in rows
        ),
    ]
    return "\n".join(lines) + "\n"


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
    for name, stage, config in variants():
        rows.append({"name": name, **measure(matrices, importance, stage, config)})
        print(json.dumps(rows[-1]), flush=True)
    for row in rows:
        row["against_one_codebook"] = against_one_codebook(row, rows)
    write_atomic(options.out.with_suffix(".json"), json.dumps(rows, indent=1) + "\n")
    write_atomic(options.out.with_suffix(".md"), as_markdown(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
