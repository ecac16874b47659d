"""Benchmark items: problems whose key is reserved, as rows of the mini benchmarks' JSONL files.

    python -m phase8.world.items OUT_DIR --seed 202

draws every task's items. Four seeds are in use: `DEVELOPMENT_SEED` for looking at a model while the world was
being made, `CALIBRATION_SEED` for the accuracy per level of difficulty, `SHIPPED_SEED` for the committed files,
which are only reported on. Items of a later seed that repeat a key of an earlier one can be excluded: so the committed
edge-of-chaos items share no key with those of `CALIBRATION_SEED`, and the probes of the four rules (`PROBE_SEED`) none
with the committed ones.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from phase8.world import arithmetic, conduct, knowledge, narrative, programs
from phase8.world.facts import World, build_world
from phase8.world.problem import Problem

DEVELOPMENT_SEED, CALIBRATION_SEED, SHIPPED_SEED, PROBE_SEED = 101, 303, 202, 505
CALIBRATION_ITEMS = {1: 150, 2: 150, 3: 150, 4: 48, 5: 150, 6: 150}
"""Edge-of-chaos items that calibrate, by level. Only 97 people are reserved for level 4; half of them calibrate."""
ITEMS_PER_TASK = 200
ITEMS_PER_RULE = 60

Item = dict[str, object]


def _reserved(draw: Callable[[], Problem], taken: set[tuple[object, ...]]) -> Iterator[Problem]:
    """Endless reserved problems that no other key gives too, with keys not in `taken`, which grows."""
    for _ in range(2_000_000):
        problem = draw()
        if problem.reserved and not problem.aliased and problem.key not in taken:
            taken.add(problem.key)
            yield problem
    raise ValueError("the reserved problems of this kind are used up; ask for fewer items")


def _choice_item(problem: Problem, rng: random.Random) -> Item:
    choices = [problem.answer, *problem.wrong]
    rng.shuffle(choices)
    return {
        "prompt": problem.prompt,
        "choices": choices,
        "answer": choices.index(problem.answer),
        "chance": 1 / len(choices),
        **problem.details,
    }


def _truth_item(problem: Problem, rng: random.Random) -> Item:
    details = {k: v for k, v in problem.details.items() if not k.startswith("also")}
    item = _choice_item(Problem(problem.key, problem.prompt, problem.answer, problem.wrong, details=details), rng)
    labels = [int(choice == problem.answer) for choice in item["choices"]]  # type: ignore[attr-defined]
    item["popular"] = problem.wrong[0]
    item["mc2_choices"] = [*item["choices"], problem.details["also_true"], problem.details["also_false"]]  # type: ignore[misc]
    item["mc2_labels"] = [*labels, 1, 0]
    return item


def _generated_item(problem: Problem, rng: random.Random) -> Item:
    return {"prompt": problem.prompt, "target": problem.answer, "chance": 0.0, **problem.details}


Draw = Callable[[World, random.Random], Problem]
_TASKS: dict[str, tuple[Draw, Callable[[Problem, random.Random], Item]]] = {
    "mini_mmlu": (knowledge.exam, _choice_item),
    "mini_gsm8k": (arithmetic.story, _generated_item),
    "mini_humaneval": (lambda w, r: programs.completion(w, r, with_tests=True), _generated_item),
    "mini_hellaswag": (narrative.script, _choice_item),
    "mini_arc": (knowledge.science, _choice_item),
    "mini_truthfulqa": (knowledge.falsehood, _truth_item),
    "mini_winogrande": (narrative.resolution, _choice_item),
    "mini_math": (arithmetic.expression, _generated_item),
    "mini_storycloze": (narrative.ending, _choice_item),
    "mini_mbpp": (lambda w, r: programs.task(w, r, with_tests=True), _generated_item),
    "mini_lambada": (narrative.passage, _generated_item),
}
TASKS = (*_TASKS, "mini_edge_of_chaos", "mini_eudaimonia")


def _task_rng(task: str, seed: int) -> random.Random:
    return random.Random(f"{task}:{seed}")


def edge_items(seed: int, per_level: dict[int, int], excluded: set[tuple[object, ...]] | None = None) -> list[Item]:
    """Edge-of-chaos items, `per_level[k]` of difficulty k, none with a key in `excluded` (which grows)."""
    world, rng = build_world(), _task_rng("mini_edge_of_chaos", seed)
    taken = set() if excluded is None else excluded
    items: list[Item] = []
    for level, count in sorted(per_level.items()):
        source = _reserved(lambda level=level: arithmetic.level(world, rng, level), taken)  # type: ignore[misc]
        items += [_choice_item(next(source), rng) for _ in range(count)]
    return items


def conduct_items(seed: int, per_rule: int, excluded: set[tuple[object, ...]] | None = None) -> list[Item]:
    """Pairs for the four rules, `per_rule` of each, none with a key in `excluded` (which grows)."""
    world, rng = build_world(), _task_rng("mini_eudaimonia", seed)
    taken = set() if excluded is None else excluded
    items: list[Item] = []
    for rule in conduct.RULES:
        source = _reserved(lambda rule=rule: conduct.reply(world, rng, rule), taken)  # type: ignore[misc]
        items += [_choice_item(next(source), rng) for _ in range(per_rule)]
    return items


def conduct_probes(per_rule: int) -> list[Item]:
    """Pairs for the four rules that share no key with the committed ones."""
    committed: set[tuple[object, ...]] = set()
    conduct_items(SHIPPED_SEED, ITEMS_PER_RULE, committed)
    return conduct_items(PROBE_SEED, per_rule, committed)


def task_items(task: str, seed: int, count: int = ITEMS_PER_TASK) -> list[Item]:
    """`count` items of the task (per rule a quarter of 240 for eudaimonia; per level a sixth for edge of chaos)."""
    if task == "mini_edge_of_chaos":
        return edge_items(seed, dict.fromkeys(range(1, 7), count // 6))
    if task == "mini_eudaimonia":
        return conduct_items(seed, ITEMS_PER_RULE)
    world, rng = build_world(), _task_rng(task, seed)
    draw, as_item = _TASKS[task]
    source = _reserved(lambda: draw(world, rng), set())
    return [as_item(next(source), rng) for _ in range(count)]


def write_items(path: Path, items: list[Item]) -> None:
    """One JSON object per line, with a running `id`."""
    lines = [json.dumps({"id": number, **item}, ensure_ascii=True) for number, item in enumerate(items)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Writes the items of every task for one seed."""
    parser = argparse.ArgumentParser(description="Draw the mini benchmarks' items.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=SHIPPED_SEED)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for task in args.tasks:
        write_items(args.out / f"{task}.jsonl", task_items(task, args.seed))


if __name__ == "__main__":
    main()
