"""Why a gate fails, in words that need no glossary."""

import pytest

from phase8.events import BenchmarkResult, CheckResult
from phase8.watch.sentences import failures, original, shortfall


@pytest.mark.parametrize(
    "name, value, threshold, more, told",
    [
        ("edge_of_chaos", 0.685, 0.7, {"ceiling": 0.8}, "edge of chaos: 0.685, needs 0.70"),
        ("edge_of_chaos", 0.86, 0.7, {"ceiling": 0.8}, "edge of chaos: 0.860, needs at most 0.80"),
        ("edge_of_chaos", 0.72, 0.7, {"low": 0.655}, "edge of chaos: 0.720, but perhaps only 0.655; needs 0.70"),
        ("core_retention", 0.951, 0.98, {}, "core benchmarks: keep 95.1 %, need 98 %"),
        ("expert_retention", 0.5, 0.875, {}, "experts' benchmarks: keep 50.0 %, need 87.5 %"),
        ("benchmark/mini_mmlu", 0.77, 0.8, {}, "mini_mmlu: keeps 77.0 %, needs 80 %"),
        ("rule/honesty", 0.5, 0.65, {}, "the rule honesty: 0.500, needs 0.65"),
        ("size", 12.04, 40.0, {}, "size: 12.0 times smaller, needs 40"),
        ("smaller", 0.98, 1.0, {}, "size: no smaller than what the stage began with"),
        ("latency_ms", 140.4, 100.0, {}, "time per token: 140 ms, needs less than 100"),
        ("perplexity", 1 / 1.12, 1 / 1.05, {}, "held-out text: takes 12.0 % more bits, may take 5 %"),
        ("informative_core", 2.0, 4.0, {}, "benchmarks: only 2 tell anything of this model, needs 4"),
        ("first_expert", None, 0.75, {}, "the first expert's benchmarks: not measured"),
    ],
)
def test_each_condition_says_what_it_reached_and_what_it_needs(name, value, threshold, more, told):
    assert shortfall(CheckResult(name=name, value=value, threshold=threshold, passed=False, **more)) == told


@pytest.mark.parametrize("value", [0.97995, 0.979999, 0.9799])
def test_a_failing_figure_never_reads_like_its_threshold(value):
    text = shortfall(CheckResult(name="core_retention", value=value, threshold=0.98, passed=False))
    reached = float(text.split("keep ")[1].split(" %")[0])
    assert reached < 98.0 and text.endswith("need 98 %")


def test_many_failures_are_the_first_and_their_number():
    failed = [CheckResult(name=f"rule/{name}", value=0.1, threshold=0.6, passed=False) for name in "abcd"]
    held = CheckResult(name="core_retention", value=1.0, threshold=0.9, passed=True)
    assert failures([held, *failed]) == "the rule a: 0.100, needs 0.60 (and 3 more conditions)"
    assert failures([held, *failed[:2]]) == "the rule a: 0.100, needs 0.60; the rule b: 0.100, needs 0.60"


def result(task, score, informative=True, role="core"):
    return BenchmarkResult(task=task, role=role, score=score, stderr=0.03, n=200, chance=0.25, informative=informative)


def test_the_original_is_summed_up():
    results = [result("a", 0.8), result("b", 0.3, informative=False), result("c", 1.0), result("d", 1.0, True, "x")]
    lines = original(results, 2)
    assert original(results, 3) == lines[:2], "two that tell something are too few to judge by"
    assert lines == [
        "3 core benchmarks: 70.0 % right on average, least in b with 30.0 %",
        "no better than guessing, so not counted: b",
        "200 questions each: a loss of less than 5 points in one benchmark may be chance",
    ]
