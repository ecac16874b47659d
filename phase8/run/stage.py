"""A stage with its retries: attempt, gate, recommendation, and once more with what was recommended."""

from __future__ import annotations

import time
from dataclasses import asdict

from phase8.config import CompressionConfig, Fallback
from phase8.events import Recommended, RetryStart, StageComplete, StageStart
from phase8.run.attempt import make_attempt
from phase8.run.context import Context
from phase8.run.machine import peak_memory_mb
from phase8.run.result import Attempt, text_name
from phase8.run.retry import Recommendation, adjust, recommend
from phase8.run.sensitivity import measure_sensitivity
from phase8.run.tell import quality_gate


def run_stage(run: Context, stage: str, attempts: list[Attempt], stage_input: Attempt | None) -> bool:
    """Runs a stage with its retries.

    Args:
        attempts: each attempt is added as soon as it is judged.
        stage_input: the attempt that passed last; None for the original.

    Returns:
        Whether the descent goes on.

    Raises:
        Phase8Error: bad settings or output.
        RunStopped: the run is to end.
    """
    assert run.baseline is not None
    config = run.config
    for number in range(1, run.config.max_retries + 2):
        begin = time.monotonic()
        told = run.journal.complete(stage, number) is not None
        if not told:
            run.tell(StageStart(attempt=number), stage)
        attempt = make_attempt(run, stage, number, config, stage_input)
        attempts.append(attempt)
        verdict = attempt.verdict
        if not told:
            run.tell(quality_gate(number, verdict, attempt.result, run.baseline, text_name(run.config)), stage)
        last = verdict.passed or verdict.abort is not None or number > run.config.max_retries
        if not last:
            advice = attempt.recommendation = _advice(run, attempt, config)
            last = not advice.adjustments
        if not told:
            run.tell(
                StageComplete(
                    attempt=number,
                    passed=verdict.passed,
                    seconds=time.monotonic() - begin,
                    artifact=str(attempt.directory),
                    final=last,
                    peak_memory_mb=peak_memory_mb(),
                ),
                stage,
            )
        if last:
            if not verdict.passed and run.config.fallback is Fallback.manual:
                run.control.ask("gate", stage, f"{stage} failed its gate for good: run falls back, abort stops here")
            return verdict.passed
        config = adjust(config, advice)
        if not run.journal.retried(stage, number + 1):
            run.tell(RetryStart(attempt=number + 1, **asdict(advice)), stage)
    return False


def _advice(run: Context, attempt: Attempt, config: CompressionConfig) -> Recommendation:
    """What to change; of an earlier process where that one found it."""
    stage, number = attempt.stage, attempt.number
    known = run.journal.advice(stage, number)
    if known is not None:
        return Recommendation(action=known.action, adjustments=dict(known.adjustments), reason=known.reason)
    advice = recommend(stage, config, attempt.verdict, measure_sensitivity(run, config, attempt))
    run.tell(Recommended(attempt=number, **asdict(advice)), stage)
    return advice
