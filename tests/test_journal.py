"""Products of finished steps: what is read back is what was written, at a cost that follows from the file."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from phase8.allocation.budget import Allocator
from phase8.benchmarks.evaluate import Score, SuiteResult
from phase8.codecs import get_codec
from phase8.config import VPTQConfig
from phase8.errors import ArtifactError, BenchmarkError, Phase8Error
from phase8.files import SEAL_BYTES, write_sealed
from phase8.run.journal import clean_up, read_facts, read_groups, read_scores, write_facts, write_groups, write_scores
from phase8.train.checkpoint import State, read_checkpoint, write_checkpoint


def test_encoded_groups_come_back(tmp_path):
    torch.manual_seed(0)
    weights = {f"model.layers.{n}.a.weight": torch.randn(32, 16) for n in range(2)}
    groups = [
        get_codec("vptq").encode(weights, VPTQConfig(codebook_size=16), importance={}, seed=0),
        get_codec("plain").encode({"n.weight": torch.randn(16)}, None, importance={}, seed=0),
    ]
    path = tmp_path / "encoded_1.p8"
    write_groups(path, groups, "vptq", 1040)
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 36, before[1]))  # a limit is not allocated (it once took 64 GiB)
    try:
        found = read_groups(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    for one, other in zip(groups, found, strict=True):
        assert (one.codec, one.settings, list(one.tensors)) == (other.codec, other.settings, list(other.tensors))
        for name, tensor in one.tensors.items():
            for role, stream in tensor.streams.items():
                np.testing.assert_array_equal(stream.values, other.tensors[name].streams[role].values)
    write_groups(tmp_path / "again.p8", found, "vptq", 1040)
    assert (tmp_path / "again.p8").read_bytes() == path.read_bytes()
    with pytest.raises(ArtifactError):
        read_groups(tmp_path / "nothing.p8")


def test_what_a_killed_run_had_told_is_gone_before_it_goes_on(tmp_path):
    """No result, report or half-written file of an earlier process lies beside the events of the next one."""
    kept = ("events.jsonl", "config.yaml", "artifacts/vptq/model.safetensors", "state/vptq_1/scores.json")
    gone = (
        "result.json", "report.html", ".result.json.a1", ".report.html.b2", "artifacts/.vptq.c3/model.safetensors",
        "state/vptq_1/.scores.json.d4", "stopped/hyper/model.safetensors",
    )  # fmt: skip
    for name in (*kept, *gone):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    clean_up(tmp_path)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()) == sorted(kept)


# Checksums ---------------------------------------------------------------------------------------------------------

SCORES = SuiteResult(
    scores={"mini_a": Score(task="mini_a", role="core", stands_for="A", experts=(), chance=0.5, items=(1.0, 0.25))},
    bits_per_byte=1.5,
)
RESTART = {"attempt": 1, "filter": "ema", "held_out_before": 0.5, "held_out_after": 0.75, "reason": "worse"}
FACTS = {"filter": "off", "restart": RESTART}
MATRICES = {"model.layers.0.a.weight": torch.ones(16, 8)}


def an_allocator(measured: bool) -> Allocator:
    allocator = Allocator("vptq", VPTQConfig(codebook_size=16), MATRICES, lambda groups: 100)
    if measured:
        from phase8.allocation.measure import measure

        allocator._measured = measure(
            "vptq", allocator._settings, MATRICES, allocator._pools(), {}, seed=0, on_candidate=lambda done: None
        )
        allocator._impact_TS = np.ones((1, len(allocator._settings)))
    return allocator


def measured_again(path: Path) -> Any:
    allocator = an_allocator(measured=False)
    allocator.read(path, {})
    return allocator._impact_TS.tolist(), allocator._measured.distortion_TS.tolist(), allocator._measured.names


def encoded(path: Path) -> None:
    group = get_codec("plain").encode({"n.weight": torch.arange(8.0)}, None, importance={}, seed=0)
    write_groups(path, [group], "vptq", 8)


def decoded(path: Path) -> Any:
    return [(group.codec, get_codec(group.codec).decode(group)) for group in read_groups(path)]


def trained_on(path: Path) -> Any:
    found = read_checkpoint(path.parent, {"value.0": (5,)})
    return found.tensors["value.0"].tolist(), found.values


PRODUCTS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]] = {
    "scores.json": (lambda path: write_scores(path, SCORES), read_scores),
    "attempt.json": (lambda path: write_facts(path, {"filter": "ema"}), read_facts),
    "trained_1.json": (lambda path: write_facts(path, FACTS), read_facts),
    "allocation.npz": (lambda path: an_allocator(measured=True).write(path), measured_again),
    "encoded_1.p8": (encoded, decoded),
    "checkpoint.safetensors": (
        lambda path: write_checkpoint(path.parent, State({"value.0": torch.arange(5.0)}, {"done": 3, "slower": 0.5})),
        trained_on,
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_no_flipped_bit_gives_another_product_in_silence(name, tmp_path):
    write, read = PRODUCTS[name]
    path = tmp_path / name
    write(path)
    whole, expected = path.read_bytes(), read(path)
    places = range(len(whole)) if len(whole) < 1500 else range(0, len(whole), len(whole) // 1500)
    refused = 0
    for place in places:
        broken = bytearray(whole)
        broken[place] ^= 1 << place % 8
        path.write_bytes(broken)
        try:
            assert repr(read(path)) == repr(expected), f"byte {place}"
        except Phase8Error:
            refused += 1
    assert refused > 0.9 * len(places)
    for length in (0, 1, SEAL_BYTES, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(Phase8Error):
            read(path)


@pytest.mark.parametrize(
    "facts",
    [[], "off", {}, {"filter": None}, {"filter": "strong"}, {"filter": ["off"]}, {"filter": "off", "more": 1},
     {"filter": "off", "restart": 3}, {"filter": "off", "restart": {}},
     {"filter": "off", "restart": RESTART | {"attempt": "1"}},
     {"filter": "off", "restart": RESTART | {"reason": None}}],
)  # fmt: skip
def test_what_sums_up_and_is_no_fact_of_a_training_is_refused(tmp_path, facts):
    write_sealed(tmp_path / "attempt.json", json.dumps(facts))
    with pytest.raises(ArtifactError, match="not the facts"):
        read_facts(tmp_path / "attempt.json")


def test_what_sums_up_and_is_no_score_is_refused(tmp_path):
    for forged in (SCORES.to_json().replace("0.25", "1.125"), "[" * 10_000, '{"scores": []}'):
        write_sealed(tmp_path / "scores.json", forged)
        with pytest.raises(BenchmarkError, match="not a suite's scores"):
            read_scores(tmp_path / "scores.json")


def test_a_measurement_of_other_matrices_or_without_numbers_is_refused(tmp_path):
    path, allocator = tmp_path / "allocation.npz", an_allocator(measured=True)
    impact = allocator._impact_TS
    for wrong in (impact[:, :1], impact * float("nan"), impact * float("inf")):
        allocator._impact_TS = wrong
        allocator.write(path)
        with pytest.raises(ArtifactError, match="other matrices|not finite"):
            measured_again(path)
    allocator._impact_TS = impact
    allocator._measured = replace(allocator._measured, pool_T=np.array([7]))
    allocator.write(path)
    with pytest.raises(ArtifactError, match="other matrices"):
        measured_again(path)
