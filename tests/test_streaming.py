"""Encoding from disk to disk: the bytes of the ordinary way, tensor by tensor, whatever the checkpoint looks like."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from phase8.artifact.read import WEIGHTS_FILE, read_artifact
from phase8.artifact.write import load_artifact, write_artifact
from phase8.cli import main
from phase8.codecs import get_codec, matrices
from phase8.codecs.hyper import coding, encode_winding
from phase8.codecs.pools import pools
from phase8.codecs.seedlm import encode as seedlm
from phase8.codecs.vptq import matrix
from phase8.config import CompressionConfig, HyperConfig, SeedLMConfig, Sharing, VPTQConfig
from phase8.errors import CodecError, ModelError
from phase8.model.source import load_source, unique_parameters
from phase8.run import streaming
from phase8.run.encode import plan
from phase8.run.streaming import encode_checkpoint, open_checkpoint

CONFIG = CompressionConfig(
    seedlm=SeedLMConfig(seed_bits=8), vptq=VPTQConfig(codebook_size=16), hyper=HyperConfig(dims=12, grid=255)
)
STAGES = ("seedlm", "vptq", "hyper")


def ordinary(directory, out, stage, config):
    """What a run without calibration and reconstruction writes."""
    source = load_source(str(directory))
    held = source.matrices()
    kept = {name: matrix for name, matrix in held.items() if name in config.protect}
    coded = {name: matrix for name, matrix in held.items() if name not in kept}
    groups = [
        get_codec(stage).encode({n: coded[n] for n in names}, config.stage(stage), importance={}, seed=config.seed)
        for names in pools(coded, config.stage(stage))
    ]
    for rest in (source.vectors(), kept):
        if rest:
            groups.append(get_codec("plain").encode(rest, None, importance={}, seed=config.seed))
    return write_artifact(out, groups, source, stage=stage)


def same_files(one, other):
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize(("share", "layers"), [*((share, 0) for share in Sharing), (Sharing.model, 1)])
@pytest.mark.parametrize("stage", STAGES)
def test_bytes_are_those_of_the_ordinary_way(tiny_model_dir, tmp_path, stage, share, layers):
    vptq = replace(CONFIG.vptq, share=share, share_layers=layers)
    config = replace(CONFIG, vptq=vptq, protect=("model.layers.1.mlp.up_proj.weight",))
    ordinary(tiny_model_dir, tmp_path / "a", stage, config)
    finished = []
    encode_checkpoint(tiny_model_dir, tmp_path / "b", stage, config, on_progress=finished.append)
    same_files(tmp_path / "a", tmp_path / "b")
    source = load_source(str(tiny_model_dir))
    total = sum(m.numel() for name, m in source.matrices().items() if name not in config.protect)
    assert sum(finished) == total


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_shards_other_formats_and_transposed_layers(tmp_path, tiny_tokenizer, dtype):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=258, n_positions=32, n_embd=24, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    network = GPT2LMHeadModel(config).to(dtype)
    network.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    ordinary(tmp_path / "model", tmp_path / "a", "vptq", CONFIG)
    encode_checkpoint(tmp_path / "model", tmp_path / "b", "vptq", CONFIG)
    same_files(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("stage", STAGES)
def test_a_small_limit_holds_one_matrix_at_a_time(tiny_model_dir, tmp_path, stage, monkeypatch):
    held, most = 0, 0
    read = streaming.Checkpoint.matrix

    def counted(self, name):
        nonlocal held
        held += 1
        return read(self, name)

    monkeypatch.setattr(streaming.Checkpoint, "matrix", counted)
    checkpoint = open_checkpoint(tiny_model_dir)
    weights = {}
    for group in streaming.encode_groups(checkpoint, stage, CONFIG, group_weights=1):
        most, held = max(most, held), 0
        weights |= get_codec(group.codec).decode(group)
    assert most == 1
    manifest = encode_checkpoint(tiny_model_dir, tmp_path / "out", stage, CONFIG, group_weights=1)
    network, _ = load_artifact(tmp_path / "out")
    for name, (_, parameter) in unique_parameters(network).items():
        assert np.array_equal(parameter.detach().numpy(), weights[name])
    one_by_one = dict(manifest.tensors())
    decoded = read_artifact(tmp_path / "out").decode()
    assert list(one_by_one) == list(decoded)
    assert all(np.array_equal(one_by_one[name], decoded[name]) for name in decoded)


@pytest.mark.parametrize("stage", STAGES)
def test_no_large_matrix_is_ever_read_as_a_whole(tiny_model_dir, tmp_path, stage, monkeypatch):
    encode_checkpoint(tiny_model_dir, tmp_path / "a", stage, CONFIG)
    limit, asked = 160, []  # five to ten rows
    part = streaming.Checkpoint.part

    def counted(self, name, begin, end):
        asked.append(end - begin)
        return part(self, name, begin, end)

    monkeypatch.setattr(streaming.Checkpoint, "part", counted)
    for module in (streaming, matrices, matrix, seedlm):
        monkeypatch.setattr(module, "AT_ONCE", limit)
    for module, limited in ((coding, "AT_ONCE"), (encode_winding, "AT_ONCE"), (encode_winding, "_SEARCHED")):
        monkeypatch.setattr(module, limited, 4)
    encode_checkpoint(tiny_model_dir, tmp_path / "b", stage, CONFIG)
    assert max(asked) <= limit and sum(asked) > 2 * read_artifact(tmp_path / "a").parameter_count
    wanted, found = (read_artifact(tmp_path / name).decode() for name in "ab")
    for name, weights in wanted.items():
        assert (weights == found[name]).mean() > 0.99, name  # all but what rounding decides


def test_plan_cuts_groups_at_the_limit():
    sizes = {f"model.layers.{n}.mlp.{kind}.weight": 10 for n in range(3) for kind in ("up_proj", "down_proj")}
    up, down = ([f"model.layers.{n}.mlp.{kind}.weight" for n in range(3)] for kind in ("up_proj", "down_proj"))

    def planned(stage, config, most):
        return plan(stage, config, sizes, {}, group_weights=most).coded

    assert planned("vptq", CONFIG, 30) == [up, down]
    assert planned("vptq", CONFIG, 20) == [up[:2], up[2:], down[:2], down[2:]]
    by_layer = replace(CONFIG, vptq=replace(CONFIG.vptq, share_layers=2))
    assert planned("vptq", by_layer, 30) == [up[:2], down[:2], up[2:], down[2:]]
    assert planned("seedlm", CONFIG, 60) == [list(sizes)]
    assert planned("hyper", CONFIG, 5) == [[name] for name in sizes]


def test_tied_weights_under_either_name(tiny_model_dir, tmp_path):
    encode_checkpoint(tiny_model_dir, tmp_path / "a", "hyper", CONFIG)
    state = load_file(tiny_model_dir / "model.safetensors")
    state["lm_head.weight"] = state.pop("model.embed_tokens.weight")
    save_file(state, tiny_model_dir / "model.safetensors", metadata={"format": "pt"})
    encode_checkpoint(tiny_model_dir, tmp_path / "b", "hyper", CONFIG)
    same_files(tmp_path / "a", tmp_path / "b")


def _as_the_hub(state):
    """GPT-2's names on the hub have no `transformer.` in front; old checkpoints hold masks that are computed today."""
    named = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    return named | {f"h.{n}.attn.bias": torch.ones(1, 1, 32, 32) for n in range(2)}


def _with_rotary_buffers(state):
    return state | {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(2)}


STORED_OTHERWISE = {
    "gpt2": ({"n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 32}, _as_the_hub, "h.0.attn.c_attn.weight"),
    "llama": (
        {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
        _with_rotary_buffers, "rotary_emb.inv_freq",
    ),
    "mixtral": (
        {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 2, "num_local_experts": 3},
        dict, "block_sparse_moe.experts.0.w1.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", STORED_OTHERWISE)
def test_names_on_disk_are_mapped_as_the_loader_maps_them(tmp_path, tiny_tokenizer, kind):
    settings, change, known = STORED_OTHERWISE[kind]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=258, bos_token_id=0, eos_token_id=0, pad_token_id=1, **settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    assert any(known in name for name in load_file(path))
    checkpoint, source = open_checkpoint(tmp_path), load_source(str(tmp_path))
    assert checkpoint.parameters.keys() == source.parameters.keys()
    for name, (_, parameter) in source.parameters.items():
        assert torch.equal(checkpoint.read(name), parameter), name


def test_bad_checkpoints_are_one_clear_error_and_leave_nothing(tiny_model_dir, tmp_path):
    path, out = tiny_model_dir / "model.safetensors", tmp_path / "out"
    state = load_file(path)

    def refused(change, error, says):
        changed = dict(state)
        change(changed)
        save_file(changed, path, metadata={"format": "pt"})
        with pytest.raises(error, match=says):
            encode_checkpoint(tiny_model_dir, out, "seedlm", CONFIG)
        assert not list(tmp_path.glob("*out*")), "something was left behind"

    norm = "model.norm.weight"
    refused(lambda s: s.pop(norm), ModelError, "lacks 1 .*model.norm")
    refused(lambda s: s.update(other=torch.ones(2)), ModelError, "no place for: other")
    refused(lambda s: s.update({norm: torch.ones(3)}), ModelError, "on disk, .* needed")
    refused(lambda s: s.update({norm: torch.full((16,), torch.nan)}), CodecError, "NaN")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ModelError, match="cannot be read"):
        encode_checkpoint(tiny_model_dir, out, "seedlm", CONFIG)
    path.unlink()
    with pytest.raises(ModelError, match="no safetensors"):
        open_checkpoint(tiny_model_dir)


def test_command(tiny_model_dir, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["encode", str(tiny_model_dir), str(out), "--stage", "vptq", "--set", "vptq.codebook_size=16"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert f"{(out / WEIGHTS_FILE).stat().st_size + (out / 'config.json').stat().st_size:,} bytes" in printed
    assert json.loads((out / "config.json").read_text())["quantization_config"]["stage"] == "vptq"
    assert read_artifact(out).groups[0].settings["codebook_sizes"] == [16]
    tokens = torch.tensor([[0, 5, 9]])
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(tiny_model_dir)(tokens).logits
        got = load_artifact(out)[0](tokens).logits
    assert got.shape == wanted.shape and torch.isfinite(got).all()
    assert main([*command, "--set", "vptq.codebook_sise=16"]) == 2
    assert "codebook_size" in capsys.readouterr().err
