"""A program's output where its reader goes away: `python -m phase8 inspect ARTIFACT | head -1`.

The reader has what it wanted; that is no error of the program, and no reason to leave its work unfinished. Python sees
it otherwise: the next write raises, and the flush at the very end prints a traceback and changes the exit status. So
the programs' entries run their work in `run_program`, which drops what nobody reads. Any other failure to write (a full
disk behind `> FILE`) ends in one line and a status of its own, after the work.
"""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Callable
from typing import NoReturn

FAILED = 2


class _Lenient(io.FileIO):
    """A file that takes whatever is written, and remembers the first error of the real one."""

    lost: OSError | None = None

    def write(self, data: bytes | memoryview, /) -> int:  # type: ignore[override]
        if self.lost is None:
            try:
                return super().write(data)
            except OSError as error:
                self.lost = error
        return len(memoryview(data).cast("B"))


def _lenient(stream: io.TextIOWrapper) -> tuple[io.TextIOWrapper, _Lenient]:
    """The same stream, as far as anybody can see, onto a lenient file."""
    file = _Lenient(stream.fileno(), "wb", closefd=False)
    unbuffered = isinstance(stream.buffer, io.RawIOBase)  # python -u
    copy = io.TextIOWrapper(
        file if unbuffered else io.BufferedWriter(file),  # type: ignore[arg-type]
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
    return copy, file


def run_program(work: Callable[[], int | None]) -> NoReturn:
    """Does a program's work and ends the process with its status.

    Args:
        work: returns the exit status (None is 0), or raises `SystemExit`.

    Raises:
        SystemExit: always; 2 where the work went well and its output could not be written.
    """
    files = {}
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # None where it was closed before the start
            stream.flush()
            copy, files[name] = _lenient(stream)
            setattr(sys, name, copy)
    try:
        status = work()
    except SystemExit as ended:
        status = ended.code  # type: ignore[assignment]
    if sys.stdout is not None:
        sys.stdout.flush()
    lost = files["stdout"].lost if "stdout" in files else None
    if lost is not None and lost.errno != errno.EPIPE:
        print(f"error: the output could not be written: {lost.strerror}", file=sys.stderr)
        status = status or FAILED
    sys.exit(status)
