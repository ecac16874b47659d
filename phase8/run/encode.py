"""Which tensors go into which group, and the groups one after the other: the one place that protects and encodes.

    matrices ── protected? ──> plain groups, in 16 bits, as the vectors (norms, biases)
                     └─ no ──> the stage's codec, in groups that share what the codec shares

A run encodes so from memory, `phase8.run.streaming` from a checkpoint on disk. A run's byte budget chooses settings for
each tensor in place of the middle step (`phase8.allocation`) and takes the plain groups from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from phase8.codecs import EncodedGroup, Importance, get_codec
from phase8.codecs.base import Progress
from phase8.codecs.matrices import Matrix
from phase8.codecs.pools import is_protected, pools
from phase8.config import CompressionConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Names of the tensors of every group."""

    coded: list[list[str]]
    """For the stage's codec."""
    plain: list[list[str]]
    """In 16 bits: the vectors, then the protected matrices."""


def plan(
    stage: str,
    config: CompressionConfig,
    matrices: Mapping[str, int],
    vectors: Mapping[str, int],
    *,
    group_weights: int | None = None,
) -> Plan:
    """Plans the groups of a stage.

    Args:
        matrices, vectors: number of weights by name.
        group_weights: most weights of a group, unless one tensor alone has more; None: no limit.
    """
    kept = {name: size for name, size in matrices.items() if is_protected(name, config.protect)}
    coded = pools((name for name in matrices if name not in kept), config.stage(stage))
    sizes = {**matrices, **vectors}
    return Plan(
        coded=[group for pool in coded for group in _cut(pool, sizes, group_weights)],
        plain=[group for names in (vectors, kept) for group in _cut(names, sizes, group_weights)],
    )


def _cut(names: Iterable[str], sizes: Mapping[str, int], most: int | None) -> Iterator[list[str]]:
    """Runs of names with at most so many weights together, or one name with more."""
    run: list[str] = []
    for name in names:
        if run and most is not None and sum(sizes[other] for other in run) + sizes[name] > most:
            yield run
            run = []
        run.append(name)
    if run:
        yield run


def encode_coded(
    planned: Plan,
    stage: str,
    config: CompressionConfig,
    read: Callable[[str], Tensor | Matrix],
    *,
    importance: Mapping[str, Importance] | None = None,
    on_progress: Progress | None = None,
) -> Iterator[EncodedGroup]:
    """Encodes the stage's groups, each when it is asked for.

    Args:
        read: gives a matrix by its name.
        importance: may lack names.
        on_progress: called with the number of weights finished since the last call.
    """
    known = importance or {}
    for names in planned.coded:
        yield get_codec(stage).encode(
            {name: read(name) for name in names},
            config.stage(stage),
            importance={name: known[name] for name in names if name in known},
            seed=config.seed,
            on_progress=on_progress,
        )


def encode_plain(
    planned: Plan, config: CompressionConfig, read: Callable[[str], Tensor | Matrix]
) -> Iterator[EncodedGroup]:
    """Encodes what stays in 16 bits, each group when it is asked for; `read` gives a tensor by its name."""
    for names in planned.plain:
        yield get_codec("plain").encode({name: read(name) for name in names}, None, importance={}, seed=config.seed)
