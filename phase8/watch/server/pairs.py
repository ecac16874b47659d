"""How far two runs' retentions on a benchmark differ, item by item.

Both runs score the same items x_i of one original model, so most of the items' luck cancels out:

    retention_b - retention_a = sum_i w_i (b_i - a_i) / sum_i w_i x_i,      w_i = 1 as measured

The interval is that of the Bayesian bootstrap (Rubin 1981), as in the gates: w_i ~ Gamma(1), drawn 2,000 times from a
fixed seed, and the 2.5 and 97.5 per cent points of what comes out. Items that share a passage or subject share a weight
where there are ten such groups or more. Two further items, an eighth of each in every combination of right and wrong,
keep the interval open where no item differs. `phase8.judge.resample` says more; it needs torch, which has no place in a
server, so a test compares the two.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from phase8.errors import ArtifactError, Phase8Error
from phase8.files import read_sealed
from phase8.watch.server.fold import mapping

DRAWS = 2000
LEAST_GROUPS = 10
PRIOR_ITEMS = 2.0
SCORES_FILE = "scores.json"
MOST_BYTES = 64 << 20

Items = tuple[np.ndarray, list[str]]
"""Scores of a benchmark's items, float64 [N], and what each shares with others (empty: each stands alone)."""


def paired_interval(before: Items, other_before: Items, left: Items, right: Items) -> tuple[float, float] | None:
    """The 95 % interval of the difference of two retentions; None where the items are not the same.

    Args:
        before: of the original model, in the one run; `other_before`: in the other.
        left: of the one run's compressed model; `right`: of the other's.
    """
    sizes = {len(items[0]) for items in (before, other_before, left, right)}
    if len(sizes) != 1 or not before[0].size or before[0].sum() <= 0:
        return None
    if not np.array_equal(before[0], other_before[0]) or before[1] != other_before[1]:
        return None
    count = len(before[0])
    rows = np.stack([before[0], left[0], right[0]], axis=1)
    if len(before[1]) == count and len(set(before[1])) >= LEAST_GROUPS:
        names, group = np.unique(before[1], return_inverse=True)
        items, rows = rows, np.zeros((len(names), 3))
        np.add.at(rows, group, items)
    corners = np.array(list(itertools.product((0.0, 1.0), repeat=3)))
    shapes = np.concatenate([np.ones(len(rows)), np.full(len(corners), PRIOR_ITEMS / len(corners))])
    weights = np.random.default_rng(0).standard_gamma(shapes, (DRAWS, len(shapes)))
    sums = weights @ np.concatenate([rows, corners])
    drawn = (sums[:, 2] - sums[:, 1]) / np.maximum(sums[:, 0], 1e-12)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def items_of(directory: Path, stage: str, attempt: int) -> dict[str, Items]:
    """Every benchmark's items of one attempt, by task; empty where the run left none on disk that sum up."""
    path = directory / "state" / f"{stage}_{attempt}" / SCORES_FILE
    try:
        loaded = json.loads(read_sealed(path, MOST_BYTES, error=ArtifactError))
    except (Phase8Error, ValueError, RecursionError):
        return {}
    scores = mapping(loaded).get("scores")
    found = {}
    for entry in scores if isinstance(scores, list) else []:
        items = _items(mapping(entry))
        if items is not None:
            found[str(entry.get("task"))] = items
    return found


def _items(entry: Mapping[str, Any]) -> Items | None:
    values, clusters = entry.get("items"), entry.get("clusters") or []
    if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
        return None
    return np.asarray(values, dtype=np.float64), [str(cluster) for cluster in clusters]
