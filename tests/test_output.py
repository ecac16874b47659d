"""Programs whose output nobody reads any more: their work is done, and they end quietly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from phase8.artifact.write import write_artifact
from phase8.codecs import get_codec
from phase8.config import VPTQConfig
from phase8.model.source import load_source
from tests.synthetic_run import play

ROOT = Path(__file__).parent.parent


@pytest.fixture
def files(tiny_model_dir, tmp_path):
    """`model`, `artifact`, `run`: what the commands are given."""
    source = load_source(str(tiny_model_dir))
    groups = [
        get_codec("vptq").encode(source.matrices(), VPTQConfig(codebook_size=16, vector_dim=4), importance={}, seed=0),
        get_codec("plain").encode(source.vectors(), None, importance={}, seed=0),
    ]
    write_artifact(tmp_path / "artifact", groups, source, stage="vptq")
    play("killed", tmp_path / "run")
    return {"model": tiny_model_dir, "artifact": tmp_path / "artifact", "run": tmp_path / "run", "tmp": tmp_path}


def unread(command: list[str], *, errors_too: bool) -> tuple[int, str]:
    """Runs a program whose output's reader has gone before its first word; its status, and what it wrote on errors."""
    reads, writes = os.pipe()
    os.close(reads)
    try:
        ended = subprocess.run(
            [sys.executable, *command], stdin=subprocess.DEVNULL, stdout=writes,
            stderr=writes if errors_too else subprocess.PIPE, text=True, timeout=600, cwd=ROOT,
        )  # fmt: skip
    finally:
        os.close(writes)
    return ended.returncode, ended.stderr or ""


PHASE8 = ["-m", "phase8"]


@pytest.mark.parametrize("errors_too", [False, True])
@pytest.mark.parametrize(
    ("command", "left", "status"),
    [
        ([*PHASE8, "--help"], "", 0),
        ([*PHASE8, "inspect", "{artifact}", "--tensors"], "", 0),
        ([*PHASE8, "inspect", "{tmp}/nowhere"], "", 2),
        ([*PHASE8, "compare", "{run}", "{run}", "--html", "{tmp}/page.html"], "page.html", 0),
        ([*PHASE8, "decompress", "{artifact}", "{tmp}/plain"], "plain/model.safetensors", 0),
        ([*PHASE8, "lm-eval", "--help"], "", 0),
        (["-m", "phase8.runtime", "{artifact}", "--ids", "5,6,7", "--tokens", "4"], "", 0),
        (["-u", "-m", "phase8.runtime", "{artifact}", "--ids", "5,6,7", "--tokens", "4"], "", 0),
        (["-m", "phase8.runtime.side_by_side", "{artifact}", "{model}"], "", 1),  # it is asked nothing
        (["run.py", "--help"], "", 0),
        (["run.py", "--cfg", "job"], "", 0),
        (["run.py", "vptq.codebok_size=3"], "", 2),
    ],
)
def test_a_reader_that_went_away_is_no_error(files, command, left, status, errors_too):
    found, errors = unread([word.format(**files) for word in command], errors_too=errors_too)
    assert found == status, errors
    if status == 0:
        assert "rror" not in errors and "Traceback" not in errors
    assert "BrokenPipe" not in errors and "Exception ignored" not in errors
    assert (files["tmp"] / left).exists()


def test_an_output_that_is_full_is_told_of_after_the_work(files):
    command = [sys.executable, *PHASE8, "decompress", str(files["artifact"]), str(files["tmp"] / "plain")]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=600, cwd=ROOT)
    assert ended.returncode == 2
    assert ended.stderr.endswith("\nerror: the output could not be written: No space left on device\n")
    assert "Traceback" not in ended.stderr and "Exception ignored" not in ended.stderr
    assert (files["tmp"] / "plain" / "model.safetensors").exists()


def test_what_is_read_comes_as_it_was_written(files):
    """Buffering, encoding and the order of output and errors are those of a program without the wrapper."""
    program = (
        "import sys; from phase8.output import run_program\n"
        "def work():\n"
        "    print('ä', 1); sys.stdout.flush(); print('b', file=sys.stderr)\n"
        "    sys.stdout.buffer.write(b'c\\n')\n"
        "    return 3\n"
        "run_program(work)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert ended.returncode == 3 and ended.stdout.decode() == "ä 1\nb\nc\n"
