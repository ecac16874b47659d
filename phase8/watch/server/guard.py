"""Who may ask: every request and every socket passes here first.

    host     the name in the request is one that this server answers to (else a page elsewhere could point a name of its
             own at this machine and read what it likes)
    origin   a page may ask only the server that it came from
    header   what changes something carries `X-Phase8`, which no form and no foreign page can send
    token    where the server has one, every call but `health` carries it; compared in constant time
    size     no body is longer than 64 KiB

The page's own files hold nothing of any run and are given to all who reach the server.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

MAX_BODY_BYTES = 64 * 1024
API = "/api/"
HEALTH = "/api/phase8/health"
SOCKETS = "/socket.io"
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def same_token(given: str | None, token: str | None) -> bool:
    """Whether a token is the server's; takes as long whatever is given. Any is right where the server has none."""
    if token is None:
        return True
    return hmac.compare_digest((given or "").encode(), token.encode())


def bearer(header: str | None) -> str | None:
    """The token of an `Authorization: Bearer TOKEN` header."""
    kind, _, token = (header or "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else None


class Guard:
    """ASGI application around the others.

    Args:
        app: what is guarded.
        hosts: names and addresses that the server answers to, without ports.
        token: None asks for none.
    """

    def __init__(self, app: App, *, hosts: Iterable[str], token: str | None) -> None:
        self.app, self.token = app, token
        self.hosts = {host.lower().strip("[]") for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        problem = self._problem(scope, headers)
        if problem is None and scope["type"] == "http":
            await self.app(scope, _Bounded(receive), _with_headers(send))
        elif problem is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await _refuse(send, *problem)

    def _problem(self, scope: Scope, headers: MutableMapping[str, str]) -> tuple[int, str, str, str] | None:
        """Status, what, where and mend of a refusal; None lets it through."""
        path, method = scope["path"], scope.get("method", "GET")
        host = _name(headers.get("host", ""))
        if host not in self.hosts:
            return 421, f"this server does not answer to {host[:80]!r}", "Host", "start it with --allow-host NAME"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
            return 403, "a page from elsewhere may not ask this server", "Origin", "open the page that it serves"
        if not path.startswith((API, SOCKETS)):
            return None
        if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return 403, "a page from elsewhere may not ask this server", "Sec-Fetch-Site", "open its own page"
        if not path.startswith(API) or path == HEALTH:
            return None  # sockets show their token when they connect
        if not same_token(bearer(headers.get("authorization")), self.token):
            return 401, "the token is missing or wrong", "Authorization", "open the address that the server printed"
        if method not in SAFE_METHODS and "x-phase8" not in headers:
            return 403, "the header X-Phase8 is missing", "X-Phase8", "send X-Phase8: 1 with what changes something"
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            return 413, f"the body is longer than {MAX_BODY_BYTES:,} bytes", "Content-Length", "send less"
        return None


class _Bounded:
    """A body that breaks off where it is longer than announced and allowed."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._left = receive, MAX_BODY_BYTES

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                return {"type": "http.disconnect"}
        return message


def _name(host: str) -> str:
    """The host without its port: `localhost:8008` -> `localhost`, `[::1]:8008` -> `::1`."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *HEADERS]
        await send(message)

    return sending


async def _refuse(send: Send, status: int, what: str, where: str, fix: str) -> None:
    body = json.dumps({"error": {"what": what, "where": where, "fix": fix}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *HEADERS]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
