"""Training a stage's encoded groups against the original, told as it happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from phase8.codecs import EncodedGroup
from phase8.config import CompressionConfig, GrokfastConfig, GrokfastVariant
from phase8.events import TrainingComplete, TrainingProgress, TrainingRestart
from phase8.run.context import Context
from phase8.run.journal import read_facts, read_groups, recalled, write_facts, write_groups
from phase8.train.reconstruct import ReconstructionResult, reconstruct

CURVE_POINTS = 50
"""Of a training in the log, about."""

Trained = tuple[list[EncodedGroup], dict[str, Any]]
"""Groups, and facts as plain values: `filter`, that of the training they come from (`off` also where none is kept),
and `restart`, the fields of the event that told of a training begun anew without the filter."""


def trained(
    run: Context,
    stage: str,
    attempt: int,
    config: CompressionConfig,
    encoded: Callable[[], Sequence[EncodedGroup]],
    round: int = 1,
) -> Trained:
    """The groups after training; of an earlier process where that one finished it.

    Args:
        encoded: gives the groups before training; asked only where they are to be trained now.
    """
    path = run.journal.path(stage, attempt, f"trained_{round}.p8")
    facts = path.with_suffix(".json")
    if run.journal.done(stage, attempt, "optimise", round):
        found = recalled(run.tell, lambda: (read_groups(path), read_facts(facts)))
        if found is not None:
            return found

    def keep(result: Trained) -> Trained:
        write_facts(facts, result[1])
        write_groups(path, result[0], stage, run.source.parameter_count)
        return result

    def train_now() -> Trained:
        groups = encoded()
        with run.step("optimise", stage, attempt, round):
            return keep(_optimise(run, stage, attempt, groups, config))

    if config.limit_of(stage) is not None:  # within a budget the groups hang on more than the settings
        return train_now()
    filtered = stage not in run.journal.unfiltered
    result, taken = run.shared.trained(stage, config, run.calibration.tokens(config), filtered, train_now)
    if taken:
        with run.step("optimise", stage, attempt, round):
            if (restart := result[1].get("restart")) is not None:
                _tell_restart(run, stage, TrainingRestart(**{**restart, "attempt": attempt}))
            keep(result)
    return result


def _optimise(
    run: Context, stage: str, attempt: int, groups: Sequence[EncodedGroup], config: CompressionConfig
) -> Trained:
    """Trains the groups; where the filtered training made the held-out divergence worse, once more unfiltered."""
    grokfast = config.grokfast
    if grokfast.iterations == 0:
        return list(groups), {"filter": GrokfastVariant.off.value}
    restart = None
    if stage in run.journal.unfiltered:
        grokfast = replace(grokfast, enabled=False)
    outcome = _train(run, stage, attempt, groups, config, grokfast)
    if not outcome.kept and grokfast.enabled and grokfast.variant is not GrokfastVariant.off:
        reason = (
            f"Grokfast-filtered training raised the held-out divergence from {outcome.held_out_before:.4f} to "
            f"{outcome.held_out_after:.4f}; training again without the filter"
        )
        restart = TrainingRestart(
            attempt=attempt,
            filter=grokfast.variant.value,
            held_out_before=outcome.held_out_before,
            held_out_after=outcome.held_out_after,
            reason=reason,
        )
        _tell_restart(run, stage, restart)
        grokfast = replace(grokfast, enabled=False)
        outcome = _train(run, stage, attempt, groups, config, grokfast)
    filtered = outcome.kept and grokfast.enabled
    kept = grokfast.variant.value if filtered else GrokfastVariant.off.value
    return list(outcome.groups), {"filter": kept, "restart": None if restart is None else asdict(restart)}


def _tell_restart(run: Context, stage: str, restart: TrainingRestart) -> None:
    """The stage's further trainings leave the filter out."""
    run.tell(restart, stage)
    run.journal.unfiltered.add(stage)


def _train(
    run: Context,
    stage: str,
    attempt: int,
    groups: Sequence[EncodedGroup],
    config: CompressionConfig,
    grokfast: GrokfastConfig,
) -> ReconstructionResult:
    training, held_out = run.calibration.tokens(config)
    steps = grokfast.iterations
    gradient_filter = grokfast.variant.value if grokfast.enabled else GrokfastVariant.off.value
    begin = time.monotonic()

    def on_step(step: int, loss: float) -> None:
        run.progress("optimise", stage, step, steps, f"loss {loss:.4f}")
        if step % max(1, steps // CURVE_POINTS) == 0 or step == steps:
            left = (steps - step) * (time.monotonic() - begin) / step
            run.tell(
                TrainingProgress(
                    attempt=attempt, step=step, steps=steps, loss=loss, seconds_left=left, filter=gradient_filter
                ),
                stage,
            )

    outcome = reconstruct(
        run.source.network,
        list(groups),
        calibration=training,
        held_out=held_out,
        config=config.optimizer,
        grokfast=grokfast,
        seed=config.seed,
        device=config.device,
        on_step=on_step,
    )
    run.tell(
        TrainingComplete(
            attempt=attempt,
            steps=len(outcome.losses),
            loss=outcome.losses[-1] if outcome.losses else None,
            held_out_before=outcome.held_out_before,
            held_out_after=outcome.held_out_after,
            kept=outcome.kept,
            diverged=outcome.diverged,
            filter=gradient_filter,
            seconds=outcome.seconds,
        ),
        stage,
    )
    return outcome
