"""The scoreboard's picture: ratio, logarithmic, against what is left.

Filled markers are ours, in the colours of the stages; open grey ones are other methods, which differ in their marker.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.scoreboard import CONTROL, OURS_TRAINED
from phase8.watch.plots import GRID, INK, PALETTE, SOFT, stage_colour

MARKERS = "v^<>DPXdhp*s8"
OTHERS = ("#8a939c", "#5b6570", "#b08968", "#a3a86b", "#7fa3b8", "#b58aa5")
TARGETS = (40, 280)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws merged rows (`scoreboard.merged`) as a PNG of less than 150 kB."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    methods = list(dict.fromkeys(row["method"] for row in sorted(rows, key=lambda r: (not r["ours"], r["method"]))))
    panels = [
        ("reference", "retention_chance_corrected", "Reference model: core retention, chance taken off"),
        ("reference", "bits_per_byte", "Reference model: bits per byte of held-out text"),
        ("tinystories", "bits_per_byte", "TinyStories: bits per byte of held-out stories"),
    ]
    panels = [panel for panel in panels if any(_known(row, *panel[:2]) for row in rows)]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5.4 * len(panels), 5.0), squeeze=False)
    for axis, (model, quality, title) in zip(axes[0], panels, strict=True):
        here = [row for row in rows if _known(row, model, quality)]
        for method in methods:
            some = sorted((row for row in here if row["method"] == method), key=lambda row: row["ratio"])
            if some:
                _draw(axis, some, quality, methods.index(method))
        _dress(axis, here, quality, title)
    handles: dict[str, Any] = {}
    for axis in axes[0]:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    ordered = [method for method in methods if method in handles]
    figure.legend(
        [handles[method] for method in ordered], ordered, loc="lower center", ncols=6, fontsize=8, frameon=False
    )
    rows_of_legend = -(-len(ordered) // 6)
    figure.tight_layout(rect=(0, 0.03 + 0.04 * rows_of_legend, 1, 1))
    figure.savefig(path, dpi=72)
    pyplot.close(figure)


def _known(row: Mapping[str, Any], model: str, quality: str) -> bool:
    return row["model"] == model and row[quality] is not None


def colour_of(row: Mapping[str, Any], index: int) -> str:
    """The stage's colour where a method of ours names a stage, one for everything else of ours, greys for others."""
    if not row["ours"]:
        return OTHERS[index % len(OTHERS)]
    stage = next((name for name in ("seedlm", "vptq", "hyper") if name in row["method"].lower()), "other")
    return stage_colour(stage)


def _draw(axis: Any, some: list[dict[str, Any]], quality: str, index: int) -> None:
    ours, colour = some[0]["ours"], colour_of(some[0], index)
    trained = some[0]["group"] in (OURS_TRAINED, CONTROL)
    ratios, values = [row["ratio"] for row in some], [row[quality] for row in some]
    low = [row[quality] - (row.get(f"{quality}_low") or row[quality]) for row in some]
    high = [(row.get(f"{quality}_high") or row[quality]) - row[quality] for row in some]
    axis.errorbar(
        ratios,
        values,
        yerr=[[max(0.0, x) for x in low], [max(0.0, x) for x in high]],
        label=some[0]["method"],
        color=colour,
        marker="o" if ours else MARKERS[index % len(MARKERS)],
        markersize=6 if ours else 4.5,
        markerfacecolor=colour if ours else "none",
        linewidth=0.0,
        elinewidth=0.8,
        zorder=3 if ours else 2,
    )
    best = _best(some, quality)
    axis.plot(
        [row["ratio"] for row in best],
        [row[quality] for row in best],
        color=colour,
        linewidth=(1.8 if ours else 0.8),
        linestyle="-" if trained else ":" if ours else "-",
        zorder=3 if ours else 2,
    )


ALIKE = 0.98
"""A ratio that is hardly smaller counts as the same."""


def _best(some: list[dict[str, Any]], quality: str) -> list[dict[str, Any]]:
    """The rows that the line runs through: no other of the method is at least as small and better."""
    sign = 1.0 if quality.startswith("retention") else -1.0
    return [
        row
        for row in some
        if all(one["ratio"] < ALIKE * row["ratio"] or sign * one[quality] <= sign * row[quality] for one in some)
    ]


def _dress(axis: Any, here: list[dict[str, Any]], quality: str, title: str) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.set_xscale("log")
    most = max(60.0, 1.2 * max(row["ratio"] for row in here))
    ticks = [tick for tick in (4, 8, 16, 40, 100, 280) if tick <= most]
    axis.set_xlim(min(7.0, *(0.9 * row["ratio"] for row in here)), most)  # few rows alike must not fill the whole axis
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
    for target in TARGETS:
        if target in ticks:
            axis.axvline(target, color=GRID, linewidth=2, zorder=1)
    if quality.startswith("retention"):
        axis.axhline(0.84, color=PALETTE["--bad"], linewidth=0.8, linestyle="--", zorder=1)
        axis.text(axis.get_xlim()[1], 0.845, "0.84", fontsize=8, color=PALETTE["--bad"], ha="right")
        axis.set_ylim(min(-0.1, *(row[quality] for row in here)) - 0.02, 1.05)
    else:
        original = next((row["bits_per_byte_original"] for row in here if "bits_per_byte_original" in row), None)
        least = original or min(row[quality] for row in here)
        if original is not None:
            axis.axhline(original, color=SOFT, linewidth=0.8, linestyle="--", zorder=1)
        axis.set_yscale("log")
        axis.set_ylim(0.95 * least, min(6 * least, 1.1 * max(row[quality] for row in here)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.2f}"))
        axis.yaxis.set_minor_formatter(FuncFormatter(lambda y, _: f"{y:.2g}"))
    axis.tick_params(labelsize=8, colors=SOFT)
    axis.set_xlabel("smaller than FP32, bytes on disk", fontsize=9, color=INK)
    axis.set_title(title, fontsize=10, color=INK, loc="left")
    axis.grid(alpha=0.35, which="both", color=GRID)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
