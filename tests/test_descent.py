"""The way down the stages: what a failed gate, a retry and an abort lead to. Gates and recommendations are real; the
attempts between them are made up, so that every way takes milliseconds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from test_gates import judge, suite

from phase8.config import CompressionConfig
from phase8.events import EventLog, Log, read_events
from phase8.model.source import ExpertFile
from phase8.run import pipeline
from phase8.run import stage as stages
from phase8.run.pipeline import Pipeline

GOOD, NEAR, POOR = suite(), suite(0.945), suite(0.85)


@pytest.fixture
def descend(tmp_path, monkeypatch):
    """Runs a pipeline whose attempts score as given, by stage; returns which attempts ran, and the run."""
    monkeypatch.setattr(pipeline, "build_result", lambda **_: {})
    monkeypatch.setattr(pipeline, "phase_complete", lambda _: Log(level="info", text="the end"))
    monkeypatch.setattr(pipeline, "check_reopens", lambda _: None)
    monkeypatch.setattr(pipeline, "measure_baseline", lambda run: setattr(run, "baseline", suite()))
    monkeypatch.setattr(pipeline, "measure_latency_ms", lambda _: None)
    monkeypatch.setattr(stages, "measure_sensitivity", lambda *_: {})

    def run(results, **settings):
        done = []

        def attempt(run, stage, number, config, stage_input):
            done.append((stage, number, stage_input and stage_input.stage, config))
            result = results[stage][number - 1]
            verdict = judge(result, stage=stage, stage_input=stage_input and stage_input.result)
            return SimpleNamespace(
                stage=stage, number=number, directory=tmp_path, result=result, verdict=verdict, recommendation=None
            )

        monkeypatch.setattr(stages, "make_attempt", attempt)
        source = SimpleNamespace(
            name="made up", content_hash="", parameter_count=1, original_bytes=4, experts=ExpertFile(), network=None
        )
        events = EventLog(tmp_path / "events.jsonl")
        made = Pipeline(CompressionConfig(**settings), source, tmp_path, tmp_path, events)
        made.run()
        return done, made

    return run


def order(done):
    return [(stage, number) for stage, number, _, _ in done]


def test_where_every_gate_passes_each_stage_starts_from_the_one_before(descend):
    done, run = descend({"seedlm": [GOOD], "vptq": [GOOD], "hyper": [GOOD]})
    assert [(stage, before) for stage, _, before, _ in done] == [
        ("seedlm", None), ("vptq", "seedlm"), ("hyper", "vptq")
    ]  # fmt: skip
    assert run.best.stage == "hyper"


def test_a_failed_gate_is_tried_once_more_with_the_recommended_change(descend, tmp_path):
    done, run = descend({"seedlm": [GOOD], "vptq": [NEAR, GOOD], "hyper": [GOOD]})
    assert order(done) == [("seedlm", 1), ("vptq", 1), ("vptq", 2), ("hyper", 1)]
    configs = [config for stage, _, _, config in done if stage == "vptq"]
    assert configs[1].optimizer.calibration_sequences == 2 * configs[0].optimizer.calibration_sequences
    assert done[-1][3] == configs[0], "the change is for the stage that failed"
    kinds = [event.kind for event in read_events(tmp_path / "events.jsonl") if event.stage == "vptq"]
    assert kinds == [
        "stage_start", "quality_gate", "recommendation", "stage_complete", "retry_start", "stage_start",
        "quality_gate", "stage_complete",
    ]  # fmt: skip
    assert run.best.stage == "hyper"


def test_failed_twice_the_run_ends_at_the_stage_before(descend):
    done, run = descend({"seedlm": [GOOD], "vptq": [POOR, POOR]})
    assert order(done) == [("seedlm", 1), ("vptq", 1), ("vptq", 2)] and run.best.stage == "seedlm"


def test_with_nothing_passed_the_phase_7_model_remains(descend):
    done, run = descend({"seedlm": [POOR, POOR]})
    assert order(done) == [("seedlm", 1), ("seedlm", 2)] and run.best is None


@pytest.mark.parametrize("retries", [0, 2])
def test_as_many_retries_as_the_settings_say(descend, retries):
    done, _ = descend({"seedlm": [POOR] * 3}, max_retries=retries)
    assert order(done) == [("seedlm", number + 1) for number in range(retries + 1)]


CRITICAL = {
    "mini_winogrande keeps 79.0%": suite(winogrande=0.8 * 0.79),
    "MMLU and GSM8K together keep 79.0%": suite(mmlu=0.8 * 0.79, gsm8k=0.8 * 0.79),
    "the rule harm scores 0.490": suite(harm=0.49),
    "the first expert keeps 57.3%": suite(math=0.8 * 0.1, gsm8k=0.8 * 0.81, arc=0.8 * 0.81),
}


@pytest.mark.parametrize(("reason", "result"), CRITICAL.items(), ids=CRITICAL)
def test_a_critical_failure_ends_the_descent_without_a_retry(descend, reason, result, tmp_path):
    done, run = descend({"seedlm": [GOOD], "vptq": [result]})
    assert order(done) == [("seedlm", 1), ("vptq", 1)] and run.best.stage == "seedlm"
    gates = [event.data for event in read_events(tmp_path / "events.jsonl") if event.kind == "quality_gate"]
    assert gates[0].abort is None and reason in gates[1].abort
