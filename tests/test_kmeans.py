"""k-means against a brute-force Lloyd step, and what it promises about its objective."""

from __future__ import annotations

import numpy as np
import pytest

from phase8.codecs.vptq.kmeans import kmeans, nearest


def _data(n: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((n, d)).astype(np.float32), generator.exponential(size=n)


def _brute_force_step(x_ND: np.ndarray, weights_N: np.ndarray, centroids_KD: np.ndarray) -> tuple[np.ndarray, float]:
    """One Lloyd step, vector by vector in float64; centroids that nothing chose stay where they are."""
    members: list[list[int]] = [[] for _ in centroids_KD]
    objective = 0.0
    for n, x_D in enumerate(x_ND.astype(np.float64)):
        squared_K = ((centroids_KD.astype(np.float64) - x_D) ** 2).sum(axis=1)
        members[int(squared_K.argmin())].append(n)
        objective += weights_N[n] * squared_K.min()
    moved_KD = centroids_KD.astype(np.float64)
    for k, chosen in enumerate(members):
        if chosen:
            moved_KD[k] = np.average(x_ND[chosen].astype(np.float64), axis=0, weights=weights_N[chosen])
    return moved_KD, objective


@pytest.mark.parametrize("d", [1, 3, 8, 40])
def test_each_iteration_is_a_lloyd_step(d: int) -> None:
    x_ND, weights_N = _data(400, d)

    def run(iterations: int) -> tuple[np.ndarray, list[float]]:
        found = kmeans(x_ND, 7, iterations=iterations, generator=np.random.default_rng(3), weights_N=weights_N)
        return found.centroids_KD, found.objective

    for iterations in (1, 2, 5):
        before_KD, _ = run(iterations)
        after_KD, objective = run(iterations + 1)
        expected_KD, expected_objective = _brute_force_step(x_ND, weights_N, before_KD)
        np.testing.assert_allclose(after_KD, expected_KD, rtol=1e-5, atol=1e-6)
        assert objective[iterations] == pytest.approx(expected_objective, rel=1e-5)


def test_nearest_is_the_brute_force_nearest() -> None:
    x_ND, _ = _data(300, 8)
    centroids_KD, _ = _data(50, 8, seed=1)
    index_N, squared_N = nearest(x_ND, centroids_KD)
    squared_NK = ((x_ND[:, None, :].astype(np.float64) - centroids_KD) ** 2).sum(axis=2)
    assert np.array_equal(index_N, squared_NK.argmin(axis=1))
    np.testing.assert_allclose(squared_N, squared_NK.min(axis=1), rtol=1e-4)


@pytest.mark.parametrize("k", [2, 30, 150])
def test_objective_never_increases(k: int) -> None:
    x_ND, weights_N = _data(3000, 4)
    x_ND[::2] = np.round(x_ND[::2])  # duplicates, which leave centroids empty
    objective = kmeans(x_ND, k, iterations=30, generator=np.random.default_rng(0), weights_N=weights_N).objective
    assert len(objective) > 3
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in zip(objective, objective[1:], strict=False))


def test_worked_example_of_the_module() -> None:
    x_ND = np.array([[0.0], [1.0], [9.0]], dtype=np.float32)
    found = kmeans(x_ND, 2, iterations=10, generator=np.random.default_rng(0), weights_N=np.array([1.0, 3.0, 1.0]))
    assert sorted(found.centroids_KD[:, 0].tolist()) == [0.75, 9.0]
    assert found.objective[-1] == pytest.approx(0.75)


def test_empty_centroids_are_moved_to_what_is_coded_worst() -> None:
    # Three places, 100 vectors each: nearly every draw takes one place twice and leaves another without a centroid.
    x_ND = np.repeat(np.array([[0.0, 0.0], [5.0, 0.0], [0.0, 9.0]], dtype=np.float32), 100, axis=0)
    for seed in range(10):
        found = kmeans(x_ND, 3, iterations=10, generator=np.random.default_rng(seed))
        assert found.objective[-1] == 0.0


def test_weight_counts_like_repetition() -> None:
    x_ND, _ = _data(200, 3)
    weights_N = np.random.default_rng(1).integers(1, 5, size=200).astype(np.float64)
    start_KD = kmeans(x_ND, 5, iterations=4, generator=np.random.default_rng(0), weights_N=weights_N).centroids_KD
    weighted_KD = kmeans(x_ND, 5, iterations=5, generator=np.random.default_rng(0), weights_N=weights_N).centroids_KD
    repeated_ND = np.repeat(x_ND, weights_N.astype(int), axis=0)
    expected_KD, _ = _brute_force_step(repeated_ND, np.ones(len(repeated_ND)), start_KD)
    np.testing.assert_allclose(weighted_KD, expected_KD, rtol=1e-5, atol=1e-6)


def test_vectors_without_weight_do_not_attract_centroids() -> None:
    x_ND = np.concatenate([_data(100, 2)[0], _data(100, 2)[0] + 50])
    weights_N = np.repeat([1.0, 0.0], 100)
    found = kmeans(x_ND, 4, iterations=20, generator=np.random.default_rng(0), weights_N=weights_N)
    assert np.abs(found.centroids_KD).max() < 10


def test_same_seed_same_centroids() -> None:
    x_ND, weights_N = _data(2000, 8)

    def run(seed: int) -> np.ndarray:
        generator = np.random.default_rng(seed)
        return kmeans(x_ND, 32, iterations=5, generator=generator, weights_N=weights_N).centroids_KD

    assert np.array_equal(run(0), run(0))
    assert not np.array_equal(run(0), run(1))


def test_as_many_centroids_as_vectors_code_them_exactly() -> None:
    x_ND, _ = _data(20, 5)
    found = kmeans(x_ND, 20, iterations=3, generator=np.random.default_rng(0))
    assert np.array_equal(np.sort(found.centroids_KD, axis=0), np.sort(x_ND, axis=0))
