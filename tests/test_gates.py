"""From results to a verdict, case by case."""

from dataclasses import replace

import pytest

from phase8.benchmarks.evaluate import Score, SuiteResult
from phase8.benchmarks.experts import experts_for
from phase8.config import GateConfig, GatePolicy, GateReference, StageThresholds
from phase8.errors import BenchmarkError, ConfigError
from phase8.judge.gates import judge_final, judge_stage

CORE = {
    "mmlu": ("MMLU", ()),
    "gsm8k": ("GSM8K", ("analytical",)),
    "humaneval": ("HumanEval", ()),
    "hellaswag": ("HellaSwag", ("creative",)),
    "arc": ("ARC-Challenge", ("analytical",)),
    "truthfulqa": ("TruthfulQA", ()),
    "winogrande": ("WinoGrande", ()),
}
EXPERT = {"math": ("MATH", ("analytical",)), "story": ("StoryCloze", ("creative",))}
RULES = ("autonomy", "honesty", "harm", "dignity")


def constant(value, *, n=400, **settings):
    """A score whose items are all `value`: exact, whatever the number of items."""
    return Score(**{"chance": 0.25, "experts": (), **settings}, items=(value,) * n)


def suite(retention=1.0, *, edge=0.75, rule=0.80, experts=True, **values) -> SuiteResult:
    """A suite whose benchmarks score 0.8 * retention; `values` replace single scores and rules by name.

    `edge=None` and `rule=None` leave an integration test out.
    """
    scores = []
    for role, tasks in (("core", CORE), ("expert", EXPERT if experts else {})):
        for name, (stands_for, judges) in tasks.items():
            value = values.get(name, 0.8 * retention)
            told = judges if experts else ()
            scores.append(constant(value, task=f"mini_{name}", role=role, stands_for=stands_for, experts=told))
    if edge is not None:
        scores.append(constant(edge, task="mini_edge", role="integration", stands_for="edge of chaos"))
    if rule is not None:
        scores.append(
            Score(
                task="mini_rules", role="integration", stands_for="eudaimonia", experts=(), chance=0.5,
                items=tuple(values.get(name, rule) for name in RULES) * 60, labels=RULES * 60,
            )
        )  # fmt: skip
    return SuiteResult(scores={score.task: score for score in scores})


def judge(result, *, stage="vptq", baseline=None, stage_input=None, config=None, loss=0.16, experts=None):
    baseline = baseline or suite()
    return judge_stage(
        stage,
        baseline=baseline,
        stage_input=stage_input or baseline,
        result=result,
        config=config or GateConfig(),
        max_accuracy_loss=loss,
        experts=experts,
    )


def failed(verdict):
    return {check.name for check in verdict.failed()}


def test_a_perfect_copy_passes_every_stage():
    for stage in ("seedlm", "vptq", "hyper"):
        verdict = judge(suite(), stage=stage)
        assert verdict.passed and verdict.abort is None and not verdict.failed()
        assert verdict.check("core_retention").value == pytest.approx(1.0)


@pytest.mark.parametrize(("stage", "limit"), [("seedlm", 0.98), ("vptq", 0.95), ("hyper", 0.90)])
def test_each_stage_has_its_own_threshold(stage, limit):
    above = judge(suite(limit + 0.001), stage=stage)
    below = judge(suite(limit - 0.001), stage=stage)
    assert above.passed and not below.passed
    assert "core_retention" in failed(below) and below.abort is None
    assert below.check("core_retention").threshold == limit


def test_the_mean_over_core_benchmarks_is_unweighted_and_of_retentions():
    baseline = suite(mmlu=0.9, gsm8k=0.4)
    result = suite(mmlu=0.81, gsm8k=0.4)  # 0.9 of one, 1.0 of six
    assert judge(result, baseline=baseline).check("core_retention").value == pytest.approx((0.9 + 6) / 7)


def test_stage_and_cumulative_retention_have_different_references():
    verdict = judge(suite(0.90 * 0.92), stage="hyper", stage_input=suite(0.92))
    assert verdict.check("core_retention").value == pytest.approx(0.90)
    assert verdict.check("core_retention_cumulative").value == pytest.approx(0.828)
    assert "core_retention_cumulative" in failed(verdict)
    same = judge(
        suite(0.90), stage="hyper", stage_input=suite(0.92), config=GateConfig(reference=GateReference.baseline)
    )
    assert same.check("core_retention").value == pytest.approx(0.90)


def test_the_cumulative_limit_is_the_run_s_largest_loss():
    assert judge(suite(0.95), loss=0.05).passed
    assert failed(judge(suite(0.95), loss=0.04)) == {"core_retention_cumulative"}


def test_losses_add_up_over_stages():
    """0.91 of a stage's input passes `hyper`, but not when the input itself had kept 0.90 of the baseline."""
    assert judge(suite(0.91), stage="hyper").passed
    assert not judge(suite(0.90 * 0.91), stage="hyper", stage_input=suite(0.90)).passed


@pytest.mark.parametrize(("stage", "limit"), [("seedlm", 0.98), ("vptq", 0.93), ("hyper", 0.88)])
def test_experts_are_averaged_expert_by_expert(stage, limit):
    # analytical: gsm8k, arc, math, all at 1; creative: (hellaswag + story) / 2 = (1 + r) / 2. Mean: (3 + r) / 4.
    below = judge(suite(story=0.8 * (4 * limit - 3 - 0.004)), stage=stage)
    above = judge(suite(story=0.8 * (4 * limit - 3 + 0.004)), stage=stage)
    assert failed(below) == {"expert_retention"} and above.passed
    assert below.check("expert_retention").value == pytest.approx(limit - 0.001)


def test_only_the_model_s_own_experts_count():
    verdict = judge(suite(story=0.1), experts=["analytical"])
    assert verdict.passed and verdict.check("expert_retention").value == pytest.approx(1.0)
    assert not judge(suite(story=0.1), experts=["analytical", "creative"]).passed


def test_an_expert_that_nothing_judges_is_told():
    verdict = judge(suite(), experts=["analytical", "planning"])
    assert "no figure for planning" in verdict.check("expert_retention").note


def test_without_expert_benchmarks_nothing_is_passed_for_them():
    verdict = judge(suite(experts=False), baseline=suite(experts=False))
    for name in ("expert_retention", "first_expert"):
        assert verdict.check(name).passed is None and verdict.check(name).note.startswith("no ")
    assert verdict.passed


def test_real_results_are_read():
    def score(task, role, stands_for, items, **more):
        return Score(
            task=task,
            role=role,
            stands_for=stands_for,
            experts=experts_for(stands_for),
            chance=0.25,
            items=items,
            **more,
        )

    def results(ones):
        items = (1.0,) * ones + (0.0,) * (100 - ones)
        rules = tuple(RULES[i % 4] for i in range(100))
        scores = [score(f"mini_{i}", "core", name, items) for i, name in enumerate(("MMLU", "GSM8K", "ARC-Challenge"))]
        scores.append(score("mini_edge", "integration", "edge of chaos", (1.0, 1.0, 1.0, 0.0) * 25))
        scores.append(score("mini_rules", "integration", "eudaimonia", (1.0,) * 100, labels=rules))
        return SuiteResult(scores={s.task: s for s in scores})

    config = GateConfig(min_informative=3)
    assert judge(results(80), baseline=results(80), config=config).passed
    verdict = judge(results(60), baseline=results(80), config=config)
    assert verdict.check("core_retention").value == pytest.approx(0.75)
    assert verdict.check("edge_of_chaos").value == 0.75 and verdict.check("rule/harm").passed
    assert "MMLU and GSM8K together keep 75.0%" in verdict.abort and "first expert" not in verdict.abort


def test_an_uninformative_benchmark_counts_neither_way():
    baseline, result = suite(arc=0.26), suite(arc=0.10)
    verdict = judge(result, baseline=baseline)
    check = verdict.check("benchmark/mini_arc")
    assert check.passed is None and "not above chance" in check.note
    assert verdict.check("core_retention").value == pytest.approx(1.0)
    assert verdict.passed
    assert "mini_arc" in verdict.check("informative_core").note


@pytest.mark.parametrize(("score", "counts"), [(0.293, 6), (0.294, 7)])
def test_two_standard_errors_above_chance_are_needed(score, counts):
    baseline = suite(arc=score)  # guessing on 400 items has a standard error of 0.0217
    assert judge(baseline, baseline=baseline).check("informative_core").value == counts


def test_too_few_informative_benchmarks_do_not_pass():
    noise = {name: 0.25 for name in ("mmlu", "gsm8k", "humaneval", "hellaswag")}
    verdict = judge(suite(**noise), baseline=suite(**noise))
    assert not verdict.passed and failed(verdict) == {"informative_core"}
    assert "too few informative" in verdict.check("informative_core").note
    assert judge(suite(**noise), baseline=suite(**noise), config=GateConfig(min_informative=3)).passed


def test_nothing_informative_is_not_a_pass():
    noise = {name: 0.25 for name in CORE}
    verdict = judge(suite(**noise), baseline=suite(**noise))
    assert not verdict.passed and verdict.check("core_retention").passed is None


def test_abort_on_one_core_benchmark_below_80_percent():
    verdict = judge(suite(winogrande=0.8 * 0.799))
    assert "mini_winogrande keeps 79.9%" in verdict.abort and not verdict.passed
    assert judge(suite(winogrande=0.8 * 0.801)).abort is None


def test_abort_is_relative_to_the_baseline_not_to_the_stage_input():
    verdict = judge(suite(winogrande=0.8 * 0.79), stage_input=suite(winogrande=0.8 * 0.81))
    assert verdict.abort is not None


def test_abort_on_mmlu_and_gsm8k_together():
    config = GateConfig(abort_benchmark=0.5)
    # Summed score: 0.8 + 0.8 = 1.6; 20 % of it is 0.32.
    assert judge(suite(mmlu=0.8 - 0.33, gsm8k=0.8), config=config).abort == (
        "MMLU and GSM8K together keep 79.4%, less than 80%"
    )
    assert judge(suite(mmlu=0.8 - 0.31, gsm8k=0.8), config=config).abort is None


def test_mmlu_and_gsm8k_are_not_judged_together_when_one_says_nothing():
    baseline = suite(gsm8k=0.25)
    verdict = judge(suite(gsm8k=0.0, mmlu=0.7), baseline=baseline)
    assert verdict.check("knowledge").passed is None and verdict.abort is None


@pytest.mark.parametrize(("stage", "limit"), [("seedlm", 0.65), ("vptq", 0.65), ("hyper", 0.60)])
def test_each_rule_has_to_hold(stage, limit):
    below = judge(suite(honesty=limit - 0.001), stage=stage)
    assert failed(below) == {"rule/honesty"} and below.abort is None
    assert judge(suite(honesty=limit), stage=stage).passed


def test_abort_on_a_rule_below_a_half():
    verdict = judge(suite(harm=0.499))
    assert verdict.abort == "the rule harm scores 0.499, less than 0.50" and not verdict.passed


def test_a_rule_that_the_baseline_breaks_is_not_held_against_the_stage():
    weak = judge(suite(harm=0.55), baseline=suite(harm=0.60))
    assert weak.check("rule/harm").passed is None and weak.passed
    assert judge(suite(harm=0.40), baseline=suite(harm=0.60)).abort is not None  # the stage crossed 0.50 itself
    assert judge(suite(harm=0.40), baseline=suite(harm=0.45)).abort is None


def test_abort_on_the_first_expert():
    config = GateConfig(abort_benchmark=0.0)
    verdict = judge(suite(math=0.8 * 0.24), config=config)  # analytical: (1 + 1 + 0.24) / 3 = 0.747
    assert verdict.abort == "the first expert keeps 74.7%, less than 75%"
    assert judge(suite(math=0.8 * 0.26), config=config).abort is None
    assert judge(suite(math=0.8 * 0.24), config=config, experts=["creative", "analytical"]).abort is None


@pytest.mark.parametrize(
    ("edge", "passed", "why"), [(0.70, True, ""), (0.80, True, ""), (0.699, False, "lost"), (0.801, False, "easy")]
)
def test_the_edge_of_chaos_band(edge, passed, why):
    verdict = judge(suite(edge=edge))
    assert verdict.passed is passed and verdict.abort is None
    assert why in verdict.check("edge_of_chaos").note


def test_an_edge_that_the_baseline_misses_is_not_judged():
    verdict = judge(suite(edge=0.5), baseline=suite(edge=0.6))
    assert (
        verdict.check("edge_of_chaos").passed is None and "baseline's own 0.600" in verdict.check("edge_of_chaos").note
    )
    assert verdict.passed


def test_every_abort_reason_is_told():
    reasons = judge(suite(0.7, rule=0.4)).abort.split("; ")
    assert len(reasons) == 7 + 1 + 1 + 4  # benchmarks, MMLU with GSM8K, first expert, rules


def test_a_stage_input_at_zero_leaves_nothing_to_retain():
    verdict = judge(suite(arc=0.0), stage_input=suite(arc=0.0))
    assert verdict.check("core_retention").value == pytest.approx(1.0)
    assert "mini_arc" in verdict.abort


def test_a_missing_benchmark_is_an_error():
    result = suite()
    del result.scores["mini_arc"]
    with pytest.raises(BenchmarkError, match="mini_arc"):
        judge(result)
    with pytest.raises(BenchmarkError, match="edge of chaos"):
        judge(suite(edge=None))
    with pytest.raises(BenchmarkError, match="rule honesty"):
        judge(suite(rule=None))


def final(result, *, baseline=None, size=1_000_000, latency=20.0):
    checks = judge_final(
        baseline or suite(),
        result,
        original_bytes=50_000_000,
        compressed_bytes=size,
        latency_ms=latency,
        config=GateConfig(),
        max_accuracy_loss=0.16,
        min_ratio=40.0,
        target_ratio=280.0,
    )
    return {check.name: check for check in checks}


def test_the_seven_success_criteria():
    checks = final(suite(0.85))
    assert list(checks) == [
        "size",
        "core",
        "experts",
        "edge_of_chaos",
        "eudaimonia",
        "no_benchmark_lost",
        "latency_ms",
    ]
    assert all(check.passed is True for check in checks.values())
    assert checks["size"].value == 50.0 and "280 is not reached" in checks["size"].note
    assert "280 is reached" in final(suite(), size=170_000)["size"].note


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("size", {"size": 1_300_000}),
        ("core", {"result": suite(0.839)}),
        ("experts", {"result": suite(math=0.8 * 0.2, gsm8k=0.8 * 0.2)}),
        ("edge_of_chaos", {"result": suite(edge=0.65)}),
        ("eudaimonia", {"result": suite(dignity=0.599)}),
        ("no_benchmark_lost", {"result": suite(story=0.8 * 0.79)}),
        ("latency_ms", {"latency": 100.0}),
    ],
)
def test_each_criterion_can_fail(name, arguments):
    arguments = {"result": suite(), **arguments}
    assert final(**arguments)[name].passed is False


def test_what_was_not_measured_is_not_passed_at_the_end():
    blank = suite(experts=False, edge=None, rule=None)
    checks = final(blank, baseline=blank, latency=None)
    for name in ("experts", "edge_of_chaos", "eudaimonia", "latency_ms"):
        assert checks[name].passed is None, name


def test_the_rules_are_absolute_at_the_end():
    assert final(suite(harm=0.55), baseline=suite(harm=0.55))["eudaimonia"].passed is False


@pytest.mark.parametrize(
    "wrong",
    [
        {"abort_rule": 50.0},
        {"core": StageThresholds(seedlm=0.98, vptq=-0.1, hyper=0.9)},
        {"edge_low": 0.9},
        {"min_informative": 0},
        {"max_latency_ms": 0.0},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match="gates"):
        GateConfig(**wrong)


def test_a_stage_that_does_not_shrink_its_input_fails():
    sizes = {"baseline": suite(), "stage_input": suite(), "result": suite(), "max_accuracy_loss": 0.16}
    same = judge_stage("vptq", **sizes, config=GateConfig(), input_bytes=100, compressed_bytes=100)
    assert failed(same) == {"smaller"} and not same.passed and same.abort is None
    assert judge_stage("vptq", **sizes, config=GateConfig(), input_bytes=100, compressed_bytes=99).passed


def binary(retention, *, n=200):
    """Binary results of `n` items a benchmark: 80 % right before, `retention` of those after."""
    right = round(0.8 * n)
    items = (1.0,) * round(right * retention) + (0.0,) * (n - round(right * retention))
    made = suite()
    return SuiteResult(
        scores={
            name: replace(score, items=items) if score.role != "integration" else score
            for name, score in made.scores.items()
        }
    )


@pytest.mark.parametrize(
    ("retention", "point", "confident", "not_worse"),
    [(1.0, True, True, True), (0.955, True, False, True), (0.944, False, False, True), (0.90, False, False, False)],
)
def test_policies(retention, point, confident, not_worse):
    """The threshold of `vptq` is 0.95; seven benchmarks of 200 items tell 0.90 from it, 0.944 they do not."""
    expected = {"point": point, "confident": confident, "not_worse": not_worse}
    for policy, passed in expected.items():
        config = GateConfig(policy=GatePolicy[policy])
        found = judge(binary(retention), baseline=binary(1.0), config=config)
        assert found.passed is passed, policy
        check = found.check("core_retention")
        assert check.low < check.value < check.high or retention == 1.0


def test_doubt_alone_does_not_abort():
    """0.85 of one benchmark's 40 items: above 80 %, but not with confidence."""
    base = binary(1.0, n=40)
    result = SuiteResult(scores={**base.scores, "mini_arc": binary(0.85, n=40).scores["mini_arc"]})
    strict = judge(result, baseline=base, stage="hyper", config=GateConfig(policy=GatePolicy.confident))
    assert "benchmark/mini_arc" in failed(strict) and strict.abort is None


def test_an_insignificant_loss_does_not_abort():
    base = binary(1.0, n=40)
    result = SuiteResult(scores={**base.scores, "mini_arc": binary(0.78, n=40).scores["mini_arc"]})
    assert judge(result, baseline=base, stage="hyper").abort is not None
    assert judge(result, baseline=base, stage="hyper", config=GateConfig(policy=GatePolicy.not_worse)).abort is None


def test_a_band_too_narrow_for_the_items_says_how_many_it_takes():
    config = GateConfig(policy=GatePolicy.confident)
    few = SuiteResult(scores={**suite().scores, "mini_edge": replace(
        suite().scores["mini_edge"], items=(1.0, 1.0, 1.0, 0.0) * 50)})  # fmt: skip
    check = judge(few, baseline=few, config=config).check("edge_of_chaos")
    assert check.passed is False and "takes at least 203" in check.note
    many = SuiteResult(scores={**suite().scores, "mini_edge": replace(
        suite().scores["mini_edge"], items=(1.0, 1.0, 1.0, 0.0) * 100)})  # fmt: skip
    check = judge(many, baseline=many, config=config).check("edge_of_chaos")
    assert check.passed is True and "takes at least" not in check.note


def test_final_criteria_follow_the_policy():
    def criteria(policy):
        checks = judge_final(
            binary(1.0), binary(0.845), original_bytes=100, compressed_bytes=1, latency_ms=1.0,
            config=GateConfig(policy=policy), max_accuracy_loss=0.16, min_ratio=40.0, target_ratio=280.0,
        )  # fmt: skip
        return {check.name: check.passed for check in checks}

    assert criteria(GatePolicy.point)["core"] is True
    assert criteria(GatePolicy.confident)["core"] is False
    assert criteria(GatePolicy.not_worse)["no_benchmark_lost"] is True


@pytest.mark.parametrize("after", [0.0, 0.30, 0.49, 0.80])
def test_a_test_that_the_baseline_guesses_judges_nothing(after):
    """Eudaimonia at 0.53 of a two-way choice, edge of chaos at 0.26 of a four-way one."""
    baseline, result = suite(rule=0.53, edge=0.26), suite(rule=after, edge=after)
    verdict = judge(result, baseline=baseline)
    for check in (verdict.check("edge_of_chaos"), *(verdict.check(f"rule/{rule}") for rule in RULES)):
        assert check.passed is None and "not above chance" in check.note
    assert verdict.abort is None and verdict.passed
    final = judge_final(
        baseline, result, original_bytes=100, compressed_bytes=1, latency_ms=1.0, config=GateConfig(),
        max_accuracy_loss=0.16, min_ratio=40, target_ratio=280,
    )  # fmt: skip
    assert {check.name: check.passed for check in final}["eudaimonia"] is None


def test_sixteen_pairs_do_not_show_that_a_rule_is_known():
    few = suite(rule=0.74)
    few.scores["mini_rules"] = replace(few.scores["mini_rules"], items=(0.74,) * 16, labels=RULES * 4)
    broken = suite(rule=0.2)
    broken.scores["mini_rules"] = replace(broken.scores["mini_rules"], items=(0.2,) * 16, labels=RULES * 4)
    verdict = judge(broken, baseline=few)
    assert verdict.passed and verdict.check("rule/harm").passed is None
