"""Products of finished steps: what is read back is what was written, at a cost that follows from the file."""

from __future__ import annotations

import resource

import numpy as np
import pytest
import torch

from phase8.codecs import get_codec
from phase8.config import VPTQConfig
from phase8.errors import ArtifactError
from phase8.run.journal import read_groups, write_groups


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
