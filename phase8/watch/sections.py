"""The report's tables: criteria, benchmarks, gates, integration tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from phase8.codecs.stages import BY_LEVEL
from phase8.events import (
    BenchmarkResult,
    CheckResult,
    Interval,
)
from phase8.watch import plots
from phase8.watch.view import RULES, Attempt, RunView, Stage, interval, mapping, number
from phase8.watch.wording import (
    NOTHING,
    bits_per_byte,
    clean,
    figure,
    percent,
    settings,
    spread,
    words,
)


def metrics_of(view: RunView) -> Mapping[str, Any]:
    return mapping(mapping(view.result).get("metrics"))


def criteria_of(view: RunView) -> list[CheckResult]:
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


def answer_of(view: RunView) -> Stage | None:
    """The stage whose artifact is the run's answer."""
    return view.stages.get(BY_LEVEL.get(str(mapping(view.result).get("compression_level")), ""))


def informative_of(view: RunView) -> tuple[int, int]:
    """How many core benchmarks say something, of how many; only a result tells."""
    core = [
        item for item in mapping(metrics_of(view).get("benchmarks")).values() if mapping(item).get("role") == "core"
    ]
    return sum(mapping(item).get("informative") is not False for item in core), len(core)


def _range(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}"


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


def criteria_table(view: RunView) -> str:
    criteria = criteria_of(view)
    if not criteria:
        return ""
    return "<h2>Success criteria</h2>" + _table("criteria", _check_heads("Criterion"), map(_check_row, criteria))


def figures_html(css: str, drawn: Sequence[plots.Plot]) -> str:
    cards = "".join(f'<figure class="card"><h3>{escape(plot.title)}</h3>{plot.svg}</figure>' for plot in drawn)
    return f'<div class="{css}">{cards}</div>' if cards else ""


def benchmark_table(view: RunView) -> str:
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
        + figures_html("three", plots.drawn(view, drawings))
        + table
        + _not_measured(view)
    )


def _not_measured(view: RunView) -> str:
    """What was called for and left out, with the reasons."""
    names = metrics_of(view).get("not_measured")
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


def gate_tables(view: RunView) -> str:
    judged = [(attempt, name) for _stage, attempt, name in plots.attempts(view) if attempt.gate is not None]
    if not judged:
        return ""
    rows = []
    for attempt, name in judged:
        checks = attempt.checks
        told = [check for check in checks if check.passed is not None]
        held = sum(check.passed is True for check in told)
        idle = ", ".join(words(check.name) for check in checks if check.passed is None)
        idle = f" Not judged: {idle}." if idle else ""
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
            f'<tr><th class="whole">{escape(name)}</th><td>{state}</td>{_cell(f"{held} of {len(told)}", "n")}'
            f"{_cell((f'{failing}.' if failing else 'Nothing.' if worth else NOTHING) + idle + worth + abort, 'say')}"
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


def integration_table(view: RunView) -> str:
    """Edge of chaos, the four rules and the experts of the final model."""
    metrics = metrics_of(view)
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
