"""What is trained on real text: the TinyStories model at several ratios, and what the lattice's training is made of.

    PHASE8_TINYSTORIES=DIRECTORY python -m experiments.stories            # rows of the scoreboard
    PHASE8_TINYSTORIES=DIRECTORY python -m experiments.stories --ablate   # experiments/results/stories.{json,md}

Training reads `train.txt` as a run does; bits per byte are those of `validation.txt`, which nothing else reads. Rows
are taken at 1,500 steps of 2,048 tokens: the lattice, and with the same trainer the codes of the other codecs, chosen
again while their weights move. Ablations: 40x, 600 steps, three seeds each; `excess` is bits per byte above
the original's, mean and, in brackets, the three. What is there already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.losses import trained_by
from experiments.score import load, score, tinystories
from experiments.scoreboard import add_row, read_rows
from phase8.artifact.write import contents
from phase8.cache import ContentCache
from phase8.codecs.decoders import decode
from phase8.codecs.hyper.settings import HyperConfig
from phase8.codecs.seedlm.settings import SeedLMConfig
from phase8.codecs.settings import StageSettings
from phase8.codecs.vptq.settings import Sharing, VPTQConfig
from phase8.config import GrokfastConfig
from phase8.files import write_atomic
from phase8.model.source import SourceModel
from phase8.train.shape import Shape
from phase8.train.text import TrainingText, training_text
from phase8.train.whole import TrainedStage
from phase8.train.within_budget import Plan

RESULTS = Path(__file__).parent / "results" / "stories"
CACHE = Path(__file__).parent.parent / "outputs" / "cache"
LENGTH, SEQUENCES = 128, 8192
RATIOS = (40.0, 16.0, 100.0, 8.0, 11.0, 6.0)
ROW_STEPS, STEPS, SEEDS = 1500, 600, (0, 1, 2)


@dataclass(frozen=True)
class Way:
    """How to train."""

    shape: Shape = Shape()
    plan: Plan = Plan(steps=STEPS)
    start_step: float = 0.6
    codes: tuple[str, StageSettings] | None = None
    loss: str = "answers"
    priced: bool = True


def _plan(**changes: Any) -> Way:
    return Way(plan=replace(Plan(steps=STEPS), **changes))


CODES: dict[str, list[tuple[float, tuple[str, StageSettings]]]] = {
    "VPTQ, indices and codebooks trained": [
        (8.0, ("vptq", VPTQConfig(vector_dim=2, codebook_size=512, share=Sharing.model))),
        (16.0, ("vptq", VPTQConfig(vector_dim=4, codebook_size=512, share=Sharing.model))),
        (40.0, ("vptq", VPTQConfig(vector_dim=8, codebook_size=256, share=Sharing.model))),
        (100.0, ("vptq", VPTQConfig(vector_dim=16, codebook_size=64, share=Sharing.model))),
    ],
    "SeedLM, seeds and coefficients trained": [
        (8.0, ("seedlm", SeedLMConfig(block_size=8, latent_dim=3, bits=4, seed_bits=13))),
        (16.0, ("seedlm", SeedLMConfig(block_size=14, latent_dim=2, bits=4, seed_bits=12))),
        (40.0, ("seedlm", SeedLMConfig(block_size=36, latent_dim=2, bits=4, seed_bits=12))),
    ],
    "Hyper, ergodic, trained": [
        (8.0, ("hyper", HyperConfig(dims=3, grid=1023))),
        (16.0, ("hyper", HyperConfig(dims=8, grid=8191))),
        (40.0, ("hyper", HyperConfig(dims=24, grid=16383))),
    ],
}
"""Codecs whose codes are trained, at ratios that their settings reach."""

WAYS = {
    "as it is": Way(),
    "width 48 of 64": Way(shape=Shape(width=0.75)),
    "width 32 of 64": Way(shape=Shape(width=0.5)),
    "half the heads": Way(shape=Shape(heads=0.5)),
    "4 of 8 channels in each head": Way(shape=Shape(head_size=0.5)),
    "width 32 of 64, 4 of 8 channels in each head": Way(shape=Shape(width=0.5, head_size=0.5)),
    "focus 0": _plan(focus=0.0),
    "at the budget from the start": _plan(ramp=0.0),
    "size falls over 0.7 of the steps": _plan(ramp=0.7),
    "half the learning rate": _plan(lr=0.005),
    "twice the learning rate": _plan(lr=0.02),
    "start at 0.3 deviations": Way(start_step=0.3),
    "start at 1.0 deviations": Way(start_step=1.0),
    "Grokfast 0.98 / 2": _plan(grokfast=GrokfastConfig(enabled=True)),
    "Grokfast 0.9 / 0.5": _plan(grokfast=GrokfastConfig(enabled=True, alpha=0.9, lambda_=0.5)),
    "loss: weights": Way(loss="weights"),
    "loss: layer outputs": Way(loss="layer outputs"),
    "loss: answers and hidden states": Way(loss="answers and hidden states"),
    "no price: cut to the budget at the end": Way(priced=False),
}


def story_text(source: SourceModel) -> TrainingText:
    """What is trained on; the part that the original writes is written once."""
    return training_text(
        source, model_path="tinystories", path=tinystories("train.txt"), sequences=SEQUENCES, length=LENGTH, seed=1,
        cache=ContentCache(CACHE),
    )  # fmt: skip


def train(source: SourceModel, way: Way, ratio: float, seed: int) -> dict[str, Any]:
    """One training, scored."""
    text = story_text(source)

    def size(groups: Any) -> int:
        return sum(map(len, contents(groups, source, stage="hyper").values()))

    stage = TrainedStage(
        source, text.tokens_NT, shape=way.shape, start_step=way.start_step, size=size, cache_dir=CACHE, codes=way.codes
    )
    begin = time.monotonic()
    with trained_by(way.loss, priced=way.priced):
        trained = stage.run(int(source.original_bytes / ratio), replace(way.plan, seed=seed))
    seconds = time.monotonic() - begin
    network = load("tinystories").network
    with torch.no_grad():
        own = dict(network.named_parameters())
        for name, weight in (pair for group in trained.groups for pair in decode(group)):
            own[name].copy_(torch.from_numpy(weight))
    found = score(network, source.tokenizer, model="tinystories")
    return {
        "artifact_bytes": size(trained.groups),
        "ratio": source.original_bytes / size(trained.groups),
        "estimate_over_real": trained.outcome.estimated_bytes / trained.coded_bytes,
        "bits_per_byte": found["bits_per_byte"],
        "bits_per_byte_original": found["bits_per_byte_original"],
        "training_s": seconds,
    }


def rows(source: SourceModel) -> None:
    """The scoreboard's rows."""
    wanted = [("trained lattice", ratio, None) for ratio in RATIOS]
    wanted += [(method, ratio, codes) for method, of in CODES.items() for ratio, codes in of]
    wanted.sort(key=lambda one: RATIOS.index(one[1]))
    for method, ratio, codes in wanted:
        setting = f"{ratio:g}x, whole width, {ROW_STEPS:,} steps"
        if any(
            (row["model"], row["method"], row["setting"]) == ("tinystories", method, setting) for row in read_rows()
        ):
            continue
        found = train(source, replace(_plan(steps=ROW_STEPS), codes=codes), ratio, 0)
        print(method, setting, found, flush=True)
        add_row(
            {
                "method": method,
                "setting": setting,
                "ours": True,
                "group": "ours, trained",
                "model": "tinystories",
                "retention_raw": None,
                "retention_chance_corrected": None,
                "seed": 0,
                "trained_tokens": ROW_STEPS * 16 * LENGTH,
                "command": "python -m experiments.stories",
                **{name: found[name] for name in ("artifact_bytes", "ratio", "bits_per_byte", "training_s")},
            }
        )


def ablate(source: SourceModel) -> None:
    """The table of ablations."""
    path = RESULTS.with_suffix(".json")
    done: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    for name, way in WAYS.items():
        for seed in SEEDS:
            if any(row["way"] == name and row["seed"] == seed for row in done):
                continue
            done.append({"way": name, "seed": seed, **train(source, way, 40.0, seed)})
            print(done[-1], flush=True)
            write_atomic(path, json.dumps(done, indent=0) + "\n")
            write_atomic(RESULTS.with_suffix(".md"), as_markdown(done))


def as_markdown(done: list[dict[str, Any]]) -> str:
    """The table."""
    lines = [
        "# Trained at 40x on TinyStories: what the training is made of",
        "",
        "`python -m experiments.stories --ablate`; what is measured how stands at the head of that file.",
        "",
        "| way | excess bits per byte | estimate / real bytes |",
        "| --- | --- | --- |",
    ]
    for name in dict.fromkeys(row["way"] for row in done):
        of = [row for row in done if row["way"] == name]
        excess = [row["bits_per_byte"] - row["bits_per_byte_original"] for row in of]
        three = ", ".join(f"{one:.4f}" for one in excess)
        lines.append(
            f"| {name} | {np.mean(excess):.4f} ({three}) | {np.mean([r['estimate_over_real'] for r in of]):.4f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measures what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ablate", action="store_true")
    source = load("tinystories")
    (ablate if parser.parse_args().ablate else rows)(source)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
