"""Landlock (Linux 5.13 and later): a process gives up, for good, all files but those that it names.

Unlike namespaces it asks for no privilege, so that plain containers have it. It does not cover looking at a file's size
or times, nor `chmod`; the filter of system calls refuses what changes files. See
`Documentation/userspace-api/landlock.rst`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

from kernel import PR_SET_NO_NEW_PRIVS, call, prctl

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION = 1
READ_FILE, READ_DIR = 1 << 2, 1 << 3
# All rights to files by version 1 to 5 of Landlock, to TCP by version 4, and to other processes by version 6.
_FILES, _NETWORK, _SCOPES = (13, 14, 15, 15, 16), 0b11, 0b11


def ruleset(paths: Iterable[str]) -> int:
    """A set of rules, as a file descriptor, that allows reading below these paths and nothing else.

    Raises:
        OSError: the kernel has no Landlock, or it is switched off.
    """
    version = call("syscall", CREATE_RULESET, None, ctypes.c_size_t(0), VERSION)
    if version < 1:
        raise OSError("no Landlock")
    handled = (1 << _FILES[min(version, len(_FILES)) - 1]) - 1
    words = [handled, _NETWORK if version >= 4 else 0, _SCOPES if version >= 6 else 0]
    words = words[: 1 if version < 4 else 2 if version < 6 else 3]
    attributes = (ctypes.c_uint64 * len(words))(*words)
    rules = call("syscall", CREATE_RULESET, attributes, ctypes.c_size_t(8 * len(words)), 0)
    for path in paths:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # not everywhere is everything
        allowed = READ_FILE | READ_DIR if os.path.isdir(path) else READ_FILE
        rule = allowed.to_bytes(8, "little") + place.to_bytes(4, "little")
        call("syscall", ADD_RULE, rules, 1, ctypes.c_char_p(rule), 0)
        os.close(place)
    return rules


def restrict(rules: int) -> None:
    """Puts the rules on this process and its children; raises OSError where the kernel refuses."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    call("syscall", RESTRICT_SELF, rules, 0)
