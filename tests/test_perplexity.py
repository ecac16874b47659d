"""Bits per byte against lm-eval's own rolling log-likelihood, and text that cannot be used."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from phase8.benchmarks.perplexity import DOCUMENTS, bits_per_byte, held_out_documents
from phase8.errors import BenchmarkError, ConfigError
from tests.tiny_model import tiny_tokenizer

TEXTS = ["The baker sings.", "Bees, ants and wasps live in the wood. " * 3, "é" * 40, "x"]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=24, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_against_lm_eval_s_rolling_log_likelihood(model, tokenizer):
    """Its windows, its padding and its sums, on documents shorter and longer than the window of 24 tokens."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    assert max(len(tokenizer(text)["input_ids"]) for text in TEXTS) > 2 * 24
    lm = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=1, device="cpu", max_length=24,
              add_bos_token=False)  # fmt: skip
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in TEXTS]
    nats = -sum(lm.loglikelihood_rolling(requests, disable_tqdm=True))
    expected = nats / math.log(2) / sum(len(text.encode()) for text in TEXTS)
    assert bits_per_byte(model, tokenizer, TEXTS) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_batches_make_no_difference(model, tokenizer, batch_tokens):
    whole = bits_per_byte(model, tokenizer, TEXTS)
    assert bits_per_byte(model, tokenizer, TEXTS, batch_tokens=batch_tokens) == pytest.approx(whole, rel=1e-6)


def test_a_model_that_knows_nothing_takes_the_vocabulary_s_bits(model, tokenizer):
    import copy

    blind = copy.deepcopy(model)
    torch.nn.init.zeros_(blind.lm_head.weight)
    tokens = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS)
    expected = tokens * math.log2(len(tokenizer)) / sum(len(text.encode()) for text in TEXTS)
    assert bits_per_byte(blind, tokenizer, TEXTS) == pytest.approx(expected)


def test_nothing_to_measure(model, tokenizer):
    with pytest.raises(BenchmarkError, match="no text"):
        bits_per_byte(model, tokenizer, [""])


def test_the_world_s_documents_are_always_the_same():
    assert len(held_out_documents(None)) == DOCUMENTS
    assert held_out_documents(None) == held_out_documents(None)


def test_a_user_s_file(tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_text("one\n\n\n\ntwo\nlines\n\nthree", encoding="utf-8")
    assert [document.strip() for document in held_out_documents(str(path))] == ["one", "two\nlines", "three"]
    monkeypatch.setattr("phase8.benchmarks.perplexity.MAX_BYTES", 5)
    assert [document.strip() for document in held_out_documents(str(path))] == ["one"]


@pytest.mark.parametrize(("content", "what"), [(b"", "no text"), (b" \n\n\n", "no text"), (b"\xff\xfe", "not UTF-8")])
def test_a_file_of_no_use(tmp_path, content, what):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=what) as found:
        held_out_documents(str(path))
    assert str(path) in str(found.value) and "perplexity_text" in str(found.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="absent"):
        held_out_documents(str(tmp_path / "absent.txt"))
