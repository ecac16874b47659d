"""The state of a run as its events tell it: what console, report and W&B have in common.

A view is fed events one by one and holds, per stage and attempt, the latest figures. It computes no figure of its own
but one, the mean core retention of an attempt, and that only where its gate does not give it. What a killed process
left half-finished is forgotten where a further process begins it anew.

    view = RunView()
    for event in read_events(path):
        view.feed(event)
    view.stages["vptq"].attempts[-1].ratio
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from phase8.events import (
    Activity,
    Allocated,
    BenchmarkResult,
    CheckResult,
    CompressionProgress,
    Event,
    Limits,
    LogStart,
    Paused,
    PhaseComplete,
    QualityGate,
    Recommended,
    Resumed,
    RetryStart,
    RunResumed,
    RunStart,
    StageComplete,
    StageStart,
    StepComplete,
    TrainingComplete,
    TrainingProgress,
    TrainingRestart,
    plain,
)

BASELINE = "baseline"
RULES = ("autonomy", "honesty", "harm", "dignity")
"""The four rules of the eudaimonia benchmark."""


def number(value: Any) -> float | None:
    """`value` as a finite float, else None (a `result.json` may come from anywhere)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def interval(value: Any) -> tuple[float, float] | None:
    """`[lo, hi]` as two finite floats, else None."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None else (low, high)


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


Curve = list[tuple[int, float]]
"""(step, loss) of one training."""


@dataclass
class Attempt:
    """One try of a stage; all that is None was not (yet) measured."""

    order: int
    """1 for the first."""
    started: float | None = None
    steps: dict[str, float] = field(default_factory=dict)
    """Seconds per finished step."""
    compressed_bytes: int | None = None
    ratio: float | None = None
    bits_per_weight: float | None = None
    groups: dict[str, int] = field(default_factory=dict)
    """Bytes per sort of tensor."""
    trainings: list[Curve] = field(default_factory=list)
    """The last is the one that counts; those before were begun anew without the filter, or with fewer bytes."""
    restart: TrainingRestart | None = None
    allocation: Allocated | None = None
    training: TrainingComplete | None = None
    results: dict[str, BenchmarkResult] = field(default_factory=dict)
    gate: QualityGate | None = None
    recommendation: Recommended | None = None
    retry: RetryStart | None = None
    """What made this attempt out of the one before; None for the first."""
    complete: StageComplete | None = None

    @property
    def checks(self) -> tuple[CheckResult, ...]:
        """The gate's checks."""
        return () if self.gate is None else self.gate.checks

    @property
    def passed(self) -> bool | None:
        """The gate's verdict; None where it was not asked."""
        return None if self.gate is None else self.gate.passed

    @property
    def held_out(self) -> tuple[float, float] | None:
        """The divergence on held-out text before and after training, nats per token."""
        trained = self.training
        if trained is None or trained.held_out_before is None or trained.held_out_after is None:
            return None
        return trained.held_out_before, trained.held_out_after

    def core_retention(self, corrected: bool = False) -> float | None:
        """Relative to the baseline: the gate's figure where it gives one, else the mean of the informative ones."""
        for check in self.checks:
            if check.name == "core_retention_cumulative" and not corrected:
                return check.value
        core = [result for result in self.results.values() if result.role == "core" and result.informative]
        values = [result.retention_corrected if corrected else result.retention for result in core]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known and len(known) == len(values) else None


@dataclass
class Stage:
    """One stage with its attempts, in order."""

    name: str
    attempts: list[Attempt] = field(default_factory=list)
    step: str | None = None
    """The step that an `activity` named last."""

    @property
    def last(self) -> Attempt | None:
        """The latest attempt, finished or not."""
        return self.attempts[-1] if self.attempts else None

    @property
    def kept(self) -> Attempt | None:
        """The attempt that passed its gate, if any."""
        return next((attempt for attempt in reversed(self.attempts) if attempt.passed), None)

    @property
    def shown(self) -> Attempt | None:
        """The attempt that stands for the stage: the one that passed, else the last that was judged, else the last."""
        judged = next((attempt for attempt in reversed(self.attempts) if attempt.gate is not None), None)
        return self.kept or judged or self.last


@dataclass
class RunView:
    """Everything that is known of a run so far."""

    run_dir: str = ""
    compressor: str = ""
    model: str = ""
    parameters: int | None = None
    original_bytes: int | None = None
    planned: tuple[str, ...] = ()
    limits: Limits | None = None
    """What the run is held to; None before it began."""
    stages: dict[str, Stage] = field(default_factory=dict)
    """In the order they began, `baseline` among them."""
    current: str | None = None
    paused: Paused | None = None
    first_time: float | None = None
    last_time: float | None = None
    result: Mapping[str, Any] | None = None
    """The content of `result.json`."""

    @classmethod
    def of(cls, events: Iterable[Event]) -> RunView:
        """The view after all of `events`."""
        view = cls()
        for event in events:
            view.feed(event)
        return view

    @property
    def baseline(self) -> dict[str, BenchmarkResult]:
        """The original model's results by task."""
        stage = self.stages.get(BASELINE)
        return stage.last.results if stage and stage.last else {}

    @property
    def compressing(self) -> list[Stage]:
        """The stages that began, without the baseline."""
        return [stage for stage in self.stages.values() if stage.name != BASELINE]

    def feed(self, event: Event) -> None:
        """Takes in one event."""
        self.first_time = event.time if self.first_time is None else self.first_time
        self.last_time = event.time
        match event.data:
            case RunStart() as data:
                self.run_dir, self.compressor, self.model = data.run_dir, data.compressor, data.model
                self.parameters, self.original_bytes = data.parameters, data.original_bytes
                self.planned, self.limits = data.stages, data.limits
            case RunResumed():
                self.result = self.paused = None
            case Paused() as data:
                self.paused = data
            case Resumed():
                self.paused = None
            case PhaseComplete() as data:
                self.result, self.current, self.paused = plain(data), None, None
            case LogStart():
                pass
            case data if event.stage is not None:
                stage = self.stages.setdefault(event.stage, Stage(event.stage))
                self._stage_event(stage, event.time, data)

    def _stage_event(self, stage: Stage, time: float, data: Any) -> None:
        # A retry is announced by `retry_start` and begun by `stage_start`, which a resumed run tells once more.
        begins = data.attempt if isinstance(data, StageStart | RetryStart) else 1
        while len(stage.attempts) < begins:
            stage.attempts.append(Attempt(order=len(stage.attempts) + 1))
        attempt = stage.attempts[-1]
        match data:
            case StageStart():
                attempt.started = time
                self.current, stage.step = stage.name, None
            case RetryStart():
                attempt.retry = data
            case Activity():
                stage.step = data.step
            case StepComplete():
                attempt.steps[data.step] = attempt.steps.get(data.step, 0.0) + data.seconds
            case CompressionProgress():
                attempt.compressed_bytes, attempt.ratio = data.compressed_bytes, data.ratio
                attempt.bits_per_weight, attempt.groups = data.bits_per_weight, data.groups
            case TrainingProgress():
                self._training(attempt, data.step, data.loss)
            case TrainingRestart():
                attempt.restart = data
                attempt.trainings.append([])
            case Allocated():
                attempt.allocation = data
                attempt.trainings.append([])
            case TrainingComplete():
                attempt.training = data
                self._training(attempt, data.steps, data.loss)
            case BenchmarkResult():
                attempt.results[data.task] = data
            case QualityGate():
                attempt.gate = data
            case Recommended():
                attempt.recommendation = data
            case StageComplete():
                attempt.complete = data
                self.current = None

    @staticmethod
    def _training(attempt: Attempt, step: int, loss: float | None) -> None:
        if not attempt.trainings:
            attempt.trainings.append([])
        curve = attempt.trainings[-1]
        while curve and curve[-1][0] >= step:  # a resumed run begins anew at an earlier step
            curve.pop()
        if loss is not None:
            curve.append((step, loss))
