"""The child process of `sandbox.py`: shuts itself in, then runs one program after another, each in a fork of its own.

Started as `python -I -S sandbox_server.py WALLS KIND,KIND,... BYTES`: the directory of the walls (`walls/`), the
kinds that it may try, best first, and the memory of a program. Needs the standard library only, never imports the
package. It writes one line of JSON, what it achieved: `{"kind": ..., "words": [...]}`, or with `kind` null, the
reasons. Then it answers requests on stdin:

    request   8 bytes float64 time limit, 4 bytes length, the program in UTF-8, then 16 bytes, the answer's key
    answer    the key, and one byte: `1` passed, `0` did not

All rules are the kernel's; none lives in the interpreter that runs the program. Every program runs under a filter of
system calls and limits, and its files are shut off in one of three ways:

| kind | files | needs |
| --- | --- | --- |
| `namespaces` | Python's library in an empty file system; a /tmp of the program's own | root, or user namespaces |
| `landlock` | reads Python's library, writes nothing | Linux 5.13 with Landlock |
| `seccomp` | opens none: what is not imported yet cannot be | any Linux with filters |

How an answer is told from a fake: its key is read after the fork, so that no program has ever had it in its memory.
How a pass is told from a fake: each fork holds the write end of a pipe and a nonce, and writes it only after the
program, its tests included, has run to its end; one that leaves early (`os._exit`, `sys.exit`, a crash), or that prints
whatever it likes, has not. A program that sets out to search its own interpreter for the nonce could find it, as it
could redefine what its tests compare: it can cheat about itself, and about nobody else.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import resource
import select
import signal
import struct
import sys
import time
from functools import partial

sys.path.insert(0, sys.argv[1])
import landlock
import namespaces
import seccomp
from kernel import PR_SET_PDEATHSIG, call, prctl

sys.path.pop(0)

FILE_BYTES = 1 << 20
SCRATCH_BYTES = 16 << 20
OPEN_FILES = 16
PROGRAM_BYTES = 16 << 20
KEY_BYTES = 16
NOBODY = 65534
REQUEST = struct.Struct("<dI")

# Imported before the walls go up. What small programs use costs them nothing then, is there whoever may read the
# library, and what needs a shared library of the system's (the second paragraph) has it.
PRELOADED = (
    "abc", "array", "ast", "base64", "bisect", "calendar", "cmath", "collections.abc", "contextlib", "copy", "csv",
    "dataclasses", "datetime", "decimal", "difflib", "doctest", "enum", "fractions", "functools", "hashlib", "heapq",
    "html", "inspect", "io", "itertools", "json", "keyword", "locale", "logging", "math", "numbers", "operator", "os",
    "pathlib", "pprint", "queue", "random", "re", "secrets", "statistics", "string", "struct", "sys", "tempfile",
    "textwrap", "threading", "time", "timeit", "traceback", "types", "typing", "unicodedata", "unittest", "uuid",
    "warnings", "weakref", "zoneinfo", "bz2", "lzma", "socket", "sqlite3",

    "_bz2", "_ctypes", "_decimal", "_elementtree", "_hashlib", "_lzma", "_posixsubprocess", "_socket", "_sqlite3",
    "_ssl", "binascii", "mmap", "pyexpat", "zlib",
)  # fmt: skip
ZONES = "/usr/share/zoneinfo"


def library() -> str:
    """Where Python's own modules lie."""
    return os.path.dirname(os.__file__)


def shut_in(kinds: list[str]) -> tuple[str | None, list[str], int]:
    """Puts up the first kind of wall that the system allows.

    Returns:
        Its kind, or None; what it does in words, or why there is none; Landlock's rules, or -1.
    """
    reasons = []
    for kind in kinds:
        try:
            in_a_child(lambda: seccomp.install("nothing"))
            if kind == "namespaces":
                in_a_child(enter)
                break
            if kind == "landlock":
                paths = [library(), ZONES, *namespaces.DEVICES]
                rules = landlock.ruleset(paths)
                in_a_child(partial(landlock.restrict, rules))
                return kind, ["no network or processes", "reads Python's library, writes no file (Landlock)"], rules
            if kind == "seccomp":
                return kind, ["no network or processes", "opens no file"], -1
        except OSError as error:
            reasons.append(f"{kind}: {error}")
    else:
        return None, reasons, -1
    enter()  # what has just gone well in a child; an error here must end this process, which would be half inside
    words = ["own process space", "no network", "own IPC", "an empty file system but for Python's library"]
    return "namespaces", words, -1


def enter() -> None:
    hidden = [f"{library()}/{name}" for name in ("site-packages", "dist-packages")]
    namespaces.enter(os.getcwd(), [library(), ZONES], hidden)


def in_a_child(attempt) -> None:
    """Tries something that cannot be taken back where it does no harm; raises OSError as it does."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            attempt()
        except BaseException as error:
            os.write(write_end, str(error).encode()[:500] or b"unknown")
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as file:
        problem = file.read().decode()
    if os.waitpid(child, 0)[1] or problem:
        raise OSError(problem or "a process ended")


def die_with_parent(parent: int) -> None:
    """Asks the kernel to end this process when its parent ends, however that happens."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)


def drop_privileges() -> bool:
    """Gives up root for good (to nobody), and the capabilities inside a user namespace. False where root remains."""
    if os.getuid() == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        except OSError:
            return False
    call("capset", (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
    return True


def limit(timeout_s: float) -> None:
    """Sets the limits that the system calls' filter does not: time, memory, files, processes."""
    for name, value in (
        ("RLIMIT_CPU", int(timeout_s) + 1),
        ("RLIMIT_AS", int(sys.argv[3])),
        ("RLIMIT_FSIZE", FILE_BYTES),
        ("RLIMIT_NOFILE", OPEN_FILES),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_NPROC", 0),
        ("RLIMIT_MEMLOCK", 0),
    ):
        number = getattr(resource, name)
        most = resource.getrlimit(number)[1]
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(number, (value, value))


def execute(program: str, verdict: int, nonce: bytes, timeout_s: float, kind: str, rules: int) -> None:
    """In the fork: runs the program, then, if it came to its end, writes the nonce. Never returns."""
    try:
        parent = os.getppid()
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for target in (0, 1, 2):
            os.dup2(null, target)
        if kind == "namespaces":
            namespaces.fresh(SCRATCH_BYTES)
        if drop_privileges():
            if kind == "landlock":
                landlock.restrict(rules)
            os.dup2(verdict, 3)
            os.closerange(4, 1024)
            die_with_parent(parent)  # a change of user would have cleared it
            limit(timeout_s)
            seccomp.install({"namespaces": "writing", "landlock": "reading", "seccomp": "nothing"}[kind])
            exec(compile(program, "<program>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
            os.write(3, nonce)
    except BaseException:  # whatever it raised, SystemExit and KeyboardInterrupt too, it did not pass
        os._exit(1)
    os._exit(0)


def judge(program: str, timeout_s: float, kind: str, rules: int) -> bool:
    """Forks, waits no longer than `timeout_s`, ends whatever is left, and says whether the nonce came back."""
    nonce = os.urandom(16)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        execute(program, write_end, nonce, timeout_s, kind, rules)
    os.close(write_end)
    received = b""
    end = time.monotonic() + timeout_s
    while (left_s := end - time.monotonic()) > 0 and select.select([read_end], [], [], left_s)[0]:
        piece = os.read(read_end, 64)
        received = (received + piece)[:64]
        if not piece:
            break
    os.close(read_end)
    for target in (child, -child, *((-1,) if os.getpid() == 1 else ())):
        try:
            os.kill(target, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue  # gone already
    os.waitpid(child, 0)
    while os.getpid() == 1:  # first of its process space: everybody's orphans are ours to bury
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
    return received == nonce


def receive(size: int) -> bytes:
    """Exactly so many bytes from stdin, and none more, so that no key lies in a buffer; fewer where it has ended."""
    received = b""
    while len(received) < size:
        piece = os.read(0, size - len(received))
        if not piece:
            break
        received += piece
    return received


def main() -> None:
    die_with_parent(os.getppid())
    for name in PRELOADED:
        try:
            importlib.import_module(name)
        except ImportError:
            continue  # a Python built without it
    importlib.invalidate_caches()
    kind, words, rules = shut_in(sys.argv[2].split(","))
    if kind == "namespaces":  # the process space begins with the next fork
        child = os.fork()
        if child:
            os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if kind is not None:
        words = ["limits on time, memory, processes, files", "system calls filtered", *words]
        words += ["user nobody"] if os.getuid() == 0 else []
    gc.freeze()
    os.write(1, json.dumps({"kind": kind, "words": words}).encode() + b"\n")
    while kind is not None and len(head := receive(REQUEST.size)) == REQUEST.size:
        timeout_s, size = REQUEST.unpack(head)
        if size > PROGRAM_BYTES:
            return
        passed = judge(receive(size).decode(), timeout_s, kind, rules)
        os.write(1, receive(KEY_BYTES) + str(int(passed)).encode())


if __name__ == "__main__":
    main()
