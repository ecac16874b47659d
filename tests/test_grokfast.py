"""Gradient filters: the gains of the paper, the start of their state, and what they leave alone."""

import pytest
import torch
from torch import nn

from phase8.config import GrokfastConfig, GrokfastVariant
from phase8.errors import ConfigError
from phase8.train.grokfast import GrokfastFilter


def filtered(gradient_filter: GrokfastFilter, gradients: list[float]) -> list[float]:
    parameter = nn.Parameter(torch.zeros(1))
    out = []
    for gradient in gradients:
        parameter.grad = torch.tensor([gradient])
        gradient_filter.apply([parameter])
        out.append(float(parameter.grad))
    return out


ALTERNATING = [(-1.0) ** i for i in range(2000)]


@pytest.mark.parametrize(
    ("variant", "constant", "alternating"),
    [
        (GrokfastVariant.ema, 3.00, 1.02),
        (GrokfastVariant.as_printed, 1.00, 2.98),
        (GrokfastVariant.off, 1.00, 1.00),
    ],
)
def test_published_gains(variant, constant, alternating):
    assert filtered(GrokfastFilter(variant, 0.98, 2.0), [1.0] * 2000)[-1] == pytest.approx(constant, abs=0.005)
    last = filtered(GrokfastFilter(variant, 0.98, 2.0), ALTERNATING)[-1]
    assert abs(last) == pytest.approx(alternating, abs=0.005)
    assert last < 0


def test_ema_follows_the_recurrence_from_the_first_gradient():
    gradients = [0.5, -2.0, 3.0, 1.0]
    mean, expected = gradients[0], []
    for i, gradient in enumerate(gradients):
        mean = mean if i == 0 else 0.9 * mean + 0.1 * gradient
        expected.append(gradient + 5.0 * mean)
    assert filtered(GrokfastFilter(GrokfastVariant.ema, 0.9, 5.0), gradients) == pytest.approx(expected, rel=1e-6)


def test_moving_average_waits_for_a_full_window():
    out = filtered(GrokfastFilter(GrokfastVariant.ma, lamb=5.0, window=3), [1.0, 2.0, 3.0, 4.0])
    assert out == pytest.approx([1.0, 2.0, 3.0 + 5.0 * 2.0, 4.0 + 5.0 * 3.0])


def test_each_parameter_has_its_own_state_and_missing_gradients_are_passed_over():
    one, two = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3, 3))
    gradient_filter = GrokfastFilter(GrokfastVariant.ema, 0.5, 1.0)
    one.grad, two.grad = torch.ones(2), None
    gradient_filter.apply([one, two])
    assert torch.equal(one.grad, torch.full((2,), 2.0))
    one.grad, two.grad = torch.zeros(2), torch.full((3, 3), 4.0)
    gradient_filter.apply([one, two])
    assert torch.equal(one.grad, torch.full((2,), 0.5))  # its mean went from 1 to 0.5
    assert torch.equal(two.grad, torch.full((3, 3), 8.0))  # its mean starts at its own first gradient


def test_switching_it_off_is_the_variant_off():
    assert GrokfastFilter.from_config(GrokfastConfig(enabled=False)).variant is GrokfastVariant.off
    on = GrokfastFilter.from_config(GrokfastConfig(enabled=True, alpha=0.9, lambda_=3.0, window=7))
    assert (on.variant, on.alpha, on.lamb, on.window) == (GrokfastVariant.ema, 0.9, 3.0, 7)


@pytest.mark.parametrize(
    "wrong", [{"alpha": 1.0}, {"alpha": float("nan")}, {"lambda_": -1.0}, {"iterations": -1}, {"window": 0}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match="grokfast"):
        GrokfastConfig(**wrong)
