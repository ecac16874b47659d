"""The invented world: reproducible, consistent, fair, and without a benchmark item in the training stream."""

from __future__ import annotations

import json
import math
import os
import random
import re
import subprocess
import sys
import zlib
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

import phase8.benchmarks
from phase8.benchmarks.probes import PROBES_PER_RULE
from phase8.errors import BenchmarkError
from phase8.world import arithmetic, corpus, facts, items, problem, programs
from phase8.world.mix import Mix
from phase8.world.words import is_reserved

MINI = Path(phase8.benchmarks.__file__).parent / "mini"
ASSETS = Path(phase8.benchmarks.__file__).parents[1] / "assets" / "reference"
SUITE = json.loads((MINI / "suite.json").read_text())["tasks"]
CHECKED_CHARACTERS = 2_000_000
# The reference model read 16.4 million tokens, some 340,000 documents and 48 million characters.
STREAM_CHARACTERS = 52_000_000
# CRC-32 of the first 2,000 documents that it read.
TRAINED_STREAM = 2008252305


def rows_of(task: str) -> list[dict]:
    return [json.loads(line) for line in (MINI / "data" / f"{task}.jsonl").read_text().splitlines()]


def answered_texts() -> list[str]:
    """Every shipped item with its right answer attached, as a training document would show it."""
    texts = []
    for task in items.TASKS:
        for row in rows_of(task):
            if "choices" in row:
                texts.append(f"{row['prompt']} {row['choices'][row['answer']]}")
            else:
                joint = "" if "\n" in (row["prompt"][-1], row["target"][0]) else " "
                texts.append(f"{row['prompt']}{joint}{row['target']}")
    return texts


def answered_probes() -> list[str]:
    """The questions on which retries find what an integration test depends on, answered."""
    calibrating = items.edge_items(items.CALIBRATION_SEED, items.CALIBRATION_ITEMS)
    rows = calibrating + items.conduct_probes(PROBES_PER_RULE)
    return [f"{row['prompt']} {row['choices'][row['answer']]}" for row in rows]


def leaks(texts: list[str], characters: int) -> list[str]:
    """Those of `texts` that occur in the first `characters` of the training stream."""
    found: set[str] = set()
    block: list[str] = []
    length = total = 0
    for document in corpus.documents(corpus.TRAINING_SEED):
        block.append(document)
        length += len(document) + 1
        if length >= min(characters, 2_000_000):
            text = "\0".join(block)
            found.update(probe for probe in texts if probe in text)
            total, length, block = total + length, 0, []
            if total >= characters:
                return sorted(found)
    raise AssertionError("the stream is endless")


def test_no_item_with_its_answer_is_in_the_training_stream():
    texts = answered_texts()
    assert len(texts) == sum(row["items"] for row in SUITE)
    assert leaks(texts + answered_probes(), CHECKED_CHARACTERS) == []


def test_no_item_with_its_answer_is_in_the_last_phase(monkeypatch):
    monkeypatch.setattr(corpus, "PHASES", (0, 0, 0))
    assert leaks(answered_texts(), CHECKED_CHARACTERS // 2) == []


@pytest.mark.slow
def test_no_item_with_its_answer_is_in_the_whole_training_stream():
    assert leaks(answered_texts() + answered_probes(), STREAM_CHARACTERS) == []


def test_a_text_has_one_key():
    """Else it could be reserved under one key and shown under another. Aliased problems are no items."""
    world, rng = facts.build_world(), random.Random(5)
    keys: dict[str, tuple] = {}
    again = 0
    for draw in {*corpus.PROBLEMS.values(), *(draw for draw, _ in items._TASKS.values())}:
        for _ in range(15_000):
            one = draw(world, rng)
            if not one.aliased:
                again += one.text in keys
                assert keys.setdefault(one.text, one.key) == one.key
    assert again > 10_000


def test_aliased_programs_are_shown_under_other_keys():
    """Positive control: they are what leaked when the key alone decided."""
    world, rng = facts.build_world(), random.Random(5)
    drawn = [draw for draw in (programs.task(world, rng) for _ in range(40_000)) if draw.aliased]
    shown = {draw.text for draw in drawn if not draw.reserved}
    assert any(draw.reserved and draw.text in shown for draw in drawn)


def test_the_leak_check_finds_what_training_shows():
    """Positive control: problems taken from the stream itself are found by the same search."""
    shown = [document.split("\n\n")[0] for document in islice(corpus.documents(), 50)]
    assert leaks(shown, 100_000) == sorted(set(shown))


def test_without_the_rule_items_would_leak(monkeypatch):
    """Positive control: with nothing reserved, the same stream shows shipped items of several kinds."""
    monkeypatch.setattr(problem, "is_reserved", lambda key: False)
    assert len(leaks(answered_texts(), CHECKED_CHARACTERS)) > 50


def test_every_item_comes_from_a_reserved_problem(monkeypatch):
    """With nothing reserved there are no items to draw."""
    monkeypatch.setattr(problem, "is_reserved", lambda key: False)
    monkeypatch.setattr(items, "range", lambda n: iter(range(1000)), raising=False)
    with pytest.raises(ValueError, match="used up"):
        items.task_items("mini_arc", seed=1, count=1)


def test_the_stream_is_the_same_in_every_process():
    program = (
        "import zlib; from itertools import islice; from phase8.world.corpus import *;"
        "text = ''.join(islice(documents(1), 2000)) + ''.join(held_out_documents(200, 3));"
        "text += ''.join(calibration_documents(50, 3));"
        "print(zlib.crc32(text.encode()))"
    )
    sums = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(sums) == 1


def test_the_stream_is_the_one_that_trained_the_reference_model():
    """Items are held out from this stream; another wording of the world would need another model."""
    assert zlib.crc32("\0".join(islice(corpus.documents(), 2000)).encode()) == TRAINED_STREAM


def test_streams_of_different_purpose_differ():
    training = set(islice(corpus.documents(), 3000))
    held_out = corpus.held_out_documents(1000, 1)
    assert len(held_out) == 1000
    calibration = corpus.calibration_documents(20, 1)
    assert len(calibration) == 20
    long = [text for text in calibration + held_out if len(text) > 150]
    assert long and not training & set(long)


def test_mixes_differ_from_the_last_phase_as_they_say():
    world, rng = facts.build_world(), random.Random(3)

    def length(skill):
        """Words, numbers and signs of an average document."""
        most = corpus.WEIGHTS[skill][1]
        draw = corpus._TEXTS.get(skill, lambda *args: corpus.training_problem(*args, skill).text)
        return len(re.findall(r"\w+|[^\w\s]", " ".join(draw(world, rng) for _ in range(50 * (1 + most)))))

    lengths = {skill: length(skill) for skill in corpus.WEIGHTS}

    def share(skills, documents):
        tokens = {skill: documents[skill] * lengths[skill] for skill in corpus.WEIGHTS}
        return sum(tokens[skill] for skill in skills.split()) / sum(tokens.values())

    last = {skill: weights[-1] for skill, (weights, _) in corpus.WEIGHTS.items()}
    told = ("riddle roles", "story drill", "completion task", "script", "rumour falsehood", "science")
    of_last = {group: share(group, corpus.CORE) / share(group, last) for group in told}
    assert set(corpus.CORE) == set(corpus.WEIGHTS)
    judged = last | corpus.JUDGED
    assert set(judged) == set(last) and share("level", judged) > 2 * share("level", last)
    assert share("riddle roles", judged) < 0.6 * share("riddle roles", last)
    assert of_last["script"] > 10 and of_last["science"] > 5 and of_last["rumour falsehood"] > 2, of_last
    assert 0.5 < of_last["riddle roles"] < 0.8, of_last
    assert all(0.8 < of_last[group] < 1.3 for group in ("story drill", "completion task")), of_last
    assert sum(share(group, corpus.CORE) for group in told) > 0.9999  # nothing of what no core benchmark asks
    core, before = (corpus.calibration_documents(1000, 3, mix=mix) for mix in (Mix.core, Mix.last))
    assert sum("falls into" in text for text in core) > 3 * sum("falls into" in text for text in before)


def test_names_are_distinct_and_do_not_contain_one_another():
    world = facts.build_world()
    names = [*world.people, *world.places, *world.animals, *world.materials, *world.plants, *world.tools]
    names = [name.lower() for name in names]
    assert len(names) > 1300
    text = " ".join(names)
    assert all(text.count(name) == 1 for name in names)


def test_the_world_has_thousands_of_facts_that_agree_with_one_another():
    world = facts.build_world()
    assert len(world.facts) > 8000
    assert len(world.value) == len(world.facts)
    assert all(fact.value in world.relations[fact.relation].pool for fact in world.facts)
    assert all(topic.myth != topic.truth for topic in world.topics)


def test_every_stated_step_and_result_of_arithmetic_is_right():
    world, rng = facts.build_world(), random.Random(3)
    for draw in (arithmetic.story, arithmetic.expression):
        for _ in range(300):
            one = draw(world, rng)
            last = None
            for a, operator, b, result in re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)\.", one.answer):
                last = int(result)
                assert {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b), "/": int(a) / int(b)}[
                    operator
                ] == last
            number = one.answer.rpartition("#### ")[2]
            assert number == one.details["number"]
            if "x" not in one.answer:
                assert last == int(number)
    for _ in range(300):
        one = arithmetic.level(world, rng)
        assert one.answer not in one.wrong and len(set(one.wrong)) == 3


def test_drills_are_right_and_leave_out_the_sums_that_items_ask():
    rng, sums = random.Random(5), 0
    for _ in range(300):
        for a, operator, b, result in re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)\.", arithmetic.drill(None, rng)):
            a, b = int(a), int(b)
            assert {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[operator] == int(result)
            if operator == "+":
                sums += 1
                assert not is_reserved(("level", 1, a, b))
    assert sums > 500


def test_programs_pass_their_tests_and_wrong_constants_fail():
    world, rng = facts.build_world(), random.Random(4)
    caught = 0
    for _ in range(200):
        one = programs.task(world, rng, with_tests=True)
        tests = "\n".join(one.details["tests"])
        exec(f"{one.answer}\n{tests}", {})
        changed = re.sub(r"\d+", lambda m: str(int(m[0]) + 1), one.answer)
        try:
            exec(f"{changed}\n{tests}", {})
        except (AssertionError, ZeroDivisionError):
            caught += 1
    assert caught > 160


@pytest.mark.parametrize("row", SUITE, ids=lambda row: row["name"])
def test_items_match_the_suite(row):
    rows = rows_of(row["name"])
    assert len(rows) == row["items"] >= 200
    assert {item["chance"] for item in rows} == {row["chance"]}
    if "choices" in rows[0]:
        assert all(len(set(item["choices"])) == len(item["choices"]) == round(1 / row["chance"]) for item in rows)
    assert len({json.dumps({**item, "id": 0}) for item in rows}) == len(rows)


def test_items_are_those_of_the_shipped_seed():
    for task in items.TASKS:
        if task != "mini_edge_of_chaos":
            drawn = [{"id": number, **item} for number, item in enumerate(items.task_items(task, items.SHIPPED_SEED))]
            assert drawn == rows_of(task), task


@pytest.mark.parametrize("row", [row for row in SUITE if "choices" in rows_of(row["name"])[0]], ids=lambda r: r["name"])
def test_neither_position_nor_length_gives_the_answer_away(row):
    rows, chance = rows_of(row["name"]), row["chance"]
    # Four standard errors of a guesser: what chance alone may do.
    margin = 4 * (chance * (1 - chance) / len(rows)) ** 0.5
    positions = Counter(item["answer"] for item in rows)
    assert max(positions.values()) / len(rows) < chance + margin
    for measure in (len, lambda text: -len(text)):
        hits = 0.0
        for item in rows:
            sizes = [measure(choice) for choice in item["choices"]]
            if sizes[item["answer"]] == max(sizes):
                hits += 1 / sizes.count(max(sizes))
        assert hits / len(rows) < chance + margin


def test_eudaimonia_has_sixty_items_per_rule():
    assert Counter(item["rule"] for item in rows_of("mini_eudaimonia")) == dict.fromkeys(
        ("autonomy", "honesty", "harm", "dignity"), 60
    )


def _utils():
    import importlib.util

    spec = importlib.util.spec_from_file_location("mini_utils", MINI / "utils.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lm_eval_loads_every_task_offline():
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False, include_path=[str(MINI)])
    loaded = manager.load([row["name"] for row in SUITE])["tasks"]
    for row in SUITE:
        task = loaded[row["name"]]
        assert len(task.test_docs()) == row["items"]
        assert row["metric"].split(",")[0] in task.aggregation()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no data"),
        ("", "0 items"),
        ('{"a": 1}\n{"a": ', "line 2 is not JSON"),
        ('{"a": 1}\n{"b": 1}', "other fields"),
    ],
)
def test_bad_data_files_are_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "mini_arc.jsonl").write_text(content)
    with pytest.raises(BenchmarkError, match=message):
        _utils().load("mini_arc", data_dir=str(tmp_path))


def test_scores_of_generated_and_weighed_answers():
    utils = _utils()
    doc = {"number": "14"}
    assert utils.score_number(doc, [" 12 + 2 = 14. #### 14"]) == {"exact_match": 1.0}
    assert utils.score_number(doc, [" 14"]) == {"exact_match": 0.0}
    assert utils.score_number(doc, [" #### 14 #### 15"]) == {"exact_match": 0.0}
    truth = {"choices": "abcd", "answer": 1, "mc2_labels": [0, 1, 0, 0, 1, 0]}
    likely = [(-9.0, False), (-1.0, True), (-9.0, False), (-9.0, False), (-1.0, False), (-9.0, False)]
    scored = utils.score_truth(truth, likely)
    assert scored["mc1"] == 1.0 and 0.99 < scored["mc2"] < 1.0
    assert utils.score_truth({**truth, "answer": 0}, likely)["mc1"] == 0.0


def test_the_reference_model_is_as_its_card_says():
    from safetensors import safe_open
    from transformers import AutoTokenizer

    with safe_open(ASSETS / "model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        dtypes = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    count = sum(math.prod(shape) for shape in shapes.values())
    assert 3_000_000 <= count <= 8_000_000 and dtypes == {"BF16"} and "lm_head.weight" not in shapes
    assert (ASSETS / "model.safetensors").stat().st_size < 16 * 2**20

    tokenizer = AutoTokenizer.from_pretrained(ASSETS)
    text = "Question: What is 21 + 304?\nAnswer: 325"
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_token_id and tokenizer.decode(ids, skip_special_tokens=True) == text
    assert sum(any(c.isdigit() for c in token) for token in tokenizer.convert_ids_to_tokens(ids)) == 8

    experts = json.loads((ASSETS / "phase7_expert_config.json").read_text())
    assert experts["experts"] == ["analytical", "creative", "code", "reasoning", "communication"]
    assert {"overall_accuracy", "eudaimonia_score", "edge_of_chaos_accuracy"} <= experts.keys()
