"""The event log: what a run did, one JSON object a line, appended and flushed as it happens.

Console, report, W&B and dashboard draw from these events and from nothing else; `docs/design.md` lists the kinds and
their data. A listener is called with every event; one that raises is dropped and named in a `log` event, and the run
goes on.

    with EventLog(run_dir / "events.jsonl") as log:
        log.subscribe(print)
        log.emit(Kind.STAGE_START, stage="seedlm", attempt=1)
        log.activity("encode", stage="seedlm", done=3, total=12, text="layers.0.mlp.up_proj")

    {"time": 1795443496.2, "kind": "stage_start", "stage": "seedlm", "data": {"attempt": 1}}
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from enum import Enum, StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from phase8.errors import ArtifactError, OutputError

ACTIVITY_INTERVAL_S = 0.1
"""Least time between two written `activity` events of the same step."""

MAX_LINE_BYTES = 8 * 2**20
"""Longest line that `read_events` takes; a `phase_complete` of a large suite has some 100 kB."""


class Kind(StrEnum):
    """Every kind of event; `docs/design.md` says what data each carries."""

    RUN_START = "run_start"
    STAGE_START = "stage_start"
    ACTIVITY = "activity"
    STEP_COMPLETE = "step_complete"
    COMPRESSION_PROGRESS = "compression_progress"
    ALLOCATION = "allocation"
    OPTIMISATION = "optimisation"
    BENCHMARK_RESULT = "benchmark_result"
    QUALITY_GATE = "quality_gate"
    RECOMMENDATION = "recommendation"
    RETRY_START = "retry_start"
    STAGE_COMPLETE = "stage_complete"
    LOG = "log"
    PHASE_COMPLETE = "phase_complete"


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    `time` is in unix seconds, `kind` one of `Kind` (a log of a later version may hold others), `stage` is `baseline`,
    `seedlm`, `vptq`, `hyper` or None, `data` holds JSON values only.
    """

    time: float
    kind: str
    stage: str | None
    data: dict[str, Any]


Listener = Callable[[Event], None]


def plain(value: Any, where: str = "data") -> Any:
    """`value` as JSON values: NaN and infinity become None, tuples lists, enums their value, dataclasses dicts.

    Raises:
        TypeError: a value has no JSON form; the message names the key.
    """
    if isinstance(value, Enum):
        return plain(value.value, where)
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(plain(key, where)): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(items)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name), f"{where}.{field.name}")
            for field in dataclasses.fields(value)
        }
    if callable(getattr(value, "tolist", None)):  # numpy scalars and arrays, torch tensors
        return plain(value.tolist(), where)
    raise TypeError(f"{where} is a {type(value).__name__}, which has no JSON form")


class EventLog:
    """Appends events to a file and hands each to the listeners.

    Safe to use from several threads. A line that a killed process left unfinished at the end of an existing file is
    cut off before the first new one is written.

    Args:
        path: the file, usually `events.jsonl` in the run's directory; created if missing.

    Raises:
        OutputError: the file cannot be written; also raised by `emit`, after which the file still ends in a whole line.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()  # re-entrant: a listener may emit
        self._listeners: list[Listener] = []
        self._last_activity: tuple[str | None, str, float] | None = None
        try:
            self.path.touch()
            self._file: BinaryIO = self.path.open("r+b", buffering=0)
            self._end = _end_of_last_line(self._file)
            self._file.truncate(self._end)
        except OSError as error:
            raise self._cannot_write(error) from error

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; the listeners stay the caller's to close."""
        with self._lock:
            self._file.close()

    def subscribe(self, listener: Listener) -> None:
        """Calls `listener` with every event from now on, in the emitting thread."""
        with self._lock:
            self._listeners.append(listener)

    def emit(self, kind: Kind | str, stage: str | None = None, **data: Any) -> Event:
        """Writes one event and tells the listeners.

        Raises:
            OutputError: the disk is full or the file cannot be written.
            ValueError: no such kind.
            TypeError: a value has no JSON form.
        """
        event = Event(time.time(), str(Kind(kind)), stage, plain(data))
        line = json.dumps(
            {"time": event.time, "kind": event.kind, "stage": stage, "data": event.data}, allow_nan=False
        ).encode()
        with self._lock:
            self._write(line + b"\n")
            for listener in tuple(self._listeners):
                self._tell(listener, event)
        return event

    def activity(
        self, step: str, *, stage: str | None, done: int, total: int | None = None, text: str = ""
    ) -> Event | None:
        """An `activity` event, written at most every 0.1 s; a new step and its last unit (`done == total`) always are.

        Returns:
            The event, or None where it was left out.
        """
        now = time.monotonic()
        with self._lock:
            last = self._last_activity
            same = last is not None and last[:2] == (stage, step)
            if same and done != total and now - last[2] < ACTIVITY_INTERVAL_S:
                return None
            self._last_activity = (stage, step, now)
            return self.emit(Kind.ACTIVITY, stage, step=step, done=done, total=total, text=text)

    def _write(self, line: bytes) -> None:
        try:
            self._file.seek(self._end)
            if self._file.write(line) != len(line):
                raise OSError("only a part was written; the disk is probably full")
        except OSError as error:
            self._file.truncate(self._end)
            raise self._cannot_write(error) from error
        self._end += len(line)

    def _tell(self, listener: Listener, event: Event) -> None:
        if listener not in self._listeners:  # dropped while an event that it caused was handled
            return
        try:
            listener(event)
        except Exception as error:  # whatever an onlooker does, the run goes on
            self._listeners.remove(listener)
            name = getattr(listener, "__qualname__", type(listener).__name__)
            self.emit(
                Kind.LOG,
                event.stage,
                level="error",
                text=f"{name} failed on {event.kind} and gets no more events: {type(error).__name__}: {error}",
            )

    def _cannot_write(self, error: OSError) -> OutputError:
        return OutputError(
            f"cannot write the event log: {error.strerror or error}",
            where=str(self.path),
            fix="free some disk space, or set paths.output_dir to a directory that you may write to",
        )


def _end_of_last_line(file: BinaryIO) -> int:
    """Bytes up to and including the last newline."""
    position = file.seek(0, os.SEEK_END)
    while position > 0:
        start = max(0, position - 65536)
        file.seek(start)
        newline = file.read(position - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        position = start
    return 0


def read_events(path: Path | str) -> list[Event]:
    """Reads a log, which may still be growing: a last line without its newline is left out.

    Raises:
        ArtifactError: the file is missing, a line is too long or is not an event; says which line.
    """
    path = Path(path)
    events: list[Event] = []
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                where = f"{path}, line {len(events) + 1}"
                if len(line) > MAX_LINE_BYTES:
                    raise _bad_log(f"a line is longer than the {MAX_LINE_BYTES:,} bytes allowed", where)
                if not line.endswith(b"\n"):
                    break
                events.append(_parse(line, where))
    except OSError as error:
        raise ArtifactError(
            f"cannot read the event log: {error.strerror or error}",
            where=str(path),
            fix="name the directory of a run, usually outputs/DATE/TIME",
        ) from error
    return events


def _parse(line: bytes, where: str) -> Event:
    def reject(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        record = json.loads(line, parse_constant=reject)
    except (ValueError, RecursionError) as error:
        raise _bad_log(f"not a line of JSON: {error}", where) from error
    if not isinstance(record, dict):
        raise _bad_log("not an event: the line is no JSON object", where)
    moment, kind, stage, data = (record.get(key) for key in ("time", "kind", "stage", "data"))
    valid = (
        isinstance(moment, int | float)
        and not isinstance(moment, bool)
        and abs(moment) < 2**53
        and isinstance(kind, str)
        and (stage is None or isinstance(stage, str))
        and isinstance(data, dict)
    )
    if not valid:
        raise _bad_log("not an event: needs time (number), kind (text), stage (text or null) and data (object)", where)
    return Event(float(moment), kind, stage, data)


def _bad_log(what: str, where: str) -> ArtifactError:
    return ArtifactError(what, where=where, fix="the log is damaged: restore it, or run again")
