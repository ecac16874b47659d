"""What the scoreboard compares with is what its papers say."""

import numpy as np
import pytest
import torch

from experiments.controls import LittleBit, Ternary
from phase8.codecs.decoders import decode


def matrices():
    generator = torch.Generator().manual_seed(6)
    return {"a": torch.randn(60, 50, generator=generator), "b": 0.1 * torch.randn(40, 70, generator=generator)}


def test_ternary_matrices_are_signs_times_the_mean_magnitude():
    weights = matrices()
    module = Ternary(weights, {name: tuple(w.shape) for name, w in weights.items()})
    found, stored = module.weights(), dict(decode(module.groups()[0]))
    for name, w in weights.items():
        scale = float(np.float16(w.abs().mean()))
        expected = scale * np.clip(np.round(w.numpy() / scale), -1, 1)
        assert np.allclose(found[name].detach(), expected) and np.allclose(stored[name], expected, rtol=1e-6)
    found["a"].sum().backward()
    assert torch.equal(module.values[0].grad, torch.ones(60, 50))
    bits = 8 * module.coded_bytes() / sum(w.numel() for w in weights.values())
    assert 1.0 < bits < 1.75  # 1.54 is a Gaussian's entropy in these three bins


def test_littlebit_is_two_factors_of_signs_between_three_scales():
    weights = matrices()
    module = LittleBit(weights, 1.5)
    for number, (name, w) in enumerate(module.weights().items()):
        u, v, h, g, scales = (x.detach().double() for x in module.factors[5 * number : 5 * number + 5])
        h, g, scales = (x.half().double() for x in (h, g, scales))
        expected = torch.zeros(w.shape, dtype=torch.float64)
        for r in range(u.shape[1]):
            column, row = torch.where(u[:, r] >= 0, 1.0, -1.0), torch.where(v[:, r] >= 0, 1.0, -1.0)
            expected += scales[r] * torch.outer(h * column, g * row)
        assert torch.allclose(w.double(), expected, rtol=1e-3, atol=1e-4)
        assert float((w.detach() - weights[name]).square().mean() / weights[name].square().mean()) < 0.9
        assert u.shape[1] * sum(w.shape) + 16 * (sum(w.shape) + u.shape[1]) <= 1.5 * w.numel()
    assert module.coded_bytes() <= 1.5 / 8 * sum(w.numel() for w in weights.values()) + 1
    sum(w.square().sum() for w in module.weights().values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())


@pytest.mark.parametrize(
    "make", [lambda w: Ternary(w, {n: tuple(x.shape) for n, x in w.items()}), lambda w: LittleBit(w, 1.5)]
)
def test_their_size_is_fixed(make):
    module = make(matrices())
    assert not module.steerable and module.cheapen(9.0) == 0 and float(module.bits()) == 0.0
    assert module.coded_bits() == 8 * module.coded_bytes()
