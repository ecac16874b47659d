"""The event log: what a run did, one JSON object a line, appended and flushed as it happens.

    kinds.py   every kind of event, a dataclass each: the contract
    log.py     writing, and telling the listeners
    read.py    reading, also while the log grows

Console, report, W&B and dashboard draw from these events and from nothing else.
"""

from phase8.events.kinds import (
    KINDS,
    VERSION,
    Aborted,
    Activity,
    Allocated,
    BenchmarkResult,
    CheckResult,
    CompressionProgress,
    Data,
    Failed,
    Interval,
    Limits,
    Log,
    LogStart,
    Part,
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
)
from phase8.events.log import EventLog, Listener, is_live
from phase8.events.read import EventReader, read_events
from phase8.events.record import Event, plain, schema

__all__ = [
    "KINDS", "VERSION", "Aborted", "Activity", "Allocated", "BenchmarkResult", "CheckResult", "CompressionProgress",
    "Data", "Event", "EventLog", "EventReader", "Failed", "Interval", "Limits", "Listener", "Log", "LogStart", "Part",
    "Paused", "PhaseComplete", "QualityGate", "Recommended", "Resumed", "RetryStart", "RunResumed", "RunStart",
    "StageComplete", "StageStart", "StepComplete", "TrainingComplete", "TrainingProgress", "TrainingRestart", "is_live",
    "plain", "read_events", "schema",
]  # fmt: skip
