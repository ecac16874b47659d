"""What the original answers to the training text: its likeliest next tokens, computed once and read again.

Of a vocabulary of V tokens only the K likeliest are kept at each place, with what the rest has together. The divergence
between the original and a network is then that over K + 1 outcomes,

    KL = sum_k p_k (ln p_k - ln q_k) + r (ln r - ln s)      r = 1 - sum_k p_k,  s = 1 - sum_k q_k

never more than the full one (the rest is one outcome). With K = 48 of 2,048 tokens the embedded model's likeliest hold
99 % of its probability. N sequences of T tokens take 4 N T K bytes.

A place counts w = exp(-c H), with H the entropy of the original's K + 1 outcomes. At certainty c = 0 all count alike;
above it those count for more where the original is sure, as it is of answers and is not of names drawn by chance.

Shapes: N sequences, T tokens, V vocabulary, K kept answers, B sequences of a batch.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from phase8.files import CACHE, write_atomic

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

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.log_p_NTK.shape[1]

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

    def divergence(self, rows: Tensor, logits_BTV: Tensor, certainty: float = 0.0) -> Tensor:
        """Mean w KL(original || network) of each sequence, float32 [B], in nats per token; differentiable.

        Args:
            rows: numbers of the sequences, int64 [B].
            logits_BTV: the network's answers to them.
            certainty: c of the module's text.
        """
        theirs, tokens = self.of(rows, logits_BTV.device)
        return _KeptDivergence.apply(logits_BTV.float(), theirs, tokens, certainty)


def _from_tensors(log_p_NTK: Tensor, token_NTK: Tensor) -> Answers:
    return Answers(log_p_NTK.numpy(), token_NTK.numpy())


def kept_divergence(q_V: Tensor, theirs_K: Tensor, tokens_K: Tensor, certainty: float = 0.0) -> tuple[Tensor, Tensor]:
    """w KL of each place over K + 1 outcomes, as the module's text says, and its slope by the logits.

        dKL / d ln q_k = d_k = -p_k + q_k r / s          dKL / d logit_j = d_j - q_j sum_k d_k

    Written out, since autograd goes over the V logits of every place some ten times.

    Args:
        q_V: the network's probabilities, float32 [..., V]; the slope takes their memory.
        theirs_K: the original's log-probabilities, [..., K].
        tokens_K: of which tokens.
        certainty: c of the module's text.
    """
    q, p = q_V.gather(-1, tokens_K), theirs_K.exp()
    rest, our_rest = (1.0 - p.sum(-1)).clamp_min(TINY), 1.0 - q.sum(-1)
    at_least = our_rest.clamp_min(TINY)
    places = rest * (rest.log() - at_least.log()) + (p * (theirs_K - q.clamp_min(LEAST).log())).sum(-1)
    steered = torch.where(our_rest > TINY, rest / at_least, 0.0)
    d = (q * steered[..., None]).sub_(p)
    if certainty:
        counts = (certainty * ((p * theirs_K).sum(-1) + rest * rest.log())).exp()
        places, d = places * counts, d.mul_(counts[..., None])
    return places, q_V.mul_(-d.sum(-1, keepdim=True)).scatter_add_(-1, tokens_K, d)


class _KeptDivergence(torch.autograd.Function):
    """Logits, the original's log-probabilities and their tokens, certainty -> mean w KL of each sequence."""

    @staticmethod
    def forward(ctx: Any, logits_BTV: Tensor, theirs_BTK: Tensor, tokens_BTK: Tensor, certainty: float) -> Tensor:
        places_BT, ctx.slope_BTV = kept_divergence(torch.softmax(logits_BTV, -1), theirs_BTK, tokens_BTK, certainty)
        return places_BT.mean(-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return ctx.slope_BTV * (grad[:, None, None] / ctx.slope_BTV.shape[1]), None, None, None


def answers_key(model_hash: str, tokens_NT: Tensor, kept: int, *, bfloat16: bool = False) -> str:
    """A name for the answers of one model to one text."""
    text = hashlib.sha256(tokens_NT.numpy().tobytes()).hexdigest()
    what = f"answers 1 {model_hash} {text} {tuple(tokens_NT.shape)} {kept}" + " bfloat16" * bfloat16
    return hashlib.sha256(what.encode()).hexdigest()[:24]


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
