"""The numpy reader: no torch, the same weights bit for bit, the same logits within rounding, the same text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from phase8.artifact.write import load_artifact, write_artifact
from phase8.codecs import get_codec
from phase8.config import HyperConfig, SeedLMConfig, Trajectory, VPTQConfig
from phase8.errors import ArtifactError, Phase8Error
from phase8.limits import Limits
from phase8.model.source import load_source, unique_parameters
from phase8.runtime import Llama, LlamaShape, generate, load_model, load_tokenizer
from phase8.runtime.__main__ import main as command

ROOT = Path(__file__).parent.parent
CONFIGS = {
    "seedlm": SeedLMConfig(seed_bits=8),
    "vptq": VPTQConfig(codebook_size=16, vector_dim=4, num_codebooks=2),
    "hyper": HyperConfig(dims=6, grid=63),
    "series": HyperConfig(trajectory_type=Trajectory.fourier, block_size=16, degree=4),
}


def write(model_dir: Path, out: Path, stage: str) -> Path:
    source = load_source(str(model_dir))
    codec = get_codec("hyper" if stage == "series" else stage)
    groups = [codec.encode(source.matrices(), CONFIGS[stage], importance={}, seed=0)]
    groups.append(get_codec("plain").encode(source.vectors(), None, importance={}, seed=0))
    write_artifact(out, groups, source, stage=codec.name)
    return out


@pytest.fixture
def artifact(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return write(tiny_model_dir, tmp_path / "artifact", "vptq")


@pytest.mark.parametrize("stage", CONFIGS)
def test_weights_are_those_of_the_torch_loader(tiny_model_dir: Path, tmp_path: Path, stage: str) -> None:
    directory = write(tiny_model_dir, tmp_path / "artifact", stage)
    network, _ = load_artifact(directory)
    parameters = {name: p.detach().numpy() for name, (_, p) in unique_parameters(network).items()}
    weights = load_model(directory).weights
    assert weights.keys() == parameters.keys()
    for name, weight in weights.items():
        assert weight.dtype == np.float32 and weight.flags.c_contiguous
        assert weight.tobytes() == parameters[name].tobytes(), name


VARIANTS = {
    "tied": {"tie_word_embeddings": True},
    "shared key heads": {"num_key_value_heads": 2},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 24, "rms_norm_eps": 1e-5},
    "slow rotation": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
}


def pair(**settings) -> tuple[LlamaForCausalLM, Llama]:
    """The same random network twice: transformers' and ours."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=128, initializer_range=0.2, **settings,
    )  # fmt: skip
    network = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, (_, parameter) in unique_parameters(network).items():
            if "norm" in name or name.endswith("bias"):
                parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
    weights = {name: p.detach().numpy() for name, (_, p) in unique_parameters(network).items()}
    return network, Llama(LlamaShape.from_config(json.loads(json.dumps(config.to_diff_dict()))), weights)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(variant: str) -> None:
    network, ours = pair(**VARIANTS[variant])
    tokens = np.random.default_rng(1).integers(0, 61, 90)
    with torch.no_grad():
        theirs = network(torch.from_numpy(tokens)[None]).logits[0].numpy()
    mine = ours.logits(tokens, ours.cache(90))
    assert mine.dtype == np.float32 and mine.shape == theirs.shape
    assert np.abs(mine - theirs).max() < 2e-5 * np.abs(theirs).max()


def test_the_cache_changes_nothing() -> None:
    _, ours = pair(num_key_value_heads=2)
    tokens = np.random.default_rng(2).integers(0, 61, 40)
    whole = ours.logits(tokens, ours.cache(40))
    cache = ours.cache(40)
    steps = [ours.logits(part, cache) for part in (tokens[:17], tokens[17:18], tokens[18:30], tokens[30:])]
    assert cache.length == 40
    np.testing.assert_allclose(np.concatenate(steps), whole, atol=2e-5 * np.abs(whole).max())
    cache = ours.cache(17)
    last = ours.logits(tokens[:17], cache, last_only=True)
    np.testing.assert_allclose(last, steps[0][-1:], atol=2e-5 * np.abs(whole).max())


def test_greedy_text_is_that_of_transformers() -> None:
    network, ours = pair(eos_token_id=7)
    prompt = [3, 14, 15, 9]
    with torch.no_grad():
        out = network.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, 4), max_new_tokens=30, do_sample=False, pad_token_id=0
        )
    theirs = out[0, 4:].tolist()
    theirs = theirs[: theirs.index(7)] if 7 in theirs else theirs
    assert list(generate(ours, prompt, tokens=30)) == theirs
    assert len(set(theirs)) > 3, "a text that repeats one token proves little"


def test_temperature_draws_by_probability_and_by_seed() -> None:
    _, ours = pair(eos_token_id=60)
    draws = [list(generate(ours, [5], tokens=1, temperature=2.0, seed=s)) for s in range(4000)]
    counts = np.bincount([d[0] for d in draws if d], minlength=61) / 4000
    logits = ours.logits([5], ours.cache(1))[0].astype(np.float64) / 2.0
    expected = np.exp(logits - logits.max())
    expected /= expected.sum()
    expected[60] = 0  # the end of the text is not yielded
    assert np.abs(counts - expected).max() < 4 * np.sqrt(0.25 / 4000)
    texts = [list(generate(ours, [5], tokens=12, temperature=2.0, seed=s)) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_the_context_is_not_exceeded() -> None:
    _, ours = pair(eos_token_id=60)
    assert len(list(generate(ours, [1] * 120, tokens=50))) <= 8
    for prompt in ([], [1] * 128, [61], [-1]):
        with pytest.raises(Phase8Error):
            list(generate(ours, prompt))
    with pytest.raises(ValueError, match="exceed"):
        ours.logits([1, 2, 3], ours.cache(2))


def test_weights_that_overflow_are_an_error_not_a_text() -> None:
    _, ours = pair()
    ours.weights["model.norm.weight"] = np.full(32, 3e38, dtype=np.float32)
    with pytest.raises(Phase8Error, match="not a number"):
        list(generate(ours, [1]))


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gpt2"},
        {"hidden_size": 10**9},
        {"hidden_size": "16"},
        {"hidden_size": True},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 3},
        {"num_hidden_layers": -1},
        {"num_attention_heads": 3},
        {"hidden_act": "gelu"},
        {"vocab_size": 2**24},
        {"tie_word_embeddings": "yes"},
        {"rms_norm_eps": -1.0},
        {"rope_parameters": {"rope_type": "yarn"}},
        {"rope_parameters": {"rope_type": "linear"}},
        {"rope_parameters": 3},
    ],
)
def test_a_forged_config_is_refused(artifact: Path, change: dict[str, object]) -> None:
    path = artifact / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtifactError):
        load_model(artifact)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 100_000])
def test_a_config_that_is_no_json_is_refused(artifact: Path, text: str) -> None:
    (artifact / "config.json").write_text(text)
    with pytest.raises(ArtifactError):
        load_model(artifact)


@pytest.mark.parametrize("change", [{"num_hidden_layers": 10**9}, {"hidden_size": 2**20}, {"num_hidden_layers": 1}])
def test_the_torch_loader_refuses_it_too(artifact: Path, change: dict[str, object]) -> None:
    path = artifact / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtifactError):
        load_artifact(artifact)


def test_a_limit_on_the_parameters_holds(artifact: Path) -> None:
    with pytest.raises(ArtifactError, match="more than the 1,000 allowed"):
        load_model(artifact, limits=Limits(max_weights=1000))


def test_the_command_continues_a_text(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command([str(artifact), "--prompt", "The mill", "--tokens", "5", "--verbose"]) == 0
    spoken = capsys.readouterr()
    assert spoken.out.startswith("The mill") and "ms each" in spoken.err
    ids = load_tokenizer(artifact).encode("The mill").ids
    assert command([str(artifact), "--ids", ",".join(map(str, ids)), "--tokens", "5"]) == 0
    written = [int(token) for token in capsys.readouterr().out.split()]
    assert written == list(generate(load_model(artifact), ids, tokens=5))
    assert load_tokenizer(artifact).decode(ids + written).strip() == spoken.out.strip()


@pytest.mark.parametrize("arguments", [["--ids", "one"], ["--ids", "99999"], ["--ids", ""]])
def test_the_command_explains_what_is_wrong(
    artifact: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command([str(artifact), *arguments]) == 2
    assert "mend:" in capsys.readouterr().err
    assert command([str(artifact.parent / "nothing"), *arguments]) == 2


ISOLATED = """
import sys

class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {forbidden!r}:
            raise ImportError("forbidden here: " + name)

sys.meta_path.insert(0, Forbid())
from phase8.runtime import generate, load_model
model = load_model(sys.argv[1])
print(sum(float(abs(w).sum(dtype="float64")) for w in model.weights.values()))
print(*generate(model, [4, 5, 6], tokens=6))
"""
HEAVY = {
    "torch",
    "transformers",
    "safetensors",
    "pytorch_lightning",
    "lightning",
    "faiss",
    "omegaconf",
    "hydra",
    "wandb",
}


@pytest.mark.parametrize("without", [HEAVY, HEAVY | {"constriction", "tokenizers", "scipy", "datasets"}])
def test_it_runs_without_torch_and_even_with_numpy_alone(artifact: Path, without: set[str]) -> None:
    script = ISOLATED.replace("{forbidden!r}", repr(without))
    done = subprocess.run(
        [sys.executable, "-c", script, str(artifact)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    total, tokens = done.stdout.splitlines()
    model = load_model(artifact)
    assert float(total) == sum(float(abs(w).sum(dtype="float64")) for w in model.weights.values())
    assert [int(token) for token in tokens.split()] == list(generate(model, [4, 5, 6], tokens=6))
