"""What earlier processes of a run finished, so that a killed run goes on where it was.

The event log is the record: a step is finished where its `step_complete` is in the log, and that line is written after
what the step made is on disk. Until a stage is complete its steps' products lie in `RUN_DIR/state/STAGE_ATTEMPT/`:

    allocation.npz        what the candidates cost and damage, within a byte budget
    encoded_1.p8          the encoded groups, in the format of an artifact's weights
    training_1/           the training's own checkpoints
    trained_1.p8          the groups after training
    attempt.json          which gradient filter counts
    scores.json           the score of every item; this one stays

The number is the round: training within a byte budget may take several. Every product carries a checksum: the groups
that of their format, the others a last line (`phase8.files.write_sealed`). A step whose product cannot be read, does
not sum up or holds what cannot be is done again, as is one that was not finished: each depends on nothing but the steps
before it and the seed, so it comes out the same.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from phase8.artifact.read import parse
from phase8.artifact.write import file_bytes
from phase8.benchmarks.evaluate import SuiteResult
from phase8.codecs import EncodedGroup
from phase8.config import GrokfastVariant
from phase8.errors import ArtifactError, BenchmarkError, Phase8Error
from phase8.events import (
    Event,
    Log,
    PhaseComplete,
    Recommended,
    RetryStart,
    RunResumed,
    RunStart,
    StageComplete,
    StepComplete,
    TrainingRestart,
)
from phase8.events.record import to_line
from phase8.files import make_directory, read_bounded, read_sealed, write_atomic, write_sealed
from phase8.limits import TRUSTED

STATE = "state"
MAX_SCORES_BYTES, MAX_FACTS_BYTES = 64 << 20, 1 << 20

Product = TypeVar("Product")
STOPPED = "stopped"
"""Folder of a run directory for artifacts of stages whose training was stopped."""


def directory_of(run_dir: Path, stage: str, attempt: int) -> Path:
    """Where an attempt's artifact lies."""
    return run_dir / "artifacts" / (stage if attempt == 1 else f"{stage}_retry{attempt - 1}")


class Journal:
    """The steps that a run has behind it.

    Args:
        run_dir: the run's directory.
        events: its log so far; empty for a new run.
    """

    def __init__(self, run_dir: Path | str, events: Iterable[Event] = ()) -> None:
        self.directory = Path(run_dir) / STATE
        self.start: RunStart | None = None
        self.ended: PhaseComplete | None = None
        self.process = 1
        self.seconds = 0.0
        """Of the processes before this one."""
        self.unfiltered: set[str] = set()
        """Stages at which a training began anew without the gradient filter: their further ones leave it out."""
        self._steps: dict[tuple[str, int, str, int], float] = {}
        self._complete: dict[tuple[str, int], StageComplete] = {}
        self._advice: dict[tuple[str, int], Recommended] = {}
        self._retries: set[tuple[str, int]] = set()
        begin = last = None
        for event in events:
            if isinstance(event.data, RunResumed) and begin is not None and last is not None:
                self.seconds, begin = self.seconds + last - begin, event.time
                self.process, self.ended = event.data.process, None
            begin, last = event.time if begin is None else begin, event.time
            self._take(event.stage or "", event.data)
        if begin is not None and last is not None:
            self.seconds += last - begin

    def _take(self, stage: str, data: Any) -> None:
        match data:
            case RunStart():
                self.start = data
            case StepComplete():
                self._steps[stage, data.attempt, data.step, data.round] = data.seconds
            case StageComplete():
                self._complete[stage, data.attempt] = data
            case Recommended():
                self._advice[stage, data.attempt] = data
            case RetryStart():
                self._retries.add((stage, data.attempt))
            case TrainingRestart():
                self.unfiltered.add(stage)
            case PhaseComplete():
                self.ended = data

    def done(self, stage: str, attempt: int, step: str, round: int = 1) -> bool:
        """Whether the step is finished."""
        return (stage, attempt, step, round) in self._steps

    def complete(self, stage: str, attempt: int) -> StageComplete | None:
        """The end of an attempt, if it was reached."""
        return self._complete.get((stage, attempt))

    def advice(self, stage: str, attempt: int) -> Recommended | None:
        """What was recommended after an attempt."""
        return self._advice.get((stage, attempt))

    def retried(self, stage: str, attempt: int) -> bool:
        """Whether this attempt was announced as a retry."""
        return (stage, attempt) in self._retries

    def spent(self, stage: str, attempt: int) -> float:
        """Seconds that the finished steps of an attempt took."""
        return sum(seconds for key, seconds in self._steps.items() if key[:2] == (stage, attempt))

    def finished(self) -> tuple[str, ...]:
        """The finished steps, for people: `vptq 1 encode`."""
        return tuple(f"{stage} {attempt} {step}" for stage, attempt, step, _ in self._steps)

    def path(self, stage: str, attempt: int, name: str) -> Path:
        """Where a step's product belongs; its directory is made."""
        return make_directory(self.directory / f"{stage}_{attempt}") / name

    def clear(self, stage: str, attempt: int, names: Sequence[str] | None = None) -> None:
        """Deletes what an attempt needs no more: the named products, or all but the scores."""
        folder = self.directory / f"{stage}_{attempt}"
        for path in sorted(folder.glob("*")):
            if path.name not in ("scores.json", "attempt.json") if names is None else path.name in names:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def clean_up(run_dir: Path) -> None:
    """Removes what a run that ended early left: its result and report, what it was writing, artifacts of training that
    was stopped and now goes on."""
    shutil.rmtree(run_dir / STOPPED, ignore_errors=True)
    for name in ("result.json", "report.html"):
        (run_dir / name).unlink(missing_ok=True)
        for path in run_dir.glob(f".{name}.*"):
            path.unlink()
    for pattern in ("artifacts/.*", f"{STATE}/*/.*"):
        for path in run_dir.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def recalled(tell: Callable[[Log], Any], read: Callable[[], Product]) -> Product | None:
    """What `read` returns, or None with a warning where the product is missing or damaged: its step is done again."""
    try:
        return read()
    except (Phase8Error, OSError) as error:
        what = error.what if isinstance(error, Phase8Error) else str(error)
        tell(Log(level="warning", text=f"a finished step is done again, its product cannot be read: {what}"))
        return None


def write_groups(path: Path, groups: Sequence[EncodedGroup], stage: str, parameters: int) -> None:
    """Writes encoded groups, completely or not at all."""
    write_atomic(path, file_bytes(groups, stage, {"hash": "", "parameters": parameters}))


def read_groups(path: Path) -> list[EncodedGroup]:
    """Reads what `write_groups` wrote.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    size = path.stat().st_size if path.exists() else 0  # a limit above it would be allocated
    raw = read_bounded(path, size, error=ArtifactError)
    return list(parse(raw, where=str(path), limits=TRUSTED).groups())


def write_scores(path: Path, result: SuiteResult) -> None:
    """Writes the score of every item."""
    write_sealed(path, result.to_json())


def read_scores(path: Path) -> SuiteResult:
    """Reads what `write_scores` wrote.

    Raises:
        BenchmarkError: the file is missing or damaged.
    """
    raw = read_sealed(path, MAX_SCORES_BYTES, error=BenchmarkError)
    try:
        return SuiteResult.from_json(raw.decode())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BenchmarkError(f"not a suite's scores: {type(error).__name__}: {error}", where=str(path)) from error


def write_facts(path: Path, facts: dict[str, Any]) -> None:
    """Writes the facts about a training (`phase8.run.optimise`)."""
    write_sealed(path, json.dumps(facts))


def read_facts(path: Path) -> dict[str, Any]:
    """Reads what `write_facts` wrote.

    Raises:
        ArtifactError: the file is missing or damaged, or holds what no training leaves.
    """
    raw = read_sealed(path, MAX_FACTS_BYTES, error=ArtifactError)
    try:
        facts = json.loads(raw)
        if set(facts) - {"filter", "restart"}:
            raise ValueError(f"fields {sorted(facts)}")
        GrokfastVariant(facts["filter"])
        if (restart := facts.get("restart")) is not None:
            to_line(0.0, None, TrainingRestart(**restart))  # checks the fields' types
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"not the facts of a training: {error}", where=str(path)) from error
    return facts
