"""The divergence of a batch and its gradient, slice by slice on threads of their own.

    batch ── slice 1 ── network on thread 1 ── KL, gradient ──┐
          ── slice 2 ── network on thread 2 ── KL, gradient ──┴── added in order

A slice whose logits would take more than `LOGITS_AT_ONCE` is asked in parts, one after the other. On a processor, a
network of Llama's layout is asked by passes that are written out (`phase8.train.llama`), others by transformers' own.

Two slices are faster than two threads within every product (experiments/LOG.md, 2026-11-27). The sum is in the order of
the slices, so that a run can be repeated to the bit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from phase8.model.source import in_place, unique_parameters
from phase8.train.answers import Answers, sequences_at_once
from phase8.train.llama import Llama, why_not_written_out
from phase8.train.threads import Apply


class SlicedBatch:
    """Asks one network in slices.

    Args:
        network: not changed; every slice but the first has modules of its own over the same parameters (others are put
            in by name, which no two threads may do to one module at once).
        answers: the original's.
        bfloat16: format of the matrix products.
        slices: how many, and `apply` runs them: see `phase8.train.threads.side_by_side`.
        certainty: how much more a place counts where the original is sure, see `phase8.train.answers`.
    """

    def __init__(
        self,
        network: nn.Module,
        answers: Answers,
        *,
        device: torch.device,
        bfloat16: bool,
        slices: int,
        apply: Apply,
        certainty: float = 0.0,
    ) -> None:
        self._answers, self._device, self._bfloat16, self._apply = answers, device, bfloat16, apply
        self._certainty = certainty
        self._networks = [network, *(_twin(network) for _ in range(slices - 1))]
        self._places = unique_parameters(network)
        written_out = why_not_written_out(network, answers.length, device) is None
        self._llama = Llama(network, torch.bfloat16 if bfloat16 else torch.float32) if written_out else None

    def divergence(self, weights: Mapping[str, Tensor], tokens_BT: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean KL(original || network) over the batch, differentiable in `weights`, and that of each sequence.

        Args:
            weights: tensors put in for the network's, by name.
            tokens_BT: int64 [B, T].
            rows: numbers of the sequences among the answers, int64 [B].
        """
        return _Divergence.apply(self, tokens_BT, rows, list(weights), *weights.values())

    def ask(self, weights: Mapping[str, Tensor], tokens_BT: Tensor, rows: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """KL of each sequence, float32 [B], and the gradient of their mean for each of `weights`."""
        parts = list(zip(tokens_BT.chunk(len(self._networks)), rows.chunk(len(self._networks)), strict=True))

        def one(number: int) -> tuple[Tensor, tuple[Tensor, ...]]:
            leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
            few = sequences_at_once(tokens_BT.shape[1], self._networks[number].config.vocab_size)
            asked = [
                part(number, leaves, *some) for some in zip(*(half.split(few) for half in parts[number]), strict=True)
            ]
            return torch.cat([of_each for of_each, _ in asked]), _summed([gradient for _, gradient in asked])

        def part(
            number: int, leaves: dict[str, Tensor], tokens: Tensor, numbers: Tensor
        ) -> tuple[Tensor, tuple[Tensor, ...]]:
            if self._llama is not None:
                theirs = self._answers.of(numbers, self._device)
                return self._llama.divergence(leaves, tokens, *theirs, share=1 / len(rows), certainty=self._certainty)
            with torch.enable_grad(), torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
                asked = {"input_ids": tokens.to(self._device), "use_cache": False}
                logits = functional_call(
                    self._networks[number], self._in_place(leaves), (), asked, tie_weights=True
                ).logits
                of_each = self._answers.divergence(numbers, logits, self._certainty)
                mean = of_each.sum() / len(rows)
            return of_each.detach(), torch.autograd.grad(mean, list(leaves.values()))

        found = list(self._apply(one, range(len(parts))))
        return torch.cat([of_each for of_each, _ in found]), _summed([gradient for _, gradient in found])

    def _in_place(self, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Matrices in the shapes of their parameters: a GPT-2's lie on their side, a mixture's experts are many. Where
        the network's own were let go (`phase8.train.whole`), they are of Llama's layout, whose shapes are these."""
        places = {name: self._places[name] for name in leaves}
        return {
            name: in_place(place, leaves[name]) if place[1].numel() else leaves[name] for name, place in places.items()
        }


def _summed(gradients: Iterable[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The sum, in the memory of the first."""
    first, *others = gradients
    for other in others:
        for whole, part in zip(first, other, strict=True):
            whole.add_(part)
    return first


def _twin(network: nn.Module) -> nn.Module:
    """Modules of its own, and the network's parameters."""
    return copy.deepcopy(network, {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())})


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, batch: SlicedBatch, tokens: Tensor, rows: Tensor, names: list[str], *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        of_each, ctx.gradient = batch.ask(dict(zip(names, weights, strict=True)), tokens, rows)
        ctx.mark_non_differentiable(of_each)
        return of_each.mean(), of_each

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, None, *(part * grad for part in ctx.gradient)
