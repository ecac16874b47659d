"""Events -> what the list of runs says of a run, kept up one event at a time.

The page draws the ten parts from the events themselves; this is only what is needed of a run that nobody has opened:
its state, its stages, its sizes. Nothing is computed but the mean core retention of an attempt whose gate has not
spoken yet.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from phase8.watch.server.schema import ActivityNow, ErrorText, LogLine, RunSummary, StageState, StageSummary
from phase8.watch.server.tail import Record

BASELINE = "baseline"
LAST_LINES = 5


def number(value: Any) -> float | None:
    """`value` as a finite float, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def interval(value: Any) -> tuple[float | None, float | None] | None:
    """`[low, high]`, an end that is not bounded being None; None for anything else."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    return number(value[0]), number(value[1])


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def text(value: Any, limit: int = 500) -> str:
    """`value` as text of bounded length; "" for None."""
    return "" if value is None else str(value)[:limit]


@dataclass
class Attempt:
    """One try of a stage."""

    number: int
    started: float | None = None
    bytes: float | None = None
    ratio: float | None = None
    bits_per_weight: float | None = None
    results: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """`benchmark_result` by task."""
    gate: Mapping[str, Any] | None = None
    recommendation: Mapping[str, Any] | None = None
    complete: bool = False
    final: bool = True
    seconds: float | None = None
    artifact: str | None = None
    """Name of its directory below `artifacts`."""

    @property
    def passed(self) -> bool | None:
        return None if self.gate is None else self.gate.get("passed") is True

    def core_retention(self) -> float | None:
        """The gate's figure relative to the baseline, else the mean of the informative benchmarks, if all have one."""
        check = self._cumulative()
        if check:
            return number(check.get("value"))
        core = [r for r in self.results.values() if r.get("role") == "core" and r.get("informative") is not False]
        values = [number(result.get("retention")) for result in core]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known and len(known) == len(values) else None

    def threshold(self) -> float | None:
        """What the run's settings ask of `core_retention`; None where the gate did not judge it."""
        return number(self._cumulative().get("threshold"))

    def _cumulative(self) -> dict[str, Any]:
        checks = mapping(self.gate).get("checks")
        named = (mapping(check) for check in (checks if isinstance(checks, list) else []))
        return next((check for check in named if check.get("name") == "core_retention_cumulative"), {})


@dataclass
class Fold:
    """Everything that the summary needs of a run's events so far."""

    events: int = 0
    started: float | None = None
    updated: float | None = None
    model: str = ""
    compressor: str = ""
    original_bytes: float | None = None
    planned: list[str] = field(default_factory=list)
    titles: dict[str, str] = field(default_factory=dict)
    stages: dict[str, list[Attempt]] = field(default_factory=dict)
    current: str | None = None
    activity: ActivityNow | None = None
    log: deque[LogLine] = field(default_factory=lambda: deque(maxlen=LAST_LINES))
    paused: str | None = None
    """Why it holds; None while it does not."""
    aborted: str | None = None
    failed: ErrorText | None = None
    result: Mapping[str, Any] | None = None
    pid: int | None = None
    _process: tuple[float, float] = (0.0, 0.0)
    """Start of the process that writes now, and seconds that those before it took."""

    def feed(self, record: Record) -> None:
        """Takes in one event; a kind that is not known changes nothing but the time."""
        self.events = record["seq"] + 1
        moment, kind, stage, data = record["time"], record["kind"], record["stage"], record["data"]
        if self.started is None:
            self.started, self._process = moment, (moment, 0.0)
        if kind == "run_resumed":
            self._process = (moment, self._process[1] + (self.updated or moment) - self._process[0])
        self.updated = moment
        match kind:
            case "run_start":
                self._run_start(data)
            case "run_resumed":
                self.failed = self.aborted = self.paused = self.result = None
                self.pid = int(number(data.get("pid")) or 0) or None
            case "paused":
                self.paused = text(data.get("reason"))
            case "resumed":
                self.paused = None
            case "aborted":
                self.aborted, self.paused = text(data.get("reason")), None
            case "failed":
                self.failed = ErrorText(
                    what=text(data.get("what"), 4000), where=text(data.get("where")), fix=text(data.get("fix"), 2000)
                )
                self.current = self.activity = None
            case "log":
                level = text(data.get("level"), 16) or "info"
                line = LogLine(time=moment, level=level, stage=stage, text=text(data.get("text"), 2000))
                self.log.append(line)
            case "phase_complete":
                self.result, self.current, self.activity, self.paused = data, None, None, None
            case _ if stage is not None:
                self._stage_event(stage, kind, moment, data)

    def _run_start(self, data: Mapping[str, Any]) -> None:
        self.model, self.compressor = text(data.get("model")), text(data.get("compressor"))
        self.original_bytes = number(data.get("original_bytes"))
        stages = data.get("stages")
        self.planned = [text(name, 64) for name in stages] if isinstance(stages, list) else []
        self.titles = {text(k, 64): text(v, 64) for k, v in mapping(data.get("titles")).items()}
        self.pid = int(number(data.get("pid")) or 0) or None

    def _stage_event(self, stage: str, kind: str, moment: float, data: Mapping[str, Any]) -> None:
        attempts = self.stages.setdefault(stage, [])
        asked = number(data.get("attempt"))
        if kind in ("stage_start", "retry_start"):
            count = int(asked) if asked is not None else len(attempts) + 1
            if not attempts or attempts[-1].number != count:
                attempts.append(Attempt(number=count))
            elif kind == "stage_start" and attempts[-1].started is not None:  # begun anew after a resumption
                attempts[-1] = Attempt(number=count)
        if not attempts:
            attempts.append(Attempt(number=1))
        attempt = attempts[-1]
        match kind:
            case "stage_start":
                attempt.started = moment
                self.current, self.activity = stage, None
            case "activity":
                done, total = number(data.get("done")), number(data.get("total"))
                words = text(data.get("text"))
                step = text(data.get("step"), 64)
                self.activity = ActivityNow(stage=stage, step=step, done=done, total=total, text=words)
            case "compression_progress":
                attempt.bytes, attempt.ratio = number(data.get("compressed_bytes")), number(data.get("ratio"))
                attempt.bits_per_weight = number(data.get("bits_per_weight"))
            case "benchmark_result":
                attempt.results[text(data.get("task"), 200)] = data
            case "quality_gate":
                attempt.gate = data
            case "recommendation":
                attempt.recommendation = data
            case "stage_complete":
                attempt.complete, attempt.final = True, data.get("final") is not False
                attempt.seconds = number(data.get("seconds"))
                attempt.artifact = PurePath(str(data["artifact"])).name if data.get("artifact") else None
                self.current = self.activity = None

    # What it says

    @property
    def seconds(self) -> float | None:
        """Time at work so far: without the time between two processes of a run that was resumed."""
        told = number(mapping(self.result).get("seconds"))
        if told is not None or self.started is None or self.updated is None:
            return told
        return self._process[1] + self.updated - self._process[0]

    @property
    def running_since(self) -> float | None:
        """From here `seconds` goes on by the clock."""
        return None if self.started is None else self._process[0] - self._process[1]

    def kept(self, stage: str) -> Attempt | None:
        """The attempt of a stage that counts: the one that passed, else the last."""
        attempts = self.stages.get(stage) or [None]
        return next((a for a in reversed(attempts) if a is not None and a.passed), attempts[-1])

    def best(self) -> tuple[str, Attempt] | None:
        """The stage and attempt that passed last."""
        passed = [(s, a) for s, tries in self.stages.items() if s != BASELINE for a in tries if a.passed]
        return passed[-1] if passed else None

    def stage_state(self, stage: str, ended: bool) -> StageState:
        """Where a stage is; `ended`: nothing more will happen."""
        attempts = self.stages.get(stage)
        if not attempts:
            return "skipped" if ended else "pending"
        last = attempts[-1]
        if last.complete and (last.final or ended):
            return "passed" if stage == BASELINE or self.kept(stage).passed else "failed"  # type: ignore[union-attr]
        if ended:
            return "failed"
        return "retrying" if len(attempts) > 1 or last.complete else "running"

    def stage_summaries(self, ended: bool) -> list[StageSummary]:
        """Baseline first, then the planned stages, then any other."""
        names = dict.fromkeys([BASELINE, *self.planned, *self.stages])
        rows = []
        for name in names:
            attempt = self.kept(name)
            row = StageSummary(
                stage=name,
                title=self.titles.get(name, name),
                state=self.stage_state(name, ended),
                attempts=len(self.stages.get(name, [])),
            )
            if attempt is not None:
                row.bytes, row.ratio, row.bits_per_weight = attempt.bytes, attempt.ratio, attempt.bits_per_weight
                row.core_retention = attempt.core_retention() if name != BASELINE else None
                row.seconds, row.artifact = attempt.seconds, attempt.artifact
            rows.append(row)
        return rows

    def fill(self, summary: RunSummary, ended: bool) -> RunSummary:
        """`summary` with what the events say."""
        summary.model, summary.compressor = self.model, self.compressor
        summary.started, summary.updated, summary.seconds = self.started, self.updated, self.seconds
        summary.events, summary.current = self.events, None if ended else self.current
        summary.original_bytes = self.original_bytes
        if self.activity is not None and not ended and self.activity.total:
            summary.progress = min(1.0, max(0.0, (self.activity.done or 0.0) / self.activity.total))
        summary.stages = self.stage_summaries(ended)
        summary.error = self.failed
        summary.reason = self.aborted if self.aborted is not None else self.paused
        metrics, best = mapping(mapping(self.result).get("metrics")), self.best()
        if self.result is not None:
            summary.level = text(self.result.get("compression_level"), 64) or None
            summary.success = self.result.get("success") is True
            summary.reason = text(self.result.get("stopped")) or summary.reason
            summary.core_retention = number(metrics.get("core_retention"))
            summary.core_retention_interval = interval(metrics.get("core_retention_interval"))
            summary.ratio = number(metrics.get("total_compression_ratio"))
            size = number(metrics.get("compressed_size_mb"))
            summary.compressed_bytes = best[1].bytes if best else (None if size is None else size * 1e6)
        elif best is not None:
            summary.ratio, summary.compressed_bytes = best[1].ratio, best[1].bytes
            summary.core_retention = best[1].core_retention()
        return summary
