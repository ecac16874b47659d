"""Scoring a network on the run's benchmarks, told as it happens."""

from __future__ import annotations

from typing import Any

from phase8.benchmarks.evaluate import Score, SuiteResult, evaluate
from phase8.run.context import Context
from phase8.run.tell import benchmark_result


def score(run: Context, network: Any, stage: str, attempt: int) -> SuiteResult:
    """Runs every benchmark of the suite.

    Args:
        network: a causal LM of transformers.
        stage: `baseline` for the original.

    Raises:
        BenchmarkError: a benchmark cannot be run.
        RunStopped: the run is to end.
    """
    assert run.suite is not None
    order = {task.name: index for index, task in enumerate(run.suite.tasks)}

    def on_progress(task: str, done: int, total: int) -> None:
        whole = order[task] + (done / total if total else 1.0)
        text = f"{task}, {done} of {total} samples"
        run.progress("evaluate", stage, round(1000 * whole), 1000 * len(order), text)

    return evaluate(
        network,
        run.source.tokenizer,
        run.suite,
        batch_tokens=run.config.benchmarks.batch_tokens,
        on_task=lambda found: tell_score(run, found, stage, attempt),
        on_progress=on_progress,
    )


def tell_score(run: Context, found: Score, stage: str, attempt: int) -> None:
    """Writes the event of one benchmark's score."""
    baseline = None if stage == "baseline" or run.baseline is None else run.baseline.scores.get(found.task)
    run.tell(benchmark_result(found, attempt, baseline), stage)
