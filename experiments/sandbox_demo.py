"""What hostile programs get done in the sandbox in which generated code is run.

    python -m experiments.sandbox_demo            # -> experiments/results/sandbox.md

Each attack is run as a benchmark's program would be, once with what the kernel offers (own process space, no network,
read-only file system) and once without, as on systems that offer nothing; then a right program has to pass. Measured
are the seconds until the verdict, the memory of the sandbox's processes at its highest (the sum of what each of them
held at most, `VmHWM`, looked at every few milliseconds; a dash where an attack was over sooner), the files of a
directory open to everybody that are gone or changed, the processes left, and the connections that a listening socket
got. As a control, those attacks that an unguarded machine outlives are run as plain child processes too: there they do
harm.
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

from phase8.benchmarks.sandbox import Sandbox
from phase8.files import write_atomic

RESULTS = Path(__file__).parent / "results"
TIMEOUT_S = 3.0
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
}


CONTROLS = (
    "deletes files", "overwrites files", "renames and re-permits files", "sends data to a socket", "starts a program",
    "leaves with success before its tests",
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
    next_passes: bool
    """Whether a right program passes afterwards."""


def attack(runner: Runner, program: str, timeout_s: float = TIMEOUT_S) -> Outcome:
    """Runs one program and looks at what it did.

    Args:
        program: Python that may name `TARGET`, a directory open to everybody, and `PORT`, where somebody listens.
    """
    _adopt_orphans()
    runner.run("pass", timeout_s)  # what starts once is there before
    precious = tempfile.TemporaryDirectory(prefix="phase8-precious-", ignore_cleanup_errors=True)
    with precious as directory, _listener() as (port, connections):
        target = Path(directory)
        for number in range(FILES):
            path = target / f"precious{number}"
            path.write_bytes(os.urandom(64))
            path.chmod(0o666)
        target.chmod(0o777)
        files, processes = _state(target), _alive()
        text = f"TARGET, PORT = {directory!r}, {port}\n{program}"
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
            next_passes=runner.run(GOOD, timeout_s),
        )


def _adopt_orphans() -> None:
    """Asks the kernel that what a dead descendant leaves behind becomes this process's child, where it is seen."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _state(directory: Path) -> dict[str, tuple[int, str]]:
    """Mode and content of every file."""
    return {
        path.name: (path.stat().st_mode, hashlib.sha256(path.read_bytes()).hexdigest()) for path in directory.glob("*")
    }


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
def _listener() -> Iterator[tuple[int, Callable[[], int]]]:
    """A port of this machine where somebody listens, and how many connections have come to it so far."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)

        def count() -> int:
            found = 0
            while True:  # whoever has connected waits in the kernel's queue
                try:
                    server.accept()[0].close()
                except BlockingIOError:
                    return found
                found += 1

        yield server.getsockname()[1], count


def table(outcomes: dict[str, Outcome]) -> list[str]:
    lines = [
        "| attack | verdict | ended | s | peak MB | files harmed | processes left | connections | next program |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in outcomes.items():
        verdict = "PASSED" if one.passed else "failed"
        ended = "at the time limit" if one.seconds >= TIMEOUT_S else "before"
        peak = f"{one.peak_mb:.0f}" if one.peak_mb else "–"
        after = "passes" if one.next_passes else "FAILS"
        lines.append(
            f"| {name} | {verdict} | {ended} | {one.seconds:.3f} | {peak} | {one.files_harmed} of {FILES} "
            f"| {one.processes_left} | {one.connections} | {after} |"
        )
    return lines


def _attack_all(runner: Runner, names: Iterable[str]) -> dict[str, Outcome]:
    outcomes = {}
    for name in names:
        outcomes[name] = attack(runner, ATTACKS[name])
        print(name, outcomes[name], flush=True)
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "sandbox.md")
    out = parser.parse_args().out
    lines = [
        "# Hostile programs in the sandbox",
        "",
        "`python -m experiments.sandbox_demo`",
        "",
        f"{platform.system()}, Python {platform.python_version()}, started as "
        f"{'root' if os.getuid() == 0 else 'an ordinary user'}. Time limit {TIMEOUT_S:g} s; memory limit 512 MB of "
        "address space for each program. A verdict other than failed would be a fake pass. Peak MB is the sum over the "
        "sandbox's processes, the one that waits for programs included; a dash: over before it could be read.",
    ]
    for namespaces, title in ((True, "With what the kernel offers"), (False, "Without")):
        sandbox = Sandbox(namespaces=namespaces)
        try:
            outcomes = _attack_all(sandbox, ATTACKS)
        finally:
            sandbox.close()
        lines += ["", f"## {title}: {'; '.join(sandbox.isolation)}", "", *table(outcomes)]
    outcomes = _attack_all(PlainProcess(), CONTROLS)
    lines += ["", "## Control: the same programs in a plain child process", "", *table(outcomes)]
    write_atomic(out, "\n".join(lines) + "\n")
    print(out)


if __name__ == "__main__":
    main()
