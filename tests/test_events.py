"""The event log: what is written can be read, listeners cannot harm a run, garbage is named."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import threading
import types
import typing
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phase8.errors import ArtifactError, OutputError, RunStopped
from phase8.events import (
    KINDS,
    VERSION,
    Activity,
    Allocated,
    CompressionProgress,
    Data,
    Event,
    EventLog,
    EventReader,
    Log,
    LogStart,
    StageStart,
    StepComplete,
    TrainingProgress,
    is_live,
    kinds,
    plain,
    read_events,
    schema,
)
from phase8.events import log as log_module
from phase8.events import read as read_module
from phase8.events.record import from_line, to_line
from tests.synthetic_run import run_start

START = b'{"time": 1, "kind": "log_start", "stage": null, "data": {"version": 2, "program": "phase8"}}\n'


@dataclasses.dataclass(frozen=True)
class Pair:
    name: str
    value: float


class Colour(Enum):
    red = "red"


def strict_lines(path: Path) -> list[dict]:
    def reject(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=reject) for line in path.read_text().splitlines()]


def after_start(path: Path) -> list[Event]:
    first, *events = read_events(path)
    assert first.data == LogStart(version=VERSION)
    return events


def texts(path: Path) -> list[str]:
    return [event.data.text for event in after_start(path)]


def info(text: str) -> Log:
    return Log(level="info", text=text)


# Records


def values(hint: typing.Any) -> st.SearchStrategy:
    """Random values of a field's type, built here from the annotations alone."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([st.none() if one is type(None) else values(one) for one in arguments])
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return st.lists(values(arguments[0]), max_size=3).map(tuple)
        return st.tuples(*map(values, arguments))
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return st.builds(hint, **{field.name: values(hints[field.name]) for field in dataclasses.fields(hint)})
    simple = {
        int: st.integers(-(2**53), 2**53),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: st.text(alphabet=st.characters(codec="utf-8"), max_size=20),
        bool: st.booleans(),
        typing.Any: st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.lists(st.integers(), max_size=2)),
    }
    return simple[hint]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_every_kind_comes_back_as_it_was_written(kind, data):
    told = data.draw(values(KINDS[kind]))
    event, line = to_line(12.5, "vptq", told)
    assert event.data == told and event.kind == kind
    assert line.count(b"\n") == 1 and from_line(line, "here") == event
    assert json.loads(line) == {"time": 12.5, "kind": kind, "stage": "vptq", "data": plain(told)}


def test_a_field_has_a_type_and_a_home_in_the_schema():
    assert set(schema()) == set(KINDS)
    for kind, described in schema().items():
        fields = {field.name for field in dataclasses.fields(KINDS[kind])}
        assert set(described["properties"] if fields else {}) == fields


def test_design_document_lists_the_fields_of_every_kind():
    """The table in docs/design.md has a row for each kind, with exactly its fields."""
    text = (Path(__file__).parents[1] / "docs" / "design.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text.split("\n## Events\n")[1].split("\n## ")[0], re.MULTILINE))
    assert set(rows) == set(KINDS)
    for kind, row in rows.items():
        listed = re.findall(r"`(\w+)`", re.sub(r"\([^()]*\)", "", row))
        assert listed == [field.name for field in dataclasses.fields(KINDS[kind])], kind
    nested = {"checks": kinds.CheckResult, "limits": kinds.Limits, "parts": kinds.Part}
    for name, cls in nested.items():
        (line,) = re.findall(rf"^- `{name}`: (.*)$", text, re.MULTILINE)
        listed = re.findall(r"`(\w+)`", re.sub(r"\([^()]*\)", "", line))
        assert listed == [field.name for field in dataclasses.fields(cls)], name


def test_every_value_becomes_valid_json():
    given = dict(
        nan=float("nan"), inf=[float("inf"), 1.5], scalar=np.float32(0.5), count=np.int64(3), truth=np.bool_(True),
        tensor=torch.tensor([1.0, float("nan")]), path=Path("a/b"), colour=Colour.red,
        checks=(Pair("core", float("-inf")),), nested={1: {"x": (1, 2)}},
    )  # fmt: skip
    assert plain(given) == {
        "nan": None, "inf": [None, 1.5], "scalar": 0.5, "count": 3, "truth": True, "tensor": [1.0, None],
        "path": "a/b", "colour": "red", "checks": [{"name": "core", "value": None}], "nested": {"1": {"x": [1, 2]}},
    }  # fmt: skip


def test_a_figure_that_is_not_finite_is_none_for_every_reader(tmp_path):
    seen = []
    with EventLog(tmp_path / "events.jsonl") as log:
        log.subscribe(seen.append)
        log.emit(TrainingProgress(attempt=1, step=1, steps=2, loss=float("nan"), divergence=np.float32("inf")), "vptq")
    assert seen[0].data.loss is None and seen[0].data.divergence is None
    assert after_start(tmp_path / "events.jsonl") == seen


# Writing


def test_round_trip_and_order(tmp_path):
    seen = []
    with EventLog(tmp_path / "events.jsonl") as log:
        log.subscribe(seen.append)
        log.emit(StageStart(attempt=1), "seedlm")
        log.emit(info("läuft\nweiter"))
        assert len(strict_lines(log.path)) == 3, "each event is on disk before the next"
    read = after_start(tmp_path / "events.jsonl")
    assert read == seen
    assert [event.kind for event in read] == ["stage_start", "log"]
    assert read[0].stage == "seedlm" and read[0].data == StageStart(attempt=1)
    assert read[1].stage is None and read[1].data.text == "läuft\nweiter"
    assert read[0].time <= read[1].time


def test_a_wrong_value_is_refused_and_leaves_no_trace(tmp_path):
    with EventLog(tmp_path / "events.jsonl") as log:
        with pytest.raises(TypeError, match="stage_start: attempt: Input should be a valid integer"):
            log.emit(StageStart(attempt="one"))
        with pytest.raises(TypeError, match=r"data\.tensors\.a\.b is a object"):
            log.emit(Allocated(attempt=1, limit="x", budget_bytes=1, size_bytes=1, estimated_bytes=1,
                               estimated_divergence=0.0, encodings=1, tensors={"a": {"b": object()}}))  # fmt: skip
    assert after_start(tmp_path / "events.jsonl") == []


def test_failing_listener_is_reported_once_and_dropped(tmp_path):
    for number, problem in enumerate((RuntimeError("no pencil"), BrokenPipeError("gone"), SystemExit(1))):
        calls, others = [], []

        def clumsy(event: Event, calls=calls, problem=problem) -> None:
            calls.append(event)
            raise problem

        path = tmp_path / f"{number}.jsonl"
        with EventLog(path) as log:
            log.subscribe(clumsy)
            log.subscribe(others.append)
            log.emit(StageStart(attempt=1), "vptq")
            log.emit(StepComplete(step="encode", seconds=1.0), "vptq")
        assert len(calls) == 1
        written = after_start(path)
        assert [event.kind for event in written] == ["stage_start", "log", "step_complete"]
        assert written[1].data.level == "error"
        assert "clumsy" in written[1].data.text and f"{type(problem).__name__}: {problem}" in written[1].data.text
        assert sorted(event.kind for event in others) == sorted(event.kind for event in written)


@pytest.mark.parametrize("wish", [KeyboardInterrupt(), RunStopped("pruned", by="study")])
def test_a_listener_may_end_the_run(tmp_path, wish):
    def stop(event: Event) -> None:
        raise wish

    with EventLog(tmp_path / "events.jsonl") as log:
        log.subscribe(stop)
        with pytest.raises(type(wish)):
            log.emit(info("x"))


def test_activity_is_throttled_but_first_last_and_others_are_written(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(log_module.time, "monotonic", lambda: now[0])
    with EventLog(tmp_path / "events.jsonl") as log:
        for done in range(1, 101):  # 100 calls in 1 s
            now[0] = 100.0 + done * 0.01
            log.activity("encode", stage="vptq", done=done, total=100)
            log.emit(info("kept"))
        log.activity("write", stage="vptq", done=0, total=2)
    written = after_start(tmp_path / "events.jsonl")
    encode = [e.data for e in written if isinstance(e.data, Activity) and e.data.step == "encode"]
    assert encode[0].done == 1 and encode[-1].done == 100
    assert 8 <= len(encode) <= 12
    assert encode[0].seconds_left is None, "no rate yet"
    for data in encode[1:]:
        assert data.seconds_left == pytest.approx((100 - data.done) * 0.01)
    assert sum(e.kind == "log" for e in written) == 100
    assert written[-1].data.step == "write", "a new step is never throttled"


def test_growing_log(tmp_path):
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.emit(info("one"))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    assert texts(path) == ["one"]
    with EventLog(path) as log:  # a later process goes on: the unfinished line is cut off
        log.emit(info("two"))
    assert texts(path) == ["one", "two"]


def test_a_reader_follows(tmp_path):
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        reader = EventReader(path)
        assert [event.kind for event in reader.read()] == ["log_start"]
        assert reader.read() == []
        log.emit(info("one"))
        log.emit(info("two"))
        assert [event.data.text for event in reader.read()] == ["one", "two"]
        with path.open("ab") as file:
            file.write(b'{"time": 1, ')
        assert reader.read() == [] and reader.lines == 3


def test_a_log_has_one_writer(tmp_path):
    path = tmp_path / "events.jsonl"
    assert not is_live(tmp_path)
    with EventLog(path) as log:
        assert is_live(tmp_path)
        with pytest.raises(OutputError, match="another process is writing"):
            EventLog(path)
        log.emit(info("unharmed"))
    assert not is_live(tmp_path)
    assert texts(path) == ["unharmed"]


def test_a_killed_writer_leaves_no_lock(tmp_path):
    path = tmp_path / "events.jsonl"
    program = (
        "import os, signal, sys; from phase8.events import EventLog, Log; log = EventLog(sys.argv[1]);"
        "log.emit(Log(level='info', text='one')); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=False, cwd=Path(__file__).parents[1])
    with EventLog(path) as log:
        log.emit(info("two"))
    assert texts(path) == ["one", "two"]


# Reading


def test_an_old_or_later_log_is_named(tmp_path):
    path = tmp_path / "events.jsonl"
    old = b'{"time": 1.5, "kind": "step_complete", "stage": "baseline", "data": {"step": "start", "seconds": 4.0}}\n'
    path.write_bytes(old * 3)
    for use in (read_events, EventLog):
        with pytest.raises(ArtifactError, match="version 1, and this program reads version 2"):
            use(path)
    assert path.read_bytes() == old * 3
    path.write_bytes(START.replace(b'"version": 2', b'"version": 7'))
    with pytest.raises(ArtifactError, match="version 7, and this program reads version 2"):
        read_events(path)


def test_a_field_of_tomorrow_is_left_out(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(START + b'{"time": 1, "kind": "stage_start", "stage": "a", "data": {"attempt": 2, "mood": 7}}\n')
    assert read_events(path)[1] == Event(1.0, "a", StageStart(attempt=2))


@pytest.mark.parametrize(
    "line, what",
    [
        (b"\x00\xff\xfe\n", "not a line of JSON"),
        (b"[1, 2]\n", "no JSON object"),
        (b'{"time": NaN, "kind": "log", "stage": null, "data": {}}\n', "NaN is not JSON"),
        (b'{"time": 1e999, "kind": "log", "stage": null, "data": {}}\n', "not an event"),
        (b'{"time": 1, "kind": 3, "stage": null, "data": {}}\n', "not an event"),
        (b'{"time": 1, "kind": "log", "stage": null, "data": []}\n', "not an event"),
        (b'{"time": 1, "kind": "log", "stage": null, "data": {"level": "info"}}\n', "not a log: text: Field required"),
        (b'{"time": 1, "kind": "stage_start", "stage": null, "data": {"attempt": "1"}}\n', "not a stage_start"),
        (b'{"time": 1, "kind": "stage_start", "stage": null, "data": {"attempt": true}}\n', "not a stage_start"),
        (b'{"time": 1, "kind": "song", "stage": null, "data": {}}\n', "'song' is no kind of event"),
        (b"[" * 200_000 + b"\n", "not a line of JSON"),
    ],
)
def test_garbage_is_named_with_its_line(tmp_path, line, what):
    path = tmp_path / "events.jsonl"
    path.write_bytes(START + line)
    with pytest.raises(ArtifactError, match=what) as caught:
        read_events(path)
    assert "line 2" in caught.value.where


def test_endless_line_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(read_module, "MAX_LINE_BYTES", 1000)
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"a": "' + b"x" * 5000)
    with pytest.raises(ArtifactError, match="longer than the 1,000 bytes"):
        read_events(path)


def test_missing_log_and_unwritable_place(tmp_path):
    with pytest.raises(ArtifactError, match="cannot read"):
        read_events(tmp_path / "nothing.jsonl")
    with pytest.raises(OutputError, match="cannot write"):
        EventLog(tmp_path / "no such directory" / "events.jsonl")


class _FullDisk:
    """A file of which only the first bytes of a write reach the disk."""

    def __init__(self, file):
        self.file = file

    def write(self, data):
        return self.file.write(data[:7])

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_full_disk_leaves_whole_lines(tmp_path):
    with EventLog(tmp_path / "events.jsonl") as log:
        log.emit(info("one"))
        real, log._file = log._file, _FullDisk(log._file)
        with pytest.raises(OutputError, match="cannot write the event log"):
            log.emit(info("lost"))
        log._file = real
        log.emit(info("two"))
    assert [record["data"]["text"] for record in strict_lines(tmp_path / "events.jsonl")[1:]] == ["one", "two"]


def test_threads_do_not_mix_lines(tmp_path):
    with EventLog(tmp_path / "events.jsonl") as log:

        def work(name: int) -> None:
            for index in range(50):
                log.emit(info(f"{name}-{index}" * 20))

        threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(after_start(tmp_path / "events.jsonl")) == 200


def test_kinds_are_the_classes_of_the_file():
    classes = {c for c in vars(kinds).values() if isinstance(c, type) and issubclass(c, Data) and c is not Data}
    assert classes == set(KINDS.values())
    assert isinstance(run_start("x"), KINDS["run_start"])
    assert KINDS["compression_progress"] is CompressionProgress
