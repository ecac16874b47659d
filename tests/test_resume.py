"""A run that ends before its end goes on where it was, and comes to the same bytes and the same result."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from experiments import kills
from phase8 import api
from phase8.artifact.read import read_artifact
from phase8.config import Fallback
from phase8.errors import ConfigError, ModelError, OutputError, RunStopped
from phase8.events import EventLog, read_events
from phase8.run.control import Control, write_control
from phase8.run.signals import EndOnSignal
from tests.program import ROOT, run_here
from tests.quick_scores import quick_scores
from tests.synthetic_run import run_start


@pytest.fixture(scope="module")
def source():
    return kills.tiny_source()


@pytest.fixture(autouse=True)
def fast(source, monkeypatch):
    quick_scores(source, monkeypatch)


@pytest.fixture
def no_report(monkeypatch):
    """A report's plots take longer than these runs, and no byte of an artifact or a result hangs on them."""
    monkeypatch.setattr("phase8.watch.report.write_report", lambda run_dir: None)


class Gone(BaseException):
    """The process is no more: nothing is written from here on."""


def die_after(events: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a process write so many events and no more; what it wrote is on disk, as after a kill."""
    left, write = [events], EventLog._write

    def writing(self, line):
        left[0] -= 1
        if left[0] < 0:
            raise Gone
        write(self, line)

    monkeypatch.setattr(EventLog, "_write", writing)


def kinds(run_dir: Path) -> list[str]:
    return [event.kind for event in read_events(run_dir / "events.jsonl")]


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("case", kills.CASES)
def test_a_run_cut_at_random_events_comes_to_the_same_end(case, source, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    api.run_configured(kills.settings(case, whole, tmp_path / "cache"), source, console=False)
    rng, settings = random.Random(case), kills.settings(case, cut, tmp_path / "cache2")
    for process in range(8):
        with monkeypatch.context() as limited:
            if process < 7:
                die_after(rng.randrange(5, 60), limited)
            try:
                if (cut / "events.jsonl").exists() and "run_start" in kinds(cut):
                    api.resume(cut, source, console=False)
                else:
                    api.run_configured(settings, source, console=False)
            except Gone:
                continue
        break
    assert kills.outcome(cut) == kills.outcome(whole)
    events = read_events(cut / "events.jsonl")
    assert sum(event.kind == "run_resumed" for event in events) >= 3
    steps = [(e.stage, e.data.attempt, e.data.step, e.data.round) for e in events if e.kind == "step_complete"]
    again = {step for step, n in Counter(steps).items() if n > 1 and step[2] not in ("start", "load")}
    assert not again, "a finished step was done again"
    assert kinds(cut).count("phase_complete") == 1 and kinds(cut)[-1] == "phase_complete"
    left = {path.name for path in (cut / "state").glob("*/*")}
    assert left <= {"scores.json", "attempt.json"}, "products of finished steps are deleted"


@pytest.mark.slow
def test_a_run_survives_being_killed(tmp_path):
    """The same with SIGKILL at random moments."""
    command = [sys.executable, str(ROOT / "experiments" / "kills.py"), "--kills", "8", "--seed", "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=1500, env=environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_what_cannot_be_gone_on_with_is_refused(source, tmp_path):
    run_dir = tmp_path / "run"
    settings = kills.settings("budget", run_dir, tmp_path / "cache")
    settings = replace(settings, grokfast=replace(settings.grokfast, iterations=0))

    def stop(event):
        if event.kind == "stage_complete" and event.stage == "baseline":
            raise RunStopped("enough seen", by="study")

    result = api.run_configured(settings, source, console=False, listeners=[stop])
    assert result["interrupted"] and result["stopped"] == "enough seen"
    aborted = [event.data for event in read_events(run_dir / "events.jsonl") if event.kind == "aborted"]
    assert [(data.by, data.reason) for data in aborted] == [("study", "enough seen")]
    with pytest.raises(OutputError, match="holds a run already"):
        api.run_configured(settings, source, console=False)
    with EventLog(run_dir / "events.jsonl"), pytest.raises(OutputError, match="another process"):
        api.resume(run_dir, source, console=False)
    with pytest.raises(Exception, match="cannot read the event log"):
        api.resume(tmp_path / "nothing", source, console=False)
    steps = settings.training.steps
    with pytest.raises(ConfigError, match="no more than the run's"):
        api.resume(run_dir, source, console=False, training_steps=steps)
    api.resume(run_dir, source, console=False, training_steps=steps + 1)
    assert json.loads((run_dir / "result.json").read_text())["interrupted"] is False
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["training"]["steps"] == steps + 1
    with pytest.raises(ConfigError, match="come to its end"):
        api.resume(run_dir, source, console=False)


@pytest.mark.usefixtures("no_report")
def test_a_damaged_product_is_made_again_to_the_same_end(source, tmp_path):
    """One bit of every file in `state`, at a place where the text stays JSON: 1.0 becomes 0.0, `ema` another word."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    api.run_configured(kills.settings("retry", whole, tmp_path / "cache"), source, console=False)

    def stop(event):
        if event.kind == "stage_complete" and event.stage == "vptq":
            raise RunStopped("enough seen", by="study")

    api.run_configured(kills.settings("retry", cut, tmp_path / "cache"), source, console=False, listeners=[stop])
    shutil.rmtree(tmp_path / "cache")  # or the baseline's scores would come from there
    damaged = sorted((cut / "state").glob("*/*"))
    assert {path.name for path in damaged} == {"scores.json", "attempt.json"} and len(damaged) >= 5
    for path in damaged:
        raw = path.read_bytes()
        changed = raw.replace(b"1.0", b"0.0", 1) if path.name == "scores.json" else raw.replace(b"e", b"d", 1)
        assert len(changed) == len(raw) and sum((a ^ b).bit_count() for a, b in zip(raw, changed, strict=True)) == 1
        path.write_bytes(changed)
    api.resume(cut, source, console=False)
    told = [event.data.text for event in read_events(cut / "events.jsonl") if event.kind == "log"]
    assert sum("done again" in text and "checksum" in text for text in told) == len(damaged)
    assert kills.outcome(cut) == kills.outcome(whole)


def test_another_model_is_refused(source, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    settings = kills.settings("budget", run_dir, tmp_path / "cache")
    (run_dir / "config.yaml").write_text(yaml.safe_dump(settings.to_dict()))
    with EventLog(run_dir / "events.jsonl") as log:
        log.emit(run_start(run_dir, model_hash="another"))
    (run_dir / "result.json").write_text("{}")
    with pytest.raises(ModelError, match="not the one that this run began with"):
        api.resume(run_dir, source, console=False)
    assert (run_dir / "result.json").exists(), "nothing was begun, nothing is taken away"
    assert kinds(run_dir)[-1] == "failed"


# Control file and signals


def test_pause_and_run(tmp_path):
    with EventLog(tmp_path / "events.jsonl") as log:
        control = Control(tmp_path, log)
        control.look("encode", "vptq")
        write_control(tmp_path, "pause", "lunch")
        timer = threading.Timer(0.5, write_control, (tmp_path, "run"))
        timer.start()
        control._next_look = 0.0
        control.look("encode", "vptq")
        timer.join()
    told = read_events(tmp_path / "events.jsonl")[1:]
    assert [(event.kind, event.stage) for event in told] == [("paused", "vptq"), ("resumed", "vptq")]
    assert told[0].data.reason == "lunch" and told[1].data.paused_s > 0


def test_abort_and_nonsense(tmp_path):
    with EventLog(tmp_path / "events.jsonl") as log:
        control = Control(tmp_path, log)
        for content in ("{", "[]", '{"state": "dance"}', "[" * 10_000):
            (tmp_path / "control.json").write_text(content)
            control._next_look = 0.0
            control.look("encode")
        assert [event.data.level for event in read_events(tmp_path / "events.jsonl")[1:]] == ["warning"] * 4
        write_control(tmp_path, "abort", "wrong model")
        control._next_look = 0.0
        with pytest.raises(RunStopped, match="wrong model") as stopped:
            control.look("encode")
        assert stopped.value.by == "control"
    with pytest.raises(ValueError, match="dance"):
        write_control(tmp_path, "dance")


def test_a_look_is_rare(tmp_path, monkeypatch):
    """Between two looks at the file no call is made at all."""
    with EventLog(tmp_path / "events.jsonl") as log:
        control, looks = Control(tmp_path, log), []
        monkeypatch.setattr(os, "stat", lambda path, **_: looks.append(path) or (_ for _ in ()).throw(OSError))
        now = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        for step in range(1000):
            now[0] = 1.0 + step * 0.001
            control.look("optimise")
    assert 4 <= len(looks) <= 6


def test_an_abort_keeps_the_last_artifact(source, tmp_path):
    run_dir = tmp_path / "run"

    def wish(event):
        if event.kind == "stage_complete" and event.stage == "seedlm":
            write_control(run_dir, "abort", "seen enough")
            time.sleep(0.3)  # a look at the control file is rare, and a tiny model's stage short

    config = kills.settings("retry", run_dir, tmp_path / "cache")
    result = api.run_configured(config, source, console=False, listeners=[wish])
    assert result["interrupted"] and result["stopped"] == "seen enough" and result["compression_level"] == "seedlm"
    assert (run_dir / "report.html").exists() and kinds(run_dir)[-2:] == ["aborted", "phase_complete"]


def test_a_stopped_training_leaves_an_artifact_and_goes_on(source, tmp_path):
    run_dir = tmp_path / "run"

    def wish(event):
        if event.kind == "training_progress" and event.data.step == 7:
            write_control(run_dir, "abort", "enough")
            time.sleep(0.3)  # a look at the control file is rare

    config = kills.settings("trained", run_dir, tmp_path / "cache")
    result = api.run_configured(config, source, console=False, listeners=[wish])
    stopped = read_artifact(run_dir / "stopped" / "hyper")
    assert result["interrupted"] and stopped.size_bytes <= config.hyper.budget_bytes
    assert all(np.isfinite(weight).all() for _, weight in stopped.tensors())
    again = api.resume(run_dir, source, console=False)
    assert not (run_dir / "stopped").exists()
    assert not again["interrupted"] and [a["attempt"] for a in again["stages"]["hyper"]["attempts"]] == [1, 2]
    trained = [event.data.steps for event in read_events(run_dir / "events.jsonl") if event.kind == "training_complete"]
    assert trained == [12, 6], "a retry goes on, for half the steps"


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(("answer", "stopped"), [("run", ""), ("abort", "look at it first")])
def test_a_manual_fallback_waits_for_an_answer(source, tmp_path, answer, stopped):
    """VPTQ fails; what SeedLM made is the answer either way, but nothing is decided before somebody says so."""
    run_dir = tmp_path / "run"
    config = kills.settings("retry", run_dir, tmp_path / "cache")
    rule = replace(config.gates.rule, vptq=1.0)
    config = replace(config, fallback=Fallback.manual, max_retries=0, gates=replace(config.gates, rule=rule))

    def reply(event):
        if event.kind == "paused":
            assert event.data.step == "gate" and "vptq failed its gate" in event.data.reason
            write_control(run_dir, answer, "look at it first")

    result = api.run_configured(config, source, console=False, listeners=[reply])
    assert result["compression_level"] == "seedlm" and result["stopped"] == stopped


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_every_signal_ends_the_run_in_order_and_once(name):
    # Tests started with nohup, or in a script's background, ignore signals, and a run then ignores them too.
    usual = {"SIGINT": signal.default_int_handler}.get(name, signal.SIG_DFL)
    inherited = signal.signal(getattr(signal, name), usual)
    before = signal.getsignal(getattr(signal, name))
    with EndOnSignal() as ending:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(getattr(signal, name))
        for again in ("SIGINT", "SIGTERM", "SIGHUP"):
            signal.raise_signal(getattr(signal, again))  # ignored: the result is being written
        assert ending.name == name
    assert signal.getsignal(getattr(signal, name)) is before
    signal.signal(getattr(signal, name), inherited)


def test_what_outlives_its_terminal_goes_on():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with EndOnSignal():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("more", [["seed=3"], ["training.steps=9", "seed=3"], ["training.steps=9", "training.steps=8"]])
def test_resume_on_the_command_line_takes_more_steps_and_no_other_setting(more, tmp_path):
    ended = run_here(ROOT / "run.py", f"resume={tmp_path}", *more)
    assert ended.returncode == 2 and "a resumed run keeps its settings" in ended.stderr


@pytest.mark.slow
def test_output_that_nobody_reads_costs_no_result(tmp_path):
    """`python run.py ... | head -1`: the console is dropped, the run goes on."""
    command = (
        f"{sys.executable} {ROOT / 'run.py'} experiment=quick benchmark_samples=4 grokfast.iterations=0 logger=none "
        f"vptq.enabled=false hyper.enabled=false hydra.run.dir={tmp_path / 'run'} paths.cache_dir={tmp_path} | head -1"
    )
    ended = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0 and ended.stderr == "", ended.stderr
    assert (tmp_path / "run" / "result.json").exists() and (tmp_path / "run" / "report.html").exists()
