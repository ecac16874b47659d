"""Every adjustment that a failed gate can lead to moves the outcome as intended: codecs and training are really run.

`test_recovery.py` shows which adjustment follows which failure; here each is applied, and its effect measured.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import islice

import pytest
import torch

from phase8.benchmarks.evaluate import evaluate
from phase8.benchmarks.probes import choice_sensitivity, probes_of
from phase8.benchmarks.suite import EDGE_OF_CHAOS, load_suite
from phase8.codecs import get_codec
from phase8.config import (
    CompressionConfig,
    GrokfastConfig,
    HyperConfig,
    OptimizerConfig,
    SeedLMConfig,
    Trajectory,
    VPTQConfig,
)
from phase8.model.importance import collect_importance
from phase8.model.source import load_source
from phase8.model.text import token_sequences
from phase8.run.retry import Recommendation, _higher_rates, adjust
from phase8.train.reconstruct import reconstruct

CONFIG = CompressionConfig(
    seedlm=SeedLMConfig(seed_bits=10),
    vptq=VPTQConfig(codebook_size=16, num_codebooks=1),
    optimizer=OptimizerConfig(batch_sequences=4, sequence_tokens=32, calibration_sequences=8, held_out_sequences=8),
)
HYPERS = {
    "ergodic": HyperConfig(trajectory_type=Trajectory.ergodic, dims=4, grid=15),
    "polynomial": HyperConfig(trajectory_type=Trajectory.polynomial, block_size=32, degree=3),
    "whole tensor": HyperConfig(trajectory_type=Trajectory.polynomial, block_size=0, degree=3),
    "manifold": HyperConfig(trajectory_type=Trajectory.manifold, block_size=24, inputs=2, width=16),
    "fourier": HyperConfig(trajectory_type=Trajectory.fourier, block_size=32, degree=3),
}
VPTQS = {
    "vptq product": replace(CONFIG.vptq, product=2),
}
STAGES = {
    "seedlm": ("seedlm", CONFIG),
    "vptq": ("vptq", CONFIG),
    **{name: ("vptq", replace(CONFIG, vptq=vptq)) for name, vptq in VPTQS.items()},
    **{name: ("hyper", replace(CONFIG, hyper=hyper)) for name, hyper in HYPERS.items()},
}


def options():
    """Each single change of rate that a recommendation is made of, with its stage and the settings it changes."""
    for label, (stage, config) in STAGES.items():
        seen = []
        for severe in (True, False):
            for change in _higher_rates(stage, config, severe):
                if change not in seen:
                    seen.append(change)
                    what = ", ".join(f"{name}={value}" for name, value in change.items())
                    yield pytest.param(stage, config, change, id=f"{label}: {what}")


@pytest.fixture(scope="module")
def weights():
    generator = torch.Generator().manual_seed(0)
    return {"w": 0.02 * torch.randn(96, 64, generator=generator) * torch.rand(96, 64, generator=generator)}


def error(weights, stage, config):
    codec = get_codec(stage)
    group = codec.encode(weights, getattr(config, stage), importance={}, seed=0)
    decoded = torch.from_numpy(codec.decode(group)["w"])
    return float(((weights["w"] - decoded) ** 2).sum() / (weights["w"] ** 2).sum())


def applied(config, change):
    return adjust(config, Recommendation(action="", adjustments=change, reason=""))


@pytest.mark.parametrize(("stage", "config", "change"), list(options()))
def test_a_higher_rate_lowers_the_error(weights, stage, config, change):
    assert error(weights, stage, applied(config, change)) < error(weights, stage, config)


@pytest.fixture(scope="module")
def source():
    return load_source("embedded:reference")


def sequences(source, count):
    return token_sequences(source.tokenizer, sequences=count, length=32, seed=5)


def test_more_calibration_brings_the_hessians_nearer_to_those_of_other_text(source):
    """The adjustment doubles the sequences; the error of a mean falls with their square root."""
    names = list(islice((n for n in source.matrices() if "mlp.down_proj" in n), 2))
    text = sequences(source, 1024)
    truth = collect_importance(source.network, text[512:].split(64), names)
    misses = []
    for count in (16, 32, 64):
        found = collect_importance(source.network, text[:count].split(16), names)
        misses.append(sum(float((found[n].hessian_II - truth[n].hessian_II).norm()) for n in names))
    assert misses[0] > misses[1] > misses[2]


def test_training_longer_brings_the_model_nearer_to_the_original(source):
    matrices = {name: m for name, m in source.matrices().items() if "layers.0.mlp" in name}
    groups = [get_codec("vptq").encode(matrices, CONFIG.vptq, importance={}, seed=0)]
    text = sequences(source, 40)
    short = GrokfastConfig(iterations=10, enabled=False)
    longer = applied(replace(CONFIG, grokfast=short), {"grokfast.iterations": 60}).grokfast
    divergence = [
        reconstruct(
            source.network, groups, calibration=text[8:], held_out=text[:8], config=CONFIG.optimizer,
            grokfast=grokfast, seed=0,
        ).held_out_after
        for grokfast in (short, longer)
    ]  # fmt: skip
    assert longer.iterations == 60 and divergence[1] < divergence[0]


def test_protecting_what_edge_of_chaos_depends_on_brings_it_back_towards_the_baseline(source):
    """On the graded questions, which had no part in the choice; the control protects as many weights elsewhere."""
    suite = load_suite(skip_expert_benchmarks=True)
    task = next(task for task in suite.tasks if task.stands_for == EDGE_OF_CHAOS)
    suite = replace(suite, tasks=(task,), text=())
    codec = get_codec("vptq")
    group = codec.encode(source.matrices(), VPTQConfig(codebook_size=64, num_codebooks=1), importance={}, seed=0)
    coded = {name: torch.from_numpy(matrix) for name, matrix in codec.decode(group).items()}
    attention = {name: matrix for name, matrix in coded.items() if matrix.shape == (256, 256)}
    probes = {"edge_of_chaos": probes_of(suite)["edge_of_chaos"]}
    found = choice_sensitivity(source.network, source.tokenizer, attention, probes)["edge_of_chaos"]
    most, least = max(found, key=found.get), min(found, key=found.get)

    def accuracy(protected):
        network = copy.deepcopy(source.network)
        network.load_state_dict({name: matrix for name, matrix in coded.items() if name != protected}, strict=False)
        return evaluate(network, source.tokenizer, suite).scores[task.name].value

    unprotected = accuracy(None)
    assert unprotected < accuracy(most) < 0.75
    assert accuracy(least) < accuracy(most)
