"""Runs every compressor variant on the embedded model and tabulates what came out.

    python -m experiments.variants                 all five, about 20 minutes on two cores
    python -m experiments.variants default         one

Each run is an ordinary `python run.py compressor=NAME`; a run that is there already (same directory) is not repeated.
Writes `experiments/results/variants.md` and `variants.json` (every figure), and, where all five were run, the table
between the README's `results` marks.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from phase8.files import write_atomic

ROOT = Path(__file__).parent.parent
VARIANTS = ("default", "max_compression", "quality_preserving", "skip_hyper", "as_printed")
RUNS = ROOT / "outputs" / "variants"
RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- results: written by experiments/variants.py -->", "<!-- /results -->"


def run(variant: str) -> dict:
    """Runs one variant unless its result is there; returns the content of `result.json`."""
    directory = RUNS / variant
    path = directory / "result.json"
    if not path.is_file():
        command = [
            sys.executable,
            str(ROOT / "run.py"),
            f"compressor={variant}",
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
            verdict = "passed" if attempt["passed"] else "failed" + (" (abort)" if attempt["abort"] else "")
            rows.append(
                f"| {variant} | {stage} | {attempt['attempt']} | {attempt['bytes']:,} | {attempt['ratio']:.1f} "
                f"| {attempt['bits_per_weight']:.2f} | {percent(attempt['core_retention'])} "
                f"| {percent(attempt['core_retention_corrected'])} | {verdict} |"
            )
    ratio, verdict = result["metrics"]["total_compression_ratio"], "success" if result["success"] else "no success"
    rows.append(f"| **{variant}** | **ends at {result['compression_level']}** | | | {ratio:.1f} | | | | {verdict} |")
    return rows


def benchmark_rows(results: dict[str, dict]) -> list[str]:
    """Retention per benchmark of the artifact that each variant ended with."""
    names = list(results)
    lines = [
        f"| benchmark | chance | baseline | {' | '.join(f'{name}: score, raw %, corrected %' for name in names)} |",
        "| --- " * (3 + len(names)) + "|",
    ]
    first = next(iter(results.values()))["metrics"]["benchmarks"]
    for task, figures in first.items():
        cells = []
        for result in results.values():
            row = result["metrics"]["benchmarks"][task]
            cells.append(f"{row['final']:.3f}, {percent(row['retention'])}, {percent(row['retention_corrected'])}")
        baseline = f"{figures['baseline']:.3f} ± {figures['stderr']:.3f}"
        lines.append(f"| {task} | {figures['chance']:.2f} | {baseline} | " + " | ".join(cells) + " |")
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
    text = "\n".join([*lines, "", *benchmark_rows(results), ""])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "variants.md").write_text(text, encoding="utf-8")
    (RESULTS / "variants.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if list(results) == list(VARIANTS):
        readme = ROOT / "README.md"
        before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
        write_atomic(readme, f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{rest.split(END)[1]}")
    print(text)


if __name__ == "__main__":
    main()
