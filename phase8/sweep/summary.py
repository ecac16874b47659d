"""The summary of a plain multirun: what each job came to, in the terminal and as `summary.html` and `summary.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phase8.files import write_atomic
from phase8.watch.compare import print_comparison, write_comparison
from phase8.watch.runs import Run, read_run


def summarise_jobs(root: Path, outcomes: Sequence[dict[str, Any]]) -> None:
    """Prints and writes the summary.

    Args:
        outcomes: one per job: `state`, `reason`, `overrides`, `directory`, `figures`.

    Raises:
        OutputError: it cannot be written.
    """
    write_atomic(root / "summary.json", json.dumps(list(outcomes), indent=1, default=str) + "\n")
    runs = [_run(outcome) for outcome in outcomes]
    failed = [run for run in runs if run.state != "COMPLETE"]
    print(f"\n{len(runs)} jobs, {len(runs) - len(failed)} finished, {len(failed)} did not")
    if any(run.result is not None for run in runs):
        print_comparison(runs)
    else:  # a program without results of ours, or all failed
        for run in runs:
            print(f"{run.name}: {run.state.lower()}{': ' if run.reason else ''}{run.reason}")
    page = write_comparison(
        root / "summary.html",
        runs,
        title=f"Phase 8: multirun {root.name}",
        intro=f"{len(runs)} jobs, {len(failed)} of which did not finish. Directory: {root}",
    )
    print(f"summary: {page}")


def _run(outcome: dict[str, Any]) -> Run:
    directory = Path(outcome["directory"])
    run = read_run(directory, f"{directory.name} ({' '.join(_told(outcome['overrides'])) or 'as it is'})")
    run.state, run.reason, run.overrides = outcome["state"], outcome["reason"], list(outcome["overrides"])
    return run


def _told(overrides: Sequence[str]) -> list[str]:
    return [text for text in overrides if not text.startswith("hydra.")]
