"""Importance against the layers' inputs computed step by step."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from phase8.errors import ModelError
from phase8.model import importance as calibration
from phase8.model.importance import UNSEEN_WEIGHT, collect_importance

VOCABULARY = 50


def _llama(tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=VOCABULARY,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 40, shape, generator=generator) for shape in ((3, 7), (1, 11))]


def _second_moment(inputs: list[torch.Tensor]) -> torch.Tensor:
    x_NI = torch.cat([x.reshape(-1, x.shape[-1]) for x in inputs]).double()
    return (x_NI.T @ x_NI / len(x_NI)).float()


def _token_shares(batches: list[torch.Tensor]) -> torch.Tensor:
    tokens = torch.cat([batch.reshape(-1) for batch in batches]).tolist()
    return torch.tensor([tokens.count(t) * VOCABULARY / len(tokens) + UNSEEN_WEIGHT for t in range(VOCABULARY)])


def test_hessian_is_the_mean_outer_product_of_the_inputs(batches: list[torch.Tensor]) -> None:
    model = _llama()
    names = [f"model.layers.0.self_attn.{kind}_proj.weight" for kind in "qkv"] + ["model.layers.0.mlp.down_proj.weight"]
    importance = collect_importance(model, batches, names)
    layer = model.model.layers[0]
    to_mlp: list[torch.Tensor] = []
    layer.mlp.register_forward_pre_hook(lambda module, args: to_mlp.append(args[0]))
    with torch.no_grad():
        inputs = [layer.input_layernorm(model.model.embed_tokens(batch)) for batch in batches]
        for batch in batches:
            model(batch)
        down = [layer.mlp.act_fn(layer.mlp.gate_proj(x)) * layer.mlp.up_proj(x) for x in to_mlp]
    for name in names[:3]:
        torch.testing.assert_close(importance[name].hessian_II, _second_moment(inputs), rtol=1e-5, atol=1e-6)
        assert importance[name].row_O is None
    torch.testing.assert_close(importance[names[3]].hessian_II, _second_moment(down), rtol=1e-5, atol=1e-9)
    assert importance[names[3]].hessian_II.dtype == torch.float32


def test_tied_embedding_gets_the_hidden_states_and_the_token_frequencies(batches: list[torch.Tensor]) -> None:
    model = _llama()
    found = collect_importance(model, batches, ["model.embed_tokens.weight"])["model.embed_tokens.weight"]
    with torch.no_grad():
        hidden = [model.model(batch).last_hidden_state for batch in batches]
    torch.testing.assert_close(found.hessian_II, _second_moment(hidden), rtol=1e-5, atol=1e-6)

    weight = _token_shares(batches).sqrt()
    torch.testing.assert_close(found.row_O, weight / weight.mean())
    assert found.row_O.mean() == pytest.approx(1.0)


def test_both_names_of_a_tied_matrix_mean_the_same(batches: list[torch.Tensor]) -> None:
    names = ["lm_head.weight", "model.embed_tokens.weight"]
    found = collect_importance(_llama(), batches, names)
    assert torch.equal(found[names[0]].hessian_II, found[names[1]].hessian_II)
    assert torch.equal(found[names[0]].row_O, found[names[1]].row_O)


def test_untied_head_and_embedding_are_apart(batches: list[torch.Tensor]) -> None:
    found = collect_importance(_llama(tied=False), batches, ["lm_head.weight", "model.embed_tokens.weight"])
    assert found["model.embed_tokens.weight"].hessian_II is None
    shares, row = _token_shares(batches), found["model.embed_tokens.weight"].row_O
    torch.testing.assert_close(row, shares / shares.mean())
    assert 0 < row[45] < 0.2, "a token that never occurs keeps a small weight"
    assert found["lm_head.weight"].hessian_II is not None
    assert found["lm_head.weight"].row_O is None


def test_gpt2_layers_store_their_weight_transposed(batches: list[torch.Tensor]) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=VOCABULARY, n_positions=16)).eval()
    name = "transformer.h.0.attn.c_attn.weight"
    assert tuple(model.get_parameter(name).shape) == (16, 48)
    found = collect_importance(model, batches, [name, "transformer.wpe.weight"])
    body = model.transformer
    with torch.no_grad():
        inputs = [body.h[0].ln_1(body.wte(b) + body.wpe(torch.arange(b.shape[1]))) for b in batches]
    torch.testing.assert_close(found[name].hessian_II, _second_moment(inputs), rtol=1e-5, atol=1e-6)
    assert found["transformer.wpe.weight"].row_O[0] > found["transformer.wpe.weight"].row_O[12]


def test_model_is_left_as_it_was(batches: list[torch.Tensor]) -> None:
    model = _llama().train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    collect_importance(model, batches, list(before))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in model.named_parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_hooks_are_removed_when_the_model_fails(batches: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    model = _llama().train()

    def fail(*args: object, **kwargs: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(model.model.layers[1].mlp, "forward", fail)
    with pytest.raises(MemoryError):
        collect_importance(model, batches, ["lm_head.weight", "model.layers.0.mlp.up_proj.weight"])
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_large_vocabulary_runs_fewer_sequences_at_a_time(
    batches: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, name, sizes = _llama(), "model.layers.0.self_attn.q_proj.weight", []
    whole = collect_importance(model, batches, [name])[name]
    monkeypatch.setattr(calibration, "LOGITS_AT_ONCE", 2 * 7 * VOCABULARY)
    model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    parts = collect_importance(model, batches, [name])[name]
    assert sizes == [(2, 7), (1, 7), (1, 11)]
    torch.testing.assert_close(parts.hessian_II, whole.hessian_II, rtol=1e-5, atol=1e-7)


def test_same_text_same_importance(batches: list[torch.Tensor]) -> None:
    names = ["model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"]
    first, second = (collect_importance(_llama(), batches, names) for _ in range(2))
    assert all(torch.equal(first[name].hessian_II, second[name].hessian_II) for name in names)


def test_names_that_are_no_matrix_are_absent(batches: list[torch.Tensor]) -> None:
    assert collect_importance(_llama(), batches, ["model.norm.weight"]) == {}


def test_errors_say_what_is_wrong(batches: list[torch.Tensor]) -> None:
    with pytest.raises(ModelError, match="no parameter called nonsense.weight"):
        collect_importance(_llama(), batches, ["nonsense.weight"])
    with pytest.raises(ModelError, match="token 55, the model knows 50"):
        collect_importance(_llama(), [torch.tensor([[VOCABULARY + 5]])], ["lm_head.weight"])
    with pytest.raises(ModelError, match="no calibration text"):
        collect_importance(_llama(), [], ["lm_head.weight"])
    model = _llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="NaN or infinite"):
        collect_importance(model, batches, ["model.layers.0.mlp.down_proj.weight"])


MASK_IN_PLACE_OF_IDS = {
    # kind: (settings, tokens' embedding, positions' embedding, row of position 0)
    "opt": (
        {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 24},
        "model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight", 2,
    ),
    "biogpt": ({"hidden_size": 16, "intermediate_size": 24}, "biogpt.embed_tokens.weight",
               "biogpt.embed_positions.weight", 2),
    "bart": ({"d_model": 16, "decoder_ffn_dim": 24, "decoder_layers": 2, "decoder_attention_heads": 2},
             "model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight", 2),
    "gpt2": ({"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}, "transformer.wte.weight",
             "transformer.wpe.weight", 0),
}  # fmt: skip


@pytest.mark.parametrize("kind", MASK_IN_PLACE_OF_IDS)
def test_rows_are_counted_where_they_are_looked_up(batches: list[torch.Tensor], kind: str) -> None:
    """OPT and BioGPT give their positions' embedding an attention mask first, BART the token ids."""
    settings, tokens, positions, first = MASK_IN_PLACE_OF_IDS[kind]
    common = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32}
    config = AutoConfig.for_model(
        kind, vocab_size=VOCABULARY, pad_token_id=1, bos_token_id=0, eos_token_id=2, is_decoder=True,
        **(common if kind != "gpt2" else {}), **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    importance = collect_importance(model, batches, [tokens])
    shares = _token_shares(batches).sqrt()  # tied: see the module's text
    torch.testing.assert_close(importance[tokens].row_O, shares / shares.mean())
    rows = collect_importance(model, batches[1:], [positions])[positions].row_O
    expected = torch.full((len(rows),), UNSEEN_WEIGHT)
    expected[first : first + 11] += len(rows) / 11
    torch.testing.assert_close(rows, expected / expected.mean())


def test_a_layer_that_gets_its_input_by_name(batches: list[torch.Tensor]) -> None:
    model = _llama()
    name, mlp = "model.layers.0.mlp.up_proj.weight", model.model.layers[0].mlp
    expected = collect_importance(model, batches, [name])[name].hessian_II
    mlp.forward = lambda x: mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(input=x))
    torch.testing.assert_close(collect_importance(model, batches, [name])[name].hessian_II, expected)
