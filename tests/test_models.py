"""Loading models: what is accepted, what is refused, and how parameters become matrices."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from phase8.errors import ModelError
from phase8.models import ExpertFile, as_matrix, from_matrix, load_source, unique_parameters


def test_directory_loads_and_counts_tied_parameters_once(tiny_model_dir, tiny_network):
    source = load_source(str(tiny_model_dir))
    by_hand = sum(p.numel() for p in {id(p): p for p in tiny_network.parameters()}.values())
    assert source.parameter_count == by_hand
    assert source.original_bytes == 4 * by_hand
    assert "lm_head.weight" not in source.parameters
    assert set(source.matrices()) | set(source.vectors()) == set(source.parameters)
    assert torch.equal(source.matrices()["model.embed_tokens.weight"], tiny_network.model.embed_tokens.weight)


def test_hash_follows_content(tiny_model_dir):
    first = load_source(str(tiny_model_dir))
    again = load_source(str(tiny_model_dir))
    assert first.content_hash == again.content_hash
    changed = load_source(str(tiny_model_dir))
    with torch.no_grad():
        changed.network.model.norm.weight[0] += 1
    assert changed.content_hash != first.content_hash


def test_conv1d_is_seen_transposed():
    network = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=8, n_layer=1, n_head=2, n_positions=16))
    module, parameter = unique_parameters(network)["transformer.h.0.attn.c_attn.weight"]
    matrix = as_matrix(module, parameter)
    assert matrix.shape == (24, 8)  # [O, I] of the linear map that Conv1D [8, 24] computes
    assert torch.equal(from_matrix(module, matrix, parameter.shape), parameter)


def test_phase7_checkpoint_is_read_as_tensors_only(tmp_path, tiny_network, tiny_tokenizer):
    tiny_network.config.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    torch.save({"model_state_dict": tiny_network.state_dict()}, tmp_path / "phase7_output.pt")
    expert = {"num_experts": 2, "experts": ["analytical", "code"], "optimal_mixture": [1.8, 1.0]}
    (tmp_path / "phase7_expert_config.json").write_text(json.dumps(expert))
    source = load_source(str(tmp_path))
    assert source.experts.experts == ("analytical", "code")
    assert torch.equal(source.network.lm_head.weight, tiny_network.lm_head.weight)


class _Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_checkpoint_with_code_is_refused(tmp_path, tiny_network, tiny_tokenizer, capfd):
    tiny_network.config.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    torch.save({"model_state_dict": _Evil()}, tmp_path / "phase7_output.pt")
    with pytest.raises(ModelError):
        load_source(str(tmp_path))
    assert "executed" not in capfd.readouterr().out


def _truncate(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _drop_tensor(directory):
    tensors = load_file(directory / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def _poison(directory):
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_truncate, "cannot be read"),
        (lambda d: (d / "model.safetensors").unlink(), "cannot be read"),
        (lambda d: (d / "config.json").unlink(), "config.json"),
        (lambda d: (d / "config.json").write_text("{"), "configuration"),
        (lambda d: (d / "config.json").write_text('{"model_type": "vit"}'), "vit"),
        (_drop_tensor, "lacks 1"),
        (_poison, r"NaN or infinite.*model\.norm\.weight \(1 values\)"),
        (lambda d: (d / "phase7_expert_config.json").write_text('{"experts": "all"}'), "experts"),
        (lambda d: (d / "phase7_expert_config.json").write_text('{"num_experts": 3, "experts": ["code"]}'), "num_exp"),
    ],
)
def test_bad_input_is_one_clear_error(tiny_model_dir, damage, says):
    damage(tiny_model_dir)
    with pytest.raises(ModelError, match=says) as caught:
        load_source(str(tiny_model_dir))
    assert caught.value.fix and caught.value.where


@pytest.mark.parametrize("path", ["./nowhere", "/no/such/place", "embedded:nothing"])
def test_missing_model(path):
    with pytest.raises(ModelError):
        load_source(path)


def test_expert_mixture_must_fit():
    with pytest.raises(ModelError, match="optimal_mixture"):
        ExpertFile.from_dict({"experts": ["code"], "optimal_mixture": [1.0, 2.0]}, where="here")
