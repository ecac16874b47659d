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
import struct
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

from phase8.errors import BenchmarkError
from phase8.files import TEMPORARY, writing

SERVER = Path(__file__).with_name("sandbox_server.py")
WALLS = Path(__file__).with_name("walls")
KINDS = ("namespaces", "landlock", "seccomp")
"""The walls that the server knows, best first; `sandbox_server.py` says what each one is."""
GRACE_S = 10.0
"""How long after a program's time-out the server may take to answer before it counts as dead."""
START_S = 60.0
"""How long the server may take to start, on a machine that has other things to do."""
KEY_BYTES = 16
PROGRAM_BYTES = 16 << 20
MEMORY_BYTES = 512 << 20
"""What a program may take. These numbers are the server's too, which imports nothing of the package."""
REQUEST = struct.Struct("<dI")


class Sandbox:
    """A child process that runs programs one after another, each in a fork of its own, behind walls of the kernel.

    Args:
        namespaces: False does without them, as plain containers must.
        kinds: the walls that may be used, best first.

    Raises:
        BenchmarkError: this system has none of these walls, or the child process cannot be started, or fails an empty
            program.
    """

    def __init__(self, *, namespaces: bool = True, kinds: Sequence[str] = KINDS) -> None:
        self.isolation: tuple[str, ...] = ()
        """What the kernel enforces here, in words."""
        self.kind = ""
        """Which of the kinds it is."""
        self._kinds = [kind for kind in kinds if namespaces or kind != "namespaces"]
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        if sys.platform != "linux":
            raise _unsafe(f"its walls are Linux's, this is {sys.platform}")
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
        text = program.encode("utf-8", "replace")
        if len(text) > PROGRAM_BYTES:
            return False
        key = os.urandom(KEY_BYTES)
        with self._lock:
            if self._server is None:
                self._start()
            try:
                self._server.stdin.write(REQUEST.pack(timeout_s, len(text)) + text + key)
                self._server.stdin.flush()
                answer = self._read(KEY_BYTES + 1, timeout_s + GRACE_S)
            except BrokenPipeError:
                answer = b""
            except BaseException:  # Ctrl-C: the answer still to come must not be taken for the next program's
                self.close()
                raise
            # Nothing: the server died under this program, or hangs. Another key: somebody else has written. In both
            # cases the next program gets a new server.
            if answer[:KEY_BYTES] != key or answer[KEY_BYTES:] not in (b"0", b"1"):
                self.close()
                return False
            return answer[KEY_BYTES:] == b"1"

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
        with writing("the directory of temporary files", TEMPORARY):
            self._scratch = tempfile.TemporaryDirectory(prefix="phase8-sandbox-", ignore_cleanup_errors=True)
        os.chmod(self._scratch.name, 0o711)
        self._server = subprocess.Popen(
            [sys.executable, "-I", "-S", str(SERVER), str(WALLS), ",".join(self._kinds), str(MEMORY_BYTES)],
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
            piece = self._read(1, START_S)
            if not piece:
                _end(self._server)
                problem = self._server.stderr.read().decode(errors="replace").strip()[-300:]
                raise BenchmarkError(
                    f"the sandbox did not start: {problem or 'no message'}",
                    where=str(SERVER),
                    fix="check that this Python can be started as a child process",
                )
            line += piece
        found = json.loads(line)
        if found["kind"] is None:
            self.close()
            raise _unsafe("; ".join(found["words"]))
        self.kind, self.isolation = found["kind"], tuple(found["words"])

    def _read(self, size: int, wait_s: float) -> bytes:
        """So many bytes of what the server writes; fewer if it does not write them in time or is gone."""
        handle, end, received = self._server.stdout.fileno(), time.monotonic() + wait_s, b""
        while len(received) < size and select.select([handle], [], [], max(0.0, end - time.monotonic()))[0]:
            piece = os.read(handle, size - len(received))
            if not piece:
                break
            received += piece
        return received


def _unsafe(why: str) -> BenchmarkError:
    return BenchmarkError(
        f"generated code cannot be run safely on this system, so it is not run: {why}",
        where="the kernel's walls: namespaces, Landlock, filters of system calls",
        fix="run on Linux (on Windows: in WSL; a container must allow seccomp), or leave the code benchmarks out",
    )


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
