"""Hostile files: a short campaign of mutations, forgeries one by one, and arbitrary input."""

from __future__ import annotations

import json
import math
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import fuzz, fuzz_mutations, fuzz_samples
from phase8.artifact import read as container
from phase8.codecs import decoders
from phase8.codecs.streams import Layout
from phase8.errors import ArtifactError
from phase8.limits import Limits
from phase8.runtime.llama import LlamaShape


@pytest.mark.parametrize("count", [1000, pytest.param(2500, marks=pytest.mark.slow)])
def test_a_short_campaign_does_no_harm(count: int) -> None:
    tally, made = fuzz.campaign(count, seed=1)
    assert tally.failures == []
    assert tally.mutations == count and set(tally.by_family) == set(fuzz_mutations.FAMILIES)
    assert {sample.name for sample in made} == set(fuzz_samples.CODECS)
    # The checks behind the checksums were reached: some forgeries are consistent, and decode to other weights.
    assert tally.outcomes["decoded to other finite weights (checksum recomputed)"] > 25
    assert tally.outcomes["decoded to the right weights"] > 25
    assert len([reason for reason, count in tally.reasons.items() if count >= 2]) > 25


def test_a_campaign_repeats_and_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "CHUNK", 40)
    whole, _ = fuzz.campaign(100, seed=2)
    first, _ = fuzz.campaign(80, seed=2)
    both, _ = fuzz.campaign(100, seed=2, tally=first)
    assert (whole.outcomes, whole.by_family, whole.reasons) == (both.outcomes, both.by_family, both.reasons)
    found = json.loads(json.dumps(fuzz.as_json(both, None, 2)))
    assert found["mutations"] == sum(found["outcomes"].values()) == 100
    assert "100 mutated artifacts, 0 failures" in fuzz.as_markdown(found)


@pytest.fixture(scope="module")
def made() -> dict[str, fuzz_samples.Sample]:
    return {sample.name: sample for sample in fuzz_samples.samples()}


def test_the_judge_sees_harm(made: dict[str, fuzz_samples.Sample]) -> None:
    sample = made["plain"]
    right = fuzz_samples.open_artifact(sample.raw, sample.config)
    assert fuzz.judge(right, sample, False) == "decoded to the right weights"
    name = next(iter(right))
    other = {**right, name: right[name] + 1}
    assert fuzz.judge(other, sample, False).startswith("FAILED")
    assert not fuzz.judge(other, sample, True).startswith("FAILED")
    for bad in (
        {**right, name: np.full_like(right[name], np.inf)},
        {**right, name: right[name][:1]},
        {**right, "extra": right[name]},
    ):
        assert fuzz.judge(bad, sample, True).startswith("FAILED")
    for error in (ValueError("x"), MemoryError(), RecursionError(), UserWarning("overflow")):
        assert fuzz.judge(error, sample, True).startswith("FAILED")


@pytest.mark.parametrize("broken", ["time", "memory", "error"])
def test_a_campaign_reports_harm(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    honest = fuzz_samples.open_artifact

    def harmful(raw: bytes, config: bytes) -> dict[str, np.ndarray]:
        if broken == "memory":
            np.empty(1 << 22, dtype=np.uint8)[:] = 1
        if broken == "error":
            raise IndexError("beyond the end")
        return honest(raw, config)

    monkeypatch.setattr(fuzz, "open_artifact", harmful)
    if broken == "time":
        monkeypatch.setattr(fuzz, "SECONDS_LIMIT", 0.0)
    tally, _ = fuzz.campaign(5, seed=0)
    assert len(tally.failures) == 5 == tally.outcomes["FAILED"]


def forged(sample: fuzz_samples.Sample, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """A file with an edited manifest, all checksums recomputed."""
    header, manifest, blobs = fuzz_mutations.take_apart(sample.raw)
    changed = change(manifest)
    text = changed if isinstance(changed, bytes) else json.dumps(manifest).encode()
    return fuzz_mutations.put_together(header, text, b"".join(blobs), checksum=True)


def refused(raw: bytes, config: bytes, match: str) -> None:
    """The file is refused for this reason, at once and in next to no memory."""
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError, match=match):
            fuzz_samples.open_artifact(raw, config)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def tensor(manifest: dict[str, Any], group: int = 0, number: int = 0) -> list[Any]:
    return manifest["groups"][group]["tensors"][number]


def _set(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        node: Any = manifest
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value

    return change


def _everywhere(old: int, new: int) -> Callable[[dict[str, Any]], bytes]:
    """One number replaced by another wherever it stands: the forger who keeps the file consistent."""
    return lambda manifest: json.dumps(manifest).replace(f" {old}", f" {new}").encode()


FORGERIES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "count of 2^40": (_set("pools", 0, 4, value=2**40), "where .* must be"),
    "count of -1": (_set("pools", 0, 4, value=-1), "where .* must be"),
    "count true": (_set("pools", 0, 4, value=True), "where .* must be"),
    "count a fraction": (_set("pools", 0, 4, value=1e3), "where .* must be"),
    "length beyond the payload": (_set("pools", 0, 6, value=2**40), "whole number from 0"),
    "length negative": (_set("pools", 1, 6, value=-4), "whole number from 0"),
    "length of one": (_set("pools", 0, 6, value=1), "damaged|packed it would"),
    "coding unknown": (_set("pools", 0, 5, value="pickle"), "unknown stream coding|no shorter"),
    "coding no text": (_set("pools", 0, 5, value=["ans"]), "text is needed"),
    "checksum wrong": (_set("pools", 0, 7, value=1), "checksum"),
    "pools swapped": (lambda m: m["pools"].reverse(), "where .* must be"),
    "a pool missing": (lambda m: m["pools"].pop(), "pools where the groups need"),
    "pools no list": (_set("pools", value={}), "a list is needed"),
    "group out of range": (_set("pools", 0, 0, value=9), "where .* must be"),
    "no groups": (lambda m: m.pop("groups"), "an object with"),
    "a key too many": (_set("more", value=1), "an object with"),
    "a group's key too many": (_set("groups", 0, "more", value=1), "an object with"),
    "unknown codec": (_set("groups", 0, "codec", value="zip"), "no codec called"),
    "codec no text": (_set("groups", 0, "codec", value=None), "text is needed"),
    "settings no object": (_set("groups", 0, "settings", value=[]), "must be an object"),
    "settings missing": (_set("groups", 0, "settings", value={}), "settings"),
    "setting unknown": (_set("groups", 0, "settings", "more", value=1), "settings"),
    "name no text": (lambda m: tensor(m).__setitem__(0, 5), "text is needed"),
    "name twice": (lambda m: tensor(m, 1).__setitem__(0, tensor(m)[0]), "occurs twice"),
    "name renamed": (lambda m: tensor(m).__setitem__(0, "other"), "do not fit the architecture"),
    "shape no list": (lambda m: tensor(m).__setitem__(1, 4608), "a list is needed"),
    "shape negative": (lambda m: tensor(m).__setitem__(1, [-96, -48]), "not a shape"),
    "shape huge": (lambda m: tensor(m).__setitem__(1, [2**31, 2**31]), "not a shape"),
    "shape of nine dimensions": (lambda m: tensor(m).__setitem__(1, [1] * 7 + [96, 48]), "not a shape"),
    "shape fraction": (lambda m: tensor(m).__setitem__(1, [96.0, 48]), "not a shape"),
    "stream count": (lambda m: tensor(m)[2][0].__setitem__(2, 2**33), "not those that its settings"),
    "stream width": (lambda m: tensor(m)[2][0].__setitem__(1, 31), "not those that its settings"),
    "stream twice": (lambda m: tensor(m)[2].append(tensor(m)[2][0]), "occurs twice"),
    "stream missing": (lambda m: tensor(m)[2].pop(), "not those that its settings"),
    "stream count no number": (lambda m: tensor(m)[2][0].__setitem__(2, "9"), "whole numbers"),
    "parameters": (_set("source", "parameters", value=1), "does not promise"),
    "parameters huge": (_set("source", "parameters", value=2**40), "whole number"),
    "source no object": (_set("source", value=[]), "does not promise|list indices"),
    "stage no text": (_set("stage", value=3), "text is needed"),
    "not an object": (lambda m: b"[]", "damaged"),
    "not JSON": (lambda m: b"{", "damaged"),
    "not text": (lambda m: b"\xff\xfe", "damaged"),
    "NaN": (lambda m: json.dumps(m).encode().replace(b'"stage"', b'"x": NaN, "stage"'), "damaged"),
    "a key twice": (lambda m: json.dumps(m).encode().replace(b'"stage"', b'"stage": "a", "stage"'), "damaged"),
    "nested without end": (lambda m: b"[" * 5_000, "damaged"),
    "a number without end": (lambda m: json.dumps(m).encode().replace(b'"stage"', b"9" * 5000), "damaged"),
    "inflates to spaces": (lambda m: json.dumps(m).encode() + b" " * (1 << 22), "text, more than"),
    "inflates to lists": (_set("source", "note", value=[[]] * 20_000), "parts, more than"),
    "inflates to objects": (_set("source", "note", value=[{"": 0}] * 4000), "parts, more than"),
    "name with an escape": (lambda m: tensor(m).__setitem__(0, "a\x1b[2Jb"), "no name of"),
    "name with half a character": (lambda m: tensor(m).__setitem__(0, "a\ud800b"), "no name of"),
    "name without end": (lambda m: tensor(m).__setitem__(0, "a" * 300), "no name of"),
    "stage with a line of its own": (_set("stage", value="vptq\n  mend:  run this"), "no name of"),
    "no files": (lambda m: m.pop("files"), "an object with"),
    "a file of another directory": (_set("files", 0, 0, value="../config.json"), "no name of a file"),
    "a file from the root": (_set("files", 0, 0, value="/etc/passwd"), "no name of a file"),
    "a file that vouches for itself": (_set("files", 0, 0, value="model.safetensors"), "no name of a file"),
    "a file's length": (_set("files", 0, 1, value=-1), "whole number"),
    "a file's checksum": (_set("files", 0, 2, value=5), "not the file that the artifact was written with"),
    "config.json left out": (_set("files", value=[]), "is no part of the artifact"),
    "length beyond the packed form": (
        lambda m: m["pools"][0].__setitem__(6, m["pools"][0][6] + 5000),
        "packed it would|whole number from 0",
    ),
}


@pytest.mark.parametrize("forgery", FORGERIES)
@pytest.mark.parametrize("name", ["vptq 8 bit", "hyper winding"])
def test_forgeries_are_refused(made: dict[str, fuzz_samples.Sample], name: str, forgery: str) -> None:
    change, match = FORGERIES[forgery]
    refused(forged(made[name], change), made[name].config, match)


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("vptq 8 bit", _set("groups", 0, "settings", "vector_dim", value=0), "impossible settings"),
        ("vptq 8 bit", _set("groups", 0, "settings", "vector_dim", value=2**40), "impossible settings"),
        ("vptq 8 bit", _set("groups", 0, "settings", "codebook_sizes", value=[2**62]), "impossible settings"),
        ("vptq 8 bit", _set("groups", 0, "settings", "codebook_sizes", value=[20] * 17), "impossible settings"),
        ("vptq 8 bit", _set("groups", 0, "settings", "codebook_sizes", value=[65536]), "more entries than"),
        ("vptq 8 bit", _set("groups", 0, "settings", "product", value=1), "impossible settings"),
        ("vptq 8 bit", _set("groups", 0, "settings", "product", value=2), "not those that its settings"),
        ("vptq 8 bit", _set("groups", 0, "settings", "codebook_seed", value=0), "impossible settings"),
        ("vptq product", _set("groups", 0, "settings", "product", value=4), "impossible settings"),
        ("vptq product", _set("groups", 0, "settings", "product", value=2**40), "impossible settings"),
        ("vptq product", _set("groups", 0, "settings", "product", value=6), "not those that its settings"),
        ("seedlm 4 bit", _set("groups", 0, "settings", "block_size", value=True), "impossible settings"),
        ("seedlm 4 bit", _set("groups", 0, "settings", "seed_bits", value=60), "impossible settings"),
        ("seedlm 4 bit", _set("groups", 0, "settings", "seed_bits", value=20), "not those that its settings"),
        ("hyper winding", _set("groups", 0, "settings", "exponent", value=2**31), "impossible settings: exponent is"),
        ("hyper winding", _set("groups", 0, "settings", "grid", value=2**40), "impossible settings: grid is"),
        ("hyper winding", _set("groups", 0, "settings", "winding", value="sine"), "impossible settings: 'sine' is"),
        ("hyper fourier", _set("groups", 0, "settings", "degree", value=1024), "not those that its settings"),
        ("hyper fourier", _set("groups", 0, "settings", "block_size", value=2**25), "settings: block_size is"),
        ("hyper depth", _set("groups", 0, "settings", "axis", value="block"), "settings: the axis is told where it is"),
        ("hyper depth", _set("groups", 0, "settings", "axis", value=["depth"]), r"settings: \['depth'\] is not"),
        ("hyper depth", _set("groups", 0, "settings", "trajectory", value="ergodic"), "are missing or unknown"),
        ("hyper depth", _set("groups", 0, "settings", "degree", value=2), "not those that its settings"),
        ("hyper depth", _set("groups", 0, "tensors", 1, 0, value="model.layers.7.x"), "not those that its settings"),
        ("hyper winding", _set("groups", 0, "settings", "axis", value="depth"), "are missing or unknown"),
        ("plain", _set("groups", 0, "settings", "dtype", value="float64"), "unknown settings"),
        ("plain", _set("groups", 0, "settings", "dtype", value=["float16"]), "unknown settings"),
        ("plain", _everywhere(4608, 2**36), "not those|not a shape|does not promise"),
    ],
)
def test_forged_settings_are_refused(made: dict[str, fuzz_samples.Sample], name: str, change, match: str) -> None:
    refused(forged(made[name], change), made[name].config, match)


def replaced(sample: fuzz_samples.Sample, role: str, coding: str, blob: bytes) -> bytes:
    """A file with another pool, checksums recomputed."""
    header, manifest, blobs = fuzz_mutations.take_apart(sample.raw)
    number = next(n for n, pool in enumerate(manifest["pools"]) if pool[1] == role)
    manifest["pools"][number][5:] = [coding, len(blob), zlib.crc32(blob)]
    blobs[number] = blob
    return fuzz_mutations.put_together(header, json.dumps(manifest).encode(), b"".join(blobs), checksum=True)


def pool(sample: fuzz_samples.Sample, role: str) -> list[Any]:
    return next(pool for pool in fuzz_mutations.take_apart(sample.raw)[1]["pools"] if pool[1] == role)


@pytest.mark.parametrize(
    ("name", "role", "byte", "match"),
    [
        ("vptq 8 bit", "index_0", 0xFF, "points beyond the 20 entries"),
        ("vptq 8 bit", "scale", 0xFF, "NaN or infinite"),
        ("vptq residual", "codebook_1", 0xFF, "NaN or infinite"),
        ("vptq product", "index_1", 0xFF, "points beyond the 10 entries"),
        ("seedlm 4 bit", "seeds", 0x00, "a seed is 0"),
        ("seedlm 4 bit", "scale", 0xFF, "NaN or infinite"),
        ("hyper winding", "codes", 0xFF, "the settings allow below"),
        ("hyper winding", "side", 0x00, "not positive"),
        ("hyper fourier", "coefficients", 0xFF, "the settings allow below"),
        ("hyper depth", "coefficients", 0xFF, "the settings allow below"),
        ("hyper depth", "scale", 0xFF, "NaN or infinite"),
        ("plain", "values", 0xFF, "NaN or infinite"),
    ],
)
def test_values_out_of_range_are_refused(
    made: dict[str, fuzz_samples.Sample], name: str, role: str, byte: int, match
) -> None:
    sample = made[name]
    bits, count = pool(sample, role)[3:5]
    run = int.from_bytes(bytes([byte]) * (count * bits // 8 + 1), "little") % 2 ** (count * bits)
    refused(replaced(sample, role, "packed", run.to_bytes(math.ceil(count * bits / 8), "little")), sample.config, match)


@pytest.mark.parametrize(
    ("blob", "match"),
    [
        (b"", "cut short"),
        (struct.pack("<HHB", 0, 65535, 0), "header"),
        (struct.pack("<HHB", 0, 19, 0), "cut short"),
        (struct.pack("<HHB", 0, 0, 0) + bytes(1), "header"),
        (struct.pack("<HHB", 0, 19, 12) + bytes(100), "header"),
        (struct.pack("<HHB", 0, 19, 0) + bytes(10), "empty"),
        (struct.pack("<HHB", 0, 19, 0) + b"\x11" * 10 + bytes(4), "damaged"),
        (struct.pack("<HHB", 0, 19, 0) + b"\x11" * 10 + b"\1\0\0\0" * 9, "does not end"),
        (struct.pack("<HHB", 0, 19, 0) + b"\x11" * 10 + b"\1\0\0", "cut short"),
    ],
)
def test_forged_entropy_coded_blobs_are_refused(made: dict[str, fuzz_samples.Sample], blob: bytes, match: str) -> None:
    sample = made["vptq 8 bit"]
    refused(replaced(sample, "index_0", "ans", blob), sample.config, match)


def test_byte_planes_cannot_nest_without_end(made: dict[str, fuzz_samples.Sample]) -> None:
    sample = made["plain"]
    for high in (2, 3, 255):
        blob = struct.pack("<BBI", high, 2, 6) * 400
        refused(replaced(sample, "values", "planes", blob), sample.config, "planes|coding")


def test_a_header_that_is_full_of_lists_is_refused(made: dict[str, fuzz_samples.Sample]) -> None:
    sample = made["plain"]
    header, manifest, blobs = fuzz_mutations.take_apart(sample.raw)
    for extra in ([[]] * 20_000, {str(n): n for n in range(20_000)}):
        header["__metadata__"]["note"] = extra
        text = json.dumps(manifest).encode()
        refused(
            fuzz_mutations.put_together(header, text, b"".join(blobs), checksum=True),
            sample.config,
            "not a phase8 artifact",
        )
    header["__metadata__"]["note"] = [[]] * 300
    refused(
        fuzz_mutations.put_together(header, text, b"".join(blobs), checksum=True),
        sample.config,
        "not a phase8 artifact",
    )
    header["__metadata__"]["note"] = "kept by a program that passes the file on"
    raw = fuzz_mutations.put_together(header, text, b"".join(blobs), checksum=True)
    weights = fuzz_samples.open_artifact(raw, sample.config)
    assert {name: w.tobytes() for name, w in weights.items()} == sample.weights


def test_weights_that_overflow_are_refused(made: dict[str, fuzz_samples.Sample]) -> None:
    sample = made["seedlm 4 bit"]
    count = pool(sample, "scale")[4]
    blob = struct.pack("<H", 0x7F7F) * count  # the largest bfloat16
    refused(replaced(sample, "scale", "packed", blob), sample.config, "NaN or infinite")


def test_a_file_of_another_model_is_refused_before_it_is_decoded(
    made: dict[str, fuzz_samples.Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = made["vptq 8 bit"]
    monkeypatch.setattr(container.entropy, "decode", lambda *_: pytest.fail("decoded before the check"))
    manifest = container.parse(sample.raw)
    sizes = {name: math.prod(shape) for name, shape in manifest.shapes.items()}
    manifest.require(sizes)
    name = next(iter(sizes))
    for other in ({**sizes, name: 1}, {**sizes, "more": 1}, {key: sizes[key] for key in list(sizes)[1:]}, {}):
        with pytest.raises(ArtifactError, match="do not fit the architecture"):
            manifest.require(other)
    with pytest.raises(ArtifactError, match="weights, more than the 100 allowed here"):
        container.parse(sample.raw, limits=Limits(max_weights=100))
    with pytest.raises(ArtifactError, match="the architecture has"):
        manifest.require_outline(container.Outline(len(sizes), sum(sizes.values()) + 1))


def test_the_outline_is_that_of_the_shapes() -> None:
    for layers, tied, biased in ((1, True, False), (2, False, True), (7, False, False)):
        config = fuzz_samples.CONFIG | {
            "num_hidden_layers": layers,
            "tie_word_embeddings": tied,
            "attention_bias": biased,
        }
        shape = LlamaShape.from_config(config)
        shapes = shape.tensor_shapes()
        assert shape.outline() == (len(shapes), sum(math.prod(extents) for extents in shapes.values()))


def test_short_blocks_and_long_ones_take_no_memory_for_what_is_dropped() -> None:
    from phase8.codecs import get_codec
    from phase8.codecs.streams import EncodedGroup, EncodedTensor, Stream
    from phase8.config import HyperConfig, Trajectory

    long = {"trajectory": "polynomial", "degree": 2, "block_size": 1 << 24, "coefficient_bits": 8, "exponent": 0}
    streams = {
        "coefficients": Stream(values=np.array([130, 129, 128], dtype=np.uint8), bits=8),
        "scale": Stream(values=np.array([0x3C00], dtype=np.uint16), bits=16),
    }
    group = EncodedGroup(codec="hyper", settings=long, tensors={"a": EncodedTensor(shape=(2, 2), streams=streams)})
    tracemalloc.start()
    decoded = get_codec("hyper").decode(group)["a"]
    assert tracemalloc.get_traced_memory()[1] < 1 << 16
    tracemalloc.stop()
    x = (2 * np.arange(4) - (2.0**24 - 1)) / (2.0**24 - 1)
    expected = 3 + 2 * math.sqrt(3) * x + math.sqrt(5) * (3 * x**2 - 1) / 2  # normalised Legendre polynomials
    np.testing.assert_allclose(decoded.reshape(-1), expected, atol=2e-4)
    assert HyperConfig(trajectory_type=Trajectory.polynomial, block_size=1 << 24, degree=2).block_size == 1 << 24


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_raise_artifact_errors_only(raw: bytes) -> None:
    for data in (raw, struct.pack("<Q", len(raw)) + raw):
        with pytest.raises(ArtifactError):
            container.parse(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=12,
)


@given(JSON)
@settings(max_examples=150, deadline=None)
def test_any_header_raises_artifact_errors_only(value: Any) -> None:
    for header in (value, {"__metadata__": value, "payload": value}):
        front = json.dumps(header).encode()
        with pytest.raises(ArtifactError):
            container.parse(struct.pack("<Q", len(front)) + front)


@given(JSON, st.sampled_from(["stage", "source", "groups", "pools"]), st.sampled_from(sorted(fuzz_samples.CODECS)))
@settings(max_examples=300, deadline=None)
def test_any_manifest_raises_artifact_errors_only(
    made: dict[str, fuzz_samples.Sample], value: Any, key: str, name: str
) -> None:
    raw = forged(made[name], _set(key, value=value))
    try:
        weights = fuzz_samples.open_artifact(raw, made[name].config)
    except ArtifactError:
        return
    assert key == "stage" and isinstance(value, str)
    assert {n: w.tobytes() for n, w in weights.items()} == made[name].weights


SETTINGS = st.dictionaries(
    st.sampled_from([
        "block_size", "latent_dim", "bits", "seed_bits", "exponent_bits", "vector_dim", "codebook_bits",
        "codebook_sizes", "product", "codebook_seed", "dtype", "trajectory", "degree", "coefficient_bits", "exponent",
        "dims", "grid", "classes", "winding", "axis",
    ]),
    st.integers(-2, 300)
    | st.sampled_from([2**31, 2**64, True, None, 0.5, "power", "ergodic", "polynomial", "depth", [1], []]),
)  # fmt: skip


@given(
    st.sampled_from(["plain", "seedlm", "vptq", "hyper"]),
    SETTINGS,
    st.lists(st.integers(-1, 70) | st.sampled_from([2**40, True, None, 1.5, "4"]), max_size=4),
)
@settings(max_examples=400, deadline=None)
def test_any_settings_and_shapes_give_a_layout_or_an_artifact_error(
    codec: str, given_settings, shape: list[Any]
) -> None:
    try:
        layout = decoders.layout(codec, given_settings, {"a": tuple(shape)})
    except ArtifactError:
        return
    assert isinstance(layout, Layout)
    size = math.prod(shape)
    padded = size + 4096 + (0 if len(shape) < 2 else 1024 * shape[1])
    assert all(0 <= count <= 64 * padded and 1 <= bits <= 32 for count, bits in layout.tensors["a"].values())
