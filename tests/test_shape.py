"""The part of a network that is kept: what a budget makes of it, against counting the narrow network's own matrices."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from phase8.codecs.lattice.train import kept_part
from phase8.model.source import ExpertFile, source_from_network
from phase8.train.shape import Shape, stored_weights, suited
from phase8.train.slicing import narrow
from phase8.train.whole import TrainedStage


def network(tied: bool = True, kv_heads: int = 4) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=kv_heads, head_dim=24, tie_word_embeddings=tied, max_position_embeddings=64,
        )
    )  # fmt: skip


@pytest.mark.parametrize(("tied", "kv_heads"), [(True, 4), (False, 4), (True, 2)])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_weights_are_counted_as_the_narrow_network_has_them(tied, kv_heads, share):
    model, shape = network(tied, kv_heads), Shape(width=share, units=share, heads=share)
    cut = narrow(model, [torch.randint(0, 300, (4, 16))], **shape.of(model)).network
    assert stored_weights(model.config, shape) == sum(p.numel() for p in cut.parameters() if p.dim() == 2)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_of_smaller_heads_what_is_left_out_is_zero_and_does_not_count(kv_heads):
    model, shape = network(True, kv_heads), Shape(width=0.5, heads=0.5, head_size=0.25)
    cut = narrow(model, [torch.randint(0, 300, (4, 16))], **shape.of(model)).network
    filled = sum(kept_part(p).numel() for p in cut.parameters() if p.dim() == 2)
    assert filled == stored_weights(model.config, shape) and shape.of(model)["head_size"] == 6


@pytest.mark.parametrize("bits", [1.0, 2.2, 4.0])
@pytest.mark.parametrize(
    "given", [{}, {"head_size": 0.25}, {"width": 0.5}, {"units": 0.25}, {"heads": 0.5}, {"shared": 3}]
)
def test_each_weight_has_the_bits_that_are_asked_for(bits, given):
    model = network()
    budget = int(0.4 * bits * stored_weights(model.config, Shape()) / 8)
    if "shared" in given:
        budget //= 3
    shape = suited(model, budget, bits, **given)
    assert {name: getattr(shape, name) for name in given} == given
    assert 8 * budget / stored_weights(model.config, shape) == pytest.approx(bits, rel=1e-3)
    assert shape.narrower


def test_what_fits_whole_is_kept_whole_and_a_choice_stands():
    model = network()
    assert suited(model, 10**9, 2.2) == Shape()
    assert suited(model, 10, 2.2, width=0.7, units=0.3) == Shape(width=0.7, units=0.3)
    something = {"width": 8, "units": 8, "heads": 4, "head_size": 24}
    assert suited(model, 10, 2.2).of(model) == something


def test_half_of_wide_heads_is_kept_where_the_budget_is_short():
    wide = LlamaForCausalLM(
        LlamaConfig(vocab_size=300, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
                    num_attention_heads=2, num_key_value_heads=2, head_dim=64)
    )  # fmt: skip
    assert suited(wide, 20_000, 2.5, head_size=None).of(wide)["head_size"] == 32
    assert suited(wide, 10**9, 2.5, head_size=None) == Shape()
    assert suited(network(), 10_000, 2.5, head_size=None).head_size == 1.0  # heads of 24
    assert suited(wide, 20_000, 2.5, head_size=0.25).head_size == 0.25


def test_another_layout_keeps_all_and_says_why(tiny_tokenizer):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=258, n_positions=16, n_embd=16, n_layer=1, n_head=2))
    assert not suited(model, 100, 2.2).narrower
    source = source_from_network(model, tiny_tokenizer, ExpertFile(), "other")
    asked = suited(source.network, 100, 2.2, width=0.5, heads=0.5)  # what a user asks for cannot be had
    stage = TrainedStage(source, torch.zeros(4, 8, dtype=torch.long), shape=asked, start_step=0.5, size=len)
    assert "Llama" in str(stage.why_whole) and stage._narrow() is None and "keeps its shape" in stage.notes[0]


def test_a_told_shape_names_what_is_kept_of_what():
    told = Shape(width=0.5, units=0.25, heads=0.5).told(network())
    assert told == "64 of 128 channels, 64 of 256 feed-forward units, 2 of 4 key-value heads"
    assert Shape(head_size=0.5).told(network()).endswith("4 of 4 key-value heads with 12 of 24 channels each")
