"""The artifact: what is written is what is read, every byte is accounted for, damage is noticed."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from phase8.artifact.read import WEIGHTS_FILE, read_artifact, read_manifest
from phase8.artifact.write import account, load_artifact, write_artifact
from phase8.codecs import get_codec
from phase8.config import HyperConfig, SeedLMConfig, VPTQConfig
from phase8.errors import ArtifactError, OutputError
from phase8.model.source import load_source

CONFIGS = {
    "seedlm": SeedLMConfig(seed_bits=8),
    "vptq": VPTQConfig(codebook_size=16, vector_dim=4),
    "hyper": HyperConfig(),
}


def encode(source, stage):
    groups = [get_codec(stage).encode(source.matrices(), CONFIGS[stage], importance={}, seed=0)]
    return [*groups, get_codec("plain").encode(source.vectors(), None, importance={}, seed=0)]


@pytest.fixture
def source(tiny_model_dir):
    return load_source(str(tiny_model_dir))


@pytest.mark.parametrize("stage", CONFIGS)
def test_round_trip_and_every_byte(source, stage, tmp_path):
    groups = encode(source, stage)
    artifact = write_artifact(tmp_path / "artifact", groups, source, stage=stage)
    expected = {}
    for group in groups:
        expected |= get_codec(group.codec).decode(group)
    decoded = artifact.decode()
    assert decoded.keys() == expected.keys()
    for name, matrix in decoded.items():
        np.testing.assert_array_equal(matrix, expected[name])
    on_disk = sum((tmp_path / "artifact" / name).stat().st_size for name in (WEIGHTS_FILE, "config.json"))
    assert artifact.size_bytes == on_disk == sum(row[2] for row in account(artifact))
    assert artifact.parameter_count == source.parameter_count
    assert artifact.ratio == 4 * source.parameter_count / on_disk


def test_rebuilt_network_has_the_judged_weights(source, tmp_path):
    artifact = write_artifact(tmp_path / "artifact", encode(source, "vptq"), source, stage="vptq")
    network, tokenizer = load_artifact(tmp_path / "artifact")
    decoded = artifact.decode()
    assert torch.equal(network.model.embed_tokens.weight, torch.from_numpy(decoded["model.embed_tokens.weight"]))
    assert network.lm_head.weight is network.model.embed_tokens.weight
    tokens = tokenizer("hello", return_tensors="pt")["input_ids"]
    assert torch.isfinite(network(tokens).logits).all()


def test_same_input_same_bytes(source, tmp_path):
    for name in ("a", "b"):
        write_artifact(tmp_path / name, encode(source, "seedlm"), source, stage="seedlm")
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "b").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_file_is_ordinary_safetensors(source, tmp_path):
    write_artifact(tmp_path / "artifact", encode(source, "vptq"), source, stage="vptq")
    tensors = load_file(tmp_path / "artifact" / WEIGHTS_FILE)
    assert list(tensors) == ["payload"] and tensors["payload"].dtype == np.uint8


def _written(source, tmp_path) -> Path:
    write_artifact(tmp_path / "artifact", encode(source, "vptq"), source, stage="vptq")
    return tmp_path / "artifact" / WEIGHTS_FILE


def test_any_flipped_payload_byte_is_noticed(source, tmp_path):
    path = _written(source, tmp_path)
    good = path.read_bytes()
    (header,) = struct.unpack("<Q", good[:8])
    for position in np.linspace(8 + header, len(good) - 1, 40).astype(int):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1 :])
        with pytest.raises(ArtifactError):
            read_artifact(path.parent)


@pytest.mark.parametrize("change", [lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), lambda raw: raw[:-1], lambda raw: b""])
def test_a_file_that_changes_after_it_was_checked_is_noticed(source, tmp_path, change):
    path = _written(source, tmp_path)
    manifest = read_manifest(path.parent)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ArtifactError, match=r"(?s)(altered|shorter) while it was read.*model\.safetensors"):
        manifest.artifact()


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -1, -1000])
def test_truncation_is_noticed(source, tmp_path, keep):
    path = _written(source, tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError):
        read_artifact(path.parent)


def _edit_header(path: Path, change) -> None:
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])


def _edit_manifest(path: Path, change) -> None:
    import base64

    def edit(header):
        meta = header["__metadata__"]
        manifest = json.loads(zlib.decompress(base64.b64decode(meta["manifest"])))
        change(manifest)
        text = json.dumps(manifest).encode()
        meta["manifest"] = base64.b64encode(zlib.compress(text)).decode()
        meta["manifest_crc32"] = str(zlib.crc32(text))

    _edit_header(path, edit)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda h: h["__metadata__"].update(version="99"), "version 99"),
        (lambda h: h["__metadata__"].update(format="other"), "not a phase8 artifact"),
        (lambda h: h["__metadata__"].update(manifest="!!"), "damaged"),
        (lambda h: h.pop("payload"), "not a phase8 artifact"),
    ],
)
def test_edited_header_is_refused(source, tmp_path, change, says):
    path = _written(source, tmp_path)
    _edit_header(path, change)
    with pytest.raises(ArtifactError, match=says):
        read_artifact(path.parent)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["pools"][0].__setitem__(4, 2**40),
        lambda m: m["pools"][0].__setitem__(6, 2**40),
        lambda m: m["pools"][0].__setitem__(5, "pickle"),
        lambda m: m["groups"][0]["tensors"][0].__setitem__(1, [2**30, 2**30]),
        lambda m: m["groups"][0]["tensors"][0][2][0].__setitem__(2, -1),
        lambda m: m["groups"][0].__setitem__("settings", 3),
        lambda m: m.pop("groups"),
        lambda m: m["source"].__setitem__("parameters", 1),
        lambda m: m.__setitem__("pools", m["pools"][:-1]),
    ],
)
def test_edited_manifest_is_refused(source, tmp_path, change):
    path = _written(source, tmp_path)
    _edit_manifest(path, change)
    with pytest.raises(ArtifactError):
        read_artifact(path.parent).decode()


def test_a_failed_write_leaves_the_old_artifact(source, tmp_path, monkeypatch):
    path = _written(source, tmp_path)
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("phase8.files.os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        write_artifact(path.parent, encode(source, "seedlm"), source, stage="seedlm")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".artifact")] == []
