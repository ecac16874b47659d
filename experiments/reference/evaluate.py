"""Scores a model directory on the mini benchmarks with lm-eval.

    python -m experiments.reference.evaluate phase8/assets/reference --out outputs/reference/scores.json

`--data` names another item directory (made by `python -m phase8.world.items`), such as development items.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

import phase8.benchmarks

SUITE_DIR = Path(phase8.benchmarks.__file__).parent / "mini"


def suite() -> list[dict]:
    """The rows of suite.json."""
    return json.loads((SUITE_DIR / "suite.json").read_text())["tasks"]


def evaluate(model_dir: str, tasks: list[str], data_dir: str | None = None, batch: int = 64) -> dict[str, dict]:
    """Every metric of every task, plus accuracy by the items' `level`, `rule` or `subject` under `by_FIELD`."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch, device="cpu")
    manager = TaskManager(
        include_defaults=False, include_path=[str(SUITE_DIR)], metadata={"data_dir": data_dir} if data_dir else {}
    )
    scores: dict[str, dict] = {}
    for task in tasks:
        began = time.monotonic()
        result = lm_eval.evaluate(lm, manager.load([task])["tasks"], bootstrap_iters=0, log_samples=True)
        row = {k: v for k, v in result["results"][task].items() if isinstance(v, float)}
        row["seconds"] = time.monotonic() - began
        samples = result["samples"][task]
        row["items"] = len(samples)
        for field in ("level", "rule", "subject"):
            groups = defaultdict(list)
            for sample in samples:
                if field in sample["doc"]:
                    groups[str(sample["doc"][field])].append(sample["acc"])
            if groups:
                row[f"by_{field}"] = {name: sum(v) / len(v) for name, v in sorted(groups.items())}
        row["samples"] = samples
        scores[task] = row
    return scores


def main() -> None:
    """Prints one line per task and writes the scores."""
    parser = argparse.ArgumentParser(description="Score a model on the mini benchmarks.")
    parser.add_argument("model")
    parser.add_argument("--data")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tasks", nargs="*")
    parser.add_argument("--show", type=int, default=0, help="wrong generated answers to print per task")
    args = parser.parse_args()
    rows = {row["name"]: row for row in suite()}
    scores = evaluate(args.model, args.tasks or list(rows), args.data)
    for task, score in scores.items():
        value, chance = score[rows[task]["metric"]], rows[task]["chance"]
        groups = {k: {n: round(a, 2) for n, a in v.items()} for k, v in score.items() if k.startswith("by_")}
        corrected = (value - chance) / (1 - chance)
        print(f"{task:20s} {value:.3f} corrected {corrected:.2f} {score['seconds']:.1f} s {groups or ''}")
        wrong = [s for s in score["samples"] if s.get("exact_match", s.get("pass_at_1", 1)) == 0]
        for sample in wrong[: args.show]:
            print("    ", repr(sample["doc"]["prompt"]), "->", repr(sample["filtered_resps"][0]))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        kept = {task: {k: v for k, v in score.items() if k != "samples"} for task, score in scores.items()}
        args.out.write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
