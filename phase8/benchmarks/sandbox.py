"""Runs programs that a model has written, and says which of them passed their tests.

A program is one string: the given signature, what the model added, and the tests (`assert` lines) at the end. It passes
if it runs to its end without an exception, within its time. `sandbox_server.py` is the child process that runs them: it
is started with the first program and kept, so that each costs one fork.

    run_tests_batch(["assert 1 + 1 == 2", "assert 1 + 1 == 3", "while True: pass"], timeout_s=1.0)
    # [True, False, False]
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

from phase8.errors import BenchmarkError

SERVER = Path(__file__).with_name("sandbox_server.py")
GRACE_S = 10.0
"""How long after a program's time-out the server may take to answer before it counts as dead."""


class Sandbox:
    """A child process that runs programs one after another, each in a fork of its own, under limits.

    Args:
        namespaces: ask the kernel for an own process space, no network and a read-only file system, where it may.

    Raises:
        BenchmarkError: this system cannot fork, or the child process cannot be started, or fails an empty program.
    """

    def __init__(self, *, namespaces: bool = True) -> None:
        if not hasattr(os, "fork"):
            raise BenchmarkError(
                "generated code cannot be run safely on this system: it has no fork",
                where=sys.platform,
                fix="run on Linux or macOS (on Windows: in WSL), or leave the code benchmarks out",
            )
        self.isolation: tuple[str, ...] = ()
        """What the system lets this sandbox enforce, in words."""
        self._namespaces = namespaces
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._start()
        if not self.run("", GRACE_S):
            self.close()
            raise BenchmarkError(
                "the sandbox fails even an empty program, so every score of generated code would be 0",
                where=f"limits and change of user in {SERVER.name}",
                fix="run as an ordinary user, or a root that may become another one; or leave the code benchmarks out",
            )

    def run(self, program: str, timeout_s: float = 5.0) -> bool:
        """Whether a program ran to its end within `timeout_s` seconds of wall-clock time."""
        # A lone surrogate cannot be encoded and is no Python; it becomes a character that is not either.
        text = program.encode("utf-8", "replace").decode()
        with self._lock:
            if self._server is None:
                self._start()
            try:
                self._server.stdin.write(json.dumps([timeout_s, text]).encode() + b"\n")
                self._server.stdin.flush()
                answer = self._read(1, timeout_s + GRACE_S)
            except BrokenPipeError:
                answer = b""
            except BaseException:  # Ctrl-C: the answer still to come must not be taken for the next program's
                self.close()
                raise
            if not answer:  # the server died under this program, or hangs: the next one gets a new server
                self.close()
            return answer == b"1"

    def close(self) -> None:
        """Ends the child process, and whatever it has started."""
        if self._server is not None:
            _end(self._server)
            self._finalizer.detach()
            self._scratch.cleanup()
            self._server = None

    def belongs_here(self) -> bool:
        """False in a process forked after the start: two processes must not share one server."""
        return self._owner == os.getpid()

    def _start(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="phase8-sandbox-", ignore_cleanup_errors=True)
        os.chmod(self._scratch.name, 0o711)
        self._server = subprocess.Popen(
            [sys.executable, "-I", "-S", str(SERVER), *(["namespaces"] if self._namespaces else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"LC_ALL": "C.UTF-8"},
            cwd=self._scratch.name,
            start_new_session=True,
        )
        self._finalizer = weakref.finalize(self, _end, self._server)
        line = b""
        while not line.endswith(b"\n"):
            piece = self._read(4096, GRACE_S)
            if not piece:
                _end(self._server)
                problem = self._server.stderr.read().decode(errors="replace").strip()[-300:]
                raise BenchmarkError(
                    f"the sandbox did not start: {problem or 'no message'}",
                    where=str(SERVER),
                    fix="check that this Python can be started as a child process",
                )
            line += piece
        self.isolation = tuple(json.loads(line))

    def _read(self, size: int, wait_s: float) -> bytes:
        """What the server has written, or nothing if it does not write in time or is gone."""
        handle = self._server.stdout.fileno()
        return os.read(handle, size) if select.select([handle], [], [], wait_s)[0] else b""


_shared: Sandbox | None = None


def shared_sandbox() -> Sandbox:
    """The sandbox of this process, started when first asked for."""
    global _shared
    if _shared is None or not _shared.belongs_here():
        _shared = Sandbox()
    return _shared


def run_tests(program: str, timeout_s: float = 5.0) -> bool:
    """Whether a program, its tests included, ran to its end within `timeout_s` seconds.

    Raises:
        BenchmarkError: this system cannot run programs in a sandbox.
    """
    return shared_sandbox().run(program, timeout_s)


def run_tests_batch(programs: Sequence[str], timeout_s: float = 5.0) -> list[bool]:
    """One verdict per program; a crash, a time-out, an early exit are False, and touch no other's verdict."""
    return [run_tests(program, timeout_s) for program in programs]


def isolation() -> str:
    """What this system lets the sandbox enforce, in words."""
    return "; ".join(shared_sandbox().isolation)


def _end(server: subprocess.Popen[bytes]) -> None:
    """Ends the server and everything in its session."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    for pipe in (server.stdin, server.stdout):
        try:
            pipe.close()
        except BrokenPipeError:
            continue  # something was still on its way to a process that is gone
