"""The pool of edge of chaos for a user's own model: built by difficulty, near 75 %, without flattering the baseline."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phase8.benchmarks import edge
from phase8.benchmarks.suite import EDGE_OF_CHAOS, load_suite, suite_hash
from phase8.config import BenchmarksConfig, EdgePool
from phase8.errors import ConfigError


def questions(per_level: int, levels: int) -> list[dict]:
    return [
        {"prompt": f"Q{n}", "choices": ["a", "b", "c", "d"], "answer": 0, "chance": 0.25, "level": level}
        for level in range(levels)
        for n in range(per_level)
    ]


def answers_with(accuracy: dict[int, float], seed: int):
    rng = random.Random(seed)
    return lambda items: [float(rng.random() < accuracy[item["level"]]) for item in items]


def evenly(per_level: int, accuracy: dict[int, float]):
    """Answers with just these shares of right ones in every third of every level."""

    def answer(n: int, level: int) -> float:
        place, share = n % per_level // 3, accuracy[level]
        return float(round((place + 1) * share) > round(place * share))

    return lambda items: [answer(n, item["level"]) for n, item in enumerate(items)]


def test_the_pool_is_near_the_target_and_has_every_useful_level():
    accuracy = {0: 0.99, 1: 0.9, 2: 0.7, 3: 0.5, 4: 0.3}
    pool = edge.build_pool(questions(225, 5), answers_with(accuracy, 1))
    assert len(pool.items) == edge.POOL_ITEMS
    counts = {level: sum(item["level"] == level for item in pool.items) for level in accuracy}
    assert min(counts.values()) >= 10
    expected = sum(accuracy[item["level"]] for item in pool.items) / len(pool.items)
    assert expected == pytest.approx(edge.TARGET, abs=0.06)
    assert len({(item["level"], item["prompt"]) for item in pool.items}) == edge.POOL_ITEMS


def test_a_copy_that_errs_elsewhere_scores_about_the_same():
    """Were the pool made of items that the baseline solved, a model of equal skill would fall far below 75 %."""
    accuracy = {0: 0.95, 1: 0.85, 2: 0.7, 3: 0.5, 4: 0.35}
    scores = []
    for seed in range(12):
        pool = edge.build_pool(questions(225, 5), answers_with(accuracy, seed))
        again = answers_with(accuracy, 1000 + seed)(list(pool.items))
        scores.append(sum(again) / len(again))
    assert sum(scores) / len(scores) == pytest.approx(edge.TARGET, abs=0.03)


def test_the_questions_do_not_calibrate():
    """Neither the third that gives the accuracies is in the pool, nor the one that confirms it."""
    items = questions(60, 3)
    pool = edge.build_pool(items, evenly(60, {0: 0.9, 1: 0.75, 2: 0.5}), size=30)
    # 60 of each level stand together: the second of every three may be drawn.
    drawn = {(item["level"], item["prompt"]) for item in items[1::3]}
    assert len(pool.items) == 30
    assert {(item["level"], item["prompt"]) for item in pool.items} <= drawn


@pytest.mark.parametrize(("accuracy", "extreme"), [(0.25, "hard"), (0.98, "easy")])
def test_where_no_mix_is_near_the_target_it_says_so(accuracy, extreme):
    pool = edge.build_pool(questions(225, 3), answers_with(dict.fromkeys(range(3), accuracy), 2))
    assert pool.items == () and f"too {extreme}" in pool.text and "edge_pool_file" in pool.text


@pytest.mark.parametrize("size", [4, 8, 20, 200])
def test_the_luckiest_of_many_draws_is_no_pool(size):
    """A model that solves 19 to 32 % of each level: among 64 draws of 8 questions one has 75 %."""
    accuracy = {0: 0.32, 1: 0.27, 2: 0.25, 3: 0.22, 4: 0.19}
    for seed in range(10):
        pool = edge.build_pool(questions(225, 5), answers_with(accuracy, seed), size)
        assert pool.items == () and "left out" in pool.text


def test_a_mix_that_only_seemed_right_is_not_confirmed():
    """The calibrating third happens to be solved at 75 %, the rest at 45 %."""
    seemed, real = (evenly(225, {0: share})(questions(225, 1)) for share in (0.75, 0.45))
    lucky = [one if n % 3 == 0 else other for n, (one, other) in enumerate(zip(seemed, real, strict=True))]
    pool = edge.build_pool(questions(225, 1), lambda items: lucky, 8)
    assert pool.items == () and "questions apart" in pool.text


def test_few_questions_confirm_nothing():
    pool = edge.build_pool(questions(24, 1), evenly(24, {0: 0.75}), 4)
    assert pool.items == () and "cannot confirm" in pool.text


def test_what_confirms_a_pool_is_told():
    pool = edge.build_pool(questions(225, 3), evenly(225, {0: 0.9, 1: 0.75, 2: 0.6}), 8)
    assert len(pool.items) == 8 and "solves 75.0%, and 7" in pool.text and "of others in the same mix" in pool.text


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 80)), min_size=1, max_size=6),
    st.integers(1, 300),
)
def test_a_mix_has_its_size_and_takes_no_more_than_there_is(levels, size):
    accuracy = {str(n): value for n, (value, _) in enumerate(levels)}
    available = {str(n): count for n, (_, count) in enumerate(levels)}
    mix = edge.choose_mix(accuracy, available, size)
    assert sum(mix.values()) == min(size, sum(available.values()))
    assert all(0 <= mix[level] <= available[level] for level in mix)


def test_the_mix_is_nearly_as_good_as_the_best_of_all_mixes():
    accuracy, available = {"a": 0.95, "b": 0.6, "c": 0.3}, {"a": 12, "b": 12, "c": 12}
    found = edge.choose_mix(accuracy, available, 20)

    def mean(mix):
        return sum(mix[level] * accuracy[level] for level in mix) / 20

    every = [{"a": a, "b": b, "c": 20 - a - b} for a in range(13) for b in range(13) if 0 <= 20 - a - b <= 12]
    best = min(abs(mean(mix) - edge.TARGET) for mix in every)
    assert abs(mean(found) - edge.TARGET) <= best + 0.01


def test_embedded_candidates_need_no_knowledge_of_the_embedded_world():
    items = edge.embedded_candidates()
    assert len(items) == edge.PER_LEVEL * len(edge.LEVELS)
    assert all(item["prompt"].startswith("Question: What is ") for item in items)


def test_the_suite_asks_the_pool_and_its_hash_tells():
    suite = load_suite()
    items = edge.embedded_candidates()[:30]
    changed = edge.with_pool(suite, items)
    task = next(task for task in suite.tasks if task.stands_for == EDGE_OF_CHAOS)
    asked = [row["prompt"] for row in changed.loaded[task.name].test_docs()]
    assert asked == [item["prompt"] for item in items]
    assert suite_hash(changed) != suite_hash(suite)
    assert suite_hash(edge.with_pool(suite, items[:29])) != suite_hash(changed)
    without = edge.with_pool(suite, [])
    assert [t.name for t in without.tasks] == [t.name for t in suite.tasks if t is not task]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 questions"),
        (b"{", "line 1 is not a question"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"prompt": "a", "choices": ["x", "y"], "answer": 0}', "level"),
        (b"[" * 100_000, "line 1 is not a question"),
        (b'{"prompt": "a", "choices": "xy", "answer": 0, "level": 1}', "line 1: prompt and choices"),
        (b'{"prompt": null, "choices": ["x", "y"], "answer": 0, "level": 1}', "line 1: prompt and choices"),
        (b'{"prompt": "a", "choices": ["x", "y"], "answer": 0.7, "level": 1}', "line 1: needs two"),
        (b'{"prompt": "a", "choices": ["x", "y"], "answer": Infinity, "level": 1}', "line 1: needs two"),
        (b'{"prompt": "a", "choices": ["x", "y"], "answer": 2, "level": 1}', "line 1: needs two"),
        (b'{"prompt": "a", "choices": ["x", "x"], "answer": 0, "level": 1}', "line 1: needs two"),
        (b'{"prompt": "a", "choices": ["x", "y"], "answer": 0, "level": 1}', "at least 3 on each level"),
    ],
)
def test_a_bad_file_is_named(tmp_path, content, message):
    path = tmp_path / "pool.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        edge.read_candidates(path)


def test_a_file_of_the_users_is_read(tmp_path):
    path = tmp_path / "pool.jsonl"
    rows = [{"prompt": f"{n}\u2028", "choices": ["x", "y"], "answer": n % 2, "level": "easy"} for n in range(4)]
    path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    items = edge.read_candidates(path)
    assert [item["answer"] for item in items] == [0, 1, 0, 1] and {item["chance"] for item in items} == {0.5}


def test_a_file_and_the_shipped_questions_exclude_each_other():
    with pytest.raises(ConfigError, match="edge_pool"):
        BenchmarksConfig(edge_pool=EdgePool.shipped, edge_pool_file="x.jsonl")
