"""What VPTQ refuses: weights, importance, settings and streams that cannot be right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from phase8.codecs.base import EncodedGroup
from phase8.codecs.vptq.encode import VPTQCodec
from phase8.config import VPTQConfig
from phase8.errors import ArtifactError, CodecError, ConfigError
from tests.vptq_cases import OUTLIERS, SMALL, encode, gaussian


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_and_importance_that_are_not_finite_are_refused(value: float) -> None:
    weight, hessian = gaussian(8, 8), torch.eye(8)
    bad_weight, bad_hessian, bad_row = weight.clone(), hessian.clone(), torch.ones(8)
    bad_weight[3, 2] = bad_hessian[1, 1] = bad_row[0] = value
    with pytest.raises(CodecError, match="NaN or infinite"):
        encode(bad_weight)
    with pytest.raises(CodecError, match="8 x 8 finite numbers"):
        encode(weight, hessian_II=bad_hessian)
    with pytest.raises(CodecError, match="8 finite numbers"):
        encode(weight, row_O=bad_row)


def test_inputs_that_do_not_fit_are_refused() -> None:
    weight = gaussian(8, 6)
    indefinite = torch.eye(6)
    indefinite[0, 1] = indefinite[1, 0] = 3.0
    negative = torch.diag(torch.tensor([9.0, 1.0, 1.0, 1.0, 1.0, -1.0]))
    for hessian in (torch.eye(8), negative, indefinite):
        with pytest.raises(CodecError, match="Hessian"):
            encode(weight, hessian_II=hessian)
    for row in (torch.ones(6), -torch.ones(8), torch.zeros(8)):
        with pytest.raises(CodecError, match="row weights"):
            encode(weight, row_O=row)
    with pytest.raises(CodecError, match="a matrix is needed"):
        encode(torch.ones(8))
    with pytest.raises(CodecError, match="exceeds float16"):
        encode(weight * 1e8)


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
    group = encode(gaussian(16, 20), replace(PRODUCT, codebook_size=16), seed=3)
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
    group = encode(gaussian(16, 20), replace(OUTLIERS, outlier_codebook_size=7))
    assert VPTQCodec().decode(group)["w"].shape == (16, 20)
    for read in (VPTQCodec().decode, VPTQCodec().trainable):
        with pytest.raises(ArtifactError):
            read(OUTLIER_CORRUPTIONS[corruption](group))


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_corrupt_streams_are_refused(corruption: str) -> None:
    group = encode(gaussian(16, 20))
    assert VPTQCodec().decode(group)["w"].shape == (16, 20)
    with pytest.raises(ArtifactError):
        VPTQCodec().decode(CORRUPTIONS[corruption](group))
    with pytest.raises(ArtifactError):
        VPTQCodec().trainable(CORRUPTIONS[corruption](group))
