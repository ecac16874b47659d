"""The page's own tests, which Node runs: the store's reducer and how figures are written."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from phase8.codecs.stages import STAGES
from tests.dashboard_server import REPOSITORY

WEB = REPOSITORY / "web"


def test_the_store_and_the_figures_hold_what_they_promise():
    if shutil.which("npm") is None or not (WEB / "node_modules").is_dir():
        pytest.skip("the page's tests need npm and `npm ci` in web/")
    done = subprocess.run(["npm", "test"], cwd=WEB, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert re.search(r"^# pass \d\d", done.stdout, re.MULTILINE), done.stdout[-1000:]


def test_stages_have_the_colours_and_names_of_the_table_of_stages():
    css = (WEB / "src" / "app" / "globals.css").read_text()
    names = (WEB / "src" / "lib" / "stages.ts").read_text()
    for stage in STAGES:
        light, dark = stage.colours
        assert f"--{stage.name}: light-dark({light}, {dark});" in css
        assert f'{stage.name}: "{stage.short}"' in names
