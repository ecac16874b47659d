"""Follows the logs of the runs that somebody looks at or that are at work, and tells the pages what is new.

Every 40 ms the logs of the runs that somebody looks at are looked after (one `stat` each), every half second
those of all runs at work, and every two seconds the directories are searched for new runs. A run that has ended and
that nobody looks at costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import Counter
from typing import Any

import socketio

from phase8.watch.server.library import ENDED, Library, Run
from phase8.watch.server.replay import Replay
from phase8.watch.server.tail import Record, compacted

BEAT_S = 0.04
SEARCH_S = 2.0
SUMMARY_S = 0.5
"""Least time between two summaries of a run to the pages."""
BURST = 16
"""More events than this at once go as one message."""
REPLAYS = 20
REPLAY_KEPT_S = 3600.0
_KIND = re.compile(r"^[a-z_]{1,40}$")
_OWN = {"batch", "run_update", "reset", "subscribe", "unsubscribe"}
_log = logging.getLogger("phase8.dashboard")


class Hub:
    """Library, sockets and the beat between them."""

    def __init__(self, library: Library, sio: socketio.AsyncServer) -> None:
        self.library, self.sio = library, sio
        self.watchers: Counter[str] = Counter()
        """Pages by the run that they look at."""
        self.pages = 0
        """Pages that are connected."""
        self._locks: dict[str, asyncio.Lock] = {}
        self._told: dict[str, tuple[Any, ...]] = {}
        """What each run's summary was when it was told last."""
        self._at_work: list[Run] = []
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Reads what is there and begins to follow."""
        await asyncio.to_thread(self.library.scan)
        self._task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Ends following; runs go on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def get(self, run: str) -> Run | None:
        """The run with this number."""
        return self.library.runs.get(run)

    def lock(self, run: Run) -> asyncio.Lock:
        """Held while a run's events are told, so that a page that joins misses none and gets none too early."""
        return self._locks.setdefault(run.id, asyncio.Lock())

    # The beat

    async def _follow(self) -> None:
        searched = summarised = 0.0
        while True:
            begin = time.monotonic()
            try:
                if begin - searched >= SEARCH_S:
                    searched = begin
                    await self._search()
                for run in [run for number in list(self.watchers) if (run := self.get(number)) is not None]:
                    await self._look(run)
                if begin - summarised >= SUMMARY_S:
                    summarised = begin
                    for run in self._at_work:
                        await self._look(run)
                    if self.pages:
                        await self._tell_summaries()
            except Exception:  # a log that cannot be followed must not end the following of all others
                _log.exception("following the runs")
                await asyncio.sleep(SEARCH_S)
            beat = BEAT_S if self.watchers else SUMMARY_S
            await asyncio.sleep(max(0.0, beat - (time.monotonic() - begin)))

    async def _look(self, run: Run) -> None:
        if isinstance(run, Replay) or run.tail.grown():
            await self.advance(run)

    async def _search(self) -> None:
        def look() -> None:
            self.library.jobs.refresh()
            self.library.scan()
            for run in list(self.library.runs.values()):
                if run.live or run.tail.grown():
                    run.refresh()

        await asyncio.to_thread(look)
        self._at_work = [run for run in list(self.library.runs.values()) if run.live]
        now = time.monotonic()
        for run in list(self.library.runs.values()):
            if isinstance(run, Replay) and run.over and now - run.created > REPLAY_KEPT_S:
                self.drop(run)

    async def advance(self, run: Run) -> None:
        """Reads what a run's log has new and tells those who look at it."""
        async with self.lock(run):
            records, anew = run.advance()
            if anew:
                await self.sio.emit("phase8:reset", {"run": run.id}, room=run.id)
            elif records and self.watchers[run.id]:
                await self._tell(run, records)
        if any(record["kind"] in ("phase_complete", "failed") for record in records):
            run.refresh()

    async def _tell(self, run: Run, records: list[Record]) -> None:
        single = len(records) <= BURST and all(
            _KIND.match(record["kind"]) and record["kind"] not in _OWN for record in records
        )
        if single:
            for record in records:
                await self.sio.emit(f"phase8:{record['kind']}", {"run": run.id, **record}, room=run.id)
        else:
            await self.sio.emit("phase8:batch", {"run": run.id, "events": records}, room=run.id)

    async def _tell_summaries(self) -> None:
        for run in list(self.library.runs.values()):
            if self._mark(run) != self._told.get(run.id):
                await self.announce(run)

    def _mark(self, run: Run) -> tuple[Any, ...]:
        """Changes whenever the summary would."""
        return run.fold.events, run.state(), run.speed, run.live

    async def announce(self, run: Run) -> None:
        """Tells every page a run's summary."""
        self._told[run.id] = self._mark(run)
        await self.sio.emit("phase8:run_update", run.summary().model_dump(mode="json"), room="runs")

    # Pages

    async def join(self, sid: str, run: Run, after: int | None) -> dict[str, Any]:
        """Lets a page look at a run; returns what it has missed, the rest follows as it happens."""
        await self.advance(run)
        async with self.lock(run):
            records = await asyncio.to_thread(run.records)
            records = compacted(records) if after is None else [r for r in records if r["seq"] >= after]
            await self.sio.enter_room(sid, run.id)
            self.watchers[run.id] += 1
            return {"run": run.summary().model_dump(mode="json"), "events": records, "next": run.fold.events}

    def leave(self, run: str) -> None:
        """One page less looks at a run."""
        self.watchers[run] -= 1
        if self.watchers[run] <= 0:
            del self.watchers[run]

    # Replays

    def replays(self) -> int:
        """How many replays there are."""
        return sum(isinstance(run, Replay) for run in self.library.runs.values())

    def play(self, replay: Replay) -> None:
        """Takes in a replay."""
        self.library.runs[replay.id] = replay
        self._at_work.append(replay)

    async def wind(self, replay: Replay, position: float) -> None:
        """Sends a replay to another place; who looks at it begins anew."""
        async with self.lock(replay):
            replay.wind(position)
            replay.refresh()
            await self.sio.emit("phase8:reset", {"run": replay.id}, room=replay.id)

    def drop(self, replay: Run) -> None:
        """Forgets a replay."""
        for known in (self.library.runs, self._locks, self._told):
            known.pop(replay.id, None)


def is_over(run: Run) -> bool:
    """Whether nothing more will happen in a run."""
    return run.state() in ENDED
