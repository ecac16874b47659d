"""Linux namespaces: processes, network, IPC and file system of one's own; nothing of the machine's is even named there.

The file system is a new one in memory. It holds, read-only, what is named (Python's library, a few harmless devices),
at the paths that it has outside, and a directory /tmp, over which every program gets a file system of its own, which
ends with it. So no socket, file or process of the machine has a path or number inside. Root needs no more; an ordinary
user gets the right to do this from a user namespace, where the system allows that.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

from kernel import MACHINE, call

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 0x1, 0x2, 0x4, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 0x1, 0x2, 0x4
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
SCRATCH = "/tmp"
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


def enter(root: str, directories: Iterable[str], hidden: Iterable[str]) -> None:
    """Moves this process into namespaces of its own; its number 1 will be the next child.

    Args:
        root: an empty directory, over which the new file system is laid.
        directories: what of the present file system shall be in the new one, to be read.
        hidden: directories below these that shall be empty.

    Raises:
        OSError: the system does not allow it. This process may then be half inside: it must end.
    """
    if MACHINE not in PIVOT_ROOT:
        raise OSError(f"no number of pivot_root for {MACHINE}")
    uid, gid = os.getuid(), os.getgid()
    flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
    call("unshare", flags if uid == 0 else flags | CLONE_NEWUSER)
    if uid != 0:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    _tmpfs(root, "size=64k,mode=0755")
    for path in directories:
        if os.path.isdir(path):
            os.makedirs(root + path, exist_ok=True)
            _bind(path, root + path, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
    for path in hidden:
        if os.path.isdir(root + path):
            _tmpfs(root + path, "size=4k,mode=0755", MS_RDONLY)
    os.makedirs(root + "/dev")
    for path in DEVICES:
        if os.path.exists(path):
            os.close(os.open(root + path, os.O_CREAT | os.O_WRONLY))
            _bind(path, root + path, MOUNT_ATTR_NOSUID)
    os.mkdir(root + SCRATCH)
    _set(root, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
    os.chdir(root)
    call("syscall", PIVOT_ROOT[MACHINE], b".", b".")
    call("umount2", b".", MNT_DETACH)
    os.chdir("/")


def fresh(scratch_bytes: int) -> None:
    """For one program: an IPC namespace, and an empty /tmp, where this process then is; raises as `enter`."""
    call("unshare", CLONE_NEWNS | CLONE_NEWIPC)
    _tmpfs(SCRATCH, f"size={scratch_bytes},nr_inodes=4096,mode=1777")
    os.chdir(SCRATCH)


def _tmpfs(path: str, options: str, flags: int = 0) -> None:
    call("mount", b"tmpfs", path.encode(), b"tmpfs", flags | MS_NOSUID | MS_NODEV, options.encode())


def _bind(source: str, target: str, attributes: int) -> None:
    call("mount", source.encode(), target.encode(), None, MS_BIND | MS_REC, None)
    _set(target, attributes, AT_RECURSIVE)


def _set(path: str, attributes: int, flags: int = 0) -> None:
    words = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    call("syscall", MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, words, ctypes.c_size_t(ctypes.sizeof(words)))
