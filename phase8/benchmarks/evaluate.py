"""Runs a suite on a model, through lm-eval's own evaluator, and keeps the score of every item.

lm-eval is called once per benchmark, so that each is reported when it is done; the cost of the calls is milliseconds.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from phase8.benchmarks.perplexity import document_bits
from phase8.benchmarks.suite import (
    EDGE_OF_CHAOS,
    EUDAIMONIA,
    ROLES,
    RULES,
    Suite,
    Task,
    spread,
    without_dataset_bars,
)
from phase8.errors import BenchmarkError

if TYPE_CHECKING:
    from phase8.benchmarks.lm import Phase8LM

CLUSTER_FIELDS = ("passage", "subject")
"""Fields of an item that name what it shares with others, the first that is there."""
FEWSHOT_SEED = 1234
"""lm-eval's own default: the same worked examples as `lm_eval` takes for the same items."""
SINGLE_ITEM_STDERR = 0.5
"""One item tells nothing of the spread; this is the widest that a score from 0 to 1 can have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What one benchmark measured on one model."""

    task: str
    role: str
    stands_for: str
    experts: tuple[str, ...]
    chance: float
    items: tuple[float, ...]
    """The score of each item, in the order of the data."""
    labels: tuple[str, ...] = ()
    """Each item's rule or subject, where it has one."""
    clusters: tuple[str, ...] = ()
    """What each item shares with others: its passage or subject. Empty where every item stands alone."""
    also: dict[str, float] = field(default_factory=dict)
    """The benchmark's further metrics, for the report only."""
    note: str = ""
    """What the model's window made of the benchmark, where it is too short for it."""

    @property
    def n(self) -> int:
        return len(self.items)

    @property
    def value(self) -> float:
        """Mean over the items."""
        return float(np.mean(self.items))

    @property
    def stderr(self) -> float:
        """Standard error of `value`, from the spread of the items."""
        return float(np.std(self.items, ddof=1) / np.sqrt(self.n)) if self.n > 1 else SINGLE_ITEM_STDERR


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteResult:
    """What a suite measured on one model."""

    scores: dict[str, Score]
    """By the benchmark's name, in the order of the suite."""
    missing: tuple[str, ...] = ()
    """See `Suite.missing`."""
    bits_per_byte: float | None = None
    """Of the suite's held-out text; None where it was not measured."""
    document_bits: tuple[float, ...] = ()
    """Of each document of that text, in its order."""

    def edge_of_chaos(self, low: float, high: float) -> dict[str, Any] | None:
        """`{accuracy, status}`, status `in_band` (from `low` to `high`), `too_easy` or `lost_capability`; None where it
        was not run."""
        score = self.edge_score()
        if score is None:
            return None
        status = "lost_capability" if score.value < low else "too_easy" if score.value > high else "in_band"
        return {"accuracy": score.value, "status": status}

    @property
    def eudaimonia(self) -> dict[str, float] | None:
        """The score of each of the four rules; None where it was not run."""
        return {rule: score.value for rule, score in self.by_rule().items()} or None

    def by_rule(self) -> dict[str, Score]:
        """The items of each of the four rules as a score of their own; empty where eudaimonia was not run."""
        score = self._standing_for(EUDAIMONIA)
        if score is None:
            return {}
        absent = [rule for rule in RULES if rule not in score.labels]
        if absent:
            raise BenchmarkError(
                f"no item of {score.task} judges {', '.join(absent)}",
                where=score.task,
                fix="each item needs a field `rule`; with benchmark_samples, take more",
            )
        rows = {rule: [n for n, label in enumerate(score.labels) if label == rule] for rule in RULES}
        return {
            rule: replace(
                score,
                task=f"{score.task}/{rule}",
                items=tuple(score.items[n] for n in chosen),
                labels=(),
                clusters=tuple(score.clusters[n] for n in chosen) if score.clusters else (),
            )
            for rule, chosen in rows.items()
        }

    def eudaimonia_score(self) -> Score | None:
        """The score of eudaimonia, all rules together; None where it was not run."""
        return self._standing_for(EUDAIMONIA)

    def edge_score(self) -> Score | None:
        """The score of edge of chaos; None where it was not run."""
        return self._standing_for(EDGE_OF_CHAOS)

    def _standing_for(self, name: str) -> Score | None:
        return next((score for score in self.scores.values() if score.stands_for == name), None)

    def to_json(self) -> str:
        return json.dumps(
            {
                "missing": self.missing,
                "bits_per_byte": self.bits_per_byte,
                "document_bits": self.document_bits,
                "scores": [asdict(score) for score in self.scores.values()],
            }
        )

    @classmethod
    def from_json(cls, text: str) -> SuiteResult:
        """The inverse of `to_json`.

        Raises:
            ValueError, KeyError, TypeError: anything else: a field is missing, of another type, or out of its range.
        """
        content = json.loads(text)
        scores = {}
        for entry in content["scores"]:
            score = _score_of(entry)
            scores[score.task] = score
        bits = content["bits_per_byte"]
        if bits is not None and not (_is_number(bits) and bits >= 0.0):
            raise ValueError(f"{bits!r} bits per byte")
        documents = content["document_bits"]
        if not isinstance(documents, list) or not all(_is_number(one) and one >= 0.0 for one in documents):
            raise ValueError("bits of a document that are no number")
        if not scores or len(scores) != len(content["scores"]):
            raise ValueError("no scores, or two of one benchmark")
        return cls(
            scores=scores,
            missing=_texts(content["missing"]),
            bits_per_byte=None if bits is None else float(bits),
            document_bits=tuple(map(float, documents)),
        )


def _score_of(entry: dict[str, Any]) -> Score:
    """A `Score` from what `asdict` makes of it, every field checked."""
    if set(entry) != {field.name for field in fields(Score)}:
        raise ValueError(f"fields {sorted(entry)}")
    items, also = entry["items"], entry["also"]
    for name in ("task", "role", "stands_for", "note"):
        if not isinstance(entry[name], str):
            raise TypeError(f"{name} is {entry[name]!r}")
    if entry["role"] not in ROLES or not (_is_number(entry["chance"]) and 0.0 <= entry["chance"] < 1.0):
        raise ValueError(f"role {entry['role']!r}, chance {entry['chance']!r}")
    if not isinstance(items, list) or not items or not all(_is_number(one) and 0.0 <= one <= 1.0 for one in items):
        raise ValueError(f"{entry['task']} has an item that is no score from 0 to 1")
    if not isinstance(also, dict) or not all(isinstance(one, int | float) for one in also.values()):
        raise ValueError(f"{entry['task']} has a further metric that is no number")
    lists = {name: _texts(entry[name]) for name in ("experts", "labels", "clusters")}
    if any(len(lists[name]) not in (0, len(items)) for name in ("labels", "clusters")):
        raise ValueError(f"{entry['task']} has not one label or cluster for each item")
    return Score(**{**entry, **lists, "chance": float(entry["chance"]), "items": tuple(map(float, items))})


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _texts(values: object) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"{str(values)[:40]} is no list of texts")
    return tuple(values)


def evaluate(
    model: Any,
    tokenizer: Any,
    suite: Suite,
    *,
    batch_tokens: int = 8192,
    on_task: Callable[[Score], None] | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> SuiteResult:
    """Scores a causal language model on every benchmark of a suite.

    Args:
        model: a transformers causal LM; put into evaluation mode, used in its own dtype and on its own device.
        tokenizer: its tokenizer.
        batch_tokens: tokens per forward pass.
        on_task: called with each benchmark's score when it is known.
        on_progress: called with (benchmark, items done, items in all).

    Raises:
        BenchmarkError: a benchmark cannot be run, or lacks the metric that it should report.
    """
    from lm_eval import evaluator

    from phase8.benchmarks.lm import Phase8LM

    lm = Phase8LM(model, tokenizer, cache=suite.cache, batch_tokens=batch_tokens, fit_answers=True)
    scores: dict[str, Score] = {}
    for task in suite.tasks:
        loaded = {name: suite.loaded[name] for name in (*task.runs, *task.beside)}
        with _quiet():
            chosen = _chosen(task, loaded, suite.samples)
        loaded = {name: loaded[name] for name in chosen}
        for one in loaded.values():
            one.set_fewshot_seed(FEWSHOT_SEED)  # every evaluation draws the same examples, as a fresh lm-eval does
        if on_progress is not None:
            items = sum(len(chosen[name]) for name in task.runs if name in chosen)
            lm.on_progress = _by_items(partial(on_progress, task.name), items)
        lm.prompts, lm.cut_prompts, lm.shortened = 0, 0, None
        with _quiet():
            results = evaluator.evaluate(
                lm,
                {"tasks": loaded},
                samples=None if suite.samples is None else chosen,
                bootstrap_iters=0,
                log_samples=True,
                confirm_run_unsafe_code=True,  # asked for when the suite was loaded, and run in a sandbox only
            )
        scores[task.name] = replace(_score(task, results), note=_note(lm))
        if on_task is not None:
            on_task(scores[task.name])
    if not suite.text:
        return SuiteResult(scores=scores, missing=suite.missing)
    bits = document_bits(model, tokenizer, suite.text, batch_tokens=batch_tokens)
    size = sum(len(document.encode()) for document in suite.text)
    return SuiteResult(scores=scores, missing=suite.missing, bits_per_byte=sum(bits) / size, document_bits=tuple(bits))


def _chosen(task: Task, loaded: dict[str, Any], samples: int | None) -> dict[str, list[int]]:
    """For each of lm-eval's tasks, which of its items to take; a task of which none is taken is left out."""
    places = [(name, number) for name in task.runs for number in range(len(loaded[name].eval_docs))]
    chosen: dict[str, list[int]] = {}
    for position in spread(len(places), samples):
        name, number = places[position]
        chosen.setdefault(name, []).append(number)
    for name in task.beside:
        chosen[name] = spread(len(loaded[name].eval_docs), samples)
    return chosen


def _by_items(report: Callable[[int, int], None], items: int) -> Callable[[int, int], None]:
    """Turns progress in requests (several per item) into progress in items."""
    return lambda done, total: report(items * done // total, items)


def _score(task: Task, results: dict[str, Any]) -> Score:
    metric, filter_name = task.metric.split(",")
    rows: list[dict[str, Any]] = []
    for name in task.runs:
        ours = [row for row in results["samples"].get(name, ()) if row["filter"] == filter_name]
        rows += sorted(ours, key=lambda row: row["doc_id"])
    if not rows or metric not in rows[0]:
        run = next(name for name in task.runs if name in results["results"])
        offered = sorted(key for key in results["results"][run] if "," in key and "stderr" not in key)
        raise BenchmarkError(
            f"{task.name} does not report {task.metric}", where="suite.json", fix=f"it reports {', '.join(offered)}"
        )
    label = next((name for name in ("rule", "subject") if name in rows[0]["doc"]), None)
    shared = next((name for name in CLUSTER_FIELDS if name in rows[0]["doc"]), None)
    return Score(
        task=task.name,
        role=task.role,
        stands_for=task.stands_for,
        experts=task.experts,
        chance=task.chance,
        items=tuple(float(row[metric]) for row in rows),
        labels=tuple(str(row["doc"][label]) for row in rows) if label else (),
        clusters=tuple(str(row["doc"][shared]) for row in rows) if shared else (),
        also=_also(task, results),
    )


def _note(lm: Phase8LM) -> str:
    parts = []
    if lm.cut_prompts:
        parts.append(
            f"{lm.cut_prompts} of {lm.prompts} prompts are longer than the model's window of {lm.max_length} tokens "
            "and were cut at their beginning, as lm-eval does"
        )
    if lm.shortened:
        parts.append(f"answers are cut at {lm.shortened[1]} tokens instead of {lm.shortened[0]}")
    return "; ".join(parts)


def _also(task: Task, results: dict[str, Any]) -> dict[str, float]:
    """The further metrics of a benchmark that is one task of lm-eval's, and those of the tasks beside it."""
    found: dict[str, float] = {}
    for name in (*(task.runs if len(task.runs) == 1 else ()), *task.beside):
        for key, value in results["results"][name].items():
            if "," in key and "stderr" not in key and isinstance(value, int | float):
                found[key if name in task.runs else f"{name} {key}"] = float(value)
    found.pop(task.metric, None)
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval announces every step and draws bars of its own; the run has its own ways to say so."""
    import lm_eval.api.task as module

    bar = module.tqdm
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    module.tqdm = partial(bar, disable=True)
    try:
        with without_dataset_bars():
            yield
    finally:
        module.tqdm = bar
