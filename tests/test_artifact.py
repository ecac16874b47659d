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

from phase8.artifact.architecture import check_buffers
from phase8.artifact.read import WEIGHTS_FILE, read_artifact, read_manifest
from phase8.artifact.write import account, load_artifact, write_artifact
from phase8.codecs import get_codec
from phase8.config import HyperConfig, SeedLMConfig, VPTQConfig
from phase8.errors import ArtifactError, OutputError
from phase8.model.source import load_source
from phase8.runtime import load_model

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
        (
            lambda h: h["__metadata__"].update(version="1"),
            "version 1, this program reads 4; versions 1 to 3 were never released",
        ),
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


def test_every_file_of_an_artifact_is_vouched_for(source, tmp_path):
    """One flipped bit in any file is noticed, by every reader, and so is a file too few or too many."""
    path = _written(source, tmp_path).parent
    files = read_manifest(path).files
    assert set(files) == {p.name for p in path.iterdir()} - {WEIGHTS_FILE} and "tokenizer.json" in files
    for name in files:
        good = (path / name).read_bytes()
        for change in (good[:-2] + bytes([good[-2] ^ 1]) + good[-1:], good + b" ", good[:-1], b""):
            (path / name).write_bytes(change)
            for reader in (read_artifact, read_manifest, load_artifact, load_model):
                with pytest.raises(ArtifactError, match="not the file that the artifact was written with|not JSON"):
                    reader(path)
        (path / name).unlink()
        with pytest.raises(ArtifactError, match="missing"):
            read_artifact(path)
        (path / name).write_bytes(good)
    assert read_artifact(path).sizes["config.json"] == files["config.json"][0]
    (path / "additional_chat_templates").mkdir()
    for name in (
        "generation_config.json", "adapter_config.json", "chat_template.jinja", "added_tokens.json", "spiece.model",
        "additional_chat_templates/tool.jinja",
    ):  # fmt: skip
        (path / name).write_text("{}")
        with pytest.raises(ArtifactError, match=f"'{name}' is no part of the artifact"):
            read_artifact(path)
        (path / name).unlink()
    (path / "README.md").write_text("what I know of it")
    read_artifact(path)


def test_the_tokenizer_may_be_saved_beside_the_model_again(source, tmp_path):
    path = _written(source, tmp_path).parent
    network, tokenizer = load_artifact(path)
    tokenizer.save_pretrained(path)
    load_artifact(path)


def _rewritten(path: Path, **changes) -> None:
    """config.json with other values, and the manifest's word for it: what a forger would do."""
    config = json.loads((path.parent / "config.json").read_text()) | changes
    text = json.dumps(config)
    (path.parent / "config.json").write_text(text)

    def edit(manifest):
        for entry in manifest["files"]:
            if entry[0] == "config.json":
                entry[1:] = [len(text), zlib.crc32(text.encode())]

    _edit_manifest(path, edit)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_hidden_layers": 20_000}, "num_hidden_layers = 20,000"),
        ({"max_position_embeddings": 60_000_000}, "max_position_embeddings = 60,000,000"),
        ({"vocab_size": 2**31}, "vocab_size"),
        ({"hidden_size": 2**28}, "hidden_size"),
        ({"num_key_value_heads": 2**26}, "num_key_value_heads"),
        ({"text_config": {"num_layers": 30_000}}, "num_layers = 30,000"),
        ({"num_local_experts": 100_000}, "num_local_experts"),
        ({"intermediate_size": 96}, "do not fit the architecture"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_config_json_is_held_against_the_manifest_before_a_network_is_built(
    source, tmp_path, monkeypatch, changes, says
):
    import transformers

    path = _written(source, tmp_path)
    _rewritten(path, **changes)
    read_artifact(path.parent)  # its checksum is right
    if "architecture" not in says:
        for owner in (transformers.LlamaForCausalLM, transformers.LlamaModel):
            monkeypatch.setattr(owner, "__init__", lambda *_, **__: pytest.fail("the network was built"))
    with pytest.raises(ArtifactError, match=says):
        load_artifact(path.parent)
    with pytest.raises(ArtifactError, match=says):
        transformers.AutoModelForCausalLM.from_pretrained(path.parent)


def test_tables_that_a_network_works_out_at_its_start_are_bounded(source, tmp_path):
    class Masks(torch.nn.Module):
        def __init__(self, extent: int) -> None:
            super().__init__()
            with torch.device("meta"):
                self.register_buffer("mask", torch.ones((extent, extent), dtype=torch.bool), persistent=False)

    manifest = read_manifest(_written(source, tmp_path).parent)
    check_buffers(Masks(2048), manifest)
    with pytest.raises(ArtifactError, match="3,600,000,000,000,000 bytes of tables"):
        check_buffers(Masks(60_000_000), manifest)


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
