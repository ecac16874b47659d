"""Trajectories over the layers of a model: exact against a slow reference, corrupt input, training."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phase8.codecs.base import Stream
from phase8.codecs.hyper import decode as decoder
from phase8.config import Axis, HyperConfig, Trajectory
from phase8.errors import ArtifactError, CodecError
from tests.hyper_cases import CODEC, gaussian, half, relative_error, same_streams, slow_series, trained_from_distortion


def over_depth(kind: Trajectory, degree: int, bits: int = 8, block_size: int = 4) -> HyperConfig:
    return HyperConfig(
        trajectory_type=kind, axis=Axis.depth, degree=degree, coefficient_bits=bits, block_size=block_size
    )


def layers(depth: int) -> dict[str, torch.Tensor]:
    """Two kinds of matrices in every layer, in the order of a model, and an embedding."""
    weights = {"embed.weight": gaussian(30, 10, seed=9)}
    for layer in range(depth):
        weights[f"layers.{layer}.up.weight"] = gaussian(12, 10, seed=10 + layer)
        weights[f"layers.{layer}.down.weight"] = gaussian(5, 7, sigma=0.3, seed=100 + layer)
    return weights


def slow_depth(group) -> dict[str, np.ndarray]:
    """Textbook functions of the layer's place, one weight at a time in float64; stacks found with a pattern."""
    s = group.settings
    top, stacks = 2 ** (s["coefficient_bits"] - 1) - 1, {}
    for name, tensor in group.tensors.items():
        found = re.fullmatch(r"(layers\.)([0-9]+)(\..*)", name)
        if found:
            stacks.setdefault((found[1], found[3], tensor.shape), []).append((int(found[2]), name))
    decoded = {}
    for members in stacks.values():
        names = [name for _, name in sorted(members)]
        depth = len(names)
        if depth == 1:
            continue
        if s["trajectory"] == "polynomial":
            powers = np.vander(np.linspace(-1, 1, depth), 1 + min(s["degree"], depth - 1), increasing=True)
            q, r = np.linalg.qr(powers)
            basis = (q * np.sign(np.diag(r))).T * math.sqrt(depth)
        else:
            basis = [[1.0] * depth]
            for k in range(1, min(s["degree"], (depth - 1) // 2) + 1):
                for wave in (math.cos, math.sin):
                    basis.append([math.sqrt(2) * wave(2 * math.pi * k * j / depth) for j in range(depth)])
        for name in names[len(basis) :]:
            assert not group.tensors[name].streams
        for place, name in enumerate(names):
            flat = np.zeros(math.prod(group.tensors[name].shape))
            for plane, row in zip(names, basis, strict=False):
                streams = group.tensors[plane].streams
                step = half(streams["scale"])[0] * 2.0 ** s["exponent"]
                flat += step * row[place] * (streams["coefficients"].values.astype(int) - top)
            decoded[name] = flat.reshape(group.tensors[name].shape)
    alone = {name: tensor for name, tensor in group.tensors.items() if name not in decoded}
    return decoded | slow_series(replace(group, tensors=alone))


@pytest.mark.parametrize("depth, kind, degree", [
    (4, Trajectory.polynomial, 2), (7, Trajectory.polynomial, 9), (1, Trajectory.polynomial, 3),
    (12, Trajectory.polynomial, 3), (5, Trajectory.fourier, 1), (6, Trajectory.fourier, 8),
])  # fmt: skip
def test_over_depth_equals_the_slow_reference(depth: int, kind: Trajectory, degree: int) -> None:
    weights = layers(depth)
    group = CODEC.encode(weights, over_depth(kind, degree), importance={}, seed=0)
    assert ("axis" in group.settings) and same_streams(
        group, CODEC.encode(weights, over_depth(kind, degree), importance={}, seed=0)
    )
    decoded, slow = CODEC.decode(group), slow_depth(group)
    assert list(decoded) == list(weights)
    for name, w in weights.items():
        assert decoded[name].dtype == np.float32 and decoded[name].shape == tuple(w.shape)
        assert np.abs(decoded[name] - slow[name]).max() < 3e-4 * float(w.std())
    trained = CODEC.trainable(group)
    assert list(trained.weights()) == list(weights)
    again = trained.export()
    assert same_streams(group, again) and again.settings == group.settings
    for name, value in trained.weights().items():
        np.testing.assert_allclose(value.detach().numpy(), decoded[name], rtol=1e-5, atol=1e-6 * decoded[name].std())


@pytest.mark.parametrize(
    "depth, kind", [(4, Trajectory.polynomial), (17, Trajectory.polynomial), (5, Trajectory.fourier)]
)
def test_as_many_planes_as_layers_give_the_weights_back(depth: int, kind: Trajectory) -> None:
    weights = layers(depth)
    config = over_depth(kind, depth - 1, bits=16, block_size=1)
    group = CODEC.encode(weights, config, importance={}, seed=0)
    decoded = CODEC.decode(group)
    rows = np.abs(decoder.over_depth(kind, depth - 1, depth)).max(1)
    for name, w in weights.items():
        kept = name if name == "embed.weight" else re.sub(r"[0-9]+", "{}", name)
        steps = [
            half(group.tensors[kept.format(n)].streams["scale"])[0] * 2.0 ** group.settings["exponent"]
            for n in range(depth if "{}" in kept else 1)
        ]
        # Half a step of each plane at the most, but for the float32 sum of the planes.
        bound = sum(row * step / 2 for row, step in zip(rows, steps, strict=False))
        assert np.abs(decoded[name] - w.numpy()).max() < 1.01 * bound
        assert bound < 2e-3 * float(w.std())


def test_a_polynomial_of_depth_is_found_over_depth_only() -> None:
    """Eight layers that are quadratics of the layer's place and 1 % noise: three planes of 8 bits, 3 bits a weight."""
    x = np.linspace(-1, 1, 8)
    parts = [gaussian(16, 24, seed=20 + k) for k in range(3)]
    weights = {
        f"layers.{n}.w": sum(part * float(x[n] ** k) for k, part in enumerate(parts))
        + gaussian(16, 24, sigma=2e-4, seed=n)
        for n in range(8)
    }
    deep = CODEC.encode(weights, over_depth(Trajectory.polynomial, 2), importance={}, seed=0)
    config = HyperConfig(trajectory_type=Trajectory.polynomial, block_size=8, degree=2)
    flat = CODEC.encode(weights, config, importance={}, seed=0)
    assert deep.packed_bits() <= flat.packed_bits()
    assert relative_error(weights, CODEC.decode(deep)) < 3e-4
    assert relative_error(weights, CODEC.decode(flat)) > 0.5
    too_low = CODEC.encode(weights, over_depth(Trajectory.polynomial, 1), importance={}, seed=0)
    assert relative_error(weights, CODEC.decode(too_low)) > 0.01


def test_unrelated_layers_lose_what_the_planes_leave_out() -> None:
    """The honest negative: T planes of L unrelated matrices hold T / L of the energy."""
    weights = {f"layers.{n}.w": gaussian(40, 40, seed=n) for n in range(8)}
    for degree in (0, 1, 3):
        group = CODEC.encode(weights, over_depth(Trajectory.polynomial, degree), importance={}, seed=0)
        assert relative_error(weights, CODEC.decode(group)) == pytest.approx(1 - (degree + 1) / 8, abs=0.03)


def test_stacks_follow_from_names_and_shapes() -> None:
    config = over_depth(Trajectory.polynomial, 1)
    shapes = {
        "h.10.a.1.w": (2, 2), "h.2.a.1.w": (2, 2), "h.2.a.2.w": (2, 2), "h.3.a.1.w": (2, 3), "embed": (2, 2),
        "h.x.a.1.w": (2, 2), "h.02.a.1.w": (2, 2), "1": (2, 2), "h.\u0663.a.1.w": (2, 2), f"h.{'1' * 10}.a.1.w": (2, 2),
    }  # fmt: skip
    first, odd = ["h.2.a.1.w", "h.02.a.1.w", "h.10.a.1.w"], ["h.x.a.1.w", "h.\u0663.a.1.w"]
    places = decoder.stacks(config, shapes)
    assert {name: place for name, (names, place) in places.items() if names == first} == {
        "h.2.a.1.w": 0, "h.02.a.1.w": 1, "h.10.a.1.w": 2,
    }  # fmt: skip
    assert set(places) == set(first), f"{odd} have their first number elsewhere, and in parts that differ"
    assert decoder.stacks(replace(config, axis=Axis.block), shapes) == {}
    many = {f"h.{n}.w": (1, 1) for n in range(decoder.MAX_DEPTH + 1)}
    with pytest.raises(ArtifactError, match="257"):
        decoder.layout(
            {"trajectory": "polynomial", "axis": "depth", "degree": 1, "block_size": 0, "coefficient_bits": 8,
             "exponent": 0},
            many,
        )  # fmt: skip
    with pytest.raises(CodecError, match="257"):
        CODEC.encode({name: torch.ones(1, 1) for name in many}, config, importance={}, seed=0)


def test_corrupt_planes_are_rejected() -> None:
    group = CODEC.encode(layers(4), over_depth(Trajectory.polynomial, 1), importance={}, seed=0)
    plane, bare = group.tensors["layers.1.up.weight"], group.tensors["layers.3.up.weight"]
    assert plane.streams.keys() == {"coefficients", "scale"} and not bare.streams
    coefficients = plane.streams["coefficients"]
    out_of_range = replace(coefficients, values=np.full_like(coefficients.values, 255))
    infinite = Stream(values=np.array([0x7C00], dtype=np.uint16), bits=16)
    tensors = [
        {"layers.1.up.weight": replace(plane, streams={**plane.streams, "coefficients": out_of_range})},
        {"layers.1.up.weight": replace(plane, streams={**plane.streams, "scale": infinite})},
        {"layers.1.up.weight": bare},
        {"layers.3.up.weight": plane},
        {"layers.1.up.weight": replace(plane, shape=(10, 12))},
    ]
    bad = [replace(group, tensors={**group.tensors, **changed}) for changed in tensors]
    bad.append(replace(group, tensors={n: t for n, t in group.tensors.items() if n != "layers.0.up.weight"}))
    bad += [replace(group, settings={**group.settings, "axis": value}) for value in ("block", "", None, [], 1)]
    bad.append(replace(group, settings={k: v for k, v in group.settings.items() if k != "axis"}))
    for one in bad:
        for read in (CODEC.decode, CODEC.trainable):
            with pytest.raises(ArtifactError):
                read(one)


def test_training_over_depth() -> None:
    weights = layers(6)
    group = CODEC.encode(weights, over_depth(Trajectory.polynomial, 2), importance={}, seed=0)
    module, error = trained_from_distortion(group, weights)
    assert error < 0.95
    decoded = CODEC.decode(module.export())
    for key, value in module.weights().items():
        np.testing.assert_allclose(value.detach().numpy(), decoded[key], rtol=1e-5, atol=1e-6 * decoded[key].std())


@given(
    st.integers(1, 6), st.integers(0, 5), st.integers(0, 5), st.integers(0, 7), st.integers(2, 16), st.integers(0, 9),
    st.sampled_from([Trajectory.polynomial, Trajectory.fourier]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_shapes_over_depth(depth, rows, columns, degree, bits, block_size, kind) -> None:
    weights = {f"a.{n}.w": gaussian(rows, columns, seed=n) for n in reversed(range(depth))} | {"b": gaussian(3, 5)}
    group = CODEC.encode(weights, over_depth(kind, degree, bits, block_size), importance={}, seed=0)
    decoded, trained = CODEC.decode(group), CODEC.trainable(group).weights()
    terms = 1 + degree if kind is Trajectory.polynomial else 1 + 2 * degree
    most = depth if kind is Trajectory.polynomial else depth - 1 + depth % 2
    if depth > 1:
        assert sum("scale" in group.tensors[name].streams for name in weights) == 1 + min(terms, most)
    for name, w in weights.items():
        assert decoded[name].shape == tuple(w.shape) and np.isfinite(decoded[name]).all()
        np.testing.assert_allclose(trained[name].detach().numpy(), decoded[name], rtol=1e-5, atol=1e-7)
