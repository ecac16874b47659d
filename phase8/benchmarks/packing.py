"""Requests to rows, rows to batches: everything about scoring that does not depend on a model's weights.

A request is a context and a continuation to score. Requests with one context share a row: the context once, then each
continuation, which sees the context and itself but not its neighbours.

    tokens     The sky is | blue deep | green        scored: `blue` from the output at `is`, `deep` from the
    positions   0   1   2    3    4     3                     output at `blue`, `green` from the output at `is`

Shapes: B rows, L tokens of a row, C scored tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from phase8.errors import BenchmarkError

Encoded = tuple[list[int], list[int]]
"""Token ids of a context and of a continuation."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that are run together, and which of their outputs score what.

    `tokens_BL`, `positions_BL`; `segments_BL`: 0 context, 1, 2, ... the continuations, -1 padding. For each scored
    token: `outputs_C` (flat index of the output that predicts it), `targets_C` (its id), `requests_C` (which request).
    """

    tokens_BL: torch.Tensor
    positions_BL: torch.Tensor
    segments_BL: torch.Tensor
    outputs_C: torch.Tensor
    targets_C: torch.Tensor
    requests_C: torch.Tensor


@dataclass(slots=True)
class Plan:
    """A set of requests, ready to be scored by any model with this vocabulary and window."""

    encoded: list[Encoded]
    batches: list[Batch]
    canonical: np.ndarray
    """For each request, the number of the first equal one: equal requests are scored once."""
    prompts: int
    cut: int
    """How many different contexts there are, and how many of them did not fit."""
    window: int
    way: int = 0
    """The cheapest way that was found right for these requests the last time: see `scoring.py`."""

    def fed(self, number: int) -> list[int]:
        """What a model reads to score one request: all but its last token, cut at the left to fit the window."""
        context, continuation = self.encoded[number]
        return (context + continuation)[-(self.window + 1) :][:-1]

    @property
    def numbers(self) -> list[int]:
        """The requests to score, the longest first."""
        return sorted(set(self.canonical.tolist()), key=lambda number: -sum(map(len, self.encoded[number])))


def make_plan(encoded: Sequence[Encoded], window: int, batch_tokens: int, device: torch.device) -> Plan:
    """Groups requests by context into rows, rows by length into batches.

    Args:
        window: tokens that the model can read at a time.
        batch_tokens: tokens of a batch, padding included.

    Raises:
        BenchmarkError: a continuation is empty, or longer than the window.
    """
    rows: dict[tuple[int, ...], dict[tuple[int, ...], int]] = {}
    canonical = np.zeros(len(encoded), np.int64)
    cut: set[tuple[int, ...]] = set()
    for number, (context, continuation) in enumerate(encoded):
        if not context or not continuation or len(continuation) > window:
            raise BenchmarkError(
                f"request {number} has {len(context)} context and {len(continuation)} continuation tokens",
                where="benchmark item",
                fix=f"both need at least one token, the continuation at most {window}",
            )
        # As in HFLM: what does not fit is cut off at the left, the last token is predicted but not fed.
        room = window + 1 - len(continuation)
        if len(context) > room:
            cut.add(tuple(context))
        row = rows.setdefault(tuple(context[-room:]), {})
        canonical[number] = row.setdefault(tuple(continuation), number)
    ordered = sorted(rows.items(), key=lambda row: -_row_length(row))
    batches = [_collate(batch, device) for batch in _split(ordered, batch_tokens)]
    contexts = len({tuple(context) for context, _ in encoded})
    return Plan(list(encoded), batches, canonical, contexts, len(cut), window)


_Row = tuple[tuple[int, ...], dict[tuple[int, ...], int]]
"""A context, and its continuations with the number of the request that each answers."""


def _row_length(row: _Row) -> int:
    """Tokens that the model is fed: the context, and every continuation without its last token."""
    context, continuations = row
    return len(context) + sum(len(continuation) - 1 for continuation in continuations)


def _split(rows: list[_Row], batch_tokens: int) -> Iterator[list[_Row]]:
    """Rows, longest first, in batches of about `batch_tokens` tokens, padding included."""
    start = 0
    while start < len(rows):
        width = max(1, batch_tokens // _row_length(rows[start]))
        yield rows[start : start + width]
        start += width


def _collate(rows: list[_Row], device: torch.device) -> Batch:
    length = max(map(_row_length, rows))
    tokens = np.zeros((len(rows), length), np.int64)
    positions = np.zeros((len(rows), length), np.int64)
    segments = np.full((len(rows), length), -1, np.int32)
    outputs: list[int] = []
    targets: list[int] = []
    requests: list[int] = []
    for row, (context, continuations) in enumerate(rows):
        size = len(context)
        tokens[row, :size] = context
        positions[row, :size] = np.arange(size)
        segments[row, :size] = 0
        end = size
        for segment, (continuation, number) in enumerate(continuations.items(), start=1):
            fed = len(continuation) - 1
            tokens[row, end : end + fed] = continuation[:-1]
            positions[row, end : end + fed] = np.arange(size, size + fed)
            segments[row, end : end + fed] = segment
            first = row * length
            outputs += [first + size - 1, *range(first + end, first + end + fed)]
            targets += continuation
            requests += [number] * len(continuation)
            end += fed
    arrays = (tokens, positions, segments, np.array(outputs), np.array(targets), np.array(requests))
    return Batch(*(torch.from_numpy(array).to(device) for array in arrays))


def packed_mask(segments_BL: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Additive attention mask (B, 1, L, L): tokens see the context and their own segment so far.

    Added, not Boolean: every attention implementation takes that form. Padding sees itself, so that no row is empty.
    """
    length = segments_BL.shape[1]
    key_B1L, query_BL1 = segments_BL[:, None, :], segments_BL[:, :, None]
    earlier_LL = torch.ones(length, length, dtype=torch.bool, device=segments_BL.device).tril()
    allowed_BLL = earlier_LL & ((key_B1L == 0) | (key_B1L == query_BL1))
    mask_BLL = torch.zeros(allowed_BLL.shape, dtype=dtype, device=segments_BL.device)
    return mask_BLL.masked_fill_(~allowed_BLL, torch.finfo(dtype).min)[:, None]
