"""Llama's passes written out, against transformers' own and autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch.func import functional_call
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from phase8.train import llama
from phase8.train.collect import collect_answers
from phase8.train.heads import keep_directions, pair_strengths
from phase8.train.llama import Llama, why_not_written_out
from phase8.train.sliced import SlicedBatch

CPU = torch.device("cpu")
SIZES = dict(vocab_size=90, hidden_size=24, intermediate_size=40, num_hidden_layers=3, max_position_embeddings=64)


def network(kind: type = LlamaForCausalLM, config: type = LlamaConfig, **settings):
    torch.manual_seed(3)
    made = kind(config(**SIZES | {"initializer_range": 0.4} | settings)).eval().requires_grad_(False)
    for vector in made.parameters():
        if vector.dim() == 1:
            vector.copy_(1.0 + 0.3 * torch.randn(vector.shape))
    return made


KINDS = {
    "plain, tied": {"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True},
    "shared keys, own head": {"num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": False},
    "wide heads": {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True},
    "scaled positions": {
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0},
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("in_cache", [1 << 19, 200])  # all logits at once, two places
def test_divergence_and_gradient_are_those_of_autograd(kind, in_cache, monkeypatch):
    monkeypatch.setattr(llama, "LOGITS_IN_CACHE", in_cache)
    made = network(**KINDS[kind])
    tokens = torch.randint(90, (5, 11), generator=torch.Generator().manual_seed(1))
    answers, rows = collect_answers(made, tokens, kept=12), torch.tensor([4, 0, 2])
    generator = torch.Generator().manual_seed(2)
    weights = {
        name: (w + 0.2 * torch.randn(w.shape, generator=generator)).requires_grad_()
        for name, w in made.named_parameters()
    }
    logits = functional_call(made, weights, (), {"input_ids": tokens[rows]}, tie_weights=True).logits
    expected = answers.divergence(rows, logits, 0.5)
    gradient = torch.autograd.grad(0.7 * expected.sum(), list(weights.values()))

    assert why_not_written_out(made, 11, CPU) is None
    given = {name: w.detach() for name, w in weights.items()}
    of_each, found = Llama(made, torch.float32).divergence(
        given, tokens[rows], *answers.of(rows, CPU), share=0.7, certainty=0.5
    )
    assert torch.allclose(of_each, expected.detach(), rtol=1e-4, atol=1e-5)
    for name, mine, theirs in zip(weights, found, gradient, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-3, atol=2e-5 * float(theirs.abs().max())), name


@pytest.mark.parametrize("kind", ["shared keys, own head", "wide heads"])
def test_what_is_zero_in_a_head_takes_no_part(kind):
    made = network(**KINDS[kind])
    tokens = torch.randint(90, (3, 11), generator=torch.Generator().manual_seed(1))
    answers, rows = collect_answers(made, tokens, kept=12), torch.arange(3)
    whole = {name: w.detach().clone() for name, w in made.named_parameters()}
    strengths = pair_strengths(made, tokens)
    for number, strength in enumerate(strengths):  # a layer with all, one with half, one with a pair of each head
        kept = (strength.shape[1] * 2, strength.shape[1] // 2 * 2, 2)[number]
        keep_directions(whole, f"model.layers.{number}.self_attn.", strength, kept)
    weights = {name: w.requires_grad_() for name, w in whole.items()}
    logits = functional_call(made, weights, (), {"input_ids": tokens}, tie_weights=True).logits
    expected = answers.divergence(rows, logits)
    gradient = torch.autograd.grad(expected.sum(), list(weights.values()))
    of_each, found = Llama(made, torch.float32).divergence(
        {name: w.detach() for name, w in weights.items()}, tokens, *answers.of(rows, CPU), share=1.0
    )
    assert torch.allclose(of_each, expected.detach(), rtol=1e-4, atol=1e-5)
    for (name, weight), mine, theirs in zip(weights.items(), found, gradient, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-3, atol=2e-5 * float(theirs.abs().max())), name
        if "_proj" in name and "mlp" not in name:  # what is left out stays so
            assert not mine[(weight == 0)].any() or "layers.0" in name


@pytest.mark.parametrize("block", ["self_attn.v_proj self_attn.o_proj", "mlp.up_proj mlp.down_proj"])
def test_a_block_of_zeros_is_passed_by(block, monkeypatch):
    made = network(**KINDS["shared keys, own head"])
    zero = {f"model.layers.1.{name}.weight" for name in block.split()}
    tokens = torch.randint(90, (3, 11), generator=torch.Generator().manual_seed(1))
    answers, rows = collect_answers(made, tokens, kept=12), torch.arange(3)
    weights = {name: (w * (name not in zero)).requires_grad_() for name, w in made.named_parameters()}
    logits = functional_call(made, weights, (), {"input_ids": tokens}, tie_weights=True).logits
    expected = answers.divergence(rows, logits)
    gradient = torch.autograd.grad(expected.sum(), list(weights.values()))
    normed = []
    norm = llama._Pass._norm
    monkeypatch.setattr(llama._Pass, "_norm", lambda run, name, x: normed.append(name) or norm(run, name, x))
    of_each, found = Llama(made, torch.float32).divergence(
        {name: w.detach() for name, w in weights.items()}, tokens, *answers.of(rows, CPU), share=1.0
    )
    assert torch.allclose(of_each, expected.detach(), rtol=1e-4, atol=1e-5)
    for name, mine, theirs in zip(weights, found, gradient, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-3, atol=2e-5 * float(theirs.abs().max())), name
    assert len(normed) == 2 * made.config.num_hidden_layers  # of 2 a layer and the last one, all but the block's


def test_tensors_that_are_not_given_are_the_networks():
    made = network(**KINDS["shared keys, own head"])
    tokens = torch.randint(90, (3, 7), generator=torch.Generator().manual_seed(1))
    answers, rows = collect_answers(made, tokens, kept=12), torch.arange(3)
    name = "model.layers.1.mlp.up_proj.weight"
    given = {name: 0.5 * dict(made.named_parameters())[name]}
    written = Llama(made, torch.float32)
    of_each, (gradient,) = written.divergence(given, tokens, *answers.of(rows, CPU), share=1.0)
    assert (of_each > 1e-3).all() and gradient.shape == given[name].shape and gradient.abs().max() > 0
    same, nothing = written.divergence({}, tokens, *answers.of(rows, CPU), share=1.0)
    assert float(same.abs().max()) < 2e-3 and nothing == ()  # answers are kept in float16


def test_logits_are_the_networks():
    made = network(**KINDS["shared keys, own head"])
    tokens = torch.randint(90, (3, 7), generator=torch.Generator().manual_seed(1))
    expected = made(input_ids=tokens).logits.flatten(0, 1)
    found = torch.cat(list(Llama(made, torch.float32).logits(tokens)))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_in_bfloat16_it_is_as_near_to_float32_as_transformers_own():
    made = network(**KINDS["plain, tied"])
    tokens = torch.randint(90, (8, 24), generator=torch.Generator().manual_seed(1))
    answers, rows = collect_answers(made, tokens, kept=12), torch.arange(8)
    given = {name: 0.8 * w for name, w in made.named_parameters()}
    exact, slopes = Llama(made, torch.float32).divergence(given, tokens, *answers.of(rows, CPU), share=1.0)
    of_each, found = Llama(made, torch.bfloat16).divergence(given, tokens, *answers.of(rows, CPU), share=1.0)
    leaves = {name: w.clone().requires_grad_() for name, w in given.items()}
    with torch.autocast("cpu", torch.bfloat16):
        logits = functional_call(made, leaves, (), {"input_ids": tokens}, tie_weights=True).logits
        theirs = answers.divergence(rows, logits)
    autograd = torch.autograd.grad(theirs.sum(), list(leaves.values()))

    def apart(gradients) -> float:
        return sum(float((g - s).norm() / s.norm()) for g, s in zip(gradients, slopes, strict=True)) / len(slopes)

    assert apart(found) < 2 * apart(autograd) < 0.5
    assert (of_each - exact).abs().mean() < 2 * (theirs - exact).abs().mean() + 1e-3


@pytest.mark.parametrize(
    ("made", "length", "reason"),
    [
        (lambda: network(MistralForCausalLM, MistralConfig, sliding_window=8, num_attention_heads=4), 8, None),
        (lambda: network(MistralForCausalLM, MistralConfig, sliding_window=8, num_attention_heads=4), 9, "window"),
        (lambda: network(num_attention_heads=4), llama.LONGEST + 1, "long"),
        (lambda: network(num_attention_heads=4, hidden_act="gelu"), 8, "activation"),
        (lambda: network(num_attention_heads=4, attention_bias=True), 8, "other tensors"),
        (lambda: GPT2LMHeadModel(GPT2Config(vocab_size=90, n_embd=24, n_layer=1, n_head=2)), 8, "GPT2"),
    ],
)
def test_what_is_not_llama_is_left_to_transformers(made, length, reason):
    found = why_not_written_out(made(), length, CPU)
    assert found is None if reason is None else reason in found
    assert why_not_written_out(made(), length, torch.device("cuda")) is not None


def test_a_network_of_another_layout_is_trained_through_transformers(tiny_tokenizer):
    from phase8.artifact.write import contents
    from phase8.model.source import ExpertFile, source_from_network
    from phase8.train.shape import Shape
    from phase8.train.whole import TrainedStage
    from phase8.train.within_budget import Plan

    torch.manual_seed(3)
    made = GPT2LMHeadModel(GPT2Config(vocab_size=258, n_embd=16, n_layer=1, n_head=2, n_positions=32)).eval()
    with torch.no_grad():
        for matrix in made.parameters():
            matrix.mul_(12.0 if matrix.dim() == 2 else 1.0)
    source = source_from_network(made, tiny_tokenizer, ExpertFile(), "tiny")
    tokens = torch.randint(2, 258, (24, 12), generator=torch.Generator().manual_seed(5))

    def size(groups) -> int:
        return sum(map(len, contents(groups, source, stage="hyper").values()))

    stage = TrainedStage(source, tokens, shape=Shape(), start_step=0.5, size=size)
    answers, rows = collect_answers(made, tokens, kept=258), torch.arange(24)
    batch = SlicedBatch(made, answers, device=CPU, bfloat16=False, slices=1, apply=map)
    assert (
        float(batch.ask(source.matrices(), tokens, rows)[0].max()) < 1e-3
    )  # its own matrices, which lie on their side
    budget = stage.smallest_bytes() + 2000
    trained = stage.run(budget, Plan(steps=24, batch_sequences=4, lr=0.02))
    assert size(trained.groups) <= budget and trained.outcome.setbacks == 0
    losses = trained.outcome.losses
    assert len(losses) == 24 and all(map(math.isfinite, losses)) and min(losses[-6:]) < max(losses[:12])
