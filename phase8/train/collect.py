"""Asks the original for its likeliest next tokens at every place of a text, once (`phase8.train.answers`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

from phase8.train.answers import Answers, sequences_at_once
from phase8.train.llama import Llama, why_not_written_out
from phase8.train.threads import side_by_side


def collect_answers(
    network: nn.Module,
    tokens_NT: Tensor,
    *,
    kept: int = 48,
    batch_sequences: int = 16,
    bfloat16: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Answers:
    """Answers of `network`, on its device, to N sequences of T tokens.

    Args:
        kept: likeliest tokens kept of each answer.
        bfloat16: format of the products; the embedded model's answers are then 5e-5 nats from those in float32.
        on_progress: told how many sequences are done, of how many.
    """
    count, length = tokens_NT.shape
    vocabulary = int(network.config.vocab_size)
    kept = min(kept, vocabulary)
    batch_sequences = min(batch_sequences, sequences_at_once(length, vocabulary))
    log_p = np.empty((count, length, kept), dtype=np.float16)
    token = np.empty((count, length, kept), dtype=np.uint16 if vocabulary <= 1 << 16 else np.uint32)
    device = next(network.parameters()).device
    logits = _logits(network, length, device, bfloat16)

    @torch.no_grad()
    def ask(begin: int) -> int:
        batch = tokens_NT[begin : begin + batch_sequences].to(device)
        end, at = begin + len(batch), 0
        into_p, into_token = (array[begin:end].reshape(-1, kept) for array in (log_p, token))  # views
        for logits_PV in logits(batch):
            values, places = logits_PV.topk(kept, -1, sorted=False)
            some = slice(at, at + len(values))
            into_p[some] = (values - torch.logsumexp(logits_PV, -1, keepdim=True)).cpu().numpy()
            into_token[some] = places.cpu().numpy()
            at += len(values)
        return end

    with side_by_side(device) as (together, apply):
        firsts = range(0, count, batch_sequences)
        at_once = 8 * together  # one waits for the other at the end of these, and a Ctrl-C for all of them
        for some in range(0, len(firsts), at_once):
            for end in apply(ask, firsts[some : some + at_once]):
                if on_progress is not None:
                    on_progress(end, count)
    return Answers(log_p, token)


def _logits(
    network: nn.Module, length: int, device: torch.device, bfloat16: bool
) -> Callable[[Tensor], Iterable[Tensor]]:
    """Sequences [B, T] -> logits of all their places in order, float32 [P, V], some at a time."""
    if why_not_written_out(network, length, device) is None:
        return Llama(network, torch.bfloat16 if bfloat16 else torch.float32).logits

    def whole(tokens_BT: Tensor) -> Iterable[Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            yield network(input_ids=tokens_BT, use_cache=False).logits.flatten(0, 1).float()

    return whole
