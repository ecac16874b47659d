"""The page's files: where they are, how they are built in a checkout, and how they are given out.

The page is a static export of `web/`. A wheel carries it; a checkout builds it at the first start, with npm. Scripts in
its HTML are allowed by their hash, so that nothing else can run in it. The build leaves `FILE.br` and `FILE.gz` beside
each file, and a browser that knows one of them gets that.
"""

from __future__ import annotations

import base64
import hashlib
import html
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from phase8.errors import ConfigError
from phase8.files import directory_swap

BUILT = Path(__file__).parent / "page"
SOURCE = Path(__file__).parents[3] / "web"
_INLINE = re.compile(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL)
BUILD_S = 900


def is_stale() -> bool:
    """Whether the page has to be built: it is not there, or its sources are newer."""
    index = BUILT / "index.html"
    if not index.is_file():
        return True
    if not (SOURCE / "package.json").is_file():
        return False
    named = ("package.json", "package-lock.json", "next.config.ts", "compress.ts")
    sources = [*(SOURCE / name for name in named), *(SOURCE / "src").rglob("*")]
    return any(path.stat().st_mtime > index.stat().st_mtime for path in sources if path.is_file())


def build(say: Callable[[str], None]) -> None:
    """Builds the page with npm and puts it where the server finds it.

    Raises:
        ConfigError: there are no sources, no npm, or the build fails; says what to do.
    """
    npm = shutil.which("npm")
    if not (SOURCE / "package.json").is_file():
        raise ConfigError(
            "the dashboard's page is neither built nor are its sources here",
            where=str(BUILT),
            fix="install a released wheel, which holds the page, or work in a checkout of the project",
        )
    if npm is None:
        raise ConfigError(
            "the dashboard's page is not built, and npm, which builds it, is not installed",
            where=str(SOURCE),
            fix="install Node.js 20 or newer with npm, then start again; or install a released wheel",
        )
    environment = os.environ | {"NEXT_TELEMETRY_DISABLED": "1"}
    for text, command in (
        ("installing what the page is built with (npm ci)", [npm, "ci", "--no-audit", "--no-fund"]),
        ("building the page (npm run build)", [npm, "run", "build"]),
    ):
        if command[1] == "ci" and (SOURCE / "node_modules").is_dir():
            continue
        say(text)
        try:
            done = subprocess.run(
                command, cwd=SOURCE, env=environment, capture_output=True, text=True, timeout=BUILD_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ConfigError(f"{' '.join(command[1:])} failed: {error}", where=str(SOURCE)) from error
        if done.returncode:
            last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
            raise ConfigError(
                f"{' '.join(['npm', *command[1:]])} failed:\n{last}", where=str(SOURCE), fix="run it there by hand"
            )
    with directory_swap(BUILT) as fresh:
        shutil.copytree(SOURCE / "out", fresh, dirs_exist_ok=True)


def policy(content: bytes) -> str:
    """The content security policy of an HTML file: its own inline scripts by hash, all else from this server only."""
    hashes = {base64.b64encode(hashlib.sha256(script).digest()).decode() for script in _INLINE.findall(content)}
    scripts = " ".join(["'self'", *(f"'sha256-{value}'" for value in sorted(hashes))])
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


ENCODINGS = {"br": ".br", "gzip": ".gz"}
"""Names in `Accept-Encoding`, the best first, and how a file that is compressed so ends."""


def accepted(header: str) -> set[str]:
    """The encodings that an `Accept-Encoding` header names: `gzip, br;q=0` -> {"gzip"}."""
    found = set()
    for entry in header.lower().split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        if not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters):
            found.add(name)
    return found


class Page(StaticFiles):
    """The built page. Files with a hash in their name may be kept for ever, HTML must be asked for anew."""

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """The file, compressed where the browser takes it and the build made it."""
        wanted = accepted(Headers(scope=scope).get("accept-encoding", ""))
        for name, ending in ENCODINGS.items():
            packed = Path(f"{full_path}{ending}")
            if name in wanted and packed.is_file():
                response = super().file_response(packed, packed.stat(), scope, status_code)
                response.headers["Content-Encoding"] = name
                break
        else:
            response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Vary"] = "Accept-Encoding"
        return response

    async def get_response(self, path: str, scope: Scope) -> Response:
        try:
            response = await super().get_response(path, scope)
        except HTTPException as error:
            response = await self._not_found(error.status_code)
        if "/_next/static/" in scope["path"]:
            response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        else:
            response.headers["Cache-Control"] = "no-cache"
        file = str(getattr(response, "path", "")).removesuffix(".br").removesuffix(".gz")
        if file.endswith(".html"):
            response.headers["Content-Security-Policy"] = policy(Path(file).read_bytes())
        return response

    async def _not_found(self, status: int) -> Response:
        """The export's own page for what is not there."""
        own = Path(str(self.directory)) / "404.html"
        if own.is_file():
            return FileResponse(own, status_code=404)
        return HTMLResponse("<!doctype html><title>Phase 8</title>There is no such page.", status_code=status)


def missing(why: str) -> HTMLResponse:
    """What stands in the page's place where it is not built."""
    body = (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Phase 8</title>"
        f"<body style='font:16px system-ui;max-width:44rem;margin:4rem auto;padding:0 1rem'><h1>Phase 8</h1>"
        f"<p>The dashboard's server is running, its page is not there:</p><pre>{html.escape(why)}</pre></body></html>"
    )
    return HTMLResponse(body, status_code=503)
