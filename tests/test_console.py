"""The terminal view: plain where there is no terminal, figures only from the events."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from phase8.events import (
    Activity,
    BenchmarkResult,
    Event,
    EventLog,
    Failed,
    Log,
    StageComplete,
    StageStart,
    read_events,
)
from phase8.watch.console import ConsoleListener
from tests.synthetic_run import SCENARIOS, mean_core, play, run_start


def plain_text(name, tmp_path):
    stream = io.StringIO()
    with ConsoleListener(Console(file=stream, highlight=False)) as listener:
        play(name, tmp_path, listener)
    return stream.getvalue()


@pytest.mark.parametrize("name", SCENARIOS)
def test_without_a_terminal_it_is_plain_and_short(name, tmp_path, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    text = plain_text(name, tmp_path)
    assert re.findall(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text) == []
    lines = text.splitlines()
    assert 2 <= len(lines) <= 55
    assert "invented" in lines[0] or "invented" in text
    failures = [e for e in read_events(tmp_path / "events.jsonl") if e.kind == "log" and e.data.level == "error"]
    assert failures == [], "the listener was not dropped"


def test_retry_fallback_and_summary(tmp_path):
    text = plain_text("with_retries", tmp_path)
    first = mean_core(0.04)
    assert f"  failed at core benchmarks: keep {100 * first:.1f} %, need 98 %\n" in text
    assert "SeedLM: trying once more. core retention is below 95 %" in text
    assert "Hyper, stage 3 of 3, try 2\n" in text
    assert "  took 1 min 10 s; falling back to VPTQ, the last stage that passed" in text
    row = next(line for line in text.splitlines() if line.startswith("VPTQ ") and "MB" in line)
    expected = [
        "VPTQ",
        "1.06",
        "MB",
        "15.8×",
        "2.025",
        f"{100 * mean_core(0.045):.1f}",
        "%",
        f"{100 * mean_core(0.045, 1):.1f}",
        "%",
        "passed",
    ]
    assert row.split() == expected
    kept = next(line for line in text.splitlines() if line.startswith("SeedLM ") and "kB" not in line and "×" in line)
    assert "6.4×" in kept, "the attempt that passed, not the one that failed"
    assert "Result: VPTQ, 1.06 MB, 15.8× smaller than the original\n" in text
    assert "not all goals of the run are met: size: 15.8 times smaller, needs 40; time per token: could not be" in text
    for command in ("inspect", "generate", "decompress"):
        assert re.search(rf"^  [a-z ]+: +python -m phase8 {command} \S*artifacts/vptq", text, re.M)
    assert "report.html" in text


@pytest.mark.parametrize(("informative", "said"), [(4, True), (3, False), (0, False)])
def test_what_questions_resolve_is_said_only_where_they_judge(informative, said, tmp_path):
    """With fewer than `min_informative` telling benchmarks the run calls them useless; then no number of questions
    would help, however well the experts' benchmarks do."""
    stream = io.StringIO()
    with (
        EventLog(tmp_path / "events.jsonl") as log,
        ConsoleListener(Console(file=stream, highlight=False), verbose=True) as listener,
    ):
        log.subscribe(listener)
        start = run_start(tmp_path)
        assert start.limits.min_informative == 4
        log.emit(start)
        log.emit(StageStart(attempt=1), "baseline")
        for number in range(8):
            role, telling = ("core", number < informative) if number < 7 else ("expert", True)
            one = BenchmarkResult(
                task=f"mini_{number}", role=role, score=0.6, stderr=0.03, n=200, chance=0.5, informative=telling
            )
            log.emit(one, "baseline")
        log.emit(StageComplete(passed=True, seconds=1.0, artifact=None), "baseline")
    text = stream.getvalue()
    assert ("200 items resolve 4.9 points; 1 point takes 4,802" in text) == said
    assert ("200 questions each" in text) == said
    assert ("4,802" in text or "may be chance" in text) == said


def test_how_long_still_follows_from_the_attempts_so_far(tmp_path):
    text = plain_text("with_retries", tmp_path)
    # Each attempt took 70.2 s: two more stages after SeedLM's second, one after VPTQ.
    assert "  took 1 min 10 s; 2 more stages\n" in text
    assert "  took 1 min 10 s; 1 more stage\n" in text


def test_a_run_that_was_stopped_says_how_to_go_on(tmp_path):
    text = plain_text("interrupted", tmp_path)
    assert "The run was stopped before its end." in text
    assert f"python run.py resume={tmp_path}\n" in text


def test_an_error_says_how_to_go_on(tmp_path):
    stream = io.StringIO()
    with EventLog(tmp_path / "events.jsonl") as log:
        log.subscribe(ConsoleListener(Console(file=stream, highlight=False)))
        log.emit(run_start("a dir"))
        log.emit(Failed(error="OutputError", what="the disk is full"))
    assert stream.getvalue().endswith("go on with: python run.py resume='a dir'\n")


def test_fallback_offers_no_artifact(tmp_path):
    text = plain_text("fallback_at_first", tmp_path)
    assert "too much is lost for another try: mini_gsm8k keeps 71.0%, less than 80%" in text
    assert "falling back to the original model" in text
    assert "no stage kept enough; the original model stays the answer" in text and "python -m phase8" not in text


GLOSSARY = ("informative", "threshold", "conditions hold", "interval", "policy", "decide", "bits per byte", "nats")


@pytest.mark.parametrize("name", SCENARIOS)
def test_details_are_for_those_who_ask(name, tmp_path):
    stream = io.StringIO()
    with ConsoleListener(Console(file=stream, highlight=False), verbose=True) as listener:
        play(name, tmp_path / "verbose", listener)
    brief = plain_text(name, tmp_path / "brief")
    assert [word for word in GLOSSARY if word in brief] == []
    shown = [line for line in stream.getvalue().splitlines() if line and not line.startswith("    ")]
    told = [line.replace("/brief", "/verbose") for line in brief.splitlines() if line and not line.startswith("    ")]
    assert [line for line in shown if line not in told] in ([], ["compressor default"]), "details alone are added"
    assert set(told) <= set(shown)
    if name == "with_retries":
        assert "    with seedlm.bits=5, seedlm.latent_dim=4\n" in stream.getvalue()
        assert f"    fails: core retention {mean_core(0.04):.4g}, threshold 0.98\n" in stream.getvalue()


def test_without_a_terminal_a_long_step_says_once_a_minute_how_far_it_is(tmp_path):
    stream = io.StringIO()
    listener = ConsoleListener(Console(file=stream, highlight=False))
    for second in range(0, 150, 10):
        left = None if second == 0 else 150.0 - second
        data = Activity(step="optimise", done=second, total=150, seconds_left=left)
        listener(Event(time=1000.0 + second, stage="vptq", data=data))
    assert stream.getvalue().splitlines() == [
        "  training what is stored: 40 % done, 1 min 30 s left",
        "  training what is stored: 80 % done, 30 s left",
    ]


def test_in_a_terminal_there_are_bars_and_finished_steps(tmp_path):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=110, record=True, _environ={"TERM": "xterm"})
    with ConsoleListener(console) as listener:
        assert listener.live
        play("with_retries", tmp_path, listener)
    assert "\x1b[" in stream.getvalue()
    assert "training what is stored" in stream.getvalue()
    assert "SeedLM, stage 1 of 3, try 2" in console.export_text()
    assert stream.getvalue().rstrip("\n").count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h"), "cursor is back"


def test_no_time_left_before_there_is_a_rate(tmp_path):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=110, _environ={"TERM": "xterm"})
    listener = ConsoleListener(console)
    with EventLog(tmp_path / "events.jsonl") as log, listener:
        log.subscribe(listener)
        log.emit(StageStart(attempt=1), "vptq")
        log.activity("encode", stage="vptq", done=0, total=4)
        listener._progress.refresh()
        assert " left" not in stream.getvalue()
        clock = listener._progress.tasks[0]
        start = clock.get_time()
        clock.get_time = lambda: start + 10.0  # 1 unit in 10 s: 30 s left for the other 3
        listener._progress.get_time = clock.get_time
        log.emit(Activity(step="encode", done=1, total=4), "vptq")
        listener._progress.get_time = clock.get_time = lambda: start + 20.0
        log.emit(Activity(step="encode", done=2, total=4), "vptq")
        listener._progress.refresh()
        assert "20 s left" in stream.getvalue()


def test_control_characters_of_a_log_do_not_reach_the_terminal(tmp_path):
    stream = io.StringIO()
    listener = ConsoleListener(Console(file=stream, highlight=False))
    with EventLog(tmp_path / "events.jsonl") as log:
        log.subscribe(listener)
        log.emit(Log(level="warning", text="\x1b[2Jcleared\r\n[bold]not markup[/bold]"))
    assert stream.getvalue() == "warning: [2Jcleared  [bold]not markup[/bold]\n"
