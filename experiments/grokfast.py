"""Where the Grokfast filter helps a stage's reconstruction, and where it does not.

    PHASE8_TINYSTORIES=DIRECTORY python -m experiments.grokfast        # writes experiments/results/grokfast.{json,md}
    python -m experiments.grokfast --models reference                  # what is measured already is not repeated

A stage's closed form is trained with every filter, every length and three seeds (of the order in which the calibration
text is drawn); the figure is the mean KL(original || stage), nats per token, over held-out text of the model's own
world. Settings are the default run's but for the precision, which is float32. `change` is the logarithm of the filtered
training's divergence over the unfiltered one's with the same seed, model, stage and length: mean and, in brackets, a
95 % interval of Student's t. Below zero the filter helps.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from experiments.score import MODELS, tinystories
from phase8.codecs import EncodedGroup, get_codec
from phase8.codecs.pools import pools
from phase8.config import GrokfastConfig, GrokfastVariant, OptimizerConfig, Precision, SeedLMConfig, VPTQConfig
from phase8.files import write_atomic
from phase8.model.importance import collect_importance
from phase8.model.source import SourceModel, load_source
from phase8.train.reconstruct import reconstruct
from phase8.train.text import training_text

RESULTS = Path(__file__).parent / "results" / "grokfast"
STAGES = {"seedlm": SeedLMConfig(), "vptq": VPTQConfig(vector_dim=3, codebook_size=512)}
FILTERS = {
    "off": GrokfastConfig(enabled=False),
    "ema 0.98 / 2 (the paper's)": GrokfastConfig(),
    "ema 0.98 / 0.5": GrokfastConfig(lambda_=0.5),
    "ema 0.98 / 0.1": GrokfastConfig(lambda_=0.1),
    "ema 0.9 / 2": GrokfastConfig(alpha=0.9),
    "ema 0.9 / 0.5": GrokfastConfig(alpha=0.9, lambda_=0.5),
    "ema 0.8 / 0.5": GrokfastConfig(alpha=0.8, lambda_=0.5),
    "ma 20 / 0.5": GrokfastConfig(variant=GrokfastVariant.ma, window=20, lambda_=0.5),
    "as printed": GrokfastConfig(variant=GrokfastVariant.as_printed),
}
SHORT_LIST = ("off", "ema 0.98 / 2 (the paper's)", "ema 0.98 / 0.5", "ema 0.9 / 0.5")
"""Also with a long warm-up, and over more steps."""
WARMUPS = {"": 0.05, ", warm-up 0.3": 0.3}
LENGTHS = {"reference": (100,), "tinystories": (100, 400)}
SEEDS = (0, 1, 2)
SEQUENCES, HELD_OUT, TOKENS = 256, 32, 128

Key = tuple[str, str, int, str, int]


def closed_form(source: SourceModel, stage: str, tokens: Any) -> list[EncodedGroup]:
    """The stage's groups before training, and the vectors as they are."""
    matrices, config, codec = source.matrices(), STAGES[stage], get_codec(stage)
    importance = collect_importance(source.network, tokens[:64].split(16), tuple(matrices))
    groups = []
    for names in pools(matrices, config):
        inside = {name: importance[name] for name in names if name in importance}
        groups.append(codec.encode({name: matrices[name] for name in names}, config, importance=inside, seed=0))
    return [*groups, get_codec("plain").encode(source.vectors(), None, importance={}, seed=0)]


def measure(model: str, done: dict[Key, dict[str, Any]]) -> None:
    """Every row of a model that is not there yet."""
    path = "embedded:reference" if model == "reference" else tinystories("model")
    file = None if model == "reference" else tinystories("train.txt")
    source = load_source(path)
    count = SEQUENCES + HELD_OUT
    text = training_text(source, model_path=path, path=file, sequences=count, length=TOKENS, seed=1009)
    training, held_out = text.tokens_NT[:SEQUENCES], text.tokens_NT[SEQUENCES:]
    for stage in STAGES:
        groups = None
        for steps in LENGTHS[model]:
            for warmup_name, warmup in WARMUPS.items():
                for name, settings in FILTERS.items():
                    for seed in SEEDS:
                        key = (model, stage, steps, name + warmup_name, seed)
                        special = bool(warmup_name) or steps > 100
                        if key in done or (warmup_name and (steps > 100 or model == "reference")):
                            continue
                        if special and name not in SHORT_LIST:
                            continue
                        groups = groups or closed_form(source, stage, training)
                        outcome = reconstruct(
                            source.network,
                            groups,
                            calibration=training,
                            held_out=held_out,
                            config=OptimizerConfig(precision=Precision.float32, warmup=warmup),
                            grokfast=replace(settings, iterations=steps),
                            seed=seed,
                        )
                        done[key] = {"before": outcome.held_out_before, "after": outcome.held_out_after}
                        print(key, done[key], flush=True)
                        save(done)


def change(done: dict[Key, dict[str, Any]], model: str, stage: str, steps: int, name: str, plain: str) -> list[float]:
    """ln(filtered / unfiltered) of every seed that has both."""
    found = []
    for seed in SEEDS:
        ours, theirs = done.get((model, stage, steps, name, seed)), done.get((model, stage, steps, plain, seed))
        if ours is not None and theirs is not None:
            after = ours["after"]
            found.append(math.log(after / theirs["after"]) if math.isfinite(after) else math.inf)
    return found


def interval(values: list[float]) -> str:
    """Mean and 95 % interval of Student's t."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return f"{np.mean(values):+.2f}"
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return f"{np.mean(values):+.2f} ({np.mean(values) - half:+.2f} to {np.mean(values) + half:+.2f})"


def as_markdown(done: dict[Key, dict[str, Any]]) -> str:
    """The table."""
    lines = [
        "# Grokfast in the reconstruction",
        "",
        "`python -m experiments.grokfast`; what the columns mean stands at the head of that file.",
        "",
        "| model | stage | steps | filter | KL before | KL after, mean of seeds | change |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    seen = dict.fromkeys(key[:4] for key in done)
    for model, stage, steps, name in seen:
        rows = [done[model, stage, steps, name, seed] for seed in SEEDS if (model, stage, steps, name, seed) in done]
        before, after = (float(np.mean([row[when] for row in rows])) for when in ("before", "after"))
        plain = "off" + name[name.index(", warm-up") :] if ", warm-up" in name else "off"
        cell = "" if name == plain else interval(change(done, model, stage, steps, name, plain))
        lines.append(f"| {model} | {stage} | {steps} | {name} | {before:.4f} | {after:.4f} | {cell} |")
    return "\n".join(lines) + "\n"


def save(done: dict[Key, dict[str, Any]]) -> None:
    """Both files."""
    rows = [dict(zip(("model", "stage", "steps", "filter", "seed"), key, strict=True)) | done[key] for key in done]
    write_atomic(RESULTS.with_suffix(".json"), json.dumps(rows, indent=0) + "\n")
    write_atomic(RESULTS.with_suffix(".md"), as_markdown(done))


def load() -> dict[Key, dict[str, Any]]:
    """What was measured before."""
    path = RESULTS.with_suffix(".json")
    rows = json.loads(path.read_text()) if path.exists() else []
    return {
        (row["model"], row["stage"], row["steps"], row["filter"], row["seed"]): {
            "before": row["before"],
            "after": row["after"],
        }
        for row in rows
    }


def main() -> int:
    """Runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    done = load()
    for model in parser.parse_args().models:
        measure(model, done)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
