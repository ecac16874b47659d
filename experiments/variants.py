"""Runs every compressor variant on the embedded model and tabulates what came out.

    python -m experiments.variants                 all, about an hour on two cores
    python -m experiments.variants default         one

Each run is an ordinary `python run.py` with the overrides of `VARIANTS`; one that is there already (same directory) is
not repeated. Writes `experiments/results/variants.md` and `variants.json` (every figure), from which `python -m
experiments.results_page` makes the table of docs/results.md. Rows measured anew are no longer old: take `variants` out
of `experiments/results/old.json` then.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
VARIANTS = {
    "default": ["compressor=default"],
    "max_compression": ["compressor=max_compression"],
    "quality_preserving": ["compressor=quality_preserving"],
    "skip_hyper": ["compressor=skip_hyper"],
    "as_printed": ["compressor=as_printed"],
    # Stages without training that no gate lets the whole run reach, on their own:
    "winding_alone": [
        "seedlm.enabled=false",
        "vptq.enabled=false",
        "hyper.trajectory_type=ergodic",
        "hyper.target_ratio=null",
    ],
    "as_printed_vptq_alone": ["compressor=as_printed", "seedlm.enabled=false", "hyper.enabled=false"],
    "as_printed_hyper_alone": ["compressor=as_printed", "seedlm.enabled=false", "vptq.enabled=false"],
}
RUNS = ROOT / "outputs" / "variants"
RESULTS = Path(__file__).parent / "results"


def rounded(found: Any) -> Any:
    """Figures to four places, without what the attempts say already (`metrics`) and the tensors left alone."""
    if isinstance(found, float):
        return round(found, 4)
    if isinstance(found, dict):
        return {key: rounded(value) for key, value in found.items() if key not in ("metrics", "left_alone")}
    return [rounded(value) for value in found] if isinstance(found, list) else found


def run(variant: str) -> dict:
    """Runs one variant unless its result is there; returns the content of `result.json`."""
    directory = RUNS / variant
    path = directory / "result.json"
    if not path.is_file():
        command = [
            sys.executable,
            str(ROOT / "run.py"),
            *VARIANTS[variant],
            f"hydra.run.dir={directory}",
            f"paths.cache_dir={RUNS / 'cache'}",
        ]
        subprocess.run(command, check=True, cwd=ROOT)
    return json.loads(path.read_text(encoding="utf-8"))


def percent(value: float | None) -> str:
    """0.9731 -> `97.3`."""
    return "-" if value is None else f"{100 * value:.1f}"


def stage_rows(variant: str, result: dict) -> list[str]:
    """One row of the table per attempt of every stage."""
    rows = []
    for stage, entry in result["stages"].items():
        for attempt in entry["attempts"]:
            verdict = "passed" if attempt["passed"] else ("abort" if attempt["abort"] else "failed") + why(attempt)
            rows.append(
                f"| {variant} | {stage} | {attempt['attempt']} | {attempt['bytes']:,} | {attempt['ratio']:.1f} "
                f"| {attempt['bits_per_weight']:.2f} | {percent(attempt['core_retention'])} "
                f"| {percent(attempt['core_retention_corrected'])} | {verdict} |"
            )
    ratio, verdict = result["metrics"]["total_compression_ratio"], "success" if result["success"] else "no success"
    rows.append(f"| **{variant}** | **ends at {result['compression_level']}** | | | {ratio:.1f} | | | | {verdict} |")
    return rows


def why(attempt: dict) -> str:
    """The conditions that failed, with their figures, the first three."""
    failed = [check for check in attempt["checks"] if check["passed"] is False]
    named = [f"{check['name']} {check['value']:.3f}" for check in failed[:3]]
    more = [f"{len(failed) - 3} more"] if len(failed) > 3 else []
    return ": " + ", ".join(named + more) if failed else ""


def benchmark_rows(results: dict[str, dict]) -> list[str]:
    """Raw / chance-corrected retention in percent per benchmark, of the last attempt at every stage that was run."""
    baseline = next(iter(results.values()))["metrics"]["benchmarks"]
    names = [task.removeprefix("mini_") for task in baseline]
    chances = [f"{row['chance']:.2f}" for row in baseline.values()]
    scores = [f"{row['baseline']:.3f} ± {row['stderr']:.3f}" for row in baseline.values()]
    lines = [
        f"| variant, stage | {' | '.join(names)} |",
        "| --- " * (1 + len(names)) + "|",
        f"| baseline score | {' | '.join(scores)} |",
        f"| chance | {' | '.join(chances)} |",
    ]
    for variant, result in results.items():
        for stage, entry in result["stages"].items():
            rows = entry["attempts"][-1]["benchmarks"].values()
            cells = [f"{percent(row['retention'])} / {percent(row['retention_corrected'])}" for row in rows]
            lines.append(f"| {variant}, {stage}, {entry['ratio']:.1f}x | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Runs what is asked for and writes both files."""
    results = {variant: run(variant) for variant in (sys.argv[1:] or VARIANTS)}
    lines = [
        "| variant | stage | attempt | bytes on disk | ratio | bits per weight | core retention raw, % "
        "| chance-corrected, % | gate |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for variant, result in results.items():
        lines.extend(stage_rows(variant, result))
    caption = "Raw / chance-corrected retention in percent, last attempt at each stage:"
    text = "\n".join([*lines, "", caption, "", *benchmark_rows(results), ""])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "variants.md").write_text(text, encoding="utf-8")
    # A run records its directory in full; what is published is relative to the repository.
    every = ",\n".join(f"{json.dumps(name)}: {json.dumps(rounded(result))}" for name, result in results.items())
    every = every.replace(f"{ROOT}/", "")
    (RESULTS / "variants.json").write_text(f"{{\n{every}\n}}\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
