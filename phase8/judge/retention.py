"""How much of the baseline's scores is left, with intervals from the same items.

Raw retention is `final / baseline`; chance-corrected retention is `(final - chance) / (baseline - chance)`. On a
four-way task a guesser keeps 0.25 / 0.80 = 31 % raw and nothing corrected.

Intervals come from draws of `resample`, which weigh the same items alike for both models; the 2.5th and 97.5th
percentiles of the ratios bound them. Most items go alike in both models, so the pairs tell far more than the two scores
on their own.

    baseline 1 1 1 0, final 1 1 0 0, chance 0: raw retention 0.50 / 0.75 = 0.667
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from phase8.benchmarks.evaluate import Score, SuiteResult
from phase8.errors import BenchmarkError
from phase8.judge.resample import DRAWS, mean_draws

LEVEL = 0.95
STANDARD_ERRORS = 2.0
"""How far above chance a baseline must be to tell anything."""
WAYS_OUT = (
    "Ways on: benchmarks=core with data that this model can answer; held-out text of its own kind "
    "(benchmarks.perplexity_text=FILE) with calibration_text=FILE; gates.min_informative lowered, where fewer are "
    "enough for you; one stage without a verdict: `python -m phase8 encode MODEL OUT --stage vptq`"
)
TYPICAL_DISCORDANCE = 0.125
"""Share of items that a moderately compressed model answers otherwise than the baseline; sets `items_needed`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A figure with its 95 % interval. None: not defined, or not bounded on that side."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention:
    """One benchmark, before and after."""

    task: str
    role: str
    stands_for: str
    experts: tuple[str, ...]
    n: int
    chance: float
    baseline: float
    baseline_stderr: float
    final: float
    final_stderr: float
    raw: Estimate
    corrected: Estimate
    """Undefined where the benchmark is not informative: what little is above chance is chance's own."""
    difference: Estimate
    """`final - baseline`, a score, not a ratio."""
    informative: bool
    """Whether the baseline is above chance by two standard errors. If not, retention says nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Average:
    """Mean retention over the informative benchmarks of a group."""

    raw: Estimate
    corrected: Estimate
    tasks: tuple[str, ...]
    """The benchmarks that count."""
    uninformative: tuple[str, ...]
    """Those that do not."""


def is_informative(baseline: Score) -> bool:
    """Whether a score is above chance by two standard errors.

    The error is that of its own items or that of guessing, whichever is larger: three right answers out of three have
    no spread, and prove little.
    """
    guessing = math.sqrt(baseline.chance * (1 - baseline.chance) / baseline.n)
    return baseline.value > baseline.chance + STANDARD_ERRORS * max(baseline.stderr, guessing)


def uninformative_core(baseline: SuiteResult, needed: int, text_name: str) -> str:
    """What a run has to say of a model that guesses, before it spends hours on it; empty where it does not guess.

    Args:
        needed: informative core benchmarks without which held-out text judges.
        text_name: names that text.
    """
    core = [score for score in baseline.scores.values() if score.role == "core"]
    idle = [score for score in core if not is_informative(score)]
    if not idle:
        return ""
    telling = len(core) - len(idle)
    text = (
        f"the original does no better than guessing on {len(idle)} of {len(core)} core benchmarks "
        f"({', '.join(one.task for one in idle)}): what compression does to it cannot be seen there"
    )
    if telling < needed:
        text += (
            f"; {telling} informative ones are too few for a verdict ({needed} needed), "
            + (
                f"so held-out text judges instead ({text_name}, {len(baseline.document_bits):,} documents). "
                if baseline.document_bits
                else "so no gate can pass by them. "
            )
            + WAYS_OUT
        )
    return text


def retention(baseline: Score, final: Score, *, seed: int = 0, draws: int = DRAWS) -> Retention:
    """Compares two models on one benchmark, item by item.

    Raises:
        BenchmarkError: the two scores are not of the same items.
    """
    base_D, final_D = mean_draws([baseline, final], seed=seed, draws=draws)
    chance, informative = baseline.chance, is_informative(baseline)
    corrected = _estimate(
        _ratio(final.value - chance, baseline.value - chance), _ratios(final_D - chance, base_D - chance)
    )
    return Retention(
        task=baseline.task,
        role=baseline.role,
        stands_for=baseline.stands_for,
        experts=baseline.experts,
        n=baseline.n,
        chance=chance,
        baseline=baseline.value,
        baseline_stderr=baseline.stderr,
        final=final.value,
        final_stderr=final.stderr,
        raw=_estimate(_ratio(final.value, baseline.value), _ratios(final_D, base_D)),
        corrected=corrected if informative else Estimate(value=None, low=None, high=None),
        difference=_estimate(final.value - baseline.value, final_D - base_D),
        informative=informative,
    )


def average(pairs: Iterable[tuple[Score, Score]], *, seed: int = 0, draws: int = DRAWS) -> Average:
    """Mean retention over (baseline, final) pairs, each benchmark with equal weight, the uninformative ones left out.

    Benchmarks are resampled independently of each other; their errors are taken to be independent.

    Raises:
        BenchmarkError: the two scores of a pair are not of the same items.
    """
    raw: list[tuple[float, np.ndarray]] = []
    corrected: list[tuple[float, np.ndarray]] = []
    tasks: list[str] = []
    uninformative: list[str] = []
    for baseline, final in pairs:
        base_D, final_D = mean_draws([baseline, final], seed=seed, draws=draws)
        if not is_informative(baseline):
            uninformative.append(baseline.task)
            continue
        chance = baseline.chance
        tasks.append(baseline.task)
        raw.append((final.value / baseline.value, _ratios(final_D, base_D)))
        corrected.append(
            ((final.value - chance) / (baseline.value - chance), _ratios(final_D - chance, base_D - chance))
        )
    return Average(raw=_mean(raw), corrected=_mean(corrected), tasks=tuple(tasks), uninformative=tuple(uninformative))


def by_role(
    baseline: dict[str, Score], final: dict[str, Score], role: str, *, seed: int = 0, draws: int = DRAWS
) -> Average:
    """Average over the benchmarks of one role (`core`). Raises `BenchmarkError` if one was not run on both models."""
    return average(_pairs(baseline, final, [s for s in baseline.values() if s.role == role]), seed=seed, draws=draws)


def by_expert(
    baseline: dict[str, Score], final: dict[str, Score], experts: Sequence[str], *, seed: int = 0, draws: int = DRAWS
) -> dict[str, Average]:
    """Average per expert, over all benchmarks that judge it, core ones included.

    Raises:
        BenchmarkError: a benchmark was not run on both models.
    """
    return {
        expert: average(
            _pairs(baseline, final, [s for s in baseline.values() if expert in s.experts]), seed=seed, draws=draws
        )
        for expert in experts
    }


def items_needed(difference: float, discordance: float = TYPICAL_DISCORDANCE) -> int:
    """Items that resolve a `difference` of two scores at the 95 % level, when they differ on a share `discordance`.

    The variance of a paired difference of 0-to-1 scores is about that share divided by n (McNemar).
    `items_needed(0.05)` is 193, `items_needed(0.01)` is 4802.
    """
    return math.ceil((1.96 / difference) ** 2 * discordance)


def resolution(n: int, discordance: float = TYPICAL_DISCORDANCE) -> float:
    """The inverse of `items_needed`: the smallest difference that `n` items resolve. `resolution(200)` is 0.049."""
    return 1.96 * math.sqrt(discordance / n)


def _pairs(baseline: dict[str, Score], final: dict[str, Score], chosen: list[Score]) -> list[tuple[Score, Score]]:
    absent = [score.task for score in chosen if score.task not in final]
    if absent:
        raise BenchmarkError(f"not run on the compressed model: {', '.join(absent)}", where="retention")
    return [(baseline[score.task], final[score.task]) for score in chosen]


def _ratio(final: float, baseline: float) -> float | None:
    """None where the baseline has nothing to keep."""
    return final / baseline if baseline > 0 else None


def _ratios(final_D: np.ndarray, base_D: np.ndarray) -> np.ndarray:
    """A draw whose baseline has nothing to keep bounds nothing: it counts on either side, as NaN."""
    return np.divide(final_D, base_D, out=np.full_like(final_D, np.nan), where=base_D > 0)


def _estimate(value: float | None, draws_D: np.ndarray) -> Estimate:
    if value is None:
        return Estimate(value=None, low=None, high=None)
    unbounded = np.isnan(draws_D)
    tail = (1 - LEVEL) / 2
    low = float(np.quantile(np.where(unbounded, -np.inf, draws_D), tail, method="lower"))
    high = float(np.quantile(np.where(unbounded, np.inf, draws_D), 1 - tail, method="higher"))
    low, high = min(low, value), max(high, value)  # the draws smooth, and may all lie on one side of a figure of 0 or 1
    return Estimate(value=value, low=low if math.isfinite(low) else None, high=high if math.isfinite(high) else None)


def _mean(parts: list[tuple[float, np.ndarray]]) -> Estimate:
    if not parts:
        return Estimate(value=None, low=None, high=None)
    return _estimate(float(np.mean([value for value, _ in parts])), np.mean([draws for _, draws in parts], axis=0))
