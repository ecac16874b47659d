"""Scores and texts against a model asked one text at a time, without padding, packing or cache: the definition."""

import math

import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import AutoConfig, AutoModelForCausalLM

from phase8.benchmarks.lm import Phase8LM
from phase8.benchmarks.perplexity import bits_per_byte
from phase8.model.latency import measure_latency_ms
from phase8.model.window import window
from tests.tiny_model import TEXT, tiny_tokenizer

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
ROPE = {"rope_theta": 10000.0, "original_max_position_embeddings": 16, "factor": 4.0}
MODELS = {
    "llama": ("llama", SIZES),
    "mistral_window_16": ("mistral", SIZES | {"sliding_window": 16}),
    "gemma2_window_16": ("gemma2", SIZES | {"sliding_window": 16, "query_pre_attn_scalar": 8}),
    "gemma3_window_16": ("gemma3_text", SIZES | {"sliding_window": 16, "query_pre_attn_scalar": 8}),
    "gpt_oss_window_16": ("gpt_oss", SIZES | {"sliding_window": 16, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "dynamic_rope": ("llama", SIZES | {"rope_parameters": ROPE | {"rope_type": "dynamic"}}),
    "long_rope": (
        "phi3",
        SIZES
        | {
            "original_max_position_embeddings": 16,
            "rope_parameters": ROPE
            | {"rope_type": "longrope", "long_factor": [4.0] * 4, "short_factor": [1.0] * 4, "factor": 6.0},
        },
    ),
    "alibi": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "learned_positions": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96}),
    "mask_as_positions": (
        "opt", {"hidden_size": 32, "word_embed_proj_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    ),
    "state_space": ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 4}),
    "hybrid": (
        "jamba",
        SIZES | {"mamba_d_state": 8, "mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
                 "num_experts": 2, "expert_layer_period": 2, "expert_layer_offset": 1, "use_mamba_kernels": False},
    ),
    "not_causal": ("bert", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}),
}  # fmt: skip
LONG = " ".join(TEXT.split()) + " "
QUESTIONS = [
    ("The miller", [" keeps", " eats", " sees"]),
    ("What turns the wheel?", [" the river", " the sea and the geese of Brindle", " a"]),
    (LONG[:60], [" the river", " nobody", " two plus three is five."]),
    (LONG[:130], [" the end", " geese", " a goose eats grain and the river turns the wheel"]),
]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def build(name, tokenizer):
    kind, settings = MODELS[name]
    sizes = {"intermediate_size": 48, "max_position_embeddings": 96} if kind not in ("gpt2", "bloom") else {}
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, pad_token_id=2, initializer_range=0.3,
        **sizes, **settings,
    )  # fmt: skip
    torch.manual_seed(5)
    return AutoModelForCausalLM.from_config(config).eval()


def asked(kind, arguments):
    return [Instance(kind, {}, argument, number) for number, argument in enumerate(arguments)]


@torch.no_grad()
def alone(model, tokenizer, context, continuation):
    model.load_state_dict(model.state_dict())
    ids = tokenizer(context)["input_ids"]
    whole = tokenizer(context + continuation)["input_ids"]
    model(input_ids=torch.tensor([[0]]))  # what an earlier text left behind in a rotary embedding is gone
    logp = torch.log_softmax(model(input_ids=torch.tensor([whole[:-1]])).logits[0], dim=-1)
    return sum(float(logp[place - 1, whole[place]]) for place in range(len(ids), len(whole)))


@torch.no_grad()
def written(model, tokenizer, prompt, count):
    ids = tokenizer(prompt)["input_ids"]
    end = len(ids) + count
    while len(ids) < end:
        model(input_ids=torch.tensor([[0]]))
        token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token == 1:
            break
        ids.append(token)
    return tokenizer.decode(ids[end - count :], skip_special_tokens=True)


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_each_text_alone(name, tokenizer):
    model = build(name, tokenizer)
    pairs = [(context, choice) for context, choices in QUESTIONS for choice in choices]
    truth = [alone(model, tokenizer, *pair) for pair in pairs]
    lm = Phase8LM(model, tokenizer, max_length=90)
    short, long = pairs[:6], pairs[6:]
    # Short questions first: what holds for them says nothing about the long ones.
    found = lm.loglikelihood(asked("loglikelihood", short)) + lm.loglikelihood(asked("loglikelihood", long))
    assert [score for score, _ in found] == pytest.approx(truth, abs=2e-3)
    mixed = lm.loglikelihood(asked("loglikelihood", pairs[::-1]))
    assert [score for score, _ in mixed[::-1]] == pytest.approx(truth, abs=2e-3)


@pytest.mark.parametrize("name", MODELS)
def test_texts_are_those_written_without_cache_or_padding(name, tokenizer):
    model = build(name, tokenizer)
    prompts = [context for context, _ in QUESTIONS]
    truth = [written(model, tokenizer, prompt, 12) for prompt in prompts]
    settings = {"until": [], "max_gen_toks": 12, "do_sample": False}
    lm = Phase8LM(model, tokenizer, max_length=90)
    assert lm.generate_until(asked("generate_until", [(prompt, settings) for prompt in prompts])) == truth
    assert len(set(truth)) > 1


def test_plain_attention_stays_packed_and_padded(tokenizer):
    lm = Phase8LM(build("llama", tokenizer), tokenizer)
    lm.loglikelihood(asked("loglikelihood", [("The miller", " keeps"), ("The miller", " eats"), (LONG[:90], " a")]))
    lm.generate_until(asked("generate_until", [("The miller", {"until": [], "max_gen_toks": 4})]))
    assert (lm.scorer.way, lm.generator.way) == ("packed", "padded")


def test_generation_settings_that_change_the_distribution_hold_as_in_lm_eval(tokenizer):
    from lm_eval.models.huggingface import HFLM

    model = build("llama", tokenizer)
    model.generation_config.repetition_penalty = 1.6
    model.generation_config.eos_token_id = [1, 40]
    prompts = [context for context, _ in QUESTIONS]
    requests = [(prompt, {"until": [], "max_gen_toks": 12, "do_sample": False}) for prompt in prompts]
    reference = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=1, max_length=96, device="cpu")
    theirs = reference.generate_until(asked("generate_until", requests), disable_tqdm=True)
    assert Phase8LM(model, tokenizer).generate_until(asked("generate_until", requests)) == theirs
    model.generation_config.repetition_penalty = None
    assert Phase8LM(model, tokenizer).generate_until(asked("generate_until", requests)) != theirs


POSITIONS = {
    "gpt2": (MODELS["learned_positions"][1], 96),
    "opt": (MODELS["mask_as_positions"][1] | {"max_position_embeddings": 96}, 96),
    "roberta": (
        {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 96}, 93,
    ),
    "bart": ({"d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 4, "max_position_embeddings": 96}, 96),
    "biogpt": (
        {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 96}, 96,
    ),
    "prophetnet": (
        {"hidden_size": 32, "num_decoder_layers": 1, "num_decoder_attention_heads": 4, "max_position_embeddings": 96},
        92,
    ),
    "reformer": (  # chunks of 16 and of 24 tokens: only whole multiples of 48 of them
        {"hidden_size": 32, "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [10, 10], "num_attention_heads": 2,
         "attn_layers": ["local", "lsh"], "local_attn_chunk_length": 16, "lsh_attn_chunk_length": 24,
         "max_position_embeddings": 100}, 96,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", POSITIONS)
def test_the_window_is_what_learned_positions_hold(kind):
    settings, expected = POSITIONS[kind]
    config = AutoConfig.for_model(
        kind, vocab_size=380, bos_token_id=0, eos_token_id=1, pad_token_id=2, is_decoder=True, **settings
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    assert window(model) == expected
    ids = torch.arange(3, 4 + expected)[None]
    with torch.no_grad():
        model(input_ids=ids[:, :-1])
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            model(input_ids=ids)


def test_no_limit_by_another_name(tokenizer):
    config = AutoConfig.for_model("xlnet", vocab_size=380, d_model=32, n_layer=1, n_head=4, d_inner=48)
    assert Phase8LM(AutoModelForCausalLM.from_config(config), tokenizer).max_length == 2048


@pytest.mark.parametrize("name", ["llama", "state_space", "alibi", "learned_positions", "hybrid"])
def test_the_time_per_token_is_measured_with_any_cache(name, tokenizer):
    assert measure_latency_ms(build(name, tokenizer)) > 0.0


def test_the_time_per_token_within_a_small_window():
    settings = MODELS["learned_positions"][1] | {"n_positions": 6}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", vocab_size=380, **settings)).eval()
    assert measure_latency_ms(model) > 0.0


@pytest.mark.parametrize("name", ["mistral_window_16", "long_rope", "state_space", "not_causal"])
def test_bits_per_byte_are_those_of_each_document_alone(name, tokenizer):
    model = build(name, tokenizer)
    documents = ["The miller", LONG[:20], LONG[:60], LONG[:130]]
    found = bits_per_byte(model, tokenizer, documents)
    bits = size = 0.0
    for document in documents:
        bits -= alone(model, tokenizer, "", document) / math.log(2)
        size += len(document.encode())
    assert found == pytest.approx(bits / size, rel=1e-4)
