"""One attempt at a stage: settings -> artifact on disk -> scores -> verdict.

What is judged is what was written: the network that the benchmarks see gets its weights from the artifact on disk.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from phase8.artifact.read import Artifact, read_artifact
from phase8.artifact.write import bytes_by_kind, load_artifact, write_artifact
from phase8.benchmarks.evaluate import SuiteResult
from phase8.codecs import EncodedGroup
from phase8.codecs.pools import is_protected
from phase8.config import CompressionConfig
from phase8.events import CompressionProgress
from phase8.judge.gates import judge_stage
from phase8.run.budget import within_budget
from phase8.run.context import Context
from phase8.run.groups import counter, encode_all
from phase8.run.journal import (
    directory_of,
    read_facts,
    read_groups,
    read_scores,
    recalled,
    write_facts,
    write_groups,
    write_scores,
)
from phase8.run.optimise import Trained, trained
from phase8.run.result import Attempt, text_name
from phase8.run.score import score, tell_score
from phase8.run.train import train_whole


def make_attempt(
    run: Context, stage: str, number: int, config: CompressionConfig, stage_input: Attempt | None
) -> Attempt:
    """Makes one attempt, as far as an earlier process of this run has not done so.

    Args:
        number: 1 for the first.
        config: the settings of this attempt.
        stage_input: what the stage starts from: the attempt that passed last; None for the original.

    Raises:
        Phase8Error: bad settings or output.
        RunStopped: the run is to end.
    """
    assert run.baseline is not None
    begin, before = time.monotonic(), run.journal.spent(stage, number)
    told = run.journal.complete(stage, number) is not None
    artifact, gradient_filter = write_stage(run, stage, number, config)
    if not told:
        run.tell(
            CompressionProgress(
                attempt=number,
                compressed_bytes=artifact.size_bytes,
                original_bytes=run.source.original_bytes,
                ratio=artifact.ratio,
                bits_per_weight=artifact.bits_per_weight,
                groups=bytes_by_kind(artifact),
            ),
            stage,
        )
    result = score_stage(run, stage, number, artifact, told)
    verdict = judge_stage(
        stage,
        baseline=run.baseline,
        stage_input=stage_input.result if stage_input is not None else run.baseline,
        result=result,
        config=config.gates,
        max_accuracy_loss=config.max_accuracy_loss,
        experts=run.source.experts.experts,
        input_bytes=stage_input.artifact.size_bytes if stage_input is not None else run.source.original_bytes,
        compressed_bytes=artifact.size_bytes,
        text=text_name(run.config),
    )
    return Attempt(
        stage=stage,
        number=number,
        directory=directory_of(run.run_dir, stage, number),
        artifact=_without_streams(artifact),
        result=result,
        verdict=verdict,
        left_alone=_left_alone(artifact, config),
        gradient_filter=gradient_filter,
        seconds=before + time.monotonic() - begin,
    )


def write_stage(run: Context, stage: str, number: int, config: CompressionConfig) -> tuple[Artifact, str]:
    """Settings -> artifact on disk, read back; and the gradient filter of the training that it holds."""
    directory = directory_of(run.run_dir, stage, number)
    facts = run.journal.path(stage, number, "attempt.json")
    if run.journal.done(stage, number, "write"):
        found = recalled(run.tell, lambda: (read_artifact(directory), read_facts(facts)["filter"]))
        if found is not None:
            run.journal.clear(stage, number)
            return found
    groups, found = _groups(run, stage, number, config)
    gradient_filter = str(found["filter"])
    with run.step("write", stage, number):
        write_facts(facts, {"filter": gradient_filter})
        artifact = write_artifact(directory, groups, run.source, stage=stage)
    run.journal.clear(stage, number)
    return artifact, gradient_filter


def _groups(run: Context, stage: str, number: int, config: CompressionConfig) -> Trained:
    """The stage's groups, encoded and trained."""
    if config.stage(stage).trained:
        return train_whole(run, stage, number, config)
    if config.limit_of(stage) is not None:
        return within_budget(run, stage, number, config)
    return trained(run, stage, number, config, lambda: _encoded(run, stage, number, config))


def _encoded(run: Context, stage: str, number: int, config: CompressionConfig) -> list[EncodedGroup]:
    """The stage's groups before training; of an earlier process where that one finished them."""
    path = run.journal.path(stage, number, "encoded_1.p8")
    if run.journal.done(stage, number, "encode"):
        found = recalled(run.tell, lambda: read_groups(path))
        if found is not None:
            return found
    total = sum(m.numel() for name, m in run.source.matrices().items() if not is_protected(name, config.protect))
    with run.step("encode", stage, number):
        groups = run.shared.encoded(
            stage,
            config,
            run.calibration.tokens(config)[0],
            lambda: encode_all(run.source, run.calibration, stage, config, counter(run, stage, total)),
        )
        write_groups(path, groups, stage, run.source.parameter_count)
    return groups


def score_stage(run: Context, stage: str, number: int, artifact: Artifact, told: bool) -> SuiteResult:
    """Artifact -> scores; `told` says that the log has them already."""
    path = run.journal.path(stage, number, "scores.json")
    if run.journal.done(stage, number, "evaluate"):
        found = recalled(run.tell, lambda: read_scores(path))
        if found is not None:
            for known in [] if told else found.scores.values():
                tell_score(run, known, stage, number)
            return found
    with run.step("evaluate", stage, number):
        assert run.suite is not None
        directory = directory_of(run.run_dir, stage, number)

        def measure() -> SuiteResult:
            # Opened as a user opens it: architecture and settings from its own files, the weights into a fresh network.
            network, _ = load_artifact(directory)
            return score(run, network.to(run.config.device), stage, number)

        result, taken = run.shared.scores(directory, run.suite, run.config, measure)
        for known in result.scores.values() if taken else ():
            tell_score(run, known, stage, number)
        write_scores(path, result)
    return result


def _left_alone(artifact: Artifact, config: CompressionConfig) -> list[dict[str, Any]]:
    """Tensors that the stage did not compress, with the reason and their packed bytes."""
    rows = []
    for group in artifact.groups:
        if group.codec != "plain":
            continue
        names = list(group.tensors)
        reason = (
            f"matches protect={list(config.protect)}"
            if all(is_protected(name, config.protect) for name in names)
            else "a vector (norm or bias): stored in 16 bits"
        )
        rows.append({"tensors": names, "reason": reason, "packed_bytes": group.packed_bits() // 8})
    return rows


def _without_streams(artifact: Artifact) -> Artifact:
    """The artifact without its groups' streams, to keep memory flat over a run."""
    return replace(artifact, groups=tuple(replace(g, shared={}, tensors=_shapes(g)) for g in artifact.groups))


def _shapes(group: EncodedGroup) -> dict[str, Any]:
    return {name: replace(tensor, streams={}) for name, tensor in group.tensors.items()}
