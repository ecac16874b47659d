"""`dashboard=true` and `python -m phase8 dashboard`: a server in a process of its own."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from phase8.watch import wording
from phase8.watch.server.beside import dashboard_beside
from tests import invented_log
from tests.browser import launched, opened, page_directory
from tests.dashboard_server import REPOSITORY

TINY = (
    "dashboard=true", "experiment=quick", "benchmark_samples=4", "grokfast.iterations=0", "logger=none", "threads=1",
    "optimizer.held_out_sequences=2", "optimizer.calibration_sequences=8", "vptq.enabled=false", "hyper.enabled=false",
)  # fmt: skip


def ask(url: str) -> dict:
    with urllib.request.urlopen(f"{url}api/phase8/runs", timeout=120) as answer:
        return json.loads(answer.read())


def address_in(text: str) -> str | None:
    found = re.search(r"dashboard: (http://\S+/)", text)
    return found[1] if found else None


def wait(what, seconds: float = 60.0):
    end = time.monotonic() + seconds
    while (found := what()) is None:
        assert time.monotonic() < end
        time.sleep(0.2)
    return found


def no_build(monkeypatch, tmp_path) -> None:
    """The page is not what is tested: hides npm from the server."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


def test_the_server_is_there_while_the_run_is(tmp_path, monkeypatch, capfd):
    no_build(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    run = invented_log.write(tmp_path / "elsewhere" / "run")
    shown = ""
    with dashboard_beside(True, run):

        def said() -> str | None:
            nonlocal shown
            shown += capfd.readouterr().out
            return address_in(shown)

        url = wait(said)
        assert wait(lambda: [r["name"] for r in ask(url)["runs"]] or None) == ["run"]
    with pytest.raises(OSError):
        ask(url)


def test_nothing_is_served_where_it_was_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: 1 / 0)
    with dashboard_beside(False, tmp_path):
        pass


def test_the_command_serves_until_it_is_stopped(tmp_path, monkeypatch):
    no_build(monkeypatch, tmp_path)
    invented_log.write(tmp_path / "runs" / "a")
    said = tmp_path / "said"
    command = [sys.executable, "-m", "phase8", "dashboard", "--runs", str(tmp_path / "runs")]
    with said.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=tmp_path, env=os.environ.copy())
    try:
        url = wait(lambda: address_in(said.read_text()))
        assert wait(lambda: ask(url)["total"] or None) == 1
        assert Path(tmp_path / "runs" / "dashboard.sqlite").is_file()
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(60) in (0, 130)


def test_beyond_this_machine_the_address_holds_a_token(tmp_path, monkeypatch):
    no_build(monkeypatch, tmp_path)
    said = tmp_path / "said"
    command = [sys.executable, "-m", "phase8", "dashboard", "--host", "0.0.0.0", "--runs", str(tmp_path / "runs")]
    with said.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=tmp_path, env=os.environ.copy())
    try:
        line = wait(lambda: re.search(r"http://\S+:(\d+)/#token=(\S{24,})", said.read_text()))
        url = f"http://127.0.0.1:{line[1]}/api/phase8/runs"
        try:
            urllib.request.urlopen(url, timeout=120)
            raise AssertionError("it answered without a token")
        except urllib.error.HTTPError as error:
            assert error.code == 401
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {line[2]}"})
        assert urllib.request.urlopen(request, timeout=120).status == 200
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


@pytest.mark.parametrize("terminal", [True, False], ids=["in a terminal", "in a pipe"])
def test_a_run_with_its_dashboard_from_beginning_to_end(tmp_path, terminal):
    """The printed address shows the run while it works; both end, in a terminal the server after Ctrl-C."""
    page_directory()
    reading, writing = pty.openpty() if terminal else os.pipe()
    bare = {**os.environ, "PATH": str(tmp_path), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(REPOSITORY / "run.py"), *TINY, f"hydra.run.dir={tmp_path / 'outputs' / 'tiny'}"]
    run = subprocess.Popen(
        [*command, f"paths.cache_dir={tmp_path / 'cache'}"], cwd=tmp_path, env=bare, stdin=subprocess.DEVNULL,
        stdout=writing, stderr=subprocess.STDOUT,
    )  # fmt: skip
    os.close(writing)
    said = Said(reading)

    def while_it_works(what):
        def asked():
            assert run.poll() is None, said.text
            return what()

        return wait(asked, 300)

    try:
        url = while_it_works(lambda: address_in(said.text))
        found = while_it_works(lambda: next(iter(ask(url)["runs"]), None))
        assert found["name"] == "tiny" and found["source"] == "command line"
        with launched() as browser, opened(browser, f"{url}run/?id={found['run']}") as page:
            page.locator("[data-connection=connected]").wait_for()
            page.locator("h1").locator("xpath=preceding-sibling::p").get_by_text("Running").wait_for()
            first = int(page.locator("[data-next]").get_attribute("data-next"))
            page.locator("[data-part=result]").wait_for(timeout=300_000)
            result = json.loads((tmp_path / "outputs" / "tiny" / "result.json").read_text())
            assert int(page.locator("[data-next]").get_attribute("data-next")) > first, "nothing came while it was open"
            ratio = wording.times(result["metrics"]["total_compression_ratio"])
            assert page.locator("[data-fact=ratio] dd").inner_text() == ratio
            if terminal:
                while_it_works(lambda: "stays until Ctrl-C" in said.text or None)
                assert ask(url)["runs"][0]["state"] == "complete" and run.poll() is None
                run.send_signal(signal.SIGINT)
            assert run.wait(120) == 0, said.text
            page.locator("[data-connection=disconnected]").wait_for()
        with pytest.raises(OSError):
            ask(url)
        assert "Traceback" not in said.text
    finally:
        run.kill()
        run.wait()


class Said:
    """What a process has written so far."""

    def __init__(self, reading: int) -> None:
        self.text = ""
        self._reading = reading
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            while more := os.read(self._reading, 4096):
                self.text += more.decode(errors="replace")
        except OSError:  # a terminal whose other side is closed
            pass
