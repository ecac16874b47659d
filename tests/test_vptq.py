"""VPTQ against a dense reference of the second-order update, a plain decoder, and its own promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phase8.allocation.packed import packed_bits
from phase8.artifact.read import parse
from phase8.artifact.write import file_bytes
from phase8.codecs.base import EncodedGroup, Importance, Stream
from phase8.codecs.vptq import books, matrix
from phase8.codecs.vptq.decode import codebooks
from phase8.codecs.vptq.encode import VPTQCodec
from phase8.config import VPTQConfig
from phase8.errors import ArtifactError, CodecError, ConfigError
from tests.test_format import read_vptq

published = partial(VPTQConfig, num_codebooks=2, codebook_bits=16, hessian_damping=0.01)
"""The paper's settings; the defaults of a run are others."""
SMALL = published(vector_dim=4, codebook_size=16, num_codebooks=2, kmeans_iterations=5)


def _gaussian(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def _correlated_hessian(columns: int, seed: int = 0, tokens: int = 500) -> torch.Tensor:
    """Second moment of inputs that share a few directions and differ in size, as activations do."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns // 4, columns, generator=generator)
    x = torch.randn(tokens, columns // 4, generator=generator) @ mixing
    x = x + torch.randn(tokens, columns, generator=generator)
    x = x * torch.exp(torch.randn(columns, generator=generator) / 2)
    return x.T @ x / tokens


def _encode(
    weight: torch.Tensor, config: VPTQConfig = SMALL, seed: int = 0, **importance: torch.Tensor | None
) -> EncodedGroup:
    return VPTQCodec().encode({"w": weight}, config, importance={"w": Importance(**importance)}, seed=seed)


def _relative_error(weight: torch.Tensor, decoded: np.ndarray) -> float:
    return float((torch.from_numpy(decoded) - weight).square().sum() / weight.square().sum())


def _hessian_error(weight: torch.Tensor, decoded: np.ndarray, hessian: torch.Tensor) -> float:
    """tr(dW H dW^T) / tr(W H W^T): relative squared error of the layer's output."""
    difference = torch.from_numpy(decoded) - weight
    return float(((difference @ hessian) * difference).sum() / ((weight @ hessian) * weight).sum())


def _dense_loop(
    weight: np.ndarray, hessian: np.ndarray, row: np.ndarray, damping: float, books: list[np.ndarray]
) -> list[np.ndarray]:
    """The second-order loop as Optimal Brain Surgeon states it: one matrix inverse per column, all in float64.

    Returns the index of each part of a vector [G Q, I], per codebook [Q, K, U].
    """
    rows, columns = weight.shape
    product, _, u = books[0].shape
    v = product * u
    hessian = hessian / np.mean(np.diag(hessian)) + damping * np.eye(columns)
    order = sorted(range(columns), key=lambda j: -hessian[j, j])
    vectors = -(-rows // v)
    w = np.zeros((vectors * v, columns))
    w[:rows] = weight
    r = np.zeros(vectors * v)
    r[:rows] = row
    chosen = [np.zeros((vectors * product, columns), dtype=np.int64) for _ in books]
    left = list(order)
    for q in order:
        inverse = np.linalg.inv(hessian[np.ix_(left, left)])
        coded = np.zeros(vectors * v)
        for g in range(vectors * product):
            part = slice(g * u, (g + 1) * u)
            for m, book in enumerate(books):
                entries = book[g % product]
                distance = (r[part] * (w[part, q] - coded[part] - entries) ** 2).sum(axis=1)
                chosen[m][g, q] = distance.argmin()
                coded[part] += entries[chosen[m][g, q]]
        # The column that is coded stands first in `left`.
        w[:, left] -= np.outer((w[:, q] - coded) / inverse[0, 0], inverse[0])
        left.pop(0)
    return chosen


@pytest.mark.parametrize(
    ("shape", "books", "product", "weighted_rows"),
    [
        ((16, 40), 1, 1, False),
        ((13, 40), 2, 1, False),
        ((10, 150), 2, 1, True),
        ((8, 300), 1, 1, False),
        ((13, 40), 2, 2, False),
        ((10, 150), 1, 4, True),
    ],
)
def test_loop_equals_the_dense_reference(shape: tuple[int, int], books: int, product: int, weighted_rows: bool) -> None:
    weight, hessian = _gaussian(*shape), _correlated_hessian(shape[1])
    row = torch.rand(shape[0], generator=torch.Generator().manual_seed(5)) + 0.1 if weighted_rows else None
    config = replace(SMALL, num_codebooks=books, product=product)
    group = _encode(weight, config, hessian_II=hessian, row_O=row)
    scale = group.tensors["w"].streams["scale"].values.view(np.float16).astype(np.float64)[0]
    expected = _dense_loop(
        (weight / float(scale)).numpy().astype(np.float64),
        hessian.numpy().astype(np.float64),
        np.ones(shape[0]) if row is None else row.numpy().astype(np.float64),
        config.hessian_damping,
        [book.astype(np.float64) for book in codebooks(group)],
    )
    for m in range(books):
        index = group.tensors["w"].streams[f"index_{m}"].values.reshape(-1, shape[1])
        assert np.array_equal(index, expected[m])


OUTLIERS = replace(SMALL, outlier_columns=0.1, outlier_vector_dim=2, outlier_codebook_size=32)


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("config", [SMALL, replace(OUTLIERS, num_codebooks=1), replace(OUTLIERS, product=2)])
def test_strips_of_rows_give_the_same_streams(
    monkeypatch: pytest.MonkeyPatch, config: VPTQConfig, calibrated: bool
) -> None:
    weights = {"a": _gaussian(61, 40), "b": _gaussian(9, 30, seed=1)}
    row = torch.rand(61, generator=torch.Generator().manual_seed(5)) + 0.1
    importance = {"a": Importance(hessian_II=_correlated_hessian(40), row_O=row)} if calibrated else {}
    whole = VPTQCodec().encode(weights, config, importance=importance, seed=0)
    for at_once in (1, 40 * 4 * 7):  # one vector of every column, and seven
        monkeypatch.setattr(matrix, "AT_ONCE", at_once)
        strips = VPTQCodec().encode(weights, config, importance=importance, seed=0)
        assert strips.settings == whole.settings
        for role, stream in whole.shared.items():
            assert np.array_equal(stream.values, strips.shared[role].values), role
        for name, tensor in whole.tensors.items():
            for role, stream in tensor.streams.items():
                found = strips.tensors[name].streams[role].values
                assert found.dtype == stream.values.dtype
                assert (found == stream.values).mean() > 0.999, (name, role)  # all but what rounding decides


@pytest.mark.parametrize("weighted_rows", [False, True])
def test_outlier_columns_come_first_and_are_decoded_by_their_own_codebook(weighted_rows: bool) -> None:
    """The dense loop over the outliers alone, then over the rest; the decoder written out."""
    weight, hessian = _gaussian(13, 40), _correlated_hessian(40).double().numpy()
    row = torch.rand(13, generator=torch.Generator().manual_seed(5)) + 0.1 if weighted_rows else None
    group = _encode(weight, OUTLIERS, hessian_II=torch.from_numpy(hessian).float(), row_O=row)
    assert group.settings["outliers"] == [100, 2, 32]
    streams = {role: stream.values for role, stream in group.tensors["w"].streams.items()}
    largest = sorted(np.argsort(-np.diag(hessian))[:4].tolist())
    assert streams["outlier_column"].tolist() == largest
    scale = streams["scale"].view(np.float16).astype(np.float64)[0]
    book = group.shared["outlier_codebook"].values.view(np.float16).astype(np.float64).reshape(-1, 2)
    decoded = VPTQCodec().decode(group)["w"]
    for t, j in enumerate(largest):
        found = book[streams["outlier_index"].reshape(-1, 4)[:, t]].reshape(-1)[:13] * scale
        np.testing.assert_allclose(decoded[:, j], found, rtol=1e-6)

    h = hessian / np.mean(np.diag(hessian)) + OUTLIERS.hessian_damping * np.eye(40)
    r = np.zeros(16)
    r[:13] = 1 if row is None else row.numpy()
    w = np.zeros((16, 40))
    w[:13] = weight.double().numpy() / scale
    books = [found[0].astype(np.float64) for found in codebooks(group)[:-1]]
    others = [j for j in range(40) if j not in largest]
    left = sorted(range(40), key=lambda j: -h[j, j])
    for q in list(left):
        inverse, coded = np.linalg.inv(h[np.ix_(left, left)]), np.zeros(16)
        own, v = ([book], 2) if q in largest else (books, 4)
        for g in range(-(-13 // v)):
            part = slice(g * v, (g + 1) * v)
            for m, entries in enumerate(own):
                chosen = (r[part] * (w[part, q] - coded[part] - entries) ** 2).sum(axis=1).argmin()
                coded[part] += entries[chosen]
                if q in largest:
                    assert streams["outlier_index"].reshape(-1, 4)[g, largest.index(q)] == chosen
                else:
                    assert streams[f"index_{m}"].reshape(-1, 36)[g, others.index(q)] == chosen
        w[:, left] -= np.outer((w[:, q] - coded) / inverse[0, 0], inverse[0])
        left.pop(0)


def test_planted_outliers_are_worth_their_own_codebook() -> None:
    """Independent inputs, some ten times as large: less output error in fewer bits than with one codebook for all."""
    weight = _gaussian(128, 160)
    size = torch.ones(160)
    size[torch.randperm(160, generator=torch.Generator().manual_seed(6))[:8]] = 10.0
    inputs = torch.randn(2000, 160, generator=torch.Generator().manual_seed(7)) * size
    hessian = inputs.T @ inputs / len(inputs)
    plain = published(vector_dim=4, codebook_size=128, num_codebooks=1, codebook_bits=8)
    apart = replace(plain, codebook_size=64, outlier_columns=0.05, outlier_vector_dim=2, outlier_codebook_size=128)
    errors, bits = [], []
    for config in (plain, apart):
        group = _encode(weight, config, hessian_II=hessian)
        errors.append(_hessian_error(weight, VPTQCodec().decode(group)["w"], hessian))
        bits.append(group.packed_bits())
    assert bits[1] < bits[0] and errors[1] < 0.7 * errors[0]


def test_outliers_without_a_hessian_are_the_largest_columns() -> None:
    weight = _gaussian(16, 20)
    weight[:, [3, 11]] *= 20
    group = _encode(weight, OUTLIERS)
    assert group.tensors["w"].streams["outlier_column"].values.tolist() == [3, 11]
    assert not _same(group, _encode(weight))


def test_matrices_too_narrow_for_outliers_have_none() -> None:
    weights = {"wide": _gaussian(8, 40), "narrow": _gaussian(8, 5)}
    group = VPTQCodec().encode(weights, OUTLIERS, importance={}, seed=0)
    assert "outlier_index" in group.tensors["wide"].streams and "outlier_index" not in group.tensors["narrow"].streams
    assert _relative_error(weights["narrow"], VPTQCodec().decode(group)["narrow"]) < 0.3
    assert "outliers" not in _encode(_gaussian(8, 5), OUTLIERS).settings


@pytest.mark.parametrize(("books", "most"), [(1, 0.35), (2, 0.2)])
def test_loop_lowers_the_output_error(books: int, most: float) -> None:
    weight, hessian = _gaussian(64, 128), _correlated_hessian(128)
    config = published(vector_dim=4, codebook_size=64, num_codebooks=books)
    errors = {}
    for second_order in (False, True):
        group = _encode(weight, replace(config, second_order=second_order), hessian_II=hessian)
        errors[second_order] = _hessian_error(weight, VPTQCodec().decode(group)["w"], hessian)
    assert errors[True] < most * errors[False]


def test_hessian_weights_favour_the_columns_that_matter() -> None:
    weight = _gaussian(64, 64)
    hessian = torch.diag(torch.cat([torch.full((8,), 100.0), torch.ones(56)]))
    decoded = VPTQCodec().decode(_encode(weight, hessian_II=hessian))["w"]
    assert _relative_error(weight[:, :8], decoded[:, :8]) < 0.5 * _relative_error(weight[:, 8:], decoded[:, 8:])


def test_row_weights_favour_the_rows_that_matter() -> None:
    weight = _gaussian(128, 32)
    row = torch.where(torch.arange(128) % 4 == 1, 20.0, 0.5)
    decoded = VPTQCodec().decode(_encode(weight, row_O=row))["w"]
    assert _relative_error(weight[1::4], decoded[1::4]) < 0.3 * _relative_error(weight[2::4], decoded[2::4])


def test_hessian_of_any_size_and_the_identity_say_the_same() -> None:
    weight, hessian = _gaussian(16, 24), _correlated_hessian(24)
    assert _same(_encode(weight, hessian_II=hessian), _encode(weight, hessian_II=hessian * 1024))
    assert _same(_encode(weight), _encode(weight, hessian_II=torch.eye(24), row_O=torch.ones(16)))
    assert not _same(_encode(weight), _encode(weight, hessian_II=hessian))


def test_silent_and_rank_deficient_inputs_can_be_coded() -> None:
    weight = _gaussian(16, 24)
    assert _same(_encode(weight), _encode(weight, hessian_II=torch.zeros(24, 24)))
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    x[:, 3] = 0.0
    decoded = VPTQCodec().decode(_encode(weight, hessian_II=x.T @ x))["w"]
    assert _hessian_error(weight, decoded, x.T @ x) < 0.2


# Relative squared error on Gaussian weights: between the least possible at R bits, 2^(-2R), and six sevenths of what
# the best scalar quantiser of R bits reaches (Max 1960).
@pytest.mark.parametrize(
    ("v", "size", "books", "bits", "scalar"),
    [(8, 256, 1, 1.0, 0.3634), (8, 256, 2, 2.0, 0.1175), (4, 256, 1, 2.0, 0.1175), (2, 256, 1, 4.0, 0.009497)],
)
def test_error_on_gaussian_weights(v: int, size: int, books: int, bits: float, scalar: float) -> None:
    weight = _gaussian(256, 512)
    config = published(vector_dim=v, codebook_size=size, num_codebooks=books)
    group = _encode(weight, config)
    indices = [s for role, s in group.tensors["w"].streams.items() if role.startswith("index")]
    assert sum(s.bits * s.values.size for s in indices) / weight.numel() == bits
    assert 2 ** (-2 * bits) < _relative_error(weight, VPTQCodec().decode(group)["w"]) < scalar * 6 / 7


def test_more_codebooks_and_larger_ones_lower_the_error() -> None:
    weight, hessian = _gaussian(64, 64), _correlated_hessian(64)

    def error(**changes: int) -> float:
        group = _encode(weight, replace(SMALL, **changes), hessian_II=hessian)
        return _hessian_error(weight, VPTQCodec().decode(group)["w"], hessian)

    by_books = [error(num_codebooks=n) for n in (1, 2, 3)]
    by_size = [error(codebook_size=n) for n in (4, 16, 100)]
    assert by_books[1] < 0.7 * by_books[0] and by_books[2] < 0.7 * by_books[1]
    assert by_size[1] < 0.7 * by_size[0] and by_size[2] < 0.7 * by_size[1]


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize(
    ("shape", "v"), [((16, 8), 8), ((17, 5), 8), ((5, 9), 8), ((1, 4), 4), ((3, 1), 1), ((7, 3), 2)]
)
def test_decode_is_the_formula_element_by_element(shape: tuple[int, int], v: int, bits: int) -> None:
    weight = _gaussian(*shape)
    config = replace(SMALL, vector_dim=v, codebook_bits=bits)
    group = _encode(weight, config, hessian_II=_correlated_hessian(max(shape[1], 4))[: shape[1], : shape[1]])
    decoded = VPTQCodec().decode(group)["w"]
    assert decoded.shape == shape and decoded.dtype == np.float32 and decoded.flags.c_contiguous

    streams = group.tensors["w"].streams
    scale = streams["scale"].values.view(np.float16).astype(np.float32)[0]
    for o in range(shape[0]):
        for j in range(shape[1]):
            total = np.float32(0)
            for m in range(config.num_codebooks):
                entry = int(streams[f"index_{m}"].values[(o // v) * shape[1] + j])
                code = group.shared[f"codebook_{m}"].values[entry * v + o % v]
                if bits == 16:
                    total += np.float32(np.uint16(code).view(np.float16))
                else:
                    step = group.shared[f"codebook_{m}_step"].values.view(np.float16).astype(np.float32)[0]
                    total += (np.float32(code) - np.float32(128)) * step
            assert decoded[o, j] == total * scale
    assert _relative_error(weight, decoded) < 0.5


def test_every_part_of_a_vector_has_a_codebook_of_its_own() -> None:
    """Every other pair of rows is four times as large: so is the codebook of the second part."""
    weight = _gaussian(24, 30)
    weight[torch.arange(24) // 2 % 2 == 1] *= 4
    config = published(vector_dim=4, product=2, codebook_size=256, num_codebooks=1, codebook_bits=16)
    group = _encode(weight, config)
    assert group.settings["codebook_sizes"] == [180] and group.shared["codebook_0"].values.size == 180 * 4
    assert group.tensors["w"].streams["index_0"].values.size == 2 * 180
    assert _relative_error(weight, VPTQCodec().decode(group)["w"]) < 1e-6
    small, large = codebooks(_encode(weight, replace(config, codebook_size=16)))[0]
    assert 3 < np.abs(large).mean() / np.abs(small).mean() < 5


def test_product_codebooks_multiply_the_entries() -> None:
    """Two codebooks of 16 entries for halves of a vector reach nearly what one of 256 does, at a sixteenth of it."""
    weight, hessian = _gaussian(64, 128), _correlated_hessian(128)
    base = published(vector_dim=4, num_codebooks=1, codebook_bits=16)
    errors, books = [], []
    for change in ({"codebook_size": 256}, {"codebook_size": 16, "product": 2}, {"codebook_size": 16}):
        group = _encode(weight, replace(base, **change), hessian_II=hessian)
        errors.append(_hessian_error(weight, VPTQCodec().decode(group)["w"], hessian))
        books.append(sum(s.bits * s.values.size for s in group.shared.values()))
    assert books[0] == 16 * books[1]
    assert errors[0] < errors[1] < 0.6 * errors[2]


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 21), st.integers(1, 23)), min_size=1, max_size=2),
    cut=st.sampled_from([(1, 1), (2, 1), (2, 2), (6, 2), (6, 3), (6, 6), (8, 4)]),
    books=st.integers(1, 3),
    codebook_bits=st.sampled_from([8, 16]),
    outliers=st.sampled_from([0.0, 0.1, 0.5]),
    calibrated=st.booleans(),
)
def test_any_shapes_are_read_by_the_second_reader(
    shapes: list[tuple[int, int]],
    cut: tuple[int, int],
    books: int,
    codebook_bits: int,
    outliers: float,
    calibrated: bool,
) -> None:
    """Shapes that nothing divides: streams as promised, the page's decoder, training's decoder, the file."""
    weights = {f"w{n}": _gaussian(*shape, seed=n) for n, shape in enumerate(shapes)}
    config = VPTQConfig(
        vector_dim=cut[0], product=cut[1], num_codebooks=books, codebook_size=5, kmeans_iterations=2,
        codebook_bits=codebook_bits, outlier_columns=outliers, outlier_vector_dim=1,
        outlier_codebook_size=3,
    )  # fmt: skip
    importance = {}
    if calibrated:
        importance = {
            name: Importance(hessian_II=torch.eye(w.shape[1]) + 0.3, row_O=torch.linspace(0.5, 1.5, len(w)))
            for name, w in weights.items()
        }
    group = VPTQCodec().encode(weights, config, importance=importance, seed=1)
    assert _same(group, VPTQCodec().encode(weights, config, importance=importance, seed=1))
    assert group.packed_bits() == packed_bits("vptq", config, {name: tuple(w.shape) for name, w in weights.items()})
    decoded = VPTQCodec().decode(group)
    shared = {role: stream.values.tolist() for role, stream in group.shared.items()}
    trained = VPTQCodec().trainable(group).weights()
    raw = file_bytes([group], "vptq", {"hash": "x", "parameters": sum(w.numel() for w in weights.values())})
    stored = parse(raw).artifact().decode()
    for name, found in decoded.items():
        own = {role: stream.values.tolist() for role, stream in group.tensors[name].streams.items()}
        expected = np.array(read_vptq(group.settings, list(found.shape), shared, own), dtype=np.float32)
        assert found.tobytes() == expected.tobytes() == stored[name].tobytes()
        assert np.array_equal(trained[name].detach().numpy(), found)


@pytest.mark.parametrize("product", [1, 2])
def test_codebooks_are_fitted_to_a_sample_of_many_vectors(monkeypatch: pytest.MonkeyPatch, product: int) -> None:
    weights = {"a": _gaussian(203, 90), "b": _gaussian(64, 50, seed=1)}
    config = replace(SMALL, codebook_size=8, product=product, outlier_columns=0.1, outlier_codebook_size=8)
    counts: list[int] = []
    original = books.kmeans

    def counted(x_ND: np.ndarray, k: int, **rest: object) -> object:
        counts.append(len(x_ND))
        return original(x_ND, k, **rest)

    monkeypatch.setattr(books, "kmeans", counted)
    hessians = {name: Importance(hessian_II=_correlated_hessian(w.shape[1])) for name, w in weights.items()}

    def error() -> float:
        group = VPTQCodec().encode(weights, config, importance=hessians, seed=0)
        decoded = VPTQCodec().decode(group)
        return sum(_hessian_error(w, decoded[name], hessians[name].hessian_II) for name, w in weights.items())

    whole = error()
    ordinary = 51 * 81 + 16 * 45
    assert counts == [51 * 2 * 9 + 16 * 2 * 5] + [ordinary] * (2 * product)
    counts.clear()
    monkeypatch.setattr(books, "FITTED_VECTORS", 1500)
    assert error() < 1.1 * whole
    assert counts[0] == 51 * 2 * 9 + 16 * 2 * 5 and all(1300 < count <= 1500 for count in counts[1:])
    counts.clear()
    monkeypatch.setattr(books, "FITTED_VECTORS", 10)
    error()
    assert all(200 < count <= 32 * 8 for count in counts)


def test_worked_example_of_the_module() -> None:
    def floats(*values: float) -> Stream:
        return Stream(values=np.array(values, dtype=np.float16).view(np.uint16), bits=16)

    def index(*values: int) -> Stream:
        return Stream(values=np.array(values, dtype=np.uint8), bits=1)

    group = _encode(torch.tensor([[1.2], [1.1], [-1.0], [-1.3]]), published(vector_dim=2, codebook_size=2))
    streams = {"scale": floats(1.0), "index_0": index(0, 1), "index_1": index(0, 1)}
    group = replace(
        group,
        tensors={"w": replace(group.tensors["w"], streams=streams)},
        shared={"codebook_0": floats(1, 1, -1, -1), "codebook_1": floats(0.25, 0, 0, -0.25)},
    )
    assert VPTQCodec().decode(group)["w"][:, 0].tolist() == [1.25, 1.0, -1.0, -1.25]


def test_matrices_of_different_shape_and_size_share_codebooks() -> None:
    weights = {"a": _gaussian(32, 24), "b": _gaussian(13, 40, seed=1) * 1000, "c": torch.zeros(6, 5)}
    importance = {"a": Importance(hessian_II=_correlated_hessian(24))}
    finished: list[int] = []
    config = replace(SMALL, codebook_size=64)
    group = VPTQCodec().encode(weights, config, importance=importance, seed=0, on_progress=finished.append)
    decoded = VPTQCodec().decode(group)
    assert list(decoded) == ["a", "b", "c"]
    assert sum(finished) == sum(w.numel() for w in weights.values())
    assert _relative_error(weights["a"], decoded["a"]) < 0.2
    assert _relative_error(weights["b"], decoded["b"]) < 0.2
    assert not decoded["c"].any()
    # 2 codebooks of 64 x 4 float16 entries, 2 x 6 bits per vector, a float16 scale per matrix
    assert group.packed_bits() == 2 * 64 * 4 * 16 + 2 * 6 * (8 * 24 + 4 * 40 + 2 * 5) + 3 * 16


def test_small_group_gets_as_many_entries_as_it_has_vectors() -> None:
    weight = _gaussian(8, 3)
    group = _encode(weight, replace(SMALL, codebook_size=256))
    assert group.settings["codebook_sizes"] == [6, 6]
    assert _relative_error(weight, VPTQCodec().decode(group)["w"]) < 1e-5
    assert _encode(_gaussian(4, 1)).tensors["w"].streams["index_0"].bits == 1


def test_index_widths() -> None:
    for size, bits, dtype in ((2, 1, np.uint8), (5, 3, np.uint8), (256, 8, np.uint8), (300, 9, np.uint16)):
        config = published(vector_dim=2, codebook_size=size, num_codebooks=1, kmeans_iterations=2)
        stream = _encode(_gaussian(32, 64), config).tensors["w"].streams["index_0"]
        assert stream.bits == bits and stream.values.dtype == dtype
        assert stream.values.max() == size - 1


def _same(a: EncodedGroup, b: EncodedGroup) -> bool:
    def flat(group: EncodedGroup) -> list[Stream]:
        return [*group.shared.values(), *(s for t in group.tensors.values() for s in t.streams.values())]

    return a.settings == b.settings and all(
        x.bits == y.bits and np.array_equal(x.values, y.values) for x, y in zip(flat(a), flat(b), strict=True)
    )


def test_same_seed_same_streams() -> None:
    weight, hessian = _gaussian(40, 50), _correlated_hessian(50)
    before = weight.clone()
    first = _encode(weight, hessian_II=hessian)
    torch.manual_seed(99)
    np.random.seed(99)
    assert _same(first, _encode(weight, hessian_II=hessian))
    assert not _same(first, _encode(weight, seed=1, hessian_II=hessian))
    assert torch.equal(weight, before), "the input must not be written to"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_and_importance_that_are_not_finite_are_refused(value: float) -> None:
    weight, hessian = _gaussian(8, 8), torch.eye(8)
    bad_weight, bad_hessian, bad_row = weight.clone(), hessian.clone(), torch.ones(8)
    bad_weight[3, 2] = bad_hessian[1, 1] = bad_row[0] = value
    with pytest.raises(CodecError, match="NaN or infinite"):
        _encode(bad_weight)
    with pytest.raises(CodecError, match="8 x 8 finite numbers"):
        _encode(weight, hessian_II=bad_hessian)
    with pytest.raises(CodecError, match="8 finite numbers"):
        _encode(weight, row_O=bad_row)


def test_inputs_that_do_not_fit_are_refused() -> None:
    weight = _gaussian(8, 6)
    indefinite = torch.eye(6)
    indefinite[0, 1] = indefinite[1, 0] = 3.0
    negative = torch.diag(torch.tensor([9.0, 1.0, 1.0, 1.0, 1.0, -1.0]))
    for hessian in (torch.eye(8), negative, indefinite):
        with pytest.raises(CodecError, match="Hessian"):
            _encode(weight, hessian_II=hessian)
    for row in (torch.ones(6), -torch.ones(8), torch.zeros(8)):
        with pytest.raises(CodecError, match="row weights"):
            _encode(weight, row_O=row)
    with pytest.raises(CodecError, match="a matrix is needed"):
        _encode(torch.ones(8))
    with pytest.raises(CodecError, match="exceeds float16"):
        _encode(weight * 1e8)


@pytest.mark.parametrize(
    "setting",
    [
        {"vector_dim": 0},
        {"vector_dim": 5000},
        {"codebook_size": 1},
        {"codebook_size": 65537},
        {"num_codebooks": 0},
        {"codebook_bits": 4},
        {"hessian_damping": 0.0},
        {"hessian_damping": float("nan")},
        {"kmeans_iterations": 0},
        {"product": 0},
        {"product": 3},
        {"share_layers": -1},
        {"outlier_columns": 0.6},
        {"outlier_columns": float("nan")},
        {"outlier_vector_dim": 3, "outlier_columns": 0.1},
        {"outlier_codebook_size": 1},
    ],
)
def test_impossible_settings_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"vptq.{next(iter(setting))}"):
        VPTQConfig(**setting)


def _with_stream(group: EncodedGroup, role: str, change: Callable[[np.ndarray], np.ndarray]) -> EncodedGroup:
    if role in group.shared:
        stream = group.shared[role]
        return replace(group, shared={**group.shared, role: replace(stream, values=change(stream.values.copy()))})
    tensor = group.tensors["w"]
    stream = tensor.streams[role]
    streams = {**tensor.streams, role: replace(stream, values=change(stream.values.copy()))}
    return replace(group, tensors={"w": replace(tensor, streams=streams)})


def _filled(value: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: np.full_like(values, value)


CORRUPTIONS: dict[str, Callable[[EncodedGroup], EncodedGroup]] = {
    "index too large": lambda g: _with_stream(g, "index_1", _filled(16)),
    "index stream short": lambda g: _with_stream(g, "index_0", lambda x: x[:-1]),
    "index stream long": lambda g: _with_stream(g, "index_0", lambda x: np.append(x, x[:1])),
    "index stream two-dimensional": lambda g: _with_stream(g, "index_0", lambda x: x[:, None]),
    "index stream signed": lambda g: _with_stream(g, "index_0", lambda x: -x.astype(np.int64)),
    "codebook short": lambda g: _with_stream(g, "codebook_0", lambda x: x[4:]),
    "codebook NaN": lambda g: _with_stream(g, "codebook_1", _filled(0x7E00)),
    "codebook beyond 16 bits": lambda g: _with_stream(g, "codebook_1", lambda x: x.astype(np.uint32) + 0x10000),
    "scale infinite": lambda g: _with_stream(g, "scale", _filled(0x7C00)),
    "scale missing": lambda g: replace(g, tensors={"w": replace(g.tensors["w"], streams={})}),
    "codebooks missing": lambda g: replace(g, shared={}),
    "shape too large": lambda g: replace(g, tensors={"w": replace(g.tensors["w"], shape=(1 << 40, 1 << 20))}),
    "shape negative": lambda g: replace(g, tensors={"w": replace(g.tensors["w"], shape=(-16, -20))}),
    "no settings": lambda g: replace(g, settings={}),
    "no codebooks": lambda g: replace(g, settings={**g.settings, "codebook_sizes": []}),
    "vector_dim 0": lambda g: replace(g, settings={**g.settings, "vector_dim": 0}),
    "vector_dim true": lambda g: replace(g, settings={**g.settings, "vector_dim": True}),
    "vector_dim huge": lambda g: replace(g, settings={**g.settings, "vector_dim": 1 << 62}),
    "sizes not integers": lambda g: replace(g, settings={**g.settings, "codebook_sizes": [16.0, 16.0]}),
    "sizes not a list": lambda g: replace(g, settings={**g.settings, "codebook_sizes": 16}),
    "unknown codebook_bits": lambda g: replace(g, settings={**g.settings, "codebook_bits": 12}),
    "8-bit codebook without its step": lambda g: replace(g, settings={**g.settings, "codebook_bits": 8}),
}


def _setting(value: object) -> Callable[[EncodedGroup], EncodedGroup]:
    return lambda g: replace(g, settings={**g.settings, "outliers": value})


PRODUCT = replace(SMALL, product=2)
PRODUCT_CORRUPTIONS: dict[str, Callable[[EncodedGroup], EncodedGroup]] = {
    "index too large": lambda g: _with_stream(g, "index_1", _filled(16)),
    "index of one part only": lambda g: _with_stream(g, "index_0", lambda x: x[::2]),
    "codebook of one part only": lambda g: _with_stream(g, "codebook_0", lambda x: x[:32]),
    "product 1": lambda g: _set(g, product=1),
    "product 4": lambda g: _set(g, product=4),
    "product 3": lambda g: _set(g, product=3),
    "product 0": lambda g: _set(g, product=0),
    "product true": lambda g: _set(g, product=True),
    "product huge": lambda g: _set(g, product=1 << 62),
    "product missing": lambda g: replace(g, settings={k: v for k, v in g.settings.items() if k != "product"}),
}


def _set(group: EncodedGroup, **changes: object) -> EncodedGroup:
    return replace(group, settings={**group.settings, **changes})


@pytest.mark.parametrize(
    "corruption",
    PRODUCT_CORRUPTIONS,
)
def test_corrupt_product_codebooks_are_refused(corruption: str) -> None:
    group = _encode(_gaussian(16, 20), replace(PRODUCT, codebook_size=16), seed=3)
    assert group.settings["codebook_sizes"] == [16, 16] and group.settings["product"] == 2
    for read in (VPTQCodec().decode, VPTQCodec().trainable):
        read(group)
        with pytest.raises(ArtifactError):
            read(PRODUCT_CORRUPTIONS[corruption](group))


OUTLIER_CORRUPTIONS: dict[str, Callable[[EncodedGroup], EncodedGroup]] = {
    "outliers twice": lambda g: _with_stream(g, "outlier_column", _filled(3)),
    "outliers descending": lambda g: _with_stream(g, "outlier_column", lambda x: x[::-1]),
    "outlier beyond the matrix": lambda g: _with_stream(g, "outlier_column", lambda x: x + np.uint8(31 - x[-1])),
    "outlier index too large": lambda g: _with_stream(g, "outlier_index", _filled(7)),
    "outlier index short": lambda g: _with_stream(g, "outlier_index", lambda x: x[1:]),
    "outlier codebook NaN": lambda g: _with_stream(g, "outlier_codebook", _filled(0x7E00)),
    "more outliers": _setting([400, 2, 7]),
    "most outliers": _setting([501, 2, 7]),
    "no outliers": _setting([0, 2, 7]),
    "vectors of 3": _setting([100, 3, 7]),
    "vectors of 1": _setting([100, 1, 7]),
    "larger codebook": _setting([100, 2, 8]),
    "huge codebook": _setting([100, 2, 1 << 60]),
    "setting too short": _setting([100, 2]),
    "setting no list": _setting(100),
    "setting not whole": _setting([100.0, 2, 7]),
    "setting missing": lambda g: replace(g, settings={k: v for k, v in g.settings.items() if k != "outliers"}),
}


@pytest.mark.parametrize("corruption", OUTLIER_CORRUPTIONS)
def test_corrupt_outliers_are_refused(corruption: str) -> None:
    group = _encode(_gaussian(16, 20), replace(OUTLIERS, outlier_codebook_size=7))
    assert VPTQCodec().decode(group)["w"].shape == (16, 20)
    for read in (VPTQCodec().decode, VPTQCodec().trainable):
        with pytest.raises(ArtifactError):
            read(OUTLIER_CORRUPTIONS[corruption](group))


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_corrupt_streams_are_refused(corruption: str) -> None:
    group = _encode(_gaussian(16, 20))
    assert VPTQCodec().decode(group)["w"].shape == (16, 20)
    with pytest.raises(ArtifactError):
        VPTQCodec().decode(CORRUPTIONS[corruption](group))
    with pytest.raises(ArtifactError):
        VPTQCodec().trainable(CORRUPTIONS[corruption](group))


@pytest.mark.parametrize("product", [1, 2])
@pytest.mark.parametrize("outliers", [0.0, 0.1])
@pytest.mark.parametrize("bits", [16, 8])
def test_trainable_equals_decode_before_and_after_training(bits: int, outliers: float, product: int) -> None:
    codec = VPTQCodec()
    weights = {"a": _gaussian(18, 24), "b": _gaussian(32, 10, seed=1), "zero": torch.zeros(4, 4)}
    config = replace(OUTLIERS, codebook_bits=bits, outlier_columns=outliers, outlier_codebook_size=7)
    config = replace(config, product=product)
    group = codec.encode(weights, config, importance={}, seed=0)
    module = codec.trainable(group)
    assert _same(module.export(), group)
    for name, decoded in codec.decode(group).items():
        assert np.array_equal(module.weights()[name].detach().numpy(), decoded)

    def loss() -> torch.Tensor:
        found = module.weights()
        return sum((found[name] - weight).square().sum() for name, weight in weights.items())

    before = loss().item()
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert all(p.grad.abs().sum() > 0 for p in module.parameters())
    # Codebooks fitted one after the other leave room for fitting them together.
    assert loss().item() < 0.97 * before

    exported = module.export()
    assert not _same(exported, group)
    assert exported.packed_bits() == group.packed_bits()
    for name, decoded in codec.decode(exported).items():
        np.testing.assert_allclose(module.weights()[name].detach().numpy(), decoded, rtol=1e-5, atol=1e-7)


def test_export_refuses_parameters_that_left_float16() -> None:
    module = VPTQCodec().trainable(_encode(_gaussian(16, 8)))
    with torch.no_grad():
        module.scales.fill_(1e6)
    with pytest.raises(CodecError, match="too large for float16"):
        module.export()


def test_eight_bit_codebooks_cost_half_and_little_error() -> None:
    weight = _gaussian(64, 64)
    full, byte = (_encode(weight, replace(SMALL, codebook_bits=bits)) for bits in (16, 8))
    assert full.packed_bits() - byte.packed_bits() == 2 * (16 * 4 * 8 - 16)
    errors = [_relative_error(weight, VPTQCodec().decode(group)["w"]) for group in (full, byte)]
    assert errors[1] < 1.01 * errors[0]
