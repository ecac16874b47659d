"""How many tokens a model can read at a time, for whoever has to cut text to fit."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "max_sequence_length")
"""What configurations call it; a few have two of these, and the smaller one holds."""
MOST = 1 << 40
"""Beyond this a figure stands for no limit."""


def window(network: Any) -> int | None:
    """Tokens of the longest text that the network can read, or None where its architecture sets no limit.

    A table of learned positions is the limit whatever the configuration says. Some (RoBERTa's kind) begin at the row
    after the padding token's, so they hold that many fewer; ProphetNet reads a row ahead of every token. Reformer fills
    a text up to whole chunks, and the chunks have to fit.
    """
    config = network.config.get_text_config(decoder=True)
    found = [value for name in NAMES if isinstance(value := getattr(config, name, None), int) and 0 < value < MOST]
    limit = min(found, default=None)
    if limit is None:
        return None
    words = network.get_input_embeddings()
    ahead = int(getattr(config, "model_type", None) == "prophetnet")
    for name, module in network.named_modules():
        leaf = name.rpartition(".")[2]
        if isinstance(module, nn.Embedding) and module is not words and "position" in leaf:
            offset = getattr(module, "offset", 0)  # BART's kind has rows to spare for it
            spare = 0 if offset or module.padding_idx is None else module.padding_idx + 1 + ahead
            limit = min(limit, module.num_embeddings - max(spare, offset if isinstance(offset, int) else 0))
    if getattr(config, "model_type", None) == "reformer":
        chunk = math.lcm(*(getattr(config, f"{kind}_attn_chunk_length") for kind in set(config.attn_layers)))
        limit = max(limit - limit % chunk, min(limit, chunk))
    return limit
