"""The figures of one run as a small JSON, from which docs/results.md draws what the default run gives.

    python -m experiments.default_run outputs/DATE/TIME --machine "two cores, no GPU"
    python -m experiments.results_page

The directory is that of a finished run (`result.json`, `events.jsonl`; `.hydra/overrides.yaml` where it is there names
the command). Writes `experiments/results/default_run.json`: what the run is of, and a row per try of every stage.

    stage, try               `hyper`, 3 for its second retry
    bytes, ratio             on disk; FP32 bytes of the original over them
    retention_raw            mean over the core benchmarks of score / baseline, with `_interval` (95 %)
    retention_chance_corrected   the same of (score - chance) / (baseline - chance)
    edge_of_chaos            share of its questions that are answered
    bits_per_byte            of held-out text
    minutes                  from the try's beginning to its verdict, in the process that ended it
    passed, failed           the gate, and the names of the conditions that failed
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from phase8.errors import ArtifactError
from phase8.events import read_events
from phase8.files import write_atomic

ROOT = Path(__file__).parent.parent
OUT = Path(__file__).parent / "results" / "default_run.json"


def rounded(value: Any) -> Any:
    """Figures to six places, in whatever holds them."""
    if isinstance(value, float):
        return round(value, 6)
    return [rounded(one) for one in value] if isinstance(value, list) else value


def tries(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per try, in the order of the run."""
    rows = []
    for stage, entry in result["stages"].items():
        for attempt in entry["attempts"]:
            row = {
                "stage": stage,
                "try": attempt["attempt"],
                "bytes": attempt["bytes"],
                "ratio": attempt["ratio"],
                "retention_raw": attempt["core_retention"],
                "retention_raw_interval": attempt["core_retention_interval"],
                "retention_chance_corrected": attempt["core_retention_corrected"],
                "retention_chance_corrected_interval": attempt["core_retention_corrected_interval"],
                "edge_of_chaos": (attempt["edge_of_chaos"] or {}).get("accuracy"),
                "bits_per_byte": attempt["bits_per_byte"],
                "minutes": attempt["seconds"] / 60,
                "passed": attempt["passed"],
                "failed": [check["name"] for check in attempt["checks"] if check["passed"] is False],
            }
            rows.append({name: rounded(value) for name, value in row.items()})
    return rows


def summary(directory: Path, commit: str, machine: str, note: str = "") -> dict[str, Any]:
    """Everything that `default_run.json` holds.

    Raises:
        ArtifactError: the run has not ended.
    """
    path = directory / "result.json"
    if not path.is_file():
        raise ArtifactError("no result.json: the run has not ended", where=str(directory), fix="resume it")
    result = json.loads(path.read_text(encoding="utf-8"))
    events = list(read_events(directory / "events.jsonl"))
    start = next(event.data for event in events if event.kind == "run_start")
    overrides = directory / ".hydra" / "overrides.yaml"
    changed = OmegaConf.to_container(OmegaConf.load(overrides)) if overrides.is_file() else []
    edge = next((row for name, row in result["metrics"]["benchmarks"].items() if "edge_of_chaos" in name), None)
    return {
        "command": " ".join(["python run.py", *map(str, changed or [])]),
        "commit": commit,
        "machine": machine,
        "note": note,
        "success": result["success"],
        "ends_at": result["compression_level"],
        "minutes": rounded(result["seconds"] / 60),
        "processes": 1 + sum(event.kind == "run_resumed" for event in events),
        "retries_allowed": start.limits.max_retries,
        "edge_needed": [start.limits.edge_low, start.limits.edge_high],
        "edge_original": None if edge is None else edge["baseline"],
        "bits_per_byte_original": rounded(result["metrics"]["bits_per_byte"]["baseline"]),
        "tries": tries(result),
    }


def main() -> int:
    """Writes the JSON of one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--machine", required=True, help="in words: cores, GPU, what ran beside it")
    parser.add_argument("--commit", default="", help="that the run was of; the repository's, where it is left out")
    parser.add_argument("--note", default="", help="what else a reader has to know, in a sentence or two")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    head = ["git", "rev-parse", "--short", "HEAD"]
    commit = options.commit or subprocess.run(head, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    found = summary(options.directory, commit, options.machine, options.note)
    write_atomic(options.out, json.dumps(found, indent=1) + "\n")
    print(f"{len(found['tries'])} tries -> {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
