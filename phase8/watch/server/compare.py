"""Several runs side by side: sizes against quality, retention per benchmark, settings that differ, and the export.

Everything is taken from the runs' events and settings. The difference of two runs' retentions on a benchmark is paired
item by item where both left their items' scores on disk (`pairs.py`).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

from phase8.watch.server.fold import BASELINE, Attempt, interval, mapping, number, text
from phase8.watch.server.library import Run
from phase8.watch.server.pairs import Items, items_of, paired_interval
from phase8.watch.server.schema import (
    BenchmarkRow,
    Benchmarks,
    Compared,
    ComparedTask,
    Comparison,
    Difference,
    DifferentSetting,
    FrontierPoint,
    Measured,
    RecommendationOf,
    Recommendations,
    StageMeasured,
)

NOT_COMPARED = ("paths.",)
"""Settings that differ between any two runs."""


def stages_of(run: Run) -> list[str]:
    """The compressing stages that began, in order."""
    return [stage for stage in run.fold.stages if stage != BASELINE]


def _also(data: Any) -> dict[str, float]:
    found = {text(name, 200): number(value) for name, value in mapping(data).items()}
    return {name: value for name, value in found.items() if value is not None}


def benchmarks(run: Run) -> Benchmarks:
    """Every benchmark at the baseline and at each stage's attempt that counts."""
    fold, names = run.fold, stages_of(run)
    before = fold.kept(BASELINE)
    tasks: dict[str, Any] = dict(before.results) if before else {}
    for stage in names:
        attempt = fold.kept(stage)
        for task, data in (attempt.results if attempt else {}).items():
            tasks.setdefault(task, data)
    rows = []
    for task, data in tasks.items():
        own = before.results.get(task) if before else None
        row = BenchmarkRow(
            task=task,
            role=text(data.get("role"), 64),
            n=number(data.get("n")),
            chance=number(data.get("chance")),
            informative=data.get("informative") is not False,
            baseline=_measured(own) if own is not None else None,
            stages={},
        )
        for stage in names:
            attempt = fold.kept(stage)
            found = attempt.results.get(task) if attempt else None
            if attempt is not None and found is not None:
                row.stages[stage] = StageMeasured(
                    **_measured(found).model_dump(),
                    attempt=attempt.number,
                    n=number(found.get("n")),
                    retention=number(found.get("retention")),
                    retention_interval=interval(found.get("retention_interval")),
                    retention_corrected=number(found.get("retention_corrected")),
                    retention_corrected_interval=interval(found.get("retention_corrected_interval")),
                )
        rows.append(row)
    return Benchmarks(stages=names, benchmarks=rows)


def _measured(data: Any) -> Measured:
    return Measured(score=number(data.get("score")), stderr=number(data.get("stderr")), also=_also(data.get("also")))


def recommendations(run: Run, stage: str) -> Recommendations:
    """What each failed attempt of a stage was advised to change."""
    found = []
    for attempt in run.fold.stages.get(stage, []):
        data = attempt.recommendation
        if data is not None:
            found.append(
                RecommendationOf(
                    attempt=attempt.number,
                    action=text(data.get("action")),
                    adjustments=dict(mapping(data.get("adjustments"))),
                    reason=text(data.get("reason"), 4000),
                )
            )
    return Recommendations(stage=stage, recommendations=found)


def compare(runs: Sequence[Run]) -> Comparison:
    """The runs side by side, in the given order."""
    return Comparison(
        runs=[run.summary() for run in runs],
        frontier=frontier(runs),
        benchmarks=_tasks(runs),
        differences=list(_differences(runs)),
        settings=different_settings({run.id: run.settings() for run in runs}),
    )


def frontier(runs: Iterable[Run]) -> list[FrontierPoint]:
    """Every attempt with a size and a mean core retention; those that no other one beats in both are marked."""
    points = []
    for run in runs:
        stages = mapping(mapping(run.fold.result).get("stages"))
        for stage in stages_of(run):
            told = mapping(stages.get(stage)).get("attempts")
            told = told if isinstance(told, list) else []
            for order, attempt in enumerate(run.fold.stages[stage]):
                retention = attempt.core_retention()
                if attempt.ratio is None or retention is None:
                    continue
                details = mapping(told[order]) if order < len(told) else {}
                points.append(
                    FrontierPoint(
                        run=run.id,
                        stage=stage,
                        attempt=attempt.number,
                        ratio=attempt.ratio,
                        bits_per_weight=attempt.bits_per_weight,
                        bytes=attempt.bytes,
                        core_retention=retention,
                        core_retention_interval=interval(details.get("core_retention_interval")),
                        threshold=attempt.threshold(),
                        passed=attempt.passed is True,
                        on_frontier=False,
                    )
                )
    for point in points:
        point.on_frontier = not any(
            (other.ratio, other.core_retention) != (point.ratio, point.core_retention)
            and other.ratio >= point.ratio
            and other.core_retention >= point.core_retention
            for other in points
        )
    return points


def answer(run: Run) -> tuple[str, Attempt] | None:
    """The stage and attempt that a run is judged by: what passed last, else what was tried last."""
    best = run.fold.best()
    if best is not None:
        return best
    tried = [(stage, run.fold.stages[stage][-1]) for stage in stages_of(run)]
    return tried[-1] if tried else None


def _tasks(runs: Sequence[Run]) -> list[ComparedTask]:
    answers = {run.id: answer(run) for run in runs}
    names: dict[str, str] = {}
    for found in answers.values():
        for task, data in (found[1].results if found else {}).items():
            names.setdefault(task, text(data.get("role"), 64))
    rows = []
    for task, role in names.items():
        values: dict[str, Compared | None] = {}
        for run, found in answers.items():
            data = found[1].results.get(task) if found else None
            values[run] = None
            if found is not None and data is not None:
                values[run] = Compared(
                    stage=found[0],
                    score=number(data.get("score")),
                    stderr=number(data.get("stderr")),
                    n=number(data.get("n")),
                    retention=number(data.get("retention")),
                    retention_interval=interval(data.get("retention_interval")),
                )
        rows.append(ComparedTask(task=task, role=role, values=values))
    return rows


def _differences(runs: Sequence[Run]) -> Iterable[Difference]:
    told = {run.id: _Items(run) for run in runs}
    for one, other in combinations(runs, 2):
        a, b = told[one.id], told[other.id]
        for task, data in a.results.items():
            left, right = number(data.get("retention")), number(mapping(b.results.get(task)).get("retention"))
            if left is None or right is None:
                continue
            spread = None
            if a.measured_with == b.measured_with and all(task in items for items in (*a.items, *b.items)):
                spread = paired_interval(a.items[0][task], b.items[0][task], a.items[1][task], b.items[1][task])
            yield Difference(
                task=task, a=one.id, b=other.id, difference=right - left, interval=spread, paired=spread is not None
            )


class _Items:
    """What a run's answer scored, item by item where that is on disk."""

    def __init__(self, run: Run) -> None:
        found = answer(run)
        self.results = found[1].results if found else {}
        self.items: tuple[dict[str, Items], dict[str, Items]] = ({}, {})
        if found is not None:
            self.items = items_of(run.directory, BASELINE, 1), items_of(run.directory, found[0], found[1].number)
        names = ("model.path", "benchmark_samples")
        self.measured_with = {n: v for n, v in run.settings().items() if n in names or n.startswith("benchmarks.")}


def different_settings(settings: dict[str, dict[str, Any]]) -> list[DifferentSetting]:
    """Settings that are not the same in all runs, by run; a setting that a run does not have is null there."""
    names = dict.fromkeys(name for found in settings.values() for name in found)
    rows = []
    for name in names:
        values = {run: found.get(name) for run, found in settings.items()}
        distinct = {repr(value) for value in values.values()}
        if len(distinct) > 1 and not name.startswith(NOT_COMPARED):
            rows.append(DifferentSetting(name=name, values=values))
    return rows


CSV_COLUMNS = (
    "run", "stage", "attempt", "passed", "bytes", "ratio", "bits_per_weight", "task", "role", "n", "chance", "score",
    "stderr", "retention", "retention_low", "retention_high", "retention_corrected", "informative",
)  # fmt: skip


def export_csv(run: Run) -> str:
    """A row for each stage, attempt and benchmark."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for stage, attempts in run.fold.stages.items():
        for attempt in attempts:
            for task, data in attempt.results.items():
                low, high = interval(data.get("retention_interval")) or (None, None)
                passed = "" if attempt.passed is None else str(attempt.passed).lower()
                writer.writerow(
                    _cell(value)
                    for value in (
                        run.name, stage, attempt.number, passed, attempt.bytes, attempt.ratio, attempt.bits_per_weight,
                        task, text(data.get("role")), number(data.get("n")), number(data.get("chance")),
                        number(data.get("score")), number(data.get("stderr")), number(data.get("retention")), low,
                        high, number(data.get("retention_corrected")), data.get("informative") is not False,
                    )
                )  # fmt: skip
    return out.getvalue()


def _cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return int(value)
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return "" if value is None else value


def export_json(run: Run) -> dict[str, Any]:
    """Summary, settings, benchmarks, gates and result."""
    gates = {
        stage: [{"attempt": attempt.number, **dict(attempt.gate)} for attempt in attempts if attempt.gate is not None]
        for stage, attempts in run.fold.stages.items()
        if stage != BASELINE
    }
    return {
        "summary": run.summary().model_dump(mode="json"),
        "settings": run.settings(),
        "benchmarks": benchmarks(run).model_dump(mode="json"),
        "gates": gates,
        "result": dict(run.fold.result) if run.fold.result is not None else None,
    }
