"""Causal language models of transformers, built small, all the way through: which pass, which are refused and why.

    python -m experiments.architectures --minutes 20      # -> experiments/results/architectures.{json,md}

Of each: saved and loaded, read from disk to disk, a whole run, the artifact opened again, its log-likelihoods item by
item against lm-eval's own `HFLM` with one text at a time, its texts against those written without a cache.

Each kind has a process of its own, forked so that it costs no imports, and a time limit. What was found is kept after
every kind: the same command goes on with those that were not tried. `tests/test_architectures.py` repeats it for the
kinds that were seen to pass.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a forked child has no other threads

import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from phase8.artifact.write import load_artifact
from phase8.benchmarks.generation import changes_distribution
from phase8.benchmarks.lm import Phase8LM
from phase8.config import CompressionConfig
from phase8.errors import Phase8Error, said
from phase8.files import write_atomic
from phase8.model.forward import logits_of
from phase8.model.source import load_source
from phase8.printable import line
from phase8.run.streaming import open_checkpoint
from tests.tiny_model import TEXT, tiny_tokenizer

RESULTS = Path(__file__).parent / "results" / "architectures.json"
SMALL = {
    "vocab_size": 380, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 160, "head_dim": 8, "n_embd": 32, "n_layer": 2, "n_head": 4,
    "n_positions": 160, "n_inner": 48, "d_model": 32, "n_layers": 2, "n_heads": 4, "num_layers": 2, "num_heads": 4,
    "ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_layers": 2, "decoder_attention_heads": 4, "encoder_layers": 2,
    "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "num_local_experts": 4, "num_experts": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "moe_num_experts": 4,
    "shared_expert_intermediate_size": 24, "state_size": 8, "conv_kernel": 4, "time_step_rank": 4,
    "word_embed_proj_dim": 32, "embedding_size": 32, "max_seq_len": 160, "d_ff": 48, "sliding_window": 24,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "kv_lora_rank": 16, "q_lora_rank": 16,
    "vocab_size_per_layer_input": 380, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0, "laurel_rank": 8,
    "dff": 48, "dim_ff": 48, "dim_head": 8, "linear_head_dim": 8, "linear_num_heads": 4, "mamba_num_heads": 8,
    "mamba_head_dim": 8, "ssm_state_size": 8, "moe_shared_expert_intermediate_size": 24, "o_groups": 2,
    "o_lora_rank": 16, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "is_decoder": True, "causal": True,
}  # fmt: skip
INDEXER = {
    "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 32,
    "indexer_compress_ratio": 4,
}  # fmt: skip
DOTS3 = {
    "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8, "v_head_dim": 8, "head_dim": 16, "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4, "swa_q_lora_rank": 16, "swa_kv_lora_rank": 16, "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 8, "swa_v_head_dim": 8, "index_head_dim": 8, "index_n_heads": 4,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SHARED = ["linear_attention", "hybrid", "linear_attention", "hybrid"]
MORE = {
    "axk1": {"n_group": 1, "topk_group": 1},
    "blt": {  # with a cache transformers cannot run it: BltConfig has no num_hidden_layers
        "encoder_hash_byte_group_vocab": 64, "encoder_config": {"hidden_size_global": 32},
        "decoder_config": {"hidden_size_global": 32}, "use_cache": False,
    },
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v4": {"index_head_dim": 8, "index_n_heads": 4},
    "dots3_note": {
        "text_config": DOTS3,
        "vision_config": {"pyramid_num_routed": [-1, 4], "adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    },
    "dots3_note_text": DOTS3,
    "dots1": {"n_shared_experts": 1},
    "qwen4_exp": {"text_config": INDEXER},
    "qwen4_exp_text": INDEXER,
    "xlstm": {"hidden_size": 128, "chunk_size": 32, "ffn_round_up_to_multiple_of": 16},
    "zamba": {"num_hidden_layers": 4, "layer_types": SHARED, "mamba_dt_rank": 4},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": SHARED, "layer_types": None, "chunk_size": 32},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "expand": 2},
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {
        "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 2, "mamba_n_groups": 1, "mamba_d_state": 8,
        "attn_layer_indices": [1],
    },
    "granitemoehybrid": {
        "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 2, "mamba_n_groups": 1,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "falcon_h1": {
        "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64, "mamba_d_state": 8, "mamba_chunk_size": 32,
    },
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 24},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "full_attention"], "layer_types": None, "n_groups": 1,
        "chunk_size": 32,
    },
    "prophetnet": {"num_encoder_layers": 2, "num_decoder_layers": 2, "num_hidden_layers": None},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {
        "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [16, 16], "attn_layers": ["local", "lsh"], "hash_seed": 1,
    },
    "roc_bert": {
        "pronunciation_vocab_size": 10, "shape_vocab_size": 10, "pronunciation_embed_dim": 8, "shape_embed_dim": 8,
    },
    "xlnet": {"max_position_embeddings": None},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""Settings that a kind needs beside, to fit together; None: the small model's value is left out."""
MOST_WEIGHTS = 8_000_000
KINDS = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
LINES = [
    ("The miller", " keeps"),
    ("The miller", " eats grain"),
    ("What turns the wheel?", " the river"),
    (" ".join(TEXT.split())[:110], " the sea"),
    (" ".join(TEXT.split())[:110], " two plus three is five"),
]


def small(default: Any) -> dict[str, Any]:
    """Settings of a small model, those that a configuration has; its parts (a text model, an image model) too."""
    fixed = {name for name, found in vars(type(default)).items() if isinstance(found, property) and not found.fset}
    settings = {name: value for name, value in SMALL.items() if name not in fixed and value_of(default, name)[0]}
    if "kv_lora_rank" in settings:  # latent attention has no groups of heads
        settings |= {"num_key_value_heads": SMALL["num_attention_heads"]}
    kinds = list(dict.fromkeys(value_of(default, "layer_types")[1] or ()))
    if (
        len(kinds) > 1 and not {"layer_types", default.attribute_map.get("layer_types")} & fixed
    ):  # two layers, of two kinds
        settings |= {"layer_types": [kinds[0], kinds[-1]]}
    parts = {name: value_of(default, name)[1] for name in value_of(default, "sub_configs")[1] or {}}
    return settings | {name: small(part) for name, part in parts.items() if part is not None}


def merged(settings: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Settings with others beside or instead; those of a part too."""
    parts = {
        name: merged(settings[name], value)
        for name, value in more.items()
        if isinstance(value, dict) and isinstance(settings.get(name), dict)
    }
    return settings | more | parts


def value_of(config: Any, name: str) -> tuple[bool, Any]:
    """Whether a configuration has a setting, and its value; one that differs from layer to layer cannot be read."""
    try:
        return True, getattr(config, name)
    except (AttributeError, RuntimeError):  # transformers raises the second for what differs from layer to layer
        return False, None


def build(kind: str):
    """The kind in miniature and "", or None and why it cannot be built so: the settings do not fit together."""
    try:
        settings = merged(small(CONFIG_MAPPING[kind]()), MORE.get(kind, {}))
        config = CONFIG_MAPPING[kind](**{name: value for name, value in settings.items() if value is not None})
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
            found = logits_of(network, torch.arange(3, 20)[None])
        return (network, "") if bool(torch.isfinite(found).all()) else (None, "answers that are no numbers")
    except Exception as error:  # of a hundred kinds each has errors of its own; the reason is shown
        return None, said(error)


def settings_of(directory: Path) -> CompressionConfig:
    """A run of seconds: VPTQ alone, untrained, four questions of each benchmark."""
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


def asked(kind: str, arguments: list[Any]) -> list[Any]:
    """Requests as lm-eval makes them."""
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, argument, number) for number, argument in enumerate(arguments)]


@torch.no_grad()
def written_without_cache(network: Any, tokenizer: Any, prompt: str, count: int, ends: Any) -> str:
    """At most so many tokens after a prompt, greedily; the whole text is read anew for each."""
    ids = tokenizer(prompt)["input_ids"]
    if changes_distribution(network.generation_config):  # Bart's forced end: transformers' own loop knows what it means
        settings = {"do_sample": False, "use_cache": False, "max_new_tokens": count, "eos_token_id": sorted(ends)}
        found = network.generate(torch.tensor([ids]), pad_token_id=tokenizer.pad_token_id, **settings)
        return tokenizer.decode(found[0, len(ids) :], skip_special_tokens=True)
    end, start = len(ids) + count, len(ids)
    while len(ids) < end:
        logits_of(network, torch.zeros(1, 1, dtype=torch.long))  # what lengthens with the text is back at its start
        token = int(logits_of(network, torch.tensor([ids]))[0, -1].argmax())
        if token in ends:
            break
        ids.append(token)
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


def through(kind: str, network: Any, directory: Path) -> Iterator[str]:
    """Takes a network all the way; yields the name of every step before it is taken.

    Raises:
        Phase8Error: the model is refused.
        AssertionError: two ways do not agree.
    """
    from lm_eval.models.huggingface import HFLM

    from phase8.api import run_configured

    yield "saved"
    tokenizer, model_dir = tiny_tokenizer(), directory / "model"
    network.save_pretrained(model_dir)
    tokenizer.save_pretrained(model_dir)
    yield "loaded"
    source = load_source(str(model_dir))
    yield "read from disk to disk"
    checkpoint = open_checkpoint(model_dir)
    for name, (_, parameter) in source.parameters.items():
        assert torch.equal(checkpoint.read(name), parameter.detach()), f"{name} differs"
    yield "run"
    result = run_configured(settings_of(directory), source, console=False)
    assert result["stages"]["vptq"]["attempts"][0]["benchmarks"], "no benchmark was measured"
    yield "opened again"
    opened, again = load_artifact(directory / "run" / "artifacts" / "vptq")
    yield "scored as lm-eval does"
    reference = HFLM(pretrained=opened, tokenizer=again, backend="causal", batch_size=1, max_length=150, device="cpu")
    theirs = reference.loglikelihood(asked("loglikelihood", LINES), disable_tqdm=True)
    lm = Phase8LM(opened, again, max_length=150)
    ours = lm.loglikelihood(asked("loglikelihood", LINES))
    off = max(abs(a - b) for (a, _), (b, _) in zip(ours, theirs, strict=True))
    assert off <= 2e-3, f"log-likelihoods are up to {off:.4f} nats off"
    yield "written as without a cache"
    prompts = ["The miller", LINES[3][0]]
    wanted = [written_without_cache(opened, again, prompt, 8, lm.generator.ends) for prompt in prompts]
    greedy = {"until": [], "max_gen_toks": 8, "do_sample": False}
    written = lm.generate_until(asked("generate_until", [(prompt, greedy) for prompt in prompts]))
    assert written == wanted, "other texts"


def found_of(kind: str, directory: Path) -> dict[str, Any]:
    """What came of a kind: `{outcome, step, why}`; outcome is `passes`, `refused`, `fails` or `not built`."""
    network, why = build(kind)
    if network is None:
        return {"outcome": "not built", "step": "built", "why": why}
    step = ""
    try:
        for step in through(kind, network, directory):
            (directory / "step").write_text(step)
    except Phase8Error as error:
        return {"outcome": "refused", "step": step, "why": error.what}
    except Exception as error:  # whatever is wrong with a kind, the others are tried
        return {"outcome": "fails", "step": step, "why": said(error)}
    return {"outcome": "passes", "step": step, "why": ""}


def children_s() -> float:
    """Processor time of all children that have ended, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def in_child(kind: str, limit_s: int) -> dict[str, Any]:
    """`found_of` in a forked process that has so many seconds of a processor, and ten times as many by the clock."""
    directory, begin = Path(tempfile.mkdtemp(prefix="phase8-kind-")), time.monotonic()
    before = children_s()
    answer = directory / "answer.json"
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s))
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            write_atomic(answer, json.dumps(found_of(kind, directory)))
        finally:
            os._exit(0)
    ended = False
    while not ended and time.monotonic() - begin < 10 * limit_s:
        time.sleep(0.05)
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    if not ended:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    ended = ended and status != -signal.SIGKILL  # the kernel's answer to too much processor time
    seconds = round(children_s() - before, 1)
    step = (directory / "step").read_text() if (directory / "step").exists() else "built"
    if answer.exists():
        found = json.loads(answer.read_text())
    elif not ended:
        found = {"outcome": "too slow", "step": step, "why": f"not through in {limit_s} s of a processor"}
    else:
        found = {"outcome": "fails", "step": step, "why": f"the process ended with {status}"}
    shutil.rmtree(directory, ignore_errors=True)
    return {**found, "seconds": seconds}


TITLES = {
    "passes": "Pass whole",
    "refused": "Refused",
    "fails": "Fail",
    "too slow": "Not through in time",
    "not built": "Cannot be built small with the settings tried",
}


def as_markdown(found: dict[str, dict[str, Any]]) -> str:
    """The results as a page."""
    untested = [kind for kind in KINDS if kind not in found]
    counts = {name: [kind for kind in found if found[kind]["outcome"] == name] for name in TITLES}
    lines = [
        "# Architectures",
        "",
        "`python -m experiments.architectures`",
        "",
        f"Of the {len(KINDS)} causal language models of transformers {transformers.__version__}, {len(found)} were "
        "built small with random weights, where that could be done, and taken all the way: saved, loaded, read from "
        "disk to disk, a whole run with VPTQ, the artifact opened again, log-likelihoods equal to lm-eval's own item "
        "by item (2e-3 nats), texts equal to those written without a cache. "
        f"{len(counts['passes'])} pass; the others stand at the end.",
        "",
    ]
    for outcome, title in TITLES.items():
        kinds = counts[outcome]
        if not kinds:
            continue
        lines += [f"## {title}: {len(kinds)}", ""]
        if outcome == "passes":
            lines += [", ".join(f"`{kind}`" for kind in kinds) + ".", ""]
            continue
        lines += ["| kind | at the step | why |", "| --- | --- | --- |"]
        for kind in kinds:
            why = line(found[kind]["why"]).replace("|", "\\|")
            lines.append(f"| `{kind}` | {found[kind]['step']} | {why} |")
        lines.append("")
    if untested:
        lines += [f"## Not tried: {len(untested)}", "", ", ".join(f"`{kind}`" for kind in untested) + ".", ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Tries the kinds and writes what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help="tried anew; without any, those that were not tried yet")
    parser.add_argument("--minutes", type=float, default=20.0, help="of a processor, then none is begun (default 20)")
    parser.add_argument("--seconds", type=int, default=60, help="of a processor for each kind (default 60)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    import lm_eval.evaluator  # noqa: F401  once, for all children
    import lm_eval.models.huggingface  # noqa: F401
    import matplotlib.backends.backend_svg  # noqa: F401
    import pytorch_lightning  # noqa: F401

    import phase8.run.pipeline
    import phase8.watch.report  # noqa: F401
    from phase8.benchmarks.suite import load_suite

    load_suite((), samples=4, skip_expert_benchmarks=True)  # what it reads and imports, no fork has to
    for kind in options.kinds or [kind for kind in KINDS if kind not in found]:
        if children_s() > 60 * options.minutes:
            break
        found[kind] = in_child(kind, options.seconds)
        print(f"{kind}: {found[kind]}", flush=True)
        write_atomic(RESULTS, json.dumps(dict(sorted(found.items())), indent=1) + "\n")
    found = dict(sorted(found.items()))
    write_atomic(RESULTS.with_suffix(".md"), as_markdown(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
