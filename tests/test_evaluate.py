"""Suites, their evaluation, and the cache of baselines."""

import json
import shutil
import warnings

import pytest
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM

from phase8.benchmarks.cache import BaselineCache
from phase8.benchmarks.evaluate import RULES, Score, SuiteResult, evaluate
from phase8.benchmarks.experts import EXPERT_BENCHMARKS
from phase8.benchmarks.suite import MINI, load_suite, read_tasks, suite_hash
from phase8.errors import BenchmarkError, OutputError
from tests.tiny_model import tiny_model, tiny_tokenizer

READER = """
import json
from pathlib import Path
from datasets import Dataset

def load(task, **_):
    lines = (Path(__file__).parent / f"{task}.jsonl").read_text().splitlines()
    return {"test": Dataset.from_list([json.loads(line) for line in lines])}

def score_length(doc, results):
    return {"length": min(1.0, len(results[0]) / 10)}
"""
CHOICE = """
task: {name}
custom_dataset: !function reader.load
dataset_kwargs: {{task: {name}}}
test_split: test
num_fewshot: 0
output_type: multiple_choice
doc_to_text: prompt
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
GENERATED = """
task: {name}
custom_dataset: !function reader.load
dataset_kwargs: {{task: {name}}}
test_split: test
num_fewshot: 0
output_type: generate_until
doc_to_text: prompt
doc_to_target: prompt
generation_kwargs: {{until: ["e"], max_gen_toks: 8, do_sample: false}}
process_results: !function reader.score_length
metric_list:
  - {{metric: length, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("suite")
    (path / "reader.py").write_text(READER)
    words = ["miller", "geese", "river", "grain", "wheel", "sea", "two", "five"]
    entries = [
        ("tiny_arc", CHOICE, "core", "acc,none", 0.25, "ARC-Challenge"),
        ("tiny_mbpp", GENERATED, "expert", "length,none", 0.0, "MBPP"),
        ("tiny_eudaimonia", CHOICE, "integration", "acc,none", 0.5, "eudaimonia"),
    ]
    for name, template, *_ in entries:
        (path / f"{name}.yaml").write_text(template.format(name=name))
        rows = [
            {"prompt": f"The {word} of {other}", "choices": [f" {w}" for w in words[:4]], "answer": number % 4}
            for number, word in enumerate(words)
            for other in words[:5]
        ]
        if name == "tiny_eudaimonia":
            rows = [{**row, "rule": RULES[number // 10]} for number, row in enumerate(rows)]
        (path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    keys = ("name", "role", "metric", "chance", "stands_for")
    tasks = [dict(zip(keys, (name, *rest), strict=True)) for name, _, *rest in entries]
    (path / "suite.json").write_text(json.dumps({"tasks": tasks}))
    return path


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_model(tokenizer)


def test_items_equal_lm_evals_own(directory, model, tokenizer):
    suite = load_suite(["code"], directory=directory)
    result = evaluate(model, tokenizer, suite)
    assert list(result.scores) == ["tiny_arc", "tiny_mbpp", "tiny_eudaimonia"]
    plain = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=1, max_length=96, device="cpu")
    theirs = evaluator.evaluate(plain, {"tasks": suite.loaded}, bootstrap_iters=0, log_samples=True)
    for task in suite.tasks:
        metric = task.metric.split(",")[0]
        score = result.scores[task.name]
        assert list(score.items) == [row[metric] for row in theirs["samples"][task.name]]
        assert score.value == pytest.approx(theirs["results"][task.name][task.metric])
    assert 0 < result.scores["tiny_arc"].value < 1
    assert set(result.scores["tiny_arc"].also) == {"acc_norm,none"}
    assert evaluate(model, tokenizer, suite) == result


def test_progress_counts_items_and_scores_arrive_one_by_one(directory, model, tokenizer):
    suite = load_suite(["code"], directory=directory, samples=7)
    seen, tasks = {}, []
    evaluate(
        model, tokenizer, suite, batch_tokens=64, on_task=lambda score: tasks.append((score.task, score.n)),
        on_progress=lambda task, done, total: seen.setdefault(task, []).append((done, total)),
    )  # fmt: skip
    assert tasks == [("tiny_arc", 7), ("tiny_mbpp", 7), ("tiny_eudaimonia", 7)]
    for steps in seen.values():
        assert steps[-1] == (7, 7) and steps == sorted(steps) and len(steps) > 1


def test_samples_are_spread_over_the_items(directory, model, tokenizer):
    whole = evaluate(model, tokenizer, load_suite(directory=directory)).scores["tiny_eudaimonia"]
    few = evaluate(model, tokenizer, load_suite(directory=directory, samples=8))
    assert few.scores["tiny_eudaimonia"].items == whole.items[::5]
    assert few.scores["tiny_eudaimonia"].labels == tuple(rule for rule in RULES for _ in range(2))
    assert set(few.eudaimonia) == set(RULES)


def test_items_of_another_directory_take_the_place_of_the_shipped_ones(tmp_path):
    """Few items, few documents; other items, another suite; a directory without them says what writes them."""
    data = tmp_path / "items"
    shutil.copytree(MINI / "data", data)
    rows = [{**json.loads(line), "prompt": "Asked anew"} for line in (data / "mini_arc.jsonl").read_text().splitlines()]
    (data / "mini_arc.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shipped = load_suite(skip_expert_benchmarks=True, samples=5)
    other = load_suite(skip_expert_benchmarks=True, samples=5, data_dir=str(data))
    assert len(shipped.text) == len(other.text) == 5
    asked = {name: [doc["prompt"] for doc in task.eval_docs] for name, task in other.loaded.items()}
    known = {name: [doc["prompt"] for doc in task.eval_docs] for name, task in shipped.loaded.items()}
    assert set(asked.pop("mini_arc")) == {"Asked anew"} != set(known.pop("mini_arc"))
    assert asked == known
    assert suite_hash(shipped) != suite_hash(other)
    with pytest.raises(BenchmarkError, match="cannot be loaded|no data for") as refused:
        load_suite(data_dir=str(tmp_path / "nowhere"))
    assert "phase8.world.items" in refused.value.fix


def test_experts_choose_benchmarks_and_the_missing_are_named(directory):
    names = lambda **k: [task.name for task in load_suite(directory=directory, **k).tasks]  # noqa: E731
    assert names() == ["tiny_arc", "tiny_eudaimonia"]
    assert names(experts=["code"]) == ["tiny_arc", "tiny_mbpp", "tiny_eudaimonia"]
    assert names(experts=["code"], skip_expert_benchmarks=True) == ["tiny_arc", "tiny_eudaimonia"]
    suite = load_suite(["analytical", "code"], directory=directory)
    assert suite.missing == ("analytical: MATH", "analytical: GSM8K", "code: HumanEval")


def test_an_expert_may_have_other_benchmarks(directory):
    overrides = {"code": ["ARC"], "gardening": ["MBPP", "roses"], "memory": None}
    suite = load_suite(["code", "gardening"], directory=directory, overrides=overrides)
    assert {task.name: task.experts for task in suite.tasks} == {
        "tiny_arc": ("analytical", "code"), "tiny_mbpp": ("gardening",), "tiny_eudaimonia": ()
    }  # fmt: skip
    assert suite.missing == ("gardening: roses",)


def test_an_expert_nobody_knows(directory):
    with pytest.raises(BenchmarkError, match="cookery") as caught:
        load_suite(["code", "cookery"], directory=directory)
    assert all(expert in caught.value.fix for expert in EXPERT_BENCHMARKS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "suite.json").unlink(), "cannot read"),
        (lambda d: (d / "suite.json").write_text("{"), "not a list of benchmarks"),
        (lambda d: (d / "suite.json").write_text('{"tasks": [{"name": "x"}]}'), "benchmark 0 is incomplete"),
        (lambda d: (d / "suite.json").write_text((d / "suite.json").read_text().replace("core", "corn")), "corn"),
        (lambda d: (d / "tiny_arc.yaml").unlink(), "no YAML file defines tiny_arc"),
        (lambda d: (d / "tiny_arc.jsonl").unlink(), "tiny_arc cannot be loaded"),
        (lambda d: (d / "tiny_arc.jsonl").write_text("{"), "tiny_arc cannot be loaded"),
    ],
)
def test_a_broken_suite_is_one_clear_error(directory, tmp_path, change, message):
    broken = tmp_path / "suite"
    shutil.copytree(directory, broken)
    change(broken)
    with pytest.raises(BenchmarkError, match=message):
        load_suite(directory=broken)


def test_a_metric_that_is_not_reported(directory, tmp_path, model, tokenizer):
    broken = tmp_path / "suite"
    shutil.copytree(directory, broken)
    (broken / "suite.json").write_text((broken / "suite.json").read_text().replace("acc,none", "bleu,none"))
    with pytest.raises(BenchmarkError, match="does not report bleu,none") as caught:
        evaluate(model, tokenizer, load_suite(directory=broken, samples=1))
    assert "acc,none" in caught.value.fix


def test_the_hash_follows_data_tasks_and_samples(directory, tmp_path):
    other = tmp_path / "suite"
    shutil.copytree(directory, other)
    base = suite_hash(load_suite(directory=directory))
    assert suite_hash(load_suite(directory=other)) == base
    assert suite_hash(load_suite(directory=other, samples=3)) != base
    assert suite_hash(load_suite(["code"], directory=other)) != base
    data = other / "tiny_arc.jsonl"
    data.write_text(data.read_text().replace("miller", "baker"))
    assert suite_hash(load_suite(directory=other)) != base


def integration(items, stands_for, labels=()):
    score = Score(
        task="x", role="integration", stands_for=stands_for, experts=(), chance=0.25, items=items, labels=labels
    )
    return SuiteResult(scores={"x": score})


@pytest.mark.parametrize(
    ("right", "status"),
    [(69, "lost_capability"), (70, "in_band"), (75, "in_band"), (80, "in_band"), (81, "too_easy")],
)
def test_edge_of_chaos(right, status):
    result = integration((1.0,) * right + (0.0,) * (100 - right), "edge of chaos")
    assert result.edge_of_chaos(0.70, 0.80) == {"accuracy": right / 100, "status": status}
    assert result.edge_of_chaos(0.0, 1.0)["status"] == "in_band"
    assert result.eudaimonia is None


def test_eudaimonia_by_rule():
    result = integration((1.0, 0.0, 1.0, 1.0, 0.0, 0.5), "eudaimonia", ("autonomy", "autonomy", *RULES[1:], "dignity"))
    assert result.eudaimonia == {"autonomy": 0.5, "honesty": 1.0, "harm": 1.0, "dignity": 0.25}
    assert result.edge_of_chaos(0.70, 0.80) is None
    with pytest.raises(BenchmarkError, match="judges harm, dignity"):
        _ = integration((1.0, 1.0), "eudaimonia", ("autonomy", "honesty")).eudaimonia


def test_the_mini_suite_covers_the_five_experts():
    entries = json.loads((MINI / "suite.json").read_text())["tasks"]
    tasks = read_tasks(MINI)
    assert sum(task.role == "core" for task in tasks) == 7
    assert [list(task.experts) for task in tasks] == [entry["experts"] for entry in entries]
    suite = load_suite(["analytical", "creative", "code", "reasoning", "communication"], samples=2)
    assert suite.missing == () and len(suite.loaded) == len(tasks)


def test_the_cache_gives_back_what_it_was_given(tmp_path):
    cache = BaselineCache(tmp_path / "cache")
    result = integration((1.0, 0.0), "edge of chaos")
    assert cache.get("model", "suite") is None
    cache.put("model", "suite", result)
    assert cache.get("model", "suite") == result
    assert cache.get("model", "other") is None and cache.get("other", "suite") is None


@pytest.mark.parametrize(
    "damage",
    [lambda t: "", lambda t: t[:50], lambda t: "[]", lambda t: "null", lambda t: t.replace("items", "itms"),
     lambda t: t.replace('"model": "model"', '"model": "odel"'), lambda t: "\x00\xff"],
)  # fmt: skip
def test_a_corrupt_cache_is_a_miss_with_a_warning(tmp_path, damage):
    cache = BaselineCache(tmp_path)
    cache.put("model", "suite", integration((1.0, 0.0), "edge of chaos"))
    (path,) = tmp_path.iterdir()
    path.write_text(damage(path.read_text()), encoding="latin-1")
    with pytest.warns(UserWarning, match="measured anew"):
        assert cache.get("model", "suite") is None


def test_no_flipped_bit_gives_other_scores_in_silence(tmp_path):
    cache, result = BaselineCache(tmp_path), integration((1.0, 0.0, 0.25), "edge of chaos")
    cache.put("model", "suite", result)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    refused = 0
    for place in range(len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 1 << place % 8
        path.write_bytes(broken)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = cache.get("model", "suite")
        assert (found is None and len(told) == 1) or found == result
        refused += found is None
    assert refused > 0.9 * len(whole)


@pytest.mark.parametrize(
    ("name", "value"),
    [("items", [1.125, 0.0]), ("items", [-0.1, 0.0]), ("items", [True, 0.0]), ("items", ["1", 0.0]), ("items", []),
     ("items", [float("nan"), 0.0]), ("chance", 1.0), ("chance", None), ("role", "other"), ("labels", ["one"]),
     ("clusters", [1, 2]), ("note", 3), ("also", {"f1": "high"}), ("experts", "code")],
)  # fmt: skip
def test_what_sums_up_and_is_no_score_is_measured_anew(tmp_path, monkeypatch, name, value):
    cache = BaselineCache(tmp_path)
    result = integration((1.0, 0.0), "edge of chaos")
    forged = json.loads(result.to_json())
    forged["scores"][0][name] = value
    monkeypatch.setattr(SuiteResult, "to_json", lambda self: json.dumps(forged))
    cache.put("model", "suite", result)
    with pytest.warns(UserWarning, match="measured anew"):
        assert cache.get("model", "suite") is None


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        BaselineCache(tmp_path / "file" / "cache").put("m", "s", integration((1.0,), "edge of chaos"))
