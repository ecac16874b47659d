"""Reading a log, whole or while it grows."""

from __future__ import annotations

from pathlib import Path

from phase8.errors import ArtifactError
from phase8.events.kinds import VERSION, LogStart
from phase8.events.record import Event, bad_log, from_line

MAX_LINE_BYTES = 8 * 2**20
"""Longest line that is read; a `phase_complete` of a large suite has some 100 kB."""


class EventReader:
    """Reads a log from its beginning, and at every further call what was added since.

        reader = EventReader(run_dir / "events.jsonl")
        while True:
            for event in reader.read(): ...

    Attributes:
        lines: events read so far; an event's number is its line, from 0.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.lines = 0
        self._offset = 0

    def read(self) -> list[Event]:
        """The events that were added since the last call; a last line without its newline waits for the next one.

        Raises:
            ArtifactError: the file is missing, of another version, a line is too long or is not an event; says which.
        """
        events: list[Event] = []
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                while line := file.readline(MAX_LINE_BYTES + 1):
                    where = f"{self.path}, line {self.lines + 1}"
                    if len(line) > MAX_LINE_BYTES:
                        raise bad_log(f"a line is longer than the {MAX_LINE_BYTES:,} bytes allowed", where)
                    if not line.endswith(b"\n"):
                        break
                    if self.lines == 0:
                        check_start(line, where)
                    events.append(from_line(line, where))
                    self.lines += 1
                    self._offset += len(line)
        except OSError as error:
            raise ArtifactError(
                f"cannot read the event log: {error.strerror or error}",
                where=str(self.path),
                fix="name the directory of a run, usually outputs/DATE/TIME",
            ) from error
        return events


def read_events(path: Path | str) -> list[Event]:
    """Reads a log, which may still be growing: a last line without its newline is left out.

    Raises:
        ArtifactError: see `EventReader.read`.
    """
    return EventReader(path).read()


def check_start(line: bytes, where: str) -> None:
    """Makes sure that a log's first line is that of a log of this version.

    Raises:
        ArtifactError: it is of another version, or no log.
    """
    if b'"log_start"' not in line:
        from_line_of_old = b'"kind"' in line and b'"data"' in line
        if from_line_of_old and len(line) < MAX_LINE_BYTES:
            raise ArtifactError(
                f"the event log is of version 1, and this program reads version {VERSION}",
                where=where,
                fix="its report.html and result.json can still be opened; run again for a log that can be read",
            )
    start = from_line(line, where).data
    if not isinstance(start, LogStart):
        raise bad_log("the first line is no log_start", where)
    if start.version != VERSION:
        raise ArtifactError(
            f"the event log is of version {start.version}, and this program reads version {VERSION}",
            where=where,
            fix="open it with the version of Phase 8 that wrote it",
        )
