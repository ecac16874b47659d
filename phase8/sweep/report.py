"""A study's report: `study.html`, `study.csv`, `best.yaml`, and what the terminal shows.

The plots are Optuna's own (`optuna.visualization.matplotlib`): history, Pareto front, importance of the parameters,
parallel coordinates. One that has too few trials to draw is left out.
"""

from __future__ import annotations

import copy
import csv
import io
import re
import warnings
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phase8.files import write_atomic
from phase8.sweep.best import BEST_FILE, write_best
from phase8.sweep.storage import shown
from phase8.sweep.study import (
    DIRECTORY,
    FIGURES,
    OVERRIDES,
    PROCESSOR_S,
    REASON,
    RESTARTS,
    UNASKED,
    Study,
    counts,
    violations,
)

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

FEW = 2
"""Completed trials that a plot needs at least."""


def progress_line(study: Study, number: int) -> str:
    """One trial's outcome in a line."""
    trial = study.trials[number]
    done, total = len(study.finished), study.settings.n_trials
    figures = trial.user_attrs.get(FIGURES, {})
    wanted = [*study.settings.objectives, *study.settings.constraints]
    shown_figures = ", ".join(f"{name} {figures[name]:.4g}" for name in dict.fromkeys(wanted) if name in figures)
    words = {"COMPLETE": "", "UNASKED": "not asked: ", "PRUNED": "pruned: ", "FAIL": "failed: "}
    state = words.get(state_of(trial), f"{trial.state.name}: ")
    reason = trial.user_attrs.get(REASON, "").split("\n")[0]
    missed = [name for name, by in violations(study.settings.constraints, figures).items() if by > 0]
    note = f" (misses {', '.join(missed)})" if missed and state_of(trial) == "COMPLETE" else ""
    return f"trial {number} ({done} of {total}): {state}{'; '.join(p for p in (reason, shown_figures) if p)}{note}"


def report_study(study: Study, root: Path) -> None:
    """Prints what was found and writes the report's files into the study's directory.

    Raises:
        OutputError: a file cannot be written.
    """
    best, finished = study.best(), study.finished
    states = {name: sum(state_of(t) == name for t in finished) for name in ("COMPLETE", "UNASKED", "PRUNED", "FAIL")}
    print(
        f"\nstudy {study.settings.study}: {len(finished)} of {study.settings.n_trials} trials: "
        f"{states['COMPLETE']} complete, {states['UNASKED']} not asked for their size, {states['PRUNED']} pruned, "
        f"{states['FAIL']} failed"
    )
    for trial in best[:5]:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in trial.user_attrs.get(FIGURES, {}).items())
        print(f"best: trial {trial.number}: {' '.join(_searched(study, trial))}\n      {figures}")
    if finished and not best:
        print("no trial is feasible: none completed within the constraints")
    if best:
        rows = [
            {
                "trial": trial.number,
                "figures": dict(trial.user_attrs.get(FIGURES, {})),
                "overrides": list(trial.user_attrs[OVERRIDES]),
            }
            for trial in best
        ]
        path = write_best(root / BEST_FILE, study.settings.study, rows)
        print(f"to run with the best: python run.py +from_study={path.parent}")
    write_atomic(root / "study.csv", table_csv(study))
    print(f"report: {write_atomic(root / 'study.html', render(study, root))}")


def state_of(trial: FrozenTrial) -> str:
    """Optuna's state, or UNASKED where the trial ended for its size."""
    return "UNASKED" if UNASKED in trial.user_attrs else trial.state.name


def _searched(study: Study, trial: FrozenTrial) -> list[str]:
    fixed = set(study.space.fixed)
    return [text for text in trial.user_attrs.get(OVERRIDES, []) if text not in fixed]


def table_csv(study: Study) -> str:
    """Every trial as a row of a CSV file: state, figures, settings, reason, directory."""
    figures = sorted({name for trial in study.trials for name in trial.user_attrs.get(FIGURES, {})})
    names = [parameter.name for parameter in study.space.parameters]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    told = ["seconds_wall", "seconds_processor", "restarts", "reason", "directory"]
    writer.writerow(["trial", "state", "counts", *names, *figures, *told])
    for trial in study.trials:
        settings = dict(o.split("=", 1) for o in _searched(study, trial))
        told, kept = trial.user_attrs, trial.user_attrs.get(FIGURES, {})
        writer.writerow(
            [
                trial.number,
                state_of(trial),
                int(counts(trial)),
                *(settings.get(name, "") for name in names),
                *(kept.get(name, "") for name in figures),
                "" if trial.duration is None else f"{trial.duration.total_seconds():.1f}",
                f"{told[PROCESSOR_S]:.1f}" if PROCESSOR_S in told else "",
                told.get(RESTARTS, 0),
                str(told.get(REASON, "")).replace("\n", " "),
                Path(str(told.get(DIRECTORY, ""))).name,
            ]
        )
    return text.getvalue()


def render(study: Study, root: Path) -> str:
    """The report as one page of HTML."""
    from phase8.watch.compare import html_table, page

    settings, best = study.settings, study.best()
    aims = ", ".join(f"{name} ({direction})" for name, direction in settings.objectives.items())
    held = ", ".join(f"{name} {text}" for name, text in settings.constraints.items()) or "none"
    title = f"Study {settings.study}"
    if best:
        values = ", ".join(f"{n} {v:.4g}" for n, v in zip(settings.objectives, best[0].values, strict=True))
        verdict = f"Best of {len(study.finished)} trials: trial {best[0].number}, {values}."
        if len(best) > 1:
            verdict = f"{len(best)} of {len(study.finished)} trials are on the front."
    else:
        verdict = f"None of {len(study.finished)} trials is feasible."
    where = shown(settings.storage)
    about = (
        f"Objectives: {aims}. Constraints: {held}. Sampler {settings.sampler}, seed {settings.seed}. Storage: {where}; "
        f"watch it with: optuna-dashboard {where}"
    )
    on_front = {trial.number for trial in best}
    figures = list(dict.fromkeys([*settings.objectives, *settings.constraints, "seconds"]))
    names = [parameter.name for parameter in study.space.parameters]
    rows = [["trial", "state", *figures, *names, "why"]]
    for trial in study.trials:
        kept, values = trial.user_attrs.get(FIGURES, {}), dict(o.split("=", 1) for o in _searched(study, trial))
        state = state_of(trial).lower() if counts(trial) else "killed, taken up again"
        rows.append(
            [
                f"{trial.number}{' *' if trial.number in on_front else ''}",
                state,
                *(f"{kept[name]:.5g}" if name in kept else "" for name in figures),
                *(values.get(name, "") for name in names),
                str(trial.user_attrs.get(REASON, "")),
            ]
        )
    cards = "".join(f'<figure class="card"><h3>{escape(name)}</h3>{svg}</figure>' for name, svg in drawings(study))
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="verdict">{escape(verdict)}</p>',
        f'<p class="soft">{escape(about)}</p>',
        f'<div class="two">{cards}</div>' if cards else "",
        f"<h2>Trials</h2>{html_table(rows, numeric=range(2, 2 + len(figures)))}",
    ]
    return page(title, body)


def drawings(study: Study) -> list[tuple[str, str]]:
    """Optuna's plots as (title, SVG)."""
    import optuna.visualization.matplotlib as draw

    if sum(trial.state.name == "COMPLETE" for trial in study.finished) < FEW:
        return []
    names = list(study.settings.objectives)
    counted = plotted_study(study)
    found: list[tuple[str, Callable[[], Any]]] = []
    for index, name in enumerate(names):
        target = None if len(names) == 1 else (lambda trial, index=index: trial.values[index])
        options = {"target": target, "target_name": name}
        found += [
            (f"{name} over the trials", lambda o=options: draw.plot_optimization_history(counted, **o)),
            (f"What {name} depends on", lambda o=options: draw.plot_param_importances(counted, **o)),
            (f"Settings and {name}", lambda o=options: draw.plot_parallel_coordinate(counted, **o)),
        ]
    if len(names) in (2, 3):
        found.insert(0, ("The front", lambda: draw.plot_pareto_front(counted, target_names=names)))
    drawn = []
    for order, (title, plot) in enumerate(found):
        svg = _svg(plot, f"study{order}")
        if svg:
            drawn.append((title, svg))
    return drawn


def plotted_study(study: Study) -> Any:
    """A copy in memory of the trials that count, with values as a person writes them."""
    import optuna

    counted = optuna.create_study(directions=study.settings.directions)
    shown = {p.name: _as_written(p.labels) for p in study.space.parameters if p.labels is not None and p.ordered}
    for trial in study.finished:
        if trial.state.name in ("COMPLETE", "PRUNED"):
            named = copy.copy(trial)  # the sampler sees the place of an ordered choice
            ordered = shown.keys() & trial.params.keys()
            named.params = trial.params | {name: shown[name][0][trial.params[name]] for name in ordered}
            named.distributions = trial.distributions | {name: shown[name][1] for name in ordered}
            counted.add_trial(named)
    return counted


def _as_written(labels: Sequence[str]) -> tuple[list[Any], Any]:
    """Values of an ordered choice, numbers where they all are, and a distribution that holds them."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    try:
        numbers = [float(label) for label in labels]
    except ValueError:
        return list(labels), CategoricalDistribution(labels)
    return numbers, FloatDistribution(min(numbers), max(numbers), log=min(numbers) > 0)


def _svg(plot: Callable[[], Any], prefix: str) -> str:
    """A plot as SVG text with identifiers of its own; empty where Optuna cannot draw it from these trials."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    text = io.StringIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            axes = plot()
            first = axes.flat[0] if hasattr(axes, "flat") else axes
            drawing = first.get_figure()
            first.set_title("")
            drawing.set_size_inches(6.4, 4.2)
            drawing.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    except (ValueError, RuntimeError, ZeroDivisionError, KeyError):
        return ""  # too few trials, or a parameter that never changed
    finally:
        pyplot.close("all")
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = svg.replace('href="#', f'href="#{prefix}-').replace("url(#", f"url(#{prefix}-")
    for size in ("width", "height"):
        svg = re.sub(rf'(<svg[^>]*?) {size}="[^"]*"', r"\1", svg, count=1)
    return svg
