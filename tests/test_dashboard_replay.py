"""A finished run played again."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from test_dashboard_sockets import Viewer

from tests import invented_log
from tests.dashboard_server import served

LINES = len(list(invented_log.whole(Path())))


@pytest.fixture
def finished(tmp_path):
    """A server with one finished run, whose log took 4.8 s."""
    invented_log.write(tmp_path / "runs" / "done")
    with served(tmp_path / "runs") as server:
        yield server, server.only_run()


def test_a_replay_ends_as_its_run_did(finished):
    server, run = finished
    whole = server.ask(f"runs/{run}/events").json["events"]

    async def watch():
        viewer = Viewer(server.url)
        answer = server.ask(f"replay/{run}", "POST", {"speed": 0.25})
        assert answer.status == 201
        replay, summary = answer.json["job"], answer.json["summary"]
        assert summary["state"] == "running" and summary["source"] == "replay" and summary["replay_of"] == run
        server.ask(f"pause/{replay}", "POST", {})
        await viewer.open(replay)
        assert viewer.next < len(whole)  # not all at once
        server.ask(f"replay/{replay}", "PATCH", {"speed": 100})
        server.ask(f"resume/{replay}", "POST", {})
        await viewer.until(lambda: viewer.next == len(whole))
        await viewer.client.disconnect()
        return replay, viewer

    replay, viewer = asyncio.run(watch())
    kept = [event for event in viewer.events.values() if event["kind"] != "activity"]
    assert kept == [event for event in whole if event["kind"] != "activity"]
    one, other = (server.ask(f"status/{name}").json["summary"] for name in (run, replay))
    for name in ("state", "ratio", "core_retention", "level", "stages", "events"):
        assert one[name] == other[name]
    assert server.ask(f"export/{replay}?format=csv").status == 200


def test_gaps_are_shortened(tmp_path):
    directory = tmp_path / "runs" / "slow"
    line = invented_log.Lines()
    first = list(invented_log.head(line, directory))
    line.time += 1e6
    invented_log.write(directory, iter([*first, *invented_log.tail(line, 1.0, 1)]))
    with served(tmp_path / "runs") as server:
        run = server.only_run()
        replay = server.ask(f"replay/{run}", "POST", {"speed": 100, "longest_gap_s": 1}).json["job"]
        server.wait(f"status/{replay}", lambda answer: answer["summary"]["state"] == "complete")


def test_pause_resume_wind_and_speed(finished):
    server, run = finished
    replay = server.ask(f"replay/{run}", "POST", {"speed": 1}).json["job"]
    assert server.ask(f"pause/{replay}", "POST", {}).json["state"] == "paused"
    told = server.ask(f"runs/{replay}/events").json["next"]
    time.sleep(0.5)
    assert server.ask(f"runs/{replay}/events").json["next"] == told
    half = server.ask(f"replay/{replay}", "PATCH", {"position": 0.5}).json
    assert half["state"] == "paused" and half["events"] == round(0.5 * LINES)
    back = server.ask(f"replay/{replay}", "PATCH", {"position": 0.1}).json
    assert back["events"] == round(0.1 * LINES)
    assert server.ask(f"replay/{replay}", "PATCH", {"speed": 1000}).json["speed"] == 1000
    server.ask(f"resume/{replay}", "POST", {})
    server.wait(f"status/{replay}", lambda answer: answer["summary"]["state"] == "complete")


def test_winding_back_resets_the_page(finished):
    server, run = finished

    async def watch():
        viewer = Viewer(server.url)
        replay = server.ask(f"replay/{run}", "POST", {"speed": 1000}).json["job"]
        await viewer.open(replay)
        await viewer.until(lambda: viewer.next == LINES)
        server.ask(f"replay/{replay}", "PATCH", {"position": 0.25, "speed": 0.25})
        server.ask(f"pause/{replay}", "POST", {})
        await viewer.until(lambda: viewer.resets == 1)
        answer = await viewer.subscribe(replay)
        await viewer.client.disconnect()
        return answer

    answer = asyncio.run(watch())
    assert round(0.25 * LINES) <= answer["next"] < LINES and answer["run"]["state"] == "paused"


def test_abort_and_forget(finished):
    server, run = finished
    replay = server.ask(f"replay/{run}", "POST", {"speed": 1}).json["job"]
    assert server.ask(f"abort/{replay}", "POST", {"reason": "seen enough"}).json["state"] == "aborted"
    assert server.ask(f"status/{replay}").json["summary"]["reason"] == "seen enough"
    assert server.ask(f"replay/{replay}", "DELETE").status == 204
    assert server.ask(f"status/{replay}").status == 404
    assert (server.runs / "done" / "control.json").exists() is False  # the run itself was never asked for anything


def test_only_finished_runs_are_played(tmp_path):
    directory = tmp_path / "runs" / "a"
    invented_log.write(directory)
    with served(tmp_path / "runs") as server:
        run = server.only_run()
        replay = server.ask(f"replay/{run}", "POST", {"speed": 1000}).json["job"]
        server.wait(f"status/{replay}", lambda answer: answer["summary"]["state"] == "complete")
        assert server.ask(f"replay/{replay}", "POST", {}).status == 409
        assert server.ask(f"replay/{run}", "POST", {"speed": 0}).status == 422
        assert server.ask(f"replay/{run}", "PATCH", {"speed": 2}).status in (404, 422)
