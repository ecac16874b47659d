"""Results kept by what they were made from, shared by runs, trials and processes; safe to delete at any time.

A result's name is a hash of everything that it depends on: settings, the model's and the texts' content, the suite, and
the source code that makes it. So nothing in here is ever out of date, and a study's second trial that differs in the
third stage finds the first two. Whoever needs a result that is not there makes it under a lock that others wait for;
the lock is the kernel's (`flock`) and dies with its process, so a killed one leaves nothing to clean up but a temporary
file. A file appears in one step or not at all.

    CACHE/encoded/3f2a....p8      kept results, by kind
    CACHE/sums/3f2a....p8         SHA-256 of a kept result and of what belongs to it; one that differs is made anew
    CACHE/locks/3f2a....lock      empty files
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from phase8.errors import Phase8Error
from phase8.files import CACHE, make_directory, write_atomic, writing

Result = TypeVar("Result")

PACKAGE = Path(__file__).parent


@cache
def code_version(*parts: str) -> str:
    """A hash of the source files of some parts of this package: `codecs`, `train`, ..."""
    digest = hashlib.sha256()
    for part in sorted(parts):
        place = PACKAGE / part
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]:
            digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def content_key(parts: Mapping[str, Any]) -> str:
    """32 hex digits that stand for these JSON values.

    Raises:
        TypeError: a value has no JSON form.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class ContentCache:
    """A directory of results.

    Args:
        directory: made when the first result is kept.
        enabled: False keeps nothing and finds nothing.
    """

    def __init__(self, directory: Path | str, *, enabled: bool = True) -> None:
        self.directory, self.enabled = Path(directory), enabled

    def get_or_make(
        self,
        kind: str,
        parts: Mapping[str, Any],
        *,
        read: Callable[[Path], Result],
        make: Callable[[], Result],
        write: Callable[[Path, Result], Any],
        suffix: str = "",
        found: Callable[[], Any] = lambda: None,
        beside: Path | None = None,
    ) -> Result:
        """The result for these parts: the kept one, or one that is made and kept now.

        Args:
            kind: a folder of the cache.
            parts: all that the result depends on, JSON values.
            read: raises `Phase8Error` where a kept file cannot be used; it is then made anew.
            write: writes the result to a path of the same directory.
            found: called where a kept result is taken.
            beside: a second file that `write` makes.

        Raises:
            OutputError: the cache cannot be written to.
        """
        if not self.enabled:
            return make()
        key = content_key(parts)
        path = self.directory / kind / f"{key}{suffix}"
        kept = self._read(path, beside, read)
        if kept is None:
            with self.lock(key):
                kept = self._read(path, beside, read)  # somebody else may have made it meanwhile
                if kept is None:
                    result = make()
                    self._keep(path, beside, result, write)
                    return result
        found()
        return kept[0]

    def _read(self, path: Path, beside: Path | None, read: Callable[[Path], Result]) -> tuple[Result] | None:
        if not path.exists():
            return None
        try:
            if self._sum_file(path).read_text(encoding="ascii", errors="replace").strip() != _sum(path, beside):
                return None
            return (read(path),)
        except (Phase8Error, OSError):
            return None  # damaged, or deleted at this moment: made anew and replaced

    def _sum_file(self, path: Path) -> Path:
        return self.directory / "sums" / f"{path.parent.name}-{path.name}"

    def _keep(self, path: Path, beside: Path | None, result: Result, write: Callable[[Path, Result], Any]) -> None:
        make_directory(path.parent, CACHE)
        with writing(path, CACHE):
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
            os.close(handle)
            temporary = Path(name)
            try:
                write(temporary, result)
                os.chmod(temporary, 0o644)
                make_directory(self.directory / "sums", CACHE)
                write_atomic(self._sum_file(path), _sum(temporary, beside) + "\n", CACHE)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Holds the lock of a key; waits for the process that has it, and takes it at once from one that died."""
        path = make_directory(self.directory / "locks", CACHE) / f"{key}.lock"
        with writing(path, CACHE):
            file = path.open("a")
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _sum(path: Path, beside: Path | None) -> str:
    """SHA-256 of a file, and of the one that belongs to it."""
    digest = hashlib.sha256()
    for part in (path,) if beside is None else (path, beside):
        digest.update(str(part.stat().st_size).encode() + b"\0")
        with part.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()
