"""What a run's events say, in sentences that need no glossary: the terminal's.

    failed at edge of chaos: 0.685, needs 0.70
    failed at core benchmarks: keep 20.8 %, need 90 % (and 15 more conditions)

Figures are rounded, but never so far that a failing one reads like its threshold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from phase8.events import BenchmarkResult, CheckResult
from phase8.judge.retention import resolution
from phase8.watch.view import RunView, Stage
from phase8.watch.wording import clean, figure, percent, words

_STEPS = {
    "load": "loading the benchmarks",
    "pool": "choosing questions of the right difficulty",
    "text": "writing text to train on",
    "answers": "asking the original for its answers",
    "allocate": "choosing settings for each tensor",
    "encode": "encoding the weights",
    "optimise": "training what is stored",
    "write": "writing and reading the file",
    "evaluate": "asking the benchmarks",
}
_NAMES = {
    "core_retention": "core benchmarks",
    "core_retention_cumulative": "core benchmarks since the original",
    "core": "core benchmarks",
    "expert_retention": "experts' benchmarks",
    "experts": "experts' benchmarks",
    "knowledge": "MMLU and GSM8K together",
    "first_expert": "the first expert's benchmarks",
    "no_benchmark_lost": "the weakest benchmark",
    "edge_of_chaos": "edge of chaos",
    "eudaimonia": "the weakest rule of eudaimonia",
    "size": "size",
    "latency_ms": "time per token",
}
_PLURAL = ("core", "expert", "MMLU", "the first expert")
_MOST_DIGITS = 6


def step(name: str) -> str:
    """What goes on in a step."""
    return _STEPS.get(name, words(name))


def condition(name: str) -> str:
    """What a condition of a gate, or a success criterion, is about."""
    kind, _, which = name.partition("/")
    if which:
        return f"the rule {words(which)}" if kind == "rule" else clean(which)
    return _NAMES.get(name, words(name))


def shortfall(check: CheckResult) -> str:
    """Why a condition does not hold: "edge of chaos: 0.685, needs 0.70"."""
    name, value, least = condition(check.name), check.value, check.threshold
    if check.name == "smaller":
        return "size: no smaller than what the stage began with"
    if check.name == "perplexity" and value:
        more, allowed = _apart(100 / value - 100, 100 / least - 100, 1)
        return f"held-out text: takes {more} % more bits, may take {allowed} %"
    if value is None:
        return f"{name}: not measured"
    if check.name == "informative_core":
        return f"benchmarks: only {value:.0f} tell anything of this model, needs {least:.0f}"
    if check.name == "latency_ms":
        return f"{name}: {value:.0f} ms, needs less than {least:g}"
    if check.name == "size":
        reached, needed = _apart(value, least, 1)
        return f"{name}: {reached} times smaller, needs {needed}"
    above = check.ceiling is not None and value > check.ceiling
    limit = check.ceiling if above and check.ceiling is not None else least
    verb, as_score = "needs", check.name.startswith(("edge_of_chaos", "rule/", "eudaimonia"))
    if as_score:
        reached, needed = _apart(value, limit, 3, 2)
    else:
        reached, needed = (f"{text} %" for text in _apart(100 * value, 100 * limit, 1))
        verb = "need" if name.startswith(_PLURAL) else "needs"
        reached = f"{'keep' if verb == 'need' else 'keeps'} {reached}"
    if above:
        return f"{name}: {reached}, {verb} at most {needed}"
    if value >= limit and check.low is not None:  # the policy asks for more than the measured figure
        low = f"{check.low:.3f}" if as_score else percent(check.low)
        return f"{name}: {reached}, but perhaps only {low}; {verb} {needed}"
    return f"{name}: {reached}, {verb} {needed}"


def failures(checks: Iterable[CheckResult]) -> str:
    """What fails, in one line: one or two conditions, or the first of many."""
    failed = [check for check in checks if check.passed is False]
    if len(failed) <= 2:
        return "; ".join(map(shortfall, failed))
    return f"{shortfall(failed[0])} (and {len(failed) - 1} more conditions)"


def judging_items(results: Sequence[BenchmarkResult], needed: int) -> int | None:
    """Questions of the shortest core benchmark that tells something of the model; None where the benchmarks judge
    nothing, being fewer than `needed`: what they could resolve is of no use then."""
    items = [result.n for result in results if result.role == "core" and result.informative]
    return min(items) if len(items) >= needed and items and min(items) else None


def original(results: Sequence[BenchmarkResult], needed: int) -> list[str]:
    """What the original model can do; `needed` informative core benchmarks are enough to judge by."""
    core = [result for result in results if result.role == "core"]
    lines = []
    if core:
        lowest = min(core, key=lambda result: result.score)
        mean = sum(result.score for result in core) / len(core)
        lines.append(
            f"{len(core)} core benchmarks: {percent(mean)} right on average, "
            f"least in {clean(lowest.task)} with {percent(lowest.score)}"
        )
    if idle := [clean(result.task) for result in results if not result.informative]:
        lines.append(f"no better than guessing, so not counted: {', '.join(idle)}")
    if items := judging_items(results, needed):
        points = 100 * resolution(items)
        lines.append(
            f"{items:,} questions each: a loss of less than {points:.0f} points in one benchmark may be chance"
        )
    return lines


def to_go(view: RunView, stage: Stage) -> str:
    """How many stages follow; empty after the last. How long one takes is no measure for the next, which may be trained
    for ten times as long; within a stage the time left is told."""
    if stage.name not in view.planned:
        return ""
    left = len(view.planned) - view.planned.index(stage.name) - 1
    return f"{left} more {_stages(left)}" if left > 0 else ""


def _stages(count: int) -> str:
    return "stage" if count == 1 else "stages"


def _apart(value: float, limit: float, digits: int, limit_digits: int | None = None) -> tuple[str, str]:
    """Both rounded, to more digits where they would read alike."""
    needed = f"{limit:.{limit_digits}f}" if limit_digits is not None else figure(limit)
    while digits < _MOST_DIGITS and value != limit and float(f"{value:.{digits}f}") == limit:
        digits += 1
    return f"{value:.{digits}f}", needed
