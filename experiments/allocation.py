"""Does a setting for each tensor beat one setting for all, at equal bytes?

    python -m experiments.allocation

On the embedded model, without reconstruction: SeedLM and VPTQ with one setting for all tensors, and with the settings
that `phase8.allocation` chooses for the same number of bytes. Bytes are those of the whole artifact; quality is the KL
divergence from the original model on held-out text, nats per token, on sequences that the allocation did not see.
Writes `experiments/results/allocation.json`, `.md` and `.png`.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phase8.allocation.budget import SENSITIVITY_SEQUENCES, Allocator
from phase8.artifact.write import contents
from phase8.codecs import EncodedGroup, Importance, get_codec
from phase8.codecs.settings import StageSettings
from phase8.config import OptimizerConfig, SeedLMConfig, VPTQConfig
from phase8.files import write_atomic
from phase8.model.importance import collect_importance
from phase8.model.source import SourceModel, as_parameters, load_source
from phase8.model.text import token_sequences
from phase8.run.calibration import CALIBRATION_SEED
from phase8.train.divergence import mean_kl

RESULTS = Path(__file__).parent / "results"
UNIFORM: dict[str, list[StageSettings]] = {
    "seedlm": [
        SeedLMConfig(),  # the published 4-bit setting, which is no candidate but as the stage's own
        SeedLMConfig(block_size=10, latent_dim=4, bits=2),
        SeedLMConfig(block_size=8, latent_dim=4, bits=3),
    ],
    "vptq": [VPTQConfig(vector_dim=v, codebook_size=k) for v, k in ((4, 256), (4, 1024), (2, 64))],
}
"""Settings for all tensors, each a candidate of the allocation too; the size of each is a budget."""


def settings_text(stage: str, settings: Mapping[str, Any]) -> str:
    """`block_size 12, latent_dim 4, bits 3`."""
    return ", ".join(f"{name} {settings[name]}" for name in UNIFORM[stage][0].VARIED)


def run(stage: str, source: SourceModel, importance: Mapping[str, Importance], text_NT: Tensor) -> list[dict[str, Any]]:
    """Returns one row per budget of a stage."""
    rest = [get_codec("plain").encode(source.vectors(), None, importance={}, seed=0)]

    def size_of(groups: Sequence[EncodedGroup]) -> int:
        return sum(map(len, contents([*groups, *rest], source, stage=stage).values()))

    def divergence(groups: Sequence[EncodedGroup]) -> float:
        decoded = {}
        for group in [*groups, *rest]:
            decoded |= get_codec(group.codec).decode(group)
        weights = as_parameters(source.network, decoded, where=stage)
        return mean_kl(source.network, weights, text_NT[SENSITIVITY_SEQUENCES:])

    # One allocator for all: what was measured and encoded for one budget serves the next.
    allocator = Allocator(stage, UNIFORM[stage][0], source.matrices(), size_of)
    rows = []
    for config in UNIFORM[stage]:
        begin = time.process_time()
        settings = replace(UNIFORM[stage][0], **{name: getattr(config, name) for name in UNIFORM[stage][0].VARIED})
        allocator.measure(source, importance, text_NT, allocator.bytes_at_most(settings))
        uniform = allocator.uniform(settings)
        budget = size_of(uniform)
        allocation = allocator.encode(budget)
        named = {name: getattr(config, name) for name in UNIFORM[stage][0].VARIED}
        rows.append(
            {
                "stage": stage,
                "uniform": named,
                "budget_bytes": budget,
                "ratio": source.original_bytes / budget,
                "uniform_kl": divergence(uniform),
                "allocated_bytes": allocation.size_bytes,
                "allocated_kl": divergence(allocation.groups),
                "estimated_bytes": allocation.estimated_bytes,
                "encodings": allocation.encodings,
                "seconds": time.process_time() - begin,
                "tensors": allocation.tensors,
            }
        )
        row = rows[-1]
        print(
            f"{stage} {settings_text(stage, named)}: {budget:,} bytes, KL {row['uniform_kl']:.4f}; "
            f"allocated {row['allocated_bytes']:,} bytes, KL {row['allocated_kl']:.4f}, {row['seconds']:.0f} s",
            flush=True,
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The results as a page."""
    lines = [
        "# One setting for all tensors against a setting for each, at equal bytes",
        "",
        "Embedded model, no reconstruction; KL divergence from the original on held-out text, nats per token. Made by",
        "`python -m experiments.allocation`, whose head explains it. Seconds are processor time, measuring,",
        "encoding and judging included; the first row of a codec bears the measuring of all candidates.",
        "",
        "| codec | one setting for all | bytes | ratio | KL | allocated: bytes | KL | change | s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        change = 100 * (row["allocated_kl"] / row["uniform_kl"] - 1)
        lines.append(
            f"| {row['stage']} | {settings_text(row['stage'], row['uniform'])} | {row['budget_bytes']:,} "
            f"| {row['ratio']:.1f} | {row['uniform_kl']:.4f} | {row['allocated_bytes']:,} "
            f"| {row['allocated_kl']:.4f} | {change:+.0f} % | {row['seconds']:.0f} |"
        )
    lines += ["", "How many tensors got which settings:", ""]
    for row in rows:
        counts = Counter(settings_text(row["stage"], tensor) for tensor in row["tensors"].values())
        listed = "; ".join(f"{count} x {settings}" for settings, count in counts.most_common())
        lines.append(f"- {row['stage']}, {row['budget_bytes']:,} bytes: {listed}")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """KL divergence against bytes, both ways, one panel per codec."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    stages = list(dict.fromkeys(row["stage"] for row in rows))
    figure, axes = plt.subplots(1, len(stages), figsize=(4.5 * len(stages), 3.6), sharey=True, squeeze=False)
    for axis, stage in zip(axes[0], stages, strict=True):
        found = [row for row in rows if row["stage"] == stage]
        for kind, size, marker in (("uniform", "budget_bytes", "o"), ("allocated", "allocated_bytes", "s")):
            axis.plot([row[size] / 1e6 for row in found], [row[f"{kind}_kl"] for row in found], f"{marker}-")
        axis.set_yscale("log")
        axis.set_title(stage)
        axis.set_xlabel("artifact, MB")
    axes[0][0].set_ylabel("KL from the original, nats per token")
    axes[0][0].legend(["one setting for all", "a setting for each tensor"], frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    """Runs both codecs and writes the three files."""
    torch.set_num_threads(1)
    source, sizes = load_source("embedded:reference"), OptimizerConfig()
    text = token_sequences(
        source.tokenizer,
        sequences=sizes.held_out_sequences + sizes.calibration_sequences,
        length=sizes.sequence_tokens,
        seed=CALIBRATION_SEED,
        path=None,
    )
    held_out, calibration = text[: sizes.held_out_sequences], text[sizes.held_out_sequences :]
    importance = collect_importance(source.network, calibration.split(8), list(source.matrices()))
    rows = [row for stage in UNIFORM for row in run(stage, source, importance, held_out)]
    write_atomic(RESULTS / "allocation.json", json.dumps({"model": source.content_hash, "rows": rows}, indent=1) + "\n")
    write_atomic(RESULTS / "allocation.md", table(rows))
    plot(rows, RESULTS / "allocation.png")
    print(table(rows))


if __name__ == "__main__":
    main()
