"""Other losses for the trained lattice than the divergence from the original's answers; for `experiments.stories`.

    answers         KL(original || network), what ships
    weights         |W' - W|^2 / |W|^2, mean over the matrices by their size: no text at all
    layer outputs   |(W' - W) x|^2 / |W x|^2, likewise, x what the original's layer reads (the embedding:
                    its rows looked up, and the head's logits where both are one matrix)
    answers and hidden states: the first, and the mean over the blocks of |h' - h|^2 / |h|^2, h what a block passes on

The price of a bit, the schedule and the budget are as they are: the price follows the size, whatever the loss.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.func import functional_call

from phase8.train import within_budget
from phase8.train.price import Price
from phase8.train.sliced import SlicedBatch
from phase8.train.slicing import Narrow
from phase8.train.whole import TrainedStage


class _Other(SlicedBatch):
    """A batch that is asked for another loss, by autograd, in one piece.

    Args:
        first: the network as training begins; the one that is trained lets go of its own matrices.
    """

    def __init__(self, network: nn.Module, *args: Any, first: nn.Module, **settings: Any) -> None:
        super().__init__(network, *args, **settings)
        self._network = first
        self._first = {name: p.detach() for name, p in first.named_parameters() if p.dim() == 2}

    def _mean(self, errors: Mapping[str, Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
        """Over the matrices, each as often as it has weights: else a large one would be the cheapest to leave out. The
        same for every sequence, since the draw of batches asks for one of each."""
        sizes = [self._first[name].numel() for name in errors]
        loss = sum(size * error for size, error in zip(sizes, errors.values(), strict=True)) / sum(sizes)
        return loss, loss.detach().expand(len(rows))


class _Weights(_Other):
    def divergence(self, weights: Mapping[str, Tensor], tokens_BT: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self._mean({name: _relative(weights[name] - w, w) for name, w in self._first.items()}, rows)


class _LayerOutputs(_Other):
    def divergence(self, weights: Mapping[str, Tensor], tokens_BT: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        read = self._read(tokens_BT)
        errors = {}
        for name, x in read.items():
            w = self._first[name]
            errors[name] = _relative(x @ (weights[name] - w).mT, x @ w.mT)
        embedding = next(name for name in self._first if "embed" in name)
        looked_up = self._first[embedding][tokens_BT]
        of_embedding = _relative(weights[embedding][tokens_BT] - looked_up, looked_up)
        errors[embedding] = (of_embedding + errors.get(embedding, of_embedding)) / 2
        return self._mean(errors, rows)

    @torch.no_grad()
    def _read(self, tokens_BT: Tensor) -> dict[str, Tensor]:
        """What every matrix reads in the original; a tied head under the embedding's name."""
        found: dict[str, Tensor] = {}
        own = {id(p): name for name, p in self._network.named_parameters()}
        hooks = [
            module.register_forward_pre_hook(lambda m, a: found.__setitem__(own[id(m.weight)], a[0]))
            for module in self._network.modules()
            if isinstance(module, nn.Linear)
        ]
        try:
            self._network(input_ids=tokens_BT, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return found


class _HiddenStates(_Other):
    def divergence(self, weights: Mapping[str, Tensor], tokens_BT: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        asked = {"input_ids": tokens_BT, "use_cache": False, "output_hidden_states": True}
        with torch.no_grad():
            theirs = self._network(**asked).hidden_states
        found = functional_call(self._network, dict(weights), (), asked, tie_weights=True)
        of_each = self._answers.divergence(rows, found.logits)
        beside = torch.stack([_relative(h - t, t) for h, t in zip(found.hidden_states, theirs, strict=True)]).mean()
        return of_each.mean() + beside, of_each.detach()


def _relative(error: Tensor, whole: Tensor) -> Tensor:
    return error.square().sum() / whole.square().sum()


@contextmanager
def trained_by(loss: str, *, priced: bool = True) -> Iterator[None]:
    """While it lasts, trainings lower this loss.

    Args:
        loss: as the module's text names it.
        priced: False leaves the price of a bit at zero: the size is cut once, at the end.
    """
    batches = {"weights": _Weights, "layer outputs": _LayerOutputs, "answers and hidden states": _HiddenStates}
    narrow = TrainedStage._narrow
    first: list[nn.Module] = []

    def narrowed(stage: TrainedStage) -> Narrow | None:
        part = narrow(stage)
        first.append(copy.deepcopy(stage.source.network if part is None else part.network))
        return part

    def batch(*args: Any, **settings: Any) -> SlicedBatch:
        return batches[loss](*args, first=first[-1], **settings)

    def free(price: Price) -> None:
        price.value = 0.0

    with ExitStack() as changed:
        if loss in batches:
            changed.enter_context(patch.object(TrainedStage, "_narrow", narrowed))
            changed.enter_context(patch.object(within_budget, "SlicedBatch", batch))
        if not priced:
            changed.enter_context(patch.object(Price, "step", free))
        yield
