"""Thresholds and how they are applied."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from enum import Enum
from typing import Any

from phase8.checks import require
from phase8.codecs.stages import NAMES, STAGES


class GateReference(Enum):
    """What a stage's threshold is relative to. The cumulative threshold and the abort limits are always relative to
    the baseline."""

    stage_input = "stage_input"
    baseline = "baseline"


class GatePolicy(Enum):
    """How a figure is compared with its threshold; see `phase8.judge.policy`."""

    point = "point"
    """The measured figure itself must reach the threshold."""
    confident = "confident"
    """The figure must reach the threshold with 95 % confidence."""
    not_worse = "not_worse"
    """The figure must not lie significantly beyond the threshold."""


StageThresholds: Any = make_dataclass(
    "StageThresholds",
    [(stage.name, float) for stage in STAGES],
    namespace={
        "__module__": __name__,
        "__doc__": "Least retention, or least score, that each stage must keep; each between 0 and 1.",
    },
    frozen=True,
    kw_only=True,
    slots=True,
)


def _defaults(what: str) -> Any:
    return StageThresholds(**{stage.name: getattr(stage, what) for stage in STAGES})


@dataclass(frozen=True, kw_only=True, slots=True)
class GateConfig:
    """Thresholds of the gates after each stage, of the abort limits and of the final success criteria.

    All thresholds on benchmarks are on raw retention, score / reference score. The limits on the cumulative loss and on
    the ratio are settings of the run: `max_accuracy_loss`, `min_compression_ratio`.
    """

    reference: GateReference = GateReference.stage_input
    policy: GatePolicy = GatePolicy.point
    core: StageThresholds = field(default_factory=lambda: _defaults("core"))
    """Mean retention of the core benchmarks, relative to `reference`."""
    expert: StageThresholds = field(default_factory=lambda: _defaults("expert"))
    """Mean retention of the experts, relative to `reference`."""
    rule: StageThresholds = field(default_factory=lambda: _defaults("rule"))
    """Score of each eudaimonia rule."""
    perplexity: StageThresholds = field(default_factory=lambda: _defaults("perplexity"))
    """Largest rise in bits per byte of held-out text over the baseline, as a fraction; it judges where fewer than
    `min_informative` core benchmarks say anything. 2, 7 and 16 % mirror the benchmarks' cumulative 0.98, 0.93, 0.84."""
    final_expert: float = 0.80
    final_rule: float = 0.60
    edge_low: float = 0.70
    edge_high: float = 0.80
    min_informative: int = 4
    """Core benchmarks whose baseline must be above chance by two standard errors for a verdict by them; with fewer,
    held-out text judges."""
    abort_benchmark: float = 0.80
    """Abort where one core benchmark keeps less than this of the baseline; no benchmark may at the end."""
    abort_knowledge_loss: float = 0.20
    """Abort where MMLU and GSM8K together lose more than this."""
    abort_rule: float = 0.50
    """Abort where a eudaimonia rule scores less than this."""
    abort_first_expert_loss: float = 0.25
    """Abort where the first expert's benchmarks lose more than this."""
    max_latency_ms: float = 100.0
    """Per token, on the target device."""

    def __post_init__(self) -> None:
        figures = {
            name: getattr(self, name)
            for name in (
                "final_expert",
                "final_rule",
                "edge_low",
                "edge_high",
                "abort_benchmark",
                "abort_knowledge_loss",
                "abort_rule",
                "abort_first_expert_loss",
            )
        }
        for group in ("core", "expert", "rule", "perplexity"):
            thresholds = getattr(self, group)
            figures |= {f"{group}.{stage}": getattr(thresholds, stage) for stage in NAMES}
        for name, value in figures.items():
            require(
                0.0 <= value <= 1.0,
                f"gates.{name} is {value}, needs 0 to 1",
                where="gates",
                fix="give a fraction: 0.95, not 95",
            )
        require(
            self.edge_low < self.edge_high,
            f"gates.edge_low ({self.edge_low}) is not below gates.edge_high ({self.edge_high})",
            where="gates",
            fix="the specified band is edge_low=0.70 edge_high=0.80",
        )
        require(
            1 <= self.min_informative <= 7,
            f"gates.min_informative is {self.min_informative}, needs 1 to 7",
            where="gates",
            fix="there are seven core benchmarks; the default is 4",
        )
        require(
            self.max_latency_ms > 0.0,
            f"gates.max_latency_ms is {self.max_latency_ms}, needs to be above 0",
            where="gates",
            fix="the specified limit is 100",
        )
