"""Writing the log, and telling the listeners.

    with EventLog(run_dir / "events.jsonl") as log:
        log.subscribe(print)
        log.emit(StageStart(attempt=1), stage="seedlm")
        log.activity("encode", stage="seedlm", done=3, total=12, text="layers.0.mlp.up_proj")

A listener is called with every event. One that raises is dropped and named in a `log` event, and the run goes on,
whatever it raised; only `KeyboardInterrupt` and `RunStopped` pass, since they are somebody's wish to end the run.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from phase8.errors import OutputError, RunStopped
from phase8.events.kinds import Activity, Data, Log, LogStart
from phase8.events.read import check_start
from phase8.events.record import Event, to_line

ACTIVITY_INTERVAL_S = 0.1
"""Least time between two written `activity` events of the same step."""

Listener = Callable[[Event], None]


class EventLog:
    """Appends events to a file and hands each to the listeners.

    Safe to use from several threads. The file is locked while it is open (`flock`, which a killed process cannot leave
    behind), so that a log has one writer. A line that a killed process left unfinished is cut off first.

    Args:
        path: the file, usually `events.jsonl` in the run's directory; created if missing.

    Raises:
        OutputError: the file cannot be written, or another process writes it; also raised by `emit`, after which the
            file still ends in a whole line.
        ArtifactError: the file holds a log of another version.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()  # re-entrant: a listener may emit
        self._listeners: list[Listener] = []
        self._step: tuple[str | None, str] | None = None
        self._step_begin: tuple[float, int] = (0.0, 0)
        self._last_activity = 0.0
        try:
            self.path.touch()
            self._file: BinaryIO = self.path.open("r+b", buffering=0)
        except OSError as error:
            raise self._cannot_write(error) from error
        if not _locked(self._file):
            self._file.close()
            raise OutputError(
                "another process is writing this run's log",
                where=str(self.path),
                fix="wait for it to end, or choose another directory: hydra.run.dir=outputs/NAME",
            )
        try:
            self._end = _end_of_last_line(self._file)
            self._file.truncate(self._end)
            self._file.seek(0)
            if self._end:
                check_start(self._file.read(min(self._end, 65536)).partition(b"\n")[0] + b"\n", str(self.path))
            else:
                self.emit(LogStart())
        except OSError as error:
            self._file.close()
            raise self._cannot_write(error) from error
        except BaseException:
            self._file.close()
            raise

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

    def emit(self, data: Data, stage: str | None = None) -> Event:
        """Writes one event and tells the listeners.

        Raises:
            OutputError: the disk is full or the file cannot be written.
            TypeError: a field holds a value that its type does not allow.
        """
        event, line = to_line(time.time(), stage, data)
        with self._lock:
            self._write(line)
            for listener in tuple(self._listeners):
                self._tell(listener, event)
        return event

    def activity(
        self, step: str, *, stage: str | None, done: int, total: int | None = None, text: str = ""
    ) -> Event | None:
        """An `activity` event, written at most every 0.1 s; a new step and its last unit (`done == total`) always are.

        The seconds left are those at the step's rate since its first call.

        Returns:
            The event, or None where it was left out.
        """
        now = time.monotonic()
        with self._lock:
            begins = self._step != (stage, step) or done < self._step_begin[1]
            if not begins and done != total and now - self._last_activity < ACTIVITY_INTERVAL_S:
                return None
            if begins:
                self._step, self._step_begin = (stage, step), (now, done)
            self._last_activity = now
            begin, first = self._step_begin
            left = None
            if total is not None and done > first and now > begin:
                left = max(0.0, (total - done) * (now - begin) / (done - first))
            return self.emit(Activity(step=step, done=done, total=total, text=text, seconds_left=left), stage)

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
        except (KeyboardInterrupt, RunStopped):
            raise
        except BaseException as error:  # SystemExit too: rich raises it where nobody reads its output any more
            self._listeners.remove(listener)
            name = getattr(listener, "__qualname__", type(listener).__name__)
            text = f"{name} failed on {event.kind} and gets no more events: {type(error).__name__}: {error}"
            self.emit(Log(level="error", text=text), event.stage)

    def _cannot_write(self, error: OSError) -> OutputError:
        return OutputError(
            f"cannot write the event log: {error.strerror or error}",
            where=str(self.path),
            fix="free some disk space, or set paths.output_dir to a directory that you may write to",
        )


def _locked(file: BinaryIO) -> bool:
    """Takes the lock of the only writer; False where another process has it."""
    for _ in range(10):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)  # `is_live` holds it for an instant
        except OSError:
            return True  # a file system without locks: nothing can be done, and nothing is lost by going on
        else:
            return True
    return False


def is_live(run_dir: Path | str) -> bool:
    """Whether a process of this machine is writing the log of a run."""
    try:
        with (Path(run_dir) / "events.jsonl").open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    except OSError:
        pass
    return False


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
