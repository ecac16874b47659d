"""Real benchmarks from local files, for machines without a network.

    rows = local_splits("gsm8k", Path("data"))["test"]      # reads data/gsm8k/test.jsonl or test.jsonl.gz

Two forms of each benchmark are read: JSON lines with the fields of the Hugging Face data sets, which lm-eval's task
files use, and the files that the benchmark's authors publish. Either gives the same rows. `FILES` says which names are
looked for; each may end in `.gz`. Every row is checked before anything is computed.

Sources of the authors' forms: openai/grade-school-math, openai/human-eval, rowanz/hellaswag, sylinrl/TruthfulQA,
hendrycks/test, allenai ARC-V1 and WinoGrande 1.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from phase8.benchmarks.rows import read_csv, read_csv_cells, read_json_lines
from phase8.errors import BenchmarkError, ConfigError

Row = dict[str, Any]

FILES: dict[str, dict[str, tuple[str, ...]]] = {
    "gsm8k": {"train": ("gsm8k/train.jsonl",), "test": ("gsm8k/test.jsonl",)},
    "humaneval": {"test": ("humaneval/test.jsonl", "humaneval/HumanEval.jsonl", "HumanEval.jsonl")},
    "hellaswag": {
        "train": ("hellaswag/train.jsonl", "hellaswag/hellaswag_train.jsonl", "hellaswag_train.jsonl"),
        "validation": ("hellaswag/validation.jsonl", "hellaswag/hellaswag_val.jsonl", "hellaswag_val.jsonl"),
    },
    "truthfulqa": {"validation": ("truthfulqa/validation.jsonl", "truthfulqa/TruthfulQA.csv", "TruthfulQA.csv")},
    "mmlu": {
        "dev": ("mmlu/dev.jsonl", "mmlu/dev/*_dev.csv", "mmlu/data/dev/*_dev.csv"),
        "test": ("mmlu/test.jsonl", "mmlu/test/*_test.csv", "mmlu/data/test/*_test.csv"),
    },
    "arc_challenge": {
        "train": (
            "arc_challenge/train.jsonl",
            "arc_challenge/ARC-Challenge-Train.jsonl",
            "ARC-Challenge/ARC-Challenge-Train.jsonl",
        ),
        "test": (
            "arc_challenge/test.jsonl",
            "arc_challenge/ARC-Challenge-Test.jsonl",
            "ARC-Challenge/ARC-Challenge-Test.jsonl",
        ),
    },
    "arc_easy": {
        "train": ("arc_easy/train.jsonl", "arc_easy/ARC-Easy-Train.jsonl", "ARC-Easy/ARC-Easy-Train.jsonl"),
        "test": ("arc_easy/test.jsonl", "arc_easy/ARC-Easy-Test.jsonl", "ARC-Easy/ARC-Easy-Test.jsonl"),
    },
    "winogrande": {
        "train": ("winogrande/train.jsonl", "winogrande/train_xl.jsonl", "winogrande_1.1/train_xl.jsonl"),
        "validation": ("winogrande/validation.jsonl", "winogrande/dev.jsonl", "winogrande_1.1/dev.jsonl"),
    },
}
"""For each benchmark and split, the files that hold it, the first that is there; relative to the data directory. Any
other task of lm-eval's is read from `TASK/train.jsonl`, `validation.jsonl` and `test.jsonl`, whichever are there."""

MATH_TYPES = {
    "Algebra": "algebra",
    "Counting & Probability": "counting_and_prob",
    "Geometry": "geometry",
    "Intermediate Algebra": "intermediate_algebra",
    "Number Theory": "num_theory",
    "Prealgebra": "prealgebra",
    "Precalculus": "precalc",
}
"""The field `type` of MATH, and lm-eval's task for it."""


class _Malformed(Exception):
    """What is wrong with a row, in words; its reader adds the place."""


def check_data_dir(directory: str) -> Path:
    """The data directory. Raises `ConfigError` if it is none."""
    path = Path(directory).expanduser()
    if not path.is_dir():
        raise ConfigError(
            f"the directory with the benchmarks' data {'is a file' if path.exists() else 'does not exist'}",
            where=f"benchmarks.data_dir={directory} ({path.resolve()})",
            fix="name a directory that holds gsm8k/, humaneval/, hellaswag/, truthfulqa/, mmlu/, arc_challenge/ and "
            "winogrande/",
        )
    return path


def read_all(benchmarks: Iterable[str], directory: Path) -> dict[str, dict[str, list[Row]]]:
    """`local_splits` of several benchmarks.

    Raises:
        BenchmarkError: with everything that is wrong, one fault of each benchmark.
    """
    found: dict[str, dict[str, list[Row]]] = {}
    faults: list[BenchmarkError] = []
    for benchmark in benchmarks:
        try:
            found[benchmark] = local_splits(benchmark, directory)
        except BenchmarkError as fault:
            faults.append(fault)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        lines = [f"{fault.what}\n    where: {fault.where}\n    mend:  {fault.fix}" for fault in faults]
        raise BenchmarkError(
            "\n  ".join([f"{len(faults)} benchmarks cannot be read:", *lines]),
            where=str(directory),
            fix="see each of them; phase8/benchmarks/local.py lists every name and form that is read",
        )
    return found


def local_splits(benchmark: str, directory: Path) -> dict[str, list[Row]]:
    """The rows of every split that a benchmark needs, with the fields of its Hugging Face data set.

    Args:
        benchmark: a key of `FILES`, or the name of any other lm-eval task: then `DIRECTORY/NAME/SPLIT.jsonl` is read
            as it is.

    Raises:
        BenchmarkError: a split's file is not there, is empty, or is malformed; says file, line, what, and how to mend
            it.
    """
    if benchmark not in FILES:
        return _any_splits(benchmark, directory)
    splits = {}
    for split, names in FILES[benchmark].items():
        paths = find_files(directory, names)
        if not paths:
            what = "few-shot examples" if split in ("train", "dev") else f"{split} split, the items to score"
            raise BenchmarkError(
                f"{benchmark} has no {what}",
                where=str(directory),
                fix=f"put there one of {', '.join(names)} (or one of them with .gz)",
            )
        splits[split] = [row for path in paths for row in _rows(benchmark, path)]
    return splits


def has_files(benchmark: str, directory: Path) -> bool:
    """Whether there is anything of a benchmark, complete or not."""
    names = [name for split in FILES.get(benchmark, {}).values() for name in split]
    return (directory / benchmark).exists() or bool(find_files(directory, tuple(names)))


def find_files(directory: Path, names: tuple[str, ...]) -> list[Path]:
    """The files of the first name or pattern that matches any, in order of their names."""
    for name in names:
        for pattern in (name, f"{name}.gz"):
            if found := sorted(path for path in directory.glob(pattern) if path.is_file()):
                return found
    return []


def _any_splits(benchmark: str, directory: Path) -> dict[str, list[Row]]:
    names = [f"{benchmark}/{split}.jsonl" for split in ("train", "validation", "test")]
    found = {Path(name).stem: paths for name in names if (paths := find_files(directory, (name,)))}
    if not set(found) & {"validation", "test"}:
        raise BenchmarkError(
            f"{benchmark} has no test or validation split",
            where=str(directory / benchmark),
            fix="put test.jsonl or validation.jsonl there, with the fields of its Hugging Face data set",
        )
    return {split: [row for path in paths for row in _rows(benchmark, path)] for split, paths in found.items()}


def _rows(benchmark: str, path: Path) -> list[Row]:
    """A file's rows, each converted and checked."""
    name = path.name.removesuffix(".gz")
    source: Iterator[tuple[int, Row]]
    if benchmark == "mmlu" and name.endswith(".csv"):
        subject = name.removesuffix(".csv").rpartition("_")[0]
        source = _mmlu_rows(path, subject)
    elif name.endswith(".csv"):
        source = read_csv(path)
    else:
        source = read_json_lines(path)
    convert = (_CSV_CONVERTERS if name.endswith(".csv") else _CONVERTERS).get(benchmark, _as_it_is)
    rows: list[Row] = []
    for line, row in source:
        try:
            rows.append(convert(row))
            if rows[-1].keys() != rows[0].keys():
                raise _Malformed(f"the columns are {', '.join(row)}, in the first row {', '.join(rows[0])}")
        except _Malformed as problem:
            raise BenchmarkError(
                f"{benchmark}: {problem}",
                where=f"{path}, line {line}",
                fix="mend the line, or download the file anew from the benchmark's authors",
            ) from problem
    if not rows:
        raise BenchmarkError(f"{benchmark}: the file holds no items", where=str(path), fix="download the file anew")
    return rows


def _mmlu_rows(path: Path, subject: str) -> Iterator[tuple[int, Row]]:
    """The authors' CSV: question, four choices, the letter of the right one, and no line with names."""
    for line, cells in read_csv_cells(path):
        if len(cells) != 6 or cells[5] not in ("A", "B", "C", "D"):
            raise BenchmarkError(
                f"mmlu: {len(cells)} columns ending in {cells[-1]!r}; needs question, A, B, C, D and the right letter",
                where=f"{path}, line {line}",
                fix="mend the line, or download the file anew from the benchmark's authors",
            )
        yield line, {"question": cells[0], "subject": subject, "choices": cells[1:5], "answer": "ABCD".index(cells[5])}


# -- one row of each benchmark, checked ---------------------------------------------------------------------------


_KINDS = {str: "text", list: "a list", dict: "an object"}


def _field(row: Mapping[str, Any], name: str, kind: type, *, within: str = "") -> Any:
    where = f" in {within!r}" if within else ""
    if name not in row:
        raise _Malformed(f"the column {name!r} is missing{where}; there are {', '.join(map(repr, row)) or 'none'}")
    value = row[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _Malformed(f"{name!r}{where} is {value!r:.60}, needs {_KINDS.get(kind, 'a value')}")
    return value


def _text(row: Mapping[str, Any], name: str) -> str:
    value = _field(row, name, str)
    if not value.strip():
        raise _Malformed(f"{name!r} is empty")
    return value


def _texts(row: Mapping[str, Any], name: str, *, within: str = "") -> list[str]:
    values = _field(row, name, list, within=within)
    if len(values) < 2 or not all(isinstance(value, str) for value in values):
        raise _Malformed(f"{name!r} is {values!r:.60}, needs at least two texts")
    return values


def _whole(row: Mapping[str, Any], name: str, end: int) -> int:
    """A whole number from 0 to below `end`, as a number or as text."""
    value = _field(row, name, object)
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if isinstance(value, float) or not 0 <= number < end:
        raise _Malformed(f"{name!r} is {value!r:.60}, needs a whole number from 0 to {end - 1}")
    return number


def _as_it_is(row: Row) -> Row:
    return row


def _gsm8k(row: Row) -> Row:
    answer = _text(row, "answer")
    if "####" not in answer:
        raise _Malformed("'answer' does not end in '#### NUMBER'")
    return {"question": _text(row, "question"), "answer": answer}


def _humaneval(row: Row) -> Row:
    names = ("task_id", "prompt", "canonical_solution", "test", "entry_point")
    return {name: _text(row, name) for name in names}


def _hellaswag(row: Row) -> Row:
    endings = _texts(row, "endings")
    return {
        "activity_label": _text(row, "activity_label"),
        "ctx_a": _field(row, "ctx_a", str),
        "ctx_b": _field(row, "ctx_b", str),
        "ctx": _field(row, "ctx", str),
        "endings": endings,
        "label": str(_whole(row, "label", len(endings))),
    }


def _truthfulqa(row: Row) -> Row:
    converted: Row = {"question": _text(row, "question")}
    for name in ("mc1_targets", "mc2_targets"):
        targets = _field(row, name, dict)
        choices = _texts(targets, "choices", within=name)
        labels = _field(targets, "labels", list, within=name)
        if len(labels) != len(choices) or not (0 in labels and 1 in labels and all(one in (0, 1) for one in labels)):
            raise _Malformed(f"the labels in {name!r} are {labels!r:.60}, need a 0 or 1 for each choice, and both")
        converted[name] = {"choices": choices, "labels": labels}
    if converted["mc1_targets"]["labels"][0] != 1 or sum(converted["mc1_targets"]["labels"]) != 1:
        raise _Malformed("the right answer in 'mc1_targets' must be the first and the only one")
    return converted


def _truthfulqa_csv(row: Row) -> Row:
    """The authors' CSV, turned into choices as their code does for MC1 and MC2: answers end in a full stop."""
    best = [_sentence(_text(row, "Best Answer"))]
    right = _sentences(_text(row, "Correct Answers"))
    wrong = _sentences(_text(row, "Incorrect Answers"))
    if not (right and wrong):
        raise _Malformed("needs a correct and an incorrect answer")
    return {
        "question": _text(row, "Question"),
        "mc1_targets": {"choices": best + wrong, "labels": [1] + [0] * len(wrong)},
        "mc2_targets": {"choices": right + wrong, "labels": [1] * len(right) + [0] * len(wrong)},
    }


def _sentences(answers: str) -> list[str]:
    return [_sentence(part) for part in answers.split(";") if part.strip()]


def _sentence(answer: str) -> str:
    return answer.strip().removesuffix(".") + "."


def _mmlu(row: Row) -> Row:
    choices = _texts(row, "choices")
    if len(choices) != 4:
        raise _Malformed(f"{len(choices)} choices, needs 4")
    return {
        "question": _text(row, "question"),
        "subject": _text(row, "subject"),
        "choices": choices,
        "answer": _whole(row, "answer", 4),
    }


def _arc(row: Row) -> Row:
    """The data set: question, choices {text, label}. The authors: question {stem, choices [{text, label}]}."""
    if isinstance(row.get("question"), dict):
        question = row["question"]
        options = _field(question, "choices", list, within="question")
        if not all(isinstance(option, dict) for option in options):
            raise _Malformed("'choices' in 'question' needs objects with text and label")
        choices = {
            "text": [_field(option, "text", str, within="choices") for option in options],
            "label": [_field(option, "label", str, within="choices") for option in options],
        }
        stem = _field(question, "stem", str, within="question")
    else:
        stem = _text(row, "question")
        choices = _field(row, "choices", dict)
    texts = _texts(choices, "text", within="choices")
    labels = _texts(choices, "label", within="choices")
    answer = _text(row, "answerKey")
    if len(texts) != len(labels) or answer not in labels:
        raise _Malformed(f"'answerKey' is {answer!r}, the labels of {len(texts)} choices are {labels!r}")
    return {
        "id": str(row.get("id", "")),
        "question": stem,
        "choices": {"text": texts, "label": labels},
        "answerKey": answer,
    }


def _math(row: Row) -> Row:
    kind = _text(row, "type")
    if kind not in MATH_TYPES:
        raise _Malformed(f"'type' is {kind!r}, needs one of {', '.join(MATH_TYPES)}")
    return {
        "problem": _text(row, "problem"),
        "level": str(row.get("level", "")),
        "type": kind,
        "solution": _text(row, "solution"),
        "subject": MATH_TYPES[kind],
    }


def _mbpp(row: Row) -> Row:
    if len(_texts(row, "test_list")) < 3:
        raise _Malformed("'test_list' has fewer than 3 tests")
    return {**row, "text": _text(row, "text")}


def _storycloze(row: Row) -> Row:
    if _whole(row, "answer_right_ending", 3) == 0:
        raise _Malformed("'answer_right_ending' is 0, needs 1 or 2")
    names = [f"input_sentence_{number}" for number in (1, 2, 3, 4)] + ["sentence_quiz1", "sentence_quiz2"]
    return {name: _text(row, name) for name in names} | {"answer_right_ending": int(row["answer_right_ending"])}


def _triviaqa(row: Row) -> Row:
    aliases = _field(_field(row, "answer", dict), "aliases", list, within="answer")
    if not aliases or not all(isinstance(alias, str) for alias in aliases):
        raise _Malformed(f"'aliases' in 'answer' is {aliases!r:.60}, needs at least one text")
    return {"question": _text(row, "question"), "answer": {"aliases": aliases}}


def _lambada(row: Row) -> Row:
    if " " not in _text(row, "text"):
        raise _Malformed("'text' is a single word")
    return {"text": row["text"]}


def _squad(row: Row) -> Row:
    return {"text": _text(row, "text"), "value": _text(row, "value")}


def _winogrande(row: Row) -> Row:
    sentence, answer = _text(row, "sentence"), str(_field(row, "answer", object))
    if "_" not in sentence:
        raise _Malformed("'sentence' has no gap, written _")
    if answer not in ("1", "2"):
        raise _Malformed(f"'answer' is {answer!r}, needs 1 or 2 (the authors' test file has no answers)")
    return {
        "sentence": sentence,
        "option1": _text(row, "option1"),
        "option2": _text(row, "option2"),
        "answer": answer,
    }


_CONVERTERS: dict[str, Callable[[Row], Row]] = {
    "gsm8k": _gsm8k,
    "humaneval": _humaneval,
    "hellaswag": _hellaswag,
    "truthfulqa": _truthfulqa,
    "mmlu": _mmlu,
    "arc_challenge": _arc,
    "arc_easy": _arc,
    "winogrande": _winogrande,
    "hendrycks_math": _math,
    "storycloze_2018": _storycloze,
    "mbpp": _mbpp,
    "lambada_openai": _lambada,
    "squad_completion": _squad,
    "triviaqa": _triviaqa,
}
_CSV_CONVERTERS: dict[str, Callable[[Row], Row]] = {"truthfulqa": _truthfulqa_csv, "mmlu": _mmlu}
