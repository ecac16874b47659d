"""Causal language models of transformers, built small, all the way through.

    python -m pytest -m slow tests/test_architectures.py                       # those of `CHECKED`
    PHASE8_KINDS=all python -m pytest -m slow tests/test_architectures.py      # every kind that transformers has

Of each: saved and loaded, read from disk to disk, a whole run, the artifact opened again, its log-likelihoods item by
item against lm-eval's own `HFLM` with one text at a time, its texts against those written without a cache. What cannot
be built small or is refused is listed with the reason, and has to stay so: a new transformers shows either way.
"""

from __future__ import annotations

import os

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from phase8.api import run_configured
from phase8.artifact.write import load_artifact
from phase8.benchmarks.lm import Phase8LM
from phase8.config import CompressionConfig
from phase8.errors import ModelError
from phase8.model.source import load_source
from phase8.run.streaming import open_checkpoint
from tests.tiny_model import TEXT, tiny_tokenizer

SMALL = {
    "vocab_size": 380, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 160, "head_dim": 8, "n_embd": 32, "n_layer": 2, "n_head": 4,
    "n_positions": 160, "n_inner": 48, "d_model": 32, "n_layers": 2, "n_heads": 4, "num_layers": 2, "num_heads": 4,
    "ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_layers": 2, "decoder_attention_heads": 4, "encoder_layers": 2,
    "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "num_local_experts": 4, "num_experts": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "moe_num_experts": 4,
    "shared_expert_intermediate_size": 24, "state_size": 8, "conv_kernel": 4, "time_step_rank": 4,
    "word_embed_proj_dim": 32, "embedding_size": 32, "max_seq_len": 160, "d_ff": 48, "sliding_window": 24,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "is_decoder": True,
}  # fmt: skip
MORE = {
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "expand": 2},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 2, "mamba_n_groups": 1, "mamba_d_state": 8},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 2, "mamba_n_groups": 1},
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 24},
    "zaya": {"num_experts_per_tok": 1},
}
"""Settings that a kind needs beside, to fit together."""
MOST_WEIGHTS = 5_000_000
TOO_LARGE_OR_AT_ODDS = "cannot be built small with these settings"
CHECKED = ("bloom", "gemma2", "gpt2", "gpt_oss", "llama", "mamba", "mistral", "mixtral", "opt", "qwen3")
"""Kinds that were seen to pass. The others have not been tried all the way through yet: a kind joins once it was."""
KINDS = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) if os.environ.get("PHASE8_KINDS") == "all" else CHECKED
REFUSED: dict[str, str] = {}
"""Kinds that are refused, and what the error says."""
LINES = [
    ("The miller", " keeps"),
    ("The miller", " eats grain"),
    ("What turns the wheel?", " the river"),
    (" ".join(TEXT.split())[:110], " the sea"),
    (" ".join(TEXT.split())[:110], " two plus three is five"),
]


def build(kind: str):
    """The kind in miniature and "", or None and why it cannot be built so: the settings do not fit together."""
    try:
        default = CONFIG_MAPPING[kind]()
        fixed = {name for name, found in vars(type(default)).items() if isinstance(found, property) and not found.fset}
        settings = {name: value for name, value in SMALL.items() if hasattr(default, name) and name not in fixed}
        settings |= MORE.get(kind, {})
        config = CONFIG_MAPPING[kind](**settings)
        with torch.device("meta"):
            outline = AutoModelForCausalLM.from_config(config)
        weights = sum(parameter.numel() for parameter in outline.parameters())
        if weights > MOST_WEIGHTS:
            return None, f"{weights:,} weights"
        torch.manual_seed(7)
        network = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for parameter in network.parameters():  # else all answers would be nearly alike
            if parameter.dim() >= 2:
                torch.nn.init.normal_(parameter, std=0.2)
        with torch.no_grad():
            found = network(input_ids=torch.arange(3, 20)[None]).logits
        return (network, "") if bool(torch.isfinite(found).all()) else (None, "answers that are no numbers")
    except Exception as error:  # of a hundred kinds each has errors of its own; the reason is shown
        return None, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]


def settings_of(directory) -> CompressionConfig:
    return CompressionConfig.from_dict(
        {
            "benchmark_samples": 4,
            "skip_expert_benchmarks": True,
            "max_retries": 0,
            "seedlm": {"enabled": False},
            "hyper": {"enabled": False},
            "vptq": {"codebook_size": 16, "vector_dim": 4},
            "grokfast": {"iterations": 0},
            "optimizer": {"calibration_sequences": 8, "held_out_sequences": 2, "sequence_tokens": 64},
            "benchmarks": {"edge_pool": "shipped"},
            "logger": {"mode": "disabled"},
            "paths": {"output_dir": str(directory / "run"), "cache_dir": str(directory / "cache")},
        }
    )


def asked(kind, arguments):
    return [Instance(kind, {}, argument, number) for number, argument in enumerate(arguments)]


@torch.no_grad()
def written_without_cache(network, tokenizer, prompt, count, ends):
    ids = tokenizer(prompt)["input_ids"]
    end, start = len(ids) + count, len(ids)
    while len(ids) < end:
        network(input_ids=torch.zeros(1, 1, dtype=torch.long))  # what lengthens with the text is back at its start
        token = int(network(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token in ends:
            break
        ids.append(token)
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_all_the_way_through(kind, tmp_path):
    network, why = build(kind)
    if network is None:
        pytest.skip(f"{kind}: {TOO_LARGE_OR_AT_ODDS}: {why}")
    tokenizer = tiny_tokenizer()
    model_dir = tmp_path / "model"
    network.save_pretrained(model_dir)
    tokenizer.save_pretrained(model_dir)
    if kind in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[kind]):
            run_configured(settings_of(tmp_path), load_source(str(model_dir)), console=False)
        return
    source = load_source(str(model_dir))
    checkpoint = open_checkpoint(model_dir)
    for name, (_, parameter) in source.parameters.items():
        torch.testing.assert_close(checkpoint.read(name), parameter.detach(), rtol=0, atol=0, msg=name)
    result = run_configured(settings_of(tmp_path), source, console=False)
    assert result["stages"]["vptq"]["attempts"][0]["benchmarks"]
    opened, again = load_artifact(tmp_path / "run" / "artifacts" / "vptq")
    reference = HFLM(pretrained=opened, tokenizer=again, backend="causal", batch_size=1, max_length=150, device="cpu")
    theirs = reference.loglikelihood(asked("loglikelihood", LINES), disable_tqdm=True)
    lm = Phase8LM(opened, again, max_length=150)
    ours = lm.loglikelihood(asked("loglikelihood", LINES))
    assert [score for score, _ in ours] == pytest.approx([score for score, _ in theirs], abs=2e-3)
    prompts = ["The miller", LINES[3][0]]
    wanted = [written_without_cache(opened, again, prompt, 8, lm.generator.ends) for prompt in prompts]
    greedy = {"until": [], "max_gen_toks": 8, "do_sample": False}
    assert lm.generate_until(asked("generate_until", [(prompt, greedy) for prompt in prompts])) == wanted
