"""What is changed after a failure, and that every change is one that the run uses."""

from dataclasses import replace

import pytest

from phase8.config import CompressionConfig, HyperConfig, SeedLMConfig, Trajectory, VPTQConfig
from phase8.errors import ConfigError
from phase8.judge.gates import Verdict
from phase8.judge.policy import Check
from phase8.run.retry import Recommendation, Sensitivity, adjust, integration_failures, recommend

CONFIG = CompressionConfig()
EMBEDDING, DOWN, OUT = "model.embed_tokens.weight", "layers.0.mlp.down_proj.weight", "layers.1.self_attn.o_proj.weight"
INTEGRATION = ("edge_of_chaos", "rule/autonomy", "rule/honesty", "rule/harm", "rule/dignity")
SENSITIVITY = {name: Sensitivity(per_weight={EMBEDDING: 1e-7, DOWN: 5e-7}) for name in INTEGRATION}


def check(name, value, passed=False):
    return Check(name=name, value=value, threshold=0.95, passed=passed)


def failing(*checks):
    return Verdict(stage="vptq", passed=False, abort=None, checks=(check("informative_core", 7.0, True), *checks))


def rate_bits(config, stage):
    """Bits per weight of a stage's codes, without codebooks and scales."""
    if stage == "seedlm":
        seedlm = config.seedlm
        return (seedlm.seed_bits + seedlm.exponent_bits + seedlm.bits * seedlm.latent_dim) / seedlm.block_size
    if stage == "vptq":
        vptq = config.vptq
        return vptq.num_codebooks * (vptq.codebook_size.bit_length() - 1) / vptq.vector_dim
    hyper = config.hyper
    if hyper.trajectory_type is Trajectory.ergodic:
        return hyper.grid.bit_length() / hyper.dims
    return hyper.coefficient_bits * (hyper.degree + 1) / (hyper.block_size or 1_000_000)


HYPERS = [
    HyperConfig(trajectory_type=Trajectory.ergodic),
    HyperConfig(trajectory_type=Trajectory.polynomial),
    HyperConfig(trajectory_type=Trajectory.fourier, block_size=64, degree=8),
]


@pytest.mark.parametrize("retention", [0.5, 0.85])
@pytest.mark.parametrize(
    ("stage", "config"),
    [("seedlm", CONFIG), ("vptq", CONFIG), *(("hyper", replace(CONFIG, hyper=hyper)) for hyper in HYPERS)],
)
def test_below_90_percent_the_stage_gets_more_bits_and_more_calibration(stage, config, retention):
    advice = recommend(stage, config, failing(check("core_retention", retention)))
    changed = adjust(config, advice)
    assert advice.action == "raise_rate_and_raise_calibration"
    assert rate_bits(changed, stage) > rate_bits(config, stage)
    assert changed.optimizer.calibration_sequences == 2 * config.optimizer.calibration_sequences
    others = {"seedlm", "vptq", "hyper"} - {stage}
    assert all(getattr(changed, other) == getattr(config, other) for other in others)


@pytest.mark.parametrize("stage", ["seedlm", "vptq", "hyper"])
def test_a_severe_loss_takes_a_larger_step(stage):
    severe = adjust(CONFIG, recommend(stage, CONFIG, failing(check("core_retention", 0.5))))
    mild = adjust(CONFIG, recommend(stage, CONFIG, failing(check("core_retention", 0.85))))
    assert rate_bits(severe, stage) > rate_bits(mild, stage)


def test_between_90_and_95_percent_only_calibration_grows():
    advice = recommend("vptq", CONFIG, failing(check("core_retention", 0.93)))
    assert advice.action == "raise_calibration"
    assert advice.adjustments == {"optimizer.calibration_sequences": 512, "grokfast.iterations": 200}
    assert "0.930" in advice.reason


def test_a_near_miss_trains_longer():
    advice = recommend("seedlm", CONFIG, failing(check("core_retention", 0.97)))
    assert advice.action == "train_longer" and advice.adjustments == {"grokfast.iterations": 200}


@pytest.mark.parametrize(
    "limited", [replace(CONFIG, target_ratio=10.0), replace(CONFIG, vptq=VPTQConfig(budget_bytes=9))]
)
def test_within_a_byte_budget_a_retry_neither_adds_bits_nor_protects(limited):
    advice = recommend("vptq", limited, failing(check("core_retention", 0.5), check("edge_of_chaos", 0.5)), SENSITIVITY)
    assert advice.adjustments.keys() == {"optimizer.calibration_sequences", "grokfast.iterations"}
    changed = adjust(limited, advice)
    assert changed.vptq == limited.vptq and changed.limit_of("vptq") == limited.limit_of("vptq")


def test_the_lowest_failed_average_decides():
    advice = recommend("vptq", CONFIG, failing(check("core_retention", 0.94), check("expert_retention", 0.89)))
    assert "raise_rate" in advice.action and "expert retention is 0.890" in advice.reason


@pytest.mark.parametrize("name", ["benchmark/mini_arc", "knowledge", "first_expert"])
def test_doubt_about_a_single_benchmark_takes_more_calibration(name):
    """The policy `confident` fails a benchmark that keeps 85 % where its items cannot show 80 %."""
    advice = recommend("vptq", CONFIG, failing(check(name, 0.85), check("core_retention", 0.97, True)))
    assert advice.action == "raise_calibration"
    assert advice.adjustments == {"optimizer.calibration_sequences": 512, "grokfast.iterations": 200}
    assert name.removeprefix("benchmark/") in advice.reason


def test_what_did_not_fail_is_not_mended():
    verdict = failing(check("core_retention", 0.94), check("expert_retention", 0.85, True))
    assert recommend("vptq", CONFIG, verdict).action == "raise_calibration"


@pytest.mark.parametrize("name", INTEGRATION)
def test_an_integration_failure_protects_the_tensor_that_matters_most(name):
    advice = recommend("vptq", CONFIG, failing(check(name, 0.6)), SENSITIVITY)
    assert advice.action == "protect_and_train_longer"
    what = name.removeprefix("rule/").replace("_", " ")
    told = f"{what} failed: the tensor on which its probe answers depend most per weight, {DOWN}, stays in 16 bits; "
    assert advice.reason.startswith(told)
    once = adjust(CONFIG, advice)
    assert once.protect == (DOWN,)
    twice = adjust(once, recommend("vptq", once, failing(check(name, 0.6)), SENSITIVITY))
    assert twice.protect == (*once.protect, EMBEDDING)


def test_the_test_that_failed_decides_which_tensor_is_protected():
    by_test = {
        "edge_of_chaos": Sensitivity(per_weight={DOWN: 3e-7, OUT: 1e-7}),
        "rule/honesty": Sensitivity(per_weight={DOWN: 1e-9, OUT: 3e-9}),
    }
    for name, tensor in (("edge_of_chaos", DOWN), ("rule/honesty", OUT)):
        advice = recommend("vptq", CONFIG, failing(check(name, 0.6), check("rule/harm", 0.9, True)), by_test)
        assert advice.adjustments["protect"] == [tensor]


def test_of_several_failed_tests_each_has_a_say_of_one():
    """Shares, not nats: edge of chaos moves by a hundred times as much, and counts no more."""
    by_test = {
        "edge_of_chaos": Sensitivity(per_weight={EMBEDDING: 6e-7, DOWN: 4e-7, OUT: 0.0}),  # shares 0.6, 0.4, 0
        "rule/honesty": Sensitivity(per_weight={EMBEDDING: 1e-9, DOWN: 5e-9, OUT: 4e-9}),  # 0.1, 0.5, 0.4
    }
    advice = recommend("vptq", CONFIG, failing(check("edge_of_chaos", 0.6), check("rule/honesty", 0.6)), by_test)
    assert advice.adjustments["protect"] == [DOWN]
    assert f"edge of chaos, honesty failed: the tensor on which their probe answers depend most per weight, {DOWN}" in (
        advice.reason
    )


def test_without_probes_text_decides_and_the_reason_says_so():
    on_text = Sensitivity(per_weight={DOWN: 2e-7, OUT: 1e-7}, on_probes=False)
    failed = failing(check("edge_of_chaos", 0.6), check("rule/harm", 0.6))
    alone = recommend("vptq", CONFIG, failing(check("edge_of_chaos", 0.6)), {"edge_of_chaos": on_text})
    assert (
        f"the tensor on which the model's text depends most per weight (there are no probes), {DOWN}," in alone.reason
    )
    both = {"edge_of_chaos": on_text, "rule/harm": Sensitivity(per_weight={OUT: 1.0})}
    mixed = recommend("vptq", CONFIG, failed, both)
    assert mixed.adjustments["protect"] == [OUT]
    assert "for edge of chaos, which has no probes: the model's text" in mixed.reason


def test_only_failed_integration_tests_count_as_such():
    verdict = failing(check("edge_of_chaos", 0.6), check("rule/harm", 0.9, True), check("core_retention", 0.9))
    assert integration_failures(verdict) == ["edge_of_chaos"]


def test_without_a_measured_sensitivity_an_integration_failure_trains_longer():
    advice = recommend("vptq", CONFIG, failing(check("rule/harm", 0.6)))
    assert advice.action == "train_longer" and "harm" in advice.reason


def test_both_patterns_at_once():
    advice = recommend("vptq", CONFIG, failing(check("edge_of_chaos", 0.6), check("core_retention", 0.85)), SENSITIVITY)
    assert advice.action == "protect_and_raise_rate_and_raise_calibration"
    assert {"protect", "vptq.codebook_size", "grokfast.iterations"} <= set(advice.adjustments)


def test_nothing_that_a_setting_could_mend():
    advice = recommend("vptq", CONFIG, failing(check("informative_core", 2.0)))
    assert advice.action == "fall_back" and advice.adjustments == {} and "informative_core" in advice.reason


def test_a_stage_that_is_no_smaller_than_its_input_is_not_tried_again():
    """More bits or a tensor in 16 bits would make it larger still."""
    verdict = failing(check("smaller", 0.9), check("core_retention", 0.5), check("edge_of_chaos", 0.5))
    advice = recommend("vptq", CONFIG, verdict, SENSITIVITY)
    assert advice.action == "fall_back" and advice.adjustments == {} and "smaller" in advice.reason


def test_limits_are_never_exceeded():
    """Recommendations followed again and again end at the settings' limits, without an error."""
    worst = failing(check("core_retention", 0.5), check("rule/harm", 0.1))
    for stage in ("seedlm", "vptq", "hyper"):
        for hyper in HYPERS:
            config = replace(CONFIG, hyper=hyper)
            for _ in range(60):
                advice = recommend(stage, config, worst, SENSITIVITY)
                if not advice.adjustments:
                    break
                config = adjust(config, advice)
            assert advice.action == "fall_back", (stage, advice)


def test_at_one_limit_the_next_setting_moves():
    config = replace(CONFIG, seedlm=SeedLMConfig(bits=8))
    assert recommend("seedlm", config, failing(check("core_retention", 0.85))).adjustments["seedlm.latent_dim"] == 4
    config = replace(CONFIG, vptq=VPTQConfig(codebook_size=65536, num_codebooks=2))
    assert recommend("vptq", config, failing(check("core_retention", 0.85))).adjustments["vptq.num_codebooks"] == 3


def advice_of(**adjustments):
    names = {name.replace("__", "."): value for name, value in adjustments.items()}
    return Recommendation(action="", adjustments=names, reason="")


def test_values_take_the_type_of_the_setting():
    changed = adjust(CONFIG, advice_of(hyper__trajectory_type="fourier", protect=["*.norm.*"], vptq__share="tensor"))
    assert changed.hyper.trajectory_type is Trajectory.fourier
    assert changed.protect == ("*.norm.*",)
    assert changed.vptq.share.value == "tensor"
    assert changed.seedlm == CONFIG.seedlm


def test_two_changes_that_are_only_possible_together():
    config = replace(CONFIG, seedlm=SeedLMConfig(block_size=4, latent_dim=4))
    changed = adjust(config, advice_of(seedlm__latent_dim=6, seedlm__block_size=8))
    assert (changed.seedlm.latent_dim, changed.seedlm.block_size) == (6, 8)


@pytest.mark.parametrize("name", ["seedlm.bitz", "nowhere.bits", "bits", "seedlm", "seed.bits"])
def test_an_unknown_setting_is_refused(name):
    with pytest.raises(ConfigError, match="setting"):
        adjust(CONFIG, Recommendation(action="", adjustments={name: 5}, reason=""))


def test_an_impossible_value_is_refused():
    with pytest.raises(ConfigError, match="seedlm.bits"):
        adjust(CONFIG, advice_of(seedlm__bits=9))
