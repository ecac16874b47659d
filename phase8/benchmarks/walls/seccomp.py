"""A filter of system calls (Linux seccomp): what is not listed here is refused, whatever the interpreter thinks of it.

The filter is a program of the classic Berkeley packet filter, run by the kernel before every system call of the process
(`Documentation/userspace-api/seccomp_filter.rst`). It cannot be taken out again. It sees the call's number and the
values of its arguments, not what pointers point to; so `openat` can be judged by its flags, not by its path. Example:
`kill(-1, 9)` has a first argument other than the process's own number: refused with EPERM.

Three rights, each with all of the one before:

- `nothing`: computing, time, memory, pipes, signals to itself; no file can be opened;
- `reading`: files may be opened for reading (which ones, Landlock says);
- `writing`: files may also be made, changed and removed (which ones, the file system in the namespace says).

Never: sockets other than a connected pair, new processes and threads, other processes' signals, limits or memory,
shared memory that outlives the process, other users, mounts, namespaces, devices, io_uring, keys, tracing, bpf.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator

from kernel import MACHINE, PR_SET_NO_NEW_PRIVS, call, prctl

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000
EPERM, EACCES, ENOTTY = 1, 13, 25
LOAD, AND, EQUAL, AT_LEAST, RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
X32 = 0x40000000
"""From this number on they are those of x86-64's 32-bit twin, under which every call has a second name."""

# Number on x86-64, on AArch64 and other newer machines; None: not there.
COMPUTING: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65),
    "writev": (20, 66), "close": (3, 57), "lseek": (8, 62), "mmap": (9, 222), "munmap": (11, 215),
    "mprotect": (10, 226), "mremap": (25, 216), "madvise": (28, 233), "brk": (12, 214), "fstat": (5, 80),
    "newfstatat": (262, 79), "stat": (4, None), "lstat": (6, None), "statx": (332, 291), "access": (21, None),
    "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None), "readlinkat": (267, 78),
    "getdents64": (217, 61), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "dup": (32, 23),
    "dup2": (33, None), "dup3": (292, 24), "pipe": (22, None), "pipe2": (293, 59), "poll": (7, None),
    "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72), "epoll_create": (213, None),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22),
    "eventfd2": (290, 19), "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101), "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153),
    "getrusage": (98, 165), "getrlimit": (97, 163), "sysinfo": (99, 179), "uname": (63, 160), "getcpu": (309, 168),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136),
    "rt_sigsuspend": (130, 133), "rt_sigtimedwait": (128, 137), "sigaltstack": (131, 132), "setitimer": (38, 103),
    "getitimer": (36, 102), "alarm": (37, None), "pause": (34, None), "futex": (202, 98),
    "set_robust_list": (273, 99), "get_robust_list": (274, 100), "rseq": (334, 293), "set_tid_address": (218, 96),
    "restart_syscall": (219, 128), "membarrier": (324, 283), "getpid": (39, 172), "gettid": (186, 178),
    "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177),
    "getresuid": (118, 148), "getresgid": (120, 150), "getgroups": (115, 158), "getpgrp": (111, None),
    "getpgid": (121, 155), "getsid": (124, 156), "umask": (95, 166), "getrandom": (318, 278),
    "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "exit": (60, 93), "exit_group": (231, 94),
    "wait4": (61, 260), "waitid": (247, 95), "fsync": (74, 82), "fdatasync": (75, 83), "sendfile": (40, 71),
    "fadvise64": (221, 223), "recvfrom": (45, 207), "shutdown": (48, 210),
}  # fmt: skip
CHANGING: dict[str, tuple[int | None, int | None]] = {
    "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "unlink": (87, None), "unlinkat": (263, 35),
    "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276), "link": (86, None), "linkat": (265, 37),
    "symlink": (88, None), "symlinkat": (266, 36), "truncate": (76, 45), "ftruncate": (77, 46),
    "fallocate": (285, 47), "flock": (73, 32), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53),
    "utimensat": (280, 88), "utime": (132, None), "utimes": (235, None), "statfs": (137, 43), "fstatfs": (138, 44),
}  # fmt: skip
OPEN, OPENAT = (2, None), (257, 56)
KILL_ONE, KILL_THREAD, LIMITS = (62, 129), (234, 131), (302, 261)
CONTROL_FILE, CONTROL_DEVICE = (72, 25), (16, 29)
PAIR, SEND = (53, 199), (44, 206)

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
FILE_COMMANDS = (0, 1, 2, 3, 4, 5, 6, 7, 1030)
"""F_DUPFD, GETFD, SETFD, GETFL, SETFL, GETLK, SETLK, SETLKW, DUPFD_CLOEXEC; not F_SETOWN, which sends signals."""
DEVICE_COMMANDS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS (is it a terminal?), TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX."""
RIGHTS = ("nothing", "reading", "writing")

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of the tables above, and the machine's number in a filter (AUDIT_ARCH)."""
Condition = tuple[int, int, tuple[int, ...]]
"""Place of a 32-bit word in what the filter sees, a mask, and the values that the masked word may have."""


def _argument(number: int, *, high: bool = False) -> int:
    return 16 + 8 * number + (4 if high else 0)


def _rules(rights: str, process: int) -> Iterator[tuple[tuple[int | None, int | None], list[Condition], int]]:
    """What is allowed: numbers of the call, conditions that must all hold, and the error where one does not."""
    whole = 0xFFFFFFFF
    for numbers in COMPUTING.values():
        yield numbers, [], EPERM
    yield KILL_ONE, [(_argument(0), whole, (process,))], EPERM
    yield KILL_THREAD, [(_argument(0), whole, (process,))], EPERM
    yield LIMITS, [(_argument(0), whole, (0, process))], EPERM
    yield CONTROL_FILE, [(_argument(1), whole, FILE_COMMANDS)], EPERM
    yield CONTROL_DEVICE, [(_argument(1), whole, DEVICE_COMMANDS)], ENOTTY
    # A pair of sockets is a pipe. Without an address (argument 4) nothing is sent elsewhere.
    yield PAIR, [(_argument(0), whole, (1,))], EPERM
    yield SEND, [(_argument(4), whole, (0,)), (_argument(4, high=True), whole, (0,))], EPERM
    if rights == "writing":
        for numbers in (*CHANGING.values(), OPEN, OPENAT):
            yield numbers, [], EPERM
    elif rights == "reading":
        yield OPEN, [(_argument(1), WRITES, (0,))], EACCES
        yield OPENAT, [(_argument(2), WRITES, (0,))], EACCES


def program(rights: str, process: int) -> bytes:
    """The filter as the kernel takes it, 8 bytes an instruction.

    Args:
        rights: one of `RIGHTS`.
        process: the number of the process that it is for, the only one that it may send signals to.

    Raises:
        OSError: the numbers of this machine's system calls are not known here.
    """
    if MACHINE not in _MACHINES:
        raise OSError(f"no table of system calls for {MACHINE}")
    column, audit = _MACHINES[MACHINE]
    code: list[tuple[int, int, int, int]] = []  # operation, jump if true, jump if false, operand

    def leave(result: int) -> None:
        code.append((RETURN, 0, 0, result))

    code += [(LOAD, 0, 0, 4), (EQUAL, 1, 0, audit)]
    leave(KILL)
    code.append((LOAD, 0, 0, 0))
    if MACHINE == "x86_64":
        code.append((AT_LEAST, 0, 1, X32))
        leave(KILL)
    for numbers, conditions, error in _rules(rights, process):
        number = numbers[column]
        if number is None:
            continue
        body: list[tuple[int, int, int, int]] = []
        for word, mask, values in conditions:
            body += [(LOAD, 0, 0, word), (AND, 0, 0, mask)]
            # To the instruction behind the refusal, from each of the values.
            body += [(EQUAL, len(values) - place, 0, value) for place, value in enumerate(values)]
            body.append((RETURN, 0, 0, REFUSE | error))
        body.append((RETURN, 0, 0, ALLOW))
        code.append((EQUAL, 0, len(body), number))
        code += body
    leave(REFUSE | EPERM)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def install(rights: str) -> None:
    """Puts the filter on this process for good; raises as `program`, or OSError where the kernel has no filters."""
    content = program(rights, os.getpid())
    held = ctypes.create_string_buffer(content, len(content))
    header = struct.pack("=H6xQ", len(content) // 8, ctypes.addressof(held))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    zero = ctypes.c_ulong(0)
    call("prctl", PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), ctypes.c_char_p(header), zero, zero)
