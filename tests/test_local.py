"""Published benchmarks from local files: every layout gives the same rows, and whatever is wrong has a place."""

import json

import pytest

from phase8.benchmarks.local import FILES, check_data_dir, local_splits
from phase8.benchmarks.real import load_real_suite
from phase8.errors import BenchmarkError, ConfigError
from tests.benchmark_files import invented, invented_for_experts, write_as_authors, write_data_sets, write_lines

ROWS = invented()
UNUSED = {"hellaswag": {"ind"}}
"""Fields that the data sets have and no prompt or score uses."""


def read(directory, benchmark):
    return local_splits(benchmark, directory)


def cleaned(benchmark):
    return {
        split: [{k: v for k, v in row.items() if k not in UNUSED.get(benchmark, ())} for row in rows]
        for split, rows in ROWS[benchmark].items()
    }


@pytest.mark.parametrize("write", [write_data_sets, write_as_authors])
@pytest.mark.parametrize("benchmark", ROWS)
def test_either_layout_gives_the_data_sets_rows(tmp_path, benchmark, write):
    write(tmp_path, ROWS)
    assert read(tmp_path, benchmark) == cleaned(benchmark)


def test_text_may_hold_commas_quotes_line_breaks_and_a_byte_order_mark(tmp_path):
    folder = tmp_path / "truthfulqa"
    folder.mkdir()
    (folder / "TruthfulQA.csv").write_bytes(
        b"\xef\xbb\xbfQuestion,Best Answer,Correct Answers,Incorrect Answers\n"
        b'"Who, ""really""\nknows?",Nobody,Nobody; No one.,"Everybody; you; ; the sea, probably"\n'
    )
    (row,) = read(tmp_path, "truthfulqa")["validation"]
    assert row["question"] == 'Who, "really"\nknows?'
    assert row["mc1_targets"]["choices"] == ["Nobody.", "Everybody.", "you.", "the sea, probably."]
    assert row["mc2_targets"]["labels"] == [1, 1, 0, 0, 0]


def test_a_line_separator_inside_json_text_does_not_part_a_line(tmp_path):
    row = {"question": "one\u2028two\u0085three", "answer": "#### 1"}
    path = tmp_path / "gsm8k" / "test.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n\n", encoding="utf-8")
    write_lines(tmp_path / "gsm8k" / "train.jsonl", [row])
    assert read(tmp_path, "gsm8k")["test"] == [row]


MISSING = [
    (benchmark, field)
    for benchmark, splits in ROWS.items()
    for field in next(iter(splits.values()))[0]
    if field not in ("ind", "id")
]


@pytest.mark.parametrize(("benchmark", "field"), MISSING)
def test_a_missing_column_has_a_file_and_a_line(tmp_path, benchmark, field):
    write_data_sets(tmp_path, ROWS)
    split = list(ROWS[benchmark])[-1]
    rows = [dict(row) for row in ROWS[benchmark][split]]
    del rows[2][field]
    write_lines(tmp_path / benchmark / f"{split}.jsonl", rows)
    with pytest.raises(BenchmarkError, match=f"the column '{field}' is missing") as caught:
        read(tmp_path, benchmark)
    assert caught.value.where.endswith(f"{benchmark}/{split}.jsonl, line 3") and caught.value.fix


FURTHER = invented_for_experts()
NEEDED = {
    "hendrycks_math": ("problem", "type", "solution"), "storycloze_2018": ("input_sentence_4", "answer_right_ending"),
    "mbpp": ("text", "test_list"), "lambada_openai": ("text",), "squad_completion": ("text", "value"),
    "triviaqa": ("question", "answer"),
}  # fmt: skip


@pytest.mark.parametrize(("benchmark", "field"), [(name, field) for name, fields in NEEDED.items() for field in fields])
def test_a_missing_column_of_an_experts_benchmark(tmp_path, benchmark, field):
    write_data_sets(tmp_path, FURTHER)
    split = list(FURTHER[benchmark])[-1]
    assert read(tmp_path, benchmark)[split]
    rows = [dict(row) for row in FURTHER[benchmark][split]]
    del rows[1][field]
    write_lines(tmp_path / benchmark / f"{split}.jsonl", rows)
    with pytest.raises(BenchmarkError, match=f"the column '{field}' is missing") as caught:
        read(tmp_path, benchmark)
    assert caught.value.where.endswith("line 2")


WRONG = [
    ("gsm8k", "test", {"answer": "twelve"}, "does not end in '#### NUMBER'"),
    ("gsm8k", "test", {"question": 7}, "'question' is 7, needs text"),
    ("gsm8k", "test", {"question": " "}, "'question' is empty"),
    ("humaneval", "test", {"test": None}, "'test' is None, needs text"),
    ("hellaswag", "validation", {"label": ""}, "'label' is '', needs a whole number from 0 to 3"),
    ("hellaswag", "validation", {"label": 4}, "'label' is 4"),
    ("hellaswag", "validation", {"label": 1.0}, "'label' is 1.0"),
    ("hellaswag", "validation", {"endings": ["one", 2]}, "'endings' is"),
    ("truthfulqa", "validation", {"mc1_targets": {"choices": ["a", "b"]}}, "'labels' is missing in 'mc1_targets'"),
    ("truthfulqa", "validation", {"mc1_targets": {"choices": ["a", "b"], "labels": [0, 1]}}, "must be the first"),
    ("truthfulqa", "validation", {"mc2_targets": {"choices": ["a", "b"], "labels": [1]}}, "the labels in"),
    ("truthfulqa", "validation", {"mc2_targets": {"choices": ["a", "b"], "labels": [1, []]}}, "the labels in"),
    ("hellaswag", "validation", {"label": float("inf")}, "'label' is inf"),
    ("mmlu", "test", {"choices": ["a", "b", "c"]}, "3 choices, needs 4"),
    ("mmlu", "test", {"answer": True}, "'answer' is True"),
    ("mmlu", "test", {"answer": 4}, "'answer' is 4"),
    ("arc_challenge", "test", {"answerKey": "Q"}, "'answerKey' is 'Q'"),
    ("arc_challenge", "test", {"choices": ["a", "b"]}, "'choices' is"),
    ("arc_challenge", "test", {"question": {"stem": "x"}}, "'choices' is missing in 'question'"),
    ("winogrande", "validation", {"sentence": "no gap"}, "no gap"),
    ("winogrande", "validation", {"answer": ""}, "needs 1 or 2"),
]


@pytest.mark.parametrize(("benchmark", "split", "change", "message"), WRONG)
def test_a_value_that_cannot_be_scored(tmp_path, benchmark, split, change, message):
    write_data_sets(tmp_path, ROWS)
    rows = ROWS[benchmark][split]
    write_lines(tmp_path / benchmark / f"{split}.jsonl", [rows[0], rows[1] | change, *rows[2:]])
    with pytest.raises(BenchmarkError) as caught:
        read(tmp_path, benchmark)
    assert message in caught.value.what and caught.value.where.endswith(f"{split}.jsonl, line 2")


def test_rows_of_any_other_task_have_the_same_columns(tmp_path):
    write_lines(tmp_path / "piqa" / "validation.jsonl", [{"goal": "a", "label": 0}, {"goal": "b"}])
    with pytest.raises(BenchmarkError, match="the columns are goal, in the first row goal, label") as caught:
        read(tmp_path, "piqa")
    assert caught.value.where.endswith("line 2")
    with pytest.raises(BenchmarkError, match="no test or validation split"):
        read(tmp_path, "boolq")


BROKEN = {
    "empty": (b"", "holds no items"),
    "blank lines": (b"\n \n\n", "holds no items"),
    "not UTF-8": (b'{"question": "a", "answer": "#### 1"}\n{"question": "caf\xe9"}\n', "not UTF-8: byte 0xe9"),
    "not JSON": (b'{"question": "a", "answer": "#### 1"}\nquestion: b\n', "not JSON"),
    "cut short": (b'{"question": "a", "answer": "#### 1"}\n{"question": "b", "ans', "not JSON"),
    "nested without end": (b'{"question": "a", "answer": "#### 1"}\n' + b"[" * 100_000, "not JSON"),
    "a list": (b'{"question": "a", "answer": "#### 1"}\n["a", "b"]\n', "a JSON list, not an object"),
    "another benchmark": (b'\n{"sentence": "a _"}\n', "the column 'answer' is missing; there are 'sentence'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_stops_the_suite_before_anything_is_computed(tmp_path, name):
    content, message = BROKEN[name]
    write_data_sets(tmp_path, ROWS)
    path = tmp_path / "gsm8k" / "test.jsonl"
    path.write_bytes(content)
    with pytest.raises(BenchmarkError) as caught:
        load_real_suite(data_dir=str(tmp_path))
    assert message in caught.value.what and str(path) in caught.value.where and caught.value.fix
    assert "holds no items" in message or caught.value.where.endswith("line 2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"anatomy question,a,b,c\n", "4 columns"),
        (b"q,a,b,c,d,E\n", "ending in 'E'"),
        (b'q,a,b,c,d,A\n"q,a,b,c,d,A\n', "not CSV"),
        (b"q,a,b,\xe9,d,A\n", "not UTF-8"),
    ],
)
def test_a_broken_mmlu_file(tmp_path, content, message):
    write_as_authors(tmp_path, ROWS)
    (tmp_path / "mmlu" / "test" / "anatomy_test.csv").write_bytes(content)
    with pytest.raises(BenchmarkError) as caught:
        read(tmp_path, "mmlu")
    assert message in caught.value.what and "anatomy_test.csv, line" in caught.value.where


def test_a_gzip_file_cut_short(tmp_path):
    write_as_authors(tmp_path, ROWS)
    path = tmp_path / "humaneval" / "HumanEval.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BenchmarkError, match="not a whole gzip file") as caught:
        read(tmp_path, "humaneval")
    assert str(path) in caught.value.where


@pytest.mark.parametrize(
    ("benchmark", "split", "message"),
    [("gsm8k", "test", "no test split"), ("hellaswag", "validation", "no validation split"),
     ("mmlu", "dev", "no few-shot examples"), ("arc_challenge", "train", "no few-shot examples")],
)  # fmt: skip
def test_a_split_that_is_not_there(tmp_path, benchmark, split, message):
    write_data_sets(tmp_path, ROWS)
    (tmp_path / benchmark / f"{split}.jsonl").unlink()
    with pytest.raises(BenchmarkError, match=f"{benchmark} has {message}") as caught:
        read(tmp_path, benchmark)
    assert all(name in caught.value.fix for name in FILES[benchmark][split])


def test_a_benchmark_that_is_not_there_at_all(tmp_path):
    write_data_sets(tmp_path, {name: splits for name, splits in ROWS.items() if name != "winogrande"})
    with pytest.raises(BenchmarkError, match="winogrande has no"):
        load_real_suite(data_dir=str(tmp_path))


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="does not exist") as caught:
        check_data_dir(str(tmp_path / "nowhere"))
    assert "benchmarks.data_dir" in caught.value.where
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="data is a file"):
        check_data_dir(str(tmp_path / "file"))
