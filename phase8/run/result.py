"""`result.json`: what a run found, every figure with what it stands on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from phase8.artifact.read import Artifact
from phase8.benchmarks.evaluate import Score, SuiteResult
from phase8.codecs.stages import STAGES
from phase8.config import CompressionConfig, GateConfig, GrokfastVariant
from phase8.judge.gates import Verdict, judge_final
from phase8.judge.retention import Estimate, by_expert, by_role, retention
from phase8.model.latency import estimate_pi4_ms
from phase8.model.source import SourceModel
from phase8.run.retry import Recommendation

LEVELS = {stage.name: stage.level for stage in reversed(STAGES)}
FALLBACK = "phase7_fallback"
TECHNIQUES = {stage.name: stage.title for stage in STAGES}
PI4_MEMORY_MB = 1024
UNCOMPRESSED = "not judged: no stage passed, and this is the input itself"


@dataclass
class Attempt:
    """One try at a stage: the artifact, what it scored, and what the gate said."""

    stage: str
    number: int
    directory: Path
    artifact: Artifact
    result: SuiteResult
    verdict: Verdict
    left_alone: list[dict[str, Any]]
    seconds: float
    gradient_filter: str = GrokfastVariant.off.value
    """The Grokfast variant of the training whose result stands; `off` where none does."""
    recommendation: Recommendation | None = None


def retention_of(baseline: Score, score: Score) -> dict[str, Any]:
    """Raw and chance-corrected retention of one benchmark with 95 % intervals, as plain values."""
    found = retention(baseline, score)
    return {
        "retention": found.raw.value,
        "retention_interval": [found.raw.low, found.raw.high],
        "retention_corrected": found.corrected.value,
        "retention_corrected_interval": [found.corrected.low, found.corrected.high],
        "informative": found.informative,
    }


def text_name(config: CompressionConfig) -> str:
    """Which held-out text the bits per byte are of."""
    return config.benchmarks.perplexity_text or "the embedded world's text"


def averages(baseline: SuiteResult, result: SuiteResult) -> dict[str, Any]:
    """Mean core retention, raw and corrected, with intervals, over the informative core benchmarks."""
    core = by_role(baseline.scores, result.scores, "core")

    def bounds(estimate: Estimate) -> list[float | None]:
        return [estimate.low, estimate.high]

    return {
        "core_retention": core.raw.value,
        "core_retention_interval": bounds(core.raw),
        "core_retention_corrected": core.corrected.value,
        "core_retention_corrected_interval": bounds(core.corrected),
    }


def build_result(
    *,
    config: CompressionConfig,
    source: SourceModel,
    baseline: SuiteResult | None,
    attempts: Mapping[str, list[Attempt]],
    stopped: str,
    latency_ms: float | None,
    seconds: float,
    peak_memory_mb: float,
) -> dict[str, Any]:
    """Returns the content of `result.json`; floats that are not finite become null. `stopped` says why the run ended
    early, where it did.

    The final figures are those of the attempt that passed last; where none passed, the Phase 7 model itself is the
    answer: ratio 1, retention 1.
    """
    passed = [attempt for tries in attempts.values() for attempt in tries if attempt.verdict.passed]
    final = passed[-1] if passed else None
    final_result = final.result if final else baseline
    compressed_bytes = final.artifact.size_bytes if final else source.original_bytes
    ratio = source.original_bytes / compressed_bytes
    estimate_ms = estimate_pi4_ms(source.parameter_count)
    criteria = []
    if baseline is not None and final_result is not None:
        criteria = judge_final(
            baseline,
            final_result,
            original_bytes=source.original_bytes,
            compressed_bytes=compressed_bytes,
            latency_ms=estimate_ms,
            config=config.gates,
            max_accuracy_loss=config.max_accuracy_loss,
            min_ratio=config.min_compression_ratio,
            target_ratio=config.target_compression_ratio,
            experts=source.experts.experts,
            text=text_name(config),
        )
    if final is None:  # what the input keeps of itself is no finding
        criteria = [
            check if check.name in ("size", "latency_ms") else replace(check, passed=None, note=UNCOMPRESSED)
            for check in criteria
        ]
    success = final is not None and bool(criteria) and all(check.passed is True for check in criteria)
    metrics: dict[str, Any] = {
        "original_size_mb": source.original_bytes / 1e6,
        "compressed_size_mb": compressed_bytes / 1e6,
        "total_compression_ratio": ratio,
        "ratio_vs_16bit": ratio / 2,
        "bits_per_weight": 8 * compressed_bytes / source.parameter_count,
        "benchmarks": _benchmarks(baseline, final_result),
        "not_measured": list(baseline.missing) if baseline else [],
        "quality_gates": {
            stage: {
                "passed": tries[-1].verdict.passed,
                "retries": len(tries) - 1,
                "checks": [asdict(check) for check in tries[-1].verdict.checks],
            }
            for stage, tries in attempts.items()
        },
    }
    if baseline is not None and final_result is not None:
        experts = by_expert(baseline.scores, final_result.scores, source.experts.experts)
        metrics |= {
            **averages(baseline, final_result),
            "expert_retention": {expert: found.raw.value for expert, found in experts.items()},
            "expert_retention_corrected": {expert: found.corrected.value for expert, found in experts.items()},
            "edge_of_chaos": final_result.edge_of_chaos(config.gates.edge_low, config.gates.edge_high),
            "eudaimonia": final_result.eudaimonia,
            "bits_per_byte": {"baseline": baseline.bits_per_byte, "final": final_result.bits_per_byte},
            "held_out_text": text_name(config),
        }
    result = {
        "success": success,
        "compression_level": LEVELS[final.stage] if final else FALLBACK,
        "variant": config.variant,
        "seed": config.seed,
        "artifact": str(final.directory) if final else None,
        "metrics": metrics,
        "criteria": [asdict(check) for check in criteria],
        "techniques_applied": _techniques(final, config),
        "production_ready": success,
        "inference_latency_estimate_ms": estimate_ms,
        "inference_latency_measured_ms": latency_ms,
        "recommended_hardware": recommended_hardware(source.parameter_count),
        "stages": {stage: _stage(tries, baseline, config.gates) for stage, tries in attempts.items()},
        "model": {"name": source.name, "hash": source.content_hash, "parameters": source.parameter_count},
        "interrupted": bool(stopped),
        "stopped": stopped,
        "seconds": seconds,
        "peak_memory_mb": peak_memory_mb,
    }
    return finite(result)


def _benchmarks(baseline: SuiteResult | None, final: SuiteResult | None) -> dict[str, Any]:
    rows = {}
    for task, before in (baseline.scores if baseline else {}).items():
        after = final.scores[task] if final else before
        rows[task] = {
            "role": before.role,
            "baseline": before.value,
            "final": after.value,
            "chance": before.chance,
            "n": before.n,
            "stderr": before.stderr,
            "also": {"baseline": before.also, "final": after.also},
            **retention_of(before, after),
        }
    return rows


def _stage(tries: list[Attempt], baseline: SuiteResult | None, gates: GateConfig) -> dict[str, Any]:
    last = tries[-1]
    return {
        "passed": last.verdict.passed,
        "artifact": str(last.directory),
        "bytes": last.artifact.size_bytes,
        "ratio": last.artifact.ratio,
        "bits_per_weight": last.artifact.bits_per_weight,
        "attempts": [
            {
                "attempt": attempt.number,
                "passed": attempt.verdict.passed,
                "abort": attempt.verdict.abort,
                "artifact": str(attempt.directory),
                "bytes": attempt.artifact.size_bytes,
                "ratio": attempt.artifact.ratio,
                "bits_per_weight": attempt.artifact.bits_per_weight,
                **(averages(baseline, attempt.result) if baseline else {}),
                "checks": [asdict(check) for check in attempt.verdict.checks],
                "benchmarks": _benchmarks(baseline, attempt.result),
                "edge_of_chaos": attempt.result.edge_of_chaos(gates.edge_low, gates.edge_high),
                "eudaimonia": attempt.result.eudaimonia,
                "bits_per_byte": attempt.result.bits_per_byte,
                "left_alone": attempt.left_alone,
                "recommendation": asdict(attempt.recommendation) if attempt.recommendation else None,
                "gradient_filter": attempt.gradient_filter,
                "seconds": attempt.seconds,
            }
            for attempt in tries
        ],
    }


def _techniques(final: Attempt | None, config: CompressionConfig) -> list[str]:
    if final is None:
        return []
    techniques = [TECHNIQUES[final.stage], "entropy coding"]
    if config.grokfast.iterations:
        techniques.append("reconstruction training")
        if final.gradient_filter != GrokfastVariant.off.value:
            techniques.append(f"Grokfast ({final.gradient_filter})")
    return techniques


def recommended_hardware(parameters: int) -> str:
    """The smallest device class whose memory holds the weights as FP32 twice, which is what loading takes."""
    needed_mb = 8 * parameters / 1e6
    if needed_mb < PI4_MEMORY_MB / 2:
        return "Raspberry Pi 4 class (1 GB of RAM); estimated, not tried on one"
    return f"a machine with at least {math.ceil(needed_mb / 512) * 0.5:g} GB of free RAM"


def finite(value: Any) -> Any:
    """The same JSON value with NaN and infinities as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
