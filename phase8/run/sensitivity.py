"""Which tensors the failed integration tests of an attempt depend on."""

from __future__ import annotations

from phase8.artifact.read import read_artifact
from phase8.benchmarks.probes import choice_sensitivity, probes_of
from phase8.codecs.pools import is_protected
from phase8.config import CompressionConfig
from phase8.model.source import as_parameters, is_matrix
from phase8.run.context import Context
from phase8.run.result import Attempt
from phase8.run.retry import Sensitivity, integration_failures
from phase8.train.divergence import tensor_sensitivity

SENSITIVITY_SEQUENCES = 8
PROTECTED_SHARE = 0.05
"""A larger part of the model is not left in 16 bits on a recommendation: it would undo the compression."""


def measure_sensitivity(run: Context, config: CompressionConfig, attempt: Attempt) -> dict[str, Sensitivity]:
    """By failed test: how it depends on each tensor that may be protected; nothing where nothing can be."""
    failed = integration_failures(attempt.verdict)
    if not failed or config.limit_of(attempt.stage) is not None:
        return {}
    assert run.suite is not None
    network = run.source.network
    decoded = read_artifact(attempt.directory).decode()
    weights = as_parameters(network, decoded, where=str(attempt.directory))
    room = PROTECTED_SHARE * run.source.parameter_count
    matrices = {
        name: weight
        for name, weight in weights.items()
        if is_matrix(run.source.parameters[name][1])
        and weight.numel() <= room
        and not is_protected(name, config.protect)
    }
    probes = {name: items for name, items in probes_of(run.suite).items() if name in failed and items}
    found = {}
    if probes:
        measured = choice_sensitivity(network, run.source.tokenizer, matrices, probes)
        found = {name: Sensitivity(per_weight=per_weight) for name, per_weight in measured.items()}
    if bare := [name for name in failed if name not in probes]:
        _, held_out = run.calibration.tokens(config)
        on_text = tensor_sensitivity(network, matrices, held_out[:SENSITIVITY_SEQUENCES])
        found |= dict.fromkeys(bare, Sensitivity(per_weight=on_text, on_probes=False))
    return found
