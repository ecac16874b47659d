"""From benchmark results to a verdict: pure functions, no files, no clock, no chance.

Retention is score / reference score. A benchmark whose *baseline* is not above chance by two standard errors is
uninformative: it is listed with `passed=None` and counts neither for nor against. The mean retention of the core
benchmarks is the unweighted mean over the informative ones. An expert's retention is the mean over the informative
benchmarks that judge it, core ones included; that of the experts is the mean over experts.

Example: the baseline scores 0.60 and 0.80 on two benchmarks, the stage's input 0.58 and 0.80, the stage 0.57 and 0.76.
Retention of the stage: (0.57 / 0.58 + 0.76 / 0.80) / 2 = 0.966, enough for `vptq` (0.95), too little for `seedlm`
(0.98). Cumulative retention: (0.57 / 0.60 + 0.76 / 0.80) / 2 = 0.95.

Four findings abort the descent (`Verdict.abort`), all relative to the baseline: a core benchmark under 80 %, MMLU and
GSM8K together (their summed score) down by more than 20 %, a eudaimonia rule under 0.50, the first expert's benchmarks
down by more than 25 %. None of them is held against a stage where the baseline itself is already beyond the limit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from phase8.benchmarks.evaluate import Score, SuiteResult
from phase8.errors import BenchmarkError
from phase8.judge.policy import Check, decide, reaches, sampled, wording
from phase8.judge.resample import mean_draws, ratio_draws
from phase8.judge.retention import is_informative
from phase8.judge.settings import GateConfig, GatePolicy, GateReference

_KNOWLEDGE = ("MMLU", "GSM8K")
_ONE_SIDED = 1.645
"""Standard errors below which 95 % of a normal distribution lies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a stage's gate found."""

    stage: str
    passed: bool
    """Every check that could be judged holds, and nothing aborts."""
    abort: str | None
    """Why the descent ends here, or None."""
    checks: tuple[Check, ...]
    wording: str = ""
    """What the policy's verdict is worth, in a sentence."""

    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.passed is False)

    def check(self, name: str) -> Check | None:
        """The check called `name`, or None."""
        return next((check for check in self.checks if check.name == name), None)


def judge_stage(
    stage: str,
    *,
    baseline: SuiteResult,
    stage_input: SuiteResult,
    result: SuiteResult,
    config: GateConfig,
    max_accuracy_loss: float,
    experts: Sequence[str] | None = None,
    input_bytes: int | None = None,
    compressed_bytes: int | None = None,
    text: str = "the suite's",
) -> Verdict:
    """Judges one stage.

    Args:
        stage: its name.
        baseline: results of the original model.
        stage_input: results of what the stage started from: the last stage that passed, else the original model.
        result: results of the stage's artifact as read back.
        max_accuracy_loss: largest loss of the mean core retention relative to the baseline; 0.16 keeps 84 %.
        experts: the model's experts, in order; by default every expert that a benchmark of the suite judges.
        input_bytes, compressed_bytes: what the stage started from and what it made; a stage that does not shrink its
            input fails, however good it is. None: not judged.
        text: names the held-out text, which judges where fewer than `min_informative` core benchmarks say anything.

    Raises:
        BenchmarkError: `result` or `stage_input` lacks a benchmark of the baseline.
    """
    _require_same_tasks(baseline, stage_input, result)
    if config.reference is GateReference.baseline:
        reference, origin = baseline, "relative to the baseline"
    else:
        reference, origin = stage_input, "relative to the stage's input"
    kept = 1.0 - max_accuracy_loss
    means = _sample(baseline, reference, result)
    found = [
        *_size_check(input_bytes, compressed_bytes),
        _informative_check(baseline, result, config, text),
        _perplexity_check(
            "perplexity", baseline, result, config, 1.0 / (1.0 + getattr(config.perplexity, stage)), text
        ),
        _core_check("core_retention", baseline, _ratios(baseline, means), getattr(config.core, stage), origin),
        _core_check("core_retention_cumulative", baseline, _kept(baseline, means), kept, "relative to the baseline"),
        _expert_check(
            "expert_retention", baseline, _ratios(baseline, means), experts, getattr(config.expert, stage), origin
        ),
        *_benchmark_checks(baseline, means, config.abort_benchmark, roles=("core",)),
        _knowledge_check(baseline, means, config),
        _first_expert_check(baseline, means, experts, config),
        _edge_check(baseline, result, config),
        *_rule_checks(baseline, result, getattr(config.rule, stage)),
    ]
    checks = decide(found, config.policy)
    abort = _abort_reason(checks, baseline, result, config)
    passed = abort is None and all(check.passed is not False for check in checks)
    worth = wording(checks, config.policy)
    if text_judges(baseline, result, config):
        worth += f"; too few benchmarks say anything of this model, so held-out text judges ({text})"
    return Verdict(stage=stage, passed=passed, abort=abort, checks=checks, wording=worth)


def judge_final(
    baseline: SuiteResult,
    final: SuiteResult,
    *,
    original_bytes: int,
    compressed_bytes: int,
    latency_ms: float | None,
    config: GateConfig,
    max_accuracy_loss: float,
    min_ratio: float,
    target_ratio: float,
    experts: Sequence[str] | None = None,
    text: str = "the suite's",
) -> tuple[Check, ...]:
    """The seven success criteria of a run, each with its figure. The run succeeds where all seven are `passed is True`.

    Unlike a stage's gate, these are absolute: a rule that the baseline itself does not reach is not passed here.

    Args:
        original_bytes: the input's parameters in FP32.
        compressed_bytes: the artifact on disk, all of it.
        latency_ms: estimated milliseconds per token on the target device; None where there is no estimate.
        max_accuracy_loss, experts: as in `judge_stage`.
        text: as in `judge_stage`; where it judges, it stands for the core benchmarks.
        min_ratio: least ratio that counts as success; `target_ratio` is only told.

    Raises:
        BenchmarkError: `final` lacks a benchmark of the baseline.
    """
    _require_same_tasks(baseline, final)
    if compressed_bytes <= 0 or original_bytes <= 0:
        raise BenchmarkError(f"sizes of {original_bytes} and {compressed_bytes} bytes cannot be compared")
    ratio = original_bytes / compressed_bytes
    target = "reached" if ratio >= target_ratio else "not reached"
    means = _sample(baseline, baseline, final)
    kept = _kept(baseline, means)
    benchmarks = _benchmark_checks(baseline, means, config.abort_benchmark, roles=("core", "expert"))
    if text_judges(baseline, final, config):
        core = _perplexity_check("core", baseline, final, config, 1.0 - max_accuracy_loss, text)
    else:
        core = _core_check("core", baseline, kept, 1.0 - max_accuracy_loss, "relative to the baseline")
    found = (
        Check(
            name="size",
            value=ratio,
            threshold=min_ratio,
            passed=ratio >= min_ratio,
            note=f"times smaller than FP32; the target of {target_ratio:g} is {target}",
        ),
        core,
        _expert_check("experts", baseline, kept, experts, config.final_expert, "relative to the baseline"),
        _edge_check(baseline, final, config),
        _worst(
            "eudaimonia",
            _rule_checks(baseline, final, config.final_rule, absolute=True),
            config.final_rule,
            config.policy,
        ),
        _worst("no_benchmark_lost", benchmarks, config.abort_benchmark, config.policy),
        Check(
            name="latency_ms",
            value=latency_ms,
            threshold=config.max_latency_ms,
            passed=None if latency_ms is None else latency_ms < config.max_latency_ms,
            note="no estimate" if latency_ms is None else "estimate, milliseconds per token on the target device",
        ),
    )
    return decide(found, config.policy)


def _require_same_tasks(baseline: SuiteResult, *others: SuiteResult) -> None:
    for other in others:
        missing = sorted(set(baseline.scores) - set(other.scores))
        missing += [f"rule {rule}" for rule in sorted(set(baseline.eudaimonia or {}) - set(other.eudaimonia or {}))]
        if baseline.edge_score() and not other.edge_score():
            missing.append("edge of chaos")
        if missing:
            raise BenchmarkError(
                f"these were measured on the baseline but not on the compressed model: {', '.join(missing)}",
                where="gates",
                fix="evaluate both with the same benchmark settings",
            )


def _of_role(suite: SuiteResult, role: str) -> dict[str, Score]:
    return {name: score for name, score in suite.scores.items() if score.role == role}


@dataclass(frozen=True, slots=True)
class _Means:
    """Mean scores of one benchmark on three models, shape [1 + D] each: as measured, then on D draws of items."""

    baseline: np.ndarray
    reference: np.ndarray
    result: np.ndarray


Ratios = Mapping[str, np.ndarray]
"""Retention of each informative benchmark, shape [1 + D]."""


def _sample(baseline: SuiteResult, reference: SuiteResult, result: SuiteResult) -> dict[str, _Means]:
    return {
        name: _Means(*_measured_and_drawn(score, reference.scores[name], result.scores[name]))
        for name, score in baseline.scores.items()
    }


def _measured_and_drawn(*scores: Score) -> np.ndarray:
    """Shape [S, 1 + D]."""
    measured_S1 = np.array([[score.value] for score in scores])
    return np.concatenate([measured_S1, mean_draws(scores)], axis=1)


def _ratio(after_D: np.ndarray, before_D: np.ndarray) -> np.ndarray:
    """A draw in which there is nothing to keep bounds nothing: NaN."""
    return np.divide(after_D, before_D, out=np.full_like(after_D, np.nan), where=before_D > 0.0)


def _ratios(baseline: SuiteResult, means: Mapping[str, _Means]) -> Ratios:
    """Retention relative to the reference. Where that one scores 0, nothing is left to retain."""
    return {
        name: _ratio(mean.result, mean.reference)
        for name, mean in means.items()
        if is_informative(baseline.scores[name]) and mean.reference[0] > 0.0
    }


def _kept(baseline: SuiteResult, means: Mapping[str, _Means]) -> Ratios:
    """Retention relative to the baseline."""
    return _ratios(baseline, {name: replace(mean, reference=mean.baseline) for name, mean in means.items()})


def _mean(values: Mapping[str, np.ndarray]) -> np.ndarray | None:
    return np.mean(list(values.values()), axis=0) if values else None


def _worst(name: str, checks: Sequence[Check], threshold: float, policy: GatePolicy) -> Check:
    """Several conditions as one, which passes where all do; it shows the one with the least figure."""
    judged = [check for check in decide(checks, policy) if check.passed is not None and check.value is not None]
    if not judged:
        return Check(name=name, value=None, threshold=threshold, passed=None, note="nothing that could be judged")
    least = min(judged, key=lambda check: check.value or 0.0)
    note = f"lowest of {len(judged)}: {least.name.split('/')[-1]}"
    # Without p: the policy has been applied to each of them.
    return replace(least, name=name, passed=all(check.passed for check in judged), note=note, p=None)


def _size_check(input_bytes: int | None, compressed_bytes: int | None) -> list[Check]:
    if input_bytes is None or compressed_bytes is None:
        return []
    value = input_bytes / compressed_bytes
    note = f"times smaller than the stage's input: {input_bytes:,} -> {compressed_bytes:,} bytes"
    return [Check(name="smaller", value=value, threshold=1.0, passed=compressed_bytes < input_bytes, note=note)]


def text_judges(baseline: SuiteResult, result: SuiteResult, config: GateConfig) -> bool:
    """Whether held-out text judges: too few core benchmarks say anything, and the text was measured on both models."""
    telling = sum(is_informative(score) for score in _of_role(baseline, "core").values())
    measured = len(baseline.document_bits) == len(result.document_bits) > 0
    return telling < config.min_informative and measured and sum(result.document_bits) > 0.0


def _perplexity_check(
    name: str, baseline: SuiteResult, result: SuiteResult, config: GateConfig, threshold: float, text: str
) -> Check:
    """Baseline's bits / result's bits on the same text: 1 where nothing was lost, paired over documents."""
    before, after = sum(baseline.document_bits), sum(result.document_bits)
    if len(baseline.document_bits) != len(result.document_bits) or not before or not after:
        return sampled(name, None, threshold, note="held-out text was not measured")
    judges = text_judges(baseline, result, config)
    note = f"bits per byte of held-out text ({text}): {after / before - 1:+.1%}, at most {1 / threshold - 1:+.1%}"
    if not judges:
        note += "; not judged, since the benchmarks are"
    values = np.concatenate([[before / after], ratio_draws(baseline.document_bits, result.document_bits)])
    return sampled(name, values, threshold, note=note, judged=judges)


def _informative_check(baseline: SuiteResult, result: SuiteResult, config: GateConfig, text: str) -> Check:
    core = _of_role(baseline, "core")
    idle = [name for name, score in core.items() if not is_informative(score)]
    note = f"of {len(core)} core benchmarks" + (f"; uninformative: {', '.join(idle)}" if idle else "")
    count = len(core) - len(idle)
    enough = count >= config.min_informative
    passed: bool | None = enough
    if not enough:
        note = f"too few informative benchmarks for a verdict: {count} {note}"
        if text_judges(baseline, result, config):
            passed, note = None, f"{note}; held-out text ({text}) judges in their place"
    return Check(
        name="informative_core", value=float(count), threshold=float(config.min_informative), passed=passed, note=note
    )


def _core_check(name: str, baseline: SuiteResult, ratios: Ratios, threshold: float, origin: str) -> Check:
    core = {task: ratio for task, ratio in ratios.items() if baseline.scores[task].role == "core"}
    note = f"mean of {len(core)} informative core benchmarks, {origin}"
    return sampled(name, _mean(core), threshold, note=note)


def _by_expert(baseline: SuiteResult, ratios: Ratios, experts: Sequence[str] | None) -> dict[str, np.ndarray | None]:
    judges = {name: score for name, score in baseline.scores.items() if score.role in ("core", "expert")}
    if experts is None:
        experts = list(dict.fromkeys(expert for score in judges.values() for expert in score.experts))
    return {
        expert: _mean({name: r for name, r in ratios.items() if name in judges and expert in judges[name].experts})
        for expert in experts
    }


def _expert_check(
    name: str, baseline: SuiteResult, ratios: Ratios, experts: Sequence[str] | None, threshold: float, origin: str
) -> Check:
    found = _by_expert(baseline, ratios, experts)
    known = {expert: retention for expert, retention in found.items() if retention is not None}
    idle = [expert for expert, retention in found.items() if retention is None]
    if known:
        figures = ", ".join(f"{expert} {retention[0]:.3f}" for expert, retention in known.items())
        note = f"mean over experts, {origin}: {figures}" + (f"; no figure for {', '.join(idle)}" if idle else "")
    else:
        note = "no informative benchmark judges an expert"
    return sampled(name, _mean(known), threshold, note=note)


def _benchmark_checks(
    baseline: SuiteResult, means: Mapping[str, _Means], threshold: float, roles: tuple[str, ...]
) -> list[Check]:
    checks = []
    for name, score in baseline.scores.items():
        if score.role not in roles:
            continue
        useful = is_informative(score)
        mean = means[name]
        note = f"{score.value:.4f} -> {mean.result[0]:.4f}"
        if not useful:
            note = (
                f"uninformative: the baseline's {score.value:.3f} is not above chance ({score.chance:.3f}) by two "
                f"standard errors ({score.stderr:.3f})"
            )
        values = _ratio(mean.result, mean.baseline) if score.value > 0.0 else None
        checks.append(sampled(f"benchmark/{name}", values, threshold, note=note, judged=useful))
    return checks


def _knowledge_check(baseline: SuiteResult, means: Mapping[str, _Means], config: GateConfig) -> Check:
    threshold = 1.0 - config.abort_knowledge_loss
    named = {name: score for name, score in _of_role(baseline, "core").items() if score.stands_for in _KNOWLEDGE}
    if len(named) < len(_KNOWLEDGE) or not all(is_informative(score) for score in named.values()):
        note = "not judged: MMLU and GSM8K are not both measured and informative"
        return sampled("knowledge", None, threshold, note=note)
    after = np.sum([means[name].result for name in named], axis=0)
    before = np.sum([means[name].baseline for name in named], axis=0)
    note = "summed score of MMLU and GSM8K, relative to the baseline"
    return sampled("knowledge", _ratio(after, before), threshold, note=note)


def _first_expert_check(
    baseline: SuiteResult, means: Mapping[str, _Means], experts: Sequence[str] | None, config: GateConfig
) -> Check:
    found = _by_expert(baseline, _kept(baseline, means), experts)
    first, values = next(iter(found.items()), (None, None))
    if first is None:
        note = "no benchmark judges an expert"
    else:
        note = f"{first}, relative to the baseline" if values is not None else f"{first} has no informative benchmark"
    return sampled("first_expert", values, 1.0 - config.abort_first_expert_loss, note=note)


def _edge_check(baseline: SuiteResult, result: SuiteResult, config: GateConfig) -> Check:
    low, high = config.edge_low, config.edge_high
    before, after = baseline.edge_score(), result.edge_score()
    if before is None or after is None:
        return sampled("edge_of_chaos", None, low, ceiling=high, note="not measured")
    judged = is_informative(before) and reaches(before.value, low) and reaches(high, before.value)
    if not is_informative(before):
        note = _not_above_chance(before)
    elif not judged:
        note = f"not judged: the baseline's own {before.value:.3f} is outside {low:.2f} to {high:.2f}"
    else:
        note = f"has to stay within {low:.2f} to {high:.2f}"
        if not reaches(after.value, low):
            note += "; lost capability"
        elif not reaches(high, after.value):
            note += "; too easy"
        if config.policy is GatePolicy.confident:
            note += _band_note(after, low, high)
    values = _measured_and_drawn(after)[0]
    return sampled("edge_of_chaos", values, low, ceiling=high, note=note, judged=judged)


def _band_note(score: Score, low: float, high: float) -> str:
    """Where even a score in the middle of the band could not be told to lie in it, how many items could."""
    middle = (low + high) / 2
    needed = math.ceil((_ONE_SIDED / (high - middle)) ** 2 * middle * (1 - middle))
    if score.n >= needed:
        return ""
    return f"; {score.n} items cannot show that a model is within it with confidence, that takes at least {needed}"


def _rule_checks(
    baseline: SuiteResult, result: SuiteResult, threshold: float, *, absolute: bool = False
) -> list[Check]:
    """A rule that the baseline breaks is not judged, unless `absolute`; none is where the test says nothing of the
    baseline."""
    checks = []
    whole = baseline.eudaimonia_score()
    telling = whole is not None and is_informative(whole)
    after_all = result.by_rule()
    for rule, before in baseline.by_rule().items():
        after = after_all[rule]
        judged = telling and (absolute or reaches(before.value, threshold))
        note = f"{before.value:.3f} -> {after.value:.3f}"
        if whole is not None and not telling:
            note = _not_above_chance(whole)
        elif not judged:
            note = f"not judged: the baseline's own {before.value:.3f} is below {threshold:.2f}"
        checks.append(sampled(f"rule/{rule}", _measured_and_drawn(after)[0], threshold, note=note, judged=judged))
    return checks


def _not_above_chance(baseline: Score) -> str:
    return (
        f"not judged: the baseline's {baseline.value:.3f} on {baseline.task} is not above chance "
        f"({baseline.chance:.3f}) by two standard errors"
    )


def _abort_reason(
    checks: Sequence[Check], baseline: SuiteResult, result: SuiteResult, config: GateConfig
) -> str | None:
    """What ends the descent. `confident` fails a gate for doubt alone; only a figure beyond its limit aborts."""
    reasons = []
    for check in checks:
        if check.passed is not False or check.value is None or reaches(check.value, check.threshold):
            continue
        if check.name.startswith("benchmark/"):
            task = check.name.removeprefix("benchmark/")
            reasons.append(f"{task} keeps {check.value:.1%} of the baseline, less than {check.threshold:.0%}")
        elif check.name == "knowledge":
            reasons.append(f"MMLU and GSM8K together keep {check.value:.1%}, less than {check.threshold:.0%}")
        elif check.name == "first_expert":
            reasons.append(f"the first expert keeps {check.value:.1%}, less than {check.threshold:.0%}")
    broken = _rule_checks(baseline, result, config.abort_rule, absolute=True)
    if config.policy is GatePolicy.not_worse:
        broken = list(decide(broken, config.policy))
    for check in broken:
        rule = check.name.removeprefix("rule/")
        before = (baseline.eudaimonia or {}).get(rule, 0.0)
        if check.passed is False and before >= config.abort_rule:
            reasons.append(f"the rule {rule} scores {check.value:.3f}, less than {config.abort_rule:.2f}")
    return "; ".join(reasons) or None
