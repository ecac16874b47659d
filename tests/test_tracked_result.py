"""A real run of all stages with a retry: every value at W&B, read back from its offline file, is one of result.json."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from experiments.kills import settings as tiny_settings
from phase8.api import run_configured
from phase8.config import LoggerConfig
from phase8.model.source import load_source
from tests.quick_scores import quick_scores
from tests.test_tracking import exit_code, history, records


@pytest.fixture
def tracked(tmp_path, tiny_model_dir, monkeypatch):
    """The run's directory, its rows at W&B by stage and attempt, its summary there, and its result.json."""
    source = load_source(str(tiny_model_dir))
    quick_scores(source, monkeypatch)
    config = replace(tiny_settings("retry", tmp_path / "run", tmp_path / "cache"), logger=LoggerConfig())
    run_configured(config, source, console=False)
    run_dir = tmp_path / "run"
    assert exit_code(run_dir) == 0
    own = [{name: value for name, value in row.items() if name[0] != "_"} for row in history(run_dir)]
    rows = {(row["stage"], row["attempt"]): row for row in own if "stage" in row}
    summary = {}
    for record in records(run_dir):
        if record.WhichOneof("record_type") == "summary":
            summary |= {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.summary.update}
    return run_dir, rows, summary, json.loads((run_dir / "result.json").read_text())


def test_a_real_run_reads_back_as_its_result(tracked):
    run_dir, rows, summary, result = tracked
    original_mb = result["metrics"]["original_size_mb"]
    attempts = {(stage, a["attempt"]): a for stage, entry in result["stages"].items() for a in entry["attempts"]}
    assert ("hyper", 2) in attempts, "one of the stages was tried again"
    assert set(rows) == {("baseline", 1), *attempts}

    scores = {task: row["baseline"] for task, row in result["metrics"]["benchmarks"].items()}
    edge = next(task for task in scores if "edge_of_chaos" in task)
    first = {"stage": "baseline", "attempt": 1, "compression_ratio": 1.0, "compressed_size_mb": original_mb}
    first |= {"original_size_mb": original_mb, "bits_per_byte": result["metrics"]["bits_per_byte"]["baseline"]}
    assert rows.pop(("baseline", 1)) == {**first, **scores, "edge_of_chaos/accuracy": scores[edge]}

    for (stage, number), row in rows.items():
        attempt = attempts[stage, number]
        failed = [check["name"] for check in attempt["checks"] if check["passed"] is False]
        expected = {
            "stage": stage,
            "attempt": number,
            "compression_ratio": attempt["ratio"],
            "compressed_size_mb": attempt["bytes"] / 1e6,
            "original_size_mb": original_mb,
            "bits_per_byte": attempt["bits_per_byte"],
            "overall_passed": attempt["passed"],
            "num_failed_benchmarks": sum(name.startswith("benchmark/") for name in failed),
            "edge_of_chaos/accuracy": attempt["edge_of_chaos"]["accuracy"],
        }
        expected |= {f"eudaimonia/{rule}": value for rule, value in attempt["eudaimonia"].items()}
        for task, found in attempt["benchmarks"].items():
            expected[task] = found["final"]
            if found["retention"] is not None:
                expected[f"retention/{task}"] = found["retention"]
                expected[f"degradation/{task}"] = 1 - found["retention"]
        assert row == expected

    # The summary: what result.json says in a word or a number, and every number of its metrics.
    named = {name: value for name, value in result.items() if isinstance(value, str | int | float)}
    named |= {name: value for name, value in result["metrics"].items() if isinstance(value, int | float)}
    named["edge_of_chaos/accuracy"] = result["metrics"]["edge_of_chaos"]["accuracy"]
    named |= {f"eudaimonia/{rule}": value for rule, value in result["metrics"]["eudaimonia"].items()}
    assert len(named) > 20
    assert {name: summary.get(name) for name in named} == named
