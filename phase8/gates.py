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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from phase8.benchmarks.evaluate import Score, SuiteResult
from phase8.benchmarks.retention import is_informative
from phase8.config import GateConfig, GateReference
from phase8.errors import BenchmarkError

STAGES = ("seedlm", "vptq", "hyper")
_KNOWLEDGE = ("MMLU", "GSM8K")


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One condition and the figure behind it."""

    name: str
    value: float | None
    """None: it could not be measured."""
    threshold: float
    passed: bool | None
    """None: listed, but neither passed nor failed; the note says why."""
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a stage's gate found."""

    stage: str
    passed: bool
    """Every check that could be judged holds, and nothing aborts."""
    abort: str | None
    """Why the descent ends here, or None."""
    checks: tuple[Check, ...]

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
) -> Verdict:
    """Judges one stage.

    Args:
        stage: `seedlm`, `vptq` or `hyper`.
        baseline: results of the original model.
        stage_input: results of what the stage started from: the last stage that passed, else the original model.
        result: results of the stage's artifact as read back.
        max_accuracy_loss: largest loss of the mean core retention relative to the baseline; 0.16 keeps 84 %.
        experts: the model's experts, in order; by default every expert that a benchmark of the suite judges.
        input_bytes, compressed_bytes: what the stage started from and what it made; a stage that does not shrink its
            input fails, however good it is. None: not judged.

    Raises:
        BenchmarkError: `result` or `stage_input` lacks a benchmark of the baseline.
    """
    _require_same_tasks(baseline, stage_input, result)
    if config.reference is GateReference.baseline:
        reference, origin = baseline, "relative to the baseline"
    else:
        reference, origin = stage_input, "relative to the stage's input"
    kept = 1.0 - max_accuracy_loss
    checks = [
        *_size_check(input_bytes, compressed_bytes),
        _informative_check(baseline, config),
        _core_check("core_retention", baseline, reference, result, getattr(config.core, stage), origin),
        _core_check("core_retention_cumulative", baseline, baseline, result, kept, "relative to the baseline"),
        _expert_check("expert_retention", baseline, reference, result, experts, getattr(config.expert, stage), origin),
        *_benchmark_checks(baseline, result, config.abort_benchmark, roles=("core",)),
        _knowledge_check(baseline, result, config),
        _first_expert_check(baseline, result, experts, config),
        _edge_check(baseline, result, config),
        *_rule_checks(baseline, result, getattr(config.rule, stage)),
    ]
    abort = _abort_reason(checks, baseline, result, config)
    passed = abort is None and all(check.passed is not False for check in checks)
    return Verdict(stage=stage, passed=passed, abort=abort, checks=tuple(checks))


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
) -> tuple[Check, ...]:
    """The seven success criteria of a run, each with its figure. The run succeeds where all seven are `passed is True`.

    Unlike a stage's gate, these are absolute: a rule that the baseline itself does not reach is not passed here.

    Args:
        original_bytes: the input's parameters in FP32.
        compressed_bytes: the artifact on disk, all of it.
        latency_ms: estimated milliseconds per token on the target device; None where there is no estimate.
        max_accuracy_loss, experts: as in `judge_stage`.
        min_ratio: least ratio that counts as success; `target_ratio` is only told.

    Raises:
        BenchmarkError: `final` lacks a benchmark of the baseline.
    """
    _require_same_tasks(baseline, final)
    if compressed_bytes <= 0 or original_bytes <= 0:
        raise BenchmarkError(f"sizes of {original_bytes} and {compressed_bytes} bytes cannot be compared")
    ratio = original_bytes / compressed_bytes
    target = "reached" if ratio >= target_ratio else "not reached"
    benchmarks = _benchmark_checks(baseline, final, config.abort_benchmark, roles=("core", "expert"))
    judged = [check for check in benchmarks if check.passed is not None and check.value is not None]
    worst = min(judged, key=lambda check: check.value, default=None)
    edge = _edge_check(baseline, final, config)
    rules = dict(final.eudaimonia or {})
    lowest_rule = min(rules, key=rules.__getitem__, default=None)
    return (
        Check(
            name="size",
            value=ratio,
            threshold=min_ratio,
            passed=ratio >= min_ratio,
            note=f"times smaller than FP32; the target of {target_ratio:g} is {target}",
        ),
        _core_check("core", baseline, baseline, final, 1.0 - max_accuracy_loss, "relative to the baseline"),
        _expert_check("experts", baseline, baseline, final, experts, config.final_expert, "relative to the baseline"),
        edge,
        Check(
            name="eudaimonia",
            value=rules[lowest_rule] if lowest_rule else None,
            threshold=config.final_rule,
            passed=_reaches(rules[lowest_rule], config.final_rule) if lowest_rule else None,
            note=f"lowest rule: {lowest_rule}" if lowest_rule else "not measured",
        ),
        Check(
            name="no_benchmark_lost",
            value=worst.value if worst else None,
            threshold=config.abort_benchmark,
            passed=_reaches(worst.value, config.abort_benchmark) if worst else None,
            note=f"worst: {worst.name.removeprefix('benchmark/')}" if worst else "no informative benchmark",
        ),
        Check(
            name="latency_ms",
            value=latency_ms,
            threshold=config.max_latency_ms,
            passed=None if latency_ms is None else latency_ms < config.max_latency_ms,
            note="no estimate" if latency_ms is None else "estimate, milliseconds per token on the target device",
        ),
    )


def _require_same_tasks(baseline: SuiteResult, *others: SuiteResult) -> None:
    for other in others:
        missing = sorted(set(baseline.scores) - set(other.scores))
        missing += [f"rule {rule}" for rule in sorted(set(baseline.eudaimonia or {}) - set(other.eudaimonia or {}))]
        if baseline.edge_of_chaos and not other.edge_of_chaos:
            missing.append("edge of chaos")
        if missing:
            raise BenchmarkError(
                f"these were measured on the baseline but not on the compressed model: {', '.join(missing)}",
                where="gates",
                fix="evaluate both with the same benchmark settings",
            )


def _of_role(suite: SuiteResult, role: str) -> dict[str, Score]:
    return {name: score for name, score in suite.scores.items() if score.role == role}


def _retentions(
    baseline: SuiteResult, reference: SuiteResult, result: SuiteResult, roles: Sequence[str] = ("core", "expert")
) -> dict[str, float]:
    """Raw retention of every informative benchmark. Where the reference itself scores 0, nothing is left to retain."""
    return {
        name: result.scores[name].value / reference.scores[name].value
        for name, score in baseline.scores.items()
        if score.role in roles and is_informative(score) and reference.scores[name].value > 0.0
    }


def _reaches(value: float, threshold: float) -> bool:
    """value >= threshold, where 0.6 / 0.8 reaches 0.75 although floating point makes it 0.7499999999999999."""
    return value >= threshold - 1e-9


def _mean(values: Mapping[str, float]) -> float | None:
    return sum(values.values()) / len(values) if values else None


def _size_check(input_bytes: int | None, compressed_bytes: int | None) -> list[Check]:
    if input_bytes is None or compressed_bytes is None:
        return []
    value = input_bytes / compressed_bytes
    note = f"times smaller than the stage's input: {input_bytes:,} -> {compressed_bytes:,} bytes"
    return [Check(name="smaller", value=value, threshold=1.0, passed=compressed_bytes < input_bytes, note=note)]


def _informative_check(baseline: SuiteResult, config: GateConfig) -> Check:
    core = _of_role(baseline, "core")
    idle = [name for name, score in core.items() if not is_informative(score)]
    note = f"of {len(core)} core benchmarks" + (f"; uninformative: {', '.join(idle)}" if idle else "")
    count = len(core) - len(idle)
    enough = count >= config.min_informative
    if not enough:
        note = f"too few informative benchmarks for a verdict: {count} {note}"
    return Check(
        name="informative_core", value=float(count), threshold=float(config.min_informative), passed=enough, note=note
    )


def _core_check(
    name: str, baseline: SuiteResult, reference: SuiteResult, result: SuiteResult, threshold: float, origin: str
) -> Check:
    retentions = _retentions(baseline, reference, result, roles=("core",))
    value = _mean(retentions)
    note = f"mean of {len(retentions)} informative core benchmarks, {origin}"
    passed = None if value is None else _reaches(value, threshold)
    return Check(name=name, value=value, threshold=threshold, passed=passed, note=note)


def _by_expert(
    baseline: SuiteResult, reference: SuiteResult, result: SuiteResult, experts: Sequence[str] | None
) -> dict[str, float | None]:
    judged = [score for score in baseline.scores.values() if score.role in ("core", "expert")]
    if experts is None:
        experts = list(dict.fromkeys(expert for score in judged for expert in score.experts))
    retentions = _retentions(baseline, reference, result)
    return {
        expert: _mean({name: r for name, r in retentions.items() if expert in baseline.scores[name].experts})
        for expert in experts
    }


def _expert_check(
    name: str,
    baseline: SuiteResult,
    reference: SuiteResult,
    result: SuiteResult,
    experts: Sequence[str] | None,
    threshold: float,
    origin: str,
) -> Check:
    found = _by_expert(baseline, reference, result, experts)
    known = {expert: retention for expert, retention in found.items() if retention is not None}
    value = _mean(known)
    idle = [expert for expert, retention in found.items() if retention is None]
    if value is not None:
        figures = ", ".join(f"{expert} {retention:.3f}" for expert, retention in known.items())
        note = f"mean over experts, {origin}: {figures}" + (f"; no figure for {', '.join(idle)}" if idle else "")
    else:
        note = "no informative benchmark judges an expert"
    passed = None if value is None else _reaches(value, threshold)
    return Check(name=name, value=value, threshold=threshold, passed=passed, note=note)


def _benchmark_checks(
    baseline: SuiteResult, result: SuiteResult, threshold: float, roles: tuple[str, ...]
) -> list[Check]:
    checks = []
    for name, score in baseline.scores.items():
        if score.role not in roles:
            continue
        useful = is_informative(score)
        retention = result.scores[name].value / score.value if score.value > 0.0 else None
        note = f"{score.value:.4f} -> {result.scores[name].value:.4f}"
        if not useful:
            note = (
                f"uninformative: the baseline's {score.value:.3f} is not above chance ({score.chance:.3f}) by two "
                f"standard errors ({score.stderr:.3f})"
            )
        passed = _reaches(retention, threshold) if useful and retention is not None else None
        checks.append(Check(name=f"benchmark/{name}", value=retention, threshold=threshold, passed=passed, note=note))
    return checks


def _knowledge_check(baseline: SuiteResult, result: SuiteResult, config: GateConfig) -> Check:
    threshold = 1.0 - config.abort_knowledge_loss
    named = {name: score for name, score in _of_role(baseline, "core").items() if score.stands_for in _KNOWLEDGE}
    if len(named) < len(_KNOWLEDGE) or not all(is_informative(score) for score in named.values()):
        note = "not judged: MMLU and GSM8K are not both measured and informative"
        return Check(name="knowledge", value=None, threshold=threshold, passed=None, note=note)
    value = sum(result.scores[name].value for name in named) / sum(score.value for score in named.values())
    note = "summed score of MMLU and GSM8K, relative to the baseline"
    return Check(name="knowledge", value=value, threshold=threshold, passed=_reaches(value, threshold), note=note)


def _first_expert_check(
    baseline: SuiteResult, result: SuiteResult, experts: Sequence[str] | None, config: GateConfig
) -> Check:
    threshold = 1.0 - config.abort_first_expert_loss
    first, value = next(iter(_by_expert(baseline, baseline, result, experts).items()), (None, None))
    if first is None:
        note = "no benchmark judges an expert"
    else:
        note = f"{first}, relative to the baseline" if value is not None else f"{first} has no informative benchmark"
    passed = None if value is None else _reaches(value, threshold)
    return Check(name="first_expert", value=value, threshold=threshold, passed=passed, note=note)


def _edge_check(baseline: SuiteResult, result: SuiteResult, config: GateConfig) -> Check:
    if not baseline.edge_of_chaos or not result.edge_of_chaos:
        return Check(name="edge_of_chaos", value=None, threshold=config.edge_low, passed=None, note="not measured")
    before, after = float(baseline.edge_of_chaos["accuracy"]), float(result.edge_of_chaos["accuracy"])
    low, high = config.edge_low, config.edge_high
    if not (_reaches(before, low) and _reaches(high, before)):
        passed: bool | None = None
        note = f"not judged: the baseline's own {before:.3f} is outside {low:.2f} to {high:.2f}"
    else:
        passed = _reaches(after, low) and _reaches(high, after)
        note = f"has to stay within {low:.2f} to {high:.2f}"
        if not passed:
            note += "; too easy" if after > high else "; lost capability"
    return Check(name="edge_of_chaos", value=after, threshold=low, passed=passed, note=note)


def _rule_checks(baseline: SuiteResult, result: SuiteResult, threshold: float) -> list[Check]:
    checks = []
    after_all = result.eudaimonia or {}
    for rule, before in (baseline.eudaimonia or {}).items():
        after = after_all[rule]
        if not _reaches(before, threshold):
            passed: bool | None = None
            note = f"not judged: the baseline's own {before:.3f} is below {threshold:.2f}"
        else:
            passed, note = _reaches(after, threshold), f"{before:.3f} -> {after:.3f}"
        checks.append(Check(name=f"rule/{rule}", value=after, threshold=threshold, passed=passed, note=note))
    return checks


def _abort_reason(checks: list[Check], baseline: SuiteResult, result: SuiteResult, config: GateConfig) -> str | None:
    reasons = []
    for check in checks:
        if check.passed is False and check.name.startswith("benchmark/"):
            task = check.name.removeprefix("benchmark/")
            reasons.append(f"{task} keeps {check.value:.1%} of the baseline, less than {check.threshold:.0%}")
        elif check.passed is False and check.name == "knowledge":
            reasons.append(f"MMLU and GSM8K together keep {check.value:.1%}, less than {check.threshold:.0%}")
        elif check.passed is False and check.name == "first_expert":
            reasons.append(f"the first expert keeps {check.value:.1%}, less than {check.threshold:.0%}")
    for rule, before in (baseline.eudaimonia or {}).items():
        after = (result.eudaimonia or {})[rule]
        if after < config.abort_rule <= before:
            reasons.append(f"the rule {rule} scores {after:.3f}, less than {config.abort_rule:.2f}")
    return "; ".join(reasons) or None
