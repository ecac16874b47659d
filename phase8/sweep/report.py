"""A study's report."""

from __future__ import annotations

from pathlib import Path

from phase8.sweep.study import FIGURES, REASON, Study


def progress_line(study: Study, number: int) -> str:
    """One trial's outcome in a line."""
    trial = study.study.get_trials(deepcopy=False)[number]
    done, total = len(study.finished), study.settings.n_trials
    figures = trial.user_attrs.get(FIGURES, {})
    wanted = [*study.settings.objectives, *study.settings.constraints]
    shown = ", ".join(f"{name} {figures[name]:.4g}" for name in dict.fromkeys(wanted) if name in figures)
    state = {"COMPLETE": "", "PRUNED": "pruned: ", "FAIL": "failed: "}.get(trial.state.name, f"{trial.state.name}: ")
    reason = trial.user_attrs.get(REASON, "").split("\n")[0]
    return f"trial {number} ({done} of {total}): {state}{'; '.join(part for part in (reason, shown) if part)}"


def report_study(study: Study, root: Path) -> None:
    """Prints the best trials."""
    for trial in study.best():
        print(trial.number, trial.values, trial.params)
