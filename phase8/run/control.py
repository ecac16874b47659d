"""Steering a run from outside: `RUN_DIR/control.json` says what somebody wishes, the run obeys at its next safe point.

    {"state": "pause", "reason": "the machine is needed"}      run | pause | abort

The file holds a state and not an order, so that it may be written twice. It is replaced as a whole (`write_control`)
and looked at between steps, iterations and batches, at most every 0.2 s and only where its time has changed: a look
costs some microseconds. A pause holds the run where it is, and nothing is lost; an abort ends it in order, with the
last artifact that passed as its answer.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from phase8.errors import Phase8Error, RunStopped
from phase8.events import EventLog, Log, Paused, Resumed
from phase8.files import read_bounded, write_atomic

CONTROL_FILE = "control.json"
STATES = ("run", "pause", "abort")
LOOK_INTERVAL_S = 0.2
MAX_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Wish:
    """What the control file says."""

    state: str = "run"
    reason: str = ""


def write_control(run_dir: Path | str, state: str, reason: str = "") -> Path:
    """Writes the control file of a run.

    Raises:
        ValueError: `state` is none of `run`, `pause`, `abort`.
        OutputError: the file cannot be written.
    """
    if state not in STATES:
        raise ValueError(f"{state!r} is none of {', '.join(STATES)}")
    return write_atomic(Path(run_dir) / CONTROL_FILE, json.dumps({"state": state, "reason": reason}) + "\n")


class Control:
    """Looks at the control file of a run, and obeys it."""

    def __init__(self, run_dir: Path | str, events: EventLog) -> None:
        self.path, self.events = Path(run_dir) / CONTROL_FILE, events
        self._next_look = 0.0
        self._stamp: tuple[int, int, int] | None = None
        self._wish = Wish()

    def forget(self) -> None:
        """Deletes what an earlier process was told."""
        self.path.unlink(missing_ok=True)

    def look(self, step: str, stage: str | None = None) -> None:
        """A safe point: returns at once, or after a pause.

        Raises:
            RunStopped: the run is to end.
        """
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_INTERVAL_S
        if self._read().state == "pause":
            self.hold(step, stage, self._wish.reason)
        if self._wish.state == "abort":
            raise RunStopped(self._wish.reason or "no reason given", by="control")

    def hold(self, step: str, stage: str | None, reason: str) -> None:
        """Waits until the file says `run` or `abort`."""
        begin = time.monotonic()
        self.events.emit(Paused(step=step, reason=reason), stage)
        while self._read().state == "pause":
            time.sleep(LOOK_INTERVAL_S)
        if self._wish.state != "abort":
            self.events.emit(Resumed(step=step, paused_s=time.monotonic() - begin), stage)

    def ask(self, step: str, stage: str, question: str) -> None:
        """Pauses by itself until somebody says `run` or `abort`.

        Raises:
            RunStopped: the answer is `abort`.
        """
        write_control(self.path.parent, "pause", question)
        self._next_look = 0.0
        self.look(step, stage)

    def _read(self) -> Wish:
        try:
            found = os.stat(self.path)
        except OSError:
            self._stamp, self._wish = None, Wish()
            return self._wish
        stamp = found.st_mtime_ns, found.st_ino, found.st_size
        if stamp != self._stamp:
            self._stamp = stamp
            self._wish = self._parsed()
        return self._wish

    def _parsed(self) -> Wish:
        try:
            content = json.loads(read_bounded(self.path, MAX_BYTES, error=Phase8Error))
            state, reason = content["state"], str(content.get("reason") or "")[:1000]
            if state not in STATES:
                raise ValueError(f"state is {str(state)[:40]!r}, known: {', '.join(STATES)}")
        except (Phase8Error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            text = f"{CONTROL_FILE} is not understood and changes nothing: {type(error).__name__}: {error}"
            self.events.emit(Log(level="warning", text=text))
            return Wish()
        return Wish(state, reason)
