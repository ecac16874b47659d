"""What hostile programs get done in the sandbox in which generated code is run.

    python -m experiments.sandbox_demo            # -> experiments/results/sandbox.md

Each attack is run as a benchmark's program would be, behind each of the three walls (namespaces, Landlock, the filter
of system calls alone), started by root and by an ordinary user; then a right program has to pass and a wrong one to
fail. Measured are the seconds until the verdict, the memory of the sandbox's processes at its highest (the sum of what
each of them held at most, `VmHWM`, looked at every few milliseconds; a dash where an attack was over sooner), the files
of a directory open to everybody that are gone or changed, the processes left, the connections that a listening socket
of either kind got, and the shared memory that outlived the program. As a control, those attacks that an unguarded
machine outlives are run as plain child processes too: there they do harm.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from phase8.benchmarks.sandbox import KINDS, Sandbox
from phase8.errors import BenchmarkError
from phase8.files import write_atomic

RESULTS = Path(__file__).parent / "results"
TIMEOUT_S = 3.0
PLENTY_S = 60.0
"""For programs that end by themselves."""
LOOK_EVERY_S = 0.002
PR_SET_CHILD_SUBREAPER = 36
FILES = 20
GOOD = "def add(a, b):\n    return a + b\n\nassert add(2, 3) == 5\n"

ATTACKS = {
    "fork bomb": "import os\nwhile True: os.fork()",
    "fork bomb that catches errors": "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
    "thread bomb": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()",
    "endless loop": "while True: pass",
    "endless loop, all signals ignored": "import signal\nfor number in range(1, 65):\n"
    "  try: signal.signal(number, signal.SIG_IGN)\n  except (OSError, ValueError): pass\nwhile True: pass",
    "sleeps for an hour": "import time\ntime.sleep(3600)",
    "memory bomb": "held = []\nwhile True: held.append(b'x' * (1 << 24))",
    "memory bomb that catches errors": "held = []\nwhile True:\n  try: held.append(b'x' * (1 << 20))\n"
    "  except MemoryError: pass",
    "64 GB at once": "held = b'x' * (1 << 36)",
    "prints gigabytes": "text = 'x' * (1 << 20)\nwhile True: print(text)",
    "fills the disk with one file": "file = open('big', 'wb')\nwhile True: file.write(b'x' * (1 << 20))",
    "fills the disk with many files": "number = 0\nwhile True:\n  number += 1\n"
    "  with open(f'part{number}', 'wb') as file: file.write(b'x' * (1 << 20))",
    "deletes files": "import os, shutil\nshutil.rmtree(TARGET, ignore_errors=True)\nfor name in os.listdir(TARGET):\n"
    "  try: os.remove(f'{TARGET}/{name}')\n  except OSError: pass\nraise SystemExit",
    "overwrites files": "import os\nfor name in os.listdir(TARGET):\n"
    "  try: open(f'{TARGET}/{name}', 'wb').write(b'gone')\n  except OSError: pass\nraise SystemExit",
    "renames and re-permits files": "import os\nfor name in os.listdir(TARGET):\n  for act in ("
    "lambda p: os.chmod(p, 0), lambda p: os.rename(p, p + '.gone'), lambda p: os.truncate(p, 0)):\n"
    "    try: act(f'{TARGET}/{name}')\n    except OSError: pass\nraise SystemExit",
    "kills every process": "import os\nos.kill(-1, 9)\nraise SystemExit",
    "sends data to a socket": "import socket\n"
    "socket.create_connection(('127.0.0.1', PORT), timeout=1).sendall(b'secret')\nraise SystemExit",
    "starts a program": "import subprocess\nsubprocess.Popen(['sleep', '60'])\nraise SystemExit",
    "crashes the interpreter": "import ctypes\nctypes.string_at(0)",
    "leaves with success before its tests": "import os\nos._exit(0)\nassert False",
    "writes a verdict to every descriptor": "import os\nfor number in range(64):\n"
    "  try: os.write(number, b'1' * 16)\n  except OSError: pass\nos._exit(0)",
    "lifts rules in the interpreter, then overwrites": "import os, sys\nmain = sys.modules['__main__']\n"
    "for name in list(vars(main)):\n  if isinstance(getattr(main, name), tuple): setattr(main, name, ())\n"
    "for name in os.listdir(TARGET):\n"
    "  try: open(f'{TARGET}/{name}', 'wb').write(b'gone')\n  except OSError: pass\nraise SystemExit",
    "forges the verdicts to come, through /proc": "import os\nfor process in {1, os.getppid()}:\n"
    "  for number in range(16):\n    try: open(f'/proc/{process}/fd/{number}', 'wb', buffering=0).write(b'1' * 64)\n"
    "    except OSError: pass\nraise SystemExit",
    "reads files": "import os\nfor name in os.listdir(TARGET): open(f'{TARGET}/{name}', 'rb').read()",
    "talks to a Unix socket": "import socket\nsocket.socket(socket.AF_UNIX).connect(SOCKET)\nraise SystemExit",
    "takes shared memory beyond its limit": "import ctypes\nC = ctypes.CDLL(None)\n"
    "held = [C.shmget(KEY + n, 1 << 26, 0o1666) for n in range(16)]\nassert min(held) >= 0",
}


CONTROLS = (
    "deletes files", "overwrites files", "renames and re-permits files", "sends data to a socket", "starts a program",
    "leaves with success before its tests", "reads files", "talks to a Unix socket",
    "takes shared memory beyond its limit",
)  # fmt: skip


class Runner(Protocol):
    """What runs a program and says whether it passed."""

    def run(self, program: str, timeout_s: float) -> bool: ...


class PlainProcess:
    """A child process without any guard, as a control."""

    def run(self, program: str, timeout_s: float) -> bool:
        child = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            return child.wait(timeout_s) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            child.kill()  # not what it has started: that is what is counted


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one attack did."""

    passed: bool
    seconds: float
    peak_mb: float
    files_harmed: int
    processes_left: int
    connections: int
    memory_left: int
    """Segments of shared memory that outlived the program."""
    next_right: bool
    """Whether a right program passes afterwards, and a wrong one fails."""


def attack(runner: Runner, program: str, timeout_s: float = TIMEOUT_S) -> Outcome:
    """Runs one program and looks at what it did.

    Args:
        program: Python that may name `TARGET`, a directory open to everybody, `PORT` and `SOCKET`, where somebody
            listens, and `KEY`, that of shared memory.
    """
    _adopt_orphans()
    runner.run("pass", timeout_s)  # what starts once is there before
    precious = tempfile.TemporaryDirectory(prefix="phase8-precious-", ignore_cleanup_errors=True)
    key = 0x50380000 + os.getpid() % 65536
    with precious as directory, _listener() as (port, named, connections):
        target = Path(directory)
        for number in range(FILES):
            path = target / f"precious{number}"
            path.write_bytes(os.urandom(64))
            path.chmod(0o666)
        target.chmod(0o777)
        files, processes = _state(target), _alive()
        segments = _segments()
        text = f"TARGET, PORT, SOCKET, KEY = {directory!r}, {port}, {named!r}, {key}\n{program}"
        with _watch(os.getpid()) as peak_bytes:
            begin = time.monotonic()
            passed = runner.run(text, timeout_s)
            seconds = time.monotonic() - begin
        left = _alive() - processes
        for process in left:
            os.kill(process, signal.SIGKILL)
        now = _state(target)
        return Outcome(
            passed=passed,
            seconds=seconds,
            peak_mb=sum(peak_bytes.values()) / 1e6,
            files_harmed=sum(now.get(name) != state for name, state in files.items()),
            processes_left=len(left),
            connections=connections(),
            memory_left=_remove(_segments() - segments),
            next_right=runner.run(GOOD, PLENTY_S) and not runner.run("assert False", PLENTY_S),
        )


def _adopt_orphans() -> None:
    """Asks the kernel that what a dead descendant leaves behind becomes this process's child, where it is seen."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _state(directory: Path) -> dict[str, tuple[int, str]]:
    """Mode and content of every file; no content where it may not be read any more."""
    found = {}
    for path in directory.glob("*"):
        try:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError:
            content = ""
        found[path.name] = path.stat().st_mode, content
    return found


def _alive() -> set[int]:
    """The processes below this one that have not ended."""
    found = set()
    for process in _descendants(os.getpid()):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.add(process)
    return found


def _descendants(process: int) -> list[int]:
    """The processes that a process has started, and these in turn."""
    found: list[int] = []
    waiting = [process]
    while waiting:
        current = waiting.pop()
        try:
            for thread in os.listdir(f"/proc/{current}/task"):
                children = Path(f"/proc/{current}/task/{thread}/children").read_text().split()
                waiting += map(int, children)
                found += map(int, children)
        except OSError:
            continue  # it has just ended
    return found


@contextmanager
def _watch(process: int) -> Iterator[dict[int, int]]:
    """Fills in the highest memory in bytes of each process below this one, by its number."""
    peak_bytes: dict[int, int] = {}
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_EVERY_S):
            for number in _descendants(process):
                try:
                    status = Path(f"/proc/{number}/status").read_text()
                except OSError:
                    continue
                for line in status.splitlines():
                    if line.startswith("VmHWM:"):
                        peak_bytes[number] = max(peak_bytes.get(number, 0), 1024 * int(line.split()[1]))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak_bytes
    finally:
        over.set()
        thread.join()


@contextmanager
def _listener() -> Iterator[tuple[int, str, Callable[[], int]]]:
    """A port and a path of this machine where somebody listens, and how many connections have come to both so far."""
    place = tempfile.TemporaryDirectory(prefix="phase8-socket-")
    with place as directory, socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as named:
        os.chmod(directory, 0o755)
        path = f"{directory}/socket"
        named.bind(path)
        os.chmod(path, 0o777)
        named.listen()

        def count() -> int:
            found = 0
            for one in (server, named):
                one.setblocking(False)
                while True:  # whoever has connected waits in the kernel's queue
                    try:
                        one.accept()[0].close()
                    except BlockingIOError:
                        break
                    found += 1
            return found

        yield server.getsockname()[1], path, count


def _segments() -> set[int]:
    """The numbers of all segments of shared memory (System V)."""
    try:
        lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    except OSError:
        return set()
    return {int(line.split()[1]) for line in lines}


def _remove(segments: set[int]) -> int:
    """Frees segments; returns how many they were."""
    for segment in segments:
        ctypes.CDLL(None).shmctl(segment, 0, None)
    return len(segments)


def table(outcomes: dict[str, Outcome]) -> list[str]:
    lines = [
        "| attack | verdict | ended | s | peak MB | files harmed | processes left | connections | shared memory left "
        "| next verdicts |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in outcomes.items():
        verdict = "PASSED" if one.passed else "failed"
        ended = "at the time limit" if one.seconds >= TIMEOUT_S else "before"
        peak = f"{one.peak_mb:.0f}" if one.peak_mb else "–"
        after = "right" if one.next_right else "WRONG"
        lines.append(
            f"| {name} | {verdict} | {ended} | {one.seconds:.3f} | {peak} | {one.files_harmed} of {FILES} "
            f"| {one.processes_left} | {one.connections} | {one.memory_left} | {after} |"
        )
    return lines


def _attack_all(runner: Runner, names: Iterable[str]) -> dict[str, Outcome]:
    outcomes = {}
    for name in names:
        outcomes[name] = attack(runner, ATTACKS[name])
        print(name, outcomes[name], file=sys.stderr, flush=True)
    return outcomes


def sections() -> list[str]:
    """A table for every kind of wall that this user has here, and the control."""
    who = "root" if os.getuid() == 0 else "an ordinary user"
    lines = []
    for kind in KINDS:
        try:
            sandbox = Sandbox(kinds=[kind])
        except BenchmarkError as error:
            lines += ["", f"## {kind}, started by {who}: none here", "", error.what]
            continue
        try:
            outcomes = _attack_all(sandbox, ATTACKS)
        finally:
            sandbox.close()
        lines += ["", f"## {kind}, started by {who}: {'; '.join(sandbox.isolation)}", "", *table(outcomes)]
    outcomes = _attack_all(PlainProcess(), CONTROLS)
    return [*lines, "", f"## Control: the same programs in a plain child process of {who}", "", *table(outcomes)]


def _as_nobody() -> list[str]:
    """`sections` as another user sees them; needs a Python and a checkout that everybody may read."""
    ended = subprocess.run(
        ["/usr/bin/python3", "-m", "experiments.sandbox_demo", "--sections"],
        user=65534, group=65534, extra_groups=[], env={}, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE,
        text=True, check=True,
    )  # fmt: skip
    return ended.stdout.splitlines()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "sandbox.md")
    parser.add_argument("--sections", action="store_true", help="print this user's tables and write nothing")
    options = parser.parse_args()
    if options.sections:
        print("\n".join(sections()))
        return
    lines = [
        "# Hostile programs in the sandbox",
        "",
        "`python -m experiments.sandbox_demo`, as root: its own tables, then those of an ordinary user",
        "",
        f"{platform.system()} {platform.release().split('-')[0]}, Python {platform.python_version()}. Time limit "
        f"{TIMEOUT_S:g} s; memory limit 512 MB of address space for each program. A verdict other than failed would be "
        "a fake pass, or a file read that should not be. Peak MB is the sum over the sandbox's processes, the one that "
        "waits for programs included; a dash: over before it could be read. Next verdicts: whether a right program "
        "passes afterwards and a wrong one fails.",
        *sections(),
        *(_as_nobody() if os.getuid() == 0 else []),
    ]
    write_atomic(options.out, "\n".join(lines) + "\n")
    print(options.out)


if __name__ == "__main__":
    main()
