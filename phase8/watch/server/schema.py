"""What the REST calls take and return. `types.py` writes the same as TypeScript for the page.

Retentions and scores are fractions, sizes bytes, times unix seconds, durations seconds. None: not measured (yet).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Interval = tuple[float | None, float | None]
RunState = Literal[
    "starting", "running", "pausing", "paused", "aborting", "complete", "aborted", "interrupted", "failed", "lost"
]
StageState = Literal["pending", "running", "retrying", "passed", "failed", "skipped"]
Value = bool | int | float | str | None
RUN_ID = r"^([0-9a-f]{16}|replay-[0-9a-f]{12})$"
ARTIFACT_NAME = r"^[a-z0-9_]{1,64}$"
STAGE_NAME = r"^[a-z0-9_]{1,32}$"


class ErrorText(BaseModel):
    """What is wrong, where, and how to mend it."""

    what: str
    where: str = ""
    fix: str = ""


class ErrorBody(BaseModel):
    """The body of every answer with a status of 400 or more."""

    error: ErrorText


class Health(BaseModel):
    ok: bool
    version: str
    token_required: bool


class StageSummary(BaseModel):
    """The attempt of a stage that counts: the one that passed, else the last."""

    stage: str
    title: str
    state: StageState
    attempts: int
    bytes: float | None = None
    ratio: float | None = None
    bits_per_weight: float | None = None
    core_retention: float | None = None
    seconds: float | None = None
    artifact: str | None = None
    """Its name for the artifact calls."""


class RunSummary(BaseModel):
    """A run in a line of the list."""

    run: str
    name: str
    study: str | None = None
    """The multirun that it belongs to."""
    source: Literal["command line", "dashboard", "replay"]
    state: RunState
    model: str = ""
    compressor: str = ""
    started: float | None = None
    updated: float | None = None
    seconds: float | None = None
    events: int = 0
    current: str | None = None
    """The stage in hand."""
    progress: float | None = None
    """Of the step in hand, 0 to 1."""
    original_bytes: float | None = None
    compressed_bytes: float | None = None
    """Of the answer: the last artifact that passed."""
    ratio: float | None = None
    core_retention: float | None = None
    core_retention_interval: Interval | None = None
    level: str | None = None
    success: bool | None = None
    stages: list[StageSummary] = Field(default_factory=list)
    steerable: bool = False
    """Pause, resume and abort may be asked for."""
    error: ErrorText | None = None
    reason: str | None = None
    """Why it is paused or was aborted."""
    wandb_url: str | None = None
    replay_of: str | None = None
    speed: float | None = None


class RunEvent(BaseModel):
    """One line of a run's log; `types.py` gives `data` the type of its kind."""

    seq: int
    time: float
    kind: str
    stage: str | None
    data: dict[str, Any]


class Events(BaseModel):
    run: str
    events: list[RunEvent]
    next: int
    """`after` of the call that goes on from here."""


class RunList(BaseModel):
    runs: list[RunSummary]
    total: int


class ActivityNow(BaseModel):
    stage: str | None
    step: str
    done: float | None
    total: float | None
    text: str


class LogLine(BaseModel):
    time: float
    level: str
    stage: str | None
    text: str


class Status(BaseModel):
    summary: RunSummary
    activity: ActivityNow | None
    elapsed: float | None
    log: list[LogLine]
    next: int


class SettingsOf(BaseModel):
    """A run's settings by dotted name; what looks like a secret is left out."""

    settings: dict[str, Any]


class Measured(BaseModel):
    score: float | None
    stderr: float | None
    also: dict[str, float]


class StageMeasured(Measured):
    attempt: int
    n: float | None
    retention: float | None
    retention_interval: Interval | None
    retention_corrected: float | None
    retention_corrected_interval: Interval | None


class BenchmarkRow(BaseModel):
    task: str
    role: str
    n: float | None
    chance: float | None
    informative: bool
    baseline: Measured | None
    stages: dict[str, StageMeasured]


class Benchmarks(BaseModel):
    stages: list[str]
    benchmarks: list[BenchmarkRow]


class RecommendationOf(BaseModel):
    attempt: int
    action: str
    adjustments: dict[str, Any]
    reason: str


class Recommendations(BaseModel):
    stage: str
    recommendations: list[RecommendationOf]


class Setting(BaseModel):
    """A setting that `start` accepts."""

    name: str
    type: Literal["bool", "int", "float", "text", "choice"]
    default: Value
    choices: list[str] | None = None
    low: float | None = None
    high: float | None = None
    nullable: bool = False
    help: str = ""
    group: str


class Startable(BaseModel):
    available: bool
    """Whether runs can be started: the directory that the server works in holds run.py."""
    variants: list[str]
    models: list[str]
    experiments: list[str]
    settings: list[Setting]


class Start(BaseModel):
    model_config = ConfigDict(extra="forbid")

    variant: str = Field("default", max_length=64)
    model: str = Field("embedded:reference", max_length=256)
    experiment: str | None = Field(None, max_length=64)
    settings: dict[str, Value] = Field(default_factory=dict, max_length=200)


class Nothing(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Abort(BaseModel):
    model_config = ConfigDict(extra="forbid")

    reason: str = Field(min_length=1, max_length=500)


class Started(BaseModel):
    job: str
    summary: RunSummary


class StartReplay(BaseModel):
    model_config = ConfigDict(extra="forbid")

    speed: float = Field(10.0, ge=0.25, le=1000.0)
    longest_gap_s: float = Field(2.0, ge=0.0, le=3600.0)
    """Gaps between events are shortened to this, before the speed divides them."""


class ChangeReplay(BaseModel):
    model_config = ConfigDict(extra="forbid")

    speed: float | None = Field(None, ge=0.25, le=1000.0)
    position: float | None = Field(None, ge=0.0, le=1.0)
    """Share of the events that are told."""


class FrontierPoint(BaseModel):
    run: str
    stage: str
    attempt: int
    ratio: float
    bits_per_weight: float | None
    bytes: float | None
    core_retention: float
    core_retention_interval: Interval | None
    threshold: float | None
    """The least core retention that the run's settings allow."""
    passed: bool
    on_frontier: bool
    """No other point has both a higher ratio and a higher retention."""


class Compared(BaseModel):
    stage: str
    score: float | None
    stderr: float | None
    n: float | None
    retention: float | None
    retention_interval: Interval | None


class ComparedTask(BaseModel):
    task: str
    role: str
    values: dict[str, Compared | None]


class Difference(BaseModel):
    """Of the retentions of two runs on one benchmark: b - a, with its 95 % interval."""

    task: str
    a: str
    b: str
    difference: float
    interval: Interval | None
    paired: bool
    """Item by item. False: the items of the two runs are not the same or not on disk."""


class DifferentSetting(BaseModel):
    name: str
    values: dict[str, Any]


class Comparison(BaseModel):
    runs: list[RunSummary]
    frontier: list[FrontierPoint]
    benchmarks: list[ComparedTask]
    differences: list[Difference]
    settings: list[DifferentSetting]


class ArtifactLine(BaseModel):
    name: str
    stage: str
    attempt: int
    passed: bool | None
    bytes: float | None
    ratio: float | None
    bits_per_weight: float | None


class Artifacts(BaseModel):
    artifacts: list[ArtifactLine]


class Node(BaseModel):
    """A part of the artifact; the children's bytes add up to the parent's."""

    name: str
    bytes: int
    children: list[Node] = Field(default_factory=list)


class BesideFile(BaseModel):
    name: str
    bytes: int


class TensorLine(BaseModel):
    name: str
    shape: list[int]
    codec: str
    group: int
    settings: dict[str, Any]
    packed_bits_per_weight: float


class ArtifactDetail(BaseModel):
    name: str
    stage: str
    parameters: int
    bytes: int
    ratio: float
    ratio_vs_16bit: float
    bits_per_weight: float
    tree: Node
    beside: list[BesideFile]
    """Files that are not counted (tokenizer)."""
    tensors: list[TensorLine]


class Talk(BaseModel):
    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1, max_length=2000)
    tokens: int = Field(60, ge=1, le=200)
    temperature: float = Field(0.0, ge=0.0, le=2.0)
    seed: int = Field(0, ge=0, le=2**31 - 1)
