"""What a run knows, put into the events' words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from phase8.benchmarks.evaluate import Score, SuiteResult
from phase8.config import CompressionConfig
from phase8.events import BenchmarkResult, CheckResult, Limits, Part, PhaseComplete, QualityGate
from phase8.judge.gates import Verdict
from phase8.judge.retention import is_informative
from phase8.run.result import retention_of


def limits_of(config: CompressionConfig) -> Limits:
    """What the settings hold a run to, for whoever draws a threshold."""
    gates = config.gates
    return Limits(
        core=asdict(gates.core),
        expert=asdict(gates.expert),
        rule=asdict(gates.rule),
        cumulative_retention=1.0 - config.max_accuracy_loss,
        benchmark_retention=gates.abort_benchmark,
        final_expert=gates.final_expert,
        final_rule=gates.final_rule,
        edge_low=gates.edge_low,
        edge_high=gates.edge_high,
        min_informative=gates.min_informative,
        min_ratio=config.min_compression_ratio,
        target_ratio=config.target_compression_ratio,
        max_latency_ms=gates.max_latency_ms,
        max_retries=config.max_retries,
        policy=gates.policy.value,
        reference=gates.reference.value,
        perplexity=asdict(gates.perplexity),
    )


def benchmark_result(score: Score, attempt: int, baseline: Score | None) -> BenchmarkResult:
    """A score, and what of the baseline's it keeps; `baseline` is None for the baseline itself."""
    kept = {"informative": is_informative(score)} if baseline is None else retention_of(baseline, score)
    return BenchmarkResult(
        task=score.task,
        role=score.role,
        stands_for=score.stands_for,
        experts=score.experts,
        attempt=attempt,
        score=score.value,
        stderr=score.stderr,
        n=score.n,
        chance=score.chance,
        also=score.also,
        parts=_parts(score),
        note=score.note,
        **kept,
    )


def _parts(score: Score) -> dict[str, Part]:
    """Mean and number of the items of each rule or subject; empty where the items have none."""
    rows: dict[str, list[float]] = {}
    for label, item in zip(score.labels, score.items, strict=False):
        rows.setdefault(label, []).append(item)
    return {label: Part(score=sum(items) / len(items), n=len(items)) for label, items in rows.items()}


def quality_gate(attempt: int, verdict: Verdict, result: SuiteResult, baseline: SuiteResult, text: str) -> QualityGate:
    """A verdict; `text` names the held-out text."""
    return QualityGate(
        attempt=attempt,
        passed=verdict.passed,
        abort=verdict.abort,
        checks=tuple(CheckResult(**asdict(check)) for check in verdict.checks),
        wording=verdict.wording,
        bits_per_byte=result.bits_per_byte,
        baseline_bits_per_byte=baseline.bits_per_byte,
        text=text,
    )


def phase_complete(result: Mapping[str, Any]) -> PhaseComplete:
    """The end of a run, from the content of `result.json`."""
    known = {field.name for field in fields(PhaseComplete)}
    values = {name: value for name, value in result.items() if name in known}
    values["criteria"] = tuple(CheckResult(**check) for check in result["criteria"])
    values["techniques_applied"] = tuple(result["techniques_applied"])
    return PhaseComplete(**values)
