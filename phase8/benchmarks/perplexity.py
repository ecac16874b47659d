"""Perplexity in bits per byte of held-out text: the most sensitive gauge of what compression did to a model.

Bits per byte is the model's cross-entropy over a text, in bits, divided by the text's UTF-8 bytes (Gao et al. 2020,
"The Pile", section 3.1): unlike perplexity per token, models with different tokenizers can be compared. Each document
is read on its own after the beginning-of-text token. One longer than the window is cut as lm-eval does for its rolling
log-likelihood: each window predicts the tokens after the last one's, the last window is filled up with context to its
left, and every token is predicted once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from phase8.benchmarks.scoring import WRONG_WAY, alike, forget_lengths
from phase8.errors import BenchmarkError
from phase8.model.forward import logits_of
from phase8.model.text import read_documents
from phase8.model.window import window
from phase8.world import corpus

DOCUMENTS = 200
"""Of the embedded world's text."""
HELD_OUT_SEED = 0
MAX_WINDOW = 1024
Piece = tuple[list[int], int]
"""Token ids, and how many of the last are predicted."""
MAX_BYTES = 1 << 20
"""Of a user's text; more would cost more time than the benchmarks, and tell little more."""


def held_out_documents(path: str | None) -> list[str]:
    """The documents to measure on: a file's, up to `MAX_BYTES`, or the embedded world's.

    Raises:
        ConfigError: the file cannot be read, is not UTF-8, or is empty.
    """
    if path is None:
        return corpus.held_out_documents(DOCUMENTS, HELD_OUT_SEED)
    fix = "set benchmarks.perplexity_text to a UTF-8 text file, documents parted by blank lines"
    chosen: list[str] = []
    size = 0
    for document in read_documents(path, fix):
        size += len(document.encode())
        if chosen and size > MAX_BYTES:
            break
        chosen.append(document)
    return chosen


def bits_per_byte(model: Any, tokenizer: Any, documents: Sequence[str], *, batch_tokens: int = 8192) -> float:
    """Cross-entropy of the documents in bits, over their length in bytes; arguments and errors as `document_bits`."""
    bits = document_bits(model, tokenizer, documents, batch_tokens=batch_tokens)
    return sum(bits) / sum(len(document.encode()) for document in documents)


@torch.no_grad()
def document_bits(model: Any, tokenizer: Any, documents: Sequence[str], *, batch_tokens: int = 8192) -> list[float]:
    """Cross-entropy of each document, in bits.

    Args:
        model: a transformers causal LM, used in its own dtype and on its own device; the log-probabilities are FP32.
        tokenizer: its tokenizer.
        batch_tokens: tokens per forward pass, padding included.

    Raises:
        BenchmarkError: there is no text, or the tokenizer has neither a beginning- nor an end-of-text token.
    """
    size = sum(len(document.encode()) for document in documents)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if not size or start is None:
        what = "there is no text to measure on" if not size else "the tokenizer has no token that begins a text"
        raise BenchmarkError(what, where="perplexity", fix="give text, or a tokenizer with bos_token or eos_token")
    longest = min(MAX_WINDOW, window(model) or MAX_WINDOW)
    pieces: list[tuple[list[int], int, int]] = []
    for number, document in enumerate(documents):
        ids = [start, *tokenizer(document, add_special_tokens=False)["input_ids"]]
        for at in range(0, len(ids) - 1, longest):
            end = min(at + longest + 1, len(ids))
            pieces.append((ids[max(0, end - longest - 1) : end], end - at - 1, number))
    pieces.sort(key=lambda piece: len(piece[0]), reverse=True)  # alike in length, so little of a batch is padding
    bits = [0.0] * len(documents)
    for (_, _, number), found in zip(
        pieces, _in_batches(model, [(ids, scored) for ids, scored, _ in pieces], batch_tokens), strict=True
    ):
        bits[number] += found
    return bits


def _in_batches(model: Any, pieces: Sequence[Piece], batch_tokens: int) -> list[float]:
    """Bits of each piece; where company changes them (see `scoring.py`), each piece alone."""
    found: list[float] = []
    while len(found) < len(pieces):
        batch = pieces[len(found) : len(found) + max(1, batch_tokens // len(pieces[len(found)][0]))]
        try:
            bits = _bits(model, batch)
        except WRONG_WAY:
            return _each_alone(model, pieces)
        suspects = (
            {0, len(batch) - 1} if len(batch) > 1 and (not found or len(found) + len(batch) == len(pieces)) else ()
        )
        if not all(alike(bits[place], _each_alone(model, [batch[place]])[0], model.dtype) for place in suspects):
            return _each_alone(model, pieces)
        found += bits
    return found


def _each_alone(model: Any, pieces: Sequence[Piece]) -> list[float]:
    forget_lengths(model)
    return [_bits(model, [piece])[0] for piece in pieces[::-1]][::-1]  # the shortest first: lengths are remembered


def _bits(model: Any, pieces: Sequence[Piece]) -> list[float]:
    """Of each piece; so many of its last tokens are predicted from those before them."""
    longest = max(len(ids) for ids, _ in pieces)
    ids_NT = torch.zeros(len(pieces), longest, dtype=torch.int64)
    scored_NT = torch.zeros(len(pieces), longest, dtype=torch.bool)
    for row, (ids, scored) in enumerate(pieces):
        ids_NT[row, : len(ids)] = torch.tensor(ids)
        scored_NT[row, len(ids) - scored : len(ids)] = True
    ids_NT, scored_NT = ids_NT.to(model.device), scored_NT.to(model.device)
    # Padding stands to the right, where a causal model does not look; no mask is needed.
    logits_NTV: Tensor = logits_of(model, ids_NT[:, :-1])
    nats_M = torch.nn.functional.cross_entropy(
        logits_NTV[scored_NT[:, 1:]].float(), ids_NT[:, 1:][scored_NT[:, 1:]], reduction="none"
    )
    per_piece = nats_M.double().split([scored for _, scored in pieces])
    return [float(nats.sum()) / math.log(2) for nats in per_piece]
