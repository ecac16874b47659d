"""Probes grade nobody, and tell which tensor the answers to an integration test depend on."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from phase8.benchmarks import edge, probes
from phase8.benchmarks.eudaimonia import with_eudaimonia
from phase8.benchmarks.evaluate import evaluate
from phase8.benchmarks.suite import EDGE_OF_CHAOS, EUDAIMONIA, RULES, load_suite, suite_hash
from phase8.config import CompressionConfig
from phase8.judge.gates import Verdict
from phase8.judge.policy import Check
from phase8.model.source import load_source
from phase8.run.retry import Sensitivity, adjust, recommend
from phase8.train.divergence import tensor_sensitivity
from phase8.world import items as world_items
from tests.tiny_model import tiny_model


@pytest.fixture(scope="module")
def suite():
    return load_suite(skip_expert_benchmarks=True)


def graded(suite, stands_for):
    task = next(task for task in suite.tasks if task.stands_for == stands_for)
    return list(suite.loaded[task.name].eval_docs)


def test_no_probe_is_a_graded_item(suite):
    found = probes.probes_of(suite)
    assert found.keys() == {"edge_of_chaos", *(f"rule/{rule}" for rule in RULES)}
    assert len(found["edge_of_chaos"]) == edge.PROBES
    asked = {item["prompt"] for name in (EDGE_OF_CHAOS, EUDAIMONIA) for item in graded(suite, name)}
    assert len(asked) == 440
    for test, chosen in found.items():
        prompts = {item["prompt"] for item in chosen}
        assert len(prompts) == len(chosen) >= probes.PROBES_PER_RULE, test
        assert not prompts & asked, test


def test_the_probes_of_the_rules_share_no_key_with_the_committed_pairs(suite):
    """A key is a situation with its people and its thing; a prompt may differ from another in less."""
    committed: set = set()
    shipped = world_items.conduct_items(world_items.SHIPPED_SEED, world_items.ITEMS_PER_RULE, committed)
    assert [item["prompt"] for item in shipped] == [item["prompt"] for item in graded(suite, EUDAIMONIA)]
    taken = set(committed)
    drawn = world_items.conduct_items(world_items.PROBE_SEED, probes.PROBES_PER_RULE, taken)
    assert len(committed) == len(shipped) and len(taken - committed) == len(drawn)
    assert drawn == world_items.conduct_probes(probes.PROBES_PER_RULE)


def test_the_probes_of_edge_of_chaos_have_its_mix_of_levels(suite):
    asked = Counter(item["level"] for item in graded(suite, EDGE_OF_CHAOS))
    probed = Counter(item["level"] for item in probes.probes_of(suite)["edge_of_chaos"])
    assert all(abs(probed[level] - edge.PROBES * count / 200) <= 0.5 for level, count in asked.items())


def test_the_probes_of_a_built_pool_are_of_the_third_that_calibrates(suite):
    candidates = edge.embedded_candidates()
    per_level = edge.PER_LEVEL  # the questions of a level stand together; the model is right in the first 3 of 4
    pool = edge.build_pool(
        candidates, lambda items: [float(n % per_level < 0.75 * per_level) for n in range(len(items))]
    )
    asked = {item["prompt"] for item in pool.items}
    calibrating = {item["prompt"] for item in candidates[::3]}  # a third of each level
    own = edge.with_pool(suite, pool.items, pool.probes)
    found = probes.probes_of(own)["edge_of_chaos"]
    assert abs(len(found) - edge.PROBES) <= 2
    prompts = {item["prompt"] for item in found}
    assert prompts <= calibrating and not prompts & asked
    assert suite_hash(own) == suite_hash(edge.with_pool(suite, pool.items)), "probes change no score"


def test_a_question_that_stands_in_every_third_of_a_users_file_is_no_probe():
    thrice = [
        {"prompt": f"Q{n // 3}", "choices": ["a", "b"], "answer": 0, "chance": 0.5, "level": 1} for n in range(240)
    ]
    pool = edge.build_pool(thrice, lambda items: [float(n % 8 < 6) for n in range(len(items))])
    assert len(pool.items) == 80 and pool.probes == ()


def test_with_a_users_pairs_the_rules_are_probed_on_the_embedded_ones(suite, tmp_path):
    embedded = probes.probes_of(suite)
    known = embedded["rule/harm"][0]
    pairs = [{"rule": rule, "context": f"Of {rule}:", "good": "Yes.", "bad": "No."} for rule in RULES]
    pairs.append({"rule": "harm", "context": known["prompt"], "good": "Yes.", "bad": "No."})
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    own = probes.probes_of(with_eudaimonia(suite, str(path)))
    assert own["rule/honesty"] == embedded["rule/honesty"]
    assert own["rule/harm"] == embedded["rule/harm"][1:], "what the user's file asks is graded"


def test_a_probe_is_asked_as_the_test_asks_it(suite):
    """The same choices come out likeliest as in the test's own scores."""
    from phase8.benchmarks.lm import Phase8LM

    source = load_source("embedded:reference")
    task = next(task for task in suite.tasks if task.stands_for == EUDAIMONIA)
    scores = evaluate(source.network, source.tokenizer, replace(suite, tasks=(task,), text=())).scores[task.name]
    asked = graded(suite, EUDAIMONIA)
    answers = probes.ask_choices(Phase8LM(source.network, source.tokenizer), {"all": asked})["all"]
    assert [float(logs.argmax() == item["answer"]) for logs, item in zip(answers, asked, strict=True)] == list(
        scores.items
    )


# A planted case: probes of two tests, each of which sees only one of two damaged tensors -----------------------------

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
A = [{"prompt": "aaaa", "choices": ["x", "y"]}, {"prompt": "aa", "choices": ["y", "x"]}]
B = [{"prompt": "bbb", "choices": ["u", "v"]}]


@pytest.fixture(scope="module")
def planted(tiny_tokenizer):
    """A model, and two of its tensors: the embedding without its row of `a`, the head without its rows of `u`, `v`."""
    model = tiny_model(tiny_tokenizer)
    weights = {name: dict(model.named_parameters())[name].detach().clone() for name in (EMBEDDING, HEAD)}
    with torch.no_grad():
        weights[EMBEDDING][tiny_tokenizer.convert_tokens_to_ids("a")] = 0.0
        for letter, scale in (("u", 0.5), ("v", -0.5)):
            weights[HEAD][tiny_tokenizer.convert_tokens_to_ids(letter)] *= scale
    return model, weights


def failing(*names):
    checks = tuple(Check(name=name, value=0.5, threshold=0.65, passed=False) for name in names)
    return Verdict(stage="vptq", passed=False, abort=None, checks=checks)


def test_each_test_protects_the_tensor_that_it_depends_on(planted, tiny_tokenizer):
    model, weights = planted
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = probes.choice_sensitivity(model, tiny_tokenizer, weights, {"edge_of_chaos": A, "rule/harm": B})
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert found["edge_of_chaos"][EMBEDDING] > 1000 * abs(found["edge_of_chaos"][HEAD])
    assert found["rule/harm"][HEAD] > 1000 * abs(found["rule/harm"][EMBEDDING])
    sensitivity = {test: Sensitivity(per_weight=per_weight) for test, per_weight in found.items()}
    config = CompressionConfig()
    for test, tensor in (("edge_of_chaos", EMBEDDING), ("rule/harm", HEAD)):
        advice = recommend("vptq", config, failing(test), sensitivity)
        assert adjust(config, advice).protect == (tensor,)
        assert f"probe answers depend most per weight, {tensor}, stays in 16 bits" in advice.reason
    # On text that holds both, one tensor is first, whichever test failed.
    on_text = tensor_sensitivity(model, weights, torch.tensor([tiny_tokenizer.encode("ab xy uv")]))
    assert all(value > 0 for value in on_text.values())


def test_the_sensitivity_is_the_divergence_over_the_choices(planted, tiny_tokenizer):
    model, weights = planted
    found = probes.choice_sensitivity(model, tiny_tokenizer, weights, {"edge_of_chaos": A})["edge_of_chaos"][EMBEDDING]

    @torch.no_grad()
    def distribution(item):
        logs = []
        for choice in item["choices"]:
            context = tiny_tokenizer.encode(item["prompt"])
            tokens = tiny_tokenizer.encode(f"{item['prompt']} {choice}")
            logits = torch.log_softmax(model(torch.tensor([tokens])).logits[0].double(), -1)
            logs.append(sum(logits[place - 1, tokens[place]] for place in range(len(context), len(tokens))))
        return torch.log_softmax(torch.stack(logs), 0)

    original = [distribution(item) for item in A]
    changed_model = tiny_model(tiny_tokenizer)
    changed_model.load_state_dict({**model.state_dict(), EMBEDDING: weights[EMBEDDING]})
    model = changed_model
    divergences = [float((p.exp() * (p - q)).sum()) for p, q in zip(original, map(distribution, A), strict=True)]
    expected = sum(divergences) / len(A) / weights[EMBEDDING].numel()
    assert expected > 0 and found == pytest.approx(expected, rel=1e-3)
