"""The draws against the moments of a Dirichlet distribution, and groups of items."""

import numpy as np
import pytest

from phase8.benchmarks.evaluate import Score
from phase8.errors import BenchmarkError
from phase8.judge.resample import PRIOR_ITEMS, mean_draws


def score(items, **settings):
    return Score(
        **{"task": "t", "role": "core", "stands_for": "t", "experts": (), "chance": 0.0, **settings},
        items=tuple(map(float, items)),
    )


@pytest.mark.parametrize("kind", ["right and wrong", "fractions"])
def test_moments_of_the_difference(kind):
    """Means under Dirichlet(a) weights: E = sum a d / A, Var = (sum a d^2 / A - E^2) / (A + 1)."""
    generator = np.random.default_rng(1)
    before, after = generator.random((2, 50))
    if kind == "right and wrong":
        before, after = before.round(), after.round()
    draws_SD = mean_draws([score(before), score(after)], draws=40_000)
    differences = np.concatenate([after - before, [0, 0, 1, -1]])
    alpha = np.concatenate([np.ones(50), np.full(4, PRIOR_ITEMS / 4)])
    mean = (alpha * differences).sum() / alpha.sum()
    variance = ((alpha * differences**2).sum() / alpha.sum() - mean**2) / (alpha.sum() + 1)
    found = draws_SD[1] - draws_SD[0]
    assert found.mean() == pytest.approx(mean, abs=4 * (variance / 40_000) ** 0.5)
    assert found.var() == pytest.approx(variance, rel=0.03)


def test_one_model_twice_is_one_model():
    base, other = score([1, 0, 1, 1]), score([1, 0, 1, 1])
    first, again, third = mean_draws([base, base, other], draws=50)
    assert np.array_equal(first, again) and not np.array_equal(first, third)


def test_items_of_a_group_rise_and_fall_together():
    """Groups of four equal items tell as much as one item each: a standard error twice that of 400 single ones."""
    answers = np.random.default_rng(0).integers(0, 2, 100)
    groups = tuple(str(n) for n in np.repeat(np.arange(100), 4))
    grouped = mean_draws([score(np.repeat(answers, 4), clusters=groups)])[0]
    single = mean_draws([score(np.repeat(answers, 4))])[0]
    assert grouped.std() == pytest.approx(2 * single.std(), rel=0.1)


def test_a_few_groups_are_no_groups():
    items = [1, 0, 0, 1] * 20
    assert np.array_equal(mean_draws([score(items, clusters=("a", "b") * 40)]), mean_draws([score(items)]))


def test_chunks_make_no_difference(monkeypatch):
    base = score(np.random.default_rng(0).random(300))
    whole = mean_draws([base], draws=100)
    monkeypatch.setattr("phase8.judge.resample._CHUNK", 1000)
    assert np.allclose(mean_draws([base], draws=100), whole, rtol=1e-12)


def test_other_items_are_refused():
    with pytest.raises(BenchmarkError, match="cannot be paired"):
        mean_draws([score([1]), score([1, 0])])
    with pytest.raises(BenchmarkError, match="cannot be paired"):
        mean_draws([score([]), score([])])
