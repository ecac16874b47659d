"""What needs a model: asked of a process of its own, so that the server stays small and quick.

account   `python -m phase8 inspect --json ARTIFACT`: where the bytes are
talk      `python -m phase8.runtime.side_by_side`: two models continue a prompt, a line of JSON for each token
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from phase8.errors import ArtifactError, Phase8Error

ACCOUNT_S = 120.0
TALK_S = 300.0
MOST_BYTES = 64 << 20
LINE_BYTES = 1 << 16


class Busy(Phase8Error):
    """Too many processes are at work for pages."""


class Workers:
    """Starts processes for pages, a few at a time.

    Args:
        most: processes at once.
    """

    def __init__(self, most: int = 2) -> None:
        self._free = asyncio.Semaphore(most)
        self._accounts: dict[tuple[str, int], dict[str, Any]] = {}

    async def account(self, artifact: Path) -> dict[str, Any]:
        """What `inspect --json` says of an artifact; kept as long as the artifact is the same.

        Raises:
            ArtifactError: it cannot be read.
        """
        try:
            key = str(artifact), (artifact / "model.safetensors").stat().st_mtime_ns
        except OSError as error:
            raise ArtifactError("the artifact is not there any more", where=artifact.name) from error
        if key not in self._accounts:
            async with self._free:
                process = await _start("phase8", "inspect", "--json", str(artifact), errors=asyncio.subprocess.PIPE)
                try:
                    output, errors = await asyncio.wait_for(process.communicate(), ACCOUNT_S)
                except TimeoutError as error:
                    raise ArtifactError("reading the artifact takes too long", where=artifact.name) from error
                finally:
                    await _end(process)
            if process.returncode != 0 or len(output) > MOST_BYTES:
                raise ArtifactError(_said(errors), where=artifact.name, fix="copy the artifact anew, or run again")
            self._accounts[key] = json.loads(output)
        return self._accounts[key]

    async def talk(self, artifact: Path, original: Path, request: dict[str, Any]) -> AsyncIterator[bytes]:
        """Lines of JSON, as `phase8.runtime.side_by_side` writes them; ends the process when nobody reads on.

        Raises:
            Busy: too many are talking.
        """
        if self._free.locked():
            raise Busy("too many are talking to models", where="talk", fix="try again in a moment")
        async with self._free:
            process = await _start("phase8.runtime.side_by_side", str(artifact), str(original))
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.close()
                async with asyncio.timeout(TALK_S):
                    while line := await process.stdout.readline():
                        yield line
            except (TimeoutError, ValueError, OSError) as error:
                what = "the models took too long" if isinstance(error, TimeoutError) else str(error)
                yield _line(kind="error", what=what, where=artifact.name, fix="ask for fewer tokens")
            finally:
                await _end(process)


def _said(errors: bytes) -> str:
    """What a command's error is, without where: that is a path of this machine."""
    for line in errors.decode(errors="replace").splitlines():
        if line.startswith("error: "):
            return line.removeprefix("error: ")[:2000]
    return "the artifact cannot be read"


def _line(**data: Any) -> bytes:
    return json.dumps(data).encode() + b"\n"


async def _start(module: str, *arguments: str, errors: int = asyncio.subprocess.DEVNULL) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=errors, limit=LINE_BYTES,
    )  # fmt: skip


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
        await process.wait()
