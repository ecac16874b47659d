"""Items per second of an evaluation, against lm-eval with its own Hugging Face model, and whether the scores agree.

    python -m experiments.evaluation                  # embedded model -> experiments/results/evaluation.{md,json}
    python -m experiments.evaluation --items 40       # a quick look

Every benchmark of the embedded suite is run, in turns within one process, by

1. `lm-eval`, as `lm_eval run --model hf` does it when nothing else is said: one request per forward pass;
2. `lm-eval, batches of 64`: the same with `--batch_size 64`;
3. `phase8`, first time: requests are encoded and batched;
4. `phase8`, later: as every stage after the baseline sees it, with the plan kept.

Times include everything from the items to the scores; loading the model and the task files is left out for all. "Share
of the model" is the part of that time spent in the model's forward passes.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import torch

import phase8.world
from phase8.benchmarks.evaluate import _quiet, _score
from phase8.benchmarks.lm import Phase8LM, PlanCache
from phase8.benchmarks.suite import load_suite, spread
from phase8.files import write_atomic

REFERENCE = Path(phase8.world.__file__).parents[1] / "assets" / "reference"
RESULTS = Path(__file__).parent / "results"
WAYS = ("lm-eval", "lm-eval, batches of 64", "phase8, first time", "phase8, later")


class Stopwatch:
    """Seconds spent in the forward passes of some modules, none of which is inside another."""

    def __init__(self, *modules: torch.nn.Module) -> None:
        self.seconds = self._began = 0.0
        for module in modules:
            module.register_forward_pre_hook(lambda *_: setattr(self, "_began", time.perf_counter()))
            module.register_forward_hook(self._end)

    def _end(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began


def measure(model: Any, tokenizer: Any, items: int | None) -> dict[str, dict[str, dict[str, Any]]]:
    """`{way: {task: {seconds, model_seconds, items, scores}}}`."""
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    suite = load_suite(("analytical", "creative", "code", "reasoning", "communication"), samples=items)
    watch = Stopwatch(model.base_model, model.get_output_embeddings())
    cache = PlanCache()
    found: dict[str, dict[str, dict[str, Any]]] = {way: {} for way in WAYS}
    for task in suite.tasks:
        loaded = suite.loaded[task.name]
        chosen = spread(len(loaded.eval_docs), items)
        for way in WAYS:
            if way.startswith("phase8"):
                lm: Any = Phase8LM(model, tokenizer, cache=cache)
            else:
                size = 1 if way == "lm-eval" else 64
                lm = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=size, device="cpu")
            before, began = watch.seconds, time.perf_counter()
            with _quiet():
                results = evaluator.evaluate(
                    lm, {"tasks": {task.name: loaded}}, samples={task.name: chosen}, bootstrap_iters=0,
                    log_samples=True,
                )  # fmt: skip
            seconds = time.perf_counter() - began
            score = _score(task, results)
            found[way][task.name] = {
                "seconds": seconds, "model_seconds": watch.seconds - before, "items": score.n,
                "scores": score.items,
            }  # fmt: skip
        rates = ", ".join(f"{way} {found[way][task.name]['seconds']:.1f} s" for way in WAYS)
        print(f"{task.name}: {rates}", flush=True)
    return found


def table(found: dict[str, dict[str, dict[str, Any]]], threads: int) -> str:
    """Seconds per benchmark and way, ratios, and where scores differ."""
    lines = [
        "# Speed of an evaluation",
        "",
        f"`python -m experiments.evaluation`, {threads} thread(s), the embedded reference model in FP32.",
        "Seconds; ratios are to plain lm-eval.",
        "",
        f"| benchmark | items | {' | '.join(WAYS)} | ratio, first | ratio, later | items that differ |",
        f"|---|---|{'---|' * (len(WAYS) + 3)}",
    ]
    plain = found[WAYS[0]]

    def differ(task: str) -> int:
        return sum(a != b for a, b in zip(plain[task]["scores"], found[WAYS[3]][task]["scores"], strict=True))

    for task, row in plain.items():
        seconds = [found[way][task]["seconds"] for way in WAYS]
        lines.append(
            f"| {task} | {row['items']} | {' | '.join(f'{s:.2f}' for s in seconds)} | {seconds[0] / seconds[2]:.1f} | "
            f"{seconds[0] / seconds[3]:.1f} | {differ(task)} |"
        )
    total = [sum(row["seconds"] for row in found[way].values()) for way in WAYS]
    items = sum(row["items"] for row in plain.values())
    lines.append(
        f"| all | {items} | {' | '.join(f'{s:.1f}' for s in total)} | {total[0] / total[2]:.1f} | "
        f"{total[0] / total[3]:.1f} | {sum(map(differ, plain))} |"
    )
    share = [sum(row["model_seconds"] for row in found[way].values()) / t for way, t in zip(WAYS, total, strict=True)]
    lines.append(f"| items per second | | {' | '.join(f'{items / t:.0f}' for t in total)} | | | |")
    lines.append(f"| share of the model | | {' | '.join(f'{s:.0%}' for s in share)} | | | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures and writes."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description="Speed of an evaluation against plain lm-eval.")
    parser.add_argument("--items", type=int, help="so many of each benchmark; all by default")
    parser.add_argument("--threads", type=int, default=1, help="one suits plain lm-eval best on a model this small")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.environ["TQDM_DISABLE"] = "1"
    logging.disable(logging.WARNING)
    model = AutoModelForCausalLM.from_pretrained(REFERENCE, dtype=torch.float32).eval()
    found = measure(model, AutoTokenizer.from_pretrained(REFERENCE), args.items)
    text = table(found, args.threads)
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomic(args.out / "evaluation.md", text.encode())
    kept = {way: {task: {k: v for k, v in row.items() if k != "scores"} for task, row in rows.items()}
            for way, rows in found.items()}  # fmt: skip
    write_atomic(args.out / "evaluation.json", json.dumps({"threads": args.threads, "ways": kept}, indent=1).encode())


if __name__ == "__main__":
    main()
