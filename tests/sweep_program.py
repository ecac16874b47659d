"""Runs `tests/sweep_app/app.py` as its command line would, within this process: a start of its own takes seconds."""

from __future__ import annotations

import contextlib
import io
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
APP = ROOT / "tests" / "sweep_app" / "app.py"


def run_app(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The program's exit status and output; it runs in `directory`."""
    out, error, status = io.StringIO(), io.StringIO(), 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
    ):
        patch.chdir(directory)
        patch.setattr(sys, "argv", [str(APP), *arguments])
        try:
            runpy.run_path(str(APP), run_name="__main__")
        except SystemExit as ended:
            status = ended.code or 0
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), error.getvalue())
