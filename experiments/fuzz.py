"""Opens hundreds of thousands of broken and forged artifacts, and checks that none does harm.

    python -m experiments.fuzz                      # 200,000 mutations -> experiments/results/fuzz.{md,json}
    python -m experiments.fuzz --resume             # goes on where an interrupted campaign stopped
    python -m experiments.fuzz --replay 17 3        # chunk 17, mutation 3, with its traceback

Small valid artifacts of every codec are mutated: cut, bits flipped, bytes overwritten, manifests edited (numbers
changed, fields swapped, dropped or added, counts made huge or negative, types replaced), streams replaced, manifests
that inflate, `config.json` edited. A checksum rejects nearly all of these at the door, so every edit of a manifest or a
stream is made twice as likely to have its checksums *recomputed* as not: that is what an attacker would do, and what
reaches the checks behind the door.

After each mutation the file must have been

- rejected with `ArtifactError`, or
- decoded to the right weights, bit for bit, or,
- only where a checksum was recomputed: decoded to finite float32 weights of the architecture's shapes;

within 1 s of processor time, without a warning, and with no more than twice the memory that the honest file takes and
1 MiB (peak of what `tracemalloc` counts while it is opened: Python's objects and numpy's arrays, not the entropy
coder's own tables). Chunk c of a campaign draws from the seed (campaign seed, c), so that each can be repeated alone.
"""

from __future__ import annotations

import argparse
import base64
import copy
import json
import math
import struct
import time
import traceback
import tracemalloc
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from phase8.artifact.read import parse, strict_json
from phase8.artifact.write import file_bytes
from phase8.codecs import EncodedGroup, get_codec
from phase8.codecs.lattice.encode import LatticeConfig
from phase8.config import Axis, HyperConfig, SeedLMConfig, Trajectory, VPTQConfig, Winding
from phase8.errors import ArtifactError
from phase8.files import write_atomic
from phase8.lossless import entropy
from phase8.runtime.llama import LlamaShape

RESULTS = Path(__file__).parent / "results"
CHUNK = 1000
SECONDS_LIMIT = 1.0
MEMORY_LIMIT, MEMORY_BASE = 2.0, 1 << 20
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


@dataclass(kw_only=True)
class Tally:
    """What a campaign has seen."""

    mutations: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    by_family: dict[str, Counter[str]] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    slowest_seconds: float = 0.0
    slowest: str = ""
    largest_ratio: float = 0.0
    largest: str = ""
    failures: list[str] = field(default_factory=list)


# ---------------------------------------------------------------------------------------------------- honest artifacts


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


def _measured(call: Callable[[], Any]) -> tuple[Any, float, int]:
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


def _seconds(measured: tuple[Any, float, int]) -> float:
    return measured[1]


def _tensors(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(8)
    shapes = LlamaShape.from_config(config).tensor_shapes()
    tensors = {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()}
    # A heavy tail and many zeros make streams that every one of the entropy coder's forms is best for.
    tensors["model.embed_tokens.weight"] *= tensors["model.embed_tokens.weight"].abs() > 0.06
    return tensors


def samples() -> list[Sample]:
    """Makes the valid artifacts, the same every time."""
    made = []
    for name, codecs in CODECS.items():
        fields = CONFIG | (DEEP if name.endswith("depth") else {})
        config, tensors = json.dumps(fields).encode(), _tensors(fields)
        matrices = {name: tensor for name, tensor in tensors.items() if tensor.dim() == 2}
        groups: list[EncodedGroup] = []
        for number, (codec, settings) in enumerate(codecs):
            mine = dict(list(matrices.items())[number :: len(codecs)])
            groups.append(get_codec(codec).encode(mine, settings, importance={}, seed=0))
        vectors = {name: tensor for name, tensor in tensors.items() if tensor.dim() == 1}
        groups.append(get_codec("plain").encode(vectors, None, importance={}, seed=0))
        source = {"hash": "0" * 64, "parameters": sum(tensor.numel() for tensor in tensors.values())}
        raw = file_bytes(groups, codecs[0][0], source, {"config.json": config})
        open_artifact(raw, config)  # tables that are kept from one call to the next
        weights, seconds, peak = min((_measured(partial(open_artifact, raw, config)) for _ in range(5)), key=_seconds)
        if isinstance(weights, BaseException):
            raise weights
        exact = {key: value.tobytes() for key, value in weights.items()}
        made.append(Sample(name=name, raw=raw, config=config, weights=exact, seconds=seconds, peak_bytes=peak))
    return made


# ----------------------------------------------------------------------------------------------------------- mutations


def take_apart(raw: bytes) -> tuple[dict[str, Any], dict[str, Any], list[bytes]]:
    """Returns a file's header, its manifest and the blobs of its pools."""
    (size,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + size])
    manifest = json.loads(zlib.decompress(base64.b64decode(header["__metadata__"]["manifest"])))
    blobs, position = [], 8 + size
    for pool in manifest["pools"]:
        blobs.append(raw[position : position + pool[6]])
        position += pool[6]
    return header, manifest, blobs


def put_together(header: dict[str, Any], text: bytes, payload: bytes, *, checksum: bool) -> bytes:
    """The inverse; with `checksum`, that of the manifest is recomputed, and so are the payload's extents."""
    metadata = header["__metadata__"]
    if isinstance(metadata, dict):
        metadata["manifest"] = base64.b64encode(zlib.compress(text)).decode()
        if checksum:
            metadata["manifest_crc32"] = str(zlib.crc32(text))
    if checksum:
        header["payload"] |= {"shape": [len(payload)], "data_offsets": [0, len(payload)]}
    front = json.dumps(header).encode()
    return struct.pack("<Q", len(front)) + front + payload


Places = list[tuple[Any, Any]]


def _places(node: Any) -> Places:
    """Every (container, key) in a JSON tree."""
    found: Places = []
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in list(children):
        found.append((node, key))
        found.extend(_places(child))
    return found


def _strange(draw: np.random.Generator, old: Any) -> Any:
    """A value that does not belong where `old` stands."""
    if isinstance(old, int) and not isinstance(old, bool) and draw.random() < 0.5:
        near = [old + 1, old - 1, -old, 2 * old, old // 2, old << 8, old << 20, old << 40, old + 2**32]
        return near[draw.integers(len(near))]
    values = [
        0, 1, -1, 2, 7, 255, 256, 65535, 65536, 2**24, 2**31, 2**32 - 1, 2**32, 2**36, 2**53, 2**63, 2**64, 10**30,
        0.5, -0.0, 1e308, True, False, None, "", "0", "x" * 300, "ergodic", "fourier", "depth", "float32", "ans",
        "packed", [], {}, [[]], [0], [1, 2, 3], {"a": 1}, [[["x", 1, 1]]],
    ]  # fmt: skip
    return values[draw.integers(len(values))]


def _edit_tree(draw: np.random.Generator, tree: Any) -> str:
    """Makes one change somewhere in a JSON tree; returns what kind."""
    places = _places(tree)
    node, key = places[draw.integers(len(places))]
    kind = ["value", "value", "value", "drop", "repeat", "swap", "add", "rename"][draw.integers(8)]
    if kind == "value":
        node[key] = _strange(draw, node[key])
    elif kind == "drop":
        del node[key]
    elif kind == "repeat" and isinstance(node, list):
        node.insert(key, copy.deepcopy(node[key]))
    elif kind == "swap":
        other, place = places[draw.integers(len(places))]
        a, b = copy.deepcopy(node[key]), copy.deepcopy(other[place])
        node[key] = b
        if place in other if isinstance(other, dict) else place < len(other):
            other[place] = a
    elif kind == "rename" and isinstance(node, dict):
        node[f"{key}_"] = node.pop(key)
    elif isinstance(node, dict):
        node[f"extra_{draw.integers(100)}"] = _strange(draw, None)
    else:
        node.append(_strange(draw, node[key]))
    return kind


def _random_bytes(draw: np.random.Generator, count: int) -> bytes:
    return draw.integers(0, 256, count, dtype=np.uint8).tobytes()


def _flip(draw: np.random.Generator, raw: bytes) -> bytes:
    data = bytearray(raw)
    for _ in range(draw.integers(1, 9)):
        data[draw.integers(len(data))] ^= 1 << int(draw.integers(8))
    return bytes(data)


def _truncate(draw: np.random.Generator, sample: Sample) -> tuple[bytes, bytes, bool]:
    raw, at = sample.raw, int(draw.integers(len(sample.raw)))
    kind = draw.integers(4)
    if kind == 0:  # anywhere
        return raw[:at], sample.config, False
    if kind == 1:  # near the end
        return raw[: len(raw) - int(draw.integers(1, 40))], sample.config, False
    if kind == 2:  # a piece missing in the middle
        return raw[:at] + raw[at + int(draw.integers(1, 64)) :], sample.config, False
    return raw + _random_bytes(draw, int(draw.integers(1, 64))), sample.config, False


def _bits(draw: np.random.Generator, sample: Sample) -> tuple[bytes, bytes, bool]:
    return _flip(draw, sample.raw), sample.config, False


def _overwrite(draw: np.random.Generator, sample: Sample) -> tuple[bytes, bytes, bool]:
    raw, size = bytearray(sample.raw), int(draw.integers(1, 64))
    at, source = (int(draw.integers(len(raw) - size)) for _ in range(2))
    raw[at : at + size] = [bytes(size), b"\xff" * size, bytes(raw[source : source + size]), _random_bytes(draw, size)][
        draw.integers(4)
    ]
    return bytes(raw), sample.config, False


def _header(draw: np.random.Generator, sample: Sample) -> tuple[bytes, bytes, bool]:
    (size,) = struct.unpack_from("<Q", sample.raw)
    if draw.random() < 0.3:
        lengths = [0, 1, size - 1, size + 1, size + 8, len(sample.raw), 2**31, 2**62, 2**64 - 1]
        return struct.pack("<Q", lengths[draw.integers(len(lengths))]) + sample.raw[8:], sample.config, False
    header = json.loads(sample.raw[8 : 8 + size])
    _edit_tree(draw, header)
    front = json.dumps(header).encode()
    return struct.pack("<Q", len(front)) + front + sample.raw[8 + size :], sample.config, False


def _again(
    sample: Sample, header: dict[str, Any], manifest: dict[str, Any], blobs: list[bytes], checksum: bool
) -> tuple[bytes, bytes, bool]:
    """The file put together from its changed parts."""
    text = json.dumps(manifest).encode()
    return put_together(header, text, b"".join(blobs), checksum=checksum), sample.config, checksum


def _manifest(draw: np.random.Generator, sample: Sample) -> tuple[bytes, bytes, bool]:
    header, manifest, blobs = take_apart(sample.raw)
    checksum = bool(draw.random() < 2 / 3)
    for _ in range([1, 1, 1, 2, 3][draw.integers(5)]):
        _edit_tree(draw, manifest)
    return _again(sample, header, manifest, blobs, checksum)


def _consistent(draw: np.random.Generator, sample: Sample) -> tuple[bytes, bytes, bool]:
    """Counts, widths and shapes that are changed everywhere alike: what a forger who knows the format would write."""
    header, manifest, blobs = take_apart(sample.raw)
    factor = int([2, 3, 16, 256, 2**16, 2**30][draw.integers(6)])
    group = manifest["groups"][draw.integers(len(manifest["groups"]))]
    number = manifest["groups"].index(group)
    kind = draw.integers(4)
    if kind == 0:  # all counts of one group
        for stream in [*group["shared"], *(s for t in group["tensors"] for s in t[2])]:
            stream[2] *= factor
        for pool in manifest["pools"]:
            if pool[0] == number:
                pool[4] *= factor
    elif kind == 1:  # the shape of a tensor, with everything that hangs on its size
        tensor = group["tensors"][draw.integers(len(group["tensors"]))]
        tensor[1][draw.integers(len(tensor[1]))] *= factor
        manifest["source"]["parameters"] = sum(math.prod(t[1]) for g in manifest["groups"] for t in g["tensors"])
        for stream in tensor[2]:
            if stream[2] > 1:
                for pool in manifest["pools"]:
                    if pool[0] == number and pool[1] == stream[0]:
                        pool[4] += stream[2] * (factor - 1)
                stream[2] *= factor
    elif kind == 2:  # a numeric setting and the widths
        keys = [key for key, value in group["settings"].items() if type(value) is int]
        if keys:
            key = keys[draw.integers(len(keys))]
            old, new = group["settings"][key], int(draw.integers(0, 24))
            group["settings"][key] = new
            for stream in [*group["shared"], *(s for t in group["tensors"] for s in t[2])]:
                stream[1] = new if stream[1] == old else stream[1]
            for pool in manifest["pools"]:
                pool[3] = new if pool[0] == number and pool[3] == old else pool[3]
    else:  # another codec's name, or another order of the tensors
        if draw.random() < 0.5:
            group["codec"] = ["plain", "seedlm", "vptq", "hyper"][draw.integers(4)]
        else:
            group["tensors"].reverse()
    return _again(sample, header, manifest, blobs, True)


def _stream(draw: np.random.Generator, sample: Sample) -> tuple[bytes, bytes, bool]:
    """Replaces pools by others, by noise or by forged entropy-coded blobs, and recomputes their checksums or not."""
    header, manifest, blobs = take_apart(sample.raw)
    checksum = bool(draw.random() < 2 / 3)
    for _ in range(draw.integers(1, 3)):
        n = int(draw.integers(len(blobs)))
        pool, old = manifest["pools"][n], blobs[n]
        kind = draw.integers(7)
        if kind == 0:
            blobs[n] = _random_bytes(draw, len(old))
        elif kind == 1 and old:
            blobs[n] = _flip(draw, old)
        elif kind == 2:
            blobs[n] = old[: int(draw.integers(len(old) + 1))]
        elif kind == 3:
            other = int(draw.integers(len(blobs)))
            blobs[n], pool[5] = blobs[other], manifest["pools"][other][5]
        elif kind == 4:
            pool[5] = entropy.CODINGS[draw.integers(len(entropy.CODINGS))]
        elif kind == 5:  # a valid blob of other values: every code of the width may occur
            values = draw.integers(0, 2 ** pool[3], pool[4], dtype=np.uint64).astype(np.uint32)
            values[draw.random(len(values)) < draw.random()] = values[:1].max(initial=0)
            pool[5], blobs[n] = entropy.encode(values, pool[3])
        else:  # an entropy coder's blob with a header and a table of noise
            words = _random_bytes(draw, 4 * int(draw.integers(12)))
            first, span = int(draw.integers(4)), int(draw.integers(1, 2 ** min(pool[3], 10)))
            table = _random_bytes(draw, (span + 1) * 4 // 8 + 2)[: ((span + 1) * 4 + 7) // 8]
            pool[5], blobs[n] = "ans", struct.pack("<HHB", first, span, 0) + table + words
        if checksum:
            pool[6], pool[7] = len(blobs[n]), zlib.crc32(blobs[n])
    return _again(sample, header, manifest, blobs, checksum)


def _bomb(draw: np.random.Generator, sample: Sample) -> tuple[bytes, bytes, bool]:
    """Manifests that inflate to much more than they are worth."""
    header, manifest, blobs = take_apart(sample.raw)
    size = int(2 ** draw.integers(10, 21))
    kind = draw.integers(8)
    if kind == 0:
        text = json.dumps(manifest).encode() + b" " * size
    elif kind == 1:
        manifest["source"]["note"] = [[]] * (size // 4)
        text = json.dumps(manifest).encode()
    elif kind == 2:
        manifest["source"]["note"] = "x" * size
        text = json.dumps(manifest).encode()
    elif kind == 3:
        text = b"[" * size
    elif kind == 4:
        manifest["groups"] *= 1 + size // 4096
        text = json.dumps(manifest).encode()
    elif kind == 5:
        manifest["source"]["note"] = [{"": 0}] * (size // 16)
        text = json.dumps(manifest).encode()
    elif kind == 6:
        header["__metadata__"]["note"] = [[]] * (size // 4)
        text = json.dumps(manifest).encode()
    else:
        text = json.dumps(manifest).encode().replace(b'"parameters": ', b'"parameters": ' + b"9" * (size // 8))
    return put_together(header, text, b"".join(blobs), checksum=True), sample.config, True


def _config(draw: np.random.Generator, sample: Sample) -> tuple[bytes, bytes, bool]:
    """An edited config.json beside an honest file. It has no checksum; the weights must be right or refused."""
    if draw.random() < 0.2:
        return sample.raw, _flip(draw, sample.config), False
    config = json.loads(sample.config)
    _edit_tree(draw, config)
    return sample.raw, json.dumps(config).encode(), False


FAMILIES: dict[str, tuple[Callable[[np.random.Generator, Sample], tuple[bytes, bytes, bool]], float]] = {
    "cut or lengthened": (_truncate, 0.08),
    "bits flipped": (_bits, 0.10),
    "bytes overwritten": (_overwrite, 0.06),
    "header edited": (_header, 0.08),
    "manifest edited": (_manifest, 0.27),
    "manifest forged consistently": (_consistent, 0.09),
    "streams replaced": (_stream, 0.22),
    "manifest that inflates": (_bomb, 0.04),
    "config edited": (_config, 0.06),
}


# ------------------------------------------------------------------------------------------------------------- running


def judge(result: Any, sample: Sample, checksum: bool) -> str:
    """Returns the outcome, which begins with `FAILED` where it is not one of those allowed."""
    if isinstance(result, ArtifactError):
        return "rejected"
    if isinstance(result, BaseException):
        return f"FAILED: {type(result).__name__}: {str(result)[:200]}"
    if {name: weights.tobytes() for name, weights in result.items()} == sample.weights:
        return "decoded to the right weights"
    if not checksum:
        return "FAILED: decoded to wrong weights although no checksum was recomputed"
    shapes = LlamaShape.from_config(json.loads(sample.config)).tensor_shapes()
    if {name: weights.shape for name, weights in result.items()} != shapes:
        return "FAILED: decoded to other shapes than the architecture's"
    if not all(weights.dtype == np.float32 and np.isfinite(weights).all() for weights in result.values()):
        return "FAILED: decoded to weights that are not finite float32"
    return "decoded to other finite weights (checksum recomputed)"


def mutation(made: list[Sample], draw: np.random.Generator) -> tuple[Sample, str, bytes, bytes, bool]:
    """Draws one mutation: sample, family, file, config, whether a checksum was recomputed."""
    sample = made[draw.integers(len(made))]
    names = list(FAMILIES)
    family = names[draw.choice(len(names), p=[share for _, share in FAMILIES.values()])]
    raw, config, checksum = FAMILIES[family][0](draw, sample)
    return sample, family, raw, config, checksum


def run_chunk(made: list[Sample], seed: int, chunk: int, count: int, tally: Tally) -> None:
    """Opens `count` mutated artifacts."""
    draw = np.random.default_rng([seed, chunk])
    for number in range(count):
        sample, family, raw, config, checksum = mutation(made, draw)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result, seconds, peak = _measured(partial(open_artifact, raw, config))
        outcome, ratio = judge(result, sample, checksum), peak / sample.peak_bytes
        here = f"chunk {chunk}, mutation {number}: {sample.name}, {family}"
        if seconds > SECONDS_LIMIT:
            outcome = f"FAILED: took {seconds:.2f} s"
        elif peak > MEMORY_LIMIT * sample.peak_bytes + MEMORY_BASE:
            outcome = f"FAILED: took {ratio:.2f} times the honest file's memory"
        if outcome.startswith("FAILED"):
            tally.failures.append(f"{here}: {outcome}")
            outcome = "FAILED"
        tally.mutations += 1
        tally.outcomes[outcome] += 1
        tally.by_family.setdefault(family, Counter())[outcome] += 1
        if isinstance(result, ArtifactError):
            tally.reasons[_reason(result)] += 1
        if seconds > tally.slowest_seconds:
            tally.slowest_seconds, tally.slowest = seconds, here
        if ratio > tally.largest_ratio:
            tally.largest_ratio, tally.largest = ratio, here
        del result


def _reason(error: ArtifactError) -> str:
    """An error's text without its numbers and names, so that like ones are counted together."""
    words = error.what.split("(")[0].split(":")[:3]
    kept = [w for w in " ".join(words).split() if w.replace("_", "").replace("-", "").isalpha()]
    return " ".join(kept[:12]) or "(no words)"


def campaign(mutations: int, seed: int, *, tally: Tally | None = None, on_chunk: Callable[[Tally], None] | None = None):
    """Runs a whole campaign, chunk by chunk, going on where `tally` stands.

    Returns:
        the tally, and the samples that were mutated.
    """
    tally = tally or Tally()
    made = samples()
    while tally.mutations < mutations:
        chunk = tally.mutations // CHUNK
        run_chunk(made, seed, chunk, min(CHUNK, mutations - tally.mutations), tally)
        if on_chunk is not None:
            on_chunk(tally)
    return tally, made


def as_json(tally: Tally, made: list[Sample] | None, seed: int) -> dict[str, Any]:
    """The results as they are written."""
    honest = [
        {"sample": s.name, "bytes": len(s.raw), "milliseconds": round(1000 * s.seconds, 2), "peak_bytes": s.peak_bytes}
        for s in made or []
    ]
    return {
        "seed": seed,
        "mutations": tally.mutations,
        "failures": tally.failures,
        "outcomes": dict(tally.outcomes.most_common()),
        "by_family": {family: dict(tally.by_family[family].most_common()) for family in sorted(tally.by_family)},
        "slowest_seconds": round(tally.slowest_seconds, 4),
        "slowest": tally.slowest,
        "largest_memory_ratio": round(tally.largest_ratio, 3),
        "largest": tally.largest,
        "honest": honest,
        "reasons": dict(tally.reasons.most_common(80)),
    }


def as_markdown(found: dict[str, Any]) -> str:
    """The results as a page."""
    kinds = [
        "rejected",
        "decoded to the right weights",
        "decoded to other finite weights (checksum recomputed)",
        "FAILED",
    ]
    lines = [
        "# Opening broken and forged artifacts",
        "",
        f"`python -m experiments.fuzz --mutations {found['mutations']} --seed {found['seed']}`",
        "",
        f"{found['mutations']:,} mutated artifacts, {len(found['failures'])} failures. The slowest took "
        f"{1000 * found['slowest_seconds']:.0f} ms (limit 1 s; {found['slowest']}). The most memory was "
        f"{found['largest_memory_ratio']:.2f} times the honest file's (limit 2, and 1 MiB; {found['largest']}). "
        "Files that are forged from nothing: `forge.md`.",
        "",
        "| family | mutations | rejected | right weights | other finite weights, checksum recomputed | failed |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    total = Counter(found["outcomes"])
    for family, outcomes in [*found["by_family"].items(), ("all", total)]:
        cells = " | ".join(f"{outcomes.get(kind, 0):,}" for kind in kinds)
        lines.append(f"| {family} | {sum(outcomes.values()):,} | {cells} |")
    lines += ["", "| honest artifact | bytes | ms | peak memory, bytes |", "| --- | --- | --- | --- |"]
    for row in found["honest"]:
        lines.append(f"| {row['sample']} | {row['bytes']:,} | {row['milliseconds']} | {row['peak_bytes']:,} |")
    lines += [
        "",
        "The commonest reasons given:",
        "",
        "| reason (numbers and names left out) | times |",
        "| --- | --- |",
    ]
    lines += [f"| {reason} | {count:,} |" for reason, count in list(found["reasons"].items())[:25]]
    lines += ["", *(f"- {failure}" for failure in found["failures"][:50])] if found["failures"] else []
    return "\n".join(lines) + "\n"


def _resumed(path: Path, seed: int) -> Tally:
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["seed"] != seed or found["mutations"] % CHUNK:
        raise SystemExit(f"{path} is of another seed, or complete: start afresh without --resume")
    return Tally(
        mutations=found["mutations"],
        outcomes=Counter(found["outcomes"]),
        by_family={family: Counter(outcomes) for family, outcomes in found["by_family"].items()},
        reasons=Counter(found["reasons"]),
        slowest_seconds=found["slowest_seconds"],
        slowest=found["slowest"],
        largest_ratio=found["largest_memory_ratio"],
        largest=found["largest"],
        failures=found["failures"],
    )


def replay(seed: int, chunk: int, number: int) -> None:
    """Prints what one mutation does."""
    made = samples()
    draw = np.random.default_rng([seed, chunk])
    for _ in range(number + 1):
        sample, family, raw, config, checksum = mutation(made, draw)
    result, seconds, peak = _measured(partial(open_artifact, raw, config))
    print(f"{sample.name}, {family}, checksum recomputed: {checksum}; {len(raw)} bytes")
    print(f"{judge(result, sample, checksum)}; {1000 * seconds:.1f} ms; {peak:,} bytes, honest {sample.peak_bytes:,}")
    if isinstance(result, BaseException):
        traceback.print_exception(result)


def main() -> int:
    """Runs a campaign and writes its results; the exit status is 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "fuzz")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--replay", type=int, nargs=2, metavar=("CHUNK", "MUTATION"))
    options = parser.parse_args()
    if options.replay:
        replay(options.seed, *options.replay)
        return 0
    path = options.out.with_suffix(".json")
    tally = _resumed(path, options.seed) if options.resume and path.exists() else Tally()
    state: dict[str, list[Sample] | None] = {"made": None}

    def save(now: Tally) -> None:
        found = as_json(now, state["made"], options.seed)
        write_atomic(path, json.dumps(found, indent=1) + "\n")
        print(f"{now.mutations:,} mutations, {len(now.failures)} failures", flush=True)

    tally, state["made"] = campaign(options.mutations, options.seed, tally=tally, on_chunk=save)
    found = as_json(tally, state["made"], options.seed)
    write_atomic(path, json.dumps(found, indent=1) + "\n")
    write_atomic(options.out.with_suffix(".md"), as_markdown(found))
    print(as_markdown(found))
    return 1 if tally.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
