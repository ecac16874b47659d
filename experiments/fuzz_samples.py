"""Small valid artifacts of every codec, for `experiments/fuzz.py` to break: what opening them gives and takes."""

from __future__ import annotations

import json
import math
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from phase8.artifact.read import parse, strict_json
from phase8.artifact.write import file_bytes
from phase8.codecs import EncodedGroup, get_codec
from phase8.codecs.lattice.encode import LatticeConfig
from phase8.codecs.lattice.train import LatticeTrainable
from phase8.config import Axis, HyperConfig, SeedLMConfig, Trajectory, VPTQConfig, Winding
from phase8.errors import ArtifactError
from phase8.runtime.llama import LlamaShape

CONFIG = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
DEEP = {"num_hidden_layers": 3}
"""Change to `CONFIG` of the samples over depth, which need layers to run over."""


def series_over_depth(kind: Trajectory, degree: int, **settings: int) -> HyperConfig:
    return HyperConfig(trajectory_type=kind, axis=Axis.depth, degree=degree, **settings)


CODECS: dict[str, list[tuple[str, Any]]] = {
    "plain": [("plain", None)],
    "seedlm 4 bit": [("seedlm", SeedLMConfig(seed_bits=8))],
    "seedlm 1 bit": [("seedlm", SeedLMConfig(seed_bits=6, bits=1, block_size=12, latent_dim=4))],
    "vptq 8 bit": [("vptq", VPTQConfig(codebook_size=20, vector_dim=4))],
    "vptq residual": [("vptq", VPTQConfig(codebook_size=16, vector_dim=6, num_codebooks=3, codebook_bits=16))],
    "vptq outliers": [
        (
            "vptq",
            VPTQConfig(codebook_size=12, outlier_columns=0.1, outlier_vector_dim=2, outlier_codebook_size=9),
        )
    ],
    "vptq product": [("vptq", VPTQConfig(codebook_size=10, vector_dim=6, product=3, num_codebooks=2))],
    "hyper winding": [("hyper", HyperConfig(dims=3, grid=60, classes=2, winding=Winding.reciprocal))],
    "hyper published": [("hyper", HyperConfig(dims=2, grid=1600, classes=3, winding=Winding.power, side=0.1))],
    "hyper polynomial": [("hyper", HyperConfig(trajectory_type=Trajectory.polynomial, block_size=16, degree=4))],
    "hyper fourier": [("hyper", HyperConfig(trajectory_type=Trajectory.fourier, degree=12, coefficient_bits=6))],
    "hyper manifold": [
        ("hyper", HyperConfig(trajectory_type=Trajectory.manifold, block_size=20, width=8, coefficient_bits=5))
    ],
    "hyper depth": [("hyper", series_over_depth(Trajectory.polynomial, 1, block_size=3))],
    "hyper fourier depth": [("hyper", series_over_depth(Trajectory.fourier, 2, coefficient_bits=5))],
    "lattice": [("lattice", LatticeConfig(start_step=0.9))],
    "lattice shared": [("lattice", LatticeConfig(start_step=0.9))],
    "all codecs": [
        ("seedlm", SeedLMConfig(seed_bits=6)),
        ("vptq", VPTQConfig(codebook_size=8, vector_dim=4)),
        ("hyper", HyperConfig(dims=4, grid=63)),
    ],
}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A valid artifact and what opening it honestly gives and takes."""

    name: str
    raw: bytes
    config: bytes
    weights: dict[str, bytes]
    seconds: float
    peak_bytes: int


def open_artifact(raw: bytes, config: bytes) -> dict[str, np.ndarray]:
    """What `phase8.runtime.load_model` does, of files in memory."""
    try:
        fields = strict_json(config)
    except ValueError as error:
        raise ArtifactError(f"config.json is not JSON: {error}") from error
    shape = LlamaShape.from_config(fields)
    manifest = parse(raw)
    manifest.vouch("config.json", config)
    manifest.require_outline(shape.outline())
    wanted = shape.tensor_shapes()
    manifest.require({name: math.prod(extents) for name, extents in wanted.items()})
    return {name: weights.reshape(wanted[name]) for name, weights in manifest.artifact().tensors()}


def measured(call: Callable[[], Any]) -> tuple[Any, float, int]:
    """Returns what a call returned (or the exception that it raised), its seconds and its peak memory."""
    tracemalloc.start()  # for this call alone: making mutations is slow enough untraced
    start = time.process_time()
    try:
        result = call()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic in a library written in Rust is no Exception
        result = error
    seconds = time.process_time() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return result, seconds, peak


def _seconds(found: tuple[Any, float, int]) -> float:
    return found[1]


def _tensors(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(8)
    shapes = LlamaShape.from_config(config).tensor_shapes()
    tensors = {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()}
    # A heavy tail and many zeros make streams that every one of the entropy coder's forms is best for.
    tensors["model.embed_tokens.weight"] *= tensors["model.embed_tokens.weight"].abs() > 0.06
    return tensors


def _sharing(matrices: dict[str, torch.Tensor]) -> EncodedGroup:
    """A lattice whose second layer has the integers of the first, under steps of its own."""
    pairs = {name: name.replace(".layers.1.", ".layers.0.") for name in matrices if ".layers.1." in name}
    parts = {name: tensor for name, tensor in matrices.items() if name not in pairs}
    steps = {name: 0.9 * float(tensor.std()) for name, tensor in matrices.items()}
    shapes = {name: (tensor.shape[0], tensor.shape[1]) for name, tensor in matrices.items()}
    return LatticeTrainable(parts, steps, shapes, pairs).export()


@cache
def samples() -> tuple[Sample, ...]:
    """Makes the valid artifacts, the same every time, once for a process."""
    made = []
    for name, codecs in CODECS.items():
        fields = CONFIG | (DEEP if name.endswith(("depth", "shared")) else {})
        config, tensors = json.dumps(fields).encode(), _tensors(fields)
        matrices = {name: tensor for name, tensor in tensors.items() if tensor.dim() == 2}
        groups: list[EncodedGroup] = []
        for number, (codec, settings) in enumerate(codecs):
            mine = dict(list(matrices.items())[number :: len(codecs)])
            shares = name == "lattice shared"
            groups.append(_sharing(mine) if shares else get_codec(codec).encode(mine, settings, importance={}, seed=0))
        vectors = {name: tensor for name, tensor in tensors.items() if tensor.dim() == 1}
        groups.append(get_codec("plain").encode(vectors, None, importance={}, seed=0))
        source = {"hash": "0" * 64, "parameters": sum(tensor.numel() for tensor in tensors.values())}
        raw = file_bytes(groups, codecs[0][0], source, {"config.json": config})
        open_artifact(raw, config)  # tables that are kept from one call to the next
        weights, seconds, peak = min((measured(partial(open_artifact, raw, config)) for _ in range(5)), key=_seconds)
        if isinstance(weights, BaseException):
            raise weights
        exact = {key: value.tobytes() for key, value in weights.items()}
        made.append(Sample(name=name, raw=raw, config=config, weights=exact, seconds=seconds, peak_bytes=peak))
    return tuple(made)
