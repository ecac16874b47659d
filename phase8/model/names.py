"""Which tensors of a checkpoint make which parameter: names as transformers' own loader maps them.

What lies on disk is often not what is in memory. `save_pretrained` of a Mixtral writes every expert's matrices on their
own, in memory they are one tensor; the hub's GPT-2 has no `transformer.` in front; old checkpoints carry rotary buffers
that are computed today. The loader's rules (`transformers.conversion_mapping`) are applied here to names and shapes
alone, so that a model which is never held can be read parameter by parameter.

    model.layers.0.block_sparse_moe.experts.0.w1.weight  [F, H]  \\
    model.layers.0.block_sparse_moe.experts.0.w3.weight  [F, H]   > model.layers.0.mlp.experts.gate_up_proj  [E, 2 F, H]
    ... of every expert                                          /

The only file that knows the loader's inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key
from transformers.utils.loading_report import LoadStateDictInfo

Shape = tuple[int, ...]


@dataclass(slots=True)
class Origin:
    """What one or several parameters are made of."""

    target: str
    """The first parameter that comes of it."""
    rule: WeightConverter | None = None
    """How; None: the one stored tensor is the parameter."""
    stored: list[tuple[str, str]] = field(default_factory=list)
    """Name on disk and the rule's pattern that it met, in the loader's order."""

    def make(self, network: Any, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """The parameters that come of it, by name; `read` gives a stored tensor."""
        if self.rule is None:
            return {self.target: read(self.stored[0][0])}
        rule = deepcopy(self.rule)
        for name, pattern in self.stored:
            rule.add_tensor(self.target, name, pattern, read(name))
        made = rule.convert(self.target, model=network, config=network.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


@dataclass(frozen=True, slots=True)
class Mapped:
    """A checkpoint's names held against an architecture."""

    origins: dict[str, Origin]
    """Of every parameter and saved buffer that is there."""
    shapes: dict[str, Shape]
    """Of the same, as they come out."""
    unexpected: list[str]
    """Stored tensors that the architecture has no place for, without those that it is known to ignore."""


def map_names(network: Any, stored: Mapping[str, Sequence[int]]) -> Mapped:
    """Maps the names of a checkpoint to those of a network (which may lie on the meta device).

    Args:
        stored: shape of every tensor on disk, by name.

    Raises:
        Exception: whatever the loader's rules raise where shapes do not fit them.
    """
    known = network.state_dict()
    rules = get_model_conversion_mapping(network)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    prefix = network.base_model_prefix
    found: dict[str, Origin] = {}
    unexpected = set()
    for name in sorted(stored, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, known)
        if target not in known and name in known:
            target, pattern = name, None
        if target not in known:
            unexpected.add(target if pattern is None else name)
            continue
        rule = None if pattern is None else by_pattern[pattern]
        found.setdefault(target, Origin(target, rule)).stored.append((name, pattern or name))
    origins: dict[str, Origin] = {}
    shapes: dict[str, Shape] = {}
    for origin in found.values():
        made = origin.make(network, lambda name: torch.empty(tuple(stored[name]), device="meta"))
        for name, tensor in made.items():
            if name in known:
                origins[name], shapes[name] = origin, tuple(tensor.shape)
            else:
                unexpected.add(name)
    info = LoadStateDictInfo(
        missing_keys=set(), unexpected_keys=unexpected, mismatched_keys=set(), conversion_errors={}, error_msgs=[],
        skipped_pp_keys=set(),
    )  # fmt: skip
    network._adjust_missing_and_unexpected_keys(info)
    return Mapped(origins, shapes, sorted(info.unexpected_keys))
