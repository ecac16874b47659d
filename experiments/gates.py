"""How often each gate policy passes a model whose true retention is known.

    python -m experiments.gates

Seven core benchmarks of n items are drawn: the baseline answers 80 % rightly, the compressed model keeps each right
answer, and finds each missed one, with the chances that make its expected score `retention` times the baseline's and
let it gain a fifth of what it loses, as compressed models do. `phase8.judge.gates.judge_stage` with the shipped
thresholds judges such pairs. Edge of chaos and the rules are left out: their figures are absolute, not retentions.

Writes `experiments/results/gates.md`, `gates.json` and `gates.png`. A pass where the true retention is below a stage's
threshold is a false pass; a failure where it is at or above is a false failure.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from phase8.benchmarks.evaluate import Score, SuiteResult
from phase8.codecs.stages import NAMES
from phase8.config import GateConfig, GatePolicy
from phase8.files import write_atomic
from phase8.judge.gates import judge_stage

BENCHMARKS = ("MMLU", "GSM8K", "HumanEval", "HellaSwag", "ARC-Challenge", "TruthfulQA", "WinoGrande")
ACCURACY = 0.8
GAINED = 0.2
"""Newly right answers per newly wrong one."""
ITEMS = (100, 200, 500, 1000, 2000)
RETENTION = tuple(round(0.80 + 0.01 * step, 2) for step in range(21))
RESULTS = Path(__file__).parent / "results"


def drawn(generator: np.random.Generator, items: int, retention: float) -> tuple[SuiteResult, SuiteResult]:
    """Baseline and compressed model on the same items."""
    lost = ACCURACY * (1 - retention) / (1 - GAINED)
    scores: tuple[dict[str, Score], dict[str, Score]] = ({}, {})
    for name in BENCHMARKS:
        before = generator.random(items) < ACCURACY
        chance = np.where(before, 1 - lost / ACCURACY, GAINED * lost / (1 - ACCURACY))
        after = generator.random(items) < chance
        for answers, made in zip((before, after), scores, strict=True):
            made[name] = Score(
                task=name, role="core", stands_for=name, experts=("all",), chance=0.0,
                items=tuple(answers.astype(float)),
            )  # fmt: skip
    return SuiteResult(scores=scores[0]), SuiteResult(scores=scores[1])


def pass_rates(items: int, retention: float, repeats: int) -> dict[str, dict[str, float]]:
    """Share of passes by policy and stage."""
    generator = np.random.default_rng([items, round(1000 * retention)])
    passes = {policy.value: dict.fromkeys(NAMES, 0) for policy in GatePolicy}
    for _ in range(repeats):
        baseline, result = drawn(generator, items, retention)
        for policy in GatePolicy:
            for stage in NAMES:
                verdict = judge_stage(
                    stage, baseline=baseline, stage_input=baseline, result=result, max_accuracy_loss=0.16,
                    config=GateConfig(policy=policy),
                )  # fmt: skip
                passes[policy.value][stage] += verdict.passed
    return {policy: {stage: n / repeats for stage, n in found.items()} for policy, found in passes.items()}


def table(rates: dict[int, dict[float, dict[str, dict[str, float]]]], repeats: int) -> str:
    """Per stage, policy and number of items: the pass rate one and two points below the threshold, at it, and above."""
    lines = [
        "# How often each gate policy passes",
        "",
        f"`python -m experiments.gates`: {repeats} simulated pairs per cell, seven core benchmarks of n",
        "items, a baseline at 80 %, the shipped thresholds and abort limits. Columns: true retention relative to the",
        "stage's threshold. Left of it a pass is false, at it and right of it a failure is false. At 0.80 and 0.81 the",
        "cumulative limit (0.84) and the limit per benchmark (0.80) fail a model as well.",
        "",
        "| stage | policy | items | -0.03 | -0.02 | -0.01 | at threshold | +0.01 | +0.02 | 1.00 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    config = GateConfig()
    for stage in NAMES:
        threshold = getattr(config.core, stage)
        for policy in GatePolicy:
            for items, by_retention in rates.items():
                wanted = [round(threshold + 0.01 * step, 2) for step in range(-3, 3)]
                known = [by_retention.get(at) for at in [*wanted, 1.0]]
                cells = ["" if found is None else f"{found[policy.value][stage]:.2f}" for found in known]
                lines.append(f"| {stage} | {policy.value} | {items} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(rates: dict[int, dict[float, dict[str, dict[str, float]]]], path: Path) -> None:
    """Pass rate against true retention; a row per policy, a column per stage, a line per number of items."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(GatePolicy), len(NAMES), figsize=(10, 7.5), sharex=True, sharey=True)
    shades = plt.get_cmap("viridis")(np.linspace(0.85, 0.1, len(rates)))
    for row, policy in zip(axes, GatePolicy, strict=True):
        for axis, stage in zip(row, NAMES, strict=True):
            for shade, (items, found) in zip(shades, rates.items(), strict=True):
                axis.plot(list(found), [r[policy.value][stage] for r in found.values()], color=shade, label=f"{items}")
            axis.axvline(getattr(GateConfig().core, stage), color="0.4", linestyle="--", linewidth=1)
            axis.set_title(f"{policy.value}, {stage}", fontsize=10)
    for axis in axes[:, 0]:
        axis.set_ylabel("share of passes")
    for axis in axes[-1]:
        axis.set_xlabel("true retention")
    axes[0, 0].legend(title="items", frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    """Simulates and writes the three files."""
    parser = argparse.ArgumentParser(description="False passes and false failures of the gate policies.")
    parser.add_argument("--repeats", type=int, default=120)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rates: dict[int, dict[float, dict[str, dict[str, float]]]] = {}
    for items in ITEMS:
        rates[items] = {retention: pass_rates(items, retention, args.repeats) for retention in RETENTION}
        print(f"{items} items done", flush=True)
    write_atomic(args.out / "gates.json", json.dumps({"repeats": args.repeats, "pass_rates": rates}, indent=1).encode())
    write_atomic(args.out / "gates.md", table(rates, args.repeats).encode())
    plot(rates, args.out / "gates.png")


if __name__ == "__main__":
    main()
