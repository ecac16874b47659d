"""The bytes of a file, in memory or on disk, and JSON that is read as if it came from an enemy."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from phase8.errors import ArtifactError

COPY_ANEW = "the file was cut short or altered: copy it anew"
_CHECKED_AT_ONCE = 1 << 20


class RawBytes:
    """The bytes of a file that is in memory."""

    def __init__(self, raw: bytes) -> None:
        self._raw, self.size = memoryview(raw), len(raw)

    def part(self, begin: int, size: int) -> bytes | memoryview:
        """`size` bytes from `begin` on."""
        return self._raw[begin : begin + size]


class RawFile:
    """The bytes of a file that are read when they are wanted, so that large artifacts take no memory."""

    def __init__(self, path: Path) -> None:
        self._path, self.size = path, path.stat().st_size

    def part(self, begin: int, size: int) -> bytes:
        """`size` bytes from `begin` on.

        Raises:
            ArtifactError: the file cannot be read, or has become shorter.
        """
        try:
            with self._path.open("rb") as file:
                file.seek(begin)
                found = file.read(size)
        except OSError as error:
            what = f"cannot read: {error.strerror or error}"
            raise ArtifactError(what, where=str(self._path), fix="check the file") from error
        if len(found) != size:
            raise ArtifactError("the file became shorter while it was read", where=str(self._path), fix=COPY_ANEW)
        return found


Raw = RawBytes | RawFile


def checksum(raw: Raw, begin: int, size: int) -> int:
    """CRC-32 of a part, of which little is held at a time."""
    crc, end = 0, begin + size
    for place in range(begin, end, _CHECKED_AT_ONCE):
        crc = zlib.crc32(raw.part(place, min(_CHECKED_AT_ONCE, end - place)), crc)
    return crc


def strict_json(text: bytes) -> Any:
    """Parses JSON that names no key twice and holds no NaN or infinity.

    Raises:
        ValueError: it is not such JSON (also for nesting deeper than the parser goes).
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key occurs twice")
        return found

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
