"""Puts REST calls, sockets, page and guard together and serves them: `python -m phase8 dashboard`."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import socketio
import uvicorn
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import Receive, Scope, Send

from phase8.errors import ConfigError
from phase8.watch.server import page
from phase8.watch.server.app import MOST_JOBS, Dashboard, make_app
from phase8.watch.server.guard import API, Guard, is_loopback
from phase8.watch.server.hub import Hub
from phase8.watch.server.jobs import Jobs
from phase8.watch.server.library import Library, require_directory
from phase8.watch.server.settings import Project
from phase8.watch.server.sockets import attach, make_server
from phase8.watch.server.workers import Workers

PORT = 8008
MORE_PORTS = 20
TOKEN_VARIABLE = "PHASE8_DASHBOARD_TOKEN"
DATABASE = "dashboard.sqlite"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to serve.

    Beyond the loopback addresses there is always a token: the given one, or one made at the start.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    """None: 8008, or the next that is free."""
    runs: tuple[Path, ...] = (Path("outputs"), Path("multirun"), Path("studies"))
    """Directories to look for runs in; runs started from the page go to the first."""
    project: Path = Path(".")
    """Where run.py and conf/ are."""
    token: str | None = None
    allow_hosts: tuple[str, ...] = ()
    """Further names that the server answers to, such as that of a machine or a tunnel."""
    models: tuple[str, ...] = ()
    """Directories of models that may be started from the page, beside the embedded one."""
    most_jobs: int = MOST_JOBS
    page: Path | None = None
    """Another built page, for tests."""

    def __post_init__(self) -> None:
        if self.token is not None and len(self.token) < 16:
            raise ConfigError(
                "the token has fewer than 16 characters", where=TOKEN_VARIABLE, fix="leave it out, and one is made"
            )
        if not is_loopback(self.host) and self.token is None:
            object.__setattr__(self, "token", secrets.token_urlsafe(24))

    def hosts(self) -> list[str]:
        """Names in requests that are answered to."""
        own = [] if self.host in ("0.0.0.0", "::") else [self.host]
        if self.host in ("0.0.0.0", "::"):
            own = [socket.gethostname(), *_addresses()]
        return [*LOOPBACK, *own, *self.allow_hosts]


def _addresses() -> Iterable[str]:
    try:
        return {entry[4][0] for entry in socket.getaddrinfo(socket.gethostname(), None)}  # type: ignore[misc]
    except OSError:
        return ()


@dataclass
class Server:
    """Everything that one server consists of; `app` is its ASGI application."""

    options: Options
    why_no_page: str = "it was not asked for"
    app: Guard = field(init=False)
    hub: Hub = field(init=False)

    def __post_init__(self) -> None:
        options = self.options
        roots = [require_directory(options.runs[0]), *options.runs[1:]]
        jobs = Jobs(roots[0] / DATABASE)
        sio = make_server()
        self.hub = Hub(Library(roots, jobs), sio)
        attach(sio, self.hub, options.token)
        dashboard = Dashboard(
            hub=self.hub,
            project=Project(options.project.absolute(), options.models),
            workers=Workers(),
            token_required=options.token is not None,
            most_jobs=options.most_jobs,
        )
        rest = make_app(dashboard)
        directory = options.page or page.BUILT
        built = (directory / "index.html").is_file()
        shown = page.Page(directory=directory, html=True) if built else page.missing(self.why_no_page)
        packed = GZipMiddleware(rest, compresslevel=5)

        @asynccontextmanager
        async def lifespan(_: object) -> AsyncIterator[None]:
            await self.hub.start()
            yield
            await self.hub.stop()
            jobs.close()

        rest.router.lifespan_context = lifespan

        async def apart(scope: Scope, receive: Receive, send: Send) -> None:
            is_page = scope["type"] == "http" and not scope["path"].startswith(API)
            # What only reads is a whole answer and is compressed; a talk comes token by token and must not be held up.
            answer = packed if scope.get("method") == "GET" else rest
            await (shown if is_page else answer)(scope, receive, send)

        behind = socketio.ASGIApp(sio, other_asgi_app=apart)
        self.app = Guard(behind, hosts=options.hosts(), token=options.token)


def bind(host: str, port: int | None) -> socket.socket:
    """A listening socket: on the given port, else on the first free one from 8008 on.

    Raises:
        ConfigError: the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in [port] if port is not None else range(PORT, PORT + MORE_PORTS):
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, number))
            listening.listen(128)
        except OSError as error:
            listening.close()
            if port is not None or number == PORT + MORE_PORTS - 1:
                raise ConfigError(
                    f"cannot listen on {host} port {number}: {error.strerror or error}",
                    where="--host, --port",
                    fix="name another with --port",
                ) from error
            continue
        return listening
    raise AssertionError("unreachable")


def address(options: Options, port: int) -> str:
    """What to open in a browser."""
    host = "localhost" if options.host in ("0.0.0.0", "::", "127.0.0.1", "::1") else options.host
    if options.host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/" + (f"#token={options.token}" if options.token else "")


def serve(options: Options, *, build_page: bool = True) -> None:
    """Serves until it is interrupted; runs that were started from the page go on.

    Raises:
        Phase8Error: the port is taken, or a directory cannot be written.
    """
    why = ""
    if build_page and options.page is None and page.is_stale():
        try:
            page.build(lambda text: print(f"{text} ...", flush=True))
        except ConfigError as error:
            why = str(error)
            print(f"note: {error}", file=sys.stderr, flush=True)
    listening = bind(options.host, options.port)
    port = listening.getsockname()[1]
    server = Server(options, why_no_page=why)
    print(f"dashboard: {address(options, port)}", flush=True)
    print("Ctrl-C ends the server; runs that it started go on.", flush=True)
    config = uvicorn.Config(
        server.app, log_level="warning", access_log=False, lifespan="on", server_header=False,
        timeout_graceful_shutdown=2, ws_max_size=2**17, forwarded_allow_ips="",
    )  # fmt: skip
    os.environ.pop(TOKEN_VARIABLE, None)  # no run that is started here inherits it
    uvicorn.Server(config).run(sockets=[listening])
