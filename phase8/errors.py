"""Errors that a user can act on: each says what is wrong, where, and how to mend it."""

from __future__ import annotations

from phase8.printable import line, printable


class Phase8Error(Exception):
    """Base of every error that this package raises on purpose.

    Args:
        what: what is wrong, one sentence.
        where: the file, setting or tensor it is about.
        fix: what the reader can do about it.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        # What is wrong may quote a file, and a file may hold anything.
        what, where, fix = printable(what), line(where), printable(fix)
        self.what, self.where, self.fix = what, where, fix
        lines = [what]
        if where:
            lines.append(f"  where: {where}")
        if fix:
            lines.append(f"  mend:  {fix}")
        super().__init__("\n".join(lines))


class ConfigError(Phase8Error):
    """A setting is misspelt, of the wrong type, out of range or at odds with another."""


class ModelError(Phase8Error):
    """A model or checkpoint cannot be read or used."""


class CodecError(Phase8Error):
    """A codec was given weights or settings that it cannot encode."""


class ArtifactError(Phase8Error):
    """A file is not a valid compressed artifact."""


class BenchmarkError(Phase8Error):
    """A benchmark's data or task cannot be used."""


class OutputError(Phase8Error):
    """A result cannot be written (disk full, directory read-only)."""


class DeviceError(Phase8Error):
    """A process of a training on several devices failed or is gone."""


class StudyError(Phase8Error):
    """A study or its storage cannot be used."""


def said(error: BaseException) -> str:
    """What somebody else's exception says: its type and its first line that is not empty, at most 200 characters."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


class RunStopped(BaseException):
    """Somebody ends the run in order; what is finished stays. No error, and never caught as one: hence its base.

    A listener of the event log may raise it, for instance a study that prunes a trial.

    Args:
        by: `control`, `signal` or `study`.
        reason: why, for people.
    """

    def __init__(self, reason: str, *, by: str) -> None:
        self.reason, self.by = reason, by
        super().__init__(reason)
