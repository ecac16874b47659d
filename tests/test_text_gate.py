"""Where the benchmarks say nothing of a model, the bits per byte of held-out text judge it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_gates import CORE, judge, suite

from phase8.config import CompressionConfig, GateConfig
from phase8.judge.gates import judge_final
from phase8.judge.resample import ratio_draws
from phase8.judge.retention import uninformative_core
from phase8.run.retry import recommend

NOISE = {name: 0.25 for name in CORE}
BITS = tuple(np.random.default_rng(5).uniform(200.0, 900.0, 80).tolist())


def guessing(rise: float, spread: float = 0.0):
    """A model that guesses at every benchmark, and takes so much more for each document of the text."""
    rng = np.random.default_rng(6)
    bits = tuple((np.array(BITS) * (1.0 + rise + spread * rng.standard_normal(len(BITS)))).tolist())
    return replace(
        suite(**NOISE, experts=False, edge=None, rule=None), bits_per_byte=sum(bits) / 1e4, document_bits=bits
    )


@pytest.mark.parametrize(
    ("stage", "rise", "passes"),
    [("seedlm", 0.019, True), ("seedlm", 0.021, False), ("vptq", 0.069, True), ("vptq", 0.071, False),
     ("hyper", 0.159, True), ("hyper", 0.161, False), ("vptq", -0.01, True)],
)  # fmt: skip
def test_the_rise_of_bits_per_byte_is_held_against_the_stages_limit(stage, rise, passes):
    verdict = judge(guessing(rise), stage=stage, baseline=guessing(0.0))
    check = verdict.check("perplexity")
    assert check.value == pytest.approx(1 / (1 + rise)) and check.passed is passes
    assert verdict.passed is passes and verdict.abort is None
    assert verdict.check("informative_core").passed is None
    assert "held-out text (the suite's) judges in their place" in verdict.check("informative_core").note
    assert "held-out text judges (the suite's)" in verdict.wording


def test_its_interval_is_paired_over_documents():
    """Where every document loses the same, there is no doubt, however different the documents are."""
    same = judge(guessing(0.05), baseline=guessing(0.0)).check("perplexity")
    assert same.low == pytest.approx(same.value) and same.high == pytest.approx(same.value)
    noisy = judge(guessing(0.05, spread=0.1), baseline=guessing(0.0)).check("perplexity")
    assert noisy.low < noisy.value < noisy.high and noisy.high - noisy.low < 0.06


def test_draws_are_those_of_a_bootstrap():
    """Against a plain bootstrap over documents, written as a loop."""
    rng = np.random.default_rng(8)
    before, after = np.array(BITS), np.array(BITS) * (1.05 + 0.2 * rng.standard_normal(len(BITS)))
    loop = []
    for _ in range(3000):
        chosen = rng.integers(0, len(before), len(before))
        loop.append(before[chosen].sum() / after[chosen].sum())
    draws = ratio_draws(before, after)
    assert draws.mean() == pytest.approx(np.mean(loop), rel=0.005)
    assert draws.std() == pytest.approx(np.std(loop), rel=0.1)
    assert np.array_equal(draws, ratio_draws(before, after))
    assert np.isnan(ratio_draws(before[:9], after[:9])).all(), "nine documents bound nothing"


def test_where_benchmarks_tell_enough_text_is_shown_only():
    bits = {"bits_per_byte": 1.0, "document_bits": BITS}
    worse = {"bits_per_byte": 2.0, "document_bits": tuple(2 * one for one in BITS)}
    verdict = judge(replace(suite(), **worse), baseline=replace(suite(), **bits))
    assert verdict.passed
    check = verdict.check("perplexity")
    assert check.passed is None and check.value == pytest.approx(0.5) and "not judged" in check.note


def test_without_text_there_is_no_verdict():
    verdict = judge(suite(**NOISE), baseline=suite(**NOISE))
    assert not verdict.passed and {check.name for check in verdict.failed()} == {"informative_core"}
    assert verdict.check("perplexity").value is None


def test_a_run_says_at_its_beginning_what_will_judge():
    text = uninformative_core(guessing(0.0), 4, "stories.txt")
    assert "held-out text judges instead (stories.txt, 80 documents)" in text
    assert "no gate can pass" in uninformative_core(suite(**NOISE), 4, "stories.txt")


def test_a_retry_follows_from_the_text():
    verdict = judge(guessing(0.30), baseline=guessing(0.0))
    advice = recommend("vptq", CompressionConfig(), verdict)
    assert advice.action.startswith("raise_rate") and "perplexity is 0.769" in advice.reason


def test_at_the_end_text_stands_for_the_core_benchmarks():
    checks = judge_final(
        guessing(0.0), guessing(0.1), original_bytes=400, compressed_bytes=8, latency_ms=1.0, config=GateConfig(),
        max_accuracy_loss=0.16, min_ratio=40.0, target_ratio=280.0, text="stories.txt",
    )  # fmt: skip
    (core,) = [check for check in checks if check.name == "core"]
    assert core.passed is True and core.value == pytest.approx(1 / 1.1) and "stories.txt" in core.note
