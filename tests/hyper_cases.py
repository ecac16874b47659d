"""Settings, weights and slow references that the tests of the hyper codec share."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch

from phase8.codecs.base import Stream, Trainable
from phase8.codecs.hyper import HyperCodec
from phase8.config import HyperConfig, Trajectory, Winding

CODEC = HyperCodec()
PUBLISHED = HyperConfig(dims=2, grid=1600, classes=3, winding=Winding.power, side=0.1)
SMALL = {
    "winding": HyperConfig(dims=6, grid=63),
    "classes": HyperConfig(dims=3, grid=60, classes=2, winding=Winding.reciprocal),
    "published": PUBLISHED,
    "polynomial": HyperConfig(trajectory_type=Trajectory.polynomial, block_size=16, degree=4),
    "fourier": HyperConfig(trajectory_type=Trajectory.fourier, block_size=16, degree=3, coefficient_bits=6),
    "whole": HyperConfig(trajectory_type=Trajectory.polynomial),
    "manifold": HyperConfig(trajectory_type=Trajectory.manifold, block_size=16, inputs=2, width=8, coefficient_bits=5),
    "manifold, search": HyperConfig(
        trajectory_type=Trajectory.manifold, block_size=24, inputs=3, width=8, depth=3, frequency=8, network_seed=7
    ),
}


def gaussian(*shape: int, sigma: float = 0.02, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * sigma


def matrices() -> dict[str, torch.Tensor]:
    return {"a": gaussian(24, 32), "odd": gaussian(7, 13, sigma=0.3, seed=1), "row": gaussian(1, 5, seed=2)}


def relative_error(weights: dict[str, torch.Tensor], decoded: dict[str, np.ndarray]) -> float:
    error = sum(float(((w.numpy() - decoded[n]) ** 2).sum()) for n, w in weights.items())
    return error / sum(float((w**2).sum()) for w in weights.values())


def half(stream: Stream) -> np.ndarray:
    return stream.values.view(np.float16).astype(np.float64)


def first_primes(count: int) -> list[int]:
    return [n for n in range(2, 1000) if all(n % d for d in range(2, n))][:count]


def slow_winding(group) -> dict[str, np.ndarray]:
    """The published decode formula, one weight at a time in float64."""
    s = group.settings
    dims, grid, classes = s["dims"], s["grid"], s["classes"]
    direction = {
        "power": [grid ** (-(dims - k) / dims) for k in range(dims)],
        "reciprocal": [1 / (math.pi + k) for k in range(dims)],
        "primes": [math.sqrt(p) for p in first_primes(dims)],
    }[s["winding"]]
    centre, side = half(group.shared["centroid"]), half(group.shared["side"])[0]
    shrink = [1.0, *(half(group.shared["shrink"]) if classes else [])]
    decoded = {}
    for name, tensor in group.tensors.items():
        scale = half(tensor.streams["scale"])[0] * 2.0 ** s["exponent"]
        flat = []
        for theta in tensor.streams["codes"].values.tolist():
            m, i = divmod(theta, grid + 1)
            for k in range(dims):
                turns = (i - 1) * direction[k]
                turns -= math.floor(turns + 1e-10)  # a whole number of turns is 0, whatever float64 makes of it
                t = centre[k] if i == 0 else turns * side + centre[k] - side / 2
                flat.append(scale * (centre[k] + (t - centre[k]) / shrink[m]))
        decoded[name] = np.array(flat[: math.prod(tensor.shape)]).reshape(tensor.shape)
    return decoded


def slow_series(group) -> dict[str, np.ndarray]:
    """Sums of the textbook functions, one weight at a time in float64: numpy's Legendre by Gram-Schmidt, math.cos."""
    s = group.settings
    top = 2 ** (s["coefficient_bits"] - 1) - 1
    decoded = {}
    for name, tensor in group.tensors.items():
        size = math.prod(tensor.shape)
        length = s["block_size"] or size
        if s["trajectory"] == "polynomial":
            powers = np.polynomial.legendre.legvander(np.linspace(-1, 1, length), min(s["degree"], length - 1))
            q, r = np.linalg.qr(powers)
            basis = (q * np.sign(np.diag(r))).T * math.sqrt(length)
        else:
            degree = min(s["degree"], (length - 1) // 2)
            basis = [[1.0] * length]
            for k in range(1, degree + 1):
                for wave in (math.cos, math.sin):
                    basis.append([math.sqrt(2) * wave(2 * math.pi * k * j / length) for j in range(length)])
        step = half(tensor.streams["scale"])[0] * 2.0 ** s["exponent"]
        q = tensor.streams["coefficients"].values.astype(int) - top
        flat = []
        for block in q.reshape(-1, len(basis)):
            flat += [step * sum(c * row[j] for c, row in zip(block, basis, strict=True)) for j in range(length)]
        decoded[name] = np.array(flat[:size]).reshape(tensor.shape)
    return decoded


def slow_manifold(group) -> dict[str, np.ndarray]:
    """The network in float64 with math.sin; its numbers from Python's integers, as splitmix64 was published."""
    s = group.settings
    top = 2 ** (s["coefficient_bits"] - 1) - 1
    state = s["network_seed"] << 32

    def draw() -> float:
        nonlocal state
        state += 1
        z = state * 0x9E3779B97F4A7C15 % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return ((z ^ z >> 31) >> 40) / 2**23 - 1

    sizes = [s["inputs"], *[s["width"]] * s["depth"], s["block_size"]]
    layers = []
    for rows, columns in itertools.pairwise(sizes):
        table = np.array([[draw() for _ in range(columns)] for _ in range(rows)])
        layers.append((table / (math.sqrt(rows) if layers else 1), np.array([draw() / 2 for _ in range(columns)])))
    decoded = {}
    for name, tensor in group.tensors.items():
        q = tensor.streams["coefficients"].values.astype(int).reshape(-1, s["inputs"] + 1) - top
        x = q[:, :-1] * s["frequency"] / (16 * top)
        for table, phase in layers:
            x = np.sin(2 * math.pi * (x @ table + phase))
        flat = x * q[:, -1:] * half(tensor.streams["scale"])[0] * 2.0 ** s["exponent"]
        decoded[name] = flat.reshape(-1)[: math.prod(tensor.shape)].reshape(tensor.shape)
    return decoded


def same_streams(one, other) -> bool:
    parts = [[g.shared, *(t.streams for t in g.tensors.values())] for g in (one, other)]
    found = [[(r, s.bits, s.values.tolist()) for part in own for r, s in part.items()] for own in parts]
    return one.settings == other.settings and found[0] == found[1]


def trained_from_distortion(group, weights: dict[str, torch.Tensor]) -> tuple[Trainable, float]:
    """A group's module after 30 steps from parameters 1.3 times too large, every one of which gets a gradient; and its
    squared error as a share of what it began with."""
    module = CODEC.trainable(group)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.3)

    def loss() -> torch.Tensor:
        return sum(((w - module.weights()[n]) ** 2).sum() / (w**2).sum() for n, w in weights.items())

    before = loss()
    before.backward()
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None and torch.count_nonzero(parameter.grad), key
    optimiser = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(30):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    return module, float(loss().detach()) / float(before.detach())
