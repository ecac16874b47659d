"""What was judged is what is handed over: settings, adapters and every learned number travel, or are refused."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig

from phase8.artifact.write import load_artifact, write_artifact
from phase8.codecs import get_codec
from phase8.config import CompressionConfig
from phase8.errors import ModelError
from phase8.export import export
from phase8.model.source import ExpertFile, load_source, source_from_network
from phase8.run.streaming import encode_checkpoint, open_checkpoint

SETTINGS = {"eos_token_id": [0, 7], "do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.3}
TEMPLATE = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"


@pytest.fixture
def chat_dir(tiny_model_dir, tiny_tokenizer):
    """A model with several end tokens, sampling settings and a chat template."""
    (tiny_model_dir / "generation_config.json").write_text(json.dumps(SETTINGS))
    tokenizer = copy.deepcopy(tiny_tokenizer)  # it is shared by the tests of a session
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tiny_model_dir)
    return tiny_model_dir


def plain_artifact(directory, source):
    plain = get_codec("plain")
    groups = [plain.encode(t, None, importance={}, seed=0) for t in (source.vectors(), source.matrices())]
    return write_artifact(directory, groups, source, stage="vptq")


def said(settings: GenerationConfig) -> dict:
    return {name: getattr(settings, name) for name in SETTINGS}


def test_generation_settings_and_chat_template_travel(chat_dir, tmp_path):
    import phase8  # noqa: F401  teaches transformers

    source = load_source(str(chat_dir))
    assert said(source.network.generation_config) == SETTINGS
    artifact = plain_artifact(tmp_path / "artifact", source)
    assert artifact.size_bytes == sum(
        (tmp_path / "artifact" / name).stat().st_size
        for name in ("model.safetensors", "config.json", "generation_config.json")
    )
    network, tokenizer = load_artifact(tmp_path / "artifact")
    assert said(network.generation_config) == SETTINGS and tokenizer.chat_template == TEMPLATE
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "artifact")
    assert said(opened.generation_config) == SETTINGS
    opened.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "generation_config.json").read_bytes() == (
        tmp_path / "artifact" / "generation_config.json"
    ).read_bytes()
    export(tmp_path / "artifact", tmp_path / "plain", "safetensors")
    plain = load_source(str(tmp_path / "plain"))
    assert said(plain.network.generation_config) == SETTINGS and plain.tokenizer.chat_template == TEMPLATE
    config = CompressionConfig.from_dict({"vptq": {"codebook_size": 16, "vector_dim": 4}})
    encode_checkpoint(chat_dir, tmp_path / "streamed", "vptq", config)
    assert said(load_artifact(tmp_path / "streamed")[0].generation_config) == SETTINGS


def test_the_numpy_runtime_ends_at_every_end_token(chat_dir, tmp_path):
    from phase8.runtime import load_model

    plain_artifact(tmp_path / "artifact", load_source(str(chat_dir)))
    assert load_model(tmp_path / "artifact").shape.eos == (0, 7)


def test_side_by_side_the_original_ends_at_every_end_token_too(chat_dir):
    from phase8.runtime.side_by_side import load_original

    tensors = load_file(chat_dir / "model.safetensors")
    assert "lm_head.weight" not in tensors and load_original(chat_dir).shape.eos == (0, 7)


def test_settings_in_memory_travel_even_where_transformers_would_not_save_them(tiny_network, tiny_tokenizer, tmp_path):
    tiny_network.generation_config = GenerationConfig(eos_token_id=[0, 7], temperature=0.6)  # without do_sample
    plain_artifact(tmp_path / "a", source_from_network(tiny_network, tiny_tokenizer, ExpertFile(), "tiny"))
    network, _ = load_artifact(tmp_path / "a")
    assert network.generation_config.eos_token_id == [0, 7] and network.generation_config.temperature == 0.6


def test_no_file_where_the_configuration_says_as_much(tiny_model_dir, tmp_path):
    plain_artifact(tmp_path / "a", load_source(str(tiny_model_dir)))
    assert not (tmp_path / "a" / "generation_config.json").exists()


def test_other_settings_are_another_model_to_the_cache(tiny_model_dir):
    before = load_source(str(tiny_model_dir)).content_hash
    (tiny_model_dir / "generation_config.json").write_text(json.dumps(SETTINGS))
    assert load_source(str(tiny_model_dir)).content_hash != before
    assert open_checkpoint(tiny_model_dir).content_hash() == load_source(str(tiny_model_dir)).content_hash


# Adapters ------------------------------------------------------------------------------------------------------------


def adapted(network, targets=("q_proj", "down_proj")):
    peft = pytest.importorskip("peft")
    torch.manual_seed(2)
    model = peft.get_peft_model(network, peft.LoraConfig(r=4, target_modules=list(targets)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


IDS = torch.arange(3, 30)[None]


def test_an_adapter_beside_the_weights_is_merged(tiny_network, tiny_model_dir, tmp_path):
    model = adapted(tiny_network)
    model.save_pretrained(tiny_model_dir)
    with torch.no_grad():
        expected = model(IDS).logits
        source = load_source(str(tiny_model_dir))
        torch.testing.assert_close(source.network(IDS).logits, expected, atol=1e-5, rtol=1e-4)
        assert (load_file(tiny_model_dir / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
                != source.network.model.layers[0].self_attn.q_proj.weight).any()  # fmt: skip
        plain_artifact(tmp_path / "a", source)
        torch.testing.assert_close(load_artifact(tmp_path / "a")[0](IDS).logits, expected, atol=0.05, rtol=0.05)


def test_without_peft_an_adapter_is_refused_at_the_start(tiny_network, tiny_model_dir, monkeypatch):
    adapted(tiny_network).save_pretrained(tiny_model_dir)
    monkeypatch.setattr("phase8.model.adapter.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="peft is not installed"):
        load_source(str(tiny_model_dir))


def test_from_disk_to_disk_an_adapter_is_refused(tiny_network, tiny_model_dir, tmp_path):
    adapted(tiny_network).save_pretrained(tiny_model_dir)
    with pytest.raises(ModelError, match="adapter lies beside"):
        encode_checkpoint(tiny_model_dir, tmp_path / "out", "vptq", CompressionConfig())


def test_an_adapter_alone_is_no_model(tiny_network, tmp_path):
    adapted(tiny_network).save_pretrained(tmp_path / "lora")
    with pytest.raises(ModelError, match="an adapter only"):
        load_source(str(tmp_path / "lora"))


@pytest.mark.parametrize("way", ["peft", "transformers"])
def test_adapters_in_memory_are_merged_into_the_copy(tiny_network, tiny_tokenizer, way):
    peft = pytest.importorskip("peft")
    if way == "peft":
        model = adapted(tiny_network)
    else:
        model = tiny_network
        model.add_adapter(peft.LoraConfig(r=4, target_modules=["v_proj"], init_lora_weights=False))
    with torch.no_grad():
        expected = model(IDS).logits
    source = source_from_network(model, tiny_tokenizer, ExpertFile(), "tiny")
    assert not any("lora" in name for name in source.parameters)
    with torch.no_grad():
        torch.testing.assert_close(source.network(IDS).logits, expected, atol=1e-5, rtol=1e-4)
    assert any("lora" in name for name, _ in model.named_parameters())


# Every learned number ------------------------------------------------------------------------------------------------


def test_parameters_that_the_architecture_lacks_are_named(tiny_model_dir, tmp_path):
    path = tiny_model_dir / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.ones(16)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ModelError, match="no place for: model.layers.0.self_attn.q_proj.bias"):
        load_source(str(tiny_model_dir))
    with pytest.raises(ModelError, match="no place for: model.layers.0.self_attn.q_proj.bias"):
        open_checkpoint(tiny_model_dir)


def test_a_network_in_memory_is_left_as_it_was(tiny_network, tiny_tokenizer):
    network = tiny_network.to(torch.bfloat16).train()
    network.model.norm.eval()
    before = {name: (p.dtype, p.requires_grad, p.clone()) for name, p in network.named_parameters()}
    source = source_from_network(network, tiny_tokenizer, ExpertFile(), "tiny")
    assert source.network is not network and source.network.dtype == torch.float32 and not source.network.training
    assert network.training and not network.model.norm.training
    for name, parameter in network.named_parameters():
        assert (parameter.dtype, parameter.requires_grad) == before[name][:2]
        assert torch.equal(parameter, before[name][2])


@pytest.mark.parametrize("open_it", [load_source, open_checkpoint])
def test_a_tokenizer_longer_than_the_embedding_is_refused(tiny_model_dir, tiny_tokenizer, open_it):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["one more"])
    tokenizer.save_pretrained(tiny_model_dir)
    with pytest.raises(ModelError, match="259 tokens, the embedding only 258"):
        open_it(str(tiny_model_dir))


def test_the_same_of_a_network_in_memory(tiny_network, tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["one more"])
    with pytest.raises(ModelError, match="259 tokens"):
        source_from_network(tiny_network, tokenizer, ExpertFile(), "tiny")


def test_the_directory_in_hand_has_a_name(tiny_model_dir, monkeypatch):
    monkeypatch.chdir(tiny_model_dir)
    assert load_source(".").name == "tiny"
    assert load_source("../tiny/").name == "tiny"
