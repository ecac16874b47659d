"""Training within a byte budget, on the tiny Llama: the budget, the answers, the narrowing, going on after a stop."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from phase8.artifact.write import contents
from phase8.cache import ContentCache
from phase8.codecs.decoders import decode
from phase8.config import GrokfastConfig, Precision
from phase8.errors import ConfigError, ModelError
from phase8.model.source import ExpertFile, source_from_network
from phase8.train import within_budget
from phase8.train.answers import answers_key, load_answers, save_answers
from phase8.train.collect import collect_answers
from phase8.train.price import Price
from phase8.train.shape import Shape
from phase8.train.sliced import SlicedBatch
from phase8.train.slicing import narrow, why_not
from phase8.train.text import training_text, write_text
from phase8.train.threads import side_by_side
from phase8.train.whole import TrainedStage
from phase8.train.within_budget import Plan

PLAN = Plan(
    steps=24, batch_sequences=4, lr=0.02, ramp=0.3, precision=Precision.float32, warmup_steps=2, checkpoint_every=8
)


@pytest.fixture
def tokens():
    return torch.randint(2, 258, (24, 12), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def tiny_network(tiny_network):
    """As in the other tests, with weights so large that its answers differ from place to place."""
    with torch.no_grad():
        for parameter in tiny_network.parameters():
            if parameter.dim() == 2:
                parameter.mul_(12.0)
    return tiny_network


@pytest.fixture
def source(tiny_network, tiny_tokenizer):
    return source_from_network(tiny_network, tiny_tokenizer, ExpertFile(), "tiny")


def stage(source, tokens, **shape) -> TrainedStage:
    def size(groups):
        return sum(map(len, contents(groups, source, stage="hyper").values()))

    return TrainedStage(source, tokens, shape=Shape(**shape), start_step=0.5, size=size)


# Answers ------------------------------------------------------------------------------------------------------------


def full_divergence(network, other, tokens):
    with torch.no_grad():
        p = torch.log_softmax(network(input_ids=tokens).logits, -1)
        q = torch.log_softmax(other(input_ids=tokens).logits, -1)
    return (p.exp() * (p - q)).sum(-1).mean(-1)


def test_with_every_answer_kept_the_divergence_is_the_full_one(tiny_network, tokens):
    answers = collect_answers(tiny_network, tokens, kept=258, batch_sequences=5)
    other = narrow(tiny_network, [tokens], width=8, units=16).network
    with torch.no_grad():
        found = answers.divergence(torch.arange(6), other(input_ids=tokens[:6]).logits)
    assert torch.allclose(found, full_divergence(tiny_network, other, tokens[:6]), atol=2e-3)


def test_with_few_answers_kept_it_is_never_more(tiny_network, tokens):
    other = narrow(tiny_network, [tokens], width=8, units=16).network
    whole = full_divergence(tiny_network, other, tokens)
    for kept in (1, 8, 64):
        answers = collect_answers(tiny_network, tokens, kept=kept)
        with torch.no_grad():
            found = answers.divergence(torch.arange(len(tokens)), other(input_ids=tokens).logits)
        assert (found <= whole + 2e-3).all() and (found > 0).all()


@pytest.mark.parametrize("certainty", [0.0, 1.5])
@pytest.mark.parametrize("spread", [1.0, 4.0, 30.0])  # 30: much is too small for float32
def test_the_gradient_that_is_written_out_is_that_of_the_formula(tiny_network, tokens, spread, certainty):
    answers, rows = collect_answers(tiny_network, tokens, kept=8), torch.arange(6)
    logits = (spread * torch.randn(6, 12, 258, generator=torch.Generator().manual_seed(1))).requires_grad_()
    shares = torch.arange(1.0, 7.0)
    (found,) = torch.autograd.grad((shares * answers.divergence(rows, logits, certainty)).sum(), logits)

    exact = logits.detach().double().requires_grad_()
    theirs, kept = answers.of(rows, logits.device)
    ours, p = exact.log_softmax(-1).gather(-1, kept), theirs.double().exp()
    rest, our_rest = (1 - p.sum(-1)).clamp_min(1e-6), (1 - ours.exp().sum(-1)).clamp_min(1e-6)
    by_place = (p * (theirs - ours)).sum(-1) + rest * (rest / our_rest).log()
    entropy = -(p * theirs).sum(-1) - rest * rest.log()
    by_place = by_place * (-certainty * entropy).exp()
    (expected,) = torch.autograd.grad((shares * by_place.mean(-1)).sum(), exact)
    assert torch.allclose(found.double(), expected, atol=2e-6, rtol=2e-3)


def test_cached_answers_come_back_and_damaged_ones_do_not(tiny_network, tokens, tmp_path):
    answers, key = collect_answers(tiny_network, tokens, kept=4), answers_key("hash", tokens, 4)
    save_answers(tmp_path, key, answers)
    found = load_answers(tmp_path, key, tuple(tokens.shape))
    assert np.array_equal(found.log_p_NTK, answers.log_p_NTK) and np.array_equal(found.token_NTK, answers.token_NTK)
    assert load_answers(tmp_path, answers_key("other", tokens, 4), tuple(tokens.shape)) is None
    (file,) = tmp_path.glob("answers_*.npz")
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(bytes(raw))
    assert load_answers(tmp_path, key, tuple(tokens.shape)) is None


# Narrowing ----------------------------------------------------------------------------------------------------------


def test_at_full_width_nothing_changes(tiny_network, tokens):
    whole = narrow(tiny_network, [tokens], width=16, units=40)
    with torch.no_grad():
        assert torch.allclose(whole.network(input_ids=tokens).logits, tiny_network(input_ids=tokens).logits, atol=1e-4)


def test_the_narrow_network_is_the_wide_one_with_zeros(tiny_network, tokens):
    with torch.no_grad():
        for parameter in tiny_network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)))
    part = narrow(tiny_network, tokens.split(8), width=8, units=24, heads=1)
    shapes = {name: tuple(p.shape) for name, p in tiny_network.named_parameters()}
    wide = {name: torch.zeros(shape) for name, shape in shapes.items()}
    for name, parameter in part.network.named_parameters():
        if parameter.dim() == 2:
            wide[name][: parameter.shape[0], : parameter.shape[1]] = parameter
    wide |= part.widened({n: p for n, p in part.network.named_parameters() if p.dim() == 1}, shapes)
    with torch.no_grad():
        found = torch.func.functional_call(tiny_network, wide, (), {"input_ids": tokens}, tie_weights=True).logits
        assert torch.allclose(found, part.network(input_ids=tokens).logits, atol=1e-4)


def test_dropping_units_that_do_nothing_changes_nothing(tiny_network, tokens):
    with torch.no_grad():
        for layer in tiny_network.model.layers:
            layer.mlp.down_proj.weight[:, ::2] = 0.0
    part = narrow(tiny_network, [tokens], width=16, units=20)
    with torch.no_grad():
        found, expected = part.network(input_ids=tokens).logits, tiny_network(input_ids=tokens).logits
    assert torch.allclose(found, expected, atol=1e-2)


def test_dropping_heads_that_do_nothing_changes_nothing(tiny_network, tokens):
    size = tiny_network.config.head_dim
    queries = tiny_network.config.num_attention_heads // tiny_network.config.num_key_value_heads * size
    with torch.no_grad():
        for layer in tiny_network.model.layers:
            layer.self_attn.o_proj.weight[:, :queries] = 0.0
    part = narrow(tiny_network, [tokens], width=16, units=40, heads=tiny_network.config.num_key_value_heads - 1)
    with torch.no_grad():
        found, expected = part.network(input_ids=tokens).logits, tiny_network(input_ids=tokens).logits
    assert torch.allclose(found, expected, atol=1e-2)


def test_another_layout_is_refused_with_the_reason():
    from transformers import GPT2Config, GPT2LMHeadModel

    network = GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=20))
    assert "Llama" in why_not(network)
    with pytest.raises(ModelError, match="cannot be narrowed"):
        narrow(network, [], width=4, units=4)


# Price --------------------------------------------------------------------------------------------------------------


def test_the_price_holds_a_size_that_answers_late():
    price, size, past = Price(start_bits=1000.0, budget_bits=300.0, ramp=0.4), 1000.0, [1e-7] * 20
    steps = 1500
    for step in range(steps):
        if step % 4 == 0:
            price.look(size, step / steps)
        price.step()
        past.append(price.value)
        wanted = 1000.0 / (1.0 + (past[-20] / 1e-6) ** 0.5)  # what this price leads to, in the end
        size += (wanted - size) / 15.0
    assert size == pytest.approx(300.0, rel=0.05)


# The whole stage ----------------------------------------------------------------------------------------------------


def test_the_file_is_within_the_budget_and_says_what_was_trained(source, tokens):
    made = stage(source, tokens, width=0.5, units=0.5)
    budget = made.smallest_bytes() + 1800
    result = made.run(budget, PLAN)
    assert made.size(result.groups) <= budget
    decoded = dict(pair for group in result.groups for pair in decode(group))
    assert {n: w.shape for n, w in decoded.items()} == {n: tuple(p.shape) for n, (_, p) in source.parameters.items()}
    embedding = decoded["model.embed_tokens.weight"]
    assert embedding[:, :8].any() and not embedding[:, 8:].any()
    assert len(result.outcome.losses) == PLAN.steps


def test_layers_that_share_integers_leave_more_bytes_for_each(source, tokens):
    one, two = stage(source, tokens), stage(source, tokens, shared=2)
    assert two.smallest_bytes() < one.smallest_bytes()
    budget = two.smallest_bytes() + 1800
    result = two.run(budget, PLAN)
    assert two.size(result.groups) <= budget
    found = dict(pair for group in result.groups for pair in decode(group))
    for name in source.matrices():
        if ".layers.1." not in name:
            continue
        first, second = found[name.replace(".layers.1.", ".layers.0.")], found[name]
        place = np.abs(first).argmax()
        assert second.any() and np.allclose(first * (second.flat[place] / first.flat[place]), second, rtol=1e-6)


def test_training_lowers_the_divergence(source, tokens):
    made = stage(source, tokens)
    plan = dataclasses.replace(PLAN, steps=60, ramp=0.0)
    losses = made.run(made.smallest_bytes() + 3_000, plan).outcome.losses
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])


def test_a_budget_below_the_side_information_is_refused_with_the_smallest(source, tokens):
    made = stage(source, tokens)
    with pytest.raises(ConfigError, match=f"{made.smallest_bytes():,}"):
        made.check(made.smallest_bytes() - 1, "hyper.budget_bytes=1")


def test_a_stopped_training_goes_on_to_the_same_bytes(source, tokens, tmp_path):
    made = stage(source, tokens, width=0.5, units=1.0)
    budget = made.smallest_bytes() + 2000
    plan = dataclasses.replace(PLAN, grokfast=GrokfastConfig(enabled=True), focus=0.6)
    whole = made.run(budget, plan)

    def stop(done):
        if done.step == 19:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.run(budget, plan, on_step=stop, checkpoint=tmp_path)
    steps = []
    again = made.run(budget, plan, on_step=lambda done: steps.append(done.step), checkpoint=tmp_path)
    assert steps[0] == 17  # the last checkpoint was at 16
    assert contents(again.groups, source, stage="hyper") == contents(whole.groups, source, stage="hyper")
    assert again.outcome.losses == whole.outcome.losses


def test_a_damaged_checkpoint_is_not_gone_on_from(source, tokens, tmp_path):
    """The training begins anew, says so, and comes to the seed's bytes."""
    made = stage(source, tokens, width=0.5, units=1.0)
    budget = made.smallest_bytes() + 2000
    whole = made.run(budget, PLAN, checkpoint=tmp_path)
    (path,) = tmp_path.iterdir()  # of step 16
    broken = bytearray(path.read_bytes())
    broken[len(broken) // 2] ^= 1
    path.write_bytes(broken)
    steps = []
    again = stage(source, tokens, width=0.5, units=1.0)
    found = again.run(budget, PLAN, on_step=lambda done: steps.append(done.step), checkpoint=tmp_path)
    assert steps[0] == 1 and "began anew" in found.notes[-1]
    assert contents(found.groups, source, stage="hyper") == contents(whole.groups, source, stage="hyper")


def test_a_checkpoint_of_another_plan_is_not_gone_on_from_and_a_note_says_so(source, tokens, tmp_path):
    made = stage(source, tokens, width=0.5, units=1.0)
    budget = made.smallest_bytes() + 2000
    made.run(budget, PLAN, checkpoint=tmp_path)
    steps = []
    again = stage(source, tokens, width=0.5, units=1.0)
    faster = dataclasses.replace(PLAN, lr=2 * PLAN.lr)
    found = again.run(budget + 100, faster, on_step=lambda done: steps.append(done.step), checkpoint=tmp_path)
    assert steps[0] == 1
    assert found.notes[-1] == "training began anew, its checkpoint is of another plan and another budget"


def test_a_checkpoint_of_fewer_steps_is_gone_on_from(source, tokens, tmp_path):
    """Up to it nothing is done again; then the rate follows the longer schedule, so that what comes out is new."""
    budget = stage(source, tokens, width=0.5, units=1.0).smallest_bytes() + 2000
    short = stage(source, tokens, width=0.5, units=1.0).run(budget, PLAN, checkpoint=tmp_path)
    steps = []
    longer = dataclasses.replace(PLAN, steps=PLAN.steps + 8)
    again = stage(source, tokens, width=0.5, units=1.0)
    found = again.run(budget, longer, on_step=lambda done: steps.append(done.step), checkpoint=tmp_path)
    assert steps == list(range(17, 33)) and not any("anew" in note for note in found.notes)
    assert found.outcome.losses[:16] == short.outcome.losses[:16] and len(found.outcome.losses) == 32
    assert contents(found.groups, source, stage="hyper") != contents(short.groups, source, stage="hyper")


def test_a_stopped_training_leaves_what_it_had_within_the_budget(source, tokens):
    made = stage(source, tokens)
    budget = made.smallest_bytes() + 1500
    assert made.so_far(budget) is None

    def stop(done):
        if done.step == 5:  # the size has only begun to fall
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.run(budget, PLAN, on_step=stop)
    groups = made.so_far(budget)
    assert budget - 100 < made.size(groups) <= budget
    assert any(weight.any() for group in groups for _, weight in decode(group))


def test_slices_give_the_divergence_and_gradient_of_the_whole_batch(tiny_network, tokens):
    answers = collect_answers(tiny_network, tokens, kept=40)
    other = narrow(tiny_network, [tokens], width=8, units=16).network
    weights = {name: p.detach().clone().requires_grad_() for name, p in other.named_parameters()}
    rows = torch.tensor([3, 1, 4, 15, 9])
    logits = torch.func.functional_call(other, weights, (), {"input_ids": tokens[rows]}, tie_weights=True).logits
    expected = answers.divergence(rows, logits)
    gradient = torch.autograd.grad(expected.mean(), list(weights.values()))
    threads = torch.get_num_threads()
    for slices in (1, 2, 3):
        torch.set_num_threads(slices)
        device = torch.device("cpu")
        with side_by_side(device) as (count, apply):
            batch = SlicedBatch(other, answers, device=device, bfloat16=False, slices=count, apply=apply)
            mean, of_each = batch.divergence(weights, tokens[rows], rows)
            found = torch.autograd.grad(mean, list(weights.values()))
        assert torch.get_num_threads() == count == slices
        torch.set_num_threads(threads)
        assert torch.allclose(of_each, expected, atol=1e-6)
        assert all(torch.allclose(f, g, atol=1e-6) for f, g in zip(found, gradient, strict=True))


def test_a_loss_that_is_no_number_goes_back_and_slower(source, tokens, monkeypatch):
    right, calls = SlicedBatch.divergence, []

    def sometimes(self, weights, tokens, rows):
        calls.append(1)
        mean, of_each = right(self, weights, tokens, rows)
        return mean, of_each * (math.nan if len(calls) == 10 else 1.0)

    monkeypatch.setattr(SlicedBatch, "divergence", sometimes)
    made = stage(source, tokens)
    outcome = made.run(made.smallest_bytes() + 4000, PLAN).outcome
    assert outcome.setbacks == 1 and not outcome.diverged
    assert all(map(math.isfinite, outcome.losses))


@pytest.mark.parametrize(("times", "floor", "setbacks"), [(10.0, 1e-3, 1), (2.0, 1e-3, 0), (10.0, 100.0, 0)])
def test_a_loss_that_blows_up_goes_back_to_the_last_good_point(source, tokens, monkeypatch, times, floor, setbacks):
    right, calls = SlicedBatch.divergence, []

    def for_a_while(self, weights, tokens, rows):
        calls.append({name: weight.detach().clone() for name, weight in weights.items()})
        mean, of_each = right(self, weights, tokens, rows)
        return mean, of_each * (times if 30 < len(calls) <= 40 else 1.0)

    monkeypatch.setattr(SlicedBatch, "divergence", for_a_while)
    monkeypatch.setattr(within_budget, "SNAPSHOT_EVERY", 10)
    monkeypatch.setattr(within_budget, "LEAST_LOSS", floor)
    made = stage(source, tokens)
    plan = dataclasses.replace(PLAN, steps=60, ramp=0.1, focus=0.0)
    outcome = made.run(made.smallest_bytes() + 4000, plan).outcome
    assert outcome.setbacks == setbacks and not outcome.diverged
    went_back = all(torch.equal(before, calls[40][name]) for name, before in calls[30].items())
    assert went_back == bool(setbacks)  # the 41st step begins where the 31st began


def test_another_part_of_the_text_is_other_text(source, tmp_path):
    (tmp_path / "text.txt").write_text("".join(map(chr, range(33, 127))))

    def part(number: int, sequences: int, path: str | None = str(tmp_path / "text.txt")) -> torch.Tensor:
        asked = {"model_path": "tiny", "path": path, "sequences": sequences, "length": 8, "seed": 3}
        return training_text(source, **asked, part=number).tokens_NT

    whole = part(0, 6)
    assert torch.equal(part(0, 3), whole[:3]) and torch.equal(part(1, 3), whole[3:])
    assert torch.equal(part(9, 3), whole[:3])  # the file holds no more
    assert torch.equal(part(1, 2, None), part(1, 2, None)) and not torch.equal(part(0, 2, None), part(1, 2, None))


def test_the_original_writes_no_more_than_is_enough(source, tmp_path, monkeypatch):
    monkeypatch.setattr("phase8.train.text.ENOUGH", 4)
    for letters, expected in ((20, 4), (40, 5)):  # 20 letters are 2 sequences, 40 are 5
        (tmp_path / "text.txt").write_text("".join(map(chr, range(33, 33 + letters))))
        text = training_text(
            source, model_path="tiny", path=str(tmp_path / "text.txt"), sequences=100, length=8, seed=3
        )
        assert len(text.tokens_NT) == expected, text.told


def test_what_the_original_wrote_is_kept_for_other_runs(source, tmp_path):
    told = []

    def asked(seed=3):
        return training_text(
            source, model_path="tiny", path=None, sequences=3, length=8, seed=seed, cache=ContentCache(tmp_path),
            on_written=lambda done, total: told.append(done),
        ).tokens_NT  # fmt: skip

    first = asked()
    assert torch.equal(first, asked()) and told == [3]  # written once
    assert not torch.equal(first, asked(4)) and told == [3, 3]
    (file, _) = sorted((tmp_path / "text").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(bytes(raw))
    assert torch.equal(first, asked()) and told == [3, 3, 3]  # damaged: written anew


def test_a_large_vocabulary_is_asked_in_parts(tiny_network, tokens, monkeypatch):
    """The divergence and its gradients are the same, but for the order of sums."""
    found = []
    for at_once in (1 << 24, 2 * 12 * 258, 1):
        monkeypatch.setattr("phase8.train.answers.LOGITS_AT_ONCE", at_once)
        answers = collect_answers(tiny_network, tokens, kept=16)
        with side_by_side(torch.device("cpu")) as (slices, apply):
            batch = SlicedBatch(
                tiny_network, answers, device=torch.device("cpu"), bfloat16=False, slices=slices, apply=apply
            )
            weights = {name: 0.9 * p.detach() for name, p in tiny_network.named_parameters() if p.dim() == 2}
            found.append(batch.ask(weights, tokens[:10], torch.arange(10)))
    for of_each, gradient in found[1:]:
        assert torch.allclose(of_each, found[0][0], rtol=1e-3, atol=1e-5)
        assert all(torch.allclose(*pair, rtol=1e-2, atol=1e-5) for pair in zip(gradient, found[0][1], strict=True))


def test_the_original_writes_text_of_its_own(tiny_network):
    first, again = (write_text(tiny_network, 3, 9, seed=1) for _ in range(2))
    assert first.shape == (3, 9) and torch.equal(first, again)
    assert (first[:, 0] == tiny_network.config.bos_token_id).all()
    assert not torch.equal(first, write_text(tiny_network, 3, 9, seed=2))


@pytest.mark.parametrize("kind", ["mamba", "jamba"])
def test_a_model_of_another_cache_writes_its_own_text(kind, monkeypatch):
    """A state-space model has no `past_key_values`; what it writes is what it writes without any cache."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {
        "mamba": {"state_size": 8, "time_step_rank": 4},
        "jamba": {
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "mamba_d_state": 8,
            "mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2,
            "expert_layer_period": 2, "expert_layer_offset": 1, "use_mamba_kernels": False,
        },
    }[kind]  # fmt: skip
    config = AutoConfig.for_model(
        kind, vocab_size=60, hidden_size=32, num_hidden_layers=2, initializer_range=0.3, bos_token_id=0, **settings
    )
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(config).eval()
    found = write_text(network, 2, 9, seed=1)
    monkeypatch.setattr("phase8.train.text.cache_holds", lambda *_: False)
    assert torch.equal(found, write_text(network, 2, 9, seed=1))


def test_a_wrong_cache_is_not_used(tiny_network, monkeypatch):
    from phase8.train import text

    assert text.cache_holds(tiny_network, 9)
    right = write_text(tiny_network, 2, 9, seed=1)
    monkeypatch.setattr(text, "_kept", lambda answer: {"past_key_values": None} if len(answer) else {})
    assert not text.cache_holds(tiny_network, 9)
    assert torch.equal(right, write_text(tiny_network, 2, 9, seed=1))


def test_a_trained_stage_reads_no_more_than_the_window(tiny_network, tiny_tokenizer, monkeypatch):
    """A model of 64 positions, asked for 128 tokens; and one from memory has no text of the embedded world's."""
    from types import SimpleNamespace

    from phase8.config import CompressionConfig
    from phase8.model.source import ExpertFile, source_from_network
    from phase8.run import train
    from phase8.run.calibration import Calibration

    class Asked(Exception):
        pass

    def text(source, **settings):
        raise Asked(settings)

    monkeypatch.setattr(train, "training_text", text)
    tiny_network.config.max_position_embeddings = 64
    source, told = source_from_network(tiny_network, tiny_tokenizer, ExpertFile(), "mine"), []
    run = SimpleNamespace(
        source=source, calibration=Calibration(source, None, told.append), shared=SimpleNamespace(cache=None)
    )
    config = CompressionConfig.from_dict({"hyper": {"trajectory_type": "lattice", "budget_bytes": 5000}})
    with pytest.raises(Asked) as asked:
        train._train(run, "hyper", 1, config)
    (settings,) = asked.value.args
    assert settings["length"] == 64 and "64 tokens instead of" in told[0]
    assert settings["model_path"] == "mine"
