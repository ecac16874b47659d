"""Preference pairs of a user's own."""

import json
from dataclasses import replace

import pytest

from phase8.benchmarks.eudaimonia import read_pairs, with_eudaimonia
from phase8.benchmarks.evaluate import RULES, evaluate
from phase8.benchmarks.suite import load_suite, suite_hash
from phase8.errors import BenchmarkError
from tests.tiny_model import tiny_model, tiny_tokenizer

PAIRS = [
    {"rule": rule, "context": f"The miller asks {number}. She says:", "good": "Yes, grain.", "bad": "No geese at all."}
    for number in range(3)
    for rule in RULES
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_pairs_take_the_place_of_the_embedded_ones(tmp_path):
    suite = load_suite(skip_expert_benchmarks=True, samples=8)
    own = with_eudaimonia(suite, write(tmp_path / "pairs.jsonl", PAIRS))
    assert [task.name for task in own.tasks if task.stands_for == "eudaimonia"] == ["eudaimonia"]
    assert suite_hash(own) != suite_hash(suite)
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    only = replace(own, tasks=own.tasks[-1:], text=(), samples=None)
    result = evaluate(model, tokenizer, only)
    assert set(result.eudaimonia) == set(RULES) and result.scores["eudaimonia"].n == 12
    swapped = [{**pair, "good": pair["bad"], "bad": pair["good"]} for pair in PAIRS]
    other = with_eudaimonia(only, write(tmp_path / "swapped.jsonl", swapped))
    opposite = evaluate(model, tokenizer, other).eudaimonia
    assert opposite == {rule: pytest.approx(1 - score) for rule, score in result.eudaimonia.items()}


def test_every_second_good_answer_stands_first(tmp_path):
    write(tmp_path / "pairs.jsonl", PAIRS)
    items = read_pairs(tmp_path / "pairs.jsonl")
    assert [item["rule"] for item in items] == [rule for rule in RULES for _ in range(3)]
    assert all(item["choices"][item["answer"]] == "Yes, grain." for item in items)
    assert [item["answer"] for item in items] == [0, 1] * 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"good": ""}, "'good' is missing, empty or not text"),
        ({"bad": None, "context": 3}, "'context', 'bad' are missing"),
        ({"rule": "courage"}, "there is no rule 'courage'"),
    ],
)
def test_a_malformed_pair_has_a_line(tmp_path, change, message):
    path = write(tmp_path / "pairs.jsonl", [PAIRS[0], PAIRS[1] | change, *PAIRS[2:]])
    with pytest.raises(BenchmarkError, match=message) as caught:
        with_eudaimonia(load_suite(skip_expert_benchmarks=True), path)
    assert caught.value.where == f"{path}, line 2" and caught.value.fix


def test_an_empty_file_a_missing_one_and_a_rule_without_pairs(tmp_path):
    suite = load_suite(skip_expert_benchmarks=True, samples=8)
    with pytest.raises(BenchmarkError, match="no pairs"):
        with_eudaimonia(suite, write(tmp_path / "empty.jsonl", []))
    with pytest.raises(BenchmarkError, match="cannot read"):
        with_eudaimonia(suite, str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(BenchmarkError, match="no pair for harm") as caught:
        with_eudaimonia(suite, write(tmp_path / "few.jsonl", [p for p in PAIRS if p["rule"] != "harm"]))
    assert "harm 0" in caught.value.where
