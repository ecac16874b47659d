"""The dashboard's sockets: a page sees what happens, whenever it comes and however often it is cut off."""

from __future__ import annotations

import asyncio
import os
import time

import pytest
import socketio

from tests import invented_log
from tests.dashboard_server import served


class Viewer:
    """What a page does: subscribes, folds what comes in order, and keeps what it was told."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url, self.token = url, token
        self.client = socketio.AsyncClient(reconnection=False)
        self.events: dict[int, dict] = {}
        self.next, self.order, self.updates, self.resets = 0, [], [], 0
        self.came = asyncio.Event()
        self.client.on("*", self._any)

    async def _any(self, name: str, data: dict) -> None:
        if name == "phase8:run_update":
            self.updates.append(data)
        elif name == "phase8:reset":
            self.resets += 1
        elif name == "phase8:batch":
            for event in data["events"]:
                self._take(event)
        else:
            assert name == f"phase8:{data['kind']}"
            self._take({key: value for key, value in data.items() if key != "run"})
        self.came.set()

    def _take(self, event: dict) -> None:
        self.order.append(event["seq"])
        if event["seq"] >= self.next:
            self.events[event["seq"]] = event
            self.next = event["seq"] + 1

    async def open(self, run: str, after: int | None = None) -> dict:
        await self.client.connect(self.url, transports=["websocket"], auth={"token": self.token})
        return await self.subscribe(run, after)

    async def subscribe(self, run: str, after: int | None = None) -> dict:
        asked = {"run": run} if after is None else {"run": run, "after": after}
        answer = await self.client.call("phase8:subscribe", asked, timeout=60)
        for event in answer.get("events", []):
            self._take(event)
        self.next = max(self.next, answer.get("next", 0))
        return answer

    async def until(self, condition, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            self.came.clear()
            left = end - time.monotonic()
            assert left > 0, "nothing came"
            await asyncio.wait_for(self.came.wait(), left)


@pytest.fixture
def growing(tmp_path):
    """A server, and a run of which only the baseline is written; `append` writes more."""
    directory = tmp_path / "runs" / "growing"
    lines = list(invented_log.whole(directory))
    invented_log.write(directory, iter(lines[:10]))

    def append(start: int, end: int) -> None:
        with (directory / "events.jsonl").open("a") as file:
            file.write("".join(lines[start:end]))

    with served(tmp_path / "runs") as server:
        yield server, lines, append


def test_a_page_that_comes_late_and_one_that_was_there_know_the_same(growing):
    server, lines, append = growing
    run = server.only_run()

    async def watch():
        early, late = Viewer(server.url), Viewer(server.url)
        first = await early.open(run)
        assert first["next"] == 10 and first["run"]["run"] == run
        append(10, 40)
        await early.until(lambda: early.next == 40)
        append(40, len(lines))
        await early.until(lambda: early.next == len(lines))
        await late.open(run)
        assert late.next == len(lines)
        await early.until(lambda: bool(early.updates) and early.updates[-1]["state"] == "complete")
        for viewer in (early, late):
            await viewer.client.disconnect()
        return early, late

    early, late = asyncio.run(watch())
    assert early.order == sorted(early.order)
    kept = {seq: event for seq, event in early.events.items() if event["kind"] != "activity"}
    assert kept == {seq: event for seq, event in late.events.items() if event["kind"] != "activity"}
    assert len(kept) + sum('"activity"' in line for line in lines) == len(lines)


def test_a_page_that_was_cut_off_gets_what_it_missed(growing):
    server, lines, append = growing
    run = server.only_run()

    async def watch():
        viewer = Viewer(server.url)
        await viewer.open(run)
        await viewer.client.disconnect()
        append(10, 30)
        again = Viewer(server.url)
        answer = await again.open(run, after=10)
        await again.client.disconnect()
        return answer

    answer = asyncio.run(watch())
    assert [event["seq"] for event in answer["events"]] == list(range(10, 30)) and answer["next"] == 30


def test_half_a_line_waits_for_its_other_half(growing):
    server, lines, _ = growing
    path = server.runs / "growing" / "events.jsonl"
    run = server.only_run()

    async def watch():
        viewer = Viewer(server.url)
        await viewer.open(run)
        with path.open("a") as file:
            file.write(lines[10][:20])
            file.flush()
            os.fsync(file.fileno())
            await asyncio.sleep(0.2)
            assert viewer.next == 10
            file.write(lines[10][20:])
        await viewer.until(lambda: viewer.next == 11)
        await viewer.client.disconnect()

    asyncio.run(watch())


def test_ten_thousand_events_arrive_whole_and_in_order(growing):
    server, _, _ = growing
    path = server.runs / "growing" / "events.jsonl"
    run = server.only_run()
    line = invented_log.Lines()

    async def watch():
        viewer = Viewer(server.url)
        await viewer.open(run)
        with path.open("a") as file:
            for count in range(10_000):
                file.write(line("log", "seedlm", level="info", text=str(count)))
        await viewer.until(lambda: viewer.next == 10_010, 60)
        await viewer.client.disconnect()
        return viewer

    viewer = asyncio.run(watch())
    assert [event["data"]["text"] for event in viewer.events.values() if event["kind"] == "log"] == [
        str(count) for count in range(10_000)
    ]


def test_a_log_that_was_replaced_is_read_anew(growing):
    server, lines, _ = growing
    path = server.runs / "growing" / "events.jsonl"
    run = server.only_run()

    async def watch():
        viewer = Viewer(server.url)
        await viewer.open(run)
        other = path.with_suffix(".new")
        other.write_text("".join(lines[:3]))
        os.replace(other, path)
        await viewer.until(lambda: viewer.resets == 1)
        answer = await viewer.subscribe(run)
        assert answer["next"] == 3
        await viewer.client.disconnect()

    asyncio.run(watch())


def test_a_log_with_strange_kinds_harms_nobody(growing):
    server, _, _ = growing
    path = server.runs / "growing" / "events.jsonl"
    run = server.only_run()
    line = invented_log.Lines()

    async def watch():
        viewer = Viewer(server.url)
        await viewer.open(run)
        with path.open("a") as file:
            file.write(line("reset") + "nonsense\n" + line("run_update", "x" * 50) + line("../../etc", None))
        await viewer.until(lambda: viewer.next == 14)
        assert viewer.resets == 0 and [viewer.events[seq]["kind"] for seq in (10, 12, 13)] == [
            "reset", "run_update", "../../etc"
        ]  # fmt: skip
        await viewer.client.disconnect()

    asyncio.run(watch())


@pytest.mark.parametrize(
    "asked",
    [None, 3, "text", {}, {"run": "0" * 16}, {"run": ["a"]}, {"run": "../../etc/passwd"}, {"run": "x" * 40_000}],
)
def test_nonsense_is_answered_with_an_error(growing, asked):
    server, _, _ = growing

    async def ask():
        client = socketio.AsyncClient(reconnection=False)
        await client.connect(server.url, transports=["websocket"])
        answer = await client.call("phase8:subscribe", asked, timeout=60)
        strange = await client.call("phase8:steal", {}, timeout=60)
        await client.disconnect()
        return answer, strange

    answer, strange = asyncio.run(ask())
    assert answer["error"]["what"] and strange["error"]["fix"]


def test_after_must_be_a_line_number(growing):
    server, _, _ = growing
    run = server.only_run()

    async def ask():
        viewer = Viewer(server.url)
        answers = [await viewer.open(run, after=-1)]
        for after in ("3", 1.5, True):
            answers.append(await viewer.subscribe(run, after))
        await viewer.client.disconnect()
        return answers

    assert all(answer["error"]["where"] == "after" for answer in asyncio.run(ask()))


def test_nothing_more_comes_after_unsubscribing(growing):
    server, _, append = growing
    run = server.only_run()

    async def watch():
        viewer, other = Viewer(server.url), Viewer(server.url)
        await viewer.open(run)
        await other.open(run)
        assert await viewer.client.call("phase8:unsubscribe", {"run": run}, timeout=60) == {}
        append(10, 20)
        await other.until(lambda: other.next == 20)
        assert viewer.next == 10
        assert server.server.hub.watchers[run] == 1
        for one in (viewer, other):
            await one.client.disconnect()

    asyncio.run(watch())
    end = time.monotonic() + 60
    while server.server.hub.watchers and time.monotonic() < end:
        time.sleep(0.05)
    assert not server.server.hub.watchers
