"""Edge of chaos for a model of the user's own: a pool of questions that its baseline solves at about 75 %.

    candidates of each difficulty -+- a third: how the baseline does at each difficulty -> a mix that it solves at 75 %
                                   +- a third: questions drawn in that mix              -> the pool
                                   +- a third: how the baseline does in that mix        -> whether the pool holds

Questions that the baseline was seen to solve are not put together to a pool: on such a choice its luck counts as skill,
and the best of copies would seem to lose some. The thirds part the choice of the mix from the questions. Of `DRAWS`
draws in the same mix the one nearest to the target is taken, since the test is defined by the baseline's 75 %. That
draw is lucky, the more so the fewer questions there are: of 64 draws of 8 questions, a guesser answers 6 right in one.
So the last third, which chose nothing, has to confirm the mix: within the tolerance and one standard error.

Candidates are arithmetic questions with four answers (`phase8.world.arithmetic.level`), which need no knowledge of the
embedded world, or a file of the user's.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from phase8.benchmarks.suite import EDGE_OF_CHAOS, MINI, Suite, load_tasks, spread
from phase8.errors import BenchmarkError, ConfigError
from phase8.files import TEMPORARY, read_bounded, temporary_directory, writing
from phase8.model.text import decoded

TARGET = 0.75
TOLERANCE = 0.05
"""A pool that the baseline solves at 70 to 80 % can be judged."""
POOL_ITEMS = 200
PER_LEVEL = 225
LEVELS = (1, 2, 3, 5, 6)
"""Of the embedded questions; level 4 asks about the embedded world."""
SEED = 404
DRAWS = 64
CONFIRMING = 30
"""So many questions, at least, confirm a pool (as many of equal weight as tell as much)."""
PROBES = 64
MAX_FILE_BYTES = 8 << 20
MAX_ITEMS = 10_000

Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pool:
    """What came of the search for a pool."""

    items: tuple[Item, ...]
    """Empty where there is none."""
    accuracy: dict[str, float]
    """Of the baseline, at each difficulty, on the third that calibrates."""
    text: str
    """One line for the log: what was built, or why nothing could be."""
    probes: tuple[Item, ...] = ()
    """Questions of the calibrating third in the mix of the pool: see `probes.py`."""


def embedded_candidates() -> list[Item]:
    """`PER_LEVEL` questions of each of `LEVELS`."""
    from phase8.world.items import edge_items

    return edge_items(SEED, dict.fromkeys(LEVELS, PER_LEVEL))


def read_candidates(path: str | Path) -> list[Item]:
    """Questions of a JSONL file: `prompt`, `choices` (2 or more), `answer` (index into them), `level`.

    Raises:
        ConfigError: the file cannot be read, or a line is not such a question; says which line and what is wrong.
    """
    where = str(path)
    fix = 'each line is {"prompt": "...", "choices": ["...", "..."], "answer": 0, "level": 1}'
    lines = decoded(read_bounded(path, MAX_FILE_BYTES, error=ConfigError, fix=fix), where=where).split("\n")
    items: list[Item] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            prompt, choices, answer, level = (row[name] for name in ("prompt", "choices", "answer", "level"))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            what = f"line {number} is not a question: {type(error).__name__}: {error}"
            raise ConfigError(what, where=where, fix=fix) from error
        if not (_is_text(prompt) and isinstance(choices, list) and all(map(_is_text, choices))):
            raise ConfigError(f"line {number}: prompt and choices need text in them", where=where, fix=fix)
        if len(set(choices)) < max(2, len(choices)) or type(answer) is not int or not 0 <= answer < len(choices):
            what = f"line {number}: needs two or more different choices, and the index of one of them as answer"
            raise ConfigError(what, where=where, fix=fix)
        chance = 1 / len(choices)
        items.append({"prompt": prompt, "choices": choices, "answer": answer, "chance": chance, "level": str(level)})
    per_level = defaultdict(int)
    for item in items:
        per_level[item["level"]] += 1
    if not items or len(items) > MAX_ITEMS or min(per_level.values()) < 3:
        found = f"{len(items)} questions on {len(per_level)} levels"
        raise ConfigError(
            f"{found}; needs at least 3 on each level, and at most {MAX_ITEMS} in all", where=where,
            fix="some 225 on each of several levels, from easy to hard, make a pool of 200",
        )  # fmt: skip
    return items


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def build_pool(items: Sequence[Item], measure: Callable[[list[Item]], Sequence[float]], size: int = POOL_ITEMS) -> Pool:
    """Finds a pool that the baseline solves at about `TARGET`.

    Args:
        items: candidates, each with a `level`.
        measure: 1.0 or 0.0 for each of some items: whether the baseline solves it. Called once.
        size: items of the pool; fewer where the candidates do not suffice.
    """
    right = measure(list(items))
    thirds: tuple[dict[str, list[int]], ...] = (defaultdict(list), defaultdict(list), defaultdict(list))
    seen: dict[str, int] = defaultdict(int)
    for number, item in enumerate(items):
        level = str(item["level"])
        thirds[seen[level] % 3][level].append(number)
        seen[level] += 1
    calibrating, drawn, confirming = thirds
    accuracy = {level: _share_right(right, chosen) for level, chosen in calibrating.items()}
    mix = choose_mix(accuracy, {level: len(chosen) for level, chosen in drawn.items()}, size)
    total = sum(mix.values())
    shares = {level: count / total for level, count in mix.items() if count}
    told = ", ".join(f"{level}: {value:.2f}" for level, value in sorted(accuracy.items()))

    def draw(seed: int) -> list[int]:
        rng = random.Random(seed)
        return [n for level, count in sorted(mix.items()) for n in rng.sample(drawn[level], count)]

    def miss(chosen: list[int]) -> float:
        return abs(_share_right(right, chosen) - TARGET)

    def none(why: str) -> Pool:
        text = f"edge of chaos is left out: {why} (by difficulty: {told}); name others with benchmarks.edge_pool_file"
        return Pool((), accuracy, text)

    best = min((draw(seed) for seed in range(DRAWS)), key=miss)
    expected = sum(share * accuracy[level] for level, share in shares.items())
    if abs(expected - TARGET) > TOLERANCE or miss(best) > TOLERANCE:
        farther = max(expected, _share_right(right, best), key=lambda value: abs(value - TARGET))
        extreme = "hard" if farther < TARGET else "easy"
        return none(f"no mix of its questions is near {TARGET:.0%} for this model, all are too {extreme}")
    confirmed = sum(share * _share_right(right, confirming[level]) for level, share in shares.items())
    telling = 1 / sum(share**2 / len(confirming[level]) for level, share in shares.items())
    error = math.sqrt(TARGET * (1 - TARGET) / telling)
    if telling < CONFIRMING:
        return none(f"{telling:.0f} questions apart cannot confirm its pool, that takes {CONFIRMING}")
    if abs(confirmed - TARGET) > TOLERANCE + error:
        return none(f"on questions apart from those that chose it, this model solves {confirmed:.1%} of its mix")
    counts = ", ".join(f"{count} of {level}" for level, count in sorted(mix.items()) if count)
    text = (
        f"edge of chaos: {len(best)} questions, the baseline solves {_share_right(right, best):.1%}, "
        f"and {confirmed:.1%} of others in the same mix ({counts}; by difficulty {told})"
    )
    chosen = [items[n] for n in sorted(best)]
    probing = [items[n] for level in sorted(calibrating) for n in calibrating[level]]
    return Pool(tuple(chosen), accuracy, text, tuple(probes_like(probing, chosen)))


def _share_right(right: Sequence[float], chosen: Sequence[int]) -> float:
    return sum(right[n] for n in chosen) / len(chosen)


def probes_like(candidates: Sequence[Item], graded: Sequence[Item]) -> list[Item]:
    """About `PROBES` candidates, none with a prompt of `graded`, with the shares of levels that `graded` has; fewer
    where the candidates do not suffice."""
    asked = {item["prompt"] for item in graded}
    chosen = []
    for level, count in sorted(Counter(str(item["level"]) for item in graded).items()):
        free = [item for item in candidates if str(item["level"]) == level and item["prompt"] not in asked]
        chosen += [free[n] for n in spread(len(free), round(PROBES * count / len(graded)))]
    return chosen


def choose_mix(accuracy: Mapping[str, float], available: Mapping[str, int], size: int) -> dict[str, int]:
    """Items per level whose expected accuracy is nearest to `TARGET`, with as many levels in it as that allows.

    Shares are tilted exponentially by the levels' accuracy (the flattest distribution of a given mean), and never more
    of a level is taken than there is.
    """
    size = min(size, sum(available.values()))

    def counts(tilt: float) -> dict[str, int]:
        left, chosen = size, dict.fromkeys(accuracy, 0)
        open_levels = set(accuracy)
        while left and open_levels:
            weights = {level: math.exp(tilt * (accuracy[level] - TARGET)) for level in sorted(open_levels)}
            total = sum(weights.values())
            wanted = {level: min(available[level] - chosen[level], left * w / total) for level, w in weights.items()}
            whole = {level: math.floor(value) for level, value in wanted.items()}
            if not any(whole.values()):
                heaviest = max(open_levels, key=lambda level: (weights[level], level))
                whole = {heaviest: 1}
            for level, count in whole.items():
                chosen[level] += count
                left -= count
            open_levels = {level for level in open_levels if chosen[level] < available[level]}
        return chosen

    def miss(mix: dict[str, int]) -> float:
        return abs(sum(mix[level] * accuracy[level] for level in mix) / size - TARGET)

    tilts = sorted((step / 4 for step in range(-120, 121)), key=abs)
    return min((counts(tilt) for tilt in tilts), key=miss)


def with_pool(suite: Suite, items: Sequence[Item], probes: Sequence[Item] = ()) -> Suite:
    """The suite with these questions for edge of chaos, and these probes; without the benchmark where there are no
    questions."""
    task = next((task for task in suite.tasks if task.stands_for == EDGE_OF_CHAOS), None)
    if task is None:
        return suite
    if not items:
        return replace(suite, tasks=tuple(other for other in suite.tasks if other is not task))
    lines = [json.dumps({**item, "id": number}) for number, item in enumerate(items)]
    data = "\n".join(lines) + "\n"
    with temporary_directory() as directory:
        with writing(directory, TEMPORARY):
            (directory / f"{task.name}.jsonl").write_text(data, encoding="utf-8")
        loaded = load_tasks(MINI, [task.name], data_dir=str(directory))
    return replace(suite, loaded={**suite.loaded, **loaded}, edge_pool=data, edge_probes=tuple(probes))


def measure_with(suite: Suite, evaluate: Callable[[Suite], Any]) -> Callable[[list[Item]], Sequence[float]]:
    """How `build_pool` has the baseline answer candidates: through the suite's own task, and nothing else of it."""
    task = next(task for task in suite.tasks if task.stands_for == EDGE_OF_CHAOS)

    def measure(items: list[Item]) -> Sequence[float]:
        only = replace(with_pool(suite, items), tasks=(task,), samples=None, text=())
        found = evaluate(only).scores[task.name].items
        if len(found) != len(items):
            what = f"{len(found)} of {len(items)} candidates were answered"
            raise BenchmarkError(what, where=task.name, fix="use the embedded candidates")
        return found

    return measure
