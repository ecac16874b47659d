"""Every kind of event: one frozen dataclass each, the contract between a run and whoever looks on.

A field's name ends in its unit where it has one: `_bytes`, `_s` (seconds), `_mb` (10^6 bytes). Retentions, scores,
thresholds and shares are fractions (0.95, not 95); divergences and losses are in nats per token; `bits_per_byte` is of
UTF-8 text. A figure that was not measured, or is not finite, is None. `docs/design.md` lists the same fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

VERSION = 2
"""Of the log. 2: typed kinds and the line `log_start`; logs of version 1 had neither and are refused by name."""

Interval = tuple[float | None, float | None]
"""Lower and upper end; None where it is not bounded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """What an event says; each subclass is one kind."""

    kind: ClassVar[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class LogStart(Data):
    """The first line of every log."""

    kind: ClassVar[str] = "log_start"
    version: int = VERSION
    program: str = "phase8"


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the run is held to: its settings, for whoever draws a threshold. By stage where a mapping."""

    core: dict[str, float]
    """Least mean retention of the core benchmarks, relative to `reference`."""
    expert: dict[str, float]
    """Least mean retention of the experts, relative to `reference`."""
    rule: dict[str, float]
    """Least score of each eudaimonia rule."""
    cumulative_retention: float
    """Least mean core retention relative to the baseline, at every stage and at the end."""
    benchmark_retention: float
    """Below this of the baseline one core benchmark ends the descent."""
    final_expert: float
    final_rule: float
    edge_low: float
    edge_high: float
    """Edge of chaos: accuracy has to lie between the two."""
    min_informative: int
    """Fewer informative core benchmarks, and held-out text judges."""
    min_ratio: float
    """FP32 bytes / artifact's bytes, at least, for success; `target_ratio` is what is wished for."""
    target_ratio: float
    max_latency_ms: float
    """Per generated token."""
    max_retries: int
    policy: str
    """`point`, `confident` or `not_worse`."""
    reference: str
    """`stage_input` or `baseline`."""
    perplexity: dict[str, float] = field(default_factory=dict)
    """Largest rise in bits per byte over the baseline, as a fraction, where held-out text judges."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStart(Data):
    """A run begins, once per log."""

    kind: ClassVar[str] = "run_start"
    run_dir: str
    compressor: str
    model: str
    model_hash: str = ""
    """Of its weights and tokenizer."""
    parameters: int
    original_bytes: int
    """FP32 bytes of all parameters, tied ones once."""
    stages: tuple[str, ...]
    """The enabled ones, in order."""
    titles: dict[str, str] = field(default_factory=dict)
    """Names of the stages for people."""
    seed: int
    limits: Limits
    pid: int
    host: str
    """Of the process that writes this log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResumed(Data):
    """A further process goes on with a run that ended early; what the last one left half-finished begins anew."""

    kind: ClassVar[str] = "run_resumed"
    process: int
    """2 for the first resumption."""
    finished: tuple[str, ...]
    """Steps that are not done again, as `vptq 1 encode`: stage, attempt, step."""
    pid: int
    host: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StageStart(Data):
    """A stage's attempt begins; the stage `baseline` measures the input. After `run_resumed` it may come again."""

    kind: ClassVar[str] = "stage_start"
    attempt: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Activity(Data):
    """How far a step is; written at most every 0.1 s."""

    kind: ClassVar[str] = "activity"
    step: str
    """`load`, `pool`, `allocate`, `encode`, `optimise`, `write`, `evaluate`."""
    done: int
    total: int | None = None
    text: str = ""
    seconds_left: float | None = None
    """Of this step, at the rate so far; None until there is one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepComplete(Data):
    """A step has ended well, and what it made is on disk."""

    kind: ClassVar[str] = "step_complete"
    step: str
    seconds: float
    attempt: int = 1
    round: int = 1
    """Within a byte budget an attempt may encode and train several times."""
    peak_memory_mb: float | None = None
    """Largest resident memory of the process so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressionProgress(Data):
    """How large an attempt's artifact is, once it is on disk; for `baseline`, the input."""

    kind: ClassVar[str] = "compression_progress"
    attempt: int = 1
    compressed_bytes: int
    original_bytes: int
    ratio: float
    """original_bytes / compressed_bytes."""
    bits_per_weight: float
    groups: dict[str, int]
    """Bytes per sort of tensor, and `shared`, `header and manifest`, `whole file`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Allocated(Data):
    """Settings that each tensor got within a byte budget, encoded and not yet trained."""

    kind: ClassVar[str] = "allocation"
    attempt: int
    limit: str
    """The setting that limits, such as `vptq.target_ratio`."""
    budget_bytes: int
    size_bytes: int
    estimated_bytes: int
    estimated_divergence: float | None
    encodings: int
    tensors: dict[str, dict[str, Any]]
    """By name: the chosen settings, `bits_per_weight`, `relative_error`, `divergence`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingProgress(Data):
    """One point of a training's curves, some 50 of them per training, and more often for long ones."""

    kind: ClassVar[str] = "training_progress"
    attempt: int
    step: int
    steps: int
    """Of the whole training."""
    loss: float | None
    """Nats per token (in the weight phase: squared relative error of the weights)."""
    divergence: float | None = None
    """On held-out text; None where this point did not measure it."""
    estimated_bytes: int | None = None
    """Of the artifact, as training estimates it now; None where training leaves the rate alone."""
    budget_bytes: int | None = None
    seconds_left: float | None = None
    filter: str = "off"
    """The Grokfast variant in use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRestart(Data):
    """A training made held-out text worse and begins again without the gradient filter."""

    kind: ClassVar[str] = "training_restart"
    attempt: int
    filter: str
    """The variant that did harm."""
    held_out_before: float | None
    held_out_after: float | None
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingComplete(Data):
    """What a training brought."""

    kind: ClassVar[str] = "training_complete"
    attempt: int
    steps: int
    """Done; fewer than planned where the loss was no number any more."""
    loss: float | None
    """The last."""
    held_out_before: float | None
    held_out_after: float | None
    """Divergence from the original on text that no step saw, of the decoded weights."""
    kept: bool
    """False: the untrained weights stand, since training did not lower it."""
    diverged: bool
    filter: str
    """The Grokfast variant, or `off`."""
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A benchmark's items of one subject or rule."""

    score: float
    n: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkResult(Data):
    """One benchmark's score on one model; retentions are relative to the baseline, intervals 95 %."""

    kind: ClassVar[str] = "benchmark_result"
    task: str
    role: str
    """`core`, `expert` or `integration`."""
    stands_for: str = ""
    """The published benchmark after which it is modelled."""
    experts: tuple[str, ...] = ()
    """The experts that it judges."""
    attempt: int = 1
    score: float
    stderr: float | None
    n: int
    """Items."""
    chance: float
    """What a guess scores."""
    informative: bool
    """The baseline is above chance by two standard errors."""
    retention: float | None = None
    retention_interval: Interval | None = None
    retention_corrected: float | None = None
    """(score - chance) / (baseline - chance)."""
    retention_corrected_interval: Interval | None = None
    also: dict[str, float] = field(default_factory=dict)
    """Further metrics by lm-eval's names."""
    parts: dict[str, Part] = field(default_factory=dict)
    """By subject or rule, where the benchmark has several."""
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """One condition of a gate, or one success criterion, with the figure behind it."""

    name: str
    """`core_retention`, `core_retention_cumulative`, `expert_retention`, `benchmark/TASK`, `rule/RULE`,
    `edge_of_chaos`, `perplexity`, ..."""
    value: float | None
    threshold: float
    """The least value that passes; with `ceiling` the band that does."""
    passed: bool | None
    """None: listed, neither passed nor failed; `note` says why."""
    note: str = ""
    ceiling: float | None = None
    low: float | None = None
    high: float | None = None
    """90 % interval."""
    p: float | None = None
    """Chance of a figure as far beyond the threshold if the true one just reached it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QualityGate(Data):
    """The verdict on one attempt."""

    kind: ClassVar[str] = "quality_gate"
    attempt: int
    passed: bool
    abort: str | None
    """Why the descent ends here, or None."""
    checks: tuple[CheckResult, ...]
    wording: str
    """What the verdict is worth, in a sentence."""
    bits_per_byte: float | None
    baseline_bits_per_byte: float | None
    text: str = ""
    """Name of the held-out text that `bits_per_byte` is of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recommended(Data):
    """What would mend a failed gate."""

    kind: ClassVar[str] = "recommendation"
    attempt: int
    """The one that failed."""
    action: str
    adjustments: dict[str, Any]
    """Dotted names of settings with their new values; empty where nothing is left to change."""
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryStart(Data):
    """A stage is tried again with the recommendation."""

    kind: ClassVar[str] = "retry_start"
    attempt: int
    """The one that begins."""
    action: str
    adjustments: dict[str, Any]
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StageComplete(Data):
    """An attempt has ended; of `baseline`, the measurement."""

    kind: ClassVar[str] = "stage_complete"
    attempt: int = 1
    passed: bool
    seconds: float
    artifact: str | None
    """Directory."""
    final: bool = True
    """False: a retry follows."""
    bits_per_byte: float | None = None
    text: str = ""
    """Name of the held-out text."""
    peak_memory_mb: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Log(Data):
    """A sentence for people; nothing that a program needs stands here alone."""

    kind: ClassVar[str] = "log"
    level: str
    """`debug`, `info`, `warning` or `error`."""
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Paused(Data):
    """The run holds at a safe point, on somebody's wish."""

    kind: ClassVar[str] = "paused"
    step: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumed(Data):
    """A pause has ended."""

    kind: ClassVar[str] = "resumed"
    step: str
    paused_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Aborted(Data):
    """The run ends early; the last artifact that passed its gate stays the answer, `resume=` can go on later."""

    kind: ClassVar[str] = "aborted"
    by: str
    """`control` (the control file), `signal` (Ctrl-C, SIGTERM, SIGHUP) or `study` (a pruned trial)."""
    reason: str
    step: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed(Data):
    """An error ended the process: no `phase_complete` follows. `resume=` can go on once it is mended."""

    kind: ClassVar[str] = "failed"
    error: str
    """The error's class."""
    what: str
    where: str = ""
    fix: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseComplete(Data):
    """The run has ended; the fields are those of `result.json`."""

    kind: ClassVar[str] = "phase_complete"
    success: bool
    compression_level: str
    """`hypercompression`, `vptq`, `seedlm` or `phase7_fallback`."""
    variant: str
    seed: int
    artifact: str | None
    metrics: dict[str, Any]
    criteria: tuple[CheckResult, ...]
    techniques_applied: tuple[str, ...]
    production_ready: bool
    inference_latency_estimate_ms: float | None
    inference_latency_measured_ms: float | None
    recommended_hardware: str
    stages: dict[str, Any]
    model: dict[str, Any]
    interrupted: bool
    """Ended early: by a signal, by the control file or by a study."""
    stopped: str = ""
    """Why, where it ended early."""
    seconds: float
    """Of all processes that worked on it, pauses included."""
    peak_memory_mb: float


KINDS: dict[str, type[Data]] = {
    kind.kind: kind
    for kind in (
        LogStart, RunStart, RunResumed, StageStart, Activity, StepComplete, CompressionProgress, Allocated,
        TrainingProgress, TrainingRestart, TrainingComplete, BenchmarkResult, QualityGate, Recommended, RetryStart,
        StageComplete, Log, Paused, Resumed, Aborted, Failed,
        PhaseComplete,
    )
}  # fmt: skip
"""Every kind by its name in the log."""
