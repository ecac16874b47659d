"""What to change before a failed stage is tried again.

The pattern of the failure decides. The average retention is the lowest of the failed averages (core, cumulative,
experts; where held-out text judges, the baseline's bits per byte / the stage's):

    below 0.90   the stage gets more bits or a larger codebook
    below 0.95   more calibration text, and as many more iterations, so that each sequence is seen as often
    0.95 or more (a near miss)   twice the iterations
    only single benchmarks       more calibration text (MMLU with GSM8K and the first expert count as such; they fail
                                 without an abort only where a policy asks for more than the measured figure)
    too few informative benchmarks, or a stage that is no smaller than its input   nothing: no change would pass
    edge of chaos or a rule      the tensor on which the answers to that test depend most, per weight, stays in 16 bits,
                                 and twice the iterations

Each test's answers are measured on probes, questions that grade nobody (`phase8.benchmarks.probes`). Where several
tests failed, a tensor's share of the sum over all tensors counts, added up over the tests: a test whose answers hang on
one tensor has more to say about it than one that depends on all alike, and one tensor is protected, whatever failed. A
test without probes is judged by the divergence on held-out text, and the reason says so.

A stage with a byte budget (`budget_bytes`, `target_ratio`) gets neither more bits nor a tensor in 16 bits: the budget
is a limit that the user set, and within it the allocation already favours the tensors that matter.

An adjustment is a new value for a named setting of the run. One that the settings' own checks refuse is never
recommended, so retries cannot leave their limits; where nothing is left to change, there are no adjustments.

Example: `vptq` keeps 0.93 and has to keep 0.95:
{"optimizer.calibration_sequences": 512, "grokfast.iterations": 200}.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from phase8.config import CompressionConfig
from phase8.errors import ConfigError
from phase8.judge.gates import Verdict

Adjustments = dict[str, Any]
"""Dotted name of a setting -> its new value, as plain JSON."""

RAISE_RATE_BELOW = 0.90
SEVERE_BELOW = 0.80
RAISE_CALIBRATION_BELOW = 0.95
_AVERAGES = ("core_retention", "core_retention_cumulative", "expert_retention", "perplexity")
_SINGLE = ("benchmark/", "knowledge", "first_expert")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recommendation:
    """What to do about a failed gate."""

    action: str
    """What kind of change: `raise_rate`, `raise_calibration`, `train_longer`, `protect`, several joined by `_and_`, or
    `fall_back` where no change would help."""
    adjustments: Adjustments
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Sensitivity:
    """How a failed integration test depends on each tensor."""

    per_weight: Mapping[str, float]
    """The divergence per weight that the tensor's compression causes on its own, by tensor."""
    on_probes: bool = True
    """Of the answers to the test's probes (`phase8.benchmarks.probes.choice_sensitivity`); without probes, of the
    model on held-out text (`phase8.train.divergence.tensor_sensitivity`)."""


def integration_failures(verdict: Verdict) -> list[str]:
    """The names of the failed checks that are integration tests."""
    return [check.name for check in verdict.failed() if check.name == "edge_of_chaos" or check.name.startswith("rule/")]


def recommend(
    stage: str, config: CompressionConfig, verdict: Verdict, sensitivity: Mapping[str, Sensitivity] | None = None
) -> Recommendation:
    """Draws the changes for the next attempt from the failed checks of this one.

    Args:
        stage: its name.
        config: the settings of the attempt that failed.
        verdict: its verdict.
        sensitivity: by the name of a failed integration test; needed to protect a tensor.
    """
    failed = verdict.failed()
    if any(check.name == "informative_core" for check in failed):
        reason = "informative_core: too few benchmarks tell anything of this model, so no other setting could pass"
        return Recommendation(action="fall_back", adjustments={}, reason=reason)
    if any(check.name == "smaller" for check in failed):
        reason = "smaller: the stage does not shrink what it began with, and no change here takes fewer bytes"
        return Recommendation(action="fall_back", adjustments={}, reason=reason)
    averages = {check.name: check.value for check in failed if check.name in _AVERAGES and check.value is not None}
    integration = integration_failures(verdict)
    actions, adjustments, reasons = [], {}, []

    def add(action: str, changes: Adjustments | None, reason: str) -> None:
        if changes:
            actions.append(action)
            adjustments.update(changes)
            reasons.append(reason)

    limited = config.limit_of(stage) is not None
    if integration:
        which = _names(integration)
        measured = {name: found for name, found in (sensitivity or {}).items() if name in integration}
        chosen = None if limited else _most_sensitive(config, measured)
        if chosen is not None:
            protected = {"protect": [*config.protect, chosen]}
            add("protect", protected, f"{which} failed: {_whose(measured)}, {chosen}, stays in 16 bits")
    if averages:
        name, lowest = min(averages.items(), key=lambda item: item[1])
        figure = f"{name.replace('_', ' ')} is {lowest:.3f}"
        if lowest < RAISE_RATE_BELOW:
            rates = [] if limited else _higher_rates(stage, config, severe=lowest < SEVERE_BELOW)
            changes = _first_accepted(config, rates)
            add("raise_rate", changes, f"{figure}, below {RAISE_RATE_BELOW:.2f}: more bits for {stage}")
        if lowest < RAISE_CALIBRATION_BELOW:
            changes = _first_accepted(config, [_more_calibration(stage, config), _longer(stage, config)])
            add("raise_calibration", changes, f"{figure}, below {RAISE_CALIBRATION_BELOW:.2f}: more calibration text")
        else:
            changes = _first_accepted(config, [_longer(stage, config)])
            add("train_longer", changes, f"{figure}, a near miss: longer training")
    elif single := [check.name.removeprefix("benchmark/") for check in failed if check.name.startswith(_SINGLE)]:
        changes = _first_accepted(config, [_more_calibration(stage, config), _longer(stage, config)])
        add("raise_calibration", changes, f"{', '.join(single)} failed, and no average did: more calibration text")
    elif integration:
        add("train_longer", _first_accepted(config, [_longer(stage, config)]), f"{which} failed: longer training")
    if not actions:
        names = ", ".join(check.name for check in failed) or "nothing"
        return Recommendation(action="fall_back", adjustments={}, reason=f"no setting left to change for: {names}")
    return Recommendation(action="_and_".join(actions), adjustments=adjustments, reason="; ".join(reasons))


def adjust(config: CompressionConfig, recommendation: Recommendation) -> CompressionConfig:
    """Returns the settings with the recommended changes.

    Raises:
        ConfigError: an adjustment names an unknown setting, or the settings' checks refuse its value.
    """
    return config.changed(recommendation.adjustments)


def _first_accepted(
    config: CompressionConfig, options: list[Adjustments] | Iterator[Adjustments]
) -> Adjustments | None:
    """The first option that the settings' checks accept."""
    for option in options:
        try:
            config.changed(option)
        except ConfigError:
            continue
        return option
    return None


def _higher_rates(stage: str, config: CompressionConfig, severe: bool) -> Iterator[Adjustments]:
    """Ways to spend more bits per weight, the gentlest first; a severe loss starts with a larger step."""
    for values in config.stage(stage).richer(severe):
        yield {f"{stage}.{name}": value for name, value in values.items()}


def _more_calibration(stage: str, config: CompressionConfig) -> Adjustments:
    if config.stage(stage).trained:
        return {"training.sequences": 2 * config.training.sequences} | _longer(stage, config)
    return {"optimizer.calibration_sequences": 2 * config.optimizer.calibration_sequences} | _longer(stage, config)


def _longer(stage: str, config: CompressionConfig) -> Adjustments:
    if config.stage(stage).trained:
        return {"training.retry_share": config.training.retry_share}  # unchanged: a retry goes on, and so is longer
    return {"grokfast.iterations": max(100, 2 * config.grokfast.iterations)}


def _names(checks: Iterable[str]) -> str:
    return ", ".join(name.removeprefix("rule/").replace("_", " ") for name in checks)


def _most_sensitive(config: CompressionConfig, measured: Mapping[str, Sensitivity]) -> str | None:
    """The tensor with the largest sum of its shares of the tests' sensitivities; see the module's text."""
    sums: dict[str, float] = {}
    for found in measured.values():
        left = {name: value for name, value in found.per_weight.items() if name not in config.protect and value > 0.0}
        total = sum(left.values())
        for name, value in left.items():
            sums[name] = sums.get(name, 0.0) + value / total
    return max(sums, key=sums.__getitem__, default=None)


def _whose(measured: Mapping[str, Sensitivity]) -> str:
    """What the chosen tensor is to the failed tests."""
    bare = [name for name, found in measured.items() if not found.on_probes]
    if len(bare) == len(measured):
        return "the tensor on which the model's text depends most per weight (there are no probes)"
    whose = "its" if len(measured) == 1 else "their"
    text = f"the tensor on which {whose} probe answers depend most per weight"
    return text + (f" (for {_names(bare)}, which has no probes: the model's text)" if bare else "")
