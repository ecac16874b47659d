"""Training of continuous parameters: it lowers the held-out divergence, never raises it, and repeats itself exactly."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from phase8.codecs.base import (
    EncodedGroup,
    EncodedTensor,
    Stream,
    Trainable,
    float16_bits,
    float16_values,
    round_through,
)
from phase8.codecs.plain.encode import PlainCodec
from phase8.config import GrokfastConfig, GrokfastVariant, OptimizerConfig, Precision
from phase8.errors import CodecError, ConfigError, ModelError
from phase8.train import divergence
from phase8.train import reconstruct as module
from phase8.train.reconstruct import reconstruct

LEVELS = 8


class LevelsCodec:
    """A scalar quantiser for these tests: every weight is one of eight float16 levels shared by the group."""

    name = "levels"

    def encode(self, weights):
        top = max(float(w.abs().max()) for w in weights.values())
        levels = torch.linspace(-top, top, LEVELS)
        tensors = {}
        for name, weight in weights.items():
            codes = (weight[..., None] - levels).abs().argmin(-1).to(torch.uint8).reshape(-1).numpy()
            tensors[name] = EncodedTensor(shape=tuple(weight.shape), streams={"codes": Stream(values=codes, bits=3)})
        shared = {"levels": Stream(values=float16_bits(levels), bits=16)}
        return EncodedGroup(codec=self.name, settings={}, tensors=tensors, shared=shared)

    def decode(self, group):
        levels = float16_values(group.shared["levels"].values)
        return {n: levels[t.streams["codes"].values].reshape(t.shape) for n, t in group.tensors.items()}

    def trainable(self, group):
        return LevelsTrainable(group)


class LevelsTrainable(Trainable):
    def __init__(self, group):
        super().__init__()
        self.group = group
        self.levels = nn.Parameter(torch.from_numpy(float16_values(group.shared["levels"].values)))
        self.codes = {n: torch.from_numpy(t.streams["codes"].values.astype(np.int64)) for n, t in group.tensors.items()}

    def weights(self):
        levels = round_through(self.levels, self.levels.half().float())
        return {n: levels[codes].reshape(self.group.tensors[n].shape) for n, codes in self.codes.items()}

    def export(self):
        return dataclasses.replace(self.group, shared={"levels": Stream(values=float16_bits(self.levels), bits=16)})


CODECS = {"levels": LevelsCodec(), "plain": PlainCodec()}


@pytest.fixture(autouse=True)
def known_codecs(monkeypatch):
    monkeypatch.setattr(module, "get_codec", CODECS.__getitem__)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.3,  # large, so that the answers differ from token to token
    )
    return LlamaForCausalLM(settings).eval()


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 64, (48, 24), generator=torch.Generator().manual_seed(1))


def encoded(model):
    matrices = {n: p.detach().clone() for n, p in model.named_parameters() if p.ndim == 2}
    norms = {n: p.detach().clone() for n, p in model.named_parameters() if p.ndim == 1}
    return [LevelsCodec().encode(matrices), PlainCodec().encode(norms)]


CONFIG = OptimizerConfig(
    batch_sequences=8, calibration_sequences=32, held_out_sequences=16, precision=Precision.float32
)


def run(model, tokens, groups=None, *, steps=40, seed=0, config=CONFIG, on_step=None, **grokfast):
    return reconstruct(
        model,
        encoded(model) if groups is None else groups,
        calibration=tokens[:32],
        held_out=tokens[32:],
        config=config,
        grokfast=GrokfastConfig(iterations=steps, **grokfast),
        seed=seed,
        on_step=on_step,
    )


def stream_bytes(groups):
    return [s.values.tobytes() for g in groups for s in g.shared.values()] + [
        s.values.tobytes() for g in groups for t in g.tensors.values() for s in t.streams.values()
    ]


def weights_of(groups):
    return {n: torch.from_numpy(a) for g in groups for n, a in CODECS[g.codec].decode(g).items()}


def test_training_lowers_the_held_out_divergence_of_the_exported_weights(model, tokens):
    steps = []
    result = run(model, tokens, on_step=lambda step, loss: steps.append((step, loss)))
    assert result.kept and not result.diverged
    assert result.held_out_after < 0.7 * result.held_out_before
    assert np.mean(result.losses[-5:]) < 0.8 * np.mean(result.losses[:5])
    assert steps == list(enumerate(result.losses, 1)) and len(steps) == 40
    # The figure reported is the figure of what was returned.
    assert divergence.mean_kl(model, weights_of(result.groups), tokens[32:]) == pytest.approx(
        result.held_out_after, rel=1e-6
    )


@pytest.mark.parametrize("precision", list(Precision))
def test_the_same_seed_gives_the_same_bytes(model, tokens, precision):
    config = dataclasses.replace(CONFIG, precision=precision)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        one, two, other = (run(model, tokens, steps=10, seed=seed, config=config) for seed in (3, 3, 4))
    finally:
        torch.set_num_threads(threads)
    assert one.losses == two.losses
    assert stream_bytes(one.groups) == stream_bytes(two.groups)
    assert stream_bytes(one.groups) != stream_bytes(other.groups)


def test_the_model_is_left_as_it_was(model, tokens):
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    run(model, tokens, steps=3)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_tied_head_follows_the_embedding(model, tokens):
    name = "model.embed_tokens.weight"
    replaced = torch.randn(64, 32, generator=torch.Generator().manual_seed(2)) * 0.3
    other = LlamaForCausalLM(model.config).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.model.embed_tokens.weight.copy_(replaced)
        assert other.lm_head.weight is other.model.embed_tokens.weight
        expected = other(input_ids=tokens[:2]).logits
        assert torch.equal(divergence.network_logits(model, {name: replaced}, tokens[:2]), expected)


def test_what_would_be_worse_is_not_kept(model, tokens):
    groups = encoded(model)
    config = dataclasses.replace(CONFIG, lr=20.0, warmup=0.0)
    result = run(
        model, tokens, groups, steps=4, config=config, enabled=True, variant=GrokfastVariant.as_printed, lambda_=50.0
    )
    assert not result.kept
    assert not result.held_out_after < result.held_out_before
    assert all(given is back for given, back in zip(groups, result.groups, strict=True))


def test_a_loss_that_is_not_finite_stops_the_training(model, tokens, monkeypatch):
    real, calls = module.kl_per_token, []

    def broken(*arguments):
        calls.append(1)
        return real(*arguments) * (math.nan if len(calls) == 4 else 1.0)

    monkeypatch.setattr(module, "kl_per_token", broken)
    result = run(model, tokens, steps=20)
    assert result.diverged and len(result.losses) == 4
    assert math.isfinite(result.held_out_after) and result.kept  # the three good steps count


def test_parameters_that_cannot_be_stored_are_not_kept(model, tokens, monkeypatch):
    def refuse(self):
        raise CodecError("too large for float16")

    monkeypatch.setattr(LevelsTrainable, "export", refuse)
    groups = encoded(model)
    result = run(model, tokens, groups, steps=2)
    assert result.diverged and not result.kept and math.isnan(result.held_out_after)
    assert all(given is back for given, back in zip(groups, result.groups, strict=True))


def test_no_iterations_change_nothing(model, tokens):
    groups = encoded(model)
    result = run(model, tokens, groups, steps=0)
    assert stream_bytes(result.groups) == stream_bytes(groups)
    assert result.held_out_before == result.held_out_after and not result.kept


def test_the_weight_phase_fits_the_weights(model, tokens):
    groups = encoded(model)
    config = dataclasses.replace(CONFIG, weight_phase=1.0)
    result = run(model, tokens, groups, config=config, variant=GrokfastVariant.off)
    originals = {n: p.detach() for n, p in model.named_parameters()}

    def error(found):
        return sum(
            float((w - originals[n]).square().sum() / originals[n].square().sum()) for n, w in weights_of(found).items()
        )

    assert result.losses[-1] < 0.9 * result.losses[0]
    assert result.losses[0] == pytest.approx(error(groups), rel=1e-3)
    halves = dataclasses.replace(CONFIG, weight_phase=0.5)
    mixed = run(model, tokens, groups, config=halves, variant=GrokfastVariant.off)
    assert mixed.losses[0] == result.losses[0] and mixed.held_out_after < mixed.held_out_before


def test_hidden_states_can_be_part_of_the_loss(model, tokens):
    result = run(model, tokens, config=dataclasses.replace(CONFIG, hidden_weight=1.0))
    plain = run(model, tokens)
    assert result.losses[0] > plain.losses[0]
    assert result.held_out_after < result.held_out_before


def test_the_remembered_teacher_gives_the_same_losses(model, tokens, monkeypatch):
    config = dataclasses.replace(CONFIG, precision=Precision.bfloat16)
    remembered = run(model, tokens, steps=10, config=config)
    monkeypatch.setattr(module, "_TEACHER_CACHE_BYTES", 0)
    assert run(model, tokens, steps=10, config=config).losses == pytest.approx(remembered.losses, rel=1e-3)


def test_every_variant_of_the_filter_trains(model, tokens):
    after = {v: run(model, tokens, steps=12, enabled=True, variant=v, window=4).held_out_after for v in GrokfastVariant}
    assert len(set(after.values())) == len(after)


def test_an_error_in_on_step_comes_out_as_it_is(model, tokens):
    def stop(step, loss):
        raise KeyboardInterrupt if step == 2 else RuntimeError("from the caller")

    with pytest.raises(RuntimeError, match="from the caller"):
        run(model, tokens, on_step=stop)

    def interrupt(step, loss):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, tokens, on_step=interrupt)


def test_no_file_is_written(model, tokens, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(model, tokens, steps=2)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_groups_that_do_not_fit_are_refused(model, tokens):
    stray = LevelsCodec().encode({"model.nowhere.weight": torch.ones(2, 2), "model.norm.weight": torch.ones(3, 3)})
    with pytest.raises(ModelError, match=r"model\.nowhere\.weight.*model\.norm\.weight"):
        run(model, tokens, [stray])
    with pytest.raises(ModelError, match="non-empty"):
        run(model, tokens[:32])


def test_the_sensitivity_of_a_tensor_is_the_divergence_that_it_alone_causes(model, tokens):
    name = "model.layers.1.mlp.down_proj.weight"
    exact = {n: p.detach() for n, p in model.named_parameters()}
    changed = {**exact, name: torch.zeros_like(exact[name])}
    found = divergence.tensor_sensitivity(model, changed, tokens[:8])
    assert max(found, key=found.get) == name
    assert all(value == pytest.approx(0.0, abs=1e-6) for n, value in found.items() if n != name)


@pytest.mark.parametrize(
    "wrong",
    [{"lr": 0.0}, {"temperature": 0.0}, {"batch_sequences": 300}, {"weight_phase": 1.5}, {"sequence_tokens": 1}],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match="optimizer"):
        OptimizerConfig(**wrong)
