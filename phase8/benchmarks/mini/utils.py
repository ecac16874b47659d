"""What the mini benchmarks' YAML files call: the reader of the JSONL data, and scores of generated answers.

Data lie beside this file in `data/TASK.jsonl`; the metadata entry `data_dir` (lm-eval: `TaskManager(metadata=...)`)
names another directory.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from datasets import Dataset

from phase8.errors import BenchmarkError

MAX_BYTES = 8 * 2**20
MAX_ITEMS = 10_000


def load(task: str, data_dir: str | None = None, **_: object) -> dict[str, Dataset]:
    """The task's items as `{"test": Dataset}`.

    Raises:
        BenchmarkError: the file is missing, too large, not JSON lines of one shape, or empty.
    """
    path = (Path(data_dir) if data_dir else Path(__file__).parent / "data") / f"{task}.jsonl"
    if not path.is_file():
        raise BenchmarkError(
            f"no data for the benchmark {task}", where=str(path), fix="run `python -m phase8.world.items DIRECTORY`"
        )
    if path.stat().st_size > MAX_BYTES:
        raise BenchmarkError(
            f"the data of {task} are larger than {MAX_BYTES} bytes", where=str(path), fix="write fewer items"
        )
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise BenchmarkError(
                f"line {number} is not JSON: {error}", where=str(path), fix="write the file again"
            ) from error
        if not isinstance(row, dict) or (rows and row.keys() != rows[0].keys()):
            raise BenchmarkError(
                f"line {number} has other fields than line 1", where=str(path), fix="write the file again"
            )
        rows.append(row)
    if not 0 < len(rows) <= MAX_ITEMS:
        raise BenchmarkError(
            f"{task} has {len(rows)} items, expected 1 to {MAX_ITEMS}", where=str(path), fix="write the file again"
        )
    return {"test": Dataset.from_list(rows)}


def score_number(doc: dict, results: list[str]) -> dict[str, float]:
    """1 if the number after the last `####` is the right one."""
    _, found, number = results[0].rpartition("####")
    return {"exact_match": float(bool(found) and number.strip() == doc["number"])}


def _passes(program: str, tests: list[str]) -> dict[str, float]:
    from phase8.benchmarks.sandbox import run_tests

    return {"pass_at_1": float(run_tests(program + "\n\n" + "\n".join(tests) + "\n"))}


def score_completion(doc: dict, results: list[str]) -> dict[str, float]:
    """1 if prompt and completion together pass the item's tests."""
    return _passes(doc["prompt"] + results[0], doc["tests"])


def score_program(doc: dict, results: list[str]) -> dict[str, float]:
    """1 if the generated program passes the item's tests."""
    return _passes(results[0], doc["tests"])


def score_truth(doc: dict, results: list[tuple[float, bool]]) -> dict[str, float]:
    """mc1: the true answer is the likeliest of the first four; mc2: share of probability on true answers."""
    logs = [log for log, _ in results]
    first = logs[: len(doc["choices"])]
    top = max(logs)
    weights = [math.exp(log - top) for log in logs]
    true = sum(weight for weight, label in zip(weights, doc["mc2_labels"], strict=True) if label)
    return {"mc1": float(first.index(max(first)) == doc["answer"]), "mc2": true / sum(weights)}
