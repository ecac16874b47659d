"""Signs of life: which trials of a study are being worked on, and which were left behind by a killed process.

Every process that is responsible for a trial (the one that asked for it, and the job that runs it) keeps a record on
the trial: its machine, its process and the time. On the same machine a process that is gone is noticed at once; on
another machine silence for `grace_s` means death. Optuna has heartbeats too, but only for `study.optimize` on a
relational database; these work with ask-and-tell on every storage.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

DRIVER, JOB = "driver", "job"


@cache
def machine() -> str:
    """Name of this machine and of its present boot; containers on one machine differ in their names."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        boot = str(int(psutil.boot_time()))
    return f"{socket.gethostname()}/{boot}"


def sign() -> dict[str, Any]:
    """A record of this process at this moment."""
    return {"machine": machine(), "pid": os.getpid(), "born": _born(os.getpid()), "time": time.time()}


def alive(record: Mapping[str, Any], *, grace_s: float, now: float | None = None) -> bool:
    """Whether the process that left this record still runs, as far as can be known from here."""
    if record.get("machine") == machine():
        return _born(int(record["pid"])) == record.get("born")
    return (time.time() if now is None else now) - float(record["time"]) <= grace_s


def _born(pid: int) -> float | None:
    """When a process began, to the hundredth of a second; None where there is none. Numbers of processes are reused."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return round(process.create_time(), 2)
    except (psutil.Error, ValueError):
        return None


class Heartbeat:
    """Renews this process's record on some trials until the block ends.

    Args:
        storage: the study's.
        role: `driver` or `job`.
    """

    def __init__(self, storage: Any, trial_ids: Iterable[int], role: str, interval_s: float) -> None:
        self._storage, self._ids, self._role, self._interval_s = storage, tuple(trial_ids), role, interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="study heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._renew()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._stop.wait(self._interval_s):
            with suppress(Exception):  # a database that is away for a minute is no reason to end a run of hours
                self._renew()

    def _renew(self) -> None:
        from optuna.exceptions import UpdateFinishedTrialError

        for trial_id in self._ids:
            with suppress(UpdateFinishedTrialError):
                self._storage.set_trial_user_attr(trial_id, self._role, sign())
