"""`docs/format.md` says enough: a second reader written from it alone (`second_reader.py`) gives the same bits."""

from __future__ import annotations

import base64
import json
import math
import re
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.fuzz_mutations import take_apart
from experiments.fuzz_samples import samples
from phase8.artifact import front
from phase8.artifact import read as container
from phase8.artifact.write import file_bytes
from phase8.codecs.decoders import decode
from phase8.codecs.lattice import encode as lattice
from phase8.codecs.streams import EncodedGroup, EncodedTensor, Stream
from phase8.config import HyperConfig, SeedLMConfig, Trajectory, VPTQConfig
from phase8.limits import Limits, Rate
from phase8.lossless import entropy
from phase8.lossless.bitpack import narrowest
from tests.second_reader import PAGE, documented_taps, read, read_ans


@pytest.fixture(scope="module")
def made():
    return {sample.name: sample for sample in samples()}


NAMES = [
    "plain", "seedlm 4 bit", "seedlm 1 bit", "vptq 8 bit", "vptq residual", "vptq outliers", "vptq product",
    "hyper winding", "hyper published", "hyper polynomial", "hyper fourier", "hyper manifold",
    "hyper depth", "hyper fourier depth", "lattice", "lattice shared",
    "all codecs",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_page_is_enough_to_read_every_codec(made, name: str) -> None:
    sample = made[name]
    weights = read(sample.raw)
    assert {key: value.tobytes() for key, value in weights.items()} == sample.weights


def test_all_samples_and_codings_were_read(made) -> None:
    assert list(made) == NAMES
    codings = {pool[5] for sample in made.values() for pool in take_apart(sample.raw)[1]["pools"]}
    assert codings == set(entropy.CODINGS)


def example(name: str) -> str:
    found = re.search(rf"<!-- example: {name} -->\n((?:    .*\n)+)", PAGE)
    return "".join(line[4:] for line in found[1].splitlines())


def test_the_whole_file_on_the_page() -> None:
    raw = bytes.fromhex(example("file"))
    assert f"and the file, {len(raw)} bytes" in PAGE
    manifest = container.parse(raw)
    text = json.dumps(json.loads(example("manifest")), separators=(",", ":"))
    assert zlib.decompress(base64.b64decode(take_apart(raw)[0]["__metadata__"]["manifest"])).decode() == text
    for weights in (manifest.artifact().decode(), read(raw)):
        assert {key: value.tolist() for key, value in weights.items()} == {
            "w": [[2, -2, -2], [1, 0.5, 0.5]],
            "b": [1, 0.5],
        }
    beside = {"config.json": b"{}\n"}
    ours = file_bytes(manifest.groups(), "vptq", {"hash": "example", "parameters": 8}, beside)
    manifest.vouch("config.json", beside["config.json"])
    assert take_apart(ours)[1:] == take_apart(raw)[1:], "the writer makes this manifest and these pools"


def test_the_entropy_coded_stream_on_the_page() -> None:
    blob = bytes.fromhex(example("ans"))
    values = [0] * 64
    values[5] = values[20] = values[33] = 1
    values[50] = 2
    assert read_ans(blob, 2, 64) == values == entropy.decode("ans", blob, 2, 64).tolist()
    assert entropy.encode(np.array(values, dtype=np.uint8), 2) == ("ans", blob)
    assert re.search(r"B = (.*)\):", PAGE)[1] == "0, 15868103, 16529275, 16777216"


def test_limits_and_tables_on_the_page_are_those_of_the_code() -> None:
    from phase8.codecs import streams
    from phase8.codecs.hyper import decode as hyper
    from phase8.codecs.seedlm import lfsr

    assert {k: tuple(taps) for k, taps in documented_taps().items()} == {
        k: taps for k, taps in lfsr.TAPS.items() if 4 <= k <= 20
    }
    said = {
        "2^32 and 2^23 bytes": (Limits().max_file_bytes, front.MAX_HEADER_BYTES),
        "8; 2^32, 2^34": (streams.MAX_TENSOR_WEIGHTS, Limits().max_weights),
        "2^28": (hyper.MAX_SIZE,),
    }
    for rate in ("text", "parts", "weights", "values", "table", "operations", "steps"):
        found: Rate = getattr(Limits(), rate)
        gain = f"{found.per_byte:g} B" if found.per_byte >= 1 else f"B / {1 / found.per_byte:g}"
        assert f"2^{found.base.bit_length() - 1} + {gain}" in PAGE, rate
    assert f"| members of a stack over depth | {hyper.MAX_DEPTH} |" in PAGE
    for text, numbers in said.items():
        assert f"| {text} |" in PAGE
        assert tuple(2 ** int(power) for power in re.findall(r"2\^(\d+)", text)) == numbers
    assert streams.MAX_DIMENSIONS == 8 and f"-{hyper.MAX_EXPONENT} to {hyper.MAX_EXPONENT}" in PAGE
    assert f"version {container.VERSION}" in PAGE.splitlines()[0]


def manifold(**settings) -> HyperConfig:
    return HyperConfig(trajectory_type=Trajectory.manifold, **{"block_size": 64} | settings)


@pytest.mark.parametrize(
    ("make", "low", "high"),
    [
        (lambda n: SeedLMConfig(block_size=n, latent_dim=1), 1, 4096),
        (lambda n: SeedLMConfig(latent_dim=n, block_size=64, seed_bits=8), 1, 64),
        (lambda n: SeedLMConfig(bits=n), 1, 8),
        (lambda n: SeedLMConfig(seed_bits=n), 4, 20),
        (lambda n: SeedLMConfig(exponent_bits=n), 2, 8),
        (lambda n: VPTQConfig(vector_dim=n), 1, 1024),
        (lambda n: VPTQConfig(num_codebooks=n), 1, 16),
        (lambda n: HyperConfig(trajectory_type=Trajectory.polynomial, degree=n), 0, 1024),
        (lambda n: HyperConfig(trajectory_type=Trajectory.polynomial, coefficient_bits=n), 2, 16),
        (lambda n: manifold(inputs=n), 1, 32),
        (lambda n: manifold(width=n, depth=1), 1, 64),
        (lambda n: manifold(depth=n), 1, 3),
        (lambda n: manifold(frequency=n), 1, 65536),
        (lambda n: manifold(block_size=n, width=1), 1, 4096),
        (lambda n: HyperConfig(dims=n), 1, 1024),
        (lambda n: HyperConfig(grid=n), 2, 65535),
        (lambda n: HyperConfig(classes=n), 0, 15),
    ],
)
def test_ranges_on_the_page_are_those_of_the_code(make, low: int, high: int) -> None:
    assert re.search(rf"\({low} to {high}\b|: {low} to {high} ", PAGE)
    make(low), make(high)
    for n in (low - 1, high + 1):
        with pytest.raises(Exception, match="needs"):
            make(n)


@st.composite
def plain_groups(draw) -> list[EncodedGroup]:
    """Groups of arbitrary streams: the plain codec takes any."""
    groups, number = [], 0
    for _ in range(draw(st.integers(0, 3))):
        dtype, bits = draw(st.sampled_from([("bfloat16", 16), ("float16", 16), ("float32", 32)]))
        tensors = {}
        for _ in range(draw(st.integers(0, 3))):
            shape = tuple(draw(st.lists(st.integers(0, 9), max_size=3)))
            random = np.random.default_rng(draw(st.integers(0, 2**32)))
            values = (random.random(math.prod(shape)) ** draw(st.sampled_from([1, 20])) * 0x3BFF).astype(
                narrowest(bits)
            )
            tensors[f"tensor.{number}"] = EncodedTensor(
                shape=shape, streams={"values": Stream(values=values, bits=bits)}
            )
            number += 1
        groups.append(EncodedGroup(codec="plain", settings={"dtype": dtype}, tensors=tensors))
    return groups


@given(plain_groups())
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_what_both_read(groups: list[EncodedGroup]) -> None:
    total = sum(math.prod(tensor.shape) for group in groups for tensor in group.tensors.values())
    raw = file_bytes(groups, "seedlm", {"parameters": total})
    first, second = container.parse(raw).artifact().decode(), read(raw)
    assert first.keys() == second.keys()
    for name, weights in first.items():
        assert weights.shape == second[name].shape and weights.tobytes() == second[name].tobytes()


@st.composite
def coded(draw) -> tuple[np.ndarray, int]:
    bits = draw(st.integers(1, 16))
    uniform = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).random(draw(st.integers(1, 300)))
    return (uniform ** draw(st.floats(0.1, 40)) * (2 ** min(bits, 9) - 1)).astype(narrowest(bits)), bits


@given(coded(), st.data())
@settings(max_examples=80, deadline=None)
def test_the_library_the_loop_and_the_page_read_alike(stream: tuple[np.ndarray, int], data) -> None:
    values, bits = stream
    blob = entropy._encode_ans(values, limit_bytes=1 << 30)
    damaged = bytearray(blob)
    damaged[data.draw(st.integers(0, len(blob) - 1))] ^= data.draw(st.sampled_from([0, 1, 16, 128]))
    answers = []
    library = entropy.constriction
    for used in (library, None):
        entropy.constriction = used
        try:
            answers.append(entropy._decode_ans(bytes(damaged), bits, values.size).tolist())
        except entropy.ArtifactError:
            answers.append(None)
        finally:
            entropy.constriction = library
    assert answers[0] == answers[1]
    if damaged == blob:
        assert answers[0] == values.tolist() == read_ans(blob, bits, values.size)


def test_the_decoders_bounds_are_those_on_the_page() -> None:
    from phase8.codecs.hyper.decode import BOUNDS as HYPER
    from phase8.codecs.seedlm.decode import BOUNDS as SEEDLM

    text = " ".join(PAGE.split()).replace("2^31 - 1", str(2**31 - 1)).replace("2^24", str(2**24))
    for bounds in (SEEDLM, *HYPER.values()):
        for name, (low, high) in bounds.items():
            if name == "block_size" and low == 0:
                low = 1  # and 0 for a whole tensor, as the page goes on
            assert re.search(rf"`{name}`( \w)? \({low} to {high}\b", text), (name, low, high)


def test_matrices_that_share_integers_are_read_from_the_page_too() -> None:
    rng = np.random.default_rng(0)
    own = {"a": rng.integers(-40, 41, (9, 70)), "c": rng.integers(-1, 2, (5, 70)), "d": np.zeros((2, 3), np.int64)}
    shapes = {"a": (10, 72), "b": (9, 80), "c": (5, 70), "d": (2, 3)}
    group = lattice.pack(own, {"a": 0.5, "b": 0.25, "c": 3.0, "d": 1.0}, shapes, {"b": "a"})
    source = {"hash": "example", "parameters": sum(o * i for o, i in shapes.values())}
    found = read(file_bytes([group], "hyper", source, {"config.json": b"{}\n"}))
    assert {name: weights.tobytes() for name, weights in found.items()} == {
        name: weights.tobytes() for name, weights in decode(group)
    }
    assert np.array_equal(found["b"][:9, :70], own["a"] * np.float32(0.25))
