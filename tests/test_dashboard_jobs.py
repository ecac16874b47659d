"""Runs that are started and steered from the page, with a stand-in for run.py; and a server that comes and goes."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.dashboard_server import REPOSITORY, Served, served


@pytest.fixture
def project(tmp_path) -> Path:
    """A directory with the project's real settings and a run.py that only pretends."""
    directory = tmp_path / "project"
    directory.mkdir()
    (directory / "conf").symlink_to(REPOSITORY / "conf")
    for name in ("pretended_run.py", "invented_log.py"):
        shutil.copy(REPOSITORY / "tests" / name, directory)
    (directory / "pretended_run.py").rename(directory / "run.py")
    return directory


@pytest.fixture
def server(tmp_path, project):
    with served(tmp_path / "runs", project=project) as server:
        yield server
        for job in server.server.hub.library.jobs.all():
            if job.ended is None and job.pid is not None:
                os.kill(job.pid, signal.SIGKILL)


def start(server: Served, **settings) -> str:
    answer = server.ask("start", "POST", {"settings": settings})
    assert answer.status == 201, answer.body
    assert answer.json["summary"]["source"] == "dashboard"
    return answer.json["job"]


def state(server: Served, job: str, *wanted: str) -> dict:
    return server.wait(f"status/{job}", lambda answer: answer["summary"]["state"] in wanted)["summary"]


def directory_of(server: Served, job: str) -> Path:
    return Path(next(row.directory for row in server.server.hub.library.jobs.all() if row.run == job))


def test_start_pause_resume_and_the_end(server):
    job = start(server, seed=0, max_retries=0)
    found = state(server, job, "running")
    assert found["current"] == "seedlm" and found["steerable"]
    assert server.ask(f"resume/{job}", "POST", {}).status == 409
    assert server.ask("start", "POST", {}).status == 409  # one at a time
    answer = server.ask(f"pause/{job}", "POST", {})
    assert answer.status == 202 and answer.json["state"] in ("pausing", "paused")
    assert state(server, job, "paused")["steerable"]
    (directory_of(server, job) / "go").touch()
    time.sleep(0.2)
    assert server.ask(f"status/{job}").json["summary"]["state"] == "paused"
    assert server.ask(f"resume/{job}", "POST", {}).status == 202
    found = state(server, job, "complete")
    assert not found["steerable"] and found["level"] == "vptq"
    for call in ("pause", "resume"):
        assert server.ask(f"{call}/{job}", "POST", {}).status == 409
    assert server.ask(f"abort/{job}", "POST", {"reason": "late"}).status == 409
    server.wait(f"status/{job}", lambda _: server.server.hub.library.jobs.working() == 0)
    assert server.server.hub.library.jobs.all()[0].exit_code == 0


def test_abort_carries_its_reason(server):
    job = start(server)
    state(server, job, "running")
    assert server.ask(f"abort/{job}", "POST", {}).status == 422  # a reason is needed
    assert server.ask(f"abort/{job}", "POST", {"reason": ""}).status == 422
    assert server.ask(f"abort/{job}", "POST", {"reason": 'too "slow"\n{}'}).status == 202
    assert state(server, job, "aborted")["reason"] == 'too "slow"\n{}'


def test_a_paused_run_can_be_aborted(server):
    job = start(server)
    state(server, job, "running")
    server.ask(f"pause/{job}", "POST", {})
    state(server, job, "paused")
    assert server.ask(f"abort/{job}", "POST", {"reason": "enough"}).status == 202
    assert state(server, job, "aborted")["reason"] == "enough"


def test_a_run_that_ends_before_its_first_event_says_why(server):
    job = start(server, seed=1)
    found = state(server, job, "failed")
    assert "nothing works today" in found["error"]["what"]


def test_a_run_that_tells_its_error(server):
    job = start(server, seed=2)
    assert state(server, job, "failed")["error"] == {
        "what": "the model is gone", "where": "model", "fix": "bring it back"
    }  # fmt: skip


def test_a_killed_run_is_lost_or_failed(server):
    job = start(server)
    state(server, job, "running")
    os.kill(server.server.hub.library.jobs.all()[0].pid, signal.SIGKILL)
    assert not state(server, job, "failed", "lost")["steerable"]


def test_a_server_that_starts_again_goes_on(tmp_path, project):
    with served(tmp_path / "runs", project=project) as first:
        job = start(first)
        state(first, job, "running")
        first.ask(f"pause/{job}", "POST", {})
        state(first, job, "paused")
    with served(tmp_path / "runs", project=project) as second:
        assert state(second, job, "paused")["source"] == "dashboard"
        assert second.ask("start", "POST", {}).status == 409  # it is still at work
        (directory_of(second, job) / "go").touch()
        second.ask(f"resume/{job}", "POST", {})
        state(second, job, "complete")
        second.wait("runs", lambda _: second.server.hub.library.jobs.working() == 0)
    with served(tmp_path / "runs", project=project) as third:
        assert third.ask("runs").json["runs"][0]["state"] == "complete"
        assert third.ask("runs").json["runs"][0]["source"] == "dashboard"


def test_a_process_with_the_same_number_is_not_taken_for_the_job(tmp_path, project):
    with served(tmp_path / "runs", project=project) as server:
        jobs = server.server.hub.library.jobs
        jobs._connection.execute(
            "insert into jobs values ('0123456789abcdef', ?, '[]', ?, 1.0, 1.0, null, null)",
            (str(tmp_path), os.getpid()),
        )
        jobs.refresh()  # if the server, which looks every two seconds, was not there before
        (job,) = jobs.all()
        assert job.run == "0123456789abcdef" and job.ended is not None


def test_without_run_py_nothing_can_be_started(tmp_path):
    with served(tmp_path / "runs", project=tmp_path) as server:
        assert server.ask("settings").json["available"] is False
        answer = server.ask("start", "POST", {})
        assert answer.status == 422 and "run.py" in answer.json["error"]["what"]


def test_the_token_does_not_reach_the_run(tmp_path, project, monkeypatch):
    monkeypatch.setenv("PHASE8_DASHBOARD_TOKEN", "a-token-of-some-length")
    (project / "run.py").write_text(
        "import os, sys\nsys.exit('token' if 'PHASE8_DASHBOARD_TOKEN' in os.environ else 'none')"
    )
    with served(tmp_path / "runs", project=project) as server:
        job = start(server)
        assert state(server, job, "failed")["error"]["what"] == "none"
