"""`report.html`: one self-contained page about a run, for a phone or a wide screen, light or dark.

Reads the run's directory and nothing else: `events.jsonl`, `result.json` and `config.yaml`, whichever of them are
there. A run that was interrupted, fell back or is still going gives a report of what there is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from phase8.errors import ArtifactError
from phase8.events import (
    Activity,
    Event,
    LogStart,
    PhaseComplete,
    TrainingProgress,
    plain,
    read_events,
)
from phase8.files import read_bounded, write_atomic
from phase8.watch import plots
from phase8.watch.sections import (
    answer_of,
    benchmark_table,
    criteria_of,
    criteria_table,
    figures_html,
    gate_tables,
    informative_of,
    integration_table,
    metrics_of,
)
from phase8.watch.style import page_style
from phase8.watch.view import RunView, interval, mapping, number
from phase8.watch.wording import (
    clean,
    figure,
    percent,
    seconds,
    settings,
    size,
    stage_name,
    times,
    words,
)

MAX_RESULT_BYTES = 64 * 2**20
MAX_CONFIG_BYTES = 2**20
MAX_LISTED_EVENTS = 1000
"""Events shown in the list; the log itself has all."""


def write_report(run_dir: Path | str) -> Path:
    """Writes `report.html` into a run's directory.

    Returns:
        Its path.

    Raises:
        ArtifactError: there is neither an event log nor a result, or one of the files is damaged.
        OutputError: the report cannot be written; an older one stays.
    """
    run_dir = Path(run_dir)
    log, result_path, config_path = (run_dir / name for name in ("events.jsonl", "result.json", "config.yaml"))
    if not log.exists() and not result_path.exists():
        raise ArtifactError(
            "no run to report on: neither events.jsonl nor result.json is there",
            where=str(run_dir),
            fix="name the directory of a run, usually outputs/DATE/TIME",
        )
    events = read_events(log) if log.exists() else []
    view = RunView.of(events)
    if result_path.exists():
        view.result = _read_result(result_path)
    config = None
    if config_path.exists():
        config = read_bounded(config_path, MAX_CONFIG_BYTES, error=ArtifactError).decode(errors="replace")
    return write_atomic(run_dir / "report.html", render(view, events, config))


def _read_result(path: Path) -> Mapping[str, Any]:
    fix = "delete it to report from the event log alone, or run again"
    try:
        result = json.loads(read_bounded(path, MAX_RESULT_BYTES, error=ArtifactError, fix=fix))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"not a result: {error}", where=str(path), fix=fix) from error
    if not isinstance(result, dict):
        raise ArtifactError("not a result: the file holds no JSON object", where=str(path), fix=fix)
    return result


def render(view: RunView, events: Sequence[Event], config: str | None = None) -> str:
    """The page as one string of HTML."""
    title = " · ".join(part for part in ("Phase 8", clean(view.compressor), clean(view.model)) if part)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="verdict">{escape(verdict(view))}</p>',
        f'<p class="soft">{escape(_about(view))}</p>',
        _tiles(view),
        criteria_table(view),
        figures_html("two", plots.drawn(view, (plots.size_by_stage, plots.quality_against_ratio))),
        benchmark_table(view),
        gate_tables(view),
        integration_table(view),
        _where(view),
        _details(view, events, config),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{page_style()}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def verdict(view: RunView) -> str:
    """What came out, in plain words, with the figures."""
    if view.result is None:
        return _unfinished(view)
    metrics = metrics_of(view)
    answer = answer_of(view)
    parts = []
    if view.result.get("interrupted") is True:
        parts.append("The run was interrupted; what follows is what was done by then.")
    kept = answer.kept if answer is not None else None
    if answer is None:
        parts.append("No stage passed its gate: the input model stays the answer, uncompressed.")
    else:
        ratio = number(metrics.get("total_compression_ratio"))
        sentence = f"{stage_name(answer.name)} is the level reached: {times(ratio)} smaller than the FP32 input"
        if kept is not None and kept.compressed_bytes is not None:
            sentence += f" ({size(kept.compressed_bytes)})"
        raw, corrected = number(metrics.get("core_retention")), number(metrics.get("core_retention_corrected"))
        if raw is not None:
            sentence += f", keeping {percent(raw)} of the core scores"
            sentence += f" ({percent(corrected)} chance-corrected)" if corrected is not None else ""
        parts.append(sentence + ".")
    criteria = criteria_of(view)
    if criteria:
        held = sum(item.passed is True for item in criteria)
        if held == len(criteria):
            parts.append(f"All {len(criteria)} success criteria hold.")
        else:
            missed = [item for item in criteria if item.passed is False]
            idle = [item for item in criteria if item.passed not in (True, False)]
            lists = [
                f"{label}: {', '.join(words(item.name) for item in items)}"
                for label, items in (("not met", missed), ("could not be judged", idle))
                if items
            ]
            parts.append(f"{held} of {len(criteria)} success criteria hold; {'; '.join(lists)}.")
    telling, core = informative_of(view)
    if telling < core:
        parts.append(f"Only {telling} of {core} core benchmarks are informative.")
    return " ".join(parts)


def _unfinished(view: RunView) -> str:
    place = "before any stage began"
    if view.current is not None:
        stage = view.stages[view.current]
        step = f", step {words(stage.step)}" if stage.step else ""
        place = f"in stage {stage_name(view.current)}{step}"
    elif view.stages:
        place = f"after stage {stage_name(list(view.stages)[-1])}"
    kept = [stage_name(stage.name) for stage in view.compressing if stage.kept is not None]
    outcome = f"Passed so far: {', '.join(kept)}." if kept else "No stage had passed its gate."
    return f"This run has no result: its log ends {place}. {outcome}"


def _about(view: RunView) -> str:
    parts = []
    if view.first_time is not None and 0 <= view.first_time < 4e10:
        parts.append("Started " + time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(view.first_time)))
    taken = number(mapping(view.result).get("seconds"))
    if taken is None and view.first_time is not None and view.last_time is not None:
        taken = view.last_time - view.first_time
    if taken is not None:
        parts.append(f"{seconds(taken)} long")
    peak = number(mapping(view.result).get("peak_memory_mb"))
    if peak is not None:
        parts.append(f"{peak:,.0f} MB of memory at the most")
    if view.parameters is not None:
        parts.append(f"{view.parameters:,.0f} parameters")
    techniques = mapping(view.result).get("techniques_applied")
    if isinstance(techniques, list) and techniques:
        parts.append("techniques: " + ", ".join(clean(name) for name in techniques))
    hardware = mapping(view.result).get("recommended_hardware")
    if hardware:
        parts.append(f"recommended hardware: {clean(hardware)}")
    return ". ".join([parts[0], ", ".join(parts[1:])]) + "." if len(parts) > 1 else "".join(parts)


def _tiles(view: RunView) -> str:
    """The key figures of the answer; without a result, of the stage that went furthest."""
    metrics, result = metrics_of(view), mapping(view.result)
    stage = answer_of(view)
    if stage is None and view.result is None:
        stage = view.compressing[-1] if view.compressing else None
    attempt = stage.shown if stage else None
    tiles: list[tuple[str, str, str]] = []
    if stage is not None and attempt is not None:
        ratio = number(metrics.get("total_compression_ratio"))
        ratio = attempt.ratio if ratio is None else ratio
        short = number(metrics.get("ratio_vs_16bit"))
        bits = number(metrics.get("bits_per_weight"))
        raw, corrected = number(metrics.get("core_retention")), number(metrics.get("core_retention_corrected"))
        raw = attempt.core_retention() if raw is None else raw
        corrected = attempt.core_retention(corrected=True) if corrected is None else corrected
        tiles += [
            ("Level" if view.result is not None else "Latest stage", stage_name(stage.name), ""),
            ("Size", size(attempt.compressed_bytes), f"of {size(view.original_bytes)} in FP32"),
            ("Ratio", times(ratio), f"{times(short)} against 16 bit" if short is not None else ""),
            ("Bits per weight", figure(attempt.bits_per_weight if bits is None else bits), ""),
            ("Core retention", percent(raw), "raw"),
            ("Core retention", percent(corrected), "chance-corrected"),
        ]
    elif view.result is not None:
        tiles += [("Level", "none", "input model kept"), ("Size", size(view.original_bytes), "FP32")]
    latency = number(result.get("inference_latency_estimate_ms"))
    if latency is not None:
        tiles.append(("Latency, estimated", f"{figure(latency)} ms", "per token, target device"))
    if isinstance(result.get("production_ready"), bool):
        tiles.append(("Production ready", figure(result["production_ready"]), ""))
    cells = "".join(
        f'<div class="tile"><span>{escape(label)}</span><b>{escape(value)}</b>'
        + (f"<small>{escape(note)}</small>" if note else "")
        + "</div>"
        for label, value, note in tiles
    )
    return f'<div class="tiles">{cells}</div>' if tiles else ""


def _where(view: RunView) -> str:
    figures = figures_html("two", plots.drawn(view, (plots.bytes_by_group, plots.time_per_step, plots.loss_curves)))
    held_out = [
        f"{name}: {figure(attempt.held_out[0])} to {figure(attempt.held_out[1])}"
        for _stage, attempt, name in plots.attempts(view)
        if attempt.held_out is not None
    ]
    if held_out:
        figures += f'<p class="soft">Held-out loss before and after optimisation. {escape("; ".join(held_out))}.</p>'
    return f"<h2>Bytes, time and optimisation</h2>{figures}" if figures else ""


def _details(view: RunView, events: Sequence[Event], config: str | None) -> str:
    parts = []
    if config is not None:
        parts.append(f"<details><summary>Resolved config</summary><pre>{escape(config)}</pre></details>")
    untold = (LogStart, Activity, TrainingProgress, PhaseComplete)
    told = [event for event in events if not isinstance(event.data, untold)]
    if told:
        start = view.first_time or 0.0
        rows = "".join(
            f'<tr><td class="n">{event.time - start:.1f} s</td><td>{escape(words(event.kind))}</td>'
            f"<td>{escape(stage_name(event.stage) if event.stage else '')}</td><td>{escape(_brief(event))}</td></tr>"
            for event in told[-MAX_LISTED_EVENTS:]
        )
        cut = f", the last {MAX_LISTED_EVENTS}" if len(told) > MAX_LISTED_EVENTS else ""
        parts.append(
            f"<details><summary>Events ({len(told)}{cut}; without progress and loss records)</summary>"
            f'<div class="list"><table id="events"><tbody>{rows}</tbody></table></div></details>'
        )
    return "<h2>Behind it</h2>" + "".join(parts) if parts else ""


def _brief(event: Event) -> str:
    """An event's data on one line; a gate's checks and a stage's tensor groups have tables of their own."""
    shown = []
    for name, value in plain(event.data).items():
        if isinstance(value, list | dict) and len(value) > 4:
            shown.append(f"{words(name)}: {len(value)} entries")
        elif isinstance(value, dict):
            shown.append(f"{words(name)}: {settings(value)}")
        elif (bounds := interval(value)) is not None:
            shown.append(f"{words(name)}: {figure(bounds)}")
        elif isinstance(value, list):
            shown.append(f"{words(name)}: " + ", ".join(_item(item) for item in value))
        else:
            shown.append(f"{words(name)}: {figure(value) if not isinstance(value, str) else clean(value)}")
    return "; ".join(shown)[:600]


def _item(item: Any) -> str:
    return words(item.get("name")) if isinstance(item, Mapping) else figure(item)
