"""The lattice codec: decoding by hand, training's gradients against plain formulas, forged settings."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from phase8.codecs import get_codec
from phase8.codecs.decoders import decode, layout
from phase8.codecs.lattice.encode import LatticeConfig, pack
from phase8.codecs.lattice.train import LatticeTrainable, ideal_bits, laplace_scale
from phase8.errors import ArtifactError
from phase8.lossless import contexts
from phase8.train.trim import trim


def test_a_group_decodes_to_step_times_integer_and_zeros_around():
    q = np.array([[1, 0], [0, -3]])
    group = pack({"w": q}, {"w": 0.5}, {"w": (2, 3)})
    (found,) = [weights for _, weights in decode(group)]
    assert found.dtype == np.float32
    assert found.tolist() == [[0.5, 0.0, 0.0], [0.0, -1.5, 0.0]]


def test_encoding_takes_the_nearest_point():
    torch.manual_seed(0)
    w = torch.randn(24, 40)
    codec = get_codec("lattice")
    group = codec.encode({"w": w}, LatticeConfig(start_step=0.3), importance={}, seed=0)
    step = float(group.tensors["w"].streams["step"].values.astype(np.uint16).view(np.float16)[0])
    assert step == pytest.approx(0.3 * float(w.std(correction=0)), rel=1e-3)
    expected = torch.round(w / step) * step
    assert torch.equal(torch.from_numpy(codec.decode(group)["w"]), expected)


def test_the_scale_is_that_of_a_rounded_laplace_law():
    for b in (0.3, 0.62, 1.0, 4.0):
        k = np.arange(1, 400)
        mass = np.exp(-(k - 0.5) / b) - np.exp(-(k + 0.5) / b)  # both signs
        assert float(laplace_scale(torch.tensor((k * mass).sum()))) == pytest.approx(b, rel=1e-6)


def test_ideal_bits_are_the_entropy_of_zeros_signs_and_a_geometric_law():
    def found(q: np.ndarray) -> float:
        numbers = q.size, np.count_nonzero(q), np.abs(q).sum()
        return float(ideal_bits(*map(torch.tensor, numbers)))

    rng = np.random.default_rng(0)
    filled = rng.random(200_000) < 0.2
    q = filled * rng.choice([-1, 1], filled.size) * rng.geometric(0.6, filled.size)
    entropy = -(0.2 * math.log2(0.2) + 0.8 * math.log2(0.8)) + 0.2 * (
        1 + (-0.6 * math.log2(0.6) - 0.4 * math.log2(0.4)) / 0.6
    )
    assert found(q) / q.size == pytest.approx(entropy, rel=0.01)
    assert found(np.zeros(10)) == 0.0
    assert found(np.ones(8)) == pytest.approx(8.0)  # all of magnitude one: only the signs


def trainable(w: torch.Tensor, step: float) -> LatticeTrainable:
    return LatticeTrainable({"w": w}, {"w": step}, {"w": tuple(w.shape)})


def test_rounding_passes_gradients_straight_through():
    torch.manual_seed(1)
    module, pull = trainable(torch.randn(6, 5), 0.5), torch.randn(6, 5)
    (module.weights()["w"] * pull).sum().backward()
    value = module.values[0]
    assert torch.equal(value.grad, pull)
    rounded = torch.round(value.detach() / 0.5) * 0.5
    assert float(module.log_steps[0].grad) == pytest.approx(float((pull * (rounded - value.detach())).sum()), rel=1e-5)


def test_the_price_is_the_slope_of_a_laplace_bins_code_length():
    module = trainable(torch.linspace(-2.4, 2.4, 49).reshape(7, 7), 1.0)
    module.bits().backward()
    u = module.values[0].detach().double()
    b = float(laplace_scale(u.round().abs().mean()))

    def bits(x: torch.Tensor) -> torch.Tensor:  # of the bin of width 1 around x
        inside = 1 - torch.exp(torch.tensor(-0.5 / b)) * torch.cosh(x / b)
        outside = torch.exp(-x.abs() / b) * math.sinh(0.5 / b)
        return -torch.log2(torch.where(x.abs() < 0.5, inside, outside))

    x = u.clone().requires_grad_(True)
    bits(x).sum().backward()
    steady = (u.abs() - 0.5).abs() > 1e-3  # the slope is capped at the zero bin's edge
    capped = x.grad.clamp(-1 / (b * math.log(2)), 1 / (b * math.log(2)))
    assert torch.allclose(module.values[0].grad.double()[steady], capped[steady], atol=1e-5)


def test_training_module_and_file_agree():
    torch.manual_seed(2)
    module = LatticeTrainable({"w": torch.randn(20, 30)}, {"w": 0.37}, {"w": (24, 32)})
    exported = module.export()
    (found,) = [weights for _, weights in decode(exported)]
    assert torch.equal(torch.from_numpy(found[:20, :30]), module.weights()["w"].detach())
    assert not found[20:].any() and not found[:, 30:].any()


def test_widening_the_zero_bin_zeroes_what_is_near_it():
    module = trainable(torch.tensor([[0.2, 0.6, -0.7, 1.4]]), 1.0)
    assert module.cheapen(0.15) == 1
    assert module.integers()["w"].tolist() == [[0, 0, -1, 1]]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"extents": [[2, 2]]},
        {"extents": [[3, 2]], "coded_bytes": 9},
        {"extents": [[0, 2]], "coded_bytes": 9},
        {"extents": [[2, 2.0]], "coded_bytes": 9},
        {"extents": [[2, 2], [1, 1]], "coded_bytes": 9},
        {"extents": [[2, 2]], "coded_bytes": 10**9},
        {"extents": [[2, 2]], "coded_bytes": True},
        {"extents": [[2, 2]], "coded_bytes": 9, "more": 1},
    ],
)
def test_forged_settings_are_refused_before_anything_is_decoded(settings):
    with pytest.raises(ArtifactError):
        layout("lattice", settings, {"w": (2, 3)})


def test_a_file_may_be_as_long_as_any_integers_make_it():
    """Matrices of one large integer take 50 bits each: nothing helps with guessing them."""
    largest = np.array([[contexts.LARGEST]])
    group = pack(
        {f"{n}": largest for n in range(5)}, {f"{n}": 1.0 for n in range(5)}, {f"{n}": (1, 1) for n in range(5)}
    )
    assert group.settings["coded_bytes"] > 5 * 6
    assert all(weights.item() == contexts.LARGEST for _, weights in decode(group))


def test_what_decoding_takes_is_charged_before_it_begins():
    """Runs, matrices and integers each cost; what the stream is too short for costs nothing."""
    short = layout("lattice", {"extents": [[1000, 1000]], "coded_bytes": 1}, {"w": (1000, 1000)})
    long = layout("lattice", {"extents": [[1000, 1000]], "coded_bytes": 1 + 4 * 500_000}, {"w": (1000, 1000)})
    assert short.steps >= 60 * 4000 + 250_000 and long.steps >= short.steps + 4_000_000
    many = {f"{n}": (1, 1) for n in range(500)}
    assert layout("lattice", {"extents": [[1, 1]] * 500, "coded_bytes": 500}, many).steps >= 500_000
    assert short.table >= 2 * 1000 * 1000


def test_matrices_may_share_integers_under_steps_of_their_own():
    torch.manual_seed(3)
    parts, steps = {"a": torch.randn(6, 5), "c": torch.randn(4, 4)}, {"a": 0.5, "b": 0.25, "c": 0.3}
    shapes = {"a": (6, 5), "b": (7, 5), "c": (4, 4)}
    module = LatticeTrainable(parts, steps, shapes, {"b": "a"})
    group = module.export()
    assert group.settings["extents"] == [[6, 5], 0, [4, 4]]
    found, trained = dict(decode(group)), module.weights()
    assert list(found) == ["a", "b", "c"]
    assert np.array_equal(found["b"][:6] * 2, found["a"]) and not found["b"][6:].any()
    for name, weights in trained.items():
        assert np.array_equal(found[name][: weights.shape[0]], weights.detach().numpy())
    again = get_codec("lattice").trainable(group).export()
    assert again.settings == group.settings
    assert all(np.array_equal(found[name], other) for name, other in decode(again))


def test_shared_integers_get_the_gradients_of_all_that_share_them():
    torch.manual_seed(4)
    w, pulls = torch.randn(6, 5), torch.randn(2, 6, 5)
    module = LatticeTrainable({"a": w}, {"a": 0.5, "b": 0.25}, {"a": (6, 5), "b": (6, 5)}, {"b": "a"})
    weights = module.weights()
    ((weights["a"] * pulls[0]).sum() + (weights["b"] * pulls[1]).sum()).backward()
    assert torch.allclose(module.values[0].grad, pulls[0] + 0.5 * pulls[1])
    rounded = weights["a"].detach()
    assert float(module.log_steps[1].grad) == pytest.approx(float((pulls[1] * 0.5 * rounded).sum()), rel=1e-5)
    # The owner's: as without sharing for its own; the other's weights follow the integers, which a finer step moves.
    moved = (pulls[0] * (rounded - w)).sum() + (pulls[1] * 0.5 * (rounded - w)).sum() - (pulls[1] * 0.5 * rounded).sum()
    assert float(module.log_steps[0].grad) == pytest.approx(float(moved), rel=1e-4)


@pytest.mark.parametrize(
    "extents", [[0, [2, 2]], [[2, 2], 1], [[2, 2], -1], [[2, 2], True], [[2, 2], 0.0], [[2, 3], 0]]
)
def test_sharing_with_what_has_no_integers_or_does_not_fit_is_refused(extents):
    with pytest.raises(ArtifactError):
        layout("lattice", {"extents": extents, "coded_bytes": 9}, {"a": (2, 3), "b": (2, 2)})


@pytest.mark.parametrize("share", [0.99, 0.6, 0.1])
def test_a_trim_uses_the_budget_however_much_has_to_go(share):
    rng = torch.Generator().manual_seed(0)
    parts = {f"w{i}": torch.randn(192, 128, generator=rng) * (1 + i) for i in range(3)}
    steps = {name: 0.5 * float(part.std()) for name, part in parts.items()}
    module = LatticeTrainable(parts, steps, dict.fromkeys(parts, (192, 128)))
    before, whole = module.integers(), module.coded_bytes()
    budget = int(share * whole)
    size, changed = trim(module, budget)
    assert size == module.coded_bytes() and 0.998 * budget <= size <= budget
    pairs = [(before[name], now) for name, now in module.integers().items()]
    assert changed == sum(int((was != now).sum()) for was, now in pairs)
    assert all((now[was != now] == 0).all() for was, now in pairs)  # what is gone is zero, the nearest first
    for was, now in pairs:
        assert np.abs(was[was != now]).max(initial=0) <= np.abs(now[now != 0]).min()


@pytest.mark.parametrize("law", ["normal", "laplace"])
@pytest.mark.parametrize("bits", [3.0, 3.5, 4.5])
def test_steps_are_as_fine_as_the_room_allows(bits, law):
    w = torch.from_numpy(getattr(np.random.default_rng(0), law)(size=(300, 400))).float()
    made, room = trainable(w, 0.6 * float(w.std())), int(bits * 300 * 400 / 8)
    factor = made.refine(0.6, room)
    assert made.coded_bytes() == pytest.approx(room, rel=0.005)
    assert (factor == pytest.approx(made.finer(0.6, room), rel=0.03)) is (law == "normal")  # what a retry goes by
    assert factor * 0.6 * float(w.std()) == pytest.approx(float(made.log_steps[0].detach().exp()), rel=1e-3)


def test_steps_are_not_made_finer_without_end():
    made = trainable(torch.randn(200, 300), 0.6)
    made.refine(0.6, 10**9)
    assert made.coded_bits() == pytest.approx(8.0 * 200 * 300, rel=0.01)


def test_steps_stay_where_there_is_no_room():
    made = trainable(torch.randn(40, 50), 0.6)
    assert made.refine(0.6, 40 * 50 * 2 // 8) == 1.0 and float(made.log_steps[0].detach().exp()) == pytest.approx(0.6)
