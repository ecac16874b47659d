"""The three gate policies: known cases, error rates, and Holm's test against the closure principle."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phase8.benchmarks.evaluate import Score
from phase8.config import GatePolicy
from phase8.judge.policy import Check, decide, holm, sampled, wording
from phase8.judge.resample import mean_draws


def figure(value, spread, threshold=0.9, *, name="c", **more):
    """A condition whose draws are normal around the value."""
    draws = np.random.default_rng(0).normal(value, spread, 2000)
    return sampled(name, np.concatenate([[value], draws]), threshold, note="", **more)


def verdict(policy, *checks):
    return [check.passed for check in decide(checks, GatePolicy[policy])]


@pytest.mark.parametrize(
    ("value", "point", "confident", "not_worse"),
    [(0.96, True, True, True), (0.91, True, False, True), (0.89, False, False, True), (0.84, False, False, False)],
)
def test_a_threshold(value, point, confident, not_worse):
    check = figure(value, 0.02)
    assert verdict("point", check) == [point]
    assert verdict("confident", check) == [confident]
    assert verdict("not_worse", check) == [not_worse]


@pytest.mark.parametrize(
    ("value", "spread", "point", "confident", "not_worse"),
    [
        (0.75, 0.01, True, True, True),
        (0.75, 0.04, True, False, True),
        (0.81, 0.01, False, False, True),
        (0.84, 0.01, False, False, False),
        (0.66, 0.01, False, False, False),
    ],
)
def test_a_band(value, spread, point, confident, not_worse):
    check = figure(value, spread, 0.70, ceiling=0.80)
    assert verdict("point", check) == [point]
    assert verdict("confident", check) == [confident]
    assert verdict("not_worse", check) == [not_worse]


@pytest.mark.parametrize("policy", list(GatePolicy))
def test_what_is_not_sampled_keeps_its_verdict(policy):
    size = Check(name="size", value=1.0, threshold=2.0, passed=False)
    unjudged = figure(0.1, 0.01, judged=False)
    unmeasured = sampled("x", None, 0.9, note="not measured")
    assert verdict(policy.name, size, unjudged, unmeasured) == [False, None, None]


def test_draws_that_bound_nothing_widen_the_interval():
    values = np.concatenate([[0.95], np.full(1800, 0.95), np.full(200, np.nan)])
    check = sampled("c", values, 0.9, note="")
    assert check.low is None and check.high is None
    assert verdict("confident", check) == [False] and verdict("not_worse", check) == [True]


def test_many_conditions_need_more_to_fail_one():
    """A p of about 0.02 is significant alone, not among ten."""
    loss = figure(0.86, 0.02, name="loss")
    fine = [figure(0.95, 0.02, name=f"fine{n}") for n in range(9)]
    assert verdict("not_worse", loss) == [False]
    assert verdict("not_worse", loss, *fine) == [True] * 10


def closed_test(p_values, level):
    """The closure of Bonferroni tests: a hypothesis is rejected where every set that holds it is."""
    indices = range(len(p_values))
    sets = [s for size in range(1, len(p_values) + 1) for s in itertools.combinations(indices, size)]
    rejected = [s for s in sets if min(p_values[i] for i in s) <= level / len(s)]
    return [all(s in rejected for s in sets if i in s) for i in indices]


@given(st.lists(st.floats(0.001, 0.1), max_size=6))
def test_holm_is_the_closure_of_bonferroni(p_values):
    assert holm(p_values) == closed_test(p_values, 0.05)


def test_holm_known():
    """The worked example of the method in many textbooks."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]


def test_error_rates_where_the_truth_lies_at_the_threshold():
    """`point` tosses a coin, `confident` seldom passes, `not_worse` seldom fails."""
    generator = np.random.default_rng(5)
    passes = dict.fromkeys(GatePolicy, 0)
    for _ in range(400):
        base = generator.random(300) < 0.8
        kept = base & (generator.random(300) < 0.9)
        scores = [
            Score(task="t", role="core", stands_for="t", experts=(), chance=0.0, items=tuple(map(float, items)))
            for items in (base, kept)
        ]
        before, after = mean_draws(scores, draws=500)
        values = np.concatenate([[kept.mean() / base.mean()], after / before])
        for policy in GatePolicy:
            passes[policy] += bool(decide([sampled("c", values, 0.9, note="")], policy)[0].passed)
    assert 0.40 < passes[GatePolicy.point] / 400 < 0.60
    assert 0.02 < passes[GatePolicy.confident] / 400 < 0.09
    assert 0.91 < passes[GatePolicy.not_worse] / 400 < 0.98


def test_wording():
    checks = [figure(0.91, 0.02), figure(0.99, 0.01, name="d"), figure(0.7, 0.01, name="e")]
    assert "1 of 3 conditions are too close to call" in wording(checks, GatePolicy.point)
    assert "each of 3 conditions" in wording(checks, GatePolicy.confident)
    assert "significant among 3 conditions (Holm" in wording(checks, GatePolicy.not_worse)
    assert "no condition" in wording([], GatePolicy.point)
