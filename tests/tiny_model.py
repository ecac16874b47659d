"""A tiny tokenizer and a tiny model with random weights, for tests of everything around a model."""

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
