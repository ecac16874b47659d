"""Several runs side by side, from their directories alone. The figures are invented."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from phase8.cli import main
from phase8.errors import ArtifactError
from phase8.files import write_sealed
from phase8.watch.runs import best_of, differences, differing_settings, points, read_runs

ITEMS = {"mini_arc": [1.0] * 90 + [0.0] * 10, "mini_mmlu": [1.0] * 60 + [0.0] * 40}


def leave_run(directory, *, ratio, lost, size=256, passed=True):
    """A run's directory as a run leaves it: one VPTQ attempt that answers `lost` items less on each benchmark."""
    kept = {task: [0.0] * lost + items[lost:] for task, items in ITEMS.items()}
    rows = {
        task: {
            "role": "core", "baseline": np.mean(ITEMS[task]), "final": np.mean(kept[task]), "n": 100,
            "retention": np.mean(kept[task]) / np.mean(ITEMS[task]), "retention_interval": [0.8, 1.0],
            "retention_corrected": 0.9, "informative": True,
        }
        for task in ITEMS
    }  # fmt: skip
    retention = float(np.mean([row["retention"] for row in rows.values()]))
    attempt = {
        "attempt": 1, "passed": passed, "artifact": "artifacts/vptq", "ratio": ratio, "bytes": 1e6 / ratio,
        "bits_per_weight": 32 / ratio, "core_retention": retention, "core_retention_interval": [0.9, 1.0],
        "core_retention_corrected": 0.9,
    }  # fmt: skip
    result = {
        "success": False, "variant": "default", "compression_level": "vptq" if passed else "phase7_fallback",
        "artifact": "artifacts/vptq" if passed else None, "seconds": 12.0, "interrupted": False,
        "metrics": {
            "total_compression_ratio": ratio if passed else 1.0, "compressed_size_mb": 1 / ratio, "benchmarks": rows,
            "core_retention": retention, "core_retention_corrected": 0.9, "core_retention_interval": [0.9, 1.0],
        },
        "stages": {"vptq": {"attempts": [attempt]}},
    }  # fmt: skip
    for place, scores in (("baseline_1", ITEMS), ("vptq_1", kept)):
        (directory / "state" / place).mkdir(parents=True)
        content = {"scores": [{"task": task, "items": items} for task, items in scores.items()]}
        write_sealed(directory / "state" / place / "scores.json", json.dumps(content))
    (directory / "result.json").write_text(json.dumps(result))
    settings = {"vptq": {"codebook_size": size}, "seed": 0, "paths": {"output_dir": str(directory)}}
    (directory / "config.yaml").write_text(yaml.safe_dump(settings))
    return directory


@pytest.fixture
def three(tmp_path):
    leave_run(tmp_path / "a", ratio=10.0, lost=2, size=512)
    leave_run(tmp_path / "b", ratio=14.0, lost=6, size=128)
    leave_run(tmp_path / "c", ratio=9.0, lost=8, size=64, passed=False)
    return tmp_path


def test_figures_frontier_and_settings(three):
    runs = read_runs([three])
    assert [run.name for run in runs] == ["a", "b", "c"]
    found = points(runs)
    assert [(point.ratio, point.kept, point.on_frontier) for point in found] == [
        (10.0, True, True), (14.0, True, True), (9.0, False, False),
    ]  # fmt: skip
    assert best_of(runs).name == "b"
    assert differing_settings(runs) == {"vptq.codebook_size": [512, 128, 64]}


def test_differences_are_paired_over_the_items(three):
    found = {(d.task, d.b): d for d in differences(read_runs([three / "a", three / "b"]))}
    difference = found["mini_arc", 1]
    assert difference.value == pytest.approx((84 - 88) / 90)
    low, high = difference.interval
    assert low < difference.value < high < 0.0  # four items of a hundred lost, none won
    # Apart, the same two scores (0.88 and 0.84 of 100 items) would be 4 +- 9.5 points of score.
    assert high - low < 0.11
    (three / "b" / "state" / "vptq_1" / "scores.json").unlink()
    assert all(d.interval is None for d in differences(read_runs([three / "a", three / "b"])))


def test_command_prints_and_writes_a_page(three, capsys, tmp_path):
    broken = three / "d"
    broken.mkdir()
    (broken / "job.json").write_text(json.dumps({"state": "FAIL", "reason": "no <model> there", "overrides": ["x=1"]}))
    assert main(["compare", str(three), "--html", str(tmp_path / "page.html")]) == 0
    shown = capsys.readouterr().out
    assert "b *" in shown and "14.0×" in shown and "d: fail: no <model> there" in shown
    assert "vptq.codebook_size: 512, 128, 64" in shown
    page = (tmp_path / "page.html").read_text()
    assert "<svg" in page and "no &lt;model&gt; there" in page and "<model>" not in page
    assert "Settings that differ" in page and "paired item by item" in page


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="no run is there"):
        read_runs([tmp_path])
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(ArtifactError, match="not JSON"):
        read_runs([tmp_path])
