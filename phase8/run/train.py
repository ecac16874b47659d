"""A stage that is trained as a whole within its byte budget, told as it happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from phase8.artifact.read import read_artifact
from phase8.artifact.write import write_artifact
from phase8.codecs import EncodedGroup
from phase8.codecs.hyper.settings import HyperConfig, Trajectory
from phase8.codecs.pools import is_protected
from phase8.codecs.stages import NAMES
from phase8.config import CompressionConfig, GrokfastVariant
from phase8.errors import ConfigError, RunStopped
from phase8.events import TrainingComplete, TrainingProgress
from phase8.model.source import SourceModel
from phase8.run.budget import size_of
from phase8.run.calibration import CALIBRATION_SEED
from phase8.run.context import Context
from phase8.run.journal import STOPPED, directory_of, read_facts, read_groups, recalled, write_facts, write_groups
from phase8.run.optimise import CURVE_POINTS, Trained
from phase8.train.shape import Shape, suited
from phase8.train.text import training_text
from phase8.train.whole import TrainedStage, plan_of
from phase8.train.within_budget import StepDone

TEXT_SEED = 1
"""Added to the calibration's seed: training reads other text than the Hessians and the held-out sequences."""


def check_trained(source: SourceModel, stage: str, config: CompressionConfig) -> None:
    """Looks at what a trained stage is given before any work is done.

    Raises:
        ConfigError: the budget is below what structure and side information take, or `training.from_artifact` is of
            another model, or of a stage that this run does not train.
        ArtifactError: it cannot be read.
    """
    limit, budget = config.limit_of(stage), config.budget_of(stage, source.original_bytes)
    assert limit is not None and budget is not None  # the settings' own check
    _stage(source, stage, config, None, None).check(budget, f"{limit[0]}={limit[1]:g}")
    if (path := config.training.from_artifact) is None:
        return
    artifact, where = read_artifact(path), f"training.from_artifact={path}"
    if artifact.source["hash"] != source.content_hash:
        raise ConfigError("the artifact is of another model", where=where, fix="name one that was made from this model")
    trained = [name for name in NAMES if config.stage(name).enabled and config.stage(name).trained]
    if artifact.stage not in trained:
        raise ConfigError(
            f"the artifact is of the stage {artifact.stage}, which this run does not train",
            where=where,
            fix=f"name one of {' or '.join(trained)}",
        )


def train_whole(run: Context, stage: str, attempt: int, config: CompressionConfig) -> Trained:
    """The groups of a trained stage; of an earlier process where that one finished it."""
    path = run.journal.path(stage, attempt, "trained_1.p8")
    facts = path.with_suffix(".json")
    if run.journal.done(stage, attempt, "optimise"):
        found = recalled(run.tell, lambda: (read_groups(path), read_facts(facts)))
        if found is not None:
            return found
    with run.step("optimise", stage, attempt):
        groups, found_facts = _train(run, stage, attempt, config)
        write_facts(facts, found_facts)
        write_groups(path, groups, stage, run.source.parameter_count)
    return groups, found_facts


def _keep_so_far(run: Context, stage: str, whole: TrainedStage, budget: int) -> None:
    """What a stopped training had reached becomes an artifact, within its budget; no gate was asked about it."""
    groups = whole.so_far(budget)
    if groups is None:
        return
    directory = run.run_dir / STOPPED / stage
    artifact = write_artifact(directory, groups, run.source, stage=stage)
    text = f"{stage}: training stopped; what it had reached is {directory} ({artifact.size_bytes:,} bytes, not tested)"
    run.log("warning", f"{text}; resume={run.run_dir} trains on", stage)


def _before(run: Context, stage: str, attempt: int, path: str | None) -> Sequence[EncodedGroup]:
    """What training goes on from: a retry from the attempt before it, a first attempt from an artifact of this stage
    that the settings name; else nothing."""
    if attempt > 1:
        return read_artifact(directory_of(run.run_dir, stage, attempt - 1)).groups
    artifact = None if path is None else read_artifact(path)
    if artifact is None or artifact.stage != stage:
        return ()
    run.log("info", f"{stage} trains on from {path}, {artifact.ratio:.1f}x", stage)
    return artifact.groups


def _stage(
    source: SourceModel,
    stage: str,
    config: CompressionConfig,
    tokens: Tensor | None,
    cache_dir: Path | None,
    before: Sequence[EncodedGroup] = (),
) -> TrainedStage:
    settings = config.stage(stage)
    lattice = isinstance(settings, HyperConfig) and settings.trajectory_type is Trajectory.lattice
    return TrainedStage(
        source,
        tokens,
        shape=_shape(source, settings, config.budget_of(stage, source.original_bytes) or 0) if lattice else Shape(),
        start_step=settings.start_step if lattice else 0.0,
        size=lambda groups: size_of(groups, source, stage),
        protected=[name for name in source.matrices() if is_protected(name, config.protect)],
        cache_dir=cache_dir,
        kept_answers=config.training.kept_answers,
        trained_before=before,
        codes=None if lattice else (stage, settings),
        seed=config.seed,
    )


def _shape(source: SourceModel, settings: HyperConfig, budget_bytes: int) -> Shape:
    return suited(
        source.network,
        budget_bytes,
        settings.kept_bits,
        width=settings.kept_width,
        units=settings.kept_units,
        heads=settings.kept_heads,
        head_size=settings.kept_head_size,
        shared=settings.shared_layers,
    )


def _train(run: Context, stage: str, attempt: int, config: CompressionConfig) -> Trained:
    budget = config.budget_of(stage, run.source.original_bytes)
    assert budget is not None
    settings = config.training
    readable = settings.steps * settings.batch_sequences  # sequences; what is not read needs no answer
    if attempt > 1:
        settings = replace(settings, steps=max(1, round(settings.steps * settings.retry_share)))
    text = training_text(
        run.source,
        model_path=run.source.name,
        path=config.calibration_text,
        sequences=min(settings.sequences, readable),
        length=run.calibration.length(config.optimizer),
        seed=CALIBRATION_SEED + TEXT_SEED + config.seed,
        part=attempt - 1,
        mix=settings.mix,
        cache=run.shared.cache,
        on_written=lambda done, total: run.progress("text", stage, done, total, f"{done} of {total} sequences written"),
    )
    run.log("info", f"{stage} trains on {text.told}", stage)
    before = _before(run, stage, attempt, settings.from_artifact)
    plan = plan_of(settings, config.grokfast, config.optimizer.precision, config.seed)
    gradient_filter = plan.grokfast.variant.value if plan.grokfast.enabled else GrokfastVariant.off.value

    def on_step(done: StepDone) -> None:
        size = round(done.estimated_bytes)
        text = f"loss {done.loss:.4f}, {size:,} bytes"
        run.progress("optimise", stage, done.step, done.steps, text)
        if done.step % max(1, done.steps // CURVE_POINTS) == 0 or done.step == done.steps:
            run.tell(
                TrainingProgress(
                    attempt=attempt,
                    step=done.step,
                    steps=done.steps,
                    loss=done.loss,
                    estimated_bytes=size,
                    budget_bytes=budget,
                    seconds_left=done.seconds_left,
                    filter=gradient_filter,
                ),
                stage,
            )

    whole = _stage(run.source, stage, config, text.tokens_NT, run.cache_dir, before)
    if whole.why_whole is None:
        run.log("info", f"{stage} keeps {whole.shape.told(run.source.network)}", stage)
    try:
        trained = whole.run(
            budget,
            plan,
            device=config.device,
            devices=config.devices,
            on_answers=lambda done, total: run.progress(
                "answers", stage, done, total, f"the original answers sequence {done} of {total}"
            ),
            on_step=on_step,
            checkpoint=run.journal.path(stage, attempt, "training"),
        )
    except (KeyboardInterrupt, RunStopped):
        _keep_so_far(run, stage, whole, budget)
        raise
    outcome = trained.outcome
    for note in trained.notes:
        run.log("warning", f"{stage}: {note}", stage)
    if outcome.setbacks:
        run.log(
            "warning",
            f"{stage}: the loss was no number, or blew up, {outcome.setbacks} times; trained on more slowly",
            stage,
        )
    run.tell(
        TrainingComplete(
            attempt=attempt,
            steps=len(outcome.losses),
            loss=outcome.losses[-1] if outcome.losses else None,
            held_out_before=None,
            held_out_after=None,
            kept=not outcome.diverged,
            diverged=outcome.diverged,
            filter=gradient_filter,
            seconds=outcome.seconds,
        ),
        stage,
    )
    return trained.groups, {"filter": gradient_filter}
