"""`python run.py dashboard=true`: the dashboard in a process of its own, beside one run.

The server is another process so that watching costs the run as little as possible. In a terminal it stays until Ctrl-C,
so that the result can be looked at; anywhere else it ends with the run.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USUAL = (Path("outputs"), Path("multirun"), Path("studies"))
STOP_S = 10.0


@contextmanager
def dashboard_beside(wanted: bool, run_dir: Path | str) -> Iterator[None]:
    """Serves the dashboard while the block runs.

    Args:
        wanted: False does nothing.
        run_dir: the run's directory; it is shown, and with it all runs of the usual directories.
    """
    if not wanted:
        yield
        return
    run_dir = Path(run_dir).absolute()
    roots = [root for root in USUAL if root.is_dir() or run_dir.is_relative_to(root.absolute())]
    if not any(run_dir.is_relative_to(root.absolute()) for root in roots):
        roots.append(run_dir.parent)
    command = [sys.executable, "-m", "phase8", "dashboard", *(f"--runs={root}" for root in roots)]
    server = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    threading.Thread(target=_say, args=(server,), daemon=True).start()
    try:
        yield
        if sys.stdout.isatty():
            _linger(server)
    finally:
        server.terminate()
        try:
            server.wait(STOP_S)
        except subprocess.TimeoutExpired:
            server.kill()


def _linger(server: subprocess.Popen[str]) -> None:
    """Waits until Ctrl-C, or until the server ends by itself."""
    if server.poll() is None:
        print("The run has ended; the dashboard stays until Ctrl-C.", flush=True)
    try:
        server.wait()
    except KeyboardInterrupt:
        pass


def _say(server: subprocess.Popen[str]) -> None:
    """Passes on where the dashboard is."""
    assert server.stdout is not None
    for line in server.stdout:
        if not line.startswith("Ctrl-C"):
            print(line, end="", flush=True)
