"""What could not be opened again, or would be another model, is refused before anything is measured."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from phase8.artifact.rehearse import check_reopens
from phase8.errors import ModelError
from phase8.model.source import ExpertFile, source_from_network


def source(network, tokenizer):
    return source_from_network(network, tokenizer, ExpertFile(), "tiny")


def test_an_ordinary_model_passes_and_no_chance_is_spent(tiny_network, tiny_tokenizer):
    state = torch.random.get_rng_state()
    check_reopens(source(tiny_network, tiny_tokenizer))
    assert torch.equal(torch.random.get_rng_state(), state)


def with_a_layer_more(network):
    network.model.layers[0].extra = torch.nn.Linear(3, 3)


def with_a_pruned_layer(network):
    network.model.layers[1].mlp.up_proj = torch.nn.Linear(16, 20, bias=False)
    network.model.layers[1].mlp.gate_proj = torch.nn.Linear(16, 20, bias=False)
    network.model.layers[1].mlp.down_proj = torch.nn.Linear(20, 16, bias=False)


def with_a_head_of_its_own(network):
    network.lm_head.weight = torch.nn.Parameter(network.lm_head.weight.detach() + 0.1)


@pytest.mark.parametrize("change", [with_a_layer_more, with_a_pruned_layer, with_a_head_of_its_own])
def test_parameters_that_the_configuration_does_not_describe(tiny_network, tiny_tokenizer, change):
    change(tiny_network)
    with pytest.raises(ModelError, match="not those that the configuration describes"):
        check_reopens(source(tiny_network, tiny_tokenizer))


def with_a_hook(network):
    network.model.layers[0].register_forward_hook(lambda module, args, output: output * 1.5)


def with_other_frequencies(network):
    for name, parameter in network.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            parameter.data *= 40  # at the start of a training all attention is nearly even
    network.model.rotary_emb.inv_freq *= 0.5


@pytest.mark.parametrize("change", [with_a_hook, with_other_frequencies])
def test_what_is_in_memory_only(tiny_network, tiny_tokenizer, change):
    change(tiny_network)
    with pytest.raises(ModelError, match="answers otherwise"):
        check_reopens(source(tiny_network, tiny_tokenizer))


def test_a_class_that_transformers_does_not_know(tiny_tokenizer):
    class Odd(LlamaConfig):
        model_type = "odd_llama"

    network = LlamaForCausalLM(
        Odd(vocab_size=258, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(ModelError, match="could not be opened again"):
        check_reopens(source(network, tiny_tokenizer))


def test_a_tokenizer_that_does_not_save_all_of_itself(tiny_network, tiny_tokenizer, monkeypatch):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    whole = type(tokenizer).save_pretrained

    def lossy(self, directory, **settings):
        plain = copy.deepcopy(tiny_tokenizer)
        plain.backend_tokenizer.post_processor = None
        return whole(plain, directory, **settings)

    monkeypatch.setattr(type(tokenizer), "save_pretrained", lossy)
    with pytest.raises(ModelError, match="cuts text otherwise"):
        check_reopens(source(tiny_network, tokenizer))


BERT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
REFORMER = {
    "hidden_size": 32, "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [16, 16], "num_attention_heads": 2,
    "attn_layers": ["lsh"], "is_decoder": True, "max_position_embeddings": 256, "num_buckets": 4,
}  # fmt: skip
UNFIT = {
    "a BERT that is no decoder": ("bert", BERT, "looks ahead"),
    "XLNet": ("xlnet", {"d_model": 32, "n_layer": 1, "n_head": 4, "d_inner": 48}, "looks ahead"),
    "a Reformer without a seed": ("reformer", REFORMER, "answers by chance"),
}
FIT = {
    "a BERT that is a decoder": ("bert", BERT | {"is_decoder": True}),
    "a Reformer with a seed": ("reformer", REFORMER | {"hash_seed": 1}),
}


def built(kind, settings, tokenizer):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=1, **settings
    )
    network = AutoModelForCausalLM.from_config(config)
    for parameter in network.parameters():
        if parameter.dim() >= 2:
            torch.nn.init.normal_(parameter, std=0.2)
    return source(network, tokenizer)


@pytest.mark.parametrize("name", UNFIT)
def test_a_model_whose_benchmarks_would_mean_nothing(name, tiny_tokenizer):
    kind, settings, says = UNFIT[name]
    with pytest.raises(ModelError, match=says) as caught:
        check_reopens(built(kind, settings, tiny_tokenizer))
    assert caught.value.fix


@pytest.mark.parametrize("name", FIT)
def test_the_same_models_set_right(name, tiny_tokenizer):
    check_reopens(built(*FIT[name], tiny_tokenizer))


def test_a_window_that_the_model_cannot_read(tiny_network, tiny_tokenizer, monkeypatch):
    whole = LlamaForCausalLM.forward

    def short(self, input_ids, **settings):
        if input_ids.shape[1] > 100:
            raise IndexError("index out of range in self")
        return whole(self, input_ids=input_ids, **settings)

    monkeypatch.setattr(LlamaForCausalLM, "forward", short)
    with pytest.raises(ModelError, match="cannot read a text of 128 tokens.*IndexError: index out of range"):
        check_reopens(source(tiny_network, tiny_tokenizer))
