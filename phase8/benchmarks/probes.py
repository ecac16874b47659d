"""On which tensors a model's answers to an integration test depend, measured on questions that grade nobody.

A retry protects what the failed test depends on. To find that on the graded questions would tune the model on its own
examination, so there are probes, questions of the same kind that no score counts:

    edge of chaos    the questions that calibrated the pool (`edge.py`; for the committed pool, those of
                     `world.items.CALIBRATION_SEED`), in the pool's mix of levels
    the four rules   pairs from the embedded world that share no key with the committed ones, also where a user's own
                     file is asked: all its pairs are graded

For each tensor, put compressed into an otherwise original network, the sensitivity is the mean over the probes of
KL(p || q) per weight, where p and q are the original's and the changed network's distributions over a question's
choices: the softmax of their log-likelihoods, which the tests compare. It needs no right answer (a quarter of edge of
chaos the baseline gets wrong), is never negative, and weighs most the questions whose answers are near to flipping; the
margin of the right answer is largest in movement where nothing flips.

    original  log p = ln (0.6, 0.4), changed (0.5, 0.5):  KL = 0.6 ln 1.2 + 0.4 ln 0.8 = 0.020 nats

Per weight, since protecting a tensor costs bytes in proportion to its size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor

from phase8.benchmarks.edge import Item, probes_like
from phase8.benchmarks.suite import EDGE_OF_CHAOS, EUDAIMONIA, RULES, Suite
from phase8.model.source import unique_parameters

PROBES_PER_RULE = 16
BATCH_TOKENS = 1024
"""The tests' questions differ in length: in one large batch, two thirds of the tokens would be padding."""


def probes_of(suite: Suite) -> dict[str, list[Item]]:
    """The probes of each integration test of a suite by the name of its check in a verdict; a list may be empty."""
    from phase8.world.items import CALIBRATION_ITEMS, CALIBRATION_SEED, conduct_probes, edge_items

    probes: dict[str, list[Item]] = {}
    for task in suite.tasks:
        if task.stands_for not in (EDGE_OF_CHAOS, EUDAIMONIA):
            continue
        graded = list(suite.loaded[task.name].eval_docs)
        if task.stands_for == EDGE_OF_CHAOS:
            if suite.edge_pool:
                probes["edge_of_chaos"] = list(suite.edge_probes)
            else:
                probes["edge_of_chaos"] = probes_like(edge_items(CALIBRATION_SEED, CALIBRATION_ITEMS), graded)
        else:
            asked = {item["prompt"] for item in graded}
            free = [item for item in conduct_probes(PROBES_PER_RULE) if item["prompt"] not in asked]
            probes |= {f"rule/{rule}": [item for item in free if item["rule"] == rule] for rule in RULES}
    return probes


def choice_sensitivity(
    network: Any, tokenizer: Any, weights: Mapping[str, Tensor], probes: Mapping[str, Sequence[Item]]
) -> dict[str, dict[str, float]]:
    """How far the answers to each test's probes move when one tensor alone is replaced.

    Costs one pass over all probes per tensor.

    Args:
        network: the original; its parameters are exchanged one at a time and are its own again at the end.
        weights: what replaces each tensor, in the shape of the network's parameter.
        probes: for each test at least one question with `prompt` and `choices`.

    Returns:
        For each test: mean KL divergence over its probes by tensor, in nats per weight.
    """
    from phase8.benchmarks.lm import Phase8LM  # lm-eval takes seconds to import

    lm = Phase8LM(network, tokenizer, batch_tokens=BATCH_TOKENS)
    parameters = unique_parameters(network)
    original = ask_choices(lm, probes)
    found: dict[str, dict[str, float]] = {test: {} for test in probes}
    for name, weight in weights.items():
        with _replaced(parameters[name][1], weight):
            changed = ask_choices(lm, probes)
        for test in probes:
            divergences = [
                float((np.exp(p_C) * (p_C - q_C)).sum()) for p_C, q_C in zip(original[test], changed[test], strict=True)
            ]
            found[test][name] = float(np.mean(divergences)) / weight.numel()
    return found


def ask_choices(lm: Any, probes: Mapping[str, Sequence[Item]]) -> dict[str, list[np.ndarray]]:
    """For each test's probes the log-probabilities of their choices, [C] each, summing to one, in float64."""
    from lm_eval.api.instance import Instance

    # As lm-eval asks multiple-choice tasks: a space between question and choice.
    asked = [item for items in probes.values() for item in items]
    pairs = [(item["prompt"], f" {choice}") for item in asked for choice in item["choices"]]
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    logs = iter([log for log, _ in lm.loglikelihood(requests)])
    answers: dict[str, list[np.ndarray]] = {}
    for test, items in probes.items():
        scores = [np.array([next(logs) for _ in item["choices"]]) for item in items]
        answers[test] = [logs_C - np.logaddexp.reduce(logs_C) for logs_C in scores]
    return answers


@contextmanager
def _replaced(parameter: Tensor, weight: Tensor) -> Iterator[None]:
    """While open, the parameter (and whatever is tied to it) has other values."""
    original = parameter.data
    parameter.data = weight.to(device=original.device, dtype=original.dtype)
    try:
        yield
    finally:
        parameter.data = original
