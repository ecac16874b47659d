"""The run: baseline, then encode -> optimise -> write -> read back -> evaluate -> gate for each stage.

    baseline.py     what the original scores
    stage.py        a stage with its retries: attempt.py -> gate -> retry.py
    result.py       result.json

A stage whose gate fails is tried again with the recommendation drawn from its failure, then the run falls back to the
last stage that passed; its artifact is already there. The pipeline tells what it does through events and returns the
content of `result.json`; whoever wants to look subscribes to the event log. A run that was killed goes on where it was
(journal.py); one that somebody ends (signals.py, control.py) writes its result first.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phase8.artifact.rehearse import check_reopens
from phase8.codecs.stages import NAMES
from phase8.config import CompressionConfig
from phase8.errors import ModelError, Phase8Error, RunStopped
from phase8.events import Aborted, EventLog, Log, RunResumed, RunStart
from phase8.files import make_directory, write_atomic
from phase8.model.latency import measure_latency_ms
from phase8.model.source import SourceModel
from phase8.run.baseline import measure_baseline
from phase8.run.budget import check_budget
from phase8.run.calibration import Calibration
from phase8.run.context import Context
from phase8.run.control import Control
from phase8.run.journal import Journal, clean_up
from phase8.run.machine import peak_memory_mb
from phase8.run.result import Attempt, build_result
from phase8.run.shared import Shared
from phase8.run.signals import EndOnSignal
from phase8.run.stage import run_stage
from phase8.run.tell import limits_of, phase_complete
from phase8.run.train import check_trained


@dataclass
class Pipeline:
    """One run of one model. Create it, subscribe listeners to `events`, call `run` once."""

    config: CompressionConfig
    source: SourceModel
    run_dir: Path
    cache_dir: Path
    events: EventLog
    journal: Journal | None = None
    """What earlier processes of the run finished; None for a new run."""
    ending: EndOnSignal | None = None
    """Held back once the result is being written."""
    attempts: dict[str, list[Attempt]] = field(default_factory=dict)
    stopped: str = ""
    """Why the run ended early, where it did."""

    def __post_init__(self) -> None:
        self.journal = self.journal or Journal(self.run_dir)
        shared = Shared(
            self.source,
            self.cache_dir,
            enabled=self.config.paths.reuse is True,
            tell=lambda text, stage: self.events.emit(Log(level="info", text=text), stage),
        )
        self.context = Context(
            config=self.config,
            source=self.source,
            run_dir=self.run_dir,
            cache_dir=self.cache_dir,
            events=self.events,
            journal=self.journal,
            control=Control(self.run_dir, self.events),
            calibration=Calibration(self.source, shared, lambda text: self.events.emit(Log(level="info", text=text))),
            shared=shared,
        )

    def run(self) -> dict[str, Any]:
        """Runs every enabled stage and writes `result.json`.

        Returns:
            The content of `result.json`.

        Raises:
            Phase8Error: bad input or output; what was finished before is on disk.
        """
        begin, run = time.monotonic(), self.context
        make_directory(self.run_dir)
        stages = [stage for stage in NAMES if self.config.stage(stage).enabled]
        latency = None
        try:
            self._begin(stages)
            for stage in stages:
                check = check_trained if self.config.stage(stage).trained else check_budget
                check(self.source, stage, self.config)
            check_reopens(self.source)
            measure_baseline(run)
            for stage in stages:
                if not run_stage(run, stage, self.attempts.setdefault(stage, []), self.best):
                    break
            latency = self._latency()
        except (KeyboardInterrupt, RunStopped) as wish:
            self._hold_signals()
            self._tell_end(wish)
        self._hold_signals()
        return self._finish(latency, time.monotonic() - begin)

    @property
    def best(self) -> Attempt | None:
        """The attempt that passed last, if any."""
        passed = [attempt for attempts in self.attempts.values() for attempt in attempts if attempt.verdict.passed]
        return passed[-1] if passed else None

    def _begin(self, stages: list[str]) -> None:
        assert self.journal is not None
        machine = {"pid": os.getpid(), "host": socket.gethostname()}
        start = self.journal.start
        if start is None:
            self.events.emit(
                RunStart(
                    run_dir=str(self.run_dir),
                    compressor=self.config.variant,
                    model=self.source.name,
                    model_hash=self.source.content_hash,
                    parameters=self.source.parameter_count,
                    original_bytes=self.source.original_bytes,
                    stages=tuple(stages),
                    seed=self.config.seed,
                    limits=limits_of(self.config),
                    **machine,
                )
            )
            return
        if start.model_hash not in ("", self.source.content_hash):
            raise ModelError(
                "the model is not the one that this run began with: its weights or its tokenizer differ",
                where=self.config.model.path,
                fix="restore it, or start a new run",
            )
        clean_up(self.run_dir)
        self.context.control.forget()
        self.events.emit(RunResumed(process=self.journal.process + 1, finished=self.journal.finished(), **machine))

    def _latency(self) -> float | None:
        """Milliseconds per generated token on this machine, uncompressed (decoding happens at load). A figure beside
        the result: where it fails, nothing ends."""
        try:
            return measure_latency_ms(self.source.network)
        except Exception as error:  # of an architecture's own code
            reason = error.what if isinstance(error, Phase8Error) else f"{type(error).__name__}: {str(error)[:200]}"
            self.context.log("warning", f"no figure for the time per token: {reason}")
            return None

    def _hold_signals(self) -> None:
        if self.ending is not None:
            self.ending.hold()

    def _tell_end(self, wish: BaseException) -> None:
        name = self.ending.name if self.ending is not None else None
        by = wish.by if isinstance(wish, RunStopped) else "signal"
        self.stopped = wish.reason if isinstance(wish, RunStopped) else "Ctrl-C" if name in (None, "SIGINT") else name
        self.events.emit(Aborted(by=by, reason=self.stopped, step=self.context.step_in_hand))

    def _finish(self, latency_ms: float | None, seconds: float) -> dict[str, Any]:
        assert self.journal is not None
        result = build_result(
            config=self.config,
            source=self.source,
            baseline=self.context.baseline,
            attempts={stage: tries for stage, tries in self.attempts.items() if tries},
            stopped=self.stopped,
            latency_ms=latency_ms,
            seconds=self.journal.seconds + seconds,
            peak_memory_mb=peak_memory_mb(),
        )
        write_atomic(self.run_dir / "result.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
        self.events.emit(phase_complete(result))
        return result
