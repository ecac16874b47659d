"""Steps shared by runs: what is found is what would have been made, and only what was changed is made anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from experiments.kills import settings as tiny_settings
from phase8.api import run_configured
from phase8.events import Log, read_events
from phase8.model.source import load_source
from phase8.run import attempt as attempts
from phase8.run import optimise as training
from phase8.run import score as scoring
from tests.quick_scores import quick_scores


@pytest.fixture
def runs(tmp_path, tiny_model_dir, monkeypatch):
    """Runs the tiny model's three stages; returns what was worked on, the log's sentences and the artifacts' bytes."""
    source = load_source(str(tiny_model_dir))
    quick_scores(source, monkeypatch)
    work: list[str] = []

    def counted(module, name, label):
        real = getattr(module, name)

        def call(*args, **named):
            work.append(label)
            return real(*args, **named)

        monkeypatch.setattr(module, name, call)

    from phase8.run import calibration
    from phase8.watch import report

    monkeypatch.setattr(report, "write_report", lambda run_dir: None)  # its plots take longer than the runs
    counted(attempts, "encode_all", "encode")
    counted(training, "reconstruct", "train")
    counted(calibration, "collect_importance", "importance")
    counted(scoring, "evaluate", "score")

    def run(name: str, reuse: bool, **changes):
        config = tiny_settings("retry", tmp_path / name, tmp_path / "cache")
        config = replace(config, max_retries=0, paths=replace(config.paths, reuse=reuse)).changed(changes)
        del work[:]
        result = run_configured(config, source, console=False)
        events = read_events(tmp_path / name / "events.jsonl")
        told = [e.data.text for e in events if isinstance(e.data, Log) and "another run" in e.data.text]
        artifacts = {
            path.parent.name: path.read_bytes()
            for path in sorted((tmp_path / name / "artifacts").glob("*/model.safetensors"))
        }
        assert (Path(tmp_path) / name / "state" / "vptq_1" / "scores.json").exists()
        return result, list(work), told, artifacts

    return run


def test_a_trial_that_differs_in_the_third_stage_pays_for_no_other(runs):
    _, work, told, first = runs("first", reuse=True)
    assert told == [] and work.count("encode") == 3 and work.count("score") == 4 and work.count("importance") == 1
    _, work, told, second = runs("second", reuse=True, **{"hyper.grid": 127})
    assert work.count("encode") == 1 and work.count("train") in (1, 2) and work.count("score") == 1
    assert "importance" not in work
    assert {text.split(":")[0] for text in told if "trained" in text} == {"seedlm", "vptq"}
    assert second["seedlm"] == first["seedlm"] and second["vptq"] == first["vptq"]
    assert second["hyper"] != first["hyper"]


@pytest.mark.slow
def test_what_is_found_is_what_would_have_been_made(runs):
    alone, work, told, made = runs("alone", reuse=False)
    assert told == [] and work.count("encode") == 3 and work.count("score") == 4
    _, work, _, shared = runs("first", reuse=True)
    assert work.count("encode") == 3 and shared == made
    again, work, _, found = runs("again", reuse=True)
    assert work == [] and found == made
    same = ("criteria", "compression_level", "success")
    assert {name: again[name] for name in same} == {name: alone[name] for name in same}


@pytest.mark.slow
def test_whatever_a_stage_depends_on_is_in_its_key(runs):
    runs("first", reuse=True)
    for changes, encodes in (
        ({"seed": 1}, 3),
        ({"vptq.codebook_size": 8}, 1),
        ({"grokfast.iterations": 4}, 0),
        ({"optimizer.lr": 0.5}, 0),
        ({"protect": ["*down_proj*"]}, 3),
    ):
        _, work, _, _ = runs(f"changed {changes}", reuse=True, **changes)
        assert work.count("encode") == encodes, changes
        assert work.count("train") >= max(encodes, 1), changes
