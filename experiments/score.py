"""What is left of a model, measured alike for every row of the scoreboard.

    reference     the embedded model: the seven core mini benchmarks, each item against the original's, and bits per
                  byte of the embedded world's held-out text
    tinystories   a Llama of 260,032 parameters trained on TinyStories (stories260K of llama2.c): bits per byte of
                  held-out stories. Not in the repository: `PHASE8_TINYSTORIES` names a directory with `model/` (Hugging
                  Face form), `train.txt` and `validation.txt`

Retention is the mean over the core benchmarks that say something of the original, as in the gates (`phase8.judge`).
Example: a benchmark at 0.80 before and 0.53 after, chance 0.25: 66 % raw, 51 % chance-corrected.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from phase8.benchmarks.cache import BaselineCache
from phase8.benchmarks.evaluate import SuiteResult, evaluate
from phase8.benchmarks.perplexity import bits_per_byte, held_out_documents
from phase8.benchmarks.suite import Suite, load_suite, suite_hash
from phase8.errors import ConfigError
from phase8.judge.retention import Estimate, by_role
from phase8.model.source import SourceModel, load_source

MODELS = ("reference", "tinystories")
TINYSTORIES = "PHASE8_TINYSTORIES"
CACHE = Path(__file__).parent.parent / "outputs" / "cache"
"""Scores of the originals; safe to delete."""


def tinystories(part: str) -> str:
    """A path in the directory of the second model: `model`, `train.txt` or `validation.txt`.

    Raises:
        ConfigError: the directory is not given, or lacks it.
    """
    directory = os.environ.get(TINYSTORIES, "")
    path = Path(directory, part)
    if not directory or not path.exists():
        raise ConfigError(
            f"{TINYSTORIES} must name a directory that holds {part}",
            where=directory or f"the environment variable {TINYSTORIES}",
            fix=f"{TINYSTORIES}=DIRECTORY python -m ..., or measure on `reference` alone",
        )
    return str(path)


def load(model: str) -> SourceModel:
    """The original; float32, a fresh network every time.

    Raises:
        ConfigError: no such model, or its directory is not given.
        ModelError: it cannot be read.
    """
    if model not in MODELS:
        raise ConfigError(f"there is no model {model!r}", where="model", fix=f"known: {', '.join(MODELS)}")
    return load_source("embedded:reference" if model == "reference" else tinystories("model"))


def calibration_text(model: str) -> str | None:
    """The text that closed-form methods may look at, as `token_sequences` takes it; never what is scored."""
    return None if model == "reference" else tinystories("train.txt")


def score(network: Any, tokenizer: Any, *, model: str = "reference", benchmarks: bool = True) -> dict[str, Any]:
    """Measures a network that stands for one of the two models.

    Args:
        network: a transformers causal LM; its weights are what a file of the counted bytes decodes to.
        tokenizer: the original's.
        model: which original it stands for.
        benchmarks: on `reference`, also the core benchmarks, which take some 35 seconds of one core.

    Returns:
        `bits_per_byte`, `bits_per_byte_original`; with benchmarks also `retention_raw`, `retention_chance_corrected`
        with `_low` and `_high` (95 %, from the same items), and `scores` by benchmark; else these are None.

    Raises:
        ConfigError: as `load`.
        BenchmarkError: the benchmarks cannot be run here.
    """
    if model != "reference" or not benchmarks:
        nothing = dict.fromkeys(
            f"retention_{kind}{end}" for kind in ("raw", "chance_corrected") for end in ("", "_low", "_high")
        )
        bits = bits_per_byte(network, tokenizer, _documents(model))
        return {"bits_per_byte": bits, "bits_per_byte_original": _original_bits(model), "scores": None} | nothing
    baseline = _baseline()
    final = evaluate(network, tokenizer, _core_suite())
    core = by_role(baseline.scores, final.scores, "core")
    return {
        "bits_per_byte": final.bits_per_byte,
        "bits_per_byte_original": baseline.bits_per_byte,
        **_named("retention_raw", core.raw),
        **_named("retention_chance_corrected", core.corrected),
        "scores": {name: one.value for name, one in final.scores.items()},
    }


def _named(name: str, estimate: Estimate) -> dict[str, float | None]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


@cache
def _core_suite() -> Suite:
    suite = load_suite(skip_expert_benchmarks=True)
    return replace(suite, tasks=tuple(task for task in suite.tasks if task.role == "core"))


@cache
def _baseline() -> SuiteResult:
    """The original's scores, from disk where they were measured before with the same code and items."""
    source, kept, suite = load("reference"), BaselineCache(CACHE), _core_suite()
    result = kept.get(source.content_hash, suite_hash(suite))
    if result is None:
        result = evaluate(source.network, source.tokenizer, suite)
        kept.put(source.content_hash, suite_hash(suite), result)
    return result


def _documents(model: str) -> list[str]:
    return held_out_documents(None if model == "reference" else tinystories("validation.txt"))


@cache
def _original_bits(model: str) -> float:
    source = load(model)
    return bits_per_byte(source.network, source.tokenizer, _documents(model))
