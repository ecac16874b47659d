"""What the original answers to the training text: its likeliest next tokens, computed once and read again.

Of a vocabulary of V tokens only the K likeliest are kept at each place, with what the rest has together. The divergence
between the original and a network is then that over K + 1 outcomes,

    KL = sum_k p_k (ln p_k - ln q_k) + r (ln r - ln s)      r = 1 - sum_k p_k,  s = 1 - sum_k q_k

never more than the full one (the rest is one outcome). With K = 48 of 2,048 tokens the embedded model's likeliest hold
99 % of its probability. N sequences of T tokens take 4 N T K bytes.

Shapes: N sequences, T tokens, V vocabulary, K kept answers, B sequences of a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from phase8.files import CACHE, write_atomic
from phase8.train.threads import side_by_side

TINY = 1e-6
"""Least probability of the rest."""
LEAST = 1e-38
"""Least probability of a token, so that its logarithm is finite."""


LOGITS_AT_ONCE = 1 << 24
"""Logits held at a time by each slice, 64 MiB: a large vocabulary is asked in smaller batches."""


def sequences_at_once(length: int, vocabulary: int) -> int:
    """Sequences of a length whose logits are held at a time, at least one."""
    return max(1, LOGITS_AT_ONCE // (length * vocabulary))


class Answers:
    """The K likeliest next tokens at every place of a text, with their log-probabilities."""

    def __init__(self, log_p_NTK: np.ndarray, token_NTK: np.ndarray) -> None:
        self.log_p_NTK, self.token_NTK = log_p_NTK, token_NTK
        self._on_gpu: tuple[Tensor, Tensor] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process: as tensors, which a file can be mapped to; what a GPU holds stays behind."""
        return _from_tensors, (torch.from_numpy(self.log_p_NTK), torch.from_numpy(self.token_NTK))

    def of(self, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Log-probabilities, float32, and tokens, int64, of some sequences [B, T, K]. A GPU gets all of them once:
        a copy for every step would make it wait."""
        if device.type == "cpu":
            index = rows.numpy()
            log_p, token = self.log_p_NTK[index].astype(np.float32), self.token_NTK[index].astype(np.int64)
            return torch.from_numpy(log_p), torch.from_numpy(token)
        if self._on_gpu is None:
            narrow = np.int16 if self.token_NTK.size and self.token_NTK.max() < 1 << 15 else np.int32
            whole = torch.from_numpy(self.token_NTK.astype(narrow))
            self._on_gpu = torch.from_numpy(self.log_p_NTK).to(device), whole.to(device)
        index = rows.to(device, non_blocking=True)
        return self._on_gpu[0][index].float(), self._on_gpu[1][index].long()

    def divergence(self, rows: Tensor, logits_BTV: Tensor) -> Tensor:
        """Mean KL(original || network) of each sequence, float32 [B], in nats per token; differentiable.

        Args:
            rows: numbers of the sequences, int64 [B].
            logits_BTV: the network's answers to them.
        """
        theirs, tokens = self.of(rows, logits_BTV.device)
        return _KeptDivergence.apply(logits_BTV.float(), theirs, tokens)


def _from_tensors(log_p_NTK: Tensor, token_NTK: Tensor) -> Answers:
    return Answers(log_p_NTK.numpy(), token_NTK.numpy())


class _KeptDivergence(torch.autograd.Function):
    """Logits, the original's log-probabilities and their tokens -> KL over K + 1 outcomes, as the module's text says.

    The gradient is written out, in the memory of the probabilities: autograd goes over the V logits of every place
    some ten times, and took 26 ms where this takes 10 (1,024 places, V = 2,048).

        dKL / d ln q_k = c_k = -p_k + q_k r / s          dKL / d logit_j = c_j - q_j sum_k c_k
    """

    @staticmethod
    def forward(ctx: Any, logits_BTV: Tensor, theirs_BTK: Tensor, tokens_BTK: Tensor) -> Tensor:
        q_BTV = torch.softmax(logits_BTV, -1)
        q, p = q_BTV.gather(-1, tokens_BTK), theirs_BTK.exp()
        rest, our_rest = (1.0 - p.sum(-1)).clamp_min(TINY), 1.0 - q.sum(-1)
        at_least = our_rest.clamp_min(TINY)
        places = rest * (rest.log() - at_least.log()) + (p * (theirs_BTK - q.clamp_min(LEAST).log())).sum(-1)
        steered = torch.where(our_rest > TINY, rest / at_least, 0.0)
        c = (q * steered[..., None]).sub_(p).div_(places.shape[-1])
        ctx.slope_BTV = q_BTV.mul_(-c.sum(-1, keepdim=True)).scatter_add_(-1, tokens_BTK, c)
        return places.mean(-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return ctx.slope_BTV * grad[:, None, None], None, None


def collect_answers(
    network: nn.Module,
    tokens_NT: Tensor,
    *,
    kept: int = 48,
    batch_sequences: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
) -> Answers:
    """Asks the original once. `on_progress` is told how many sequences are done, of how many."""
    count, length = tokens_NT.shape
    vocabulary = int(network.config.vocab_size)
    kept = min(kept, vocabulary)
    batch_sequences = min(batch_sequences, sequences_at_once(length, vocabulary))
    log_p = np.empty((count, length, kept), dtype=np.float16)
    token = np.empty((count, length, kept), dtype=np.uint16 if vocabulary <= 1 << 16 else np.uint32)
    device = next(network.parameters()).device

    @torch.no_grad()
    def ask(begin: int) -> int:
        batch = tokens_NT[begin : begin + batch_sequences].to(device)
        logits = network(input_ids=batch, use_cache=False).logits.float()
        values, places = logits.topk(kept, -1, sorted=False)
        end = begin + len(batch)
        log_p[begin:end] = (values - torch.logsumexp(logits, -1, keepdim=True)).cpu().numpy()
        token[begin:end] = places.cpu().numpy()
        return end

    with side_by_side(device) as (together, apply):
        firsts = range(0, count, batch_sequences)
        for some in range(0, len(firsts), together):
            for end in apply(ask, firsts[some : some + together]):
                if on_progress is not None:
                    on_progress(end, count)
    return Answers(log_p, token)


def answers_key(model_hash: str, tokens_NT: Tensor, kept: int) -> str:
    """A name for the answers of one model to one text."""
    text = hashlib.sha256(tokens_NT.numpy().tobytes()).hexdigest()
    return hashlib.sha256(f"answers 1 {model_hash} {text} {tuple(tokens_NT.shape)} {kept}".encode()).hexdigest()[:24]


def load_answers(directory: Path, key: str, shape: tuple[int, int]) -> Answers | None:
    """Answers written before; None where there are none, or where they are damaged."""
    try:
        with np.load(directory / f"answers_{key}.npz", allow_pickle=False) as file:
            log_p, token, check = file["log_p"], file["token"], str(file["check"])
    except Exception:  # a damaged archive raises what it likes: a bit can ask for a password, or for another version
        return None
    sound = (
        log_p.shape == token.shape
        and log_p.ndim == 3
        and log_p.shape[:2] == shape
        and log_p.dtype == np.float16
        and token.dtype in (np.uint16, np.uint32)
        and check == _checksum(log_p, token)
    )
    return Answers(log_p, token) if sound else None


def save_answers(directory: Path, key: str, answers: Answers) -> None:
    """Writes answers for another run, whole or not at all.

    Raises:
        OutputError: the directory cannot be written to, or the disk is full.
    """
    check = np.array(_checksum(answers.log_p_NTK, answers.token_NTK))

    def write(file: BinaryIO) -> None:
        np.savez(file, log_p=answers.log_p_NTK, token=answers.token_NTK, check=check)

    write_atomic(directory / f"answers_{key}.npz", write, CACHE)


def _checksum(log_p: np.ndarray, token: np.ndarray) -> str:
    found = hashlib.sha256()
    for array in (log_p, token):
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return found.hexdigest()
