"""Trained points of the frontier on the embedded model: each a run of its own, resumable, and a row of the scoreboard.

    python -m experiments.frontier                        # every point; hours
    python -m experiments.frontier --only 40x 280x        # points whose name begins so
    python -m experiments.frontier --list
    python -m experiments.frontier --runs DIRECTORY       # where the runs lie; outputs/frontier by default

A point is `python run.py experiment=frontier OVERRIDES`. One that has ended is not repeated; one that was stopped goes
on. The benchmarks' items are asked once for each point, at its end: points are chosen by text and validation items.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.scoreboard import add_row

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Point:
    """What is run: `shape` are shares of width, units, heads and a head's channels."""

    name: str
    ratio: float
    shape: tuple[float, float, float, float]
    steps: int
    seed: int = 0
    more: tuple[str, ...] = ()

    @property
    def overrides(self) -> list[str]:
        """On the command line of `run.py`."""
        width, units, heads, head_size = self.shape
        found = [f"hyper.target_ratio={self.ratio:g}", f"hyper.kept_width={width:g}", f"hyper.kept_units={units:g}"]
        found += [f"hyper.kept_heads={heads:g}"] if heads < 1 else []
        found += [f"hyper.kept_head_size={head_size:g}"]
        return [*found, f"training.steps={self.steps}", *([f"seed={self.seed}"] if self.seed else []), *self.more]


AS_LAST = ("training.mix=last",)
"""What was the default when these were measured."""

POINTS = (
    Point("6.6x", 6.6, (1.0, 1.0, 1.0, 1.0), 1600, more=("training.lr=0.004", "training.sequences=16384", *AS_LAST)),
    Point("8x", 8.0, (1.0, 1.0, 1.0, 1.0), 1500, more=("training.sequences=16384",)),
    Point("16x", 16.1, (1.0, 1.0, 1.0, 1.0), 1500, more=("training.sequences=16384", *AS_LAST)),
    Point("40x", 40.2, (0.53125, 0.5341, 1.0, 0.5), 10000, more=AS_LAST),
    Point("100x", 100.0, (0.375, 0.2727, 0.5, 1.0), 32000, more=AS_LAST),
    Point(
        "280x, width 48, 144 units, heads of 16 channels", 280.0, (0.1875, 0.2045, 1.0, 0.25), 80000,
        more=("training.lr=0.02", *AS_LAST),
    ),
    Point(
        "280x, core mix with habits, certainty 1, width 48, 224 units, heads of 16 channels", 280.0,
        (0.1875, 0.3182, 1.0, 0.25), 175000,
        more=(
            "training.ramp=0.15", "training.mix=core", "training.sequences=98304",
            "training.lr=0.014", "training.certainty=1",
        ),
    ),
    Point(
        "280x, width 40, 104 units, half the heads", 280.0, (0.1563, 0.1477, 0.5, 1.0), 30000,
        more=("training.lr=0.014", *AS_LAST),
    ),
)  # fmt: skip


def attempt_of(run_dir: Path) -> dict[str, Any] | None:
    """The trained stage's first attempt, of a run that has ended."""
    path = run_dir / "result.json"
    if not path.exists():
        return None
    attempts = json.loads(path.read_text()).get("stages", {}).get("hyper", {}).get("attempts", [])
    return attempts[0] if attempts else None


def run(point: Point, run_dir: Path) -> dict[str, Any] | None:
    """Runs a point, or the rest of it."""
    if attempt_of(run_dir) is None:
        fresh = ["experiment=frontier", *point.overrides, f"hydra.run.dir={run_dir}"]
        arguments = [f"resume={run_dir}"] if (run_dir / "events.jsonl").exists() else fresh
        subprocess.run([sys.executable, str(ROOT / "run.py"), *arguments], cwd=ROOT, check=True)
    return attempt_of(run_dir)


def row_of(point: Point, run_dir: Path, attempt: dict[str, Any]) -> dict[str, Any]:
    """The scoreboard's row, from what the run wrote."""
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    steps = [e["data"]["step"] for e in events if e["kind"] == "training_progress"]
    config = _settings(run_dir)
    tokens = max(steps) * config["training"]["batch_sequences"] * config["optimizer"]["sequence_tokens"]
    row = {
        "method": "trained lattice",
        "setting": f"{point.name}, {point.steps:,} steps",
        "ours": True,
        "group": "ours, trained",
        "model": "reference",
        "artifact_bytes": attempt["bytes"],
        "ratio": attempt["ratio"],
        "retention_raw": attempt["core_retention"],
        "retention_chance_corrected": attempt["core_retention_corrected"],
        "bits_per_byte": attempt["bits_per_byte"],
        "seed": point.seed,
        "trained_tokens": tokens,
        "training_s": _training_seconds(events),
        "command": f"python run.py experiment=frontier {' '.join(point.overrides)}",
    }
    for name, field in (
        ("retention_raw", "core_retention"),
        ("retention_chance_corrected", "core_retention_corrected"),
    ):
        low, high = attempt[f"{field}_interval"]
        row |= {f"{name}_low": low, f"{name}_high": high}
    return row


def _training_seconds(events: list[dict[str, Any]]) -> float:
    """Of every process that trained, until it ended or was stopped; the original's answers count."""
    seconds, begun, last = 0.0, None, 0.0
    for event in events:
        if event["data"].get("step") in ("answers", "optimise") and event["kind"] != "step_complete":
            begun, last = begun or event["time"], event["time"]
        elif begun is not None and event["kind"] in ("step_complete", "run_resumed"):
            seconds, begun = seconds + (event["time"] if event["kind"] == "step_complete" else last) - begun, None
    return seconds if begun is None else seconds + last - begun


def _settings(run_dir: Path) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.load(run_dir / "config.yaml"))


def main() -> int:
    """Runs what is missing and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""])
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs" / "frontier")
    options = parser.parse_args()
    chosen = [point for point in POINTS if point.name.startswith(tuple(options.only))]
    for point in chosen:
        if options.list:
            print(point.name, *point.overrides, sep="\n    ")
            continue
        run_dir = options.runs / f"{point.name.replace(', ', '_').replace(' ', '-')}_seed{point.seed}"
        attempt = run(point, run_dir)
        if attempt is None:
            print(f"{point.name}: no result, see {run_dir}")
            continue
        add_row(row_of(point, run_dir, attempt))
        print(f"{point.name}: {attempt['ratio']:.1f}x, {attempt['core_retention']:.3f} raw", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
