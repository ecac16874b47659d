"""The child process of `sandbox.py`: shuts itself in, then runs one program after another, each in a fork of its own.

Started as `python -I -S sandbox_server.py [namespaces]`; needs the standard library only, never imports the package. It
writes one line of JSON with the isolation that it achieved, then answers each line `[timeout_s, program]` on stdin with
one character: `1` passed, `0` did not. It ends when stdin does.

How a pass is told from a fake: each fork holds the write end of a pipe and a random nonce. Only after the program, its
tests included, has run to its end does the runner write the nonce. A program that leaves early (`os._exit`, `sys.exit`,
a crash), or that prints whatever it likes, has not written it. A program that sets out to search the interpreter's own
frames for the nonce could find it: this is a guard against the accidents of generated code, not a court.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import time

MEMORY_BYTES = 512 << 20
FILE_BYTES = 1 << 20
SCRATCH_BYTES = 16 << 20
OPEN_FILES = 16

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER = 0x00020000, 0x08000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE, MS_NOSUID, MS_NODEV = 0x1000, 0x4000, 0x40000, 0x2, 0x4
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 0x1
NOBODY = 65534
LIBC = ctypes.CDLL(None, use_errno=True)

# Imported before the forks: what small programs use costs them nothing, and is there whoever may read the library.
PRELOADED = (
    "bisect", "calendar", "cmath", "collections.abc", "contextlib", "copy", "csv", "dataclasses", "datetime", "decimal",
    "enum", "fractions", "functools", "hashlib", "heapq", "io", "itertools", "math", "numbers", "operator", "queue",
    "random", "re", "statistics", "string", "struct", "textwrap", "time", "types", "typing", "unicodedata",
)  # fmt: skip

# What a program may not do where the kernel gives it no file system and network of its own. A prefix of an audit event.
FORBIDDEN = (
    "os.chmod", "os.chown", "os.exec", "os.fork", "os.kill", "os.link", "os.mkdir", "os.posix_spawn", "os.remove",
    "os.rename", "os.rmdir", "os.spawn", "os.symlink", "os.system", "os.truncate", "pty.", "shutil.", "socket.",
    "subprocess.", "ctypes.", "signal.pthread_kill",
)  # fmt: skip


def call(name: str, *arguments: object) -> None:
    """Calls a function of the C library. Raises OSError where it answers with an error or does not exist."""
    try:
        function = getattr(LIBC, name)
    except AttributeError as error:
        raise OSError(f"no {name} on this system") from error
    if function(*arguments) != 0:
        raise OSError(ctypes.get_errno(), name)


def shut_in(scratch: str) -> list[str]:
    """Moves this process and the children to come into namespaces of their own. Returns what that gave, in words.

    All or nothing: without them the programs still run under limits, and with the audit hook of `forbid_in_python`.
    The scratch directory becomes a small file system in memory, everything else read-only.
    """
    uid, gid = os.getuid(), os.getgid()
    flags = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
    try:
        call("unshare", flags if uid == 0 else flags | CLONE_NEWUSER)
        if uid != 0:
            for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
        call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
        attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY, 0, 0, 0)
        call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, attributes, ctypes.sizeof(attributes))
        options = f"size={SCRATCH_BYTES},mode=0755".encode()
        call("mount", b"tmpfs", scratch.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, options)
        os.chdir(scratch)
        # A Python installed in root's home cannot be read by nobody; a second mount of its library can.
        library = os.path.dirname(os.__file__)
        os.mkdir("library")
        call("mount", library.encode(), b"library", None, MS_BIND, None)
        sys.path[:] = [f"{scratch}/library", f"{scratch}/library/lib-dynload"]
        sys.path_importer_cache.clear()
    except OSError:
        return []
    return ["own process space", "no network", "read-only file system"]


def die_with_parent() -> None:
    """Asks the kernel to end this process when its parent ends, however that happens."""
    try:
        call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except OSError:
        pass  # not Linux: the end of stdin, and the limits, have to do


def drop_privileges() -> bool:
    """Gives up root for good (to nobody), and the capabilities inside a user namespace. False where root remains."""
    if os.getuid() == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        except OSError:
            return False
    else:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        try:
            call("capset", header, (ctypes.c_uint32 * 6)())
        except OSError:
            pass  # there were none to give up: no user namespace, or not Linux
    try:
        call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    except OSError:
        pass  # not Linux; without it a set-uid program could be started, but NPROC forbids starting any
    return True


def limit(timeout_s: float) -> None:
    """Sets every limit that the system knows, on this process."""
    cpu_s = int(timeout_s) + 1
    for name, value in (
        ("RLIMIT_CPU", cpu_s),
        ("RLIMIT_AS", MEMORY_BYTES),
        ("RLIMIT_FSIZE", FILE_BYTES),
        ("RLIMIT_NOFILE", OPEN_FILES),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_NPROC", 0),  # for a user without privileges: no further process or thread
    ):
        try:
            resource.setrlimit(getattr(resource, name), (value, value))
        except (AttributeError, ValueError, OSError):
            continue  # macOS does not let a process lower RLIMIT_AS; the time limit still ends it


def forbid_in_python() -> None:
    """Refuses, inside the interpreter, what the kernel was not asked to refuse. An audit hook cannot be taken out."""

    def hook(event: str, arguments: tuple) -> None:
        if event.startswith(FORBIDDEN):
            raise PermissionError(f"{event} is not allowed here")
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise PermissionError("writing files is not allowed here")
        if event == "import" and arguments[0].split(".")[0] in ("ctypes", "_ctypes"):
            raise PermissionError("ctypes is not allowed here")

    sys.addaudithook(hook)


def execute(program: str, verdict: int, nonce: bytes, timeout_s: float, guard: bool) -> None:
    """In the fork: runs the program, then, if it came to its end, writes the nonce. Never returns."""
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for target in (0, 1, 2):
            os.dup2(null, target)
        os.dup2(verdict, 3)
        os.closerange(4, 1024)
        if drop_privileges():
            die_with_parent()  # a change of user has cleared it
            limit(timeout_s)
            if guard:
                forbid_in_python()
            exec(compile(program, "<program>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
            os.write(3, nonce)
    except BaseException:  # whatever it raised, SystemExit and KeyboardInterrupt too, it did not pass
        os._exit(1)
    os._exit(0)


def judge(program: str, timeout_s: float, guard: bool, directory: str) -> bool:
    """Forks, waits no longer than `timeout_s`, ends whatever is left, and says whether the nonce came back."""
    os.mkdir(directory, 0o700)
    if os.getuid() == 0:
        os.chown(directory, NOBODY, NOBODY)
    os.chdir(directory)
    nonce = os.urandom(16)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        execute(program, write_end, nonce, timeout_s, guard)
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
    os.chdir("..")
    shutil.rmtree(directory, ignore_errors=True)
    return received == nonce


def main() -> None:
    scratch = os.getcwd()
    die_with_parent()
    walls = shut_in(scratch) if "namespaces" in sys.argv else []
    if walls:  # the process space begins with the next fork
        child = os.fork()
        if child:
            os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
        die_with_parent()
    words = ["limits on time, memory, processes, files"]
    words += walls or ["forbidden calls refused inside the interpreter"]
    words += ["user nobody"] if os.getuid() == 0 else []
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()
    print(json.dumps(words), flush=True)
    for number, line in enumerate(sys.stdin.buffer):
        timeout_s, program = json.loads(line)
        passed = judge(program, timeout_s, not walls, f"{scratch}/{number}")
        print(int(passed), end="", flush=True)


if __name__ == "__main__":
    main()
