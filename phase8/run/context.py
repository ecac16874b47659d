"""What every part of a run shares: settings, model, directories, the log, and where the run stands."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from phase8.benchmarks.evaluate import SuiteResult
from phase8.benchmarks.suite import Suite
from phase8.config import CompressionConfig
from phase8.events import Data, EventLog, Log, StepComplete
from phase8.model.source import SourceModel
from phase8.run.calibration import Calibration
from phase8.run.control import Control
from phase8.run.journal import Journal
from phase8.run.machine import peak_memory_mb
from phase8.run.shared import Shared


@dataclass
class Context:
    """One run, for its parts."""

    config: CompressionConfig
    """The settings of the run; an attempt may have others."""
    source: SourceModel
    run_dir: Path
    cache_dir: Path
    events: EventLog
    journal: Journal
    control: Control
    calibration: Calibration
    shared: Shared
    suite: Suite | None = None
    baseline: SuiteResult | None = None
    step_in_hand: str = ""
    _stage: str | None = field(default=None, repr=False)

    def tell(self, data: Data, stage: str | None = None) -> None:
        """Writes an event."""
        self.events.emit(data, stage)

    def log(self, level: str, text: str, stage: str | None = None) -> None:
        """Writes a sentence for people."""
        self.events.emit(Log(level=level, text=text), stage)

    @contextmanager
    def step(self, step: str, stage: str, attempt: int = 1, round: int = 1) -> Iterator[None]:
        """A step: what the block makes has to be on disk at its end, for then the step counts as finished."""
        self.safe_point(step, stage)
        begin = time.monotonic()
        yield
        seconds = time.monotonic() - begin
        self.tell(
            StepComplete(step=step, seconds=seconds, attempt=attempt, round=round, peak_memory_mb=peak_memory_mb()),
            stage,
        )

    def progress(self, step: str, stage: str, done: int, total: int | None, text: str) -> None:
        """Tells how far a step is; a safe point, where the run may be paused or ended."""
        self.safe_point(step, stage)
        self.events.activity(step, stage=stage, done=done, total=total, text=text)

    def safe_point(self, step: str, stage: str) -> None:
        """Obeys the control file; raises `RunStopped` where the run is to end."""
        self.step_in_hand = step
        self.control.look(step, stage)
