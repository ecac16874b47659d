"""Socket.IO: a page looks at runs and is told what happens in them."""

from __future__ import annotations

from typing import Any

import socketio

from phase8.watch.server.guard import MAX_BODY_BYTES, same_token
from phase8.watch.server.hub import Hub

MOST_RUNS = 32
"""Runs that one page may look at."""


def make_server() -> socketio.AsyncServer:
    """A Socket.IO server that takes pages of its own origin only."""
    return socketio.AsyncServer(
        async_mode="asgi",
        max_http_buffer_size=MAX_BODY_BYTES,
        ping_interval=20,
        ping_timeout=20,
        logger=False,
        engineio_logger=False,
    )


def attach(sio: socketio.AsyncServer, hub: Hub, token: str | None) -> None:
    """Registers what a page may ask for on a socket."""
    looked_at: dict[str, set[str]] = {}

    @sio.event
    async def connect(sid: str, environ: dict[str, Any], auth: Any = None) -> None:
        given = auth.get("token") if isinstance(auth, dict) else None
        if not same_token(given if isinstance(given, str) else None, token):
            raise socketio.exceptions.ConnectionRefusedError("unauthorized")
        looked_at[sid] = set()
        hub.pages += 1
        await sio.enter_room(sid, "runs")

    @sio.event
    async def disconnect(sid: str, reason: Any = None) -> None:
        mine = looked_at.pop(sid, None)
        if mine is not None:
            hub.pages -= 1
        for run in mine or ():
            hub.leave(run)

    @sio.on("phase8:subscribe")
    async def subscribe(sid: str, data: Any = None) -> dict[str, Any]:
        asked = data if isinstance(data, dict) else {}
        run = hub.get(asked["run"]) if isinstance(asked.get("run"), str) else None
        after = asked.get("after")
        if run is None:
            return _error("there is no such run", "run", "take its number from the list of runs")
        if after is not None and (type(after) is not int or after < 0):
            return _error("`after` is no whole number from 0 on", "after", "leave it out to get everything")
        mine = looked_at.setdefault(sid, set())
        if run.id not in mine and len(mine) >= MOST_RUNS:
            return _error(f"a page may look at {MOST_RUNS} runs", "run", "unsubscribe from one")
        if run.id in mine:
            hub.leave(run.id)
        mine.add(run.id)
        return await hub.join(sid, run, after)

    @sio.on("phase8:unsubscribe")
    async def unsubscribe(sid: str, data: Any = None) -> dict[str, Any]:
        run = data.get("run") if isinstance(data, dict) else None
        if isinstance(run, str) and run in looked_at.get(sid, set()):
            looked_at[sid].remove(run)
            hub.leave(run)
            await sio.leave_room(sid, run)
        return {}

    @sio.on("*")
    async def unknown(event: str, sid: str, *data: Any) -> dict[str, Any]:
        return _error(f"there is no event {event[:80]!r}", "event", "phase8:subscribe, phase8:unsubscribe")


def _error(what: str, where: str, fix: str) -> dict[str, Any]:
    return {"error": {"what": what, "where": where, "fix": fix}}
