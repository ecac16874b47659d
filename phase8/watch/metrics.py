"""A run's metrics under the names of the specification (section 7), and a tracker that needs no account.

`LocalTracker` leaves two files in the run's directory, with the names and values that W&B gets: `metrics.jsonl`, an
object a line (one per attempt, one per point of a training, and the summary last), and `metrics.csv`, one row per
attempt.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from phase8.events import Event, PhaseComplete, StageComplete, TrainingComplete, TrainingProgress
from phase8.files import write_atomic
from phase8.watch.view import BASELINE, RULES, RunView, Stage, mapping, number


def training_metrics(stage: str, data: TrainingProgress | TrainingComplete) -> dict[str, float]:
    """One point of a training: loss, and the divergence on held-out text where it was measured."""
    divergence = data.held_out_after if isinstance(data, TrainingComplete) else data.divergence
    figures = {"loss": data.loss, "divergence": divergence}
    return {f"optimisation/{stage}/{name}": value for name, value in figures.items() if value is not None}


def stage_metrics(stage: Stage, original_bytes: float | None) -> dict[str, Any]:
    """The metrics of a stage's latest attempt; those that were not measured are left out."""
    attempt = stage.last
    if attempt is None:
        return {}
    metrics: dict[str, Any] = {"stage": stage.name, "attempt": attempt.order}
    metrics |= {
        "compression_ratio": attempt.ratio,
        "compressed_size_mb": _megabytes(attempt.compressed_bytes),
        "original_size_mb": _megabytes(original_bytes),
    }
    for result in attempt.results.values():
        metrics[result.task] = result.score
        if result.retention is not None:
            metrics[f"retention/{result.task}"] = result.retention
            metrics[f"degradation/{result.task}"] = 1 - result.retention
        if "edge_of_chaos" in result.task:
            metrics["edge_of_chaos/accuracy"] = result.score
    for check in attempt.checks:  # a suite scores eudaimonia as one task; the gate judges rule by rule
        if check.name.startswith("rule/"):
            metrics[f"eudaimonia/{check.name.removeprefix('rule/')}"] = check.value
    if attempt.gate is not None:
        metrics["bits_per_byte"] = attempt.gate.bits_per_byte
        failed = [check for check in attempt.checks if check.passed is False]
        metrics["overall_passed"] = attempt.passed
        metrics["num_failed_benchmarks"] = sum(check.name.startswith("benchmark/") for check in failed)
    elif stage.name == BASELINE and attempt.complete is not None:
        metrics["bits_per_byte"] = attempt.complete.bits_per_byte
    return {name: value for name, value in metrics.items() if value is not None}


def final_metrics(result: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of a run from the content of its `result.json`."""
    metrics = mapping(result.get("metrics"))
    summary = {name: value for name, value in result.items() if isinstance(value, str | int | float | bool)}
    summary |= {name: value for name, value in metrics.items() if number(value) is not None}
    accuracy = number(mapping(metrics.get("edge_of_chaos")).get("accuracy"))
    if accuracy is not None:
        summary["edge_of_chaos/accuracy"] = accuracy
    for rule in RULES:
        value = number(mapping(metrics.get("eudaimonia")).get(rule))
        if value is not None:
            summary[f"eudaimonia/{rule}"] = value
    return summary


def _megabytes(count: float | None) -> float | None:
    return None if count is None else count / 1e6


class LocalTracker:
    """Listener that keeps a run's metrics as files; a run that goes on writes them whole again, with what went before.

    Args:
        run_dir: the run's directory.
    """

    def __init__(self, run_dir: Path | str) -> None:
        self.directory = Path(run_dir)
        self.view = _Replayed(self)
        self.rows: list[dict[str, Any]] = []

    def __enter__(self) -> LocalTracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.write()

    def __call__(self, event: Event) -> None:
        self.view.feed(event)
        if isinstance(event.data, StageComplete | PhaseComplete):
            self.write()

    def take(self, event: Event, view: RunView) -> None:
        """Adds what an event says to the rows."""
        match event.data:
            case TrainingProgress() | TrainingComplete() as data if event.stage is not None:
                self.rows.append({"time": event.time, **training_metrics(event.stage, data)})
            case StageComplete() if event.stage is not None:
                self.rows.append({"time": event.time, **stage_metrics(view.stages[event.stage], view.original_bytes)})
            case PhaseComplete():
                self.rows.append({"time": event.time, "summary": final_metrics(mapping(view.result))})

    def write(self) -> None:
        """Writes both files.

        Raises:
            OutputError: they cannot be written.
        """
        lines = "".join(json.dumps(row, allow_nan=False, default=str) + "\n" for row in self.rows)
        write_atomic(self.directory / "metrics.jsonl", lines)
        attempts = [row for row in self.rows if "stage" in row]
        names = list(dict.fromkeys(name for row in attempts for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(attempts)
        write_atomic(self.directory / "metrics.csv", text.getvalue())


class _Replayed(RunView):
    """A view that hands every event on, also those of an earlier process of the run."""

    def __init__(self, tracker: LocalTracker) -> None:
        super().__init__()
        self._tracker = tracker

    def feed(self, event: Event) -> None:
        super().feed(event)
        self._tracker.take(event, self)
