"""A dashboard that really listens, for tests of calls, sockets and page."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from phase8.watch.server.serve import Options, Server, bind

REPOSITORY = Path(__file__).parent.parent


@dataclass
class Answer:
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Served:
    """A server under test.

    `options.runs[0]` is where its runs are.
    """

    server: Server
    url: str
    options: Options

    @property
    def runs(self) -> Path:
        return self.options.runs[0]

    def ask(self, path: str, method: str = "GET", body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """One request, with the headers that the page sends; `headers` overrides them, None leaves one out."""
        sent = {"X-Phase8": "1", "Content-Type": "application/json"}
        if self.options.token:
            sent["Authorization"] = f"Bearer {self.options.token}"
        sent = {name: value for name, value in {**sent, **(headers or {})}.items() if value is not None}
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        full = f"{self.url}{path}" if path.startswith("/") else f"{self.url}/api/phase8/{path}"
        request = urllib.request.Request(full, data=data, headers=sent, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return Answer(response.status, response.headers, response.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.headers, error.read())

    def wait(self, path: str, until: Any, seconds: float = 120.0) -> Any:
        """Asks until `until(answer)` is true; fails after some time."""
        end = time.monotonic() + seconds
        while True:
            answer = self.ask(path)
            if answer.status == 200 and until(answer.json):
                return answer.json
            assert time.monotonic() < end, f"{path}: {answer.status} {answer.body[:2000]!r}"
            time.sleep(0.1)

    def only_run(self) -> str:
        """The number of the one run that there is."""
        found = self.wait("runs", lambda answer: answer["total"] == 1)
        return found["runs"][0]["run"]


@contextmanager
def served(runs: Path, **options: Any) -> Iterator[Served]:
    """Serves the runs below a directory on a port of the loopback address, by default one that is free."""
    chosen = Options(runs=(runs,), **{"project": REPOSITORY, "port": 0, **options})
    listening = bind("127.0.0.1", chosen.port)
    server = Server(chosen)
    config = uvicorn.Config(server.app, log_level="warning", lifespan="on", timeout_graceful_shutdown=1)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        end = time.monotonic() + 30
        while not running.started:
            assert thread.is_alive() and time.monotonic() < end, "the server did not start"
            time.sleep(0.02)
        yield Served(server, f"http://127.0.0.1:{listening.getsockname()[1]}", chosen)
    finally:
        running.should_exit = True
        thread.join(15)
