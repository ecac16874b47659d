"""Codes that are chosen again while the weights under them are trained."""

import numpy as np
import pytest
import torch

from phase8.artifact.write import code_pools, contents
from phase8.codecs import get_codec
from phase8.codecs.base import root_mean_square
from phase8.codecs.decoders import decode
from phase8.codecs.rechosen import Rechosen, group_bytes, relative_error
from phase8.codecs.seedlm.settings import SeedLMConfig
from phase8.codecs.vptq.choose import choose_again
from phase8.codecs.vptq.settings import Sharing, VPTQConfig
from phase8.errors import CodecError, ConfigError
from phase8.model.source import ExpertFile, source_from_network
from phase8.train.settings import Precision
from phase8.train.shape import Shape
from phase8.train.trim import trim
from phase8.train.whole import TrainedStage
from phase8.train.within_budget import Plan

VPTQ = VPTQConfig(vector_dim=4, codebook_size=16, num_codebooks=2)


@pytest.fixture
def source(tiny_network, tiny_tokenizer):
    """With weights so large that its answers differ from place to place."""
    with torch.no_grad():
        for parameter in tiny_network.parameters():
            if parameter.dim() == 2:
                parameter.mul_(12.0)
    return source_from_network(tiny_network, tiny_tokenizer, ExpertFile(), "tiny")


def vptq_group(shapes=((24, 20), (10, 6)), config=VPTQ):
    generator = torch.Generator().manual_seed(3)
    weights = {f"w{n}": torch.randn(shape, generator=generator) for n, shape in enumerate(shapes)}
    return weights, get_codec("vptq").encode(weights, config, importance={}, seed=0)


def rechosen(weights, group, every=2):
    return Rechosen(get_codec("vptq"), [group], weights, encode=never, every=every, error=0.3)


def never(weights):
    raise AssertionError("a codec with prices is not encoded anew")


def slow_choice(group, weights, price):
    """Greedy choice, vector by vector, in float64."""
    books = [g.astype(np.float64) for g in decoded_books(group)]
    found = {}
    for name, w in weights.items():
        rows, columns = w.shape
        scale = float(group.tensors[name].streams["scale"].values.view(np.float16)[0])
        x = np.zeros((-(-rows // 4) * 4, columns))
        x[:rows] = w.double().numpy() / scale
        index = [np.zeros((len(x) // 4, columns), int) for _ in books]
        for g in range(len(x) // 4):
            for j in range(columns):
                left = x[4 * g : 4 * g + 4, j]
                for m, book in enumerate(books):
                    counts = sum(
                        np.bincount(t.streams[f"index_{m}"].values, minlength=16) for t in group.tensors.values()
                    )
                    cost = ((left - book) ** 2).sum(1) + price * np.log2(counts.sum() / np.maximum(counts, 0.5))
                    index[m][g, j] = cost.argmin()
                    left = left - book[index[m][g, j]]
        found[name] = index
    return found


def decoded_books(group):
    for m in range(2):
        codes = group.shared[f"codebook_{m}"].values.reshape(16, 4).astype(np.float32) - 128
        yield codes * group.shared[f"codebook_{m}_step"].values.view(np.float16)[0]


@pytest.mark.parametrize("price", [0.0, 0.4])
def test_indices_are_the_cheapest_by_distance_and_length(price):
    weights, group = vptq_group()
    moved = {
        name: w + 0.3 * torch.randn(w.shape, generator=torch.Generator().manual_seed(5)) for name, w in weights.items()
    }
    found, expected = choose_again(group, moved, price), slow_choice(group, moved, price)
    for name, index in expected.items():
        for m, own in enumerate(index):
            same = found.tensors[name].streams[f"index_{m}"].values.reshape(own.shape) == own
            assert same.mean() > 0.995  # a tie may fall to either in float32
    assert found.settings == group.settings and found.shared is group.shared


def test_a_price_makes_the_indices_cheaper_and_the_error_larger():
    weights, group = vptq_group(shapes=((400, 64),))
    sizes, errors = [], []
    for price in (0.0, 0.2, 1.0):
        found = group
        for _ in range(4):
            found = choose_again(found, weights, price)
        sizes.append(group_bytes(found))
        errors.append(float((torch.from_numpy(dict(decode(found))["w0"]) - weights["w0"]).square().mean()))
    assert sizes[0] > sizes[1] > sizes[2] and errors[0] < errors[1] < errors[2]


def test_outlier_columns_are_refused():
    config = VPTQConfig(vector_dim=4, codebook_size=16, outlier_columns=0.1, outlier_codebook_size=4)
    weights, group = vptq_group(shapes=((24, 20),), config=config)
    with pytest.raises(CodecError, match="outlier"):
        choose_again(group, weights, 0.0)


def test_the_network_sees_the_codes_and_the_weights_get_the_gradient():
    weights, group = vptq_group()
    module = rechosen(weights, group)
    found, stored = module.weights(), dict(decode(group))
    for name, w in found.items():
        assert np.allclose(w.detach().numpy(), stored[name], rtol=1e-4, atol=1e-6)
    found["w0"].sum().backward()
    assert torch.equal(module.values[0].grad, torch.ones(24, 20)) and module.values[1].grad is None
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.inner.parameters())


def test_choosing_again_keeps_the_parameters_that_the_optimiser_knows():
    weights, group = vptq_group()
    module = rechosen(weights, group)
    known = list(module.parameters())
    with torch.no_grad():
        module.values[0].copy_(module.values[1].mean() + 2.0 * torch.flip(module.values[0], [0]))
        before = module.groups()[0].tensors["w0"].streams["index_0"].values.copy()
        module.choose_again(1, 100, 1e-7)
        assert np.array_equal(module.groups()[0].tensors["w0"].streams["index_0"].values, before)  # not its turn
        module.choose_again(2, 100, 1e-7)
    assert not np.array_equal(module.groups()[0].tensors["w0"].streams["index_0"].values, before)
    assert all(one is other for one, other in zip(module.parameters(), known, strict=True))
    assert len(module.highest_steps(0.01, 100)) == len(known)


def test_the_codes_stay_while_the_rate_ends():
    weights, group = vptq_group()
    module = rechosen(weights, group)
    with torch.no_grad():
        module.values[0].mul_(-1.0)
        before = module.groups()[0].tensors["w0"].streams["index_0"].values.copy()
        for step in range(91, 101):
            module.choose_again(step, 100, 1e-7)
        assert np.array_equal(module.groups()[0].tensors["w0"].streams["index_0"].values, before)
        module.choose_again(90, 100, 1e-7)
    assert not np.array_equal(module.groups()[0].tensors["w0"].streams["index_0"].values, before)


def test_checkpoints_bring_the_codes_back():
    weights, group = vptq_group()
    module, other = rechosen(weights, group), rechosen(weights, group)
    with torch.no_grad():
        module.values[0].mul_(-1.0)
        module.choose_again(2, 100, 1e-6)
        for mine, theirs in zip(other.parameters(), module.parameters(), strict=True):
            mine.copy_(theirs)
        other.load_codes(module.codes())
    for one, two in zip(module.groups(), other.groups(), strict=True):
        assert [blob for _, blob in code_pools(0, one)] == [blob for _, blob in code_pools(0, two)]
    assert float(other.bits()) == float(module.bits()) == 8 * group_bytes(module.groups()[0])


def test_trimming_takes_a_price_and_keeps_to_the_bytes():
    weights, group = vptq_group(shapes=((400, 64),))
    module = rechosen(weights, group)
    budget = module.coded_bytes() * 3 // 4
    size, changed = trim(module, budget)
    assert size == module.coded_bytes() <= budget and changed > 0
    with pytest.raises(CodecError, match="allowed"):
        trim(module, 40)


def test_a_few_bytes_too_many_change_a_few_codes():
    weights, group = vptq_group(shapes=((400, 64),))
    module = rechosen(weights, group)
    with torch.no_grad():  # weights move on after the last choice, as in a training
        module.values[0].add_(torch.randn(400, 64, generator=torch.Generator().manual_seed(7)), alpha=0.2)
    whole, count = module.coded_bytes(), group.tensors["w0"].streams["index_0"].values.size
    size, changed = trim(module, whole - 10)
    assert whole - 30 <= size <= whole - 10 and changed < 0.06 * 2 * count


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_codes_change_to_cheaper_ones_alone_if_that_is_asked(share):
    weights, group = vptq_group(shapes=((400, 64),))
    weights = {"w0": weights["w0"] + 0.3 * torch.randn(400, 64, generator=torch.Generator().manual_seed(5))}
    free, found = choose_again(group, weights, 0.4), choose_again(group, weights, 0.4, cheaper=share)
    names = [f"index_{m}" for m in range(2)]
    lengths = [np.bincount(group.tensors["w0"].streams[name].values, minlength=16) for name in names]
    lengths = [np.log2(counts.sum() / np.maximum(counts, 0.5)) for counts in lengths]
    old, new, taken = ([g.tensors["w0"].streams[name].values for name in names] for g in (group, free, found))
    old_bits, new_bits = (sum(length[i] for length, i in zip(lengths, own, strict=True)) for own in (old, new))
    old_error, new_error = (
        (torch.from_numpy(dict(decode(g))["w0"]) - weights["w0"]).square().view(100, 4, 64).sum(1).numpy().ravel()
        for g in (group, free)
    )
    fewer = new_bits < old_bits - 1e-6
    changed = (np.stack(taken) != np.stack(old)).any(0)
    assert (new_bits > old_bits).any() and not changed[~fewer].any()
    assert abs(changed.sum() - share * fewer.sum()) <= 1
    assert all(np.array_equal(t[changed], n[changed]) for t, n in zip(taken, new, strict=True))
    scale = float(group.tensors["w0"].streams["scale"].values.view(np.float16)[0])
    cost = ((new_error - old_error) / scale**2 - 0.4 * (old_bits - new_bits))[fewer]
    assert cost[changed[fewer]].max() <= np.quantile(cost, share) + 1e-3


def seedlm_setup():
    config = SeedLMConfig(block_size=8, latent_dim=3, seed_bits=8)
    weights = {"w": torch.randn(16, 24, generator=torch.Generator().manual_seed(4))}
    codec = get_codec("seedlm")

    def again(now):
        return codec.encode(now, config, importance={}, seed=0)

    return codec, config, weights, again


def test_a_codec_without_prices_encodes_its_weights_anew():
    codec, config, weights, again = seedlm_setup()
    group = codec.encode(weights, config, importance={}, seed=0)
    module = Rechosen(codec, [group], weights, encode=again, every=3, error=0.1)
    assert not module.steerable and module.cheapen(5.0) == 0
    target = {"w": torch.flip(weights["w"], [0])}
    with torch.no_grad():
        module.values[0].copy_(target["w"])
        module.choose_again(3, 100, 1e-6)
    expected = codec.encode(target, config, importance={}, seed=0)
    found = module.groups()[0].tensors["w"].streams
    assert all(np.array_equal(found[role].values, s.values) for role, s in expected.tensors["w"].streams.items())


def test_what_was_trained_is_what_is_encoded():
    """Coefficients that were trained are kept by a choice, and a weight's movement is added to what they say."""
    codec, config, weights, _ = seedlm_setup()
    asked = []

    def again(now):
        asked.append(now["w"].clone())
        return codec.encode(now, config, importance={}, seed=0)

    module = Rechosen(codec, [codec.encode(weights, config, importance={}, seed=0)], weights, encode=again, error=0.1)
    begun = module.weights()["w"].detach().clone()
    with torch.no_grad():
        for parameter in module.inner.parameters():
            parameter.mul_(1.5)
        trained = module.weights()["w"].clone()
        module.values[0][0, 0] += 0.25
        module.choose_again(12, 100, 1e-6)
    moved = torch.zeros(16, 24)
    moved[0, 0] = 0.25
    assert (trained - begun).abs().max() > 0.1
    assert torch.allclose(asked[0], trained + moved, atol=1e-5)


def test_a_weight_moves_less_than_its_code_misses_from_choice_to_choice():
    codec, config, weights, again = seedlm_setup()
    group = codec.encode(weights, config, importance={}, seed=0)
    module = Rechosen(codec, [group], weights, encode=again, error=0.16)
    (value, *_) = module.highest_steps(0.01, 400)
    size = float(weights["w"].square().mean().sqrt())
    assert value * 50 < 0.16 * size  # eight choices in 400 steps
    assert module.highest_steps(1e-5, 400)[0] == pytest.approx(1e-5 * size, rel=0.05)  # slow enough as it is


def test_the_rate_falls_with_what_the_codes_miss():
    codec, config, weights, again = seedlm_setup()
    group = codec.encode(weights, config, importance={}, seed=0)
    apart = dict(decode(group))["w"] - weights["w"].numpy()
    error = relative_error([group], weights)
    assert error == pytest.approx(float(np.linalg.norm(apart) / np.linalg.norm(weights["w"].numpy())), rel=1e-6)
    factors = [
        Rechosen(codec, [group], weights, encode=again, error=one).finer(0.0, 1000) for one in (0.0, 0.05, 0.1, 0.9)
    ]
    assert 0.0 < factors[0] < factors[1] < factors[2] < factors[3] == 1.0
    assert factors[2] == pytest.approx(2 * factors[1])


@pytest.mark.parametrize(
    ("codes", "share"),
    [
        (("vptq", VPTQConfig(vector_dim=4, codebook_size=16, share=Sharing.model)), 0.8),
        (("seedlm", SeedLMConfig(block_size=8, latent_dim=3, seed_bits=8)), 1.5),
    ],
)
def test_other_codecs_train_within_a_budget_and_go_on_from_a_checkpoint(source, codes, share, tmp_path):
    """The same trainer, the same bytes after an interruption, and closer to the original than untrained codes."""
    tokens = torch.randint(0, source.network.config.vocab_size, (32, 12), generator=torch.Generator().manual_seed(2))

    def size(groups):
        return sum(map(len, contents(groups, source, stage=codes[0]).values()))

    def made():
        return TrainedStage(source, tokens, shape=Shape(), start_step=0.0, size=size, codes=codes)

    matrices = {name: w.float() for name, w in source.matrices().items()}
    untrained = get_codec(codes[0]).encode(matrices, codes[1], importance={}, seed=0)
    whole_size = size([untrained, *made()._plain(source.vectors())])
    budget = whole_size + int((share - 1.0) * group_bytes(untrained))
    plan = Plan(steps=24, batch_sequences=8, lr=0.02, checkpoint_every=8, precision=Precision.float32)
    whole = made().run(budget, plan)
    assert size(whole.groups) <= budget
    assert np.mean(whole.outcome.losses[-4:]) < whole.outcome.losses[0]

    class Stop(Exception):
        pass

    def stop(done):
        if done.step == 19:
            raise Stop

    with pytest.raises(Stop):
        made().run(budget, plan, checkpoint=tmp_path, on_step=stop)
    again = made().run(budget, plan, checkpoint=tmp_path)
    for one, other in zip(whole.groups, again.groups, strict=True):
        assert [blob for _, blob in code_pools(0, one)] == [blob for _, blob in code_pools(0, other)]


def test_a_budget_below_fixed_codes_is_refused(source):
    tokens = torch.ones(8, 12, dtype=torch.int64)
    codes = ("seedlm", SeedLMConfig(block_size=8, latent_dim=3, seed_bits=8))

    def size(groups):
        return sum(map(len, contents(groups, source, stage="seedlm").values()))

    made = TrainedStage(source, tokens, shape=Shape(), start_step=0.0, size=size, codes=codes)
    with pytest.raises(ConfigError, match="whatever is trained"):
        made.run(made.smallest_bytes() + 100, Plan(steps=2))


def test_the_proportion_of_a_parameter_is_that_of_its_values():
    assert root_mean_square(torch.tensor([3.0, 4.0, 0.0, 0.0])) == pytest.approx(2.5)
    assert root_mean_square(torch.zeros(3)) == 1.0
