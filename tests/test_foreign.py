"""A run on a model that the benchmarks do not know: nothing untrue, nothing senseless, nothing lost."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from phase8.api import CompressionOrchestrator
from phase8.artifact import write
from phase8.config import CompressionConfig
from phase8.events import read_events
from phase8.run import attempt, baseline, pipeline


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_tokenizer):
    """A random network from memory, in a running event loop as in a notebook, with a text as Windows writes it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("foreign")
    text = directory / "text.txt"
    text.write_bytes(b"\xef\xbb\xbf" + b"\r\n \r\n".join(b"A goose, number %d, eats grain." % n for n in range(60)))
    held_out = directory / "held_out.txt"
    held_out.write_text("A goose eats.\n\nThe river turns the wheel.\n\nNobody has seen the sea.\n")
    torch.manual_seed(0)
    network = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=258, hidden_size=16, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=48, bos_token_id=0, eos_token_id=0, pad_token_id=1, initializer_range=0.3,
        )
    ).train()  # fmt: skip
    settings = {
        "benchmark_samples": 8,
        "max_retries": 0,
        "seedlm": {"enabled": False},
        "hyper": {"enabled": False},
        "gates": {"policy": "confident"},  # three documents prove nothing, so the stage fails
        "benchmarks": {"perplexity_text": str(held_out)},
        "calibration_text": str(text),
        "grokfast": {"iterations": 0},
        "optimizer": {"calibration_sequences": 8, "held_out_sequences": 2, "sequence_tokens": 96},
        "logger": {"mode": "disabled"},
        "paths": {"output_dir": str(directory / "run"), "cache_dir": str(directory / "cache")},
    }
    opened = []

    def opening(place):
        opened.append(place.name)
        return write.load_artifact(place)

    def failing(network):
        raise RuntimeError("no clock")

    async def notebook():
        return CompressionOrchestrator(
            network, config=CompressionConfig.from_dict(settings), tokenizer=tiny_tokenizer
        ).run_phase8()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempt, "load_artifact", opening)
        patch.setattr(pipeline, "measure_latency_ms", failing)
        result = asyncio.run(notebook())
    logs = [event.data for event in read_events(directory / "run" / "events.jsonl") if event.kind == "log"]
    return directory, network, result, logs, opened


def told(logs, *words):
    return [log.text for log in logs if all(word in log.text for word in words)]


def test_the_result_is_there_although_the_latency_failed(run):
    directory, _, result, logs, _ = run
    assert json.loads((directory / "run" / "result.json").read_text()) == result
    assert result["inference_latency_measured_ms"] is None and told(
        logs, "no figure for the time per token", "no clock"
    )


def test_the_callers_network_is_left_alone(run):
    assert run[1].training and all(parameter.requires_grad for parameter in run[1].parameters())


def test_what_was_judged_was_opened_as_a_user_opens_it(run):
    assert run[4] == ["vptq"]


def test_what_was_read_is_told_and_what_was_shortened(run):
    assert told(run[3], "calibration text", "60 documents") and told(run[3], "48 tokens instead of", "96")


def test_the_held_out_text_is_named_with_what_it_holds(run):
    assert told(run[3], "held-out text: ", "held_out.txt", "3 documents")
    gate = next(event.data for event in read_events(run[0] / "run" / "events.jsonl") if event.kind == "quality_gate")
    assert gate.text.endswith("held_out.txt") and gate.baseline_bits_per_byte is not None


@pytest.mark.parametrize("own_text", [False, True])
def test_a_foreign_model_on_the_embedded_worlds_text_is_warned_of(own_text):
    logs = []
    config = CompressionConfig.from_dict({"calibration_text": "mine.txt"} if own_text else {})
    context = SimpleNamespace(
        config=config,
        source=SimpleNamespace(name="mine"),
        suite=SimpleNamespace(text=("one", "two")),
        log=lambda level, text, stage: logs.append((level, text)),
    )
    baseline._tell_texts(context)
    ((level, warning),) = logs
    assert level == "warning" and "embedded world's text" in warning and "benchmarks.perplexity_text=FILE" in warning
    assert ("calibration_text=FILE" in warning) is not own_text
    context.source.name, logs[:] = "embedded:reference", []
    baseline._tell_texts(context)
    assert logs == []


@pytest.mark.parametrize("skip", [False, True])
def test_one_absence_is_told_once_and_with_its_own_reason(skip):
    logs = []
    context = SimpleNamespace(
        config=CompressionConfig.from_dict({"skip_expert_benchmarks": skip}),
        log=lambda level, text, stage: logs.append((level, text)),
    )
    missing = ("code: MBPP", "core: HumanEval (generated code cannot be run safely)")
    baseline._tell_what_is_missing(context, SimpleNamespace(missing=missing, notes=()))
    assert [sum(one in text for _, text in logs) for one in missing] == [1, 1]
    (unsafe,) = [told for told in logs if "HumanEval" in told[1]]
    assert unsafe[0] == "warning" and "as the settings ask" not in unsafe[1]
    (other,) = [told for told in logs if "MBPP" in told[1]]
    assert ("as the settings ask" in other[1]) is skip


def test_edge_of_chaos_is_not_made_of_luck(run):
    assert told(run[3], "edge of chaos is left out")
    assert run[2]["metrics"]["edge_of_chaos"] is None


def test_what_the_benchmarks_cannot_tell_is_said_with_the_ways_on(run):
    assert told(run[3], "cannot be seen there", "Ways on", "phase8 encode", "benchmarks.perplexity_text=FILE")


def test_no_figure_of_chance(run):
    result = run[2]
    rows = result["stages"]["vptq"]["attempts"][0]["benchmarks"]
    assert any(not row["informative"] for row in rows.values())
    for row in rows.values():
        assert row["informative"] or row["retention_corrected"] is None
        low, high = row["retention_interval"]
        if row["retention"] is not None and low is not None and high is not None:
            assert low <= row["retention"] <= high


def test_the_input_itself_fulfils_no_criterion(run):
    assert run[2]["compression_level"] == "phase7_fallback" and run[2]["success"] is False
    verdicts = {check["name"]: check["passed"] for check in run[2]["criteria"]}
    assert verdicts.pop("size") is False and verdicts.pop("latency_ms") is not None
    assert set(verdicts.values()) == {None}
