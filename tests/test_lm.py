"""`Phase8LM` against lm-eval's own `HFLM`, on a tiny model with random weights."""

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from phase8.benchmarks.lm import Phase8LM, PlanCache
from phase8.errors import BenchmarkError
from tests.tiny_model import TEXT, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_model(tokenizer)


def instances(kind, arguments):
    return [
        Instance(request_type=kind, doc={}, arguments=a, idx=i, metadata=("task", i, 1))
        for i, a in enumerate(arguments)
    ]


QUESTIONS = [
    ("The old miller", [" of Brindle", " keeps seven grey geese.", " eats", " eats grain"]),
    ("Question: what turns the wheel? Answer:", [" the river", " the sea", " geese"]),
    ("A trailing space belongs to the answer: ", ["seven", "five", "two"]),
    ("", ["No context at all.", " none", "<|begin|>The old"]),
    ("<|begin|>Already begun", [" once", " twice"]),
    ("x", [" y", " y", " z"]),
    ("Nobody has seen the sea. " * 12, [" The end.", " and so on and on and on"]),
    ("Ünïcödé → ", ["✓", "né"]),
]
PAIRS = [(context, choice) for context, choices in QUESTIONS for choice in choices]


def same(ours, theirs):
    assert [flag for _, flag in ours] == [flag for _, flag in theirs]
    assert [score for score, _ in ours] == pytest.approx([score for score, _ in theirs], abs=1e-4)


@pytest.fixture(scope="module")
def reference(model, tokenizer):
    return HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=4, max_length=96, device="cpu")


def test_scores_equal_hflm(model, tokenizer, reference):
    theirs = reference.loglikelihood(instances("loglikelihood", PAIRS), disable_tqdm=True)
    lm = Phase8LM(model, tokenizer)
    same(lm.loglikelihood(instances("loglikelihood", PAIRS)), theirs)
    assert lm.scorer.way == "packed"
    for plan in lm.cache.plans.values():
        plan.way = 1
    same(lm.loglikelihood(instances("loglikelihood", PAIRS)), theirs)


def test_greedy_flags_are_found(model, tokenizer, reference):
    words = [tokenizer.decode([token]) for token in range(3, len(tokenizer))]
    pairs = [(context, word) for context in ("The old miller", "Nobody", "def add(") for word in words if word.strip()]
    theirs = reference.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    assert any(flag for _, flag in theirs)
    same(Phase8LM(model, tokenizer).loglikelihood(instances("loglikelihood", pairs)), theirs)


@pytest.mark.parametrize("batch_tokens", [1, 64, 100_000])
def test_scores_do_not_depend_on_the_batches(model, tokenizer, batch_tokens):
    expected = Phase8LM(model, tokenizer).loglikelihood(instances("loglikelihood", PAIRS))
    lm = Phase8LM(model, tokenizer, batch_tokens=batch_tokens)
    same(lm.loglikelihood(instances("loglikelihood", PAIRS)), expected)


def test_a_model_without_custom_masks_falls_back(tokenizer, reference, model, monkeypatch):
    other = tiny_model(tokenizer)
    forward = other.base_model.forward

    def without_mask(*args, attention_mask=None, position_ids=None, **kwargs):
        return forward(*args, **kwargs)

    monkeypatch.setattr(other.base_model, "forward", without_mask)
    lm = Phase8LM(other, tokenizer)
    theirs = reference.loglikelihood(instances("loglikelihood", PAIRS), disable_tqdm=True)
    same(lm.loglikelihood(instances("loglikelihood", PAIRS)), theirs)
    assert lm.scorer.way == "batched"


def test_eager_attention_packs_too(tokenizer):
    lm = Phase8LM(tiny_model(tokenizer, attn_implementation="eager"), tokenizer)
    lm.loglikelihood(instances("loglikelihood", PAIRS))
    assert lm.scorer.way == "packed"


def test_rolling_equals_hflm(model, tokenizer, reference):
    texts = [(TEXT * 3,), ("Short.",), (TEXT,)]
    theirs = reference.loglikelihood_rolling(instances("loglikelihood_rolling", texts), disable_tqdm=True)
    ours = Phase8LM(model, tokenizer).loglikelihood_rolling(instances("loglikelihood_rolling", texts))
    assert ours == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize("rows", [2, 256])
def test_generations_equal_hflm(model, tokenizer, monkeypatch, rows):
    # One row at a time: in a batch, HFLM decides by the first row whether all get a BOS token, and cuts padding too.
    reference = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=1, max_length=96, device="cpu")
    monkeypatch.setattr("phase8.benchmarks.lm.ROWS_PER_GENERATION", rows)
    prompts = [context for context, _ in QUESTIONS if context] + ["def add(a, b):\n", TEXT[:50], TEXT[:90]]
    kinds = [
        {"until": ["e"], "max_gen_toks": 24, "do_sample": False},
        {"until": [], "max_gen_toks": 12},
        {"until": ["th", "\n\n"], "max_gen_toks": 20, "temperature": 0.0},
    ]
    arguments = [(prompt, kind) for prompt in prompts for kind in kinds]
    theirs = reference.generate_until(instances("generate_until", arguments), disable_tqdm=True)
    assert Phase8LM(model, tokenizer).generate_until(instances("generate_until", arguments)) == theirs
    assert len(set(theirs)) > 5


SAMPLED = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "until": ["\n"], "max_gen_toks": 6}


def test_sampled_answers_depend_on_prompt_and_repeat_only(model, tokenizer, monkeypatch):
    prompts = ["The old miller", "Nobody", "def add("]
    requests = [(prompt, SAMPLED) for prompt in prompts for _ in range(5)]
    first = Phase8LM(model, tokenizer).generate_until(instances("generate_until", requests))
    assert len(set(first)) > 8
    greedy = (prompts[1], {"until": ["\n"], "max_gen_toks": 6})
    monkeypatch.setattr("phase8.benchmarks.lm.ROWS_PER_GENERATION", 3)
    again = Phase8LM(model, tokenizer).generate_until(instances("generate_until", [greedy, *requests[::-1]]))
    assert sorted(again[1:]) == sorted(first) and again[1:6] == first[10:]
    assert again[0] == Phase8LM(model, tokenizer).generate_until(instances("generate_until", [greedy]))[0]


def test_samples_follow_the_truncated_distribution(model, tokenizer):
    draws = 4000
    arguments = {"do_sample": True, "temperature": 0.5, "top_p": 0.6, "until": [], "max_gen_toks": 1}
    texts = Phase8LM(model, tokenizer).generate_until(instances("generate_until", [("Nobody", arguments)] * draws))
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer("Nobody")["input_ids"]])).logits[0, -1]
    probability = torch.softmax(logits / 0.5, dim=-1).tolist()
    kept, total = [], 0.0
    for token in sorted(range(len(probability)), key=lambda token: -probability[token]):
        if total >= 0.6:
            break
        kept.append(token)
        total += probability[token]
    assert len(kept) > 2
    expected = {}
    for token in kept:
        text = tokenizer.decode([token], skip_special_tokens=True)
        expected[text] = expected.get(text, 0.0) + probability[token] / total
    assert set(texts) <= set(expected)
    for text, share in expected.items():
        assert texts.count(text) / draws == pytest.approx(share, abs=4 * (share * (1 - share) / draws) ** 0.5)


def test_requests_are_encoded_once(model, tokenizer, monkeypatch):
    cache = PlanCache()
    first = Phase8LM(model, tokenizer, cache=cache).loglikelihood(instances("loglikelihood", PAIRS))
    again = Phase8LM(model, tokenizer, cache=cache)
    monkeypatch.setattr(again, "_encode_pairs", None)
    assert again.loglikelihood(instances("loglikelihood", PAIRS)) == first


def test_progress_reaches_the_end(model, tokenizer):
    seen = []
    lm = Phase8LM(model, tokenizer, on_progress=lambda done, total: seen.append((done, total)))
    lm.loglikelihood(instances("loglikelihood", PAIRS))
    assert seen[-1] == (len(PAIRS), len(PAIRS))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_what_cannot_be_scored_is_an_error(model, tokenizer):
    lm = Phase8LM(model, tokenizer)
    with pytest.raises(BenchmarkError, match="continuation"):
        lm.loglikelihood(instances("loglikelihood", [("The", "")]))
    for setting in ({"num_beams": 2}, {"do_sample": True, "temperature": 0.8, "top_k": 5}):
        with pytest.raises(BenchmarkError, match="cannot be set"):
            lm.generate_until(instances("generate_until", [("The", setting)]))
    with pytest.raises(BenchmarkError, match="window"):
        lm.generate_until(instances("generate_until", [("The", {"max_gen_toks": 96})]))
