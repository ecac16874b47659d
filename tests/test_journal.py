"""Products of finished steps: what is read back is what was written, at a cost that follows from the file."""

from __future__ import annotations

import resource

import numpy as np
import pytest
import torch

from phase8.codecs import get_codec
from phase8.config import VPTQConfig
from phase8.errors import ArtifactError
from phase8.run.journal import clean_up, read_groups, write_groups


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
