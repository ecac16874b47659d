"""The summary of a plain multirun: what each job came to, in the terminal and in the multirun's directory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phase8.files import write_atomic


def summarise_jobs(root: Path, outcomes: Sequence[dict[str, Any]]) -> None:
    """Prints the table of jobs and writes `summary.json`."""
    write_atomic(root / "summary.json", json.dumps(list(outcomes), indent=1, default=str) + "\n")
    for outcome in outcomes:
        print(outcome)
