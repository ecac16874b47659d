"""Which directions of attention's heads are kept, and which take part in a pass.

    score      s_ij = sum over pairs d of  turned q_i[d, d + D/2] . turned k_j[d, d + D/2]
    output     o_i  = sum_j p_ij W_o v_j

A head's D channels are D / 2 rotary pairs of queries and keys, and D values. A pair can be left out of a head, or a
value, by making its rows zero: a pair with nothing on either side adds nothing to a score, and as a score is a product
its slopes are zero, so training leaves it out for good. Of the pairs those are kept whose part of the score varies
most over the places that a query sees (softmax does not see a constant); of the values the strongest directions of
W_o W_v (a singular value decomposition, Eckart and Young 1936), which a turn within the head brings to its first rows.

Shapes: H heads of D channels, G key-value heads of n = H / G queries each, M pairs and E values that take part, C
channels of the residual stream, B sequences of T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SEQUENCES = 8
"""Of text, whose scores choose the pairs."""


def channels_of(config: Any) -> int:
    """D, by a network's configuration."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


@torch.no_grad()
def pair_strengths(network: nn.Module, tokens_BT: Tensor) -> list[Tensor]:
    """Of every layer: variance of each pair's part of the scores, over the places that a query sees, [G, D / 2].

    Args:
        network: of Llama's layout.
    """
    found, hooks = list[dict[str, Tensor]](), []
    tokens_BT = tokens_BT[:SEQUENCES]
    for layer in network.model.layers:
        found.append({})
        for name in ("q_proj", "k_proj"):
            into = found[-1]
            hooks.append(
                getattr(layer.self_attn, name).register_forward_hook(
                    lambda module, args, output, into=into, name=name: into.__setitem__(name, output)
                )
            )
    try:
        network(input_ids=tokens_BT, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    cos, sin = network.model.rotary_emb(torch.empty(1), torch.arange(tokens_BT.shape[1])[None])
    heads = network.config.num_key_value_heads
    return [_of_layer(each["q_proj"], each["k_proj"], cos[0], sin[0], heads) for each in found]


def _of_layer(q_BTC: Tensor, k_BTC: Tensor, cos_TD: Tensor, sin_TD: Tensor, heads: int) -> Tensor:
    size = cos_TD.shape[1]

    def turned(x_BTC: Tensor) -> Tensor:  # [2, D / 2, B, heads, T]
        x = x_BTC.unflatten(2, (-1, 2, size // 2)).permute(3, 4, 0, 2, 1)
        cos, sin = (table[:, : size // 2].T[:, None, None] for table in (cos_TD, sin_TD))
        return torch.stack([x[0] * cos - x[1] * sin, x[1] * cos + x[0] * sin])

    q, k = turned(q_BTC), turned(k_BTC)
    k = k.repeat_interleave(q.shape[3] // heads, 3)
    seen_TT = torch.ones(q.shape[4], q.shape[4]).tril()
    places_T1 = seen_TT.sum(1, keepdim=True)
    found = []
    for pair in range(size // 2):
        s = (q[:, pair].permute(1, 2, 3, 0) @ k[:, pair].permute(1, 2, 0, 3)) * seen_TT
        mean = s.sum(-1, keepdim=True) / places_T1
        found.append(((s - mean).square() * seen_TT).mean((0, 2, 3)))
    return torch.stack(found, 1).view(heads, -1, size // 2).sum(1)


def keep_directions(matrices: dict[str, Tensor], block: str, strength_GP: Tensor, size: int) -> None:
    """Leaves `size` channels of each head, in place of rows and columns of attention's four matrices, by name.

    Args:
        block: what the matrices' names begin with.
        strength_GP: of each pair, by `pair_strengths`.
        size: even; rows of the others become zero.
    """
    heads, pairs = strength_GP.shape
    if size >= 2 * pairs:
        return
    names = {name: f"{block}{name}_proj.weight" for name in "qkvo"}
    best = strength_GP.argsort(1, descending=True)[:, : size // 2]
    mask_GD = torch.zeros_like(strength_GP).scatter_(1, best, 1.0).repeat(1, 2)
    for name in "qk":
        matrix = matrices[names[name]]
        mask = mask_GD[:, None].expand(-1, len(matrix) // mask_GD.numel(), -1)
        matrices[names[name]] = matrix * mask.reshape(-1, 1)
    values, outputs = torch.zeros_like(matrices[names["v"]]), torch.zeros_like(matrices[names["o"]])
    v_GDC = matrices[names["v"]].unflatten(0, (heads, -1))
    o_CGnD = matrices[names["o"]].unflatten(1, (heads, -1, 2 * pairs))
    for head in range(heads):
        whole = o_CGnD[:, head].permute(1, 0, 2).flatten(0, 1) @ v_GDC[head]  # of n queries, one below another
        u, s, z = torch.linalg.svd(whole.double(), full_matrices=False)
        kept = min(size, len(s))
        root = s[:kept].sqrt()
        values.unflatten(0, (heads, -1))[head, :kept] = (root[:, None] * z[:kept]).float()
        out = (u[:, :kept] * root).float().unflatten(0, (o_CGnD.shape[2], -1)).permute(1, 0, 2)
        outputs.unflatten(1, (heads, -1, 2 * pairs))[:, head, :, :kept] = out
    matrices[names["v"]], matrices[names["o"]] = values, outputs


@dataclass(frozen=True, kw_only=True, slots=True)
class TakingPart:
    """Rows of queries [H 2M], keys [G 2M] and values [G E], columns of the output [H E], and each head's pairs."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    outputs: Tensor
    pairs_GM: Tensor


def taking_part(q: Tensor, k: Tensor, v: Tensor, o: Tensor, heads: int, size: int) -> TakingPart | None:
    """What of attention's four matrices is not zero, the same number of pairs and of values in every head.

    Args:
        heads, size: G and D.

    Returns:
        None where all takes part. What is left out adds exactly nothing, and all its slopes are exactly zero.
    """
    of_queries = (q != 0).any(1).view(heads, -1, 2, size // 2).any(2).any(1)
    pairs_GP = of_queries | (k != 0).any(1).view(heads, 2, -1).any(1)
    values_GD = (v != 0).any(1).view(heads, size) | (o != 0).any(0).view(heads, -1, size).any(1)
    pairs, values = max(1, int(pairs_GP.sum(1).max())), max(1, int(values_GD.sum(1).max()))
    if 2 * pairs == size == values:
        return None
    queries_each = len(q) // len(k)
    pairs_GM = _first(pairs_GP, pairs)
    rows_GE = torch.cat([pairs_GM, pairs_GM + size // 2], 1)
    values_GE = _first(values_GD, values)
    return TakingPart(
        queries=_rows(rows_GE.repeat_interleave(queries_each, 0), size),
        keys=_rows(rows_GE, size),
        values=_rows(values_GE, size),
        outputs=_rows(values_GE.repeat_interleave(queries_each, 0), size),
        pairs_GM=pairs_GM,
    )


def _first(taking: Tensor, count: int) -> Tensor:
    """Numbers of what takes part, filled up with others to `count`, in order; int64 [G, count]."""
    return taking.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count].sort(1).values


def _rows(of_head: Tensor, size: int) -> Tensor:
    return (of_head + size * torch.arange(len(of_head))[:, None]).flatten()
