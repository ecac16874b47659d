"""Causal language models of transformers, built small, all the way through: `experiments.architectures` does it.

    python -m pytest -m slow tests/test_architectures.py                       # those of `CHECKED`
    PHASE8_KINDS=all python -m pytest -m slow tests/test_architectures.py      # every kind that transformers has

What cannot be built small or is refused is listed with the reason in `experiments/results/architectures.md`.
"""

from __future__ import annotations

import json
import os

import pytest
import transformers

from experiments import architectures
from experiments.architectures import KINDS, RESULTS, as_markdown, build, through

CHECKED = (
    "afmoe", "apertus", "arcee", "aria_text", "beam", "bert", "bert-generation", "big_bird", "bigbird_pegasus",
    "biogpt", "bitnet", "bloom", "codegen", "cohere", "cohere2", "cohere2_moe", "cwm", "diffllama", "doge",
    "electra", "ernie", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe", "falcon", "gemma2", "gpt2", "gpt_oss",
    "llama", "mamba", "minimax", "mistral", "mixtral", "opt", "qwen3",
)  # fmt: skip
"""Kinds that were seen to pass, in seconds each."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS if os.environ.get("PHASE8_KINDS") == "all" else CHECKED)
def test_all_the_way_through(kind, tmp_path):
    network, why = build(kind)
    if network is None:
        pytest.skip(f"{kind} cannot be built small with these settings: {why}")
    steps = list(through(kind, network, tmp_path))
    assert steps[-1] == "written as without a cache"


def test_the_page_is_of_the_results_and_names_every_kind():
    """A kind that was not tried is said not to be; every kind of `CHECKED` was seen to pass."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    page = RESULTS.with_suffix(".md").read_text(encoding="utf-8")
    if f"transformers {transformers.__version__}," not in page:
        pytest.skip("the page is of another transformers")
    assert page == as_markdown(found)
    assert [kind for kind in KINDS if f"`{kind}`" not in page] == []
    assert [kind for kind in CHECKED if found[kind]["outcome"] != "passes"] == []


def test_a_kind_that_fails_is_told_with_its_step_and_ends_nothing(tmp_path, monkeypatch):
    def broken(kind, network, directory):
        yield "saved"
        yield "run"
        raise ValueError("no such | luck")

    monkeypatch.setattr(architectures, "build", lambda kind: (object(), ""))
    monkeypatch.setattr(architectures, "through", broken)
    found = architectures.in_child("llama", 60)
    assert (found["outcome"], found["step"], found["why"]) == ("fails", "run", "ValueError: no such | luck")
    page = as_markdown({"llama": found})
    assert "| `llama` | run | ValueError: no such \\| luck |" in page and "## Not tried:" in page
