"""Results by content: made once, shared by processes, whole after a kill."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phase8.cache import ContentCache, code_version, content_key
from phase8.errors import OutputError

ROOT = Path(__file__).parent.parent


def take(directory: Path, parts: dict, made: list, value: str = "a result", log: Path | None = None) -> str:
    def make() -> str:
        made.append(parts)
        if log is not None:
            with log.open("a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(0.3)
        return value

    def read(path: Path) -> str:
        text = path.read_text()
        if not text.startswith("ok:"):
            raise OutputError("damaged")
        return text.removeprefix("ok:")

    return ContentCache(directory).get_or_make(
        "things", parts, read=read, make=make, write=lambda path, text: path.write_text(f"ok:{text}"), suffix=".txt"
    )


def test_a_result_is_made_once_for_each_content(tmp_path):
    made: list = []
    assert take(tmp_path, {"a": 1, "b": [2]}, made) == "a result"
    assert take(tmp_path, {"b": [2], "a": 1}, made, "never made") == "a result"
    assert take(tmp_path, {"a": 2, "b": [2]}, made, "another") == "another"
    assert len(made) == 2


def test_a_damaged_file_is_made_anew(tmp_path):
    made: list = []
    take(tmp_path, {"a": 1}, made)
    (file,) = (tmp_path / "things").iterdir()
    file.write_text("half a")
    assert take(tmp_path, {"a": 1}, made) == "a result" and len(made) == 2
    assert file.read_text() == "ok:a result"


def test_one_flipped_bit_is_found_wherever_it_is(tmp_path):
    """Reading alone would take it for another result."""
    made: list = []
    take(tmp_path, {"a": 1}, made)
    (file,) = (tmp_path / "things").iterdir()
    (sums,) = (tmp_path / "sums").iterdir()
    for damaged in (file, sums):
        whole = damaged.read_bytes()
        for place in range(3, len(whole) - 1):
            damaged.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            before = len(made)
            assert take(tmp_path, {"a": 1}, made) == "a result" and len(made) == before + 1
    file.write_bytes(b"ok:a result")
    sums.unlink()
    before = len(made)
    assert take(tmp_path, {"a": 1}, made) == "a result" and len(made) == before + 1


def test_the_file_that_belongs_to_a_result_is_checked_too(tmp_path):
    beside, made = tmp_path / "facts.json", []

    def write(path: Path, text: str) -> None:
        path.write_text(text)
        beside.write_text("3 steps")

    def take_both() -> str:
        cache = ContentCache(tmp_path / "cache")
        return cache.get_or_make(
            "things", {}, read=Path.read_text, make=lambda: made.append(1) or "x", write=write, beside=beside
        )

    assert take_both() == take_both() == "x" and len(made) == 1
    beside.write_text("9 steps")
    assert take_both() == "x" and len(made) == 2 and beside.read_text() == "3 steps"


def _in_process(directory, log):
    take(directory, {"a": 1}, [], log=log)


def test_processes_that_need_the_same_wait_for_the_first(tmp_path):
    context, log = multiprocessing.get_context("fork"), tmp_path / "log"
    processes = [context.Process(target=_in_process, args=(tmp_path / "cache", log)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(log.read_text().splitlines()) == 1


def test_a_killed_process_leaves_no_lock_and_no_half_file(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from phase8.cache import ContentCache\n"
        "def write(path, text):\n"
        "    path.write_text('ok:half'); print('writing', flush=True); time.sleep(60)\n"
        f"ContentCache({str(tmp_path)!r}).get_or_make('things', {{'a': 1}}, read=Path.read_text, make=str, "
        "write=write, suffix='.txt')"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment, text=True)
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    made: list = []
    begin = time.monotonic()
    assert take(tmp_path, {"a": 1}, made) == "a result" and made
    assert time.monotonic() - begin < 30  # not the killed process's sixty seconds


def test_a_failure_keeps_nothing(tmp_path):
    cache = ContentCache(tmp_path)

    def fail() -> str:
        raise ValueError("no")

    with pytest.raises(ValueError):
        cache.get_or_make("things", {}, read=Path.read_text, make=fail, write=Path.write_text)
    assert not (tmp_path / "things").exists()
    assert take(tmp_path, {}, []) == "a result"


def test_a_cache_that_is_off_finds_nothing(tmp_path):
    take(tmp_path, {"a": 1}, [])
    made = ContentCache(tmp_path, enabled=False).get_or_make(
        "things", {"a": 1}, read=Path.read_text, make=lambda: "fresh", write=Path.write_text
    )
    assert made == "fresh"


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.booleans() | st.none(), max_size=4), st.data())
def test_keys_tell_contents_apart(parts, data):
    other = data.draw(st.dictionaries(st.text(), st.integers() | st.text() | st.none(), max_size=4))
    same = parts == other and [type(v) for _, v in sorted(parts.items())] == [type(v) for _, v in sorted(other.items())]
    assert (content_key(parts) == content_key(other)) == same


def test_the_code_is_part_of_a_key(monkeypatch, tmp_path):
    import phase8.cache as module

    (tmp_path / "codecs").mkdir()
    (tmp_path / "codecs" / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(module, "PACKAGE", tmp_path)
    code_version.cache_clear()
    before = code_version("codecs")
    (tmp_path / "codecs" / "a.py").write_text("x = 2\n")
    code_version.cache_clear()
    assert code_version("codecs") != before
    code_version.cache_clear()
