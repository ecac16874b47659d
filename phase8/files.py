"""Writing so that nothing good is ever half overwritten, and reading no more than was agreed."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from phase8.errors import OutputError, Phase8Error

RUN = "paths.output_dir"
CACHE = "paths.cache_dir"
TEMPORARY = "TMPDIR"
OUT = "OUT"
"""What decides where something is written: two settings, a variable, and the argument of a command."""


def output_error(error: OSError, path: Path, place: str = RUN) -> OutputError:
    """An operating system's error at writing, with what can be done about it.

    Args:
        place: what a user would change to have it written elsewhere.
    """
    fixes = {
        errno.ENOSPC: f"free some disk space, or set {place} to a disk that has room",
        errno.EDQUOT: f"free some of your quota, or set {place} elsewhere",
        errno.EFBIG: f"raise the limit of a file's length (ulimit -f), or set {place} to another file system",
        errno.EROFS: f"set {place} to a directory on a writable disk",
        errno.EACCES: f"set {place} to a directory that you may write to",
        errno.EPERM: f"set {place} to a directory that you may write to",
    }
    otherwise = f"check that the directory exists and may be written to, or set {place} to another"
    return OutputError(
        f"cannot write: {error.strerror or error}", where=str(path), fix=fixes.get(error.errno or 0, otherwise)
    )


def system_error(error: BaseException) -> OSError | None:
    """The operating system's error that an exception is, or that a library written in Rust (safetensors, tokenizers)
    tells of in its text: `... (os error 28)`."""
    if isinstance(error, OSError):
        return error if error.errno else None  # transformers raises OSErrors of its own, without a number
    found = re.search(r"\(os error (\d{1,4})\)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


@contextmanager
def writing(path: Path | str, place: str = RUN) -> Iterator[None]:
    """Turns whatever the block raises because the disk is full or not writable into an `OutputError`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, Phase8Error) or (found := system_error(error)) is None:
            raise
        raise output_error(found, Path(path), place) from error


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """A directory that vanishes when the block ends, where temporary files belong. What is written into it is best
    written below `writing(directory, TEMPORARY)`.

    Raises:
        OutputError: there is no room for temporary files.
    """
    with writing("the directory of temporary files", TEMPORARY):
        held = tempfile.TemporaryDirectory(prefix="phase8-", ignore_cleanup_errors=True)
    with held as name:
        yield Path(name)


def make_directory(path: Path, place: str = RUN) -> Path:
    """Creates a directory and its parents.

    Args:
        place: see `output_error`.

    Raises:
        OutputError: it cannot be created or is not writable.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "permission denied")
    except OSError as error:
        raise output_error(error, path, place) from error
    return path


def fresh_directory(path: Path | str) -> Path:
    """Creates a directory that nobody else has: `path`, or `path-2`, `path-3` ... where that exists already.

    Of processes that ask at the same moment each gets its own.

    Raises:
        OutputError: it cannot be created or is not writable.
    """
    path = Path(path)
    make_directory(path.parent)
    for number in itertools.count(1):
        candidate = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            candidate.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise output_error(error, candidate) from error
        return candidate
    raise AssertionError("unreachable")


def write_atomic(path: Path | str, data: bytes | str | Callable[[BinaryIO], None], place: str = RUN) -> Path:
    """Writes a file completely or not at all: a temporary file beside it, flushed to disk, then renamed over it.

    Args:
        data: the content, or what writes it into the open file: for what is too large to be in memory twice.
        place: see `output_error`.

    Raises:
        OutputError: the disk is full or the place is not writable; what was there before is untouched.
    """
    path = Path(path)
    content = data.encode(errors="backslashreplace") if isinstance(data, str) else data
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise output_error(error, path, place) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
    return path


def write_sealed(path: Path | str, data: bytes | str, place: str = RUN) -> Path:
    """Writes a file that `read_sealed` can tell from a damaged one: the content, and its SHA-256 on a last line.

    Both are in one file, so that no kill parts them.

    Args:
        place: see `output_error`.

    Raises:
        OutputError: as `write_atomic`.
    """
    raw = data.encode(errors="backslashreplace") if isinstance(data, str) else data
    return write_atomic(path, raw + _seal(raw), place)


def read_sealed(path: Path | str, limit_bytes: int, *, error: type[Phase8Error]) -> bytes:
    """The content that `write_sealed` wrote.

    Raises:
        error: the file is missing, unreadable, too large, or not as it was written.
    """
    raw = read_bounded(path, limit_bytes + SEAL_BYTES, error=error)
    content, seal = raw[:-SEAL_BYTES], raw[-SEAL_BYTES:]
    if seal != _seal(content):
        raise error("its checksum is not that of its content", where=str(path))
    return content


SEAL_BYTES = 66


def _seal(content: bytes) -> bytes:
    return f"\n{hashlib.sha256(content).hexdigest()}\n".encode()


@contextmanager
def directory_swap(path: Path | str, place: str = RUN) -> Iterator[Path]:
    """Yields an empty directory that takes the place of `path` when the block ends well, and vanishes when it does not.

    Args:
        place: see `output_error`.

    Raises:
        OutputError: the disk is full or the place is not writable; what was there before is untouched.
    """
    path = Path(path)
    with writing(path, place):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        fresh.chmod(0o755)
    try:
        with writing(path, place):
            yield fresh
            old = None
            if path.exists():
                old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
                os.replace(path, old / path.name)
            os.replace(fresh, path)
            if old is not None:
                shutil.rmtree(old)
    finally:
        if fresh.exists():
            shutil.rmtree(fresh, ignore_errors=True)


def read_bounded(path: Path | str, limit_bytes: int, *, error: type[Phase8Error], fix: str = "") -> bytes:
    """Reads a whole file that must not be larger than `limit_bytes`.

    Raises:
        error: the file is missing, unreadable or too large.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            pieces, left = [], limit_bytes + 1  # in pieces: `read(n)` sets n bytes aside, however short the file is
            while left > 0 and (piece := file.read(min(left, 1 << 24))):
                pieces.append(piece)
                left -= len(piece)
            data = b"".join(pieces)
    except OSError as problem:
        raise error(f"cannot read: {problem.strerror or problem}", where=str(path), fix=fix) from problem
    if len(data) > limit_bytes:
        raise error(f"the file is larger than the {limit_bytes:,} bytes allowed here", where=str(path), fix=fix)
    return data
