"""`python -m phase8 compare RUN...`: a table in the terminal and a page, from run directories alone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from phase8.files import write_atomic
from phase8.watch import plots
from phase8.watch.runs import (
    Point,
    Retained,
    Run,
    benchmarks,
    best_of,
    differences,
    differing_settings,
    points,
)
from phase8.watch.style import page_style
from phase8.watch.view import mapping, number
from phase8.watch.wording import NOTHING, clean, figure, percent, size, stage_name, times

MOST_SETTINGS = 60
MOST_DIFFERENCES = 400
SERIES = ["--g1", "--g6", "--g3", "--g5", "--g7", "--g2", "--g4", "--g8"]


def rows_of(runs: Sequence[Run]) -> list[list[str]]:
    """The table: one row per run, the heading first."""
    best = best_of(runs)
    rows = [["run", "variant", "level", "size", "ratio", "core retention", "corrected", "success", "time, s"]]
    for run in runs:
        metrics, result = run.metrics, mapping(run.result)
        if run.result is None:
            rows.append([run.name, *[NOTHING] * 7, run.state.lower()])
            continue
        bounds = metrics.get("core_retention_interval")
        spread = f" ({percent(number(bounds[0]))} to {percent(number(bounds[1]))})" if _is_pair(bounds) else ""
        megabytes = number(metrics.get("compressed_size_mb"))
        rows.append(
            [
                run.name + (" *" if run is best else ""),
                clean(result.get("variant", "")),
                clean(result.get("compression_level", "")),
                size(None if megabytes is None else 1e6 * megabytes),
                times(run.ratio),
                percent(run.retention) + spread,
                percent(number(metrics.get("core_retention_corrected"))),
                figure(result.get("success")),
                figure(number(result.get("seconds"))),
            ]
        )
    return rows


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def print_comparison(runs: Sequence[Run]) -> None:
    """The table, the failures with their reasons, and the settings that differ, in the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=False)
    heading, *rows = rows_of(runs)
    table = Table(box=None, header_style="bold")
    for name in heading:
        right = name in ("size", "ratio", "core retention", "corrected", "time, s")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape_markup, row))
    console.print(table)
    if best_of(runs) is not None:
        console.print("* the smallest artifact that passed its gates", highlight=False)
    else:
        console.print("no run has an artifact that passed its gates", highlight=False)
    for run in failures(runs):
        console.print(f"{run.name}: {run.state.lower()}: {clean(run.reason.splitlines()[0])}", markup=False)
    differing = differing_settings(runs)
    for name, values in list(differing.items())[:MOST_SETTINGS]:
        console.print(f"  {name}: {', '.join(str(value) for value in values)}", markup=False, highlight=False)


def escape_markup(text: str) -> str:
    """Text that rich prints as it is."""
    from rich.markup import escape as rich_escape

    return rich_escape(text)


def failures(runs: Sequence[Run]) -> list[Run]:
    """Runs that did not end well, with their reasons."""
    return [run for run in runs if run.state != "COMPLETE"]


# The page ---------------------------------------------------------------------------------------------------------


def write_comparison(path: Path, runs: Sequence[Run], *, title: str, intro: str = "", extra: str = "") -> Path:
    """Writes the comparison as one self-contained page.

    Args:
        intro: a sentence above the table; `extra` is HTML that follows it.

    Raises:
        OutputError: the file cannot be written.
    """
    best = best_of(runs)
    sentence = (
        f"{best.name} is smallest among the runs whose artifact passed: {times(best.ratio)}, "
        f"{percent(best.retention)} of the core scores."
        if best is not None
        else "No run has an artifact that passed its gates."
    )
    found = points(runs)
    drawn = [plot for plot in (frontier_plot(runs, found), retention_plot(runs)) if plot is not None]
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="verdict">{escape(sentence)}</p>',
        f'<p class="soft">{escape(intro)}</p>' if intro else "",
        html_table(rows_of(runs), numeric=range(3, 9)),
        _failures(runs),
        _figures(drawn),
        extra,
        _benchmarks(runs),
        _differences(runs),
        _settings(runs),
    ]
    return write_atomic(path, page(title, body))


def page(title: str, body: Sequence[str]) -> str:
    """A whole HTML page in the report's look."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{page_style()}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def html_table(rows: Sequence[Sequence[str]], *, numeric: Sequence[int] = ()) -> str:
    heading, *others = rows

    def cells(row: Sequence[str], tag: str) -> str:
        kinds = [' class="n"' if index in numeric else "" for index in range(len(row))]
        return "".join(f"<{tag}{kind}>{escape(clean(text))}</{tag}>" for kind, text in zip(kinds, row, strict=True))

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in others)
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{cells(heading, "th")}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _figures(drawn: Sequence[plots.Plot]) -> str:
    if not drawn:
        return ""
    cards = "".join(f'<figure class="card"><h3>{escape(plot.title)}</h3>{plot.svg}</figure>' for plot in drawn)
    return f'<div class="two">{cards}</div>'


def _failures(runs: Sequence[Run]) -> str:
    failed = failures(runs)
    if not failed:
        return ""
    rows = [["run", "state", "why", "settings"]]
    rows += [[run.name, run.state.lower(), run.reason, " ".join(run.overrides)] for run in failed]
    return f"<h2>What failed</h2>{html_table(rows)}"


def _benchmarks(runs: Sequence[Run]) -> str:
    table = benchmarks(runs)
    if not table:
        return ""
    rows = [["benchmark", "baseline", *(run.name for run in runs)]]
    for task, row in table.items():
        first = next((cell for cell in row if cell is not None), None)
        score = (
            NOTHING if first is None or first.baseline is None else f"{first.baseline:.3f} ({figure(first.n)} items)"
        )
        rows.append([task + ("" if first is None or first.informative else " *"), score, *map(_retained, row)])
    note = (
        '<p class="soft">Score / baseline of the artifact that each run kept, with its 95 % interval, paired over the '
        "items. * the baseline is not above chance by two standard errors: says nothing.</p>"
    )
    return f"<h2>Retention per benchmark</h2>{note}{html_table(rows, numeric=range(1, len(runs) + 2))}"


def _retained(cell: Retained | None) -> str:
    if cell is None or cell.retention is None:
        return NOTHING
    spread = "" if cell.interval is None else f" ({100 * cell.interval[0]:.1f} to {100 * cell.interval[1]:.1f})"
    return percent(cell.retention) + spread


def _differences(runs: Sequence[Run]) -> str:
    best = best_of(runs) or (runs[0] if runs else None)
    if best is None or len(runs) < 2:
        return ""
    found = [d for d in differences(runs, against=list(runs).index(best)) if d.interval is not None]
    if not found:
        return ""
    rows = [["benchmark", "run", "difference", "95 % interval", ""]]
    for d in found[:MOST_DIFFERENCES]:
        assert d.interval is not None
        low, high = d.interval
        clear = "" if low <= 0 <= high else "better" if d.value > 0 else "worse"
        shown = [d.task, runs[d.b].name, f"{100 * d.value:+.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}", clear]
        rows.append(shown)
    note = f'<p class="soft">Points of retention against {escape(best.name)}, paired item by item.</p>'
    return f"<details><summary>Differences between runs</summary>{note}{html_table(rows, numeric=(2, 3))}</details>"


def _settings(runs: Sequence[Run]) -> str:
    differing = differing_settings(runs)
    if not differing:
        return ""
    rows = [["setting", *(run.name for run in runs)]]
    rows += [[name, *(str(value) for value in values)] for name, values in list(differing.items())[:MOST_SETTINGS]]
    return f"<h2>Settings that differ</h2>{html_table(rows)}"


# Plots ------------------------------------------------------------------------------------------------------------


def frontier_plot(runs: Sequence[Run], found: Sequence[Point]) -> plots.Plot | None:
    """Core retention of every attempt against its ratio, the frontier joined by a line."""
    known = [point for point in found if point.retention is not None]
    if not known:
        return None
    drawing, axes = plots.new_figure(plots.WIDE, 3.4)
    axes.set_xscale("log")
    for point in known:
        colour = plots.PALETTE[SERIES[point.run % len(SERIES)]]
        bounds = point.retention_interval
        if bounds is not None:
            axes.plot([point.ratio] * 2, bounds, color=colour, linewidth=0.8, alpha=0.5, zorder=2)
        axes.plot(
            [point.ratio],
            [point.retention],
            marker="o" if point.passed else "X",
            color=colour,
            markersize=6,
            linestyle="none",
            zorder=3,
        )
    front = sorted((point.ratio, point.retention) for point in known if point.on_frontier)
    axes.plot(*zip(*front, strict=True), color=plots.INK, linewidth=0.9, zorder=1)
    if len(runs) <= len(SERIES):
        named: set[int] = set()
        for point in sorted(known, key=lambda p: -p.ratio):
            if point.run not in named:
                named.add(point.run)
                axes.annotate(
                    clean(runs[point.run].name),
                    (point.ratio, point.retention),
                    xytext=(5, 5),
                    textcoords="offset points",
                    fontsize=7,
                    color=plots.INK,
                )
    plots.grid_lines(axes, "both")
    axes.yaxis.set_major_formatter(lambda value, _position: f"{100 * value:.0f} %")
    axes.xaxis.set_major_formatter(lambda value, _position: f"{value:g}×")
    axes.xaxis.set_minor_formatter(lambda _value, _position: "")
    axes.set_xlabel("ratio: FP32 bytes / bytes on disk", fontsize=8, color=plots.SOFT)
    alt = "Core retention against ratio: " + "; ".join(
        f"{runs[p.run].name} {stage_name(p.stage)} {times(p.ratio)} {percent(p.retention)}"
        + ("" if p.passed else ", gate failed")
        for p in known[:40]
    )
    return plots.as_plot(drawing, "frontier", "Every attempt; the line joins those that no other beats", alt)


def retention_plot(runs: Sequence[Run]) -> plots.Plot | None:
    """Retention per benchmark of the artifacts kept, with intervals, up to eight runs."""
    table = benchmarks(runs)
    shown = [index for index, run in enumerate(runs) if mapping(run.result).get("artifact")][: len(SERIES)]
    if not table or not shown:
        return None
    drawing, axes = plots.new_figure(plots.WIDE, 0.9 + 0.26 * len(table))
    for order, index in enumerate(shown):
        colour = plots.PALETTE[SERIES[index % len(SERIES)]]
        for place, row in enumerate(table.values()):
            cell = row[index]
            if cell is None or cell.retention is None:
                continue
            height = place + 0.6 * ((order + 0.5) / len(shown) - 0.5)
            if cell.interval is not None:
                axes.plot(cell.interval, [height] * 2, color=colour, linewidth=1.0, alpha=0.6)
            axes.plot([cell.retention], [height], marker="o", color=colour, markersize=4, linestyle="none")
        axes.plot([], [], marker="o", color=colour, linestyle="none", markersize=4, label=clean(runs[index].name))
    axes.set_yticks(range(len(table)), [clean(task) for task in table])
    axes.invert_yaxis()
    axes.axvline(1.0, color=plots.SOFT, linewidth=0.8)
    plots.grid_lines(axes, "x")
    axes.xaxis.set_major_formatter(lambda value, _position: f"{100 * value:.0f} %")
    drawing.legend(loc="outside lower center", ncols=4, fontsize=7, frameon=False, labelcolor=plots.INK)
    alt = (
        f"Retention per benchmark of {', '.join(runs[index].name for index in shown)}; the table below has the figures"
    )
    return plots.as_plot(drawing, "retention", "Retention per benchmark, with 95 % intervals", alt)
