"""The scoreboard: rows go in whole or not at all, and the table says what they say."""

from __future__ import annotations

import json

import pytest
import torch

from experiments import frontier, peer_lattices, scoreboard
from experiments.scoreboard import NO_TRAINING, OURS_TRAINED, add_row, as_markdown, best, merged, read_rows
from phase8.codecs.base import Importance
from phase8.errors import ConfigError


def row(**changes):
    made = {
        "method": "round-to-nearest", "setting": "4 bits", "ours": False, "group": NO_TRAINING, "model": "reference",
        "artifact_bytes": 1000, "ratio": 8.0, "retention_raw": 0.9, "retention_chance_corrected": 0.85,
        "bits_per_byte": 0.6, "seed": 0, "trained_tokens": 0, "training_s": 0.0, "command": "python -m a",
    }  # fmt: skip
    return made | changes


def test_a_row_of_equal_key_is_replaced_and_the_file_stays_sorted(tmp_path):
    path = tmp_path / "frontier.json"
    add_row(row(setting="2 bits", ratio=16.0), path)
    add_row(row(), path)
    add_row(row(model="tinystories", retention_raw=None, retention_chance_corrected=None), path)
    add_row(row(retention_raw=0.95), path)
    assert [(r["model"], r["ratio"], r["retention_raw"]) for r in read_rows(path)] == [
        ("reference", 8.0, 0.95),
        ("reference", 16.0, 0.9),
        ("tinystories", 8.0, None),
    ]


def test_a_rows_training_time_is_that_of_every_process():
    def event(time, kind, **data):
        return {"time": time, "kind": kind, "data": data}

    events = [
        event(10.0, "activity", step="answers"), event(20.0, "activity", step="optimise"),
        event(50.0, "activity", step="optimise"),  # killed here
        event(1000.0, "run_resumed", process=2), event(1010.0, "activity", step="optimise"),
        event(1040.0, "step_complete", step="optimise"), event(1050.0, "activity", step="evaluate"),
        event(2000.0, "activity", step="optimise"), event(2005.0, "activity", step="optimise"),  # still going
    ]  # fmt: skip
    assert frontier._training_seconds(events) == 40.0 + 30.0 + 5.0


@pytest.mark.parametrize(
    "changes",
    [
        {"ours": 1},
        {"seed": True},
        {"ratio": float("nan")},
        {"group": "best"},
        {"model": "mine"},
        {"artifact_bytes": 0},
        {"artifact_bytes": None, "ratio": None},
        {"command": None},
    ],
)
def test_a_malformed_row_leaves_the_file_untouched(tmp_path, changes):
    path = tmp_path / "frontier.json"
    add_row(row(), path)
    before = path.read_bytes()
    with pytest.raises(ConfigError):
        add_row(row(**changes), path)
    without = row()
    del without["bits_per_byte"]
    with pytest.raises(ConfigError, match="bits_per_byte"):
        add_row(without, path)
    assert path.read_bytes() == before


def test_a_file_that_holds_no_rows_is_refused(tmp_path):
    for number, text in enumerate(("{", "{}", "[1]", json.dumps([{"method": "x"}]))):
        path = tmp_path / f"{number}.json"
        path.write_text(text)
        with pytest.raises(ConfigError):
            read_rows(path)


def test_seeds_are_merged_to_mean_and_range():
    found = merged([row(seed=s, bits_per_byte=b) for s, b in enumerate((0.5, 0.6, 0.7))] + [row(setting="3 bits")])
    assert [one["seeds"] for one in found] == [3, 1]
    assert found[0]["bits_per_byte"] == pytest.approx(0.6)
    assert (found[0]["bits_per_byte_low"], found[0]["bits_per_byte_high"]) == (0.5, 0.7)


def test_best_are_those_that_no_row_beats_in_both():
    rows = [row(ratio=r, retention_raw=q) for r, q in ((4, 0.99), (8, 0.9), (8, 0.95), (16, 0.97), (40, None))]
    assert best(rows, "retention_raw", larger=True) == {0, 3}
    assert best(rows, "retention_raw", larger=False) == {1, 3}


def test_the_command_writes_table_and_plot(tmp_path, monkeypatch):
    path = tmp_path / "frontier.json"
    add_row(row(retention_chance_corrected_low=0.8, retention_chance_corrected_high=0.9), path)
    add_row(row(method="lattice", ours=True, group=OURS_TRAINED, setting="40x", artifact_bytes=370000, ratio=40.0,
                trained_tokens=6_000_000, training_s=900.0), path)  # fmt: skip
    add_row(row(method="VPTQ", ours=True, group=OURS_TRAINED, model="tinystories", retention_raw=None,
                retention_chance_corrected=None, bits_per_byte_original=0.5), path)  # fmt: skip
    add_row(row(method="TensorRT", artifact_bytes=None, ratio=None, note="needs an NVIDIA GPU"), path)
    out, picture = tmp_path / "SCOREBOARD.md", tmp_path / "frontier.png"
    monkeypatch.setattr("sys.argv", ["x", "--rows", str(path), "--out", str(out), "--plot", str(picture)])
    assert scoreboard.main() == 0
    text = out.read_text()
    assert text == as_markdown(read_rows(path))
    assert "| ★ | 40.00x | 370,000 | **lattice** | 40x | ours, trained |" in text
    assert "0.850 (0.800 to 0.900)" in text and "- TensorRT: needs an NVIDIA GPU" in text and "6.0 M" in text
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size < 150_000


def test_feedback_lowers_the_outputs_error_and_no_column_is_lost():
    """GPTQ against rounding at the same step, by a product written out; both decode to integers times steps."""
    torch.manual_seed(0)
    x_NI = torch.randn(400, 12) @ torch.randn(12, 12)
    matrices, hessian = {"w": torch.randn(20, 12)}, x_NI.T @ x_NI / 400
    error = {}
    for name, (integers, decoded, bits) in {
        "nearest": peer_lattices.nearest(matrices, 0.8),
        "gptq": peer_lattices.fed_back(matrices, {"w": Importance(hessian_II=hessian)}, 0.8, columns=False),
    }.items():
        q = torch.from_numpy(integers["w"])
        assert bits == 16 and torch.equal(decoded["w"], q * decoded["w"][q == 1][0])
        error[name] = float(((decoded["w"] - matrices["w"]) @ x_NI.T).square().mean())
    assert error["gptq"] < 0.8 * error["nearest"]
    hessians = {"w": Importance(hessian_II=hessian)}
    integers, decoded, bits = peer_lattices.fed_back(matrices, hessians, 0.8, columns=True)
    steps = 16 * (decoded["w"].double().abs().amax(0) / torch.from_numpy(integers["w"]).abs().amax(0)).log2()
    assert torch.allclose(steps, steps.round(), atol=1e-4) and 0 < bits <= 16 * 12
