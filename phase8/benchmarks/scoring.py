"""Log-probabilities of continuations, in the cheapest way that gives what the model says to each text on its own.

    packed     rows of `packing.py`: one context with all its continuations, many rows at a time
    batched    one text a row, padded at the right, where a causal model does not look
    alone      one text at a time: what is true by definition

Which ways are right depends on the architecture *and on the texts*: a sliding window, a rotary embedding that stretches
with the length, positions counted without `position_ids` show only beyond some length or in some company. So nothing
is concluded from one set of texts for another. A set is scored the cheap way, then a few of its texts are scored alone:
the longest and the shortest, the shortest in the company of the longest, the last one of the fullest row. Where they
differ, the whole set is scored again the next way. The check costs a few forward passes.

Example: attention over 16 tokens, questions of 12 and of 40 tokens. The first set is packed; the second, whose packed
rows the window would have to cut, is batched.

Shapes: B rows, L tokens of a row, C scored tokens of a batch, V vocabulary.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from phase8.benchmarks.packing import Batch, Plan, packed_mask
from phase8.model.forward import accepts, logits_of

Scores = dict[int, tuple[float, bool]]
"""Of each request by its number: the log-probability in nats, and whether every token was the likeliest."""

WAYS = ("packed", "batched", "alone")
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Nats by which two ways may differ, and ten times less of the score's size: the order of sums differs."""
HALF_PRECISION_TOLERANCE = 0.25
WRONG_WAY = (TypeError, ValueError, RuntimeError, AttributeError, IndexError, NotImplementedError, AssertionError)
"""What a model may raise that cannot be asked in this way."""


class Scorer:
    """Scores plans with one model.

    Args:
        model: a causal LM in evaluation mode.
        batch_tokens: tokens per forward pass, padding included.
    """

    def __init__(self, model: Any, batch_tokens: int) -> None:
        self.model = model
        self.batch_tokens = batch_tokens
        self.way: str | None = None
        """How the last plan was scored."""

    @torch.inference_mode()
    def score(self, plan: Plan, on_progress: Callable[[int, int], None]) -> list[tuple[float, bool]]:
        """The score of every request, in their order; `on_progress` gets (requests done, requests in all)."""
        most = 0

        def tell(done: int, total: int) -> None:
            nonlocal most  # a set that is scored again does not go back to the start
            most = max(most, done)
            on_progress(most, total)

        ways = (self._packed, self._batched, self._alone)
        scores: Scores = {}
        for number in range(plan.way, len(ways)):
            try:
                scores = ways[number](plan, tell)
            except WRONG_WAY:
                if WAYS[number] == "alone":
                    raise
                continue
            if WAYS[number] == "alone" or self._agrees(plan, scores):
                plan.way, self.way = number, WAYS[number]
                break
        on_progress(len(plan.encoded), len(plan.encoded))
        return [scores[number] for number in plan.canonical.tolist()]

    def _agrees(self, plan: Plan, scores: Scores) -> bool:
        """Whether the texts most likely to suffer score alone what they scored in company."""
        chosen = suspects(plan)
        alone = self._each_alone(plan, chosen)
        return all(alike(scores[number][0], alone[number][0], self.model.dtype) for number in chosen)

    # The three ways ----------------------------------------------------------------------------------------------

    def _packed(self, plan: Plan, on_progress: Callable[[int, int], None]) -> Scores:
        base, head = self.model.base_model, self.model.get_output_embeddings()
        if base is self.model or not isinstance(head, nn.Module) or not accepts(base, "position_ids"):
            raise ValueError("this architecture takes no packed rows")
        sums = torch.zeros(len(plan.encoded), dtype=torch.float32, device=self.model.device)
        wrong = torch.zeros_like(sums)
        done = 0
        for batch in plan.batches:
            logp_C, greedy_C = self._run_packed(batch)
            sums.index_add_(0, batch.requests_C, logp_C.float())
            wrong.index_add_(0, batch.requests_C, (~greedy_C).float())
            done += int(batch.requests_C.unique().numel())
            on_progress(done, len(plan.encoded))
        totals, exact = sums.tolist(), (wrong == 0).tolist()
        return {number: (totals[number], exact[number]) for number in plan.numbers}

    def _run_packed(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability (C) of each scored token, and whether it was the likeliest (C)."""
        hidden_BLD = self.model.base_model(
            input_ids=batch.tokens_BL,
            position_ids=batch.positions_BL,
            attention_mask=packed_mask(batch.segments_BL, self.model.dtype),
            use_cache=False,
        )[0]
        # Choices of one context share the output that predicts their first token: the head runs on it once.
        outputs, inverse_C = batch.outputs_C.unique(return_inverse=True)
        logits = self.model.get_output_embeddings()(hidden_BLD.flatten(0, 1)[outputs])
        logp_C = torch.log_softmax(logits, dim=-1)[inverse_C, batch.targets_C]
        return logp_C, logits.argmax(dim=-1)[inverse_C] == batch.targets_C

    def _batched(self, plan: Plan, on_progress: Callable[[int, int], None]) -> Scores:
        """No mask is needed: padding stands at the right, where a causal model does not look."""
        scores: Scores = {}
        numbers = plan.numbers
        while len(scores) < len(numbers):
            width = max(1, self.batch_tokens // len(plan.fed(numbers[len(scores)])))
            chunk = numbers[len(scores) : len(scores) + width]
            scores |= self._run(plan, chunk)
            on_progress(len(scores), len(plan.encoded))
        return scores

    def _alone(self, plan: Plan, on_progress: Callable[[int, int], None]) -> Scores:
        return self._each_alone(plan, plan.numbers, on_progress)

    def _each_alone(
        self, plan: Plan, numbers: Sequence[int], on_progress: Callable[[int, int], None] | None = None
    ) -> Scores:
        scores: Scores = {}
        forget_lengths(self.model)
        for number in sorted(numbers, key=lambda number: len(plan.fed(number))):
            scores |= self._run(plan, [number])
            if on_progress is not None:
                on_progress(len(scores), len(plan.encoded))
        return scores

    def _run(self, plan: Plan, numbers: Sequence[int]) -> Scores:
        inputs = [plan.fed(number) for number in numbers]
        tokens_BL = torch.zeros(len(inputs), max(map(len, inputs)), dtype=torch.long, device=self.model.device)
        for row, tokens in zip(tokens_BL, inputs, strict=True):
            row[: len(tokens)] = torch.tensor(tokens, device=self.model.device)
        logits_BLV = logits_of(self.model, tokens_BL)
        scores: Scores = {}
        for logits_LV, tokens, number in zip(logits_BLV, inputs, numbers, strict=True):
            continuation = plan.encoded[number][1]
            logp = torch.log_softmax(logits_LV[len(tokens) - len(continuation) : len(tokens)], dim=-1)
            targets = torch.tensor(continuation, device=self.model.device)
            value = float(logp.gather(1, targets[:, None]).sum())
            scores[number] = (value, bool((logp.argmax(dim=-1) == targets).all()))
        return scores


def suspects(plan: Plan) -> list[int]:
    """The requests of a plan whose company is most likely to change their scores; at most six."""
    numbers = plan.numbers
    last_of_row = {}  # of each row the last request: packed, it stands farthest from its context
    for batch in plan.batches:
        rows_C = (batch.outputs_C // batch.tokens_BL.shape[1]).tolist()
        last_of_row |= {(id(batch), row): number for row, number in zip(rows_C, batch.requests_C.tolist(), strict=True)}
    lasts = list(last_of_row.values())
    with_longest = [number for (owner, _), number in last_of_row.items() if owner == id(plan.batches[0])]
    fullest = max(plan.batches, key=lambda batch: int(batch.segments_BL.max()))
    row = int(fullest.segments_BL.argmax()) // fullest.tokens_BL.shape[1]
    chosen = [numbers[0], numbers[-1], lasts[0], with_longest[-1], last_of_row[(id(fullest), row)]]
    return list(dict.fromkeys([*chosen, lasts[len(lasts) // 2]]))


def alike(one: float, other: float, dtype: torch.dtype) -> bool:
    """Whether two ways gave the same log-probability, but for the order of sums."""
    if not math.isfinite(other):  # a broken model: NaN in every way
        return not math.isfinite(one)
    tolerance = TOLERANCE.get(dtype, HALF_PRECISION_TOLERANCE)
    return abs(one - other) <= tolerance + tolerance / 10 * abs(other)


def forget_lengths(model: Any) -> None:
    """Some rotary embeddings stretch with the longest text so far; a text of one token takes them back."""
    with contextlib.suppress(*WRONG_WAY):  # what cannot read one token does not stretch either
        logits_of(model, torch.zeros(1, 1, dtype=torch.long, device=model.device))
