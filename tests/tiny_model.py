"""Tiny tokenizers and tiny models with random weights, for tests of everything around a model: a BPE tokenizer with a
model whose outputs differ clearly, and single bytes with the smallest model that has every part."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXT = """The old miller of Brindle keeps seven grey geese. A goose eats grain, and the river turns the wheel.
def add(a, b):
    return a + b
Question: what turns the wheel? Answer: the river. Nobody in Brindle has seen the sea. Two plus three is five.
"""


def tiny_tokenizer():
    """A byte-level BPE tokenizer that puts a BOS token in front, as the reference model's does."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|end|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=380, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    raw.train_from_iterator([TEXT] * 5, trainer)
    raw.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=special[0], eos_token=special[1], pad_token=special[2]
    )


def tiny_model(tokenizer, **settings):
    """A Llama of some thousand random weights, large enough that its outputs differ clearly."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=96, bos_token_id=0, eos_token_id=1, pad_token_id=2,
        initializer_range=0.4, **settings,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def byte_tokenizer():
    """256 bytes and two special tokens; adds the beginning-of-text token itself."""
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


def smallest_model():
    """A random Llama: 258 tokens, width 16, 2 layers, tied head."""
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
