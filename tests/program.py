"""Runs a program as its command line would, but within this process: a start of its own takes seconds."""

from __future__ import annotations

import contextlib
import io
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run_here(program: Path, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The program's exit status and output."""
    out, error, status = io.StringIO(), io.StringIO(), 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
    ):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [str(program), *arguments])
        try:
            runpy.run_path(str(program), run_name="__main__")
        except SystemExit as ended:
            status = ended.code or 0
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), error.getvalue())
