"""What could not be opened again, or would be another model, is refused before anything is measured."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

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
