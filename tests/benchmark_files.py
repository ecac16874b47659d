"""Invented items of the seven core benchmarks, as rows and as files: the data sets' layout and the authors' own."""

from __future__ import annotations

import csv
import gzip
import json
import random
from pathlib import Path

SUBJECTS = ("anatomy", "high_school_physics")
NOUNS = ("miller", "goose", "river", "wheel", "barn", "cart", "candle", "kettle", "ladder", "bucket")
VERBS = ("turns", "breaks", "finds", "washes", "paints", "carries")
LETTERS = "ABCDE"


def invented(items: int = 6, seed: int = 0) -> dict[str, dict[str, list[dict]]]:
    """benchmark -> split -> rows with the fields of the Hugging Face data sets, shots enough for every prompt."""
    rng = random.Random(seed)

    def sentence() -> str:
        return f"The {rng.choice(NOUNS)} {rng.choice(VERBS)} the {rng.choice(NOUNS)}."

    def endings(count: int) -> list[str]:
        return [f"the {noun} {rng.choice(VERBS)} it {rng.randint(2, 99)} times." for noun in rng.sample(NOUNS, count)]

    def gsm8k() -> dict:
        one, other = rng.randint(1, 50), rng.randint(1, 50)
        noun = rng.choice(NOUNS)
        return {
            "question": f"A {noun} has {one} coins and gets {other} more. How many has it?",
            "answer": f"It has {one}+{other}=<<{one}+{other}={one + other}>>{one + other} coins.\n#### {one + other}",
        }

    def hellaswag() -> dict:
        context = sentence()
        return {
            "ind": rng.randint(1, 999), "activity_label": rng.choice(NOUNS).capitalize(), "ctx_a": context,
            "ctx_b": "then", "ctx": f"{context} Then", "endings": endings(4), "label": str(rng.randrange(4)),
        }  # fmt: skip

    def arc() -> dict:
        count = rng.choice((3, 4, 5))
        return {
            "id": f"x{rng.randint(0, 9999)}", "question": f"What about this: {sentence()}",
            "choices": {"text": endings(count), "label": list(LETTERS[:count])},
            "answerKey": LETTERS[rng.randrange(count)],
        }  # fmt: skip

    def winogrande() -> dict:
        one, other = rng.sample(NOUNS, 2)
        return {
            "sentence": f"The {one} passed the {other} because the _ was {rng.choice(('slow', 'quick', 'red'))}.",
            "option1": one, "option2": other, "answer": rng.choice("12"),
        }  # fmt: skip

    def truthfulqa() -> dict:
        right, wrong = [e.capitalize() for e in endings(2)], [e.capitalize() for e in endings(3)]
        return {
            "question": f"Who {rng.choice(VERBS)} the {rng.choice(NOUNS)}?",
            "mc1_targets": {"choices": right[:1] + wrong, "labels": [1, 0, 0, 0]},
            "mc2_targets": {"choices": right + wrong, "labels": [1, 1, 0, 0, 0]},
        }

    def mmlu(subject: str) -> dict:
        return {"question": sentence(), "subject": subject, "choices": endings(4), "answer": rng.randrange(4)}

    def humaneval(number: int) -> dict:
        return {
            "task_id": f"Invented/{number}",
            "prompt": f'def add_{number}(a, b):\n    """Adds a, b and {number}, said the {rng.choice(NOUNS)}."""\n',
            "canonical_solution": f"    return a + b + {number}\n",
            "test": f"def check(candidate):\n    assert candidate(1, 2) == {3 + number}\n",
            "entry_point": f"add_{number}",
        }

    def many(make, count: int) -> list[dict]:
        return [make() for _ in range(count)]

    return {
        "gsm8k": {"train": many(gsm8k, 12), "test": many(gsm8k, items)},
        "humaneval": {"test": [humaneval(number) for number in range(items)]},
        "hellaswag": {"train": many(hellaswag, 14), "validation": many(hellaswag, items)},
        "truthfulqa": {"validation": many(truthfulqa, items)},
        "mmlu": {
            "dev": [mmlu(subject) for subject in SUBJECTS for _ in range(5)],
            "test": [mmlu(subject) for subject in SUBJECTS for _ in range(items)],
        },
        "arc_challenge": {"train": many(arc, 30), "test": many(arc, items)},
        "winogrande": {"train": many(winogrande, 8), "validation": many(winogrande, items)},
    }


def invented_for_experts(items: int = 4) -> dict[str, dict[str, list[dict]]]:
    """The further benchmarks of the experts, with the fields of their data sets."""
    numbers = range(items)
    maths = [
        {"problem": f"What is {n} + {n}?", "level": "Level 1", "type": kind, "solution": f"It is $\\boxed{{{2 * n}}}$."}
        for n in numbers
        for kind in ("Algebra", "Counting & Probability")
    ]
    stories = [
        {
            **{f"input_sentence_{k}": f"The {NOUNS[(n + k) % 10]} broke." for k in (1, 2, 3, 4)},
            "sentence_quiz1": "It was mended.", "sentence_quiz2": "It sang.", "answer_right_ending": 1 + n % 2,
        }
        for n in numbers
    ]  # fmt: skip
    programs = [
        {
            "task_id": n, "text": f"Write a function f that adds {n}.", "code": f"def f(x):\n    return x + {n}",
            "test_list": [f"assert f({k}) == {k + n}" for k in (1, 2, 3)],
        }
        for n in numbers
    ]  # fmt: skip
    return {
        "hendrycks_math": {"train": maths, "test": maths},
        "storycloze_2018": {"validation": stories, "test": stories},
        "mbpp": {"test": programs},
        "lambada_openai": {"test": [{"text": f"the {noun} was seen by the {noun}"} for noun in NOUNS[:items]]},
        "squad_completion": {"validation": [{"text": f"The {n} is a", "value": n} for n in NOUNS[:items]]},
        "triviaqa": {
            split: [{"question": f"Who is the {n}", "answer": {"aliases": [n, n.upper()]}} for n in NOUNS[:items]]
            for split in ("train", "validation")
        },
    }


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def write_data_sets(directory: Path, rows: dict[str, dict[str, list[dict]]]) -> None:
    """One folder per benchmark, one JSONL file per split."""
    for benchmark, splits in rows.items():
        for split, items in splits.items():
            write_lines(directory / benchmark / f"{split}.jsonl", items)


def write_as_authors(directory: Path, rows: dict[str, dict[str, list[dict]]]) -> None:
    """The same items as the benchmarks' authors publish them."""
    for split, items in rows["gsm8k"].items():
        write_lines(directory / "gsm8k" / f"{split}.jsonl.gz", items)
    write_lines(directory / "humaneval" / "HumanEval.jsonl.gz", rows["humaneval"]["test"])
    for split, name in (("train", "train"), ("validation", "val")):
        items = [
            {**row, "label": int(row["label"]), "split": name, "split_type": "indomain", "source_id": "invented~1"}
            for row in rows["hellaswag"][split]
        ]
        write_lines(directory / "hellaswag" / f"hellaswag_{name}.jsonl", items)
    for split, name in (("train", "Train"), ("test", "Test")):
        items = [
            {
                "id": row["id"], "answerKey": row["answerKey"],
                "question": {
                    "stem": row["question"],
                    "choices": [
                        {"text": text, "label": label}
                        for text, label in zip(row["choices"]["text"], row["choices"]["label"], strict=True)
                    ],
                },
            }
            for row in rows["arc_challenge"][split]
        ]  # fmt: skip
        write_lines(directory / "arc_challenge" / f"ARC-Challenge-{name}.jsonl", items)
    for split, name in (("train", "train_xl"), ("validation", "dev")):
        items = [{"qID": str(number), **row} for number, row in enumerate(rows["winogrande"][split])]
        write_lines(directory / "winogrande" / f"{name}.jsonl", items)
    for split in ("dev", "test"):
        for subject in SUBJECTS:
            path = directory / "mmlu" / split / f"{subject}_{split}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="", encoding="utf-8") as file:
                for row in rows["mmlu"][split]:
                    if row["subject"] == subject:
                        csv.writer(file).writerow([row["question"], *row["choices"], LETTERS[row["answer"]]])
    path = directory / "truthfulqa" / "TruthfulQA.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        names = ("Type", "Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers", "Source")
        csv.writer(file).writerow(names)
        for row in rows["truthfulqa"]["validation"]:
            choices, labels = row["mc2_targets"]["choices"], row["mc2_targets"]["labels"]
            right = [c.removesuffix(".") for c, label in zip(choices, labels, strict=True) if label]
            wrong = [c.removesuffix(".") for c, label in zip(choices, labels, strict=True) if not label]
            csv.writer(file).writerow(
                ["Adversarial", "Barns", row["question"], right[0], "; ".join(right), "; ".join(wrong), "nowhere"]
            )
