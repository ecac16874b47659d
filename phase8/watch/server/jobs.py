"""Runs that were started from the page: a row in SQLite each, a process of its own each.

The process outlives the server: a server that starts again finds its jobs in the table and their processes by number
and time of birth (numbers are used again). What a job has done stands in its run's event log, never here.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from phase8.errors import OutputError

CONSOLE_FILE = "console.log"
"""In the run's directory: what the process printed."""
_TABLE = """
create table if not exists jobs (
    run text primary key, directory text not null, command text not null, pid integer, born real,
    started real not null, ended real, exit_code integer
)
"""
_HIDDEN = ("PHASE8_DASHBOARD_TOKEN",)
"""Variables that a run has no use for."""


@dataclass(frozen=True, slots=True)
class Job:
    """A started run. `exit_code` is None while it works, and where it ended while no server was there to see it."""

    run: str
    directory: str
    command: tuple[str, ...]
    pid: int | None
    born: float | None
    started: float
    ended: float | None
    exit_code: int | None


class Jobs:
    """The table of jobs and the processes behind it.

    Args:
        database: the SQLite file; its directory must exist.

    Raises:
        OutputError: the file is no database or cannot be written.
    """

    def __init__(self, database: Path) -> None:
        self._lock = threading.Lock()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        try:
            self._connection = sqlite3.connect(database, check_same_thread=False, isolation_level=None)
            self._connection.execute("pragma journal_mode=wal")
            self._connection.execute(_TABLE)
        except sqlite3.Error as error:
            raise OutputError(
                f"the table of jobs cannot be opened: {error}", where=str(database), fix="move the file away"
            ) from error

    def close(self) -> None:
        """Closes the database; the processes go on."""
        with self._lock:
            self._connection.close()

    def start(self, run: str, directory: Path, command: Sequence[str], *, cwd: Path) -> Job:
        """Starts a process and notes it; its output goes to `console.log` in the run's directory.

        Raises:
            OutputError: the directory cannot be written, or the program cannot be started.
        """
        environment = {name: value for name, value in os.environ.items() if name not in _HIDDEN}
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with (directory / CONSOLE_FILE).open("wb") as console:
                child = subprocess.Popen(
                    list(command),
                    cwd=cwd,
                    env=environment | {"PYTHONUNBUFFERED": "1"},
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C on the server is not meant for the run
                )
        except OSError as error:
            raise OutputError(f"the run cannot be started: {error}", where=str(directory)) from error
        job = Job(run, str(directory), tuple(command), child.pid, _born(child.pid), time.time(), None, None)
        with self._lock:
            self._children[run] = child
            self._connection.execute(
                "insert into jobs values (?, ?, ?, ?, ?, ?, null, null)",
                (job.run, job.directory, json.dumps(job.command), job.pid, job.born, job.started),
            )
        return job

    def all(self) -> list[Job]:
        """Every job, the newest first."""
        with self._lock:
            rows = self._connection.execute("select * from jobs order by started desc, rowid desc").fetchall()
        return [Job(row[0], row[1], tuple(json.loads(row[2])), *row[3:]) for row in rows]

    def refresh(self) -> list[Job]:
        """Notes which jobs have ended since the last call, and returns those."""
        over = []
        for job in self.all():
            if job.ended is not None:
                continue
            child = self._children.get(job.run)
            code = child.poll() if child is not None else None
            if (child is not None and code is None) or (child is None and _is(job.pid, job.born)):
                continue
            self._children.pop(job.run, None)
            with self._lock:
                self._connection.execute(
                    "update jobs set ended = ?, exit_code = ? where run = ?", (time.time(), code, job.run)
                )
            over.append(job)
        return over

    def working(self) -> int:
        """How many have not ended."""
        return sum(job.ended is None for job in self.all())


def _born(pid: int) -> float | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def _is(pid: int | None, born: float | None) -> bool:
    """Whether the process with this number is still the one that was born then."""
    if pid is None or born is None:
        return False
    now = _born(pid)
    return now is not None and abs(now - born) < 1.0


def console_end(directory: Path, limit: int = 2000) -> str:
    """The last lines that a process printed, for a run that ended without a word in its log."""
    try:
        with (directory / CONSOLE_FILE).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - limit))
            return file.read(limit).decode(errors="replace").strip()
    except OSError:
        return ""
