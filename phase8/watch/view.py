"""The state of a run as its events tell it: what console, report and W&B have in common.

A view is fed events one by one and holds, per stage and attempt, the latest figures. It computes no figure of its own
but one, the mean core retention of an attempt, and that only where its gate does not give it. Every number that it
hands out is a finite float or None.

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

from phase8.events import Event, Kind

BASELINE = "baseline"
RULES = ("autonomy", "honesty", "harm", "dignity")
"""The four rules of the eudaimonia benchmark."""


def number(value: Any) -> float | None:
    """`value` as a finite float, else None (a log may come from a killed run or another version)."""
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


@dataclass
class Result:
    """One benchmark at one stage: scores and retentions are fractions, intervals 95 %."""

    task: str
    role: str
    score: float | None
    stderr: float | None
    n: float | None
    chance: float | None
    retention: float | None
    retention_interval: tuple[float, float] | None
    retention_corrected: float | None
    retention_corrected_interval: tuple[float, float] | None
    informative: bool
    also: dict[str, float] = field(default_factory=dict)
    """Further metrics, by lm-eval's names."""

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Result:
        figures = {
            name: number(data.get(name))
            for name in ("score", "stderr", "n", "chance", "retention", "retention_corrected")
        }
        return cls(
            task=str(data.get("task", "?")),
            role=str(data.get("role", "")),
            retention_interval=interval(data.get("retention_interval")),
            retention_corrected_interval=interval(data.get("retention_corrected_interval")),
            informative=data.get("informative") is not False,
            also={name: value for name, raw in mapping(data.get("also")).items() if (value := number(raw)) is not None},
            **figures,
        )


@dataclass
class Attempt:
    """One try of a stage; all that is None was not (yet) measured."""

    order: int
    """1 for the first."""
    number: Any = None
    """What the events call it; None until one does."""
    started: float | None = None
    steps: dict[str, float] = field(default_factory=dict)
    """Seconds per finished step."""
    compressed_bytes: float | None = None
    ratio: float | None = None
    bits_per_weight: float | None = None
    groups: dict[str, float] = field(default_factory=dict)
    """Bytes per tensor group."""
    losses: list[tuple[float, float]] = field(default_factory=list)
    """(iteration, loss)."""
    held_out_before: float | None = None
    held_out_after: float | None = None
    results: dict[str, Result] = field(default_factory=dict)
    gate: Mapping[str, Any] | None = None
    recommendation: Mapping[str, Any] | None = None
    adjustments: Mapping[str, Any] = field(default_factory=dict)
    """What a retry changed."""
    complete: bool = False
    seconds: float | None = None
    artifact: str | None = None

    @property
    def checks(self) -> list[Mapping[str, Any]]:
        """The gate's checks."""
        checks = mapping(self.gate).get("checks")
        return [check for check in checks if isinstance(check, Mapping)] if isinstance(checks, list) else []

    @property
    def passed(self) -> bool | None:
        """The gate's verdict; None where it was not asked."""
        return None if self.gate is None else self.gate.get("passed") is True

    def core_retention(self, corrected: bool = False) -> float | None:
        """Relative to the baseline: the gate's figure where it gives one, else the mean of the informative ones."""
        for check in self.checks:
            if check.get("name") == "core_retention_cumulative" and not corrected:
                return number(check.get("value"))
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
        """The attempt that counts: the latest."""
        return self.attempts[-1] if self.attempts else None

    @property
    def kept(self) -> Attempt | None:
        """The attempt that passed its gate, if any."""
        return next((attempt for attempt in reversed(self.attempts) if attempt.passed), None)


@dataclass
class RunView:
    """Everything that is known of a run so far."""

    run_dir: str = ""
    compressor: str = ""
    model: str = ""
    parameters: float | None = None
    original_bytes: float | None = None
    planned: list[str] = field(default_factory=list)
    stages: dict[str, Stage] = field(default_factory=dict)
    """In the order they began, `baseline` among them."""
    current: str | None = None
    first_time: float | None = None
    last_time: float | None = None
    result: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, events: Iterable[Event]) -> RunView:
        """The view after all of `events`."""
        view = cls()
        for event in events:
            view.feed(event)
        return view

    @property
    def baseline(self) -> dict[str, Result]:
        """The original model's results by task."""
        stage = self.stages.get(BASELINE)
        return stage.last.results if stage and stage.last else {}

    @property
    def compressing(self) -> list[Stage]:
        """The stages that began, without the baseline."""
        return [stage for stage in self.stages.values() if stage.name != BASELINE]

    def feed(self, event: Event) -> None:
        """Takes in one event; a kind that is not known changes nothing but the time."""
        self.first_time = event.time if self.first_time is None else self.first_time
        self.last_time = event.time
        if event.kind == Kind.RUN_START:
            self._run_start(event.data)
        elif event.kind == Kind.PHASE_COMPLETE:
            self.result = event.data
            self.current = None
        elif event.stage is not None:
            stage = self.stages.setdefault(event.stage, Stage(event.stage))
            self._stage_event(stage, event)

    def _run_start(self, data: Mapping[str, Any]) -> None:
        self.run_dir, self.compressor, self.model = (
            str(data.get(name, "")) for name in ("run_dir", "compressor", "model")
        )
        self.parameters, self.original_bytes = number(data.get("parameters")), number(data.get("original_bytes"))
        stages = data.get("stages")
        self.planned = [str(name) for name in stages] if isinstance(stages, list) else []

    def _stage_event(self, stage: Stage, event: Event) -> None:
        data = event.data
        begins = event.kind in (Kind.STAGE_START, Kind.RETRY_START)
        # A retry is announced by `retry_start` and begun by `stage_start`: the same number, one attempt.
        if not stage.attempts or (begins and stage.attempts[-1].number not in (None, data.get("attempt"))):
            stage.attempts.append(Attempt(order=len(stage.attempts) + 1))
        attempt = stage.attempts[-1]
        if begins:
            attempt.number = data.get("attempt", attempt.order)
        match event.kind:
            case Kind.STAGE_START:
                attempt.started = event.time
                self.current, stage.step = stage.name, None
            case Kind.RETRY_START:
                attempt.adjustments = mapping(data.get("adjustments"))
            case Kind.ACTIVITY:
                stage.step = str(data.get("step", ""))
            case Kind.STEP_COMPLETE:
                seconds = number(data.get("seconds"))
                if seconds is not None:
                    step = str(data.get("step", ""))
                    attempt.steps[step] = attempt.steps.get(step, 0.0) + seconds
            case Kind.COMPRESSION_PROGRESS:
                attempt.compressed_bytes = number(data.get("compressed_bytes"))
                attempt.ratio = number(data.get("ratio"))
                attempt.bits_per_weight = number(data.get("bits_per_weight"))
                sizes = {str(name): number(size) for name, size in mapping(data.get("groups")).items()}
                attempt.groups = {name: size for name, size in sizes.items() if size is not None}
            case Kind.OPTIMISATION:
                iteration, loss = number(data.get("iteration")), number(data.get("loss"))
                if iteration is not None and loss is not None:
                    attempt.losses.append((iteration, loss))
                before, after = number(data.get("held_out_before")), number(data.get("held_out_after"))
                attempt.held_out_before = attempt.held_out_before if before is None else before
                attempt.held_out_after = attempt.held_out_after if after is None else after
            case Kind.BENCHMARK_RESULT:
                result = Result.from_data(data)
                attempt.results[result.task] = result
            case Kind.QUALITY_GATE:
                attempt.gate = data
            case Kind.RECOMMENDATION:
                attempt.recommendation = data
            case Kind.STAGE_COMPLETE:
                attempt.complete = True
                attempt.seconds = number(data.get("seconds"))
                attempt.artifact = str(data["artifact"]) if data.get("artifact") else None
                self.current = None
