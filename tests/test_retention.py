"""Retention against known cases and a slow, independent computation."""

import random

import pytest

from phase8.benchmarks.evaluate import Score, SuiteResult
from phase8.errors import BenchmarkError
from phase8.judge.retention import average, by_expert, by_role, is_informative, items_needed, resolution, retention


def score(items, *, task="t", chance=0.0, role="core", experts=()):
    return Score(task=task, role=role, stands_for=task, experts=experts, chance=chance, items=tuple(map(float, items)))


def pair(n, kept, *, accuracy=0.8, seed=0, **settings):
    """A baseline of the given accuracy, and a model that keeps each right answer with probability `kept`."""
    generator = random.Random(seed)
    base = [generator.random() < accuracy for _ in range(n)]
    final = [right and generator.random() < kept for right in base]
    return score(base, **settings), score(final, **settings)


def test_known_values():
    result = retention(score([1, 1, 1, 0] * 10, chance=0.25), score([1, 1, 0, 0] * 10, chance=0.25))
    assert result.raw.value == pytest.approx(2 / 3)
    assert result.corrected.value == pytest.approx(0.5)
    assert result.difference.value == pytest.approx(-0.25)
    assert (result.baseline, result.final, result.n) == (0.75, 0.5, 40)
    assert result.baseline_stderr == pytest.approx((0.75 * 0.25 / 39) ** 0.5)


def test_the_same_model_keeps_everything_exactly():
    base, _ = pair(200, 1.0, chance=0.25)
    result = retention(base, base)
    assert (result.raw.low, result.raw.value, result.raw.high) == (1.0, 1.0, 1.0)
    assert (result.difference.low, result.difference.high) == (0.0, 0.0)


def test_another_model_with_the_same_answers_is_not_proven_equal():
    """The rule of three: nothing in n items bounds a share by about 3 / n."""
    base, _ = pair(200, 1.0)
    few = retention(base, score(base.items))
    many = retention(score(base.items * 10), score(base.items * 10))
    assert few.raw.value == 1.0 and 0.97 < few.raw.low < 0.995 and 1.005 < few.raw.high < 1.03
    assert 1 - many.raw.low == pytest.approx((1 - few.raw.low) / 10, rel=0.3)


def test_interval_against_a_plain_loop():
    base, final = pair(60, 0.9, chance=0.25, accuracy=0.9)
    generator = random.Random(7)
    raw, corrected = [], []
    for _ in range(4000):
        chosen = [generator.randrange(60) for _ in range(60)]
        b = sum(base.items[i] for i in chosen) / 60
        f = sum(final.items[i] for i in chosen) / 60
        raw.append(f / b)
        corrected.append((f - 0.25) / (b - 0.25))
    result = retention(base, final, draws=4000)
    for ratios, estimate in ((sorted(raw), result.raw), (sorted(corrected), result.corrected)):
        assert estimate.low == pytest.approx(ratios[100], abs=0.015)
        assert estimate.high == pytest.approx(ratios[3899], abs=0.015)


def test_pairing_narrows_the_interval():
    base, final = pair(400, 0.95)
    shuffled = list(final.items)
    random.Random(1).shuffle(shuffled)
    paired, unpaired = retention(base, final), retention(base, score(shuffled))
    assert paired.raw.value == unpaired.raw.value
    assert paired.raw.high - paired.raw.low < 0.6 * (unpaired.raw.high - unpaired.raw.low)


def test_intervals_hold_the_truth_about_as_often_as_they_claim():
    hits = 0
    for seed in range(200):
        result = retention(*pair(200, 0.9, seed=seed), draws=500)
        hits += result.raw.low <= 0.9 <= result.raw.high
    assert 0.90 <= hits / 200 <= 0.99


def test_uninformative_baselines():
    assert not is_informative(score([1] * 27 + [0] * 73, chance=0.25))
    assert is_informative(score([1] * 80 + [0] * 20, chance=0.25))
    assert not is_informative(score([1, 1], chance=0.5))
    assert not is_informative(score([0] * 100))
    assert not is_informative(score([1]))


def test_nothing_to_keep_has_no_ratio():
    result = retention(score([0, 0, 0]), score([1, 0, 0]))
    assert (result.raw.value, result.raw.low, result.raw.high) == (None, None, None)
    below_chance = retention(score([1, 0, 0, 0], chance=0.5), score([1, 1, 0, 0], chance=0.5))
    assert below_chance.corrected.value is None
    assert below_chance.raw.value == 2.0


@pytest.mark.parametrize("final", [[0] * 200, [1] * 200, [1, 0, 0, 0] * 50, [0, 1, 1, 0] * 50])
def test_what_is_not_above_chance_has_no_corrected_retention(final):
    """0.255 of a four-way test, kept in part or doubled: 200 % and -700 % would be figures of chance."""
    result = retention(score([1] * 51 + [0] * 149, chance=0.25), score(final, chance=0.25))
    assert not result.informative and result.raw.value == pytest.approx(sum(final) / 51)
    assert (result.corrected.value, result.corrected.low, result.corrected.high) == (None, None, None)


@pytest.mark.parametrize("right", [0, 1, 199, 200])
def test_a_figure_lies_in_its_own_interval(right):
    final = score([1] * right + [0] * (200 - right), chance=0.25)
    result = retention(score([1] * 160 + [0] * 40, chance=0.25), final)
    for found in (result.raw, result.corrected, result.difference):
        assert found.low <= found.value <= found.high


def test_seeded():
    base, final = pair(100, 0.9)
    assert retention(base, final, seed=1) == retention(base, final, seed=1)
    assert retention(base, final, seed=1).raw.low != retention(base, final, seed=2).raw.low or (
        retention(base, final, seed=1).raw.high != retention(base, final, seed=2).raw.high
    )


def test_average_leaves_the_uninformative_out_and_names_them():
    good = pair(200, 0.9, task="good", chance=0.25)
    better = pair(200, 1.0, task="better", chance=0.25, seed=1)
    noise = (score([1, 0, 0, 0] * 25, task="noise", chance=0.25),) * 2
    result = average([good, better, noise])
    assert result.tasks == ("good", "better") and result.uninformative == ("noise",)
    single = [retention(*p) for p in (good, better)]
    assert result.raw.value == pytest.approx((single[0].raw.value + single[1].raw.value) / 2)
    assert result.corrected.value == pytest.approx((single[0].corrected.value + single[1].corrected.value) / 2)
    assert result.corrected.value < result.raw.value
    widths = [s.raw.high - s.raw.low for s in single]
    assert result.raw.high - result.raw.low == pytest.approx(sum(w**2 for w in widths) ** 0.5 / 2, rel=0.1)
    assert average([noise]).raw.value is None


def test_groups():
    core = pair(100, 0.9, task="a", experts=("code", "creative"))
    expert = pair(100, 0.8, task="b", role="expert", experts=("code",))
    base = {"a": core[0], "b": expert[0]}
    final = {"a": core[1], "b": expert[1]}
    assert by_role(base, final, "core").tasks == ("a",)
    groups = by_expert(base, final, ["code", "creative", "memory"])
    assert groups["code"].tasks == ("a", "b") and groups["creative"].tasks == ("a",) and groups["memory"].tasks == ()
    with pytest.raises(BenchmarkError, match="not run.*a"):
        by_role(base, {}, "core")


def test_other_items_cannot_be_paired():
    with pytest.raises(BenchmarkError, match="cannot be paired"):
        retention(score([1, 0]), score([1, 0, 1]))
    with pytest.raises(BenchmarkError, match="cannot be paired"):
        retention(score([1, 0], task="a"), score([1, 0], task="b"))


def test_items_needed():
    assert (items_needed(0.05), items_needed(0.01)) == (193, 4802)
    assert all(items_needed(resolution(n)) in (n, n + 1) for n in (1, 100, 200, 4802))


def test_result_goes_through_json():
    result = SuiteResult(scores={"t": score([1, 0, 0.3], experts=("code",))}, missing=("memory: SQuAD",))
    assert SuiteResult.from_json(result.to_json()) == result
