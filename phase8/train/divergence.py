"""How far a network with other weights is from the original: KL divergence per token, in nats.

Shapes: N sequences of T tokens, vocabulary V.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from phase8.errors import ModelError


def network_logits(network: nn.Module, weights: Mapping[str, Tensor], tokens_NT: Tensor) -> Tensor:
    """Returns the logits [N, T, V] of `network` with the named parameters replaced.

    Tied parameters follow each other: replacing `model.embed_tokens.weight` replaces a tied `lm_head.weight` too.
    """
    return functional_call(
        network, dict(weights), (), {"input_ids": tokens_NT, "use_cache": False}, tie_weights=True
    ).logits


def kl_per_token(teacher_NTV: Tensor, student_NTV: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean over tokens of KL(teacher || student), both softened, times temperature**2 (Hinton et al. 2015, section 2).

    Returns:
        A float32 scalar in nats; differentiable in both.
    """
    teacher = torch.log_softmax(teacher_NTV.float() / temperature, -1)
    student = torch.log_softmax(student_NTV.float() / temperature, -1)
    return (teacher.exp() * (teacher - student)).sum(-1).mean() * temperature**2


def _exact_kl(original_TV: Tensor, changed_TV: Tensor) -> float:
    """Mean KL over tokens in float64. One tensor of many changes a model by 1e-13 to 1e-8 nats; the softmax's rounding
    in float32 is 1e-8 of either sign, so that what is left of such a figure would depend on the processor."""
    original, changed = (torch.log_softmax(logits.double(), -1) for logits in (original_TV, changed_TV))
    return float((original.exp() * (original - changed)).sum(-1).mean())


@torch.no_grad()
def mean_kl(network: nn.Module, weights: Mapping[str, Tensor], tokens_NT: Tensor, *, batch_sequences: int = 8) -> float:
    """Mean KL(original || replaced) per token over `tokens_NT`, computed in float32; NaN where the weights give NaN."""
    total = 0.0
    for chunk in tokens_NT.split(batch_sequences):
        kl = kl_per_token(network_logits(network, {}, chunk), network_logits(network, weights, chunk))
        total += float(kl) * len(chunk)
    return total / len(tokens_NT)


@torch.no_grad()
def tensor_sensitivity(
    network: nn.Module, weights: Mapping[str, Tensor], tokens_NT: Tensor, *, batch_sequences: int = 8
) -> dict[str, float]:
    """On which tensors the model depends: for each of `weights`, the mean KL per token, in nats per weight, when only
    this tensor is replaced. Never below 0 by more than 1e-15, and 0 only where no logit changes.

    Costs a pass over `tokens_NT` per tensor: 8 sequences are enough to rank them.
    """
    total = dict.fromkeys(weights, 0.0)
    for chunk in tokens_NT.split(batch_sequences):
        original = network_logits(network, {}, chunk)
        for name, weight in weights.items():
            changed = network_logits(network, {name: weight}, chunk)
            # A sequence at a time: float64 of a large vocabulary is large.
            total[name] += sum(map(_exact_kl, original, changed)) / weight.numel()
    return {name: value / len(tokens_NT) for name, value in total.items()}


def check_replacements(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raises ModelError where a replacement names no parameter of the network or has another shape."""
    known = network.state_dict(keep_vars=True)
    wrong = [
        f"{name} {tuple(weight.shape)}"
        for name, weight in weights.items()
        if name not in known or known[name].shape != weight.shape
    ]
    if wrong:
        raise ModelError(
            f"the encoded tensors do not fit the network: {', '.join(wrong)}",
            where=type(network).__name__,
            fix="encode the weights of this very network",
        )
