"""Questions of the graded kinds that grade nobody: to choose between trainings of the embedded model.

    python -m experiments.validation ARTIFACT_DIRECTORY...

asks the original and every artifact some 400 questions of each kind that has choices, and 200 whose answer is written,
drawn with a seed of its own and none of them among the shipped ones, and prints the shares of right answers (standard
error up to 0.025 and 0.035). Edge of chaos is weighted by level as the shipped questions are. A program is right here
where it is the original's text word for word: nothing is run. The world's facts are few, so a fact of a shipped
question may be asked here in other words or with other wrong answers. Two minutes of one core for each artifact.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance

from experiments.score import load
from phase8.artifact.read import read_artifact
from phase8.benchmarks.lm import Phase8LM
from phase8.benchmarks.probes import ask_choices
from phase8.benchmarks.suite import MINI
from phase8.world.items import Item, edge_items, task_items

SEED, AT_MOST, WRITTEN_AT_MOST = 606, 400, 200
TASKS = ("mini_mmlu", "mini_arc", "mini_truthfulqa", "mini_hellaswag", "mini_winogrande")
EDGE = "mini_edge_of_chaos"
WRITTEN = {"mini_gsm8k": (80, ["\n"]), "mini_humaneval": (64, ["\n\n", "\ndef", "\n#"])}
"""Tokens at most, and what ends an answer."""


def shipped(task: str) -> list[Item]:
    """The committed questions of a task."""
    lines = (MINI / "data" / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def questions() -> dict[str, list[Item]]:
    """Some of each task, none with the text of a shipped one; edge of chaos by level."""
    found = {task: _others(task, lambda count, task=task: task_items(task, SEED, count), AT_MOST) for task in TASKS}
    for level in sorted({item["level"] for item in shipped(EDGE)}):  # type: ignore[type-var]
        found[f"{EDGE} {level}"] = _others(EDGE, lambda count, level=level: edge_items(SEED, {level: count}), 100)
    for task in WRITTEN:
        found[task] = _others(task, lambda count, task=task: task_items(task, SEED, count), WRITTEN_AT_MOST)
    return found


def _others(task: str, draw: Callable[[int], list[Item]], at_most: int) -> list[Item]:
    """What is drawn and not shipped; fewer questions where the world has no more."""
    known = {item["prompt"] for item in shipped(task)}
    for count in (2 * at_most, at_most, at_most // 2, at_most // 4):
        try:
            return [item for item in draw(count) if item["prompt"] not in known][:at_most]
        except ValueError:
            continue
    return []


def accuracies(network: Any, tokenizer: Any, asked: dict[str, list[Item]]) -> dict[str, float]:
    """Share of right answers of each task."""
    lm = Phase8LM(network, tokenizer)
    chosen = {task: items for task, items in asked.items() if task not in WRITTEN}
    answers = ask_choices(lm, chosen)
    shares = {
        task: float(np.mean([logs.argmax() == item["answer"] for logs, item in zip(answers[task], items, strict=True)]))
        for task, items in chosen.items()
    }
    shares |= {task: _written(lm, task, asked[task]) for task in WRITTEN}
    levels = Counter(f"{EDGE} {item['level']}" for item in shipped(EDGE))
    found = defaultdict[str, float](float)
    for task, share in shares.items():
        name = EDGE if task in levels else task
        found[name] += share * levels[task] / levels.total() if task in levels else share
    return {name: round(share, 3) for name, share in found.items()}


def _written(lm: Phase8LM, task: str, items: list[Item]) -> float:
    """Share of answers that end in the right number, or are the right text."""
    most, ends = WRITTEN[task]
    asked = [
        Instance("generate_until", {}, (item["prompt"], {"until": ends, "max_gen_toks": most}), number)
        for number, item in enumerate(items)
    ]
    right = [str(item["number"] if "number" in item else item["target"]).strip() for item in items]
    return float(
        np.mean(
            [text.rpartition("####")[2].strip() == r for text, r in zip(lm.generate_until(asked), right, strict=True)]
        )
    )


def main() -> None:
    """Prints a line for the original and one for each artifact."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path, nargs="+")
    args = parser.parse_args()
    torch.set_num_threads(1)
    asked, source = questions(), load("reference")
    print("questions", {task: len(items) for task, items in asked.items()})
    print("original", accuracies(source.network, source.tokenizer, asked), flush=True)
    parameters = dict(source.network.named_parameters())
    for directory in args.artifacts:
        with torch.no_grad():
            for name, weights in read_artifact(directory).tensors():
                parameters[name].copy_(torch.from_numpy(np.array(weights)))
        print(directory, accuracies(source.network, source.tokenizer, asked), flush=True)


if __name__ == "__main__":
    main()
