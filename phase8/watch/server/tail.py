"""A growing event log, read a line at a time: only what was added since the last look.

A line counts once its newline is there. A line that is no event keeps its number and is skipped: the page shows what it
can of a log that is damaged or of a later version. Example: a file of two lines and a half gives two events; when the
rest of the third arrives, `read` returns that one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_LINE_BYTES = 8 * 2**20
"""As in phase8.events: a longer line is no event."""
CHUNK_BYTES = 2**18

Record = dict[str, Any]
"""`seq` (the line's number from 0), `time`, `kind`, `stage`, `data`."""


def parse(line: bytes, seq: int) -> Record | None:
    """The event of a line, or None where it holds none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    time, kind, stage, data = (record.get(key) for key in ("time", "kind", "stage", "data"))
    valid = (
        isinstance(time, int | float) and not isinstance(time, bool) and abs(time) < 2**53
        and isinstance(kind, str) and (stage is None or isinstance(stage, str)) and isinstance(data, dict)
    )  # fmt: skip
    return {"seq": seq, "time": float(time), "kind": kind, "stage": stage, "data": data} if valid else None


@dataclass
class Tail:
    """Where reading a log has come to.

    `replaced` counts how often the file became another one or shorter; reading then began anew at line 0.
    """

    path: Path
    offset: int = 0
    seq: int = 0
    replaced: int = 0
    _inode: int | None = None
    _skipping: bool = False
    """Within a line that is too long to be an event."""

    def grown(self) -> bool:
        """Whether the file is not what it was at the last `read`; costs one call of the system."""
        try:
            status = os.stat(self.path)
        except OSError:
            return False
        return status.st_size != self.offset or status.st_ino != self._inode

    def read(self, limit: int = 100_000) -> list[Record]:
        """At most `limit` events that were added; an empty list where the file is not there or did not grow."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_size < self.offset or self._inode not in (None, status.st_ino):
                    self.offset, self.seq, self._skipping = 0, 0, False
                    self.replaced += 1
                self._inode = status.st_ino
                file.seek(self.offset)
                return list(self._lines(file, limit))
        except OSError:
            return []

    def _lines(self, file: Any, limit: int) -> Iterator[Record]:
        count = 0
        while count < limit:
            line = file.readline(MAX_LINE_BYTES + 1)
            if not line.endswith(b"\n"):
                if len(line) > MAX_LINE_BYTES:  # hold no more of it than this
                    self.offset += len(line)
                    self._skipping = True
                    continue
                return
            self.offset += len(line)
            record = None if self._skipping else parse(line, self.seq)
            self.seq, self._skipping = self.seq + 1, False
            if record is not None:
                count += 1
                yield record


def compacted(records: list[Record]) -> list[Record]:
    """The same events without the `activity` that a later one of the same stage and step has overtaken."""
    seen: set[tuple[Any, Any]] = set()
    kept = []
    for record in reversed(records):
        if record["kind"] == "activity":
            key = (record["stage"], record["data"].get("step"))
            if key in seen:
                continue
            seen.add(key)
        kept.append(record)
    kept.reverse()
    return kept
