"""The event log: what is written can be read, listeners cannot harm a run, garbage is named."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch

from phase8 import events
from phase8.errors import ArtifactError, OutputError
from phase8.events import Event, EventLog, Kind, read_events


@dataclass(frozen=True)
class Pair:
    name: str
    value: float


class Colour(Enum):
    red = "red"


def strict_lines(path: Path) -> list[dict]:
    def reject(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=reject) for line in path.read_text().splitlines()]


def test_round_trip_and_order(tmp_path):
    seen = []
    with EventLog(tmp_path / "events.jsonl") as log:
        log.subscribe(seen.append)
        log.emit(Kind.STAGE_START, "seedlm", attempt=1)
        log.emit("log", level="info", text="läuft\nweiter")
        assert len(strict_lines(log.path)) == 2, "each event is on disk before the next"
    read = read_events(tmp_path / "events.jsonl")
    assert read == seen
    assert [event.kind for event in read] == ["stage_start", "log"]
    assert read[0].stage == "seedlm" and read[0].data == {"attempt": 1}
    assert read[1].stage is None and read[1].data["text"] == "läuft\nweiter"
    assert read[0].time <= read[1].time


def test_every_value_becomes_valid_json(tmp_path):
    with EventLog(tmp_path / "events.jsonl") as log:
        log.emit(
            Kind.LOG,
            nan=float("nan"),
            inf=[float("inf"), 1.5],
            scalar=np.float32(0.5),
            count=np.int64(3),
            truth=np.bool_(True),
            tensor=torch.tensor([1.0, float("nan")]),
            path=Path("a/b"),
            colour=Colour.red,
            checks=(Pair("core", float("-inf")),),
            nested={1: {"x": (1, 2)}},
        )
    (record,) = strict_lines(tmp_path / "events.jsonl")
    assert record["data"] == {
        "nan": None,
        "inf": [None, 1.5],
        "scalar": 0.5,
        "count": 3,
        "truth": True,
        "tensor": [1.0, None],
        "path": "a/b",
        "colour": "red",
        "checks": [{"name": "core", "value": None}],
        "nested": {"1": {"x": [1, 2]}},
    }


def test_unknown_kind_and_value_are_refused_and_leave_no_trace(tmp_path):
    with EventLog(tmp_path / "events.jsonl") as log:
        with pytest.raises(ValueError, match="nonsense"):
            log.emit("nonsense")
        with pytest.raises(TypeError, match=r"data\.checks\[0\] is a object"):
            log.emit(Kind.LOG, checks=[object()])
    assert read_events(tmp_path / "events.jsonl") == []


def test_failing_listener_is_reported_once_and_dropped(tmp_path):
    calls, others = [], []

    def clumsy(event: Event) -> None:
        calls.append(event)
        raise RuntimeError("no pencil")

    with EventLog(tmp_path / "events.jsonl") as log:
        log.subscribe(clumsy)
        log.subscribe(others.append)
        log.emit(Kind.STAGE_START, "vptq", attempt=1)
        log.emit(Kind.STEP_COMPLETE, "vptq", step="encode", seconds=1.0)
    assert len(calls) == 1
    written = read_events(tmp_path / "events.jsonl")
    assert [event.kind for event in written] == ["stage_start", "log", "step_complete"]
    assert written[1].data["level"] == "error"
    assert "clumsy" in written[1].data["text"] and "RuntimeError: no pencil" in written[1].data["text"]
    assert sorted(event.kind for event in others) == sorted(event.kind for event in written)


def test_keyboard_interrupt_in_a_listener_stops_the_run(tmp_path):
    def stop(event: Event) -> None:
        raise KeyboardInterrupt

    with EventLog(tmp_path / "events.jsonl") as log:
        log.subscribe(stop)
        with pytest.raises(KeyboardInterrupt):
            log.emit(Kind.LOG, level="info", text="x")


def test_activity_is_throttled_but_first_last_and_others_are_written(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(events.time, "monotonic", lambda: now[0])
    with EventLog(tmp_path / "events.jsonl") as log:
        for done in range(1, 101):  # 100 calls in 1 s
            now[0] = 100.0 + done * 0.01
            log.activity("encode", stage="vptq", done=done, total=100)
            log.emit(Kind.LOG, level="debug", text="kept")
        log.activity("write", stage="vptq", done=0, total=2)
    written = read_events(tmp_path / "events.jsonl")
    encode = [e.data["done"] for e in written if e.kind == Kind.ACTIVITY and e.data["step"] == "encode"]
    assert encode[0] == 1 and encode[-1] == 100
    assert 8 <= len(encode) <= 12
    assert sum(e.kind == Kind.LOG for e in written) == 100
    assert written[-1].data["step"] == "write", "a new step is never throttled"


def test_growing_log(tmp_path):
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.emit(Kind.LOG, level="info", text="one")
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    assert [event.data["text"] for event in read_events(path)] == ["one"]
    with EventLog(path) as log:  # a later process goes on: the unfinished line is cut off
        log.emit(Kind.LOG, level="info", text="two")
    assert [event.data["text"] for event in read_events(path)] == ["one", "two"]


@pytest.mark.parametrize(
    "line, what",
    [
        (b"\x00\xff\xfe\n", "not a line of JSON"),
        (b"[1, 2]\n", "no JSON object"),
        (b'{"time": NaN, "kind": "log", "stage": null, "data": {}}\n', "NaN is not JSON"),
        (b'{"time": 1e999, "kind": "log", "stage": null, "data": {}}\n', "not an event"),
        (b'{"time": 1, "kind": 3, "stage": null, "data": {}}\n', "not an event"),
        (b'{"time": 1, "kind": "log", "stage": null, "data": []}\n', "not an event"),
        (b"[" * 200_000 + b"\n", "not a line of JSON"),
    ],
)
def test_garbage_is_named_with_its_line(tmp_path, line, what):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"time": 1, "kind": "log", "stage": null, "data": {}}\n' + line)
    with pytest.raises(ArtifactError, match=what) as caught:
        read_events(path)
    assert "line 2" in caught.value.where


def test_endless_line_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(events, "MAX_LINE_BYTES", 1000)
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
        log.emit(Kind.LOG, level="info", text="one")
        real, log._file = log._file, _FullDisk(log._file)
        with pytest.raises(OutputError, match="cannot write the event log"):
            log.emit(Kind.LOG, level="info", text="lost")
        log._file = real
        log.emit(Kind.LOG, level="info", text="two")
    assert [record["data"]["text"] for record in strict_lines(tmp_path / "events.jsonl")] == ["one", "two"]


def test_threads_do_not_mix_lines(tmp_path):
    with EventLog(tmp_path / "events.jsonl") as log:

        def work(name: int) -> None:
            for index in range(50):
                log.emit(Kind.LOG, level="debug", text=f"{name}-{index}" * 20)

        threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(read_events(tmp_path / "events.jsonl")) == 200


def test_design_document_lists_every_kind():
    text = (Path(__file__).parents[1] / "docs" / "design.md").read_text()
    assert [kind for kind in Kind if f"`{kind}`" not in text] == []
