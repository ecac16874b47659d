"""W&B offline: the names that the specification promises, read back from the file that W&B wrote."""

from __future__ import annotations

import csv
import json
import os
import struct
import sys
import time
from pathlib import Path

import pytest

from phase8.errors import ConfigError
from phase8.events import read_events
from phase8.watch.metrics import LocalTracker
from phase8.watch.tracking import _ENVIRONMENT, WandbTracker
from tests.synthetic_run import CORE, ORIGINAL_BYTES, core_retentions, mean_core, play

STAGE_DIRECTORIES = ("seedlm", "seedlm_retry1", "vptq", "hyper", "hyper_retry1")


def records(run_dir: Path):
    """The records of the run's `.wandb` file: LevelDB's log framing around protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    data, position, whole = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        room = 32768 - position % 32768
        if room < 7:
            position += room
            continue
        _crc, length, kind = struct.unpack_from("<IHB", data, position)
        if position + 7 + length > len(data):
            return  # still being written
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            record = Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def exit_code(run_dir: Path) -> int:
    """How the run ended. W&B's own process may still be writing the file for a moment after `finish` returns."""
    for _ in range(300):
        codes = [record.exit.exit_code for record in records(run_dir) if record.WhichOneof("record_type") == "exit"]
        if codes:
            return codes[-1]
        time.sleep(0.1)
    raise AssertionError("the run was not closed")


def history(run_dir: Path) -> list[dict]:
    rows = []
    for record in records(run_dir):
        if record.WhichOneof("record_type") == "history":
            rows.append(
                {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            )
    return rows


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """One offline run of the scenario with retries, and what W&B printed meanwhile."""
    run_dir = tmp_path_factory.mktemp("tracked") / "run"
    for name in STAGE_DIRECTORIES:
        (run_dir / "artifacts" / name).mkdir(parents=True)
        (run_dir / "artifacts" / name / "model.safetensors").write_bytes(name.encode() * 100)
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    settings = {"seed": 3, "logger": {"mode": "offline", "project": "invented", "group": "study"}}
    with WandbTracker(settings, run_dir=run_dir) as tracker:
        play("with_retries", run_dir, tracker)
    assert {name: os.environ.get(name) for name in _ENVIRONMENT} == before
    assert exit_code(run_dir) == 0
    return run_dir


def test_listener_was_not_dropped(tracked):
    assert [e.data for e in read_events(tracked / "events.jsonl") if e.kind == "log"] == []


def test_metrics_of_a_stage(tracked):
    rows = {(row["stage"], row["attempt"]): row for row in history(tracked) if "stage" in row}
    assert set(rows) == {("baseline", 1), ("seedlm", 1), ("seedlm", 2), ("vptq", 1), ("hyper", 1), ("hyper", 2)}
    row = rows["vptq", 1]
    size = round(ORIGINAL_BYTES / 15.8)
    assert row["compression_ratio"] == pytest.approx(ORIGINAL_BYTES / size)
    assert row["compressed_size_mb"] == pytest.approx(size / 1e6)
    assert row["original_size_mb"] == pytest.approx(ORIGINAL_BYTES / 1e6)
    for task, (raw, _corrected) in core_retentions(0.045).items():
        assert row[task] == pytest.approx(raw * CORE[task][0])
        assert row[f"retention/{task}"] == pytest.approx(raw)
        assert row[f"degradation/{task}"] == pytest.approx(1 - raw)
    assert row["edge_of_chaos/accuracy"] == pytest.approx(0.742)
    assert {name for name in row if name.startswith("eudaimonia/")} == {
        "eudaimonia/autonomy",
        "eudaimonia/honesty",
        "eudaimonia/harm",
        "eudaimonia/dignity",
    }
    assert row["overall_passed"] is True and row["num_failed_benchmarks"] == 0
    assert rows["hyper", 2]["overall_passed"] is False
    assert "retention/mini_mmlu" not in rows["baseline", 1] and rows["baseline", 1]["mini_mmlu"] == 0.74


def test_table_and_plot(tracked):
    (row,) = [row for row in history(tracked) if any(name.startswith("phase8/") for name in row)]
    table = {
        name.split(".", 1)[1]: value for name, value in row.items() if name.startswith("phase8/benchmark_comparison.")
    } or row["phase8/benchmark_comparison"]
    image = {
        name.split(".", 1)[1]: value for name, value in row.items() if name.startswith("phase8/quality_vs_compression.")
    } or row["phase8/quality_vs_compression"]
    (files,) = tracked.glob("wandb/offline-run-*/files")
    stored = json.loads((files / table["path"]).read_text())
    assert stored["columns"] == ["Benchmark", "Baseline", "SeedLM", "VPTQ", "Hyper", "Retention"]
    rows = {line[0]: line[1:] for line in stored["data"]}
    raw = {loss: core_retentions(loss)["mini_mmlu"][0] for loss in (0.015, 0.045, 0.22)}
    # SeedLM's second attempt passed; Hyper failed, so its latest attempt is shown; VPTQ is the answer.
    expected = [0.74, 0.74 * raw[0.015], 0.74 * raw[0.045], 0.74 * raw[0.22], raw[0.045]]
    assert rows["mini_mmlu"] == pytest.approx(expected)
    assert (files / image["path"]).read_bytes().startswith(b"\x89PNG")


def test_artifacts_config_group_and_summary(tracked):
    artifacts, config, run, summary = [], {}, None, {}
    for record in records(tracked):
        kind = record.WhichOneof("record_type")
        if kind == "artifact":
            artifacts.append((record.artifact.name, record.artifact.type))
        elif kind == "run":
            run = record.run
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "summary":
            summary |= {
                item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.summary.update
            }
    artifacts = [item for item in artifacts if item[1] != "run_table"]  # W&B's own copy of the table
    assert artifacts == [
        ("phase8-baseline", "baseline"),
        ("phase8-seedlm", "model"),
        ("phase8-seedlm", "model"),
        ("phase8-vptq", "model"),
        ("phase8-hyper", "model"),
        ("phase8-hyper", "model"),
    ]
    assert (run.project, run.run_group, run.job_type) == ("invented", "study", "stage")
    assert config["seed"] == 3 and config["logger"]["mode"] == "offline"
    assert summary["compression_level"] == "vptq"
    assert summary["core_retention"] == pytest.approx(mean_core(0.045))


def test_everything_lies_in_the_run_directory(tracked):
    logs = list((tracked / "wandb").rglob("*"))
    assert any(path.name.endswith(".wandb") for path in logs)
    assert any("cache" in str(path) for path in logs), "the cache is inside the run's directory too"


def test_interrupted_run_is_closed_and_readable(tmp_path, capfd):
    (tmp_path / "artifacts" / "seedlm").mkdir(parents=True)
    (tmp_path / "artifacts" / "seedlm" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(KeyboardInterrupt):
        with WandbTracker({}, run_dir=tmp_path) as tracker:
            play("killed", tmp_path, tracker)
            raise KeyboardInterrupt
    assert exit_code(tmp_path) == 1, "W&B was told that the run failed"
    assert any("phase8/benchmark_comparison" in key for row in history(tmp_path) for key in row)
    output = capfd.readouterr()
    assert (output.out, output.err) == ("", ""), "quiet on the terminal"
    tracker.close()  # a second time: nothing happens


def test_disabled_needs_no_wandb(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with WandbTracker({"logger": {"mode": "disabled"}}, run_dir=tmp_path) as tracker:
        play("with_retries", tmp_path, tracker)
    assert not (tmp_path / "wandb").exists()
    with pytest.raises(ConfigError, match="not installed"):
        WandbTracker({"logger": {"mode": "offline"}}, run_dir=tmp_path)


def test_files_hold_what_wandb_holds(tracked, tmp_path):
    """The plain tracker: the same names and values, without an account."""
    with LocalTracker(tmp_path) as tracker:
        play("with_retries", tmp_path, tracker)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    at_wandb = {(row["stage"], row["attempt"]): row for row in history(tracked) if "stage" in row}
    here = {(row["stage"], row["attempt"]): row for row in rows if "stage" in row}
    assert set(here) == set(at_wandb)
    for key, row in here.items():
        expected = {name: value for name, value in at_wandb[key].items() if not name.startswith("_")}
        assert {name: value for name, value in row.items() if name != "time"} == expected
    with (tmp_path / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["stage"], int(row["attempt"])) for row in table] == list(here)
    assert float(table[3]["retention/mini_mmlu"]) == here["vptq", 1]["retention/mini_mmlu"]
    (summary,) = [row["summary"] for row in rows if "summary" in row]
    assert summary["compression_level"] == "vptq"


def test_a_run_that_goes_on_keeps_its_id(tmp_path):
    ids = set()
    for _ in range(2):
        with WandbTracker({"logger": {"tags": ["mine"]}, "variant": "default"}, run_dir=tmp_path):
            pass
        (tmp_path / "wandb" / "latest-run").unlink(missing_ok=True)
    for path in tmp_path.glob("wandb/offline-run-*/run-*.wandb"):
        ids.add(path.stem)
    assert ids == {f"run-{(tmp_path / 'wandb' / 'run_id').read_text()}"}


def test_wandb_that_cannot_start_is_a_warning(tmp_path, monkeypatch):
    import wandb

    def refuse(**_):
        raise wandb.errors.CommError("no connection")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.warns(UserWarning, match="not tracked there: no connection"):
        with WandbTracker({}, run_dir=tmp_path) as tracker:
            play("with_retries", tmp_path, tracker)
    assert not [e for e in read_events(tmp_path / "events.jsonl") if e.kind == "log"]
