"""A finished run played again from its event log alone, at any speed: for demonstrations, and to try the page.

A replay is a run like any other: it stands in the list, tells its events when they are due, and can be paused, resumed
and aborted. Example: speed 10 and a longest gap of 2 s tell an event that came 30 s after the last one 0.2 s after it.
"""

from __future__ import annotations

import secrets
import time
from bisect import bisect_right
from itertools import pairwise

from phase8.watch.server.fold import Fold
from phase8.watch.server.library import Run
from phase8.watch.server.schema import RunState, RunSummary
from phase8.watch.server.tail import Record


class Replay(Run):
    """A run that tells another one's events again.

    Args:
        origin: the run whose log is played.
        speed: seconds of the log in one second.
        longest_gap_s: gaps between two events are shortened to this before the speed counts.
    """

    def __init__(self, origin: Run, *, speed: float, longest_gap_s: float) -> None:
        super().__init__(f"replay-{secrets.token_hex(6)}", origin.directory, f"{origin.name} (replay)", source="replay")
        self.replay_of, self.speed = origin.id, speed
        self._all = origin.records()
        gaps = [min(max(0.0, later["time"] - before["time"]), longest_gap_s) for before, later in pairwise(self._all)]
        self._due_s = [0.0]
        for gap in gaps:
            self._due_s.append(self._due_s[-1] + gap)
        self._told = 0
        self._clock_s, self._looked = 0.0, time.monotonic()
        self._held = False
        self._stopped: str | None = None
        self.created = time.monotonic()

    def advance(self) -> tuple[list[Record], bool]:
        """The events that are due now."""
        now = time.monotonic()
        if not self._held and self._stopped is None:
            self._clock_s += (now - self._looked) * (self.speed or 1.0)
        self._looked = now
        return self._tell(bisect_right(self._due_s, self._clock_s)), False

    def _tell(self, count: int) -> list[Record]:
        due = self._all[self._told : count]
        for record in due:
            self.fold.feed(record)
        self._told = max(self._told, min(count, len(self._all)))
        return due

    def wind(self, position: float) -> None:
        """Goes to a share of the events, 0 to 1, without telling those between one by one."""
        count = round(position * len(self._all))
        self._clock_s = self._due_s[min(count, len(self._due_s) - 1)] if count else 0.0
        self._told, self.fold = 0, Fold()
        self._tell(count)

    @property
    def over(self) -> bool:
        """Whether every event is told, or it was aborted."""
        return self._stopped is not None or self._told >= len(self._all)

    def refresh(self) -> None:
        self.live = not self.over

    def wish(self) -> str:
        return "abort" if self._stopped is not None else "pause" if self._held else "run"

    def ask(self, state: str, reason: str = "") -> None:
        """Obeys at once."""
        self.advance()
        if state == "abort":
            self._stopped = reason
        else:
            self._held = state == "pause"

    def state(self) -> RunState:
        if self._stopped is not None:
            return "aborted"
        if self._told >= len(self._all):
            self.live = False
            return super().state()
        return "paused" if self._held else "running"

    def summary(self) -> RunSummary:
        summary = super().summary()
        if self._stopped is not None:
            summary.reason = self._stopped
        return summary

    def records(self) -> list[Record]:
        return self._all[: self._told]
