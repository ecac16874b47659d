"""A real run of the embedded model, started, paused, resumed and aborted from the dashboard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.dashboard_server import REPOSITORY, served

SMALL = {
    "benchmark_samples": 4,
    "skip_expert_benchmarks": True,
    "grokfast.iterations": 0,
    "optimizer.held_out_sequences": 2,
    "optimizer.calibration_sequences": 8,
    "hyper.enabled": False,
    "max_retries": 0,
    "logger.mode": "disabled",
    "threads": 1,
}


@pytest.mark.slow
def test_a_real_run_is_steered_and_keeps_what_it_has(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    with served(tmp_path / "runs") as server:
        answer = server.ask("start", "POST", {"experiment": "quick", "settings": SMALL})
        assert answer.status == 201, answer.body
        job = answer.json["job"]
        directory = Path(server.server.hub.library.jobs.all()[0].directory)

        def until(*states: str) -> dict:
            wanted = (*states, "failed", "lost")
            found = server.wait(f"status/{job}", lambda told: told["summary"]["state"] in wanted, 900)["summary"]
            assert found["state"] in states, found["error"]
            return found

        until("running")
        assert server.ask(f"pause/{job}", "POST", {}).status == 202
        until("paused")
        events = server.ask(f"runs/{job}/events").json
        assert events["events"][-1]["kind"] == "paused"
        assert server.ask(f"resume/{job}", "POST", {}).status == 202
        until("running")
        server.wait(
            f"status/{job}",
            lambda told: told["summary"]["state"] != "running" or told["summary"]["current"] not in (None, "baseline"),
            900,
        )
        assert server.ask(f"abort/{job}", "POST", {"reason": "seen enough"}).status == 202
        found = until("aborted")
        assert found["reason"] == "seen enough" and not found["steerable"]
        kinds = [event["kind"] for event in server.ask(f"runs/{job}/events").json["events"]]
        assert kinds.count("paused") == kinds.count("resumed") == kinds.count("aborted") == 1
        assert kinds[-1] == "phase_complete"
        result = json.loads((directory / "result.json").read_text())
        assert result["interrupted"] and result["stopped"] == "seen enough"
        assert server.ask(f"runs/{job}/result").json == result
        server.wait("runs", lambda _: server.server.hub.library.jobs.working() == 0)
        assert server.server.hub.library.jobs.all()[0].exit_code == 130
