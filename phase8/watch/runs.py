"""Several runs side by side, from their directories alone: figures, frontier, retention per benchmark, settings.

A directory gives what it has: `result.json` of a run that ended, `config.yaml` of one that began, `job.json` of a job
of a multirun, with the reason of a failure. Two runs' retentions are compared item by item where their directories hold
the items' scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from phase8.errors import ArtifactError
from phase8.files import read_bounded
from phase8.watch.server.pairs import Items, items_of, paired_interval
from phase8.watch.view import interval, mapping, number

MAX_BYTES = 64 << 20
PLACES = ("paths.", "logger.")
"""Settings that say where and for whom, not what."""


@dataclass(frozen=True, slots=True)
class Point:
    """One attempt at one stage of one run: fractions and 95 % intervals."""

    run: int
    stage: str
    attempt: int
    ratio: float
    size_bytes: float | None
    bits_per_weight: float | None
    retention: float | None
    retention_interval: tuple[float, float] | None
    corrected: float | None
    passed: bool
    kept: bool
    """Whether it is the run's answer."""
    on_frontier: bool = False
    """No attempt of the other runs is both smaller and better."""


@dataclass(slots=True)
class Run:
    """What is known of one run."""

    name: str
    directory: Path
    result: Mapping[str, Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    """Flat, by dotted name."""
    state: str = "COMPLETE"
    reason: str = ""
    overrides: list[str] = field(default_factory=list)

    @property
    def metrics(self) -> Mapping[str, Any]:
        return mapping(mapping(self.result).get("metrics"))

    @property
    def ratio(self) -> float | None:
        """Of the artifact kept; 1 where none passed."""
        return number(self.metrics.get("total_compression_ratio"))

    @property
    def retention(self) -> float | None:
        """Mean core retention of the artifact kept."""
        return number(self.metrics.get("core_retention"))


def read_runs(directories: Sequence[Path | str]) -> list[Run]:
    """Reads run directories; a directory of several (a multirun, a study) stands for those inside.

    Raises:
        ArtifactError: a directory is no run and holds none, or a file is damaged.
    """
    found: list[Path] = []
    for given in map(Path, directories):
        inside = [given] if _is_run(given) else sorted(p for p in given.glob("*") if p.is_dir() and _is_run(p))
        if not inside:
            raise ArtifactError(
                "no run is there: no result.json, config.yaml or job.json",
                where=str(given),
                fix="name run directories, usually outputs/DATE/TIME, or a multirun's",
            )
        found += [path for path in inside if path not in found]
    names = _short_names(found)
    return [read_run(path, name) for path, name in zip(found, names, strict=True)]


def _is_run(directory: Path) -> bool:
    return any((directory / name).is_file() for name in ("result.json", "config.yaml", "job.json"))


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as it takes to tell them apart."""
    for parts in range(1, 6):
        names = ["/".join(path.absolute().parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def read_run(directory: Path, name: str) -> Run:
    """Reads one run's directory, whatever it holds.

    Raises:
        ArtifactError: a file is damaged.
    """
    run = Run(name, directory)
    if (result := _json(directory / "result.json")) is not None:
        run.result = result
    job = _json(directory / "job.json") or {}
    run.overrides = [str(text) for text in job.get("overrides", []) if isinstance(text, str)]
    path = directory / "config.yaml"
    if path.is_file():
        try:
            settings = yaml.safe_load(read_bounded(path, 1 << 20, error=ArtifactError))
        except yaml.YAMLError as error:
            raise ArtifactError(f"not YAML: {error}", where=str(path), fix="run again") from error
        run.settings = flat(mapping(settings))
    if run.result is None or job.get("state", "COMPLETE") != "COMPLETE":
        run.state = str(job.get("state", "NOT FINISHED"))
        run.reason = str(job.get("reason") or "the run has no result.json: it is still going, or was killed")
    elif run.result.get("interrupted") is True:
        run.state, run.reason = "INTERRUPTED", "ended early; the figures are those of what was done by then"
    return run


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(read_bounded(path, MAX_BYTES, error=ArtifactError))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"not JSON: {error}", where=str(path), fix="run again") from error
    if not isinstance(content, dict):
        raise ArtifactError("the file holds no JSON object", where=str(path), fix="run again")
    return content


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


# Figures ---------------------------------------------------------------------------------------------------------


def points(runs: Sequence[Run]) -> list[Point]:
    """Every measured attempt of every run, with the frontier marked (raw retention against ratio)."""
    found = []
    for index, run in enumerate(runs):
        answer = mapping(run.result).get("artifact")
        for stage, content in mapping(mapping(run.result).get("stages")).items():
            for attempt in mapping(content).get("attempts", []):
                ratio = number(attempt.get("ratio"))
                if ratio is None or ratio <= 0:
                    continue
                found.append(
                    Point(
                        run=index,
                        stage=str(stage),
                        attempt=int(attempt.get("attempt", 1)),
                        ratio=ratio,
                        size_bytes=number(attempt.get("bytes")),
                        bits_per_weight=number(attempt.get("bits_per_weight")),
                        retention=number(attempt.get("core_retention")),
                        retention_interval=interval(attempt.get("core_retention_interval")),
                        corrected=number(attempt.get("core_retention_corrected")),
                        passed=attempt.get("passed") is True,
                        kept=answer is not None and attempt.get("artifact") == answer,
                    )
                )
    return mark_frontier(found)


def mark_frontier(found: Sequence[Point]) -> list[Point]:
    """The points with `on_frontier` set where no other is at least as small and as good, and better in one."""

    def beaten(point: Point) -> bool:
        if point.retention is None:
            return True
        return any(
            other.retention is not None
            and other.ratio >= point.ratio
            and other.retention >= point.retention
            and (other.ratio > point.ratio or other.retention > point.retention)
            for other in found
        )

    return [replace(point, on_frontier=not beaten(point)) for point in found]


def differing_settings(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Settings that are not the same in all runs, by dotted name: one value per run, None where it is unknown."""
    names = sorted({name for run in runs for name in run.settings})
    found = {}
    for name in names:
        values = [run.settings.get(name) for run in runs]
        if not name.startswith(PLACES) and any(value != values[0] for value in values):
            found[name] = values
    return found


@dataclass(frozen=True, slots=True)
class Retained:
    """What one run kept of one benchmark: its answer's score / the baseline's, with the 95 % interval over items."""

    score: float | None
    baseline: float | None
    n: float | None
    retention: float | None
    interval: tuple[float, float] | None
    corrected: float | None
    informative: bool


def benchmarks(runs: Sequence[Run]) -> dict[str, list[Retained | None]]:
    """By benchmark, one entry per run."""
    names: dict[str, None] = {}
    for run in runs:
        names |= dict.fromkeys(mapping(run.metrics.get("benchmarks")))
    return {name: [_retained(mapping(run.metrics.get("benchmarks")).get(name)) for run in runs] for name in names}


def _retained(row: Any) -> Retained | None:
    if not isinstance(row, Mapping):
        return None
    return Retained(
        score=number(row.get("final")),
        baseline=number(row.get("baseline")),
        n=number(row.get("n")),
        retention=number(row.get("retention")),
        interval=interval(row.get("retention_interval")),
        corrected=number(row.get("retention_corrected")),
        informative=row.get("informative") is not False,
    )


@dataclass(frozen=True, slots=True)
class Difference:
    """Retention of run `b` minus retention of run `a` on one benchmark; the interval is 95 %, paired over the items,
    or None where the items' scores are not on disk or not of the same items."""

    task: str
    a: int
    b: int
    value: float
    interval: tuple[float, float] | None


def differences(runs: Sequence[Run], *, against: int = 0) -> list[Difference]:
    """Every run's answer against that of one of them, per benchmark."""
    baselines = [items_of(run.directory, "baseline", 1) for run in runs]
    answers = [_answer_items(run) for run in runs]
    found = []
    for task, row in benchmarks(runs).items():
        first = row[against]
        for index, second in enumerate(row):
            before, after = (None if one is None else one.retention for one in (first, second))
            if index == against or before is None or after is None:
                continue
            items = [source.get(task) for i in (against, index) for source in (baselines[i], answers[i])]
            known = [item for item in items if item is not None]
            bounds = paired_interval(known[0], known[2], known[1], known[3]) if len(known) == len(items) else None
            found.append(Difference(task, against, index, after - before, bounds))
    return found


def _answer_items(run: Run) -> dict[str, Items]:
    kept = next((point for point in points([run]) if point.kept), None)
    return items_of(run.directory, "baseline", 1) if kept is None else items_of(run.directory, kept.stage, kept.attempt)


def best_of(runs: Sequence[Run]) -> Run | None:
    """The run whose kept artifact is smallest; of equals the one that keeps more."""
    kept = [run for run in runs if run.ratio is not None and mapping(run.result).get("artifact")]
    return max(kept, key=lambda run: (run.ratio or 0, run.retention or 0), default=None)
