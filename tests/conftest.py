"""Fixtures shared by all tests: a tiny Llama with a byte-level tokenizer, made afresh, no network."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")

from pathlib import Path

import hypothesis
import pytest
import torch

# No test depends on how busy the machine is.
hypothesis.settings.register_profile("phase8", deadline=None)
hypothesis.settings.load_profile("phase8")


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """256 bytes and two special tokens; adds the beginning-of-text token itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index + 2 for index, symbol in enumerate(alphabet)}
    vocabulary |= {"<|endoftext|>": 0, "<pad>": 1}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture
def tiny_network():
    """A random Llama: 258 tokens, width 16, 2 layers, tied head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def tiny_model_dir(tmp_path: Path, tiny_network, tiny_tokenizer) -> Path:
    """The tiny Llama saved as a Hugging Face directory."""
    directory = tmp_path / "tiny"
    tiny_network.save_pretrained(directory)
    tiny_tokenizer.save_pretrained(directory)
    return directory
