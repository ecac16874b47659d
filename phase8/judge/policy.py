"""How a figure with an interval is held against a threshold: the three gate policies.

- `point`: the measured figure decides, as the specification has it.
- `confident`: the threshold must be reached with 95 % confidence: the lower end of the 90 % interval decides (for a
  band, both ends: two one-sided tests, Schuirmann 1987). All conditions of a gate must hold at once, and a model that
  truly fails one of them passes it with at most 5 %, so requiring them all needs no correction (Berger 1982).
- `not_worse`: a condition fails only where the figure lies significantly beyond the threshold. One significant failure
  fails the gate, so the more conditions, the more often chance finds one: the p-values are corrected over all
  conditions of the gate (Holm 1979), and a model that meets every condition is failed in at most 5 % of gates.

`confident` guards against passing a bad model, `not_worse` against failing a good one, `point` against neither: where
the truth lies at the threshold, it is a coin's toss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from phase8.judge.settings import GatePolicy

SIGNIFICANCE = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One condition and the figure behind it."""

    name: str
    value: float | None
    """None: it could not be measured."""
    threshold: float
    """The least value that passes."""
    passed: bool | None
    """None: listed, but neither passed nor failed; the note says why."""
    note: str = ""
    ceiling: float | None = None
    """The largest value that passes, where there is one."""
    low: float | None = None
    """With `high` the 90 % interval: each end bounds the true figure with 95 % confidence. None: not a sampled figure,
    or not bounded on that side."""
    high: float | None = None
    p: float | None = None
    """The chance of a figure as far beyond the threshold if the true one just reached it; None: not a sampled one."""


def sampled(
    name: str,
    values: np.ndarray | None,
    threshold: float,
    *,
    note: str,
    judged: bool = True,
    ceiling: float | None = None,
) -> Check:
    """A condition on a figure that other items would have given otherwise, by the `point` policy.

    Args:
        values: shape [1 + D]: the measured figure, then draws of what it might have been (`judge.resample`); NaN
            bounds nothing. None: not measured.
        judged: False lists the figure without a verdict.
    """
    if values is None:
        return Check(name=name, value=None, threshold=threshold, ceiling=ceiling, passed=None, note=note)
    value, draws_D = float(values[0]), values[1:]
    holds = reaches(value, threshold) and (ceiling is None or reaches(ceiling, value))
    unbounded_D = np.isnan(draws_D)
    low = float(np.quantile(np.where(unbounded_D, -np.inf, draws_D), SIGNIFICANCE, method="lower"))
    high = float(np.quantile(np.where(unbounded_D, np.inf, draws_D), 1 - SIGNIFICANCE, method="higher"))
    low, high = min(low, value), max(high, value)  # the draws smooth, and may all lie on one side of a figure of 0 or 1
    p = _share(unbounded_D | (draws_D >= threshold))
    if ceiling is not None:
        p = min(1.0, 2 * min(p, _share(unbounded_D | (draws_D <= ceiling))))
    return Check(
        name=name, value=value, threshold=threshold, ceiling=ceiling, passed=holds if judged else None, note=note,
        low=low if np.isfinite(low) else None, high=high if np.isfinite(high) else None, p=p,
    )  # fmt: skip


def decide(checks: Sequence[Check], policy: GatePolicy) -> tuple[Check, ...]:
    """The same conditions, passed or failed by the policy. Those without an interval keep their verdict."""
    if policy is GatePolicy.point:
        return tuple(checks)
    if policy is GatePolicy.confident:
        return tuple(replace(check, passed=_confident(check)) if _has_chance(check) else check for check in checks)
    open_to_chance = [check for check in checks if _has_chance(check)]
    rejected = holm([check.p for check in open_to_chance if check.p is not None])
    fails = {check.name for check, significant in zip(open_to_chance, rejected, strict=True) if significant}
    return tuple(replace(check, passed=check.name not in fails) if _has_chance(check) else check for check in checks)


def holm(p_values: Sequence[float], level: float = SIGNIFICANCE) -> list[bool]:
    """Which hypotheses Holm's step-down test rejects, so that any false rejection has at most the chance `level`.

    Holm 1979, "A simple sequentially rejective multiple test procedure": the smallest p is held against level / m, the
    next against level / (m - 1), and so on until one is not rejected.
    """
    rejected = [False] * len(p_values)
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] > level / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected


def wording(checks: Sequence[Check], policy: GatePolicy) -> str:
    """What the policy's verdict is worth, in a sentence."""
    open_to_chance = [check for check in checks if _has_chance(check)]
    count = len(open_to_chance)
    if not count:
        return "no condition rests on sampled items"
    if policy is GatePolicy.confident:
        return f"each of {count} conditions has to hold with 95 % confidence; requiring all of them needs no correction"
    if policy is GatePolicy.not_worse:
        return f"a loss fails the gate only where it is significant among {count} conditions (Holm, 5 % for them all)"
    unsure = sum(not _confident(check) for check in open_to_chance if check.passed)
    unsure += sum(not _confidently_beyond(check) for check in open_to_chance if not check.passed)
    return f"measured figures decide; {unsure} of {count} conditions are too close to call (90 % interval)"


def reaches(value: float, threshold: float) -> bool:
    """value >= threshold, where 0.6 / 0.8 reaches 0.75 although floating point makes it 0.7499999999999999."""
    return value >= threshold - 1e-9


def _has_chance(check: Check) -> bool:
    return check.passed is not None and check.p is not None


def _confident(check: Check) -> bool:
    if check.low is None or not reaches(check.low, check.threshold):
        return False
    return check.ceiling is None or (check.high is not None and reaches(check.ceiling, check.high))


def _confidently_beyond(check: Check) -> bool:
    below = check.high is not None and not reaches(check.high, check.threshold)
    above = check.ceiling is not None and check.low is not None and not reaches(check.ceiling, check.low)
    return below or above


def _share(held_D: np.ndarray) -> float:
    """Never 0: so many draws cannot tell a smaller chance."""
    return (1 + int(held_D.sum())) / (1 + len(held_D))
