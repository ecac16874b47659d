"""What the mean scores of several models might have been on other items of the same kind: a Bayesian bootstrap.

Every item gets a random weight from Gamma(1), the same for all models, and each model's mean is taken under those
weights (Rubin 1981, "The Bayesian bootstrap"). Where items share a passage or a subject, the weight is the group's:
they rise and fall together. Items that are alike in every model are drawn at once, since k weights of Gamma(1) sum to
one of Gamma(k); a benchmark of right and wrong answers costs a handful of weights, however many items it has.

A plain bootstrap has nothing to say where no item changed: all its draws agree, and the interval has no width. So each
combination of right and wrong, over all the models, is added as a fraction of an item, two items in all. For two models
that is half an item in each of the four cells (Agresti & Min 2005, "Simple improved confidence intervals for comparing
matched proportions").

    >>> from phase8.benchmarks.evaluate import Score
    >>> def score(*items):
    ...     return Score(task="t", role="core", stands_for="t", experts=(), chance=0.0, items=items)
    >>> before, after = mean_draws([score(1.0, 1.0, 0.0, 1.0), score(1.0, 0.0, 0.0, 1.0)], draws=4000)
    >>> bool(0.05 < (after > before).mean() < 0.25)
    True
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from phase8.benchmarks.evaluate import Score
from phase8.errors import BenchmarkError

DRAWS = 2000
PRIOR_ITEMS = 2.0
MIN_CLUSTERS = 10
"""Fewer groups than this do not show how much groups differ; items then count singly."""
_CHUNK = 1 << 22


def mean_draws(scores: Sequence[Score], *, seed: int = 0, draws: int = DRAWS) -> np.ndarray:
    """Mean scores in each of D draws, the same weights for all of the S models: shape [S, D].

    Args:
        scores: one benchmark on S models. The same object twice is one model, and stays equal to itself in every draw.
        seed: with the benchmark's name it sets the draws: leaving one out does not move the intervals of the others.

    Raises:
        BenchmarkError: the scores are not of the same items.
    """
    first = scores[0]
    for other in scores[1:]:
        same = (other.task, other.n, other.chance) == (first.task, first.n, first.chance)
        if not same or not first.n:
            raise BenchmarkError(
                f"{first.task} ({first.n} items) and {other.task} ({other.n} items) cannot be paired",
                where="retention",
                fix="score all models on the same items: a baseline from another suite must be measured anew",
            )
    models = list({id(score): score for score in scores}.values())
    column = {id(score): number for number, score in enumerate(models)}
    rows_RS1, shape_R = _weighted_rows(models)
    generator = np.random.default_rng([seed, *first.task.encode()])
    means = []
    for start in range(0, draws, step := max(1, _CHUNK // len(shape_R))):
        weights_DR = generator.standard_gamma(shape_R, (min(step, draws - start), len(shape_R)))
        sums_DS1 = weights_DR @ rows_RS1
        means.append(sums_DS1[:, :-1] / sums_DS1[:, -1:])
    means_DS = np.concatenate(means)
    return np.stack([means_DS[:, column[id(score)]] for score in scores])


def ratio_draws(before: Sequence[float], after: Sequence[float], *, seed: int = 0, draws: int = DRAWS) -> np.ndarray:
    """sum(before) / sum(after) in each of D draws of what was summed, the same weights for both: shape [D].

    Args:
        before, after: one figure of each document on two models. Fewer than `MIN_CLUSTERS` documents bound nothing:
            all draws are NaN.
    """
    both_N2 = np.column_stack([before, after])
    if len(both_N2) < MIN_CLUSTERS:
        return np.full(draws, np.nan)
    generator = np.random.default_rng([seed, *b"text"])
    parts = []
    for start in range(0, draws, step := max(1, _CHUNK // len(both_N2))):
        sums_D2 = generator.standard_gamma(1.0, (min(step, draws - start), len(both_N2))) @ both_N2
        parts.append(sums_D2[:, 0] / sums_D2[:, 1])
    return np.concatenate(parts)


def is_clustered(score: Score) -> bool:
    """Whether the score's items are drawn in groups."""
    return len(set(score.clusters)) >= MIN_CLUSTERS


def _weighted_rows(models: list[Score]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of (summed score per model, number of items), and the Gamma shape of each row's weight."""
    items_NS1 = np.column_stack([*(score.items for score in models), np.ones(models[0].n)])
    if is_clustered(models[0]):
        names, group_N = np.unique(models[0].clusters, return_inverse=True)
        grouped = np.zeros((len(names), items_NS1.shape[1]))
        np.add.at(grouped, group_N, items_NS1)
        items_NS1 = grouped
    rows, counts = np.unique(items_NS1, axis=0, return_counts=True)
    corners = np.array([(*corner, 1.0) for corner in itertools.product((0.0, 1.0), repeat=len(models))])
    prior = np.full(len(corners), PRIOR_ITEMS / len(corners))
    return np.concatenate([rows, corners]), np.concatenate([counts, prior])
