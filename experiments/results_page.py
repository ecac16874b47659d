"""docs/results.md, whole: plain sentences around the figures of `experiments/results/`.

    python -m experiments.results_page        # measures nothing; seconds

No figure is typed here that a file there holds. Whoever measures again runs the script that a section names, then this
one. `old.json` there says which results are of an older format or older settings, and why; the page says it with them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.page_words import RESULTS, listed, load, percent, table, wrapped
from experiments.results_page_codecs import codecs
from phase8.files import write_atomic

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results.md"
NAMES = {"seedlm": "SeedLM", "vptq": "VPTQ", "hyper": "the trained stage"}
ENDS = {**NAMES, "hypercompression": NAMES["hyper"], "phase7_fallback": "the original"}
"""By the `compression_level` of a result."""
GPU = "python -m experiments.frontier_gpu 440 DIRECTORY"


def kept(row: dict[str, Any], name: str) -> str:
    """A figure of the scoreboard with its interval."""
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return f"{row[name]:.3f}" + (f" ({low:.3f} to {high:.3f})" if low is not None else "")


# ------------------------------------------------------------------------------------------------------- the sections


def head() -> list[str]:
    """What the page is, and what in it is old."""
    old = load("old.json")
    reasons = {why: [f"`{name}`" for name, of in old.items() if of == why] for why in old.values()}
    aged = " ".join(f"{listed(names)}: {why}." for why, names in reasons.items())
    parts = [
        "# What was measured",
        wrapped(
            "Made by `python -m experiments.results_page` from the files in `experiments/results/`; every figure names "
            "the command that reproduces it. Machine: two cores, no GPU, unless said otherwise. The frontier (quality "
            "against size, ours and others') has a page of its own: `experiments/SCOREBOARD.md`; what was tried and "
            "did not work is in `experiments/LOG.md`."
        ),
    ]
    if old:
        parts.append(
            wrapped(f"**What is old**, and may differ from what the same command gives today (`old.json`): {aged}")
        )
    return parts


def the_default_run() -> list[str]:
    """The run that `make run` starts, try by try."""
    run = load("default_run.json")
    low, high = run["edge_needed"]
    rows = []
    for row in run["tries"]:
        raw, corrected = row["retention_raw_interval"], row["retention_chance_corrected_interval"]
        failed = ", ".join(name.replace("_", " ") for name in row["failed"])
        rows.append(
            [
                f"{NAMES[row['stage']]}, try {row['try']}",
                f"{row['bytes']:,}",
                f"{row['ratio']:.1f}x",
                f"{row['retention_raw']:.3f} ({raw[0]:.3f} to {raw[1]:.3f})",
                f"{row['retention_chance_corrected']:.3f} ({corrected[0]:.3f} to {corrected[1]:.3f})",
                f"{row['edge_of_chaos']:.3f}",
                f"{row['bits_per_byte']:.3f}",
                f"{row['minutes']:.0f}",
                "passed" if row["passed"] else f"failed: {failed}",
            ]
        )
    heads = ["", "bytes", "ratio", "core raw", "chance-corrected", "edge of chaos", "bits per byte", "minutes", "gate"]
    last = run["tries"][-1]
    begun = " It was stopped and went on by `resume`." if run["processes"] > 1 else ""
    if run["success"]:
        ended = f"It ends at {ENDS[run['ends_at']]}, {last['ratio']:.1f}x, with `success: true`."
    else:
        missed = "" if last["passed"] else f"{NAMES[last['stage']]} failed after {last['try']} tries: "
        ended = f"{missed}the run ends at {ENDS[run['ends_at']]} with `success: false`."
        ended = ended[0].upper() + ended[1:]
    return [
        "## The default run",
        wrapped(
            f"`{run['command']}` (or `make run`), all three stages; {run['minutes']:.0f} minutes in all, "
            f"{run['machine']}; commit {run['commit']}.{begun} {run['note']} Retention is the mean over the seven core "
            "benchmarks of score / baseline; the chance-corrected one takes (score - chance) / (baseline - chance), so "
            "that a guesser keeps 0. Brackets: 95 % intervals over items. One seed."
        ),
        table(heads, rows),
        wrapped(
            f"{ended} Edge of chaos is the condition that decides: it needs {low:.2f} to {high:.2f}, and the original "
            f"has {run['edge_original']:.3f}. The original takes {run['bits_per_byte_original']:.3f} bits per byte of "
            f"held-out text. A stage may be tried {1 + run['retries_allowed']} times; a retry of the trained stage "
            "trains on from the file that failed. These figures: `python -m experiments.default_run RUN_DIR`."
        ),
    ]


def frontier() -> list[str]:
    """The trained stage alone: on two cores, and with a GPU."""
    rows = [row for row in load("frontier.json") if row["model"] == "reference" and row["retention_raw"] is not None]
    rows.sort(key=lambda row: -row["retention_raw"])
    here = [row for row in rows if row["method"] == "trained lattice" and row["command"] != GPU]
    there = [row for row in rows if row["command"] == GPU]
    run = load("frontier_run.json")
    return [
        "## Trained within a byte budget",
        wrapped(
            "Rows of the scoreboard, one or two cores, with and without bfloat16, shared with other work; the commands "
            "stand below the table. Seven core benchmarks; 95 % intervals over items."
        ),
        table(["bytes", "ratio", "core raw", "chance-corrected", "bits per byte", "tokens trained", "what"],
              [[*figures(row), f"{row['trained_tokens'] / 1e6:.1f} million", row["setting"]] for row in here]),
        "\n".join(f"- `{command}`" for command in dict.fromkeys(row["command"] for row in here)),
        wrapped(
            f"Edge of chaos over the tries of `{run['command']}`: "
            f"{listed([f'{value:.3f}' for value in run['edge_of_chaos']])} ({run['source']})."
        ),
        wrapped(
            f"**Five minutes of a GPU** (`{GPU}`, {len(there)} points side by side on one H200, "
            f"{min(r['trained_tokens'] for r in there) / 1e6:.0f} to "
            f"{max(r['trained_tokens'] for r in there) / 1e6:.0f} million tokens each; scored by the same command with "
            "`--rows` on two cores):"
        ),
        table(["bytes", "ratio", "core raw", "chance-corrected", "bits per byte", "seed", "what"],
              [[*figures(row), str(row["seed"]), row["setting"].split(", 64 seq")[0]] for row in there]),
        wrapped("What limits 280x: `experiments/LOG.md`."),
        cost_of_training(),
    ]  # fmt: skip


def figures(row: dict[str, Any]) -> list[str]:
    """Five cells of a row of the scoreboard."""
    cells = [f"{row['artifact_bytes']:,}", f"{row['ratio']:.1f}x"]
    return [*cells, kept(row, "retention_raw"), kept(row, "retention_chance_corrected"), f"{row['bits_per_byte']:.3f}"]


def cost_of_training() -> str:
    """What a step costs."""
    small, large = load("training_cost.json")
    return wrapped(
        f"What a step costs (`python -m experiments.training_cost`): {small['step_s']:.2f} s for the embedded model, "
        f"and {large['step_over_bare']:.2f} times the bare passes for a Llama of {large['parameters'] / 1e6:.0f} "
        f"million parameters, which takes {large['step_s_per_million']:,.0f} s for a million tokens and "
        f"{large['peak_mb'] / 1000:.1f} GB of memory."
    )


def variants() -> list[str]:
    """Every variant, three closed-form stages each."""
    found, old = load("variants.json"), load("old.json").get("variants")
    mark = " (old)" if old else ""
    said = f" **These rows are old**: {old}." if old else ""
    return [
        f"## The variants{mark}",
        wrapped(
            "`python -m experiments.variants` runs each variant as `python run.py compressor=NAME`, and three stages "
            f"on their own.{said} \"Gate\" is the stage's whole gate: core and expert retention, edge of chaos, the "
            "four rules. Every benchmark of every row: `experiments/results/variants.md`."
        ),
        load("variants.md").strip().split("\n\n")[0],
        wrapped(low_rates(found)),
        wrapped(
            "The reference model needs its width: a control half as wide keeps less of its core average than any "
            "stage's threshold allows (`phase8/assets/reference/README.md`, with the figures)."
        ),
    ]  # fmt: skip


def low_rates(found: dict[str, Any]) -> str:
    """What the closed forms leave at the highest ratios."""
    last = [(name, stage, entry) for name, result in found.items() for stage, entry in result["stages"].items()]
    told = {}
    for name, stage, entry in last:
        share = entry["attempts"][-1]["core_retention_corrected"]
        if share is not None and share < 0.1:
            told[stage, round(entry["ratio"], 1)] = f"{NAMES[stage]} at {entry['ratio']:.0f}x ({name}) {percent(share)}"
    names = {"hyper": "Hyper-Compression"}
    words = [text.replace(NAMES["hyper"], names["hyper"]) for text in told.values()]
    return (
        f"At the rates that 280x needs, fitting weights leaves little more than chance, whatever the stage; "
        f"chance-corrected: {listed(words)}. That is why the last stage trains what it stores."
    )


def gates() -> list[str]:
    """What a verdict is worth."""
    found = load("gates.json")
    rates = found["pass_rates"]["200"]
    columns = ["0.93", "0.94", "0.95", "0.96", "0.97"]
    rows = [
        [f"`{policy}`", *(f"{rates[column][policy]['vptq']:.2f}" for column in columns)]
        for policy in ("point", "confident", "not_worse")
    ]
    attempt = load("variants.json")["default"]["stages"]["vptq"]["attempts"][0]
    edge = next(check for check in attempt["checks"] if check["name"] == "edge_of_chaos")
    close = "" if edge["passed"] or not edge["low"] < edge["threshold"] < edge["high"] else (
        f"An example: in `default` of the variants above, VPTQ at {attempt['ratio']:.1f}x fails on edge of chaos with "
        f"{edge['value']:.3f}, 90 % interval {edge['low']:.3f} to {edge['high']:.3f}, against {edge['threshold']:.2f}. "
        "That is too close to call: `gates.policy=not_worse` does not fail such a figure, `confident` passes none of "
        "its kind."
    )  # fmt: skip
    return [
        "## What a gate is worth",
        wrapped(
            "A figure near its threshold passes or fails by chance: a benchmark has 200 items. Every condition "
            "therefore shows its 90 % interval (paired over items, `phase8/judge/resample.py`), and `gates.policy` "
            "says who bears the doubt (`phase8/judge/policy.py`):"
        ),
        "- `point`, the default and the specification: the measured figure decides.\n"
        "- `confident`: every condition has to hold with 95 % confidence.\n"
        "- `not_worse`: only a significant loss fails, corrected over all conditions of the gate (Holm).",
        wrapped(
            f"How often each passes a model whose true core retention is known, at the `vptq` stage (threshold 0.95), "
            f"seven benchmarks of 200 items, {found['repeats']} simulated pairs per figure:"
        ),
        table(["policy", *(f"true retention {column}" for column in columns)], rows),
        wrapped(
            "Below 0.95 a pass is false, from 0.95 on a failure is. All stages, more and fewer items, the plot: "
            f"`python -m experiments.gates` (`experiments/results/gates.md`). {close}"
        ),
    ]


def every_table() -> list[str]:
    """Whatever lies in `experiments/results/`, with its title and command."""
    rows = []
    for path in sorted(RESULTS.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        title = text.lstrip().splitlines()[0]
        command = re.search(r"`(python [^`]+)`", text)
        script = f"python -m experiments.{path.stem}" if (HERE / f"{path.stem}.py").is_file() else "-"
        rows.append(
            [
                f"`{path.name}`",
                title.removeprefix("# ") if title.startswith("# ") else "-",
                f"`{' '.join(command[1].split()) if command else script}`",
            ]
        )
    return ["## Every table", table(["`experiments/results/`", "what", "made by"], rows)]


SECTIONS: tuple[Callable[[], list[str]], ...] = (
    head,
    the_default_run,
    frontier,
    variants,
    codecs,
    gates,
    every_table,
)


def page() -> str:
    """The whole of docs/results.md."""
    return "\n\n".join(part for section in SECTIONS for part in section()) + "\n"


def main() -> int:
    """Writes the page."""
    write_atomic(PAGE, page())
    print(f"{len(page().split())} words -> {PAGE}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
