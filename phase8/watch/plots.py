"""The plots of the report, drawn by matplotlib as SVG text that takes its colours from the page.

Colours are drawn as stand-ins and replaced by CSS variables, so that one picture serves a light and a dark page;
text stays text. Quality against ratio also goes to W&B, as a PNG.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from phase8.codecs.stages import STAGES
from phase8.events import Limits
from phase8.watch.view import BASELINE, Attempt, RunView, Stage, interval
from phase8.watch.wording import clean, percent, seconds, size, stage_name, times, words

# Stand-in -> CSS variable. The stand-ins are the light theme's colours, each unique, so that a picture that is
# not rewritten looks right too. Series colours after Okabe and Ito's palette for the colour-blind.
PALETTE = {
    "--ink": "#1b1f24",
    "--soft": "#5b6570",
    "--grid": "#d9dee3",
    "--card": "#fefefe",
    "--baseline": "#767f88",
    **{f"--{stage.name}": stage.colours[0] for stage in STAGES},
    "--other": "#8d5fa8",
    "--bad": "#bd3f0d",
    "--s1": "#0071b1",
    "--s2": "#dd8f10",
    "--s3": "#bb6f99",
    "--s4": "#0a9a76",
    "--g1": "#0070b0",
    "--g2": "#56b0e0",
    "--g3": "#0b8f6c",
    "--g4": "#8fcf6f",
    "--g5": "#e0a010",
    "--g6": "#d0622a",
    "--g7": "#c282ae",
    "--g8": "#9aa2aa",
}
INK, SOFT, GRID, CARD, BAD = (PALETTE[name] for name in ("--ink", "--soft", "--grid", "--card", "--bad"))
STEPS = {"encode": "--s1", "optimise": "--s2", "write": "--s3", "evaluate": "--s4"}
OTHER_STEPS = [PALETTE["--g8"], PALETTE["--g2"], PALETTE["--g4"]]
GROUPS = [PALETTE[f"--g{index}"] for index in range(1, 8)]
REST = PALETTE["--g8"]
WIDE, NARROW = 5.2, 3.6  # inches; the page scales a figure to its column


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawn figure: its title for people, the text for those who cannot see it, and the SVG."""

    title: str
    alt: str
    svg: str


def stage_colour(name: str) -> str:
    """The colour that a stage has in every plot."""
    return PALETTE.get(f"--{name}", PALETTE["--other"])


def attempts(view: RunView) -> list[tuple[Stage, Attempt, str]]:
    """Every attempt of every stage with its name, `VPTQ` or `VPTQ, attempt 2`."""
    return [
        (stage, attempt, stage_name(stage.name) + (f", attempt {attempt.order}" if len(stage.attempts) > 1 else ""))
        for stage in view.compressing
        for attempt in stage.attempts
    ]


def new_figure(width: float, height: float) -> tuple[Any, Any]:
    """An empty figure of the report's look, so many inches large, and its axes."""
    from matplotlib.figure import Figure  # late: half a second that only the report needs

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GRID)
    axes.tick_params(colors=SOFT, labelsize=8, length=0, which="both")
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_axisbelow(True)
    return figure, axes


def grid_lines(axes: Any, axis: str) -> None:
    """Thin lines along `x`, `y` or `both`."""
    axes.grid(True, axis=axis, color=GRID, linewidth=0.6)


def _to_svg(figure: Any, prefix: str) -> str:
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = svg.replace('href="#', f'href="#{prefix}-').replace("url(#", f"url(#{prefix}-")
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for name, colour in PALETTE.items():
        svg = svg.replace(colour, f"var({name})")
    return svg


def as_plot(figure: Any, prefix: str, title: str, alt: str) -> Plot:
    """A drawn figure for the page; `prefix` keeps its identifiers apart from those of other figures."""
    svg = _to_svg(figure, prefix).replace("<svg ", f'<svg role="img" aria-label="{escape(clean(alt))}" ', 1)
    return Plot(title, alt, svg)


def size_by_stage(view: RunView) -> Plot | None:
    """Bytes of the input and of every attempt on a logarithmic axis, each with its ratio."""
    rows = [("Input, FP32", view.original_bytes, 1.0, PALETTE["--baseline"], True)]
    rows += [
        (name, attempt.compressed_bytes, attempt.ratio, stage_colour(stage.name), attempt.passed is not False)
        for stage, attempt, name in attempts(view)
    ]
    rows = [row for row in rows if row[1] is not None and row[1] > 0]
    if not rows:
        return None
    figure, axes = new_figure(WIDE, 0.75 + 0.38 * len(rows))
    smallest, largest = min(row[1] for row in rows), max(row[1] for row in rows)
    low = smallest / 4
    axes.set_xscale("log")
    axes.set_xlim(low, largest * 9)
    for index, (_name, value, ratio, colour, held) in enumerate(rows):
        axes.barh(
            index, value - low, left=low, height=0.56, color=colour if held else "none", edgecolor=colour, linewidth=1.2
        )
        label = f"{size(value)}  {times(ratio)}" + ("" if held else "  gate failed")
        axes.annotate(
            label, (value, index), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8, color=INK
        )
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.invert_yaxis()
    grid_lines(axes, "x")
    axes.xaxis.set_major_formatter(lambda value, _position: re.sub(r"\.0+ ", " ", size(value)))
    axes.xaxis.set_minor_formatter(lambda _value, _position: "")
    axes.set_xlabel("size on disk, logarithmic", fontsize=8, color=SOFT)
    alt = "Size by stage: " + "; ".join(f"{row[0]} {size(row[1])}, ratio {times(row[2])}" for row in rows)
    return as_plot(figure, "size", "Size by stage", alt)


def _threshold(attempt: Attempt, name: str) -> float | None:
    """The threshold of the gate's check called `name`."""
    return next((check.threshold for check in attempt.checks if check.name == name), None)


def retention(stage: Stage, attempt: Attempt, name: str, order: int, limits: Limits | None) -> Plot | None:
    """Raw and chance-corrected retention of every benchmark after one attempt, with 95 % intervals and thresholds."""
    floor = limits.benchmark_retention if limits is not None else None
    results = [result for result in attempt.results.values() if result.retention is not None]
    if not results:
        return None
    from matplotlib.ticker import MaxNLocator

    results.sort(key=lambda result: {"core": 0, "expert": 1}.get(result.role, 2))
    figure, axes = new_figure(NARROW, 0.8 + 0.3 * len(results))
    colour = stage_colour(stage.name)
    useful = [(index, result) for index, result in enumerate(results) if result.informative]
    idle = [(index, result) for index, result in enumerate(results) if not result.informative]
    # A chance-corrected figure over a baseline at chance is noise: such a benchmark shows its raw share only, in grey.
    series = [
        ([(index - 0.13, r.retention, r.retention_interval) for index, r in useful], colour, colour),
        ([(index + 0.17, r.retention_corrected, r.retention_corrected_interval) for index, r in useful], colour, CARD),
        ([(index, r.retention, r.retention_interval) for index, r in idle], SOFT, SOFT),
    ]
    seen = [1.0, *([] if floor is None else [floor])]
    for rows, edge, fill in series:
        known = [row for row in rows if row[1] is not None]
        if not known:
            continue
        spans = [(place, bounds) for place, _value, given in known if (bounds := interval(given)) is not None]
        if spans:
            axes.hlines(
                [place for place, _ in spans],
                *zip(*(bounds for _, bounds in spans), strict=True),
                color=edge,
                linewidth=1.3,
            )
        axes.plot(
            [row[1] for row in known],
            [row[0] for row in known],
            marker="o",
            markersize=5,
            markerfacecolor=fill,
            markeredgecolor=edge,
            linestyle="none",
        )
        seen += [row[1] for row in known] + [end for _, bounds in spans for end in bounds]
    low, high = max(min(seen) - 0.04, -0.25), min(max(seen) + 0.04, 1.6)
    axes.set_xlim(low, high)
    axes.axvline(1.0, color=SOFT, linewidth=0.8)
    gate = _threshold(attempt, "core_retention")
    crowded = gate is not None and floor is not None and abs(gate - floor) < 0.35 * (high - low)
    for value, label, style, side in (
        (floor, "floor", ":", "right" if crowded else "center"),
        (gate, "gate", "--", "left" if crowded else "center"),
    ):
        if value is not None and low < value < high:
            axes.axvline(value, color=BAD, linewidth=1.0, linestyle=style)
            axes.annotate(
                f"{label} {100 * value:.3g} %",
                (value, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 4),
                textcoords="offset points",
                fontsize=7,
                color=BAD,
                ha=side,
            )
    axes.set_yticks(
        range(len(results)), [clean(result.task) + ("" if result.informative else " *") for result in results]
    )
    for label, result in zip(axes.get_yticklabels(), results, strict=True):
        label.set_color(INK if result.informative else SOFT)
    axes.set_ylim(len(results) - 0.45, -0.55)
    grid_lines(axes, "x")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda value, _position: f"{100 * value:.0f} %")
    axes.set_xlabel("share of the baseline score kept", fontsize=8, color=SOFT)
    alt = f"Retention after {name}: " + "; ".join(
        f"{result.task} {percent(result.retention)} raw, {percent(result.retention_corrected)} chance-corrected"
        for result in results
    )
    return as_plot(figure, f"retention{order}", name, alt)


def _quality_figure(view: RunView) -> tuple[Any, str] | None:
    threshold = view.limits.cumulative_retention if view.limits is not None else None
    points = [
        (stage, attempt, name, attempt.core_retention(), attempt.core_retention(corrected=True))
        for stage, attempt, name in attempts(view)
        if attempt.ratio is not None and attempt.ratio > 0 and attempt.core_retention() is not None
    ]
    if not points:
        return None
    from matplotlib.ticker import LogLocator

    figure, axes = new_figure(WIDE, 3.1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    for position, style in ((3, "-"), (4, "--")):
        known = [(point[1].ratio, point[position]) for point in points if point[position] is not None]
        line = sorted([(1.0, 1.0), *known])
        axes.plot(*zip(*line, strict=True), color=SOFT, linewidth=0.9, linestyle=style, zorder=2)
    axes.plot([1.0], [1.0], marker="o", color=PALETTE["--baseline"], markersize=7, linestyle="none", zorder=3)
    axes.annotate("Baseline", (1.0, 1.0), xytext=(8, 5), textcoords="offset points", fontsize=8, color=INK)
    for stage, attempt, _name, raw, corrected in points:
        colour = stage_colour(stage.name)
        axes.plot(
            [attempt.ratio],
            [raw],
            marker="X" if attempt.passed is False else "o",
            color=colour,
            markersize=7,
            linestyle="none",
            zorder=3,
        )
        if corrected is not None:
            axes.plot(
                [attempt.ratio],
                [corrected],
                marker="o",
                markerfacecolor=CARD,
                markeredgecolor=colour,
                markersize=6,
                linestyle="none",
                zorder=3,
            )
    values = [value for point in points for value in point[3:] if value is not None]
    right = max(point[1].ratio for point in points) * 1.5
    left = min([1.0, *(point[1].ratio for point in points)]) / 1.4
    axes.set_xlim(left, right)
    bottom, top = min([*values, 1.0 if threshold is None else threshold]) - 0.06, max([*values, 1.0]) + 0.07
    axes.set_ylim(bottom, top)
    _label_points(axes, points, spacing=0.062 * (top - bottom), right=right)
    if threshold is not None:
        axes.axhline(threshold, color=BAD, linewidth=1.0, linestyle="--", zorder=1)
        axes.annotate(
            f"threshold {100 * threshold:.3g} %",
            (left, threshold),
            xytext=(2, -9),
            textcoords="offset points",
            fontsize=7.5,
            color=BAD,
        )
    grid_lines(axes, "both")
    axes.yaxis.set_major_formatter(lambda value, _position: f"{100 * value:.0f} %")
    axes.xaxis.set_major_formatter(lambda value, _position: times(value).replace(".0×", "×"))
    axes.xaxis.set_minor_formatter(lambda _value, _position: "")
    axes.set_xlabel("compression ratio by file bytes, logarithmic", fontsize=8, color=SOFT)
    axes.set_ylabel("core retention", fontsize=8, color=SOFT)
    alt = "Quality against ratio: baseline 100 % at 1×; " + "; ".join(
        f"{name} {percent(raw)} raw, {percent(corrected)} chance-corrected at {times(attempt.ratio)}"
        for _stage, attempt, name, raw, corrected in points
    )
    return figure, alt


def _label_points(axes: Any, points: Sequence[tuple[Any, ...]], *, spacing: float, right: float) -> None:
    """Names the points at the right edge, in the order of their height, none on top of another."""
    below = float("inf")
    for _stage, attempt, name, raw, _corrected in sorted(points, key=lambda point: -point[3]):
        place = min(raw, below - spacing)
        below = place
        label = f"{name}, {times(attempt.ratio)}" + (" ✗" if attempt.passed is False else "")
        axes.plot([attempt.ratio, right], [raw, place], color=GRID, linewidth=0.8, zorder=1)
        axes.annotate(
            label,
            (right, place),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=8,
            color=INK,
            va="center",
            annotation_clip=False,
        )


def quality_against_ratio(view: RunView) -> Plot | None:
    """Core retention, raw (filled) and chance-corrected (hollow), against the ratio, a point per attempt."""
    drawn = _quality_figure(view)
    return drawn and as_plot(drawn[0], "quality", "Quality against ratio", drawn[1])


def quality_png(view: RunView) -> bytes | None:
    """The same plot as a PNG on white."""
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False}):
        drawn = _quality_figure(view)
    if drawn is None:
        return None
    buffer = io.BytesIO()
    drawn[0].savefig(buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def bytes_by_group(view: RunView) -> Plot | None:
    """Share of each tensor group in every stage's bytes (the attempt that passed, else the latest), and of the rest."""
    chosen = [(stage, stage.shown) for stage in view.compressing]
    rows = [(stage, attempt) for stage, attempt in chosen if attempt is not None and attempt.groups]
    if not rows:
        return None
    totals: dict[str, float] = {}
    for _stage, attempt in rows:
        whole = sum(attempt.groups.values()) or 1.0
        for name, value in attempt.groups.items():
            totals[name] = totals.get(name, 0.0) + value / whole
    ranked = sorted(totals, key=lambda name: (-totals[name], name))
    shown = ranked if len(ranked) <= len(GROUPS) else ranked[: len(GROUPS) - 1]
    figure, axes = new_figure(WIDE, 1.1 + 0.38 * len(rows) + 0.2 * ((len(shown) + 4) // 3))
    spoken = []
    handles: dict[str, Any] = {}
    for index, (stage, attempt) in enumerate(rows):
        grouped = sum(attempt.groups.values())
        whole = max(attempt.compressed_bytes or 0.0, grouped) or 1.0
        parts = [(name, attempt.groups.get(name, 0.0), GROUPS[place]) for place, name in enumerate(shown)]
        rest = sum(value for name, value in attempt.groups.items() if name not in shown)
        parts.append((f"{len(ranked) - len(shown)} smaller groups", rest, GROUPS[-1]))
        parts.append(("manifest, headers, config", whole - grouped, REST))
        left = 0.0
        for name, value, colour in parts:
            if value <= 0:
                continue
            bar = axes.barh(index, value / whole, left=left, height=0.6, color=colour, edgecolor=CARD, linewidth=0.8)
            handles.setdefault(words(name), bar)
            left += value / whole
        axes.annotate(
            size(whole), (1, index), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8, color=INK
        )
        listed = ", ".join(f"{words(name)} {size(value)}" for name, value, _colour in parts if value > 0)
        spoken.append(f"{stage_name(stage.name)}: {listed}")
    axes.set_yticks(range(len(rows)), [stage_name(stage.name) for stage, _attempt in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1.16)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.spines["bottom"].set_visible(False)
    _legend(figure, handles)
    return as_plot(figure, "bytes", "Where the bytes are", "Bytes per tensor group. " + ". ".join(spoken))


def _legend(figure: Any, handles: dict[str, Any]) -> None:
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower left",
        ncols=3,
        fontsize=8,
        labelcolor=INK,
        frameon=False,
        handlelength=0.9,
        handleheight=0.9,
        columnspacing=1.2,
    )


def time_per_step(view: RunView) -> Plot | None:
    """Seconds of every step of every attempt, baseline included."""
    rows = []
    baseline = view.stages.get(BASELINE)
    if baseline is not None and baseline.last is not None and baseline.last.steps:
        rows.append((stage_name(BASELINE), baseline.last.steps))
    rows += [(name, attempt.steps) for _stage, attempt, name in attempts(view) if attempt.steps]
    if not rows:
        return None
    names = [*dict.fromkeys(step for _name, steps in rows for step in steps if step not in STEPS), *STEPS]
    figure, axes = new_figure(WIDE, 1.0 + 0.38 * len(rows))
    handles: dict[str, Any] = {}
    longest = max(sum(steps.values()) for _name, steps in rows) or 1.0
    for index, (_name, steps) in enumerate(rows):
        left = 0.0
        for step in names:
            if steps.get(step, 0.0) > 0:
                colour = PALETTE[STEPS[step]] if step in STEPS else OTHER_STEPS[names.index(step) % len(OTHER_STEPS)]
                bar = axes.barh(index, steps[step], left=left, height=0.6, color=colour, edgecolor=CARD, linewidth=0.8)
                handles.setdefault(words(step), bar)
                left += steps[step]
        axes.annotate(
            seconds(left), (left, index), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8, color=INK
        )
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, longest * 1.22)
    grid_lines(axes, "x")
    axes.set_xlabel("seconds", fontsize=8, color=SOFT)
    order = [words(step) for step in names]
    _legend(figure, {name: handles[name] for name in sorted(handles, key=order.index)})
    alt = "Time per step. " + ". ".join(
        f"{name}: " + ", ".join(f"{words(step)} {seconds(time)}" for step, time in steps.items())
        for name, steps in rows
    )
    return as_plot(figure, "time", "Time per step", alt)


def loss_curves(view: RunView) -> Plot | None:
    """Optimisation loss by iteration, a line per attempt; dotted: a training that was begun anew."""
    rows = [
        (stage, attempt, name, curves)
        for stage, attempt, name in attempts(view)
        if (curves := [curve for curve in attempt.trainings if len(curve) > 1])
    ]
    if not rows:
        return None
    from matplotlib.ticker import LogLocator

    figure, axes = new_figure(WIDE, 2.9)
    if all(loss > 0 for *_, curves in rows for curve in curves for _step, loss in curve):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    handles = {}
    for stage, attempt, name, (*discarded, kept) in rows:
        for curve in discarded:
            axes.plot(*zip(*curve, strict=True), color=stage_colour(stage.name), linewidth=0.8, linestyle=":")
        line = axes.plot(
            *zip(*kept, strict=True),
            color=stage_colour(stage.name),
            linewidth=1.6,
            linestyle="-" if attempt.order == 1 else "--",
        )
        handles[name] = line[0]
    grid_lines(axes, "both")
    axes.tick_params(axis="y", labelcolor=SOFT)
    axes.yaxis.set_minor_formatter(lambda _value, _position: "")
    axes.yaxis.set_major_formatter(lambda value, _position: f"{value:.3g}")
    axes.set_xlabel("iteration", fontsize=8, color=SOFT)
    axes.set_ylabel("loss", fontsize=8, color=SOFT)
    _legend(figure, handles)
    alt = "Optimisation loss. " + ". ".join(
        f"{name}: from {curves[-1][0][1]:.4g} to {curves[-1][-1][1]:.4g} in {len(curves[-1])} records"
        for _stage, _attempt, name, curves in rows
    )
    return as_plot(figure, "loss", "Optimisation loss", alt)


Drawing = Callable[[RunView], Plot | None]


def drawn(view: RunView, drawings: Sequence[Drawing]) -> list[Plot]:
    """Those plots for which the run has figures."""
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False}):  # names may hold a dollar sign
        return [plot for drawing in drawings if (plot := drawing(view)) is not None]
