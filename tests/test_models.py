"""Loading models: what is accepted, what is refused, and how parameters become matrices."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from phase8.artifact.write import load_artifact, write_artifact
from phase8.codecs import get_codec
from phase8.config import VPTQConfig
from phase8.errors import ModelError
from phase8.model.source import ExpertFile, as_matrix, from_matrix, in_place, load_source, unique_parameters
from phase8.run.streaming import open_checkpoint


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


def test_a_table_that_is_saved_and_not_learned_is_kept_as_it_is(tiny_model_dir):
    """MiniMax saves its decays so; a stage would make other constants of them."""
    source = load_source(str(tiny_model_dir))
    table = torch.rand(2, 3, 4)
    source.network.model.layers[0].self_attn.register_buffer("decay", table)
    name = "model.layers.0.self_attn.decay"
    assert name not in source.matrices() and torch.equal(source.vectors()[name], table)
    group = get_codec("plain").encode({name: table}, None, importance={}, seed=0)
    kept = torch.from_numpy(get_codec("plain").decode(group)[name])
    assert torch.equal(in_place(source.parameters[name], kept), table.half().float())


def test_phase7_checkpoint_is_read_as_tensors_only(tmp_path, tiny_network, tiny_tokenizer):
    tiny_network.config.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    torch.save({"model_state_dict": tiny_network.state_dict()}, tmp_path / "phase7_output.pt")
    expert = {"num_experts": 2, "experts": ["analytical", "code"], "optimal_mixture": [1.8, 1.0]}
    (tmp_path / "phase7_expert_config.json").write_text(json.dumps(expert))
    source = load_source(str(tmp_path))
    assert source.experts.experts == ("analytical", "code")
    assert torch.equal(source.network.lm_head.weight, tiny_network.lm_head.weight)


_SHAPE = {
    "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 33,
}  # fmt: skip
ARCHITECTURES = {
    "llama": ("llama", _SHAPE),
    "llama, tied": ("llama", _SHAPE | {"tie_word_embeddings": True}),
    "gpt2": ("gpt2", {"n_embd": 20, "n_layer": 2, "n_head": 2, "n_positions": 33}),
    "gpt2, untied": (
        "gpt2",
        {"n_embd": 20, "n_layer": 2, "n_head": 2, "n_positions": 33, "tie_word_embeddings": False},
    ),
    "gpt_neox": ("gpt_neox", {key: value for key, value in _SHAPE.items() if key != "num_key_value_heads"}),
    "opt": (
        "opt",
        {"hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 37, "word_embed_proj_dim": 12}
        | {"max_position_embeddings": 33},
    ),
    "mixtral": ("mixtral", _SHAPE | {"intermediate_size": 48, "num_local_experts": 3}),
    "deepseek_v3": (
        "deepseek_v3",
        _SHAPE
        | {"num_key_value_heads": 2, "n_routed_experts": 4, "n_shared_experts": 1, "q_lora_rank": 8, "kv_lora_rank": 8}
        | {"qk_rope_head_dim": 4, "v_head_dim": 8, "qk_nope_head_dim": 4, "first_k_dense_replace": 1, "n_group": 2}
        | {"moe_intermediate_size": 16, "topk_group": 1, "num_experts_per_tok": 2},
    ),
    "youtu": (
        "youtu",
        _SHAPE
        | {"num_key_value_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 8}
        | {"qk_rope_head_dim": 4, "v_head_dim": 8, "qk_nope_head_dim": 4},
    ),
}
"""Conv1D, fused and tied matrices, projections, 3-D experts, learned buffers, extents that 4 and 8 do not divide; and
Youtu, whose own code empties the padding token's row after loading."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_model_survives_the_artifact(name, dtype, tmp_path, tiny_tokenizer):
    kind, shape = ARCHITECTURES[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=259, bos_token_id=0, eos_token_id=0, pad_token_id=1, **shape)
    network = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for _, tensor in unique_parameters(network).values():
            if tensor.dim() < 2:  # biases, norms and buffers start as zeros and ones
                tensor += 0.1 * torch.randn_like(tensor)
        network.get_input_embeddings().weight[1] += 0.5  # the padding token's row, which starts as zeros too
    network.to(dtype).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")

    source = load_source(str(tmp_path / "model"))
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert source.parameter_count == sum(tensor.numel() for tensor in saved.values())
    for key, value in network.state_dict().items():
        assert torch.equal(source.network.state_dict()[key], value.float()), key

    settings = VPTQConfig(codebook_size=16, vector_dim=4)
    groups = [
        get_codec("vptq").encode(source.matrices(), settings, importance={}, seed=0),
        get_codec("plain").encode(source.vectors(), None, importance={}, seed=0),
    ]
    write_artifact(tmp_path / "artifact", groups, source, stage="vptq")
    back, _ = load_artifact(tmp_path / "artifact")
    decoded = {key: value for group in groups for key, value in get_codec(group.codec).decode(group).items()}
    places = unique_parameters(back)
    assert places.keys() == decoded.keys()
    for key, (module, tensor) in places.items():
        seen = as_matrix(module, tensor) if tensor.dim() >= 2 else tensor
        assert torch.equal(seen, torch.from_numpy(decoded[key])), key
        exact = source.network.get_parameter(key) if key in dict(network.named_parameters()) else None
        if exact is not None and tensor.dim() < 2 and dtype is not torch.float32:
            assert torch.equal(tensor, exact), key  # 16 bits hold what came in 16 bits

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "artifact")
    for key, value in back.state_dict().items():
        assert torch.equal(theirs.state_dict()[key], value), key
    ids = torch.tensor([[0, 5, 77, 258, 30]])
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, back(ids).logits)


def test_a_compressed_model_is_no_source(tiny_model_dir):
    config = json.loads((tiny_model_dir / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "phase8", "format_version": 1, "stage": "vptq"}
    (tiny_model_dir / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="compressed already.*phase8"):
        load_source(str(tiny_model_dir))


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


def _of_a_model_that_transformers_cannot_build(directory):
    AutoConfig.for_model("musicgen").save_pretrained(directory)


def _poison(directory):
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def test_a_text_model_that_is_found_by_the_whole_alone(tmp_path, tiny_tokenizer):
    """Mllama's network keeps the text's settings; an artifact with those could not be opened."""
    whole = AutoConfig.for_model("mllama", text_config={
        "vocab_size": 259, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "pad_token_id": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "cross_attention_layers": [1],
    })  # fmt: skip
    AutoModelForCausalLM.from_config(whole).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    whole.save_pretrained(tmp_path)
    for opened in (load_source, open_checkpoint):
        with pytest.raises(ModelError, match="'mllama_text_model' has no causal language model"):
            opened(str(tmp_path))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_truncate, "cannot be read"),
        (lambda d: (d / "model.safetensors").unlink(), "cannot be read"),
        (lambda d: (d / "config.json").unlink(), "config.json"),
        (lambda d: (d / "config.json").write_text("{"), "configuration"),
        (lambda d: (d / "config.json").write_text('{"model_type": "vit"}'), "vit"),
        (_of_a_model_that_transformers_cannot_build, "cannot build a causal language model .*no attribute 'dropout'"),
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
