"""A model's groups, from memory: those of the stage's codec, and those that stay in 16 bits."""

from __future__ import annotations

from phase8.codecs import EncodedGroup
from phase8.codecs.base import Progress
from phase8.config import CompressionConfig
from phase8.model.source import SourceModel
from phase8.run.calibration import Calibration
from phase8.run.context import Context
from phase8.run.encode import Plan, encode_coded, encode_plain, plan


def plan_of(source: SourceModel, stage: str, config: CompressionConfig) -> Plan:
    """Which tensors of the model go into which group."""
    matrices, vectors = (
        {name: tensor.numel() for name, tensor in tensors.items()} for tensors in (source.matrices(), source.vectors())
    )
    return plan(stage, config, matrices, vectors)


def plain_groups(source: SourceModel, planned: Plan, config: CompressionConfig) -> list[EncodedGroup]:
    """What stays in 16 bits: vectors, protected matrices."""
    return list(encode_plain(planned, config, {**source.matrices(), **source.vectors()}.__getitem__))


def encode_all(
    source: SourceModel,
    calibration: Calibration,
    stage: str,
    config: CompressionConfig,
    on_progress: Progress | None = None,
) -> list[EncodedGroup]:
    """Encodes every tensor of the model.

    Args:
        on_progress: called with the number of weights finished since the last call.
    """
    planned, matrices = plan_of(source, stage, config), source.matrices()
    coded = encode_coded(
        planned,
        stage,
        config,
        matrices.__getitem__,
        importance=calibration.importance(config),
        on_progress=on_progress,
    )
    return [*coded, *plain_groups(source, planned, config)]


def counter(run: Context, stage: str, total: int) -> Progress:
    """Tells an encoding's progress in weights."""
    done = 0

    def on_progress(weights: int) -> None:
        nonlocal done
        done += weights
        run.progress("encode", stage, min(done, total), total, f"{stage} weights")

    return on_progress
