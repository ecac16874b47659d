"""What a model's calibration text says about the importance of its weights.

An error dW in a linear layer changes its output by dW x; over tokens that costs tr(dW H dW^T) with H = mean of x x^T,
the layer's input second moment (GPTQ, arXiv 2210.17323, section 2, without the factor 2, which no codec notices).
Forward hooks collect H. A row of an embedding matters as often as it is looked up: what is counted is the index that
reaches PyTorch's own lookup, since the arguments of an embedding module are its architecture's affair (OPT's positions
get an attention mask). A tied embedding is also the
output layer, which uses every row for every token: it gets the second moment of the final hidden states as H, and as
row weights the square root of the token frequency, half way between the two uses. Measured on a first version of the
embedded model, only the embedding coded, VPTQ at 2.13 bits: the divergence from the original was 0.107 nats per token
with the plain frequency, 0.066 without row weights, 0.055 with the square root; at 1.06 bits (other text) 1.14 without
and 0.55 with the square root.

Example: inputs (1, 0) and (1, 2) give H = [[1, 1], [1, 2]].

Shape legend: B sequences, T tokens of one, N = B T, O output rows, I input columns.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from phase8.codecs.base import Importance
from phase8.errors import ModelError

UNSEEN_WEIGHT = 0.1
"""Added to every token's share (mean 1), so that a token which the calibration text lacks keeps some weight."""
LOGITS_AT_ONCE = 1 << 23
"""Outputs of the network computed at a time, 32 MiB: with a large vocabulary they are more than the model."""


class _SecondMoment:
    """Sum of x x^T over the inputs x of one layer."""

    def __init__(self) -> None:
        self.sum_II: Tensor | None = None
        self.tokens = 0

    def hook(self, module: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        inputs = args[0] if args else next(iter(named.values()))
        x_NI = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        if self.sum_II is None:
            self.sum_II = x_NI.new_zeros(x_NI.shape[1], x_NI.shape[1])
        self.sum_II.addmm_(x_NI.T, x_NI)
        self.tokens += len(x_NI)

    def mean_II(self) -> Tensor | None:
        """The end of the count: the sum's memory becomes the mean's."""
        if self.sum_II is None or not self.tokens:
            return None
        self.sum_II.div_(self.tokens)
        self.tokens = 1  # a tied matrix is asked for by both names
        return self.sum_II.cpu()


class _RowCount:
    """How often each row of one embedding is looked up."""

    def __init__(self, rows: int) -> None:
        self.count_O = torch.zeros(rows, dtype=torch.int64)

    def add(self, indices: Tensor) -> None:
        self.count_O += torch.bincount(indices.detach().cpu().reshape(-1), minlength=len(self.count_O))

    def weight_O(self, tied: bool) -> Tensor | None:
        total = int(self.count_O.sum())
        if total == 0:
            return None
        share_O = self.count_O.double() * (len(self.count_O) / total) + UNSEEN_WEIGHT
        if tied:
            share_O = share_O.sqrt()
        return (share_O / share_O.mean()).float()


class _Lookups(TorchFunctionMode):
    """While open, counts the rows that `torch.nn.functional.embedding` takes from some tables."""

    def __init__(self, tables: Mapping[int, _RowCount]) -> None:
        super().__init__()
        self.tables = tables
        """By the `id` of the table's weight."""

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is nn.functional.embedding:  # what nn.Embedding comes down to
            given = dict(zip(("input", "weight"), args, strict=False)) | (kwargs or {})
            if id(given["weight"]) in self.tables:
                self.tables[id(given["weight"])].add(given["input"])
        return function(*args, **(kwargs or {}))


def collect_importance(
    model: PreTrainedModel, batches: Sequence[Tensor], names: Collection[str]
) -> dict[str, Importance]:
    """Runs the model over calibration text and returns the importance of the named matrices.

    Args:
        model: a causal language model; its mode is as before when this returns.
        batches: token ids, each int64 [B, T], all tokens count alike.
        names: parameters, such as `model.layers.0.self_attn.q_proj.weight` or `model.embed_tokens.weight`. The two
            names of a tied matrix mean the same.

    Returns:
        float32 CPU tensors by name, for every name whose matrix belongs to an `nn.Linear`, a GPT-2 `Conv1D` (its
        weight is stored [I, O]; the Hessian is [I, I] all the same) or an `nn.Embedding` that the text reached. Other
        names, and layers that no token passed through, are absent.

    Raises:
        ModelError: a name that the model lacks; no batches; a token beyond the vocabulary; inputs of a layer that are
            NaN or infinite.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    unknown = sorted(set(names) - set(parameters))
    if unknown:
        raise ModelError(
            f"the model has no parameter called {', '.join(unknown)}",
            where=type(model).__name__,
            fix="take the names from model.named_parameters()",
        )
    if len(batches) == 0:
        raise ModelError("there is no calibration text", where=type(model).__name__, fix="give at least one batch")
    vocabulary = model.get_input_embeddings().num_embeddings
    largest = max(int(batch_BT.max()) for batch_BT in batches)
    if largest >= vocabulary:
        raise ModelError(
            f"the calibration text holds token {largest}, the model knows {vocabulary} tokens",
            where=type(model).__name__,
            fix="use the tokenizer that belongs to the model",
        )

    moments: dict[str, _SecondMoment] = {}
    counts: dict[str, _RowCount] = {}
    handles = []
    modes = [(module, module.training) for module in model.modules()]
    # A tied matrix has two owners, which is why modules are matched by the parameter they hold and not by name.
    wanted = {id(parameters[name]): name for name in sorted(names)}
    try:
        for module in model.modules():
            name = wanted.get(id(getattr(module, "weight", None)))
            if name is None:
                continue
            if isinstance(module, nn.Linear | Conv1D):
                moment = moments.setdefault(name, _SecondMoment())
                handles.append(module.register_forward_pre_hook(moment.hook, with_kwargs=True))
            elif isinstance(module, nn.Embedding):
                counts.setdefault(name, _RowCount(module.num_embeddings))
        model.eval()
        tables = {id(parameters[name]): rows for name, rows in counts.items()}
        with torch.no_grad(), _Lookups(tables):
            for batch_BT in batches:
                for part_BT in batch_BT.split(max(1, LOGITS_AT_ONCE // (batch_BT.shape[1] * vocabulary))):
                    model(input_ids=part_BT.to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode

    importance: dict[str, Importance] = {}
    for name in names:
        owner = wanted[id(parameters[name])]
        hessian_II = moments[owner].mean_II() if owner in moments else None
        row_O = counts[owner].weight_O(tied=owner in moments) if owner in counts else None
        if hessian_II is not None and not torch.isfinite(hessian_II).all():
            raise ModelError(
                "the layer's inputs hold NaN or infinite values", where=name, fix="check the checkpoint, or train anew"
            )
        if hessian_II is not None or row_O is not None:
            importance[name] = Importance(hessian_II=hessian_II, row_O=row_O)
    return importance
