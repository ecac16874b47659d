"""Calls to the kernel that Python has no function for, by ctypes. Standard library only."""

from __future__ import annotations

import ctypes
import platform

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
MACHINE = platform.machine()


def call(name: str, *arguments: object) -> int:
    """Calls a function of the C library; returns what it returns.

    Raises:
        OSError: it answers with an error, or does not exist.
    """
    try:
        function = getattr(LIBC, name)
    except AttributeError as error:
        raise OSError(f"no {name} on this system") from error
    result = function(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: error {number}")
    return result


def prctl(option: int, value: int) -> None:
    """Sets an attribute of this process; raises as `call`."""
    call("prctl", option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))
