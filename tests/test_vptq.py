"""VPTQ against a dense reference of the second-order update, a plain decoder, and its own promises."""

from __future__ import annotations

from dataclasses import replace

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
from phase8.errors import CodecError
from tests.second_reader import read_vptq
from tests.vptq_cases import OUTLIERS, SMALL, correlated_hessian, dense_loop, encode, gaussian, published


def _relative_error(weight: torch.Tensor, decoded: np.ndarray) -> float:
    return float((torch.from_numpy(decoded) - weight).square().sum() / weight.square().sum())


def _hessian_error(weight: torch.Tensor, decoded: np.ndarray, hessian: torch.Tensor) -> float:
    """tr(dW H dW^T) / tr(W H W^T): relative squared error of the layer's output."""
    difference = torch.from_numpy(decoded) - weight
    return float(((difference @ hessian) * difference).sum() / ((weight @ hessian) * weight).sum())


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
    weight, hessian = gaussian(*shape), correlated_hessian(shape[1])
    row = torch.rand(shape[0], generator=torch.Generator().manual_seed(5)) + 0.1 if weighted_rows else None
    config = replace(SMALL, num_codebooks=books, product=product)
    group = encode(weight, config, hessian_II=hessian, row_O=row)
    scale = group.tensors["w"].streams["scale"].values.view(np.float16).astype(np.float64)[0]
    expected = dense_loop(
        (weight / float(scale)).numpy().astype(np.float64),
        hessian.numpy().astype(np.float64),
        np.ones(shape[0]) if row is None else row.numpy().astype(np.float64),
        config.hessian_damping,
        [book.astype(np.float64) for book in codebooks(group)],
    )
    for m in range(books):
        index = group.tensors["w"].streams[f"index_{m}"].values.reshape(-1, shape[1])
        assert np.array_equal(index, expected[m])


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("config", [SMALL, replace(OUTLIERS, num_codebooks=1), replace(OUTLIERS, product=2)])
def test_strips_of_rows_give_the_same_streams(
    monkeypatch: pytest.MonkeyPatch, config: VPTQConfig, calibrated: bool
) -> None:
    weights = {"a": gaussian(61, 40), "b": gaussian(9, 30, seed=1)}
    row = torch.rand(61, generator=torch.Generator().manual_seed(5)) + 0.1
    importance = {"a": Importance(hessian_II=correlated_hessian(40), row_O=row)} if calibrated else {}
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
    weight, hessian = gaussian(13, 40), correlated_hessian(40).double().numpy()
    row = torch.rand(13, generator=torch.Generator().manual_seed(5)) + 0.1 if weighted_rows else None
    group = encode(weight, OUTLIERS, hessian_II=torch.from_numpy(hessian).float(), row_O=row)
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
    weight = gaussian(128, 160)
    size = torch.ones(160)
    size[torch.randperm(160, generator=torch.Generator().manual_seed(6))[:8]] = 10.0
    inputs = torch.randn(2000, 160, generator=torch.Generator().manual_seed(7)) * size
    hessian = inputs.T @ inputs / len(inputs)
    plain = published(vector_dim=4, codebook_size=128, num_codebooks=1, codebook_bits=8)
    apart = replace(plain, codebook_size=64, outlier_columns=0.05, outlier_vector_dim=2, outlier_codebook_size=128)
    errors, bits = [], []
    for config in (plain, apart):
        group = encode(weight, config, hessian_II=hessian)
        errors.append(_hessian_error(weight, VPTQCodec().decode(group)["w"], hessian))
        bits.append(group.packed_bits())
    assert bits[1] < bits[0] and errors[1] < 0.7 * errors[0]


def test_outliers_without_a_hessian_are_the_largest_columns() -> None:
    weight = gaussian(16, 20)
    weight[:, [3, 11]] *= 20
    group = encode(weight, OUTLIERS)
    assert group.tensors["w"].streams["outlier_column"].values.tolist() == [3, 11]
    assert not _same(group, encode(weight))


def test_matrices_too_narrow_for_outliers_have_none() -> None:
    weights = {"wide": gaussian(8, 40), "narrow": gaussian(8, 5)}
    group = VPTQCodec().encode(weights, OUTLIERS, importance={}, seed=0)
    assert "outlier_index" in group.tensors["wide"].streams and "outlier_index" not in group.tensors["narrow"].streams
    assert _relative_error(weights["narrow"], VPTQCodec().decode(group)["narrow"]) < 0.3
    assert "outliers" not in encode(gaussian(8, 5), OUTLIERS).settings


@pytest.mark.parametrize(("books", "most"), [(1, 0.35), (2, 0.2)])
def test_loop_lowers_the_output_error(books: int, most: float) -> None:
    weight, hessian = gaussian(64, 128), correlated_hessian(128)
    config = published(vector_dim=4, codebook_size=64, num_codebooks=books)
    errors = {}
    for second_order in (False, True):
        group = encode(weight, replace(config, second_order=second_order), hessian_II=hessian)
        errors[second_order] = _hessian_error(weight, VPTQCodec().decode(group)["w"], hessian)
    assert errors[True] < most * errors[False]


def test_hessian_weights_favour_the_columns_that_matter() -> None:
    weight = gaussian(64, 64)
    hessian = torch.diag(torch.cat([torch.full((8,), 100.0), torch.ones(56)]))
    decoded = VPTQCodec().decode(encode(weight, hessian_II=hessian))["w"]
    assert _relative_error(weight[:, :8], decoded[:, :8]) < 0.5 * _relative_error(weight[:, 8:], decoded[:, 8:])


def test_row_weights_favour_the_rows_that_matter() -> None:
    weight = gaussian(128, 32)
    row = torch.where(torch.arange(128) % 4 == 1, 20.0, 0.5)
    decoded = VPTQCodec().decode(encode(weight, row_O=row))["w"]
    assert _relative_error(weight[1::4], decoded[1::4]) < 0.3 * _relative_error(weight[2::4], decoded[2::4])


def test_hessian_of_any_size_and_the_identity_say_the_same() -> None:
    weight, hessian = gaussian(16, 24), correlated_hessian(24)
    assert _same(encode(weight, hessian_II=hessian), encode(weight, hessian_II=hessian * 1024))
    assert _same(encode(weight), encode(weight, hessian_II=torch.eye(24), row_O=torch.ones(16)))
    assert not _same(encode(weight), encode(weight, hessian_II=hessian))


def test_silent_and_rank_deficient_inputs_can_be_coded() -> None:
    weight = gaussian(16, 24)
    assert _same(encode(weight), encode(weight, hessian_II=torch.zeros(24, 24)))
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    x[:, 3] = 0.0
    decoded = VPTQCodec().decode(encode(weight, hessian_II=x.T @ x))["w"]
    assert _hessian_error(weight, decoded, x.T @ x) < 0.2


# Relative squared error on Gaussian weights: between the least possible at R bits, 2^(-2R), and six sevenths of what
# the best scalar quantiser of R bits reaches (Max 1960).
@pytest.mark.parametrize(
    ("v", "size", "books", "bits", "scalar"),
    [(8, 256, 1, 1.0, 0.3634), (8, 256, 2, 2.0, 0.1175), (4, 256, 1, 2.0, 0.1175), (2, 256, 1, 4.0, 0.009497)],
)
def test_error_on_gaussian_weights(v: int, size: int, books: int, bits: float, scalar: float) -> None:
    weight = gaussian(256, 512)
    config = published(vector_dim=v, codebook_size=size, num_codebooks=books)
    group = encode(weight, config)
    indices = [s for role, s in group.tensors["w"].streams.items() if role.startswith("index")]
    assert sum(s.bits * s.values.size for s in indices) / weight.numel() == bits
    assert 2 ** (-2 * bits) < _relative_error(weight, VPTQCodec().decode(group)["w"]) < scalar * 6 / 7


def test_more_codebooks_and_larger_ones_lower_the_error() -> None:
    weight, hessian = gaussian(64, 64), correlated_hessian(64)

    def error(**changes: int) -> float:
        group = encode(weight, replace(SMALL, **changes), hessian_II=hessian)
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
    weight = gaussian(*shape)
    config = replace(SMALL, vector_dim=v, codebook_bits=bits)
    group = encode(weight, config, hessian_II=correlated_hessian(max(shape[1], 4))[: shape[1], : shape[1]])
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
    weight = gaussian(24, 30)
    weight[torch.arange(24) // 2 % 2 == 1] *= 4
    config = published(vector_dim=4, product=2, codebook_size=256, num_codebooks=1, codebook_bits=16)
    group = encode(weight, config)
    assert group.settings["codebook_sizes"] == [180] and group.shared["codebook_0"].values.size == 180 * 4
    assert group.tensors["w"].streams["index_0"].values.size == 2 * 180
    assert _relative_error(weight, VPTQCodec().decode(group)["w"]) < 1e-6
    small, large = codebooks(encode(weight, replace(config, codebook_size=16)))[0]
    assert 3 < np.abs(large).mean() / np.abs(small).mean() < 5


def test_product_codebooks_multiply_the_entries() -> None:
    """Two codebooks of 16 entries for halves of a vector reach nearly what one of 256 does, at a sixteenth of it."""
    weight, hessian = gaussian(64, 128), correlated_hessian(128)
    base = published(vector_dim=4, num_codebooks=1, codebook_bits=16)
    errors, books = [], []
    for change in ({"codebook_size": 256}, {"codebook_size": 16, "product": 2}, {"codebook_size": 16}):
        group = encode(weight, replace(base, **change), hessian_II=hessian)
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
    weights = {f"w{n}": gaussian(*shape, seed=n) for n, shape in enumerate(shapes)}
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
    weights = {"a": gaussian(203, 90), "b": gaussian(64, 50, seed=1)}
    config = replace(SMALL, codebook_size=8, product=product, outlier_columns=0.1, outlier_codebook_size=8)
    counts: list[int] = []
    original = books.kmeans

    def counted(x_ND: np.ndarray, k: int, **rest: object) -> object:
        counts.append(len(x_ND))
        return original(x_ND, k, **rest)

    monkeypatch.setattr(books, "kmeans", counted)
    hessians = {name: Importance(hessian_II=correlated_hessian(w.shape[1])) for name, w in weights.items()}

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

    group = encode(torch.tensor([[1.2], [1.1], [-1.0], [-1.3]]), published(vector_dim=2, codebook_size=2))
    streams = {"scale": floats(1.0), "index_0": index(0, 1), "index_1": index(0, 1)}
    group = replace(
        group,
        tensors={"w": replace(group.tensors["w"], streams=streams)},
        shared={"codebook_0": floats(1, 1, -1, -1), "codebook_1": floats(0.25, 0, 0, -0.25)},
    )
    assert VPTQCodec().decode(group)["w"][:, 0].tolist() == [1.25, 1.0, -1.0, -1.25]


def test_matrices_of_different_shape_and_size_share_codebooks() -> None:
    weights = {"a": gaussian(32, 24), "b": gaussian(13, 40, seed=1) * 1000, "c": torch.zeros(6, 5)}
    importance = {"a": Importance(hessian_II=correlated_hessian(24))}
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
    weight = gaussian(8, 3)
    group = encode(weight, replace(SMALL, codebook_size=256))
    assert group.settings["codebook_sizes"] == [6, 6]
    assert _relative_error(weight, VPTQCodec().decode(group)["w"]) < 1e-5
    assert encode(gaussian(4, 1)).tensors["w"].streams["index_0"].bits == 1


def test_index_widths() -> None:
    for size, bits, dtype in ((2, 1, np.uint8), (5, 3, np.uint8), (256, 8, np.uint8), (300, 9, np.uint16)):
        config = published(vector_dim=2, codebook_size=size, num_codebooks=1, kmeans_iterations=2)
        stream = encode(gaussian(32, 64), config).tensors["w"].streams["index_0"]
        assert stream.bits == bits and stream.values.dtype == dtype
        assert stream.values.max() == size - 1


def _same(a: EncodedGroup, b: EncodedGroup) -> bool:
    def flat(group: EncodedGroup) -> list[Stream]:
        return [*group.shared.values(), *(s for t in group.tensors.values() for s in t.streams.values())]

    return a.settings == b.settings and all(
        x.bits == y.bits and np.array_equal(x.values, y.values) for x, y in zip(flat(a), flat(b), strict=True)
    )


def test_same_seed_same_streams() -> None:
    weight, hessian = gaussian(40, 50), correlated_hessian(50)
    before = weight.clone()
    first = encode(weight, hessian_II=hessian)
    torch.manual_seed(99)
    np.random.seed(99)
    assert _same(first, encode(weight, hessian_II=hessian))
    assert not _same(first, encode(weight, seed=1, hessian_II=hessian))
    assert torch.equal(weight, before), "the input must not be written to"


@pytest.mark.parametrize("product", [1, 2])
@pytest.mark.parametrize("outliers", [0.0, 0.1])
@pytest.mark.parametrize("bits", [16, 8])
def test_trainable_equals_decode_before_and_after_training(bits: int, outliers: float, product: int) -> None:
    codec = VPTQCodec()
    weights = {"a": gaussian(18, 24), "b": gaussian(32, 10, seed=1), "zero": torch.zeros(4, 4)}
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
    module = VPTQCodec().trainable(encode(gaussian(16, 8)))
    with torch.no_grad():
        module.scales.fill_(1e6)
    with pytest.raises(CodecError, match="too large for float16"):
        module.export()


def test_eight_bit_codebooks_cost_half_and_little_error() -> None:
    weight = gaussian(64, 64)
    full, byte = (encode(weight, replace(SMALL, codebook_bits=bits)) for bits in (16, 8))
    assert full.packed_bits() - byte.packed_bits() == 2 * (16 * 4 * 8 - 16)
    errors = [_relative_error(weight, VPTQCodec().decode(group)["w"]) for group in (full, byte)]
    assert errors[1] < 1.01 * errors[0]
