"""A stage within a byte budget: settings for each tensor, encoding and training until the file fits."""

from __future__ import annotations

import math
from collections.abc import Sequence

from phase8.allocation.budget import Allocation, Allocator
from phase8.artifact.write import contents
from phase8.codecs import EncodedGroup
from phase8.codecs.stages import NAMES
from phase8.config import CompressionConfig, GrokfastVariant
from phase8.errors import ConfigError
from phase8.events import Allocated
from phase8.model.source import SourceModel
from phase8.run.context import Context
from phase8.run.groups import counter, plain_groups, plan_of
from phase8.run.journal import read_groups, recalled, write_groups
from phase8.run.optimise import Trained, trained

BUDGET_TRIES = 3
"""How often a stage with a byte budget is allocated and trained before its untrained file has to do."""


def size_of(groups: Sequence[EncodedGroup], source: SourceModel, stage: str) -> int:
    """Bytes of the artifact that these groups would make."""
    return sum(map(len, contents(groups, source, stage=stage).values()))


def make_allocator(source: SourceModel, stage: str, config: CompressionConfig) -> tuple[Allocator, list[EncodedGroup]]:
    """The allocator of the matrices that are coded, and the groups that stay in 16 bits."""
    planned = plan_of(source, stage, config)
    rest, left = plain_groups(source, planned, config), {name for group in planned.coded for name in group}
    coded = {name: matrix for name, matrix in source.matrices().items() if name in left}
    allocator = Allocator(
        stage, config.stage(stage), coded, lambda groups: size_of([*groups, *rest], source, stage), config.seed
    )
    return allocator, rest


def check_budget(source: SourceModel, stage: str, config: CompressionConfig) -> None:
    """Raises `ConfigError` where a stage's budget cannot be met."""
    limit, budget = config.limit_of(stage), config.budget_of(stage, source.original_bytes)
    if limit is None or budget is None:
        return
    smallest = make_allocator(source, stage, config)[0].smallest_bytes()
    if budget < smallest:
        name, value = limit
        highest = source.original_bytes / smallest
        least = f"{smallest:,} bytes" if name.endswith("bytes") else f"{math.floor(100 * highest) / 100:g}"
        raise ConfigError(
            f"{name}={value:g} allows {budget:,} bytes for {stage}, whose cheapest settings take {smallest:,} "
            f"(1/{highest:.1f} of the model's FP32 bytes)",
            where=name,
            fix=f"the limit for {stage} is {name.split('.')[-1]}={least}"
            + (f"; or switch it off: {stage}.enabled=false" if stage != NAMES[-1] else ""),
        )


def within_budget(run: Context, stage: str, attempt: int, config: CompressionConfig) -> Trained:
    """Encodes and trains within the stage's budget; training that adds bytes is repeated with so much less."""
    limit, budget = config.limit_of(stage), config.budget_of(stage, run.source.original_bytes)
    assert limit is not None and budget is not None
    allocator, rest = make_allocator(run.source, stage, config)
    room = budget
    untrained: list[EncodedGroup] = []
    for round in range(1, BUDGET_TRIES + 1):
        untrained = found = _encoded(run, stage, attempt, config, allocator, rest, room, round)
        groups, facts = trained(run, stage, attempt, config, lambda found=found: found, round)
        size = size_of(groups, run.source, stage)
        if size <= budget:
            return groups, facts
        text = f"{stage}: training took the file to {size:,} bytes, above the {budget:,} allowed"
        run.log("info", text, stage)
        room = size_of(untrained, run.source, stage) - (size - budget)
        if room < allocator.smallest_bytes():
            break
    run.log("warning", f"{stage}: no trained file is within the budget; untrained it is", stage)
    return untrained, {"filter": GrokfastVariant.off.value}


def _encoded(
    run: Context,
    stage: str,
    attempt: int,
    config: CompressionConfig,
    allocator: Allocator,
    rest: list[EncodedGroup],
    room: int,
    round: int,
) -> list[EncodedGroup]:
    """Everything encoded into `room` bytes; of an earlier process where that one finished it."""
    path = run.journal.path(stage, attempt, f"encoded_{round}.p8")
    if run.journal.done(stage, attempt, "encode", round):
        found = recalled(run.tell, lambda: read_groups(path))
        if found is not None:
            return found
    _measured(run, stage, attempt, config, allocator)
    total = sum(m.numel() for m in allocator.matrices.values())
    with run.step("encode", stage, attempt, round):
        allocation = allocator.encode(room, on_progress=counter(run, stage, total))
        groups = [*allocation.groups, *rest]
        write_groups(path, groups, stage, run.source.parameter_count)
        _tell_allocation(run, stage, attempt, config, allocation)
    return groups


def _measured(run: Context, stage: str, attempt: int, config: CompressionConfig, allocator: Allocator) -> None:
    """What each candidate costs and damages, measured once per attempt."""
    if allocator.measured:
        return
    importance = run.calibration.importance(config)
    path = run.journal.path(stage, attempt, "allocation.npz")
    if run.journal.done(stage, attempt, "allocate"):
        if recalled(run.tell, lambda: allocator.read(path, importance)):
            return
    budget = config.budget_of(stage, run.source.original_bytes)
    assert budget is not None
    with run.step("allocate", stage, attempt):
        _, held_out = run.calibration.tokens(config)
        allocator.measure(
            run.source,
            importance,
            held_out,
            budget,
            on_step=lambda done, total: run.progress("allocate", stage, done, total, f"{stage} settings"),
        )
        allocator.write(path)


def _tell_allocation(run: Context, stage: str, attempt: int, config: CompressionConfig, allocation: Allocation) -> None:
    limit, budget = config.limit_of(stage), config.budget_of(stage, run.source.original_bytes)
    assert limit is not None and budget is not None
    run.tell(
        Allocated(
            attempt=attempt,
            limit=limit[0],
            budget_bytes=budget,
            size_bytes=allocation.size_bytes,
            estimated_bytes=allocation.estimated_bytes,
            estimated_divergence=allocation.estimated_divergence,
            encodings=allocation.encodings,
            tensors=allocation.tensors,
        ),
        stage,
    )
