"""The whole run on the embedded model, with few items and few iterations."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from phase8.api import CompressionOrchestrator, run_configured
from phase8.artifact.read import read_artifact
from phase8.artifact.write import load_artifact
from phase8.config import (
    BenchmarksConfig,
    CompressionConfig,
    EdgePool,
    GateConfig,
    GrokfastConfig,
    HyperConfig,
    LoggerConfig,
    OptimizerConfig,
    PathsConfig,
    SeedLMConfig,
    StageThresholds,
    VPTQConfig,
    WandbMode,
)
from phase8.events import read_events
from phase8.model.source import load_source

ROOT = Path(__file__).parent.parent
LENIENT = GateConfig(
    core=StageThresholds(seedlm=0.0, vptq=0.0, hyper=0.0),
    expert=StageThresholds(seedlm=0.0, vptq=0.0, hyper=0.0),
    rule=StageThresholds(seedlm=0.0, vptq=0.0, hyper=0.0),
    edge_low=0.0,
    edge_high=1.0,
    min_informative=1,
    abort_benchmark=0.0,
    abort_knowledge_loss=1.0,
    abort_rule=0.0,
    abort_first_expert_loss=1.0,
)
"""Gates that everything passes: these tests are about the way, not about the quality."""


@pytest.fixture(scope="module")
def scores(tmp_path_factory) -> Path:
    """Where these runs find the baseline's scores, once one of them has measured them; nothing else is kept there."""
    return tmp_path_factory.mktemp("scores")


def settings(directory: Path, cache: Path, **changes) -> CompressionConfig:
    return replace(
        CompressionConfig(
            benchmark_samples=4,
            skip_expert_benchmarks=True,
            max_accuracy_loss=0.99,
            gates=LENIENT,
            seedlm=SeedLMConfig(seed_bits=8),
            vptq=VPTQConfig(codebook_size=64),
            hyper=HyperConfig(grid=255),
            grokfast=GrokfastConfig(iterations=2),
            optimizer=OptimizerConfig(
                batch_sequences=2, sequence_tokens=32, calibration_sequences=4, held_out_sequences=2
            ),
            logger=LoggerConfig(mode=WandbMode.disabled),
            paths=PathsConfig(output_dir=str(directory / "run"), cache_dir=str(cache)),
        ),
        **changes,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory, scores):
    directory = tmp_path_factory.mktemp("pipeline")
    return directory, run_configured(settings(directory, scores), console=False)


def test_all_stages_leave_artifacts_that_hold_what_was_judged(finished):
    directory, result = finished
    assert result["compression_level"] == "hypercompression"
    for stage in ("seedlm", "vptq", "hyper"):
        entry = result["stages"][stage]
        artifact = read_artifact(entry["artifact"])
        assert entry["bytes"] == artifact.size_bytes
        assert entry["ratio"] == pytest.approx(result["metrics"]["original_size_mb"] * 1e6 / artifact.size_bytes)
    ratios = [result["stages"][stage]["ratio"] for stage in ("seedlm", "vptq", "hyper")]
    assert ratios == sorted(ratios)
    network, _ = load_artifact(result["artifact"])
    decoded = read_artifact(result["artifact"]).decode()
    assert torch.equal(network.lm_head.weight, torch.from_numpy(decoded["model.embed_tokens.weight"]))


def test_every_run_leaves_its_papers(finished):
    directory, result = finished
    run = directory / "run"
    assert json.loads((run / "result.json").read_text()) == result
    html = (run / "report.html").read_text()
    assert "<svg" in html and "mini_arc" in html
    kinds = [event.kind for event in read_events(run / "events.jsonl")]
    assert kinds.count("stage_start") == 4 and kinds[-1] == "phase_complete"
    assert (run / "config.yaml").is_file()
    assert len(result["criteria"]) == 7


def test_nothing_is_left_out_in_silence(finished):
    _, result = finished
    attempt = result["stages"]["vptq"]["attempts"][0]
    alone = {name for row in attempt["left_alone"] for name in row["tensors"]}
    artifact = read_artifact(attempt["artifact"])
    coded = {name for group in artifact.groups if group.codec == "vptq" for name in group.tensors}
    source = load_source("embedded:reference")
    assert alone | coded == set(source.parameters) and not alone & coded


def test_the_baseline_is_cached_by_content(finished, scores, tmp_path):
    _, first = finished
    config = settings(tmp_path, scores, vptq=VPTQConfig(enabled=False), hyper=HyperConfig(enabled=False))
    again = run_configured(config, console=False)
    logs = [event.data.text for event in read_events(tmp_path / "run" / "events.jsonl") if event.kind == "log"]
    assert any("from the cache" in text for text in logs)
    before = {task: row["baseline"] for task, row in first["metrics"]["benchmarks"].items()}
    assert {task: row["baseline"] for task, row in again["metrics"]["benchmarks"].items()} == before


def test_same_seed_same_bytes(finished, scores, tmp_path):
    _, first = finished
    again = run_configured(settings(tmp_path, scores), console=False)
    for stage in first["stages"]:
        one, two = (Path(r["stages"][stage]["artifact"]) / "model.safetensors" for r in (first, again))
        assert one.read_bytes() == two.read_bytes(), stage


def test_a_failed_gate_is_tried_again_and_then_falls_back(scores, tmp_path):
    strict = StageThresholds(seedlm=0.0, vptq=1.0, hyper=0.0)
    gates = replace(LENIENT, core=strict, rule=strict)
    vptq = VPTQConfig(codebook_size=2, num_codebooks=1)
    config = settings(tmp_path, scores, gates=gates, vptq=vptq, benchmark_samples=8)
    result = run_configured(config, console=False)
    assert result["compression_level"] == "seedlm" and not result["success"]
    attempts = result["stages"]["vptq"]["attempts"]
    assert len(attempts) == 2
    advice = attempts[0]["recommendation"]
    (protected,) = advice["adjustments"]["protect"]
    assert f"probe answers depend most per weight, {protected}, stays in 16 bits" in advice["reason"]
    alone = [{name for row in attempt["left_alone"] for name in row["tensors"]} for attempt in attempts]
    assert alone[1] - alone[0] == {protected}
    assert "hyper" not in result["stages"]
    assert Path(result["artifact"]).name == "seedlm"


def test_protected_tensors_stay_exact_in_16_bits(scores, tmp_path):
    stages = {"vptq": VPTQConfig(enabled=False), "hyper": HyperConfig(enabled=False)}
    config = settings(tmp_path, scores, protect=("*.layers.0.mlp.*",), grokfast=GrokfastConfig(iterations=0), **stages)
    result = run_configured(config, console=False)
    source = load_source("embedded:reference")
    decoded = read_artifact(result["artifact"]).decode()
    name = "model.layers.0.mlp.up_proj.weight"
    np.testing.assert_array_equal(decoded[name], source.matrices()[name].numpy())
    assert any(name in row["tensors"] for row in result["stages"]["seedlm"]["attempts"][0]["left_alone"])


def test_interrupt_keeps_what_was_done(scores, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("phase8.codecs.vptq.encode.VPTQCodec.encode", interrupted)
    result = run_configured(settings(tmp_path, scores), console=False)
    assert result["interrupted"] and result["compression_level"] == "seedlm" and not result["success"]
    assert read_artifact(result["artifact"]).stage == "seedlm"
    assert (tmp_path / "run" / "report.html").is_file()


def test_unknown_expert_stops_before_the_work(scores, tmp_path):
    orchestrator = CompressionOrchestrator(
        "embedded:reference", {"experts": ["wizard"]}, config=settings(tmp_path, scores)
    )
    with pytest.raises(Exception, match="wizard.*known|nobody knows"):
        orchestrator.run_phase8()
    assert not (tmp_path / "run" / "artifacts").exists()


@pytest.mark.slow
def test_make_run_says_what_it_found(tmp_path):
    ended = subprocess.run(
        [
            *(sys.executable, str(ROOT / "run.py"), f"hydra.run.dir={tmp_path / 'run'}", f"paths.cache_dir={tmp_path}"),
            *("max_retries=0", "training.steps=30", "training.sequences=480"),  # else it takes most of an hour
        ],
        capture_output=True,
        text=True,
        timeout=1500,
        cwd=ROOT,
    )
    assert ended.returncode == 0, ended.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "report.html" in ended.stdout and "\x1b" not in ended.stdout
    assert set(result["stages"]) >= {"seedlm"}
    for row in result["metrics"]["benchmarks"].values():
        corrected = (row["baseline"] - row["chance"]) / (1 - row["chance"])
        assert corrected >= 0.4, row


def test_edge_of_chaos_is_built_for_a_model_of_the_users(tmp_path):
    """Its questions are calibrated on the baseline, and asked of the stage as well; the measurement is cached."""
    chosen = BenchmarksConfig(edge_pool=EdgePool.calibrated)
    alone = {"vptq": VPTQConfig(enabled=False), "hyper": HyperConfig(enabled=False)}
    results = [
        run_configured(
            settings(
                tmp_path / str(seed), tmp_path / "cache", benchmarks=chosen, benchmark_samples=20, seed=seed, **alone,
            ),
            console=False,
        )
        for seed in (0, 1)
    ]  # fmt: skip
    events = list(read_events(tmp_path / "1" / "run" / "events.jsonl"))
    texts = [event.data.text for event in events if event.kind == "log"]
    assert any(text.startswith("edge of chaos: 20 questions") for text in texts), texts
    assert any("from the cache" in text for text in texts)
    assert {result["metrics"]["benchmarks"]["mini_edge_of_chaos"]["baseline"] for result in results} == {0.75}
