"""Do probes find the tensors on which the graded questions of edge of chaos depend, better than text does?

    python -m experiments.probes

encodes the embedded model with VPTQ, without calibration or training, at two rates, and holds two measures per weight
(`choice_sensitivity` on probes, `tensor_sensitivity` on calibration text) against two figures of each tensor on the
graded questions, per weight: `alone`, the KL divergence over the choices with only this tensor compressed, and `gain`,
what the divergence of the wholly compressed model loses when this tensor is put back. Agreement is Spearman's rank
correlation over the tensors. About two minutes on one core; prints the table in `experiments/results/probes.md`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from phase8.benchmarks.lm import Phase8LM
from phase8.benchmarks.probes import _answers, choice_sensitivity, probes_of
from phase8.benchmarks.suite import EDGE_OF_CHAOS, load_suite
from phase8.codecs import get_codec
from phase8.config import VPTQConfig
from phase8.model.source import load_source
from phase8.model.text import token_sequences
from phase8.run.calibration import CALIBRATION_SEED
from phase8.run.sensitivity import PROTECTED_SHARE, SENSITIVITY_SEQUENCES
from phase8.train.divergence import tensor_sensitivity

RATES = ((64, 1), (256, 2))
SEQUENCE_TOKENS = 128

Figures = Mapping[str, float]
"""By tensor."""


def spearman(one: Figures, other: Figures) -> float:
    """Rank correlation of two figures by tensor; there are no ties."""
    ranks = [np.argsort(np.argsort([figures[name] for name in one])) for figures in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


def place(pick: str, figures: Figures) -> int:
    """1 for the tensor with the largest figure."""
    return sorted(figures, key=figures.__getitem__, reverse=True).index(pick) + 1


def main() -> None:
    """Prints two rows for each rate."""
    torch.set_num_threads(1)
    source, suite = load_source("embedded:reference"), load_suite(skip_expert_benchmarks=True)
    task = next(task for task in suite.tasks if task.stands_for == EDGE_OF_CHAOS)
    graded, probes = list(suite.loaded[task.name].eval_docs), probes_of(suite)["edge_of_chaos"]
    text = token_sequences(
        source.tokenizer, sequences=SENSITIVITY_SEQUENCES, length=SEQUENCE_TOKENS, seed=CALIBRATION_SEED, path=None
    )

    def answers(weights: Mapping[str, Tensor]) -> list[np.ndarray]:
        network = copy.deepcopy(source.network)
        network.load_state_dict(dict(weights), strict=False)
        return _answers(Phase8LM(network, source.tokenizer, batch_tokens=1024), {"graded": graded})["graded"]

    original = answers({})

    def divergence(weights: Mapping[str, Tensor]) -> float:
        pairs = zip(original, answers(weights), strict=True)
        return float(np.mean([(np.exp(p_C) * (p_C - q_C)).sum() for p_C, q_C in pairs]))

    print("| VPTQ | measure | rank correlation with `alone` | with `gain` | its first tensor in `alone` | in `gain` |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size, books in RATES:
        settings = VPTQConfig(codebook_size=size, num_codebooks=books)
        group = get_codec("vptq").encode(source.matrices(), settings, importance={}, seed=0)
        coded = {name: torch.from_numpy(matrix) for name, matrix in get_codec("vptq").decode(group).items()}
        room = PROTECTED_SHARE * source.parameter_count
        small = {name: matrix for name, matrix in coded.items() if matrix.numel() <= room}
        whole = divergence(coded)
        alone = {name: divergence({name: matrix}) / matrix.numel() for name, matrix in small.items()}
        gain = {
            name: (whole - divergence({other: coded[other] for other in coded if other != name})) / matrix.numel()
            for name, matrix in small.items()
        }
        on_probes = choice_sensitivity(source.network, source.tokenizer, small, {"edge_of_chaos": probes})
        measures = {
            "probes": on_probes["edge_of_chaos"], "text": tensor_sensitivity(source.network, small, text)
        }  # fmt: skip
        for label, measure in measures.items():
            first = max(measure, key=measure.__getitem__)
            print(
                f"| {books} of {size} | {label} | {spearman(measure, alone):.2f} | {spearman(measure, gain):.2f} | "
                f"{place(first, alone)} of {len(small)} | {place(first, gain)} of {len(small)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
