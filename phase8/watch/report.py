"""`report.html`: one self-contained page about a run, for a phone or a wide screen, light or dark.

Reads the run's directory and nothing else: `events.jsonl`, `result.json` and `config.yaml`, whichever of them are
there. A run that was interrupted, fell back or is still going gives a report of what there is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from phase8.codecs.stages import BY_LEVEL, STAGES
from phase8.errors import ArtifactError
from phase8.events import (
    Activity,
    BenchmarkResult,
    CheckResult,
    Event,
    Interval,
    LogStart,
    PhaseComplete,
    TrainingProgress,
    plain,
    read_events,
)
from phase8.files import read_bounded, write_atomic
from phase8.watch import plots
from phase8.watch.view import RULES, Attempt, RunView, Stage, interval, mapping, number
from phase8.watch.wording import (
    NOTHING,
    bits_per_byte,
    clean,
    figure,
    percent,
    seconds,
    settings,
    size,
    spread,
    stage_name,
    times,
    words,
)

MAX_RESULT_BYTES = 64 * 2**20
MAX_CONFIG_BYTES = 2**20
MAX_LISTED_EVENTS = 1000
"""Events shown in the list; the log itself has all."""

_STYLE = """
:root{color-scheme:light dark;--page:#f6f7f8;--card:#fff;--ink:#1b1f24;--soft:#5b6570;--grid:#dde2e7;--good:#00704f;
--bad:#bd3f0d;--baseline:#767f88;$light--other:#8d5fa8;
--s1:#0072b2;--s2:#e69f00;--s3:#bb6f99;--s4:#009e73;
--g1:#0072b2;--g2:#56b4e9;--g3:#0b8f6c;--g4:#8fcf6f;--g5:#e6a817;--g6:#d55e00;--g7:#cc8fb5;--g8:#9aa2aa}
@media (prefers-color-scheme:dark){:root{--page:#14171a;--card:#1c2024;--ink:#e8eaed;--soft:#a3adb7;--grid:#343b42;
--good:#5fd3ac;--bad:#ff946b;--baseline:#98a1aa;$dark--other:#c39be0;
--s1:#4aa3df;--s2:#e9ae3c;--s3:#d494b8;--s4:#33b890;
--g1:#3f97d6;--g2:#8fd0f5;--g3:#25a883;--g4:#a5dc88;--g5:#ecc050;--g6:#e5813f;--g7:#dba6c8;--g8:#7f8890}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"DejaVu Sans",sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:1.05rem;font-weight:600;color:var(--soft);margin:0 0 6px}
h2{font-size:1.15rem;font-weight:650;margin:40px 0 4px}
h3{font-size:.95rem;font-weight:600;margin:0 0 8px}
p{margin:4px 0 12px;max-width:76ch}
.soft{color:var(--soft);font-size:.9rem}
.verdict{font-size:1.4rem;line-height:1.35;font-weight:600;margin:0 0 10px;max-width:60ch;text-wrap:pretty}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(126px,1fr));gap:10px;margin:20px 0 8px}
.tile,.card{background:var(--card);border:1px solid var(--grid);border-radius:8px}
.tile{padding:11px 14px}
.tile span{display:block;color:var(--soft);font-size:.8rem}
.tile b{display:block;font-size:1.3rem;font-weight:650;font-variant-numeric:tabular-nums;white-space:nowrap}
.tile small{display:block;color:var(--soft);font-size:.78rem}
.two,.three{display:grid;gap:14px;margin-top:12px;align-items:start}
.two{grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr))}
.three{grid-template-columns:repeat(auto-fill,minmax(min(100%,320px),1fr))}
.card{padding:14px 16px;margin:0;min-width:0;overflow-x:auto}
.card svg{display:block;width:100%;height:auto}
.two .card svg{min-width:380px}
.say{min-width:15em}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--grid);border-radius:8px;margin-top:12px}
table{border-collapse:separate;border-spacing:0;width:100%;font-size:.89rem}
th,td{padding:7px 12px;text-align:left;vertical-align:top;border-bottom:1px solid var(--grid)}
tbody tr:last-child td,tbody tr:last-child th{border-bottom:0}
thead th{font-weight:600;color:var(--soft);font-size:.8rem;vertical-align:bottom}
tbody th{font-weight:500}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td small,th small{color:var(--soft);font-size:.78rem;display:block;font-weight:400;font-variant-numeric:tabular-nums}
.group{text-align:center;border-left:1px solid var(--grid)}
.first{border-left:1px solid var(--grid)}
.sticky{position:sticky;left:0;background:var(--card)}
.good{color:var(--good);font-weight:600;white-space:nowrap}
.bad{color:var(--bad);font-weight:600;white-space:nowrap}
.key{display:inline-block;width:.7em;height:.7em;border-radius:2px;margin-right:.5em}
details{background:var(--card);border:1px solid var(--grid);border-radius:8px;margin-top:12px}
summary{padding:11px 16px;cursor:pointer;font-weight:600}
details pre,details .list{margin:0;padding:0 16px 14px;max-height:520px;overflow:auto}
pre{font:12.5px/1.5 ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace}
.whole{white-space:nowrap}
.checks{padding:0 16px 12px;overflow-x:auto}.checks h3{margin:14px 0 2px}
.list td{font-size:.8rem;padding:4px 10px 4px 0}.list td:last-child{overflow-wrap:anywhere}
@media (max-width:560px){main{padding:18px 12px 40px}.verdict{font-size:1.15rem}
th,td{padding:6px 9px}.card{padding:12px 10px}.list td:nth-child(3){display:none}}
@media print{body{background:#fff}details{break-inside:avoid}}
"""


def page_style() -> str:
    """The style sheet with a colour for every stage, on light and on dark ground."""
    light, dark = ("".join(f"--{stage.name}:{stage.colours[ground]};" for stage in STAGES) for ground in (0, 1))
    return _STYLE.replace("$light", light).replace("$dark", dark)


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
        _criteria(view),
        _figures("two", plots.drawn(view, (plots.size_by_stage, plots.quality_against_ratio))),
        _benchmarks(view),
        _gates(view),
        _integration(view),
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


# The verdict


def _metrics(view: RunView) -> Mapping[str, Any]:
    return mapping(mapping(view.result).get("metrics"))


def _list_of_criteria(view: RunView) -> list[CheckResult]:
    criteria = mapping(view.result).get("criteria")
    items = [item for item in criteria if isinstance(item, Mapping)] if isinstance(criteria, list) else []
    return [
        CheckResult(
            name=str(item.get("name")), passed=item.get("passed"), note=str(item.get("note") or ""),
            threshold=number(item.get("threshold")) or 0.0,
            **{name: number(item.get(name)) for name in ("value", "low", "high", "ceiling")},
        )
        for item in items
    ]  # fmt: skip


def _answer(view: RunView) -> Stage | None:
    """The stage whose artifact is the run's answer."""
    return view.stages.get(BY_LEVEL.get(str(mapping(view.result).get("compression_level")), ""))


def _informative(view: RunView) -> tuple[int, int]:
    """How many core benchmarks say something, of how many; only a result tells."""
    core = [item for item in mapping(_metrics(view).get("benchmarks")).values() if mapping(item).get("role") == "core"]
    return sum(mapping(item).get("informative") is not False for item in core), len(core)


def verdict(view: RunView) -> str:
    """What came out, in plain words, with the figures."""
    if view.result is None:
        return _unfinished(view)
    metrics = _metrics(view)
    answer = _answer(view)
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
    criteria = _list_of_criteria(view)
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
    telling, core = _informative(view)
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


def _range(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}"


def _tiles(view: RunView) -> str:
    """The key figures of the answer; without a result, of the stage that went furthest."""
    metrics, result = _metrics(view), mapping(view.result)
    stage = _answer(view)
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


# Tables


def _mark(passed: Any) -> str:
    if passed is True:
        return '<span class="good">✓ holds</span>'
    return '<span class="bad">✗ fails</span>' if passed is False else '<span class="soft">not judged</span>'


def _cell(text: str, css: str = "") -> str:
    return f'<td class="{css}">{escape(text)}</td>' if css else f"<td>{escape(text)}</td>"


def _table(name: str, heads: Iterable[str], rows: Iterable[str]) -> str:
    return (
        f'<div class="scroll"><table id="{name}"><thead>{"".join(heads)}</thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _check_heads(first: str) -> list[str]:
    rest = (
        '<th>Verdict</th><th class="n">Figure</th><th class="n">90 % interval</th><th class="n">Threshold</th>'
        "<th>Note</th>"
    )
    return [f"<tr><th>{first}</th>{rest}</tr>"]


def _check_row(item: CheckResult) -> str:
    note = clean(item.note)
    shown = (figure(item.value), spread(item), figure(item.threshold))
    figures = "".join(_cell(text, "n") for text in shown)
    return (
        f"<tr><th>{escape(words(item.name))}</th><td>{_mark(item.passed)}</td>"
        f"{figures}{_cell(note, 'say' if len(note) > 20 else '')}</tr>"
    )


def _criteria(view: RunView) -> str:
    criteria = _list_of_criteria(view)
    if not criteria:
        return ""
    return "<h2>Success criteria</h2>" + _table("criteria", _check_heads("Criterion"), map(_check_row, criteria))


def _figures(css: str, drawn: Sequence[plots.Plot]) -> str:
    cards = "".join(f'<figure class="card"><h3>{escape(plot.title)}</h3>{plot.svg}</figure>' for plot in drawn)
    return f'<div class="{css}">{cards}</div>' if cards else ""


def _benchmarks(view: RunView) -> str:
    """Retention plots and the table of every score."""
    columns = [(stage, attempt, name) for stage, attempt, name in plots.attempts(view) if attempt.results]
    tasks = dict.fromkeys([*view.baseline, *(task for _, attempt, _ in columns for task in attempt.results)])
    if not tasks:
        return ""
    drawings = [
        (lambda view, order=order, column=column: plots.retention(*column, order, view.limits))
        for order, column in enumerate(columns)
    ]
    first = '<tr><th rowspan="2" class="sticky">Benchmark</th><th rowspan="2">Role</th>'
    first += "".join(f'<th rowspan="2" class="n">{head}</th>' for head in ("Items", "Chance", "Baseline"))
    second = "<tr>"
    for stage, attempt, name in columns:
        failed = ", gate failed" if attempt.passed is False else ""
        colour = f'<span class="key" style="background:var(--{_variable(stage.name)})"></span>'
        first += f'<th colspan="3" class="group">{colour}{escape(name + failed)}</th>'
        second += '<th class="n first">Score</th><th class="n">Retention</th><th class="n">Corrected</th>'
    rows = []
    for task in tasks:
        baseline = view.baseline.get(task)
        measured = [attempt.results.get(task) for _stage, attempt, _name in columns]
        known = next((result for result in (baseline, *measured) if result is not None), None)
        if known is not None:
            rows.append(_benchmark_row(task, known, baseline, measured))
    table = _table("benchmarks", [f"{first}</tr>", f"{second}</tr>"] if columns else [f"{first}</tr>"], rows)
    return (
        "<h2>Benchmarks</h2>"
        '<p class="soft">Filled: raw retention, score / baseline. Hollow: chance-corrected, (score − chance) / '
        "(baseline − chance). Bars and ranges: 95 % intervals; ± is one standard error. Dashed: the stage's gate, "
        "which is for their mean and relative to the stage's input; dotted: the floor for a single benchmark. * marks "
        "one whose baseline is not above chance by two standard errors: it says and counts for nothing.</p>"
        + _figures("three", plots.drawn(view, drawings))
        + table
        + _not_measured(view)
    )


def _not_measured(view: RunView) -> str:
    """What was called for and left out, with the reasons."""
    names = _metrics(view).get("not_measured")
    if not isinstance(names, list) or not names:
        return ""
    return f'<p class="soft">Not measured: {escape("; ".join(clean(name) for name in names))}.</p>'


def _variable(stage: str) -> str:
    return stage if f"--{stage}" in plots.PALETTE else "other"


def _benchmark_row(
    task: str,
    known: BenchmarkResult,
    baseline: BenchmarkResult | None,
    measured: Sequence[BenchmarkResult | None],
) -> str:
    useful = all(result.informative for result in (known, *measured) if result is not None)
    flag = "" if useful else "<small>* uninformative</small>"
    row = (
        f'<tr><th class="sticky">{escape(clean(task))}{flag}</th>{_cell(words(known.role))}'
        f"{_cell(figure(known.n), 'n')}{_cell(percent(known.chance), 'n')}{_score(baseline, 'n')}"
    )
    for result in measured:
        row += _score(result, "n first")
        if result is None:
            row += _cell(NOTHING, "n") * 2
        else:
            row += _kept(result.retention, result.retention_interval)
            row += _kept(result.retention_corrected, result.retention_corrected_interval)
    return row + "</tr>"


def _score(result: BenchmarkResult | None, css: str) -> str:
    if result is None or result.score is None:
        return _cell(NOTHING, css)
    error = f"<small>± {100 * result.stderr:.1f}</small>" if result.stderr is not None else ""
    also = (f"{clean(_metric(name))} {_fraction(value)}" for name, value in result.also.items())
    more = "".join(f"<small>{escape(text)}</small>" for text in also)
    return f'<td class="{css}">{percent(result.score)}{error}{more}</td>'


def _metric(name: str) -> str:
    """lm-eval's `metric,filter` for a reader."""
    return name.removesuffix(",none").replace(",", " ")


def _fraction(value: float) -> str:
    """A perplexity among the further metrics is no share."""
    return percent(value) if 0 <= value <= 1 else figure(value)


def _kept(value: float | None, given: Interval | None) -> str:
    bounds = interval(given)
    spread = f"<small>{_range(bounds)}</small>" if bounds is not None else ""
    return f'<td class="n">{percent(value)}{spread}</td>'


def _gates(view: RunView) -> str:
    judged = [(attempt, name) for _stage, attempt, name in plots.attempts(view) if attempt.gate is not None]
    if not judged:
        return ""
    rows = []
    for attempt, name in judged:
        checks = attempt.checks
        held = sum(check.passed is True for check in checks)
        state = '<span class="good">✓ passed</span>' if attempt.passed else '<span class="bad">✗ failed</span>'
        gate = attempt.gate
        abort = f" Nothing further down was tried: {clean(gate.abort)}." if gate and gate.abort else ""
        worth = clean(gate.wording) if gate else ""
        worth = f" {worth[:1].upper()}{worth[1:]}." if worth else ""
        bits = bits_per_byte(gate)
        worth += f" {bits[:1].upper()}{bits[1:]}." if bits else ""
        failing = "; ".join(
            f"{words(check.name)} {figure(check.value)} (threshold {figure(check.threshold)})"
            for check in checks
            if check.passed is False
        )
        rows.append(
            f'<tr><th class="whole">{escape(name)}</th><td>{state}</td>{_cell(f"{held} of {len(checks)}", "n")}'
            f"{_cell((f'{failing}.' if failing else 'Nothing.' if worth else NOTHING) + worth + abort, 'say')}"
            f"{_cell(_next_step(attempt), 'say')}</tr>"
        )
    heads = ['<tr><th>Stage</th><th>Gate</th><th class="n">Hold</th><th>What fails</th><th>Then</th></tr>']
    tables = "".join(
        f"<h3>{escape(name)}</h3><table><thead>{_check_heads('Condition')[0]}</thead>"
        f"<tbody>{''.join(map(_check_row, attempt.checks))}</tbody></table>"
        for attempt, name in judged
        if attempt.checks
    )
    details = f'<details><summary>Every condition of every gate</summary><div class="checks">{tables}</div></details>'
    return "<h2>Gates</h2>" + _table("gates", heads, rows) + (details if tables else "")


def _next_step(attempt: Attempt) -> str:
    advice = attempt.recommendation
    if advice is None:
        return NOTHING
    changes = f" with {settings(advice.adjustments)}" if advice.adjustments else ""
    return f"{words(advice.action)}{changes}: {clean(advice.reason)}"


def _integration(view: RunView) -> str:
    """Edge of chaos, the four rules and the experts of the final model."""
    metrics = _metrics(view)
    edge, rules = mapping(metrics.get("edge_of_chaos")), mapping(metrics.get("eudaimonia"))
    experts = mapping(metrics.get("expert_retention"))
    rows = []
    if edge:
        rows.append(("Edge of chaos", percent(number(edge.get("accuracy"))), words(edge.get("status") or NOTHING)))
    rows += [(f"Eudaimonia: {rule}", percent(number(rules[rule])), "") for rule in RULES if rule in rules]
    rows += [(f"Expert: {words(name)}", percent(number(value)), "of its baseline") for name, value in experts.items()]
    if not rows:
        return ""
    body = (f"<tr><th>{escape(name)}</th>{_cell(value, 'n')}{_cell(note)}</tr>" for name, value, note in rows)
    heads = ['<tr><th>Test</th><th class="n">Final model</th><th></th></tr>']
    return "<h2>Integration tests and experts</h2>" + _table("integration", heads, body)


def _where(view: RunView) -> str:
    figures = _figures("two", plots.drawn(view, (plots.bytes_by_group, plots.time_per_step, plots.loss_curves)))
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
