"""Exports: each file is opened by its own program, and weights and outputs are compared.

The programs: transformers in a process without this package (safetensors), the `gguf` reader, transformers' own GGUF
reader and llama.cpp (GGUF), onnxruntime (ONNX). llama.cpp is no requirement; its tests are skipped where
`llama-cpp-python` is not installed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from phase8.artifact.write import load_artifact, write_artifact
from phase8.codecs import get_codec
from phase8.config import VPTQConfig
from phase8.errors import ArtifactError, ModelError, OutputError
from phase8.export import export
from phase8.model.source import ExpertFile, source_from_network
from tests.tiny_model import TEXT, tiny_model, tiny_tokenizer

IDS = [0, 5, 371, 40, 41, 42, 300, 7, 7, 7, 19]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 12},
    "llama3": {"rope_parameters": LLAMA3},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
}


def compressed(directory: Path, network, tokenizer) -> Path:
    with torch.no_grad():  # zeros and ones would hide a bias or a norm in the wrong place
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    source = source_from_network(network, tokenizer, ExpertFile(), "tiny")
    groups = [
        get_codec("vptq").encode(source.matrices(), VPTQConfig(codebook_size=16, vector_dim=4), importance={}, seed=0),
        get_codec("plain").encode(source.vectors(), None, importance={}, seed=0),
    ]
    write_artifact(directory, groups, source, stage="vptq")
    return directory


@pytest.fixture(scope="module", params=VARIANTS)
def llama(request, tmp_path_factory):
    """A tiny Llama's artifact, and the network that it holds."""
    tokenizer = tiny_tokenizer()
    directory = tmp_path_factory.mktemp("export") / "artifact"
    compressed(directory, tiny_model(tokenizer, **VARIANTS[request.param]), tokenizer)
    return directory, load_artifact(directory)[0]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    tokenizer = tiny_tokenizer()
    return compressed(tmp_path_factory.mktemp("export") / "artifact", tiny_model(tokenizer), tokenizer)


def logits(network) -> np.ndarray:
    with torch.no_grad():
        return network(torch.tensor([IDS])).logits[0].numpy()


def same_weights(first, second) -> None:
    for (name, a), (other, b) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b), name


def test_safetensors_opens_without_this_package(artifact, tmp_path):
    assert export(artifact, tmp_path / "out", "safetensors") == []
    script = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "network = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype='float32').eval()\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'phase8']\n"
        "ids = AutoTokenizer.from_pretrained(sys.argv[1])('the grey geese')['input_ids']\n"
        "torch.save([network.state_dict(), ids], sys.argv[2])\n"
    )
    subprocess.run(
        [sys.executable, "-I", "-c", script, str(tmp_path / "out"), str(tmp_path / "seen.pt")], check=True, timeout=600
    )
    state, ids = torch.load(tmp_path / "seen.pt", weights_only=True)
    network, tokenizer = load_artifact(artifact)
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
    assert ids == tokenizer("the grey geese")["input_ids"]
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_a_rounding(artifact, tmp_path, dtype):
    export(artifact, tmp_path / "out", "safetensors", dtype=dtype)
    network = load_artifact(artifact)[0].to(getattr(torch, dtype))
    same_weights(network, AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=getattr(torch, dtype)))


@pytest.fixture(scope="module")
def exported(llama, tmp_path_factory):
    pytest.importorskip("gguf", reason="the gguf library is not installed: pip install -e '.[export]'")
    out = tmp_path_factory.mktemp("gguf") / "out"
    assert export(llama[0], out, "gguf") == []
    return out


def test_gguf_every_weight_by_hand(llama, exported):
    """The rows of queries and keys are turned back plane by plane, as the format's rule says."""
    from gguf import GGUFReader

    stored = {tensor.name: tensor for tensor in GGUFReader(exported / "model.gguf").tensors}
    factors = stored.pop("rope_freqs.weight", None)
    network = llama[1]
    config = network.config
    assert (factors is not None) == (config.rope_parameters["rope_type"] == "llama3")
    tops = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = dict(
        q_proj="attn_q", k_proj="attn_k", v_proj="attn_v", o_proj="attn_output", gate_proj="ffn_gate",
        up_proj="ffn_up", down_proj="ffn_down", input_layernorm="attn_norm", post_attention_layernorm="ffn_norm",
    )  # fmt: skip
    count = 0
    for name, parameter in network.named_parameters():
        stem, leaf = name.rsplit(".", 1)
        pieces = stem.split(".")
        place = tops.get(stem) or f"blk.{pieces[2]}.{parts[pieces[-1]]}"
        values = stored[f"{place}.{leaf}"].data.reshape(parameter.shape).copy()
        if pieces[-1] in ("q_proj", "k_proj"):
            back = np.empty_like(values)
            half = network.model.layers[0].self_attn.head_dim // 2
            for row in range(len(values)):
                head, inside = divmod(row, 2 * half)
                plane, second = divmod(inside, 2)
                back[head * 2 * half + second * half + plane] = values[row]
            values = back
        np.testing.assert_array_equal(values, parameter.detach().numpy(), err_msg=name)
        count += 1
    assert count == len(stored)
    assert ("output.weight" in stored) != config.tie_word_embeddings


@pytest.mark.parametrize("llama", ["untied", "tied", "wide heads"], indirect=True)
def test_gguf_transformers_reads_the_same_weights(llama, exported):
    network = AutoModelForCausalLM.from_pretrained(exported, gguf_file="model.gguf", dtype=torch.float32).eval()
    same_weights(llama[1], network)
    np.testing.assert_array_equal(logits(network), logits(llama[1]))


def test_gguf_llama_cpp_gives_the_same_logits(llama, exported):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model = llama_cpp.Llama(
        str(exported / "model.gguf"), n_ctx=96, n_threads=1, logits_all=True, verbose=False, flash_attn=False,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
    )  # fmt: skip
    try:
        model.eval(IDS)
        found = np.array(model.scores[: len(IDS)])
        tokenizer = tiny_tokenizer()
        for line in ("the river turns", "In 1984,  12 + 30 = 42!", "def add(a):\n    return a\n"):
            assert model.tokenize(line.encode(), add_bos=True, special=False) == tokenizer(line)["input_ids"]
    finally:
        model.close()
    expected = logits(llama[1])
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_gguf_half_precision(artifact, tmp_path):
    gguf = pytest.importorskip("gguf", reason="the gguf library is not installed: pip install -e '.[export]'")
    export(artifact, tmp_path / "out", "gguf", dtype="float16")
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    network = load_artifact(artifact)[0]
    values = stored["token_embd.weight"].data
    assert values.dtype == np.float16
    np.testing.assert_array_equal(values, network.model.embed_tokens.weight.detach().numpy().astype(np.float16))
    np.testing.assert_array_equal(stored["output_norm.weight"].data, network.model.norm.weight.detach().numpy())


@pytest.mark.parametrize(
    ("cut", "name", "exact"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), "gpt-2", True),
        (
            pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            ),
            "smollm",
            True,
        ),
        (
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(r"\n| ?[a-z]+| +"), "isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            ),
            None,
            False,
        ),
    ],
)
def test_gguf_names_the_cut_or_says_that_it_cannot(tmp_path, cut, name, exact):
    pytest.importorskip("gguf", reason="the gguf library is not installed: pip install -e '.[export]'")
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = cut
    compressed(tmp_path / "artifact", tiny_model(tokenizer), tokenizer)
    notes = export(tmp_path / "artifact", tmp_path / "out", "gguf")
    assert (notes == []) == exact
    if exact:
        mine, lines = AutoTokenizer.from_pretrained(tmp_path / "artifact"), ["12 geese", "a  b\n\n  c", "don't 1984"]
        from gguf import GGUFReader

        assert GGUFReader(tmp_path / "out" / "model.gguf").fields["tokenizer.ggml.pre"].contents() == name
        if name == "gpt-2":
            theirs = AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
            assert [theirs(line)["input_ids"] for line in lines] == [mine(line)["input_ids"] for line in lines]
    else:
        assert "sample lines" in notes[0]


def sentence_piece_tokenizer():
    """As of the Llama 2 kind: `\u2581` for spaces, bytes for what is no token."""
    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=special[:3], initial_alphabet=[])
    raw.train_from_iterator([TEXT] * 5, trainer)
    content = json.loads(raw.to_str())
    learned = [token for token in content["model"]["vocab"] if token not in special]
    content["model"]["vocab"] = {token: number for number, token in enumerate([*special, *learned])}
    raw = Tokenizer.from_str(json.dumps(content))
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def test_gguf_of_a_sentence_piece_tokenizer(tmp_path):
    gguf = pytest.importorskip("gguf", reason="the gguf library is not installed: pip install -e '.[export]'")
    from phase8.export.gguf_tokenizer import join_by_scores

    tokenizer = sentence_piece_tokenizer()
    compressed(tmp_path / "artifact", tiny_model(tokenizer), tokenizer)
    assert export(tmp_path / "artifact", tmp_path / "out", "gguf") == []
    fields = gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "llama"
    assert fields["tokenizer.ggml.add_space_prefix"].contents() and fields["tokenizer.ggml.add_bos_token"].contents()
    tokens, scores = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "scores"))
    types = fields["tokenizer.ggml.token_type"].contents()
    assert [types[n] for n in (0, 1, 2, 3, 258, 259)] == [2, 3, 3, 6, 6, 1]
    numbers = {token: number for number, token in enumerate(tokens)}
    for line in ("The old miller keeps geese.", "Nobody has  seen", "a"):
        found = [numbers[piece] for piece in join_by_scores(" " + line, numbers, scores) if piece in numbers]
        assert found == tokenizer(line)["input_ids"][1:] and len(found) < len(line) + 2


def test_llama_cpp_cuts_text_as_a_sentence_piece_tokenizer(tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    tokenizer = sentence_piece_tokenizer()
    compressed(tmp_path / "artifact", tiny_model(tokenizer), tokenizer)
    export(tmp_path / "artifact", tmp_path / "out", "gguf")
    model = llama_cpp.Llama(str(tmp_path / "out" / "model.gguf"), n_ctx=96, n_threads=1, verbose=False)
    for line in ("The old miller keeps geese.", "Nobody has  seen", "né 12"):
        assert model.tokenize(line.encode()) == tokenizer(line)["input_ids"]
    model.close()


def test_gguf_has_the_chat_template_and_every_end_token(tmp_path):
    gguf = pytest.importorskip("gguf", reason="the gguf library is not installed: pip install -e '.[export]'")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    network = tiny_model(tokenizer)
    network.generation_config.eos_token_id = [1, 7, 9, 11]
    compressed(tmp_path / "artifact", network, tokenizer)
    (note,) = export(tmp_path / "artifact", tmp_path / "out", "gguf")
    assert "[11]" in note
    fields = gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
    ends = [fields[f"tokenizer.ggml.{name}_token_id"].contents() for name in ("eos", "eot", "eom")]
    assert ends == [1, 7, 9] and fields["tokenizer.ggml.bos_token_id"].contents() == 0


def test_gguf_of_another_tokenizer_takes_numbers(tmp_path):
    gguf = pytest.importorskip("gguf", reason="the gguf library is not installed: pip install -e '.[export]'")
    other = tiny_tokenizer()
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="_", prepend_scheme="always")
    changed = compressed(tmp_path / "changed", tiny_model(other), other)
    tokenizer = json.loads((changed / "tokenizer.json").read_text())
    (note,) = export(changed, tmp_path / "out", "gguf")
    assert "token numbers" in note
    fields = gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "none"
    assert json.loads(fields["tokenizer.huggingface.json"].contents()) == tokenizer
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model = llama_cpp.Llama(str(tmp_path / "out" / "model.gguf"), n_ctx=96, n_threads=1, verbose=False)
    model.eval(IDS)
    model.close()


def left_out(kind):
    """A tokenizer that README's limits name."""
    if kind == "byte-level BPE that normalises":
        tokenizer = tiny_tokenizer()
        tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
        return tokenizer
    if kind == "Unigram":
        raw = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>", "</s>"], unk_token="<unk>")
    elif kind == "WordPiece":
        raw = Tokenizer(models.WordPiece(unk_token="<unk>"))
        trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=["<unk>", "</s>"])
    else:
        raw = Tokenizer(models.BPE(unk_token="<unk>"))
        trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "</s>"])
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.train_from_iterator([TEXT] * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<unk>", eos_token="</s>")


@pytest.mark.parametrize("kind", ["Unigram", "WordPiece", "byte-level BPE that normalises", "BPE without bytes"])
def test_gguf_leaves_out_the_tokenizers_that_readme_names(tmp_path, kind):
    gguf = pytest.importorskip("gguf", reason="the gguf library is not installed: pip install -e '.[export]'")
    tokenizer = left_out(kind)
    compressed(tmp_path / "artifact", tiny_model(tokenizer), tokenizer)
    notes = export(tmp_path / "artifact", tmp_path / "out", "gguf")
    assert any("token numbers" in note for note in notes)
    fields = gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "none" and "tokenizer.ggml.tokens" not in fields
    limits = (
        (Path(__file__).parent.parent / "README.md")
        .read_text(encoding="utf-8")
        .partition("## Limits")[2]
        .replace("\n", " ")
    )
    assert "Unigram, WordPiece, and BPE that normalises text or has no token for every byte are left out" in limits


@pytest.mark.parametrize("kind", ["untied", "tied", "gpt2"])
def test_onnx_gives_the_same_logits(tmp_path, kind):
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library, reason=f"{library} is not installed: pip install -e '.[export]'")
    import onnxruntime

    tokenizer = tiny_tokenizer()
    if kind == "gpt2":
        torch.manual_seed(0)
        shape = GPT2Config(
            vocab_size=len(tokenizer), n_embd=20, n_layer=2, n_head=2, n_positions=40, initializer_range=0.4,
            bos_token_id=0, eos_token_id=1,
        )  # fmt: skip
        network = GPT2LMHeadModel(shape)
    else:
        network = tiny_model(tokenizer, tie_word_embeddings=kind == "tied")
    compressed(tmp_path / "artifact", network, tokenizer)
    (note,) = export(tmp_path / "artifact", tmp_path / "out", "onnx")
    assert "cache" in note
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    network, _ = load_artifact(tmp_path / "artifact")
    for batch, length in ((1, 1), (1, 9), (3, 17), (2, 40)):
        ids = np.random.default_rng(length).integers(0, len(tokenizer), (batch, length))
        with torch.no_grad():
            expected = network(torch.from_numpy(ids)).logits.numpy()
        (found,) = session.run(None, {"input_ids": ids})
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), err_msg=f"{batch} x {length}")


def test_what_cannot_be_exported_is_one_clear_error(artifact, tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="no export to 'pickle'"):
        export(artifact, tmp_path / "out", "pickle")
    with pytest.raises(ModelError, match="no dtype"):
        export(artifact, tmp_path / "out", "gguf", dtype="int3")
    with pytest.raises(ModelError, match="float32 only"):
        export(artifact, tmp_path / "out", "onnx", dtype="float16")
    with pytest.raises(OutputError, match="exists already"):
        export(artifact, artifact, "safetensors")
    config = json.loads((artifact / "config.json").read_text())
    changed = tmp_path / "changed"
    shutil.copytree(artifact, changed)
    (changed / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    pytest.importorskip("gguf", reason="the gguf library is not installed: pip install -e '.[export]'")
    with pytest.raises(ModelError, match="not 'gpt2'"):
        export(changed, tmp_path / "out", "gguf")
    (changed / "config.json").write_text("{")
    with pytest.raises(ArtifactError, match="this is not JSON"):
        export(changed, tmp_path / "out", "gguf")
    shutil.copyfile(artifact / "config.json", changed / "config.json")
    (changed / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ArtifactError, match="tokenizer.json is not the file that the artifact was written with"):
        export(changed, tmp_path / "out", "gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match="needs the library 'gguf'"):
        export(artifact, tmp_path / "out", "gguf")
    assert not (tmp_path / "out").exists()
