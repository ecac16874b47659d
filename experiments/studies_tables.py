"""What `experiments.studies` measured, as `sweeps/STUDY/` and `experiments/results/studies.md`."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from statistics import mean
from typing import Any

from experiments.studies import SPACES, STUDIES, TRIALS, ended, measured, study_command, trials_of
from phase8.files import make_directory, write_atomic

RESULT = Path("experiments/results/studies.md")
SWEEPS = Path("sweeps")
SHOWN = (15, 30, TRIALS)
KEPT = ("study.csv", "best.yaml", "kills.jsonl")


def write_tables() -> None:
    """Copies the studies' files to `sweeps/` and writes the page."""
    studies = [
        name
        for space in SPACES
        for name in sorted(path.name for path in STUDIES.glob(f"{space}*"))
        if len(ended(name)) >= SHOWN[0]
    ]
    for name in studies:
        target = make_directory(SWEEPS / name)
        for file in KEPT:
            if (STUDIES / name / file).is_file():
                shutil.copy(STUDIES / name / file, target / file)
    parts = [
        "Written by `python -m experiments.studies tables`, from what its other commands measured.",
        *_found(studies),
        *_costs(studies),
        *_kills(studies),
        *_alone(),
        *_workers(),
        *_command(studies),
    ]
    write_atomic(RESULT, "\n".join(parts).rstrip() + "\n")
    print("\n".join(parts))


def table(head: list[str], rows: list[list[Any]]) -> list[str]:
    """A table in Markdown, with an empty line before and after."""
    lines = ["", "| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    return [*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows), ""]


def best_after(trials: list[Any]) -> list[tuple[float, float]]:
    """The best ratio within the constraint after each trial that counts, with its retention; 0 where there was none."""
    from phase8.sweep.study import FIGURES, is_feasible

    path, best = [], (0.0, 0.0)
    for trial in trials:
        if is_feasible(trial) and trial.values[0] > best[0]:
            best = (trial.values[0], trial.user_attrs[FIGURES]["retention_corrected"])
        path.append(best)
    return path


def _found(studies: list[str]) -> list[str]:
    """Search, chance and hand at equal trials."""
    rows = []
    for name in studies:
        path = best_after(ended(name))
        cells = [f"{path[n - 1][0]:.2f}" if len(path) >= n and path[n - 1][0] else "" for n in SHOWN]
        rows.append([name, len(path), *cells, f"{path[-1][1]:.3f}"])
    for row in measured("hand"):
        held = "" if row["retention_corrected"] >= 0.95 else " (misses 0.95)"
        rows.append(
            [f"by hand: {row['variants']}", "", "", "", f"{row['ratio']:.2f}{held}", row["retention_corrected"]]
        )
    head = ["study", "trials", *(f"best ratio after {n}" for n in SHOWN), "its retention, corrected"]
    return ["", "## Search, chance and hand", *table(head, rows)]


def _costs(studies: list[str]) -> list[str]:
    from phase8.sweep.study import PROCESSOR_S, REASON

    kinds = {
        "not encoded: too large by estimate": "comes to about",
        "encoded, not asked: too large": "; trial",
        "ended by its preview": "its preview ends it",
    }
    rows = []
    for name in studies:
        spent: dict[str, list[float]] = {kind: [] for kind in [*kinds, "whole"]}
        for trial in ended(name):
            reason = trial.user_attrs.get(REASON, "")
            kind = next((kind for kind, words in kinds.items() if words in reason), "whole")
            if PROCESSOR_S in trial.user_attrs:
                spent[kind].append(trial.user_attrs[PROCESSOR_S])
        cells = [f"{len(found)}: {mean(found):.1f} s" if found else "0" for found in spent.values()]
        everything = [one for found in spent.values() for one in found]
        rows.append([name, f"{mean(everything):.1f} s", *cells])
    text = (
        "Processor time of a trial, mean; the first study pays for the original's scores and the Hessians, and the"
        " later ones find what it and each other encoded."
    )
    return ["", "## What a trial costs", "", text, *table(["study", "all", *kinds, "whole"], rows)]


def _kills(studies: list[str]) -> list[str]:
    from phase8.sweep.study import LOST, REPLACES, SURPLUS, counts

    rows = []
    for name in studies:
        log = STUDIES / name / "kills.jsonl"
        if not log.is_file():
            continue
        trials = trials_of(name)
        killed = [trial for trial in trials if LOST in trial.user_attrs]
        lost = [trial.number for trial in killed if trial.params]
        counted = [trial for trial in trials if counts(trial)]
        replaced = Counter(trial.user_attrs[REPLACES] for trial in counted if REPLACES in trial.user_attrs)
        rows.append([
            name, len(log.read_text().splitlines()), len(counted), sum(t.state.is_finished() for t in counted),
            len(killed), len(killed) - len(lost), sum(replaced[number] == 1 for number in lost),
            sum(count > 1 for count in replaced.values()),
            sum(SURPLUS in trial.user_attrs for trial in trials),
        ])  # fmt: skip
    head = ["study", "SIGKILLs", "trials that count", "ended", "in hand when killed", "of these without values yet",
            "taken up once", "doubled", "asked in vain"]  # fmt: skip
    return ["", "## Killed and gone on with", *table(head, rows)] if rows else []


def _alone() -> list[str]:
    rows = measured("alone")
    if not rows:
        return []
    shown = [
        [r["study"], r["trial"], r["state"], f"{r['processor_s']:.1f} s", f"{r['in_study_s']:.1f} s"] for r in rows
    ]
    alone = mean(row["processor_s"] for row in rows)
    name = rows[0]["study"]
    from phase8.sweep.study import PROCESSOR_S

    inside = mean(trial.user_attrs[PROCESSOR_S] for trial in ended(name) if PROCESSOR_S in trial.user_attrs)
    text = (
        f"The same settings as runs on their own, drawn by chance: no cache, no preview, the same items. Mean"
        f" {alone:.1f} s of processor time; a trial of `{name}`, which found in the cache what earlier studies had"
        f" encoded, took {inside:.1f} s."
    )
    return [
        "", "## Without caches and pruning", "", text,
        *table(["study", "trial", "ended", "on its own", "in the study"], shown),
    ]  # fmt: skip


def _workers() -> list[str]:
    rows = measured("workers")
    if not rows:
        return []
    alone = mean(r["seconds"] for r in rows if r["workers"] == 1)
    shown = [
        [
            r["launcher"],
            r["workers"],
            r["trials"],
            r["complete"],
            f"{r['seconds']:.0f} s",
            f"{r['seconds'] / alone:.2f}",
        ]
        for r in rows
    ]
    return [
        "", "## Two workers", "",
        "Wall time of the whole command, one thread for each worker; both begin with the original's scores and the"
        " Hessians.",
        *table(["launcher", "workers", "trials", "complete", "time", "of one worker's"], shown),
    ]  # fmt: skip


def _command(studies: list[str]) -> list[str]:
    if not studies:
        return []
    words = ["python", "run.py", *study_command(studies[0])[2:]]
    lines, line = [], ""
    for word in words:
        word = f'"{word}"' if any(sign in word for sign in " {}()'>") else word
        if line and len(line) + len(word) > 104:
            lines.append(f"    {line} \\")
            line = word
        else:
            line = f"{line} {word}".strip()
    return ["", "## The command of a study", "", *lines, f"    {line}", ""]
