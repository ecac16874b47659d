"""transformers opens artifacts after `import phase8`: the same weights as this package's reader, and the same bytes."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, BitsAndBytesConfig

import phase8  # noqa: F401  registers the quantizer
from phase8.artifact.read import WEIGHTS_FILE
from phase8.artifact.write import load_artifact, write_artifact
from phase8.codecs import get_codec
from phase8.config import VPTQConfig
from phase8.errors import ArtifactError, ModelError
from phase8.model.source import ExpertFile, source_from_network
from tests.program import ROOT, run_here
from tests.tiny_model import tiny_model, tiny_tokenizer

both = pytest.mark.parametrize("artifact", ["untied", "tied"], indirect=True)


@pytest.fixture(scope="module")
def artifact(request, tmp_path_factory) -> Path:
    """A tiny Llama's artifact, its head tied if the test says so."""
    tokenizer = tiny_tokenizer()
    network = tiny_model(tokenizer, tie_word_embeddings=getattr(request, "param", "untied") == "tied")
    source = source_from_network(network, tokenizer, ExpertFile(), "tiny")
    groups = [
        get_codec("vptq").encode(source.matrices(), VPTQConfig(codebook_size=16, vector_dim=4), importance={}, seed=0),
        get_codec("plain").encode(source.vectors(), None, importance={}, seed=0),
    ]
    directory = tmp_path_factory.mktemp("integration") / "artifact"
    write_artifact(directory, groups, source, stage="vptq")
    return directory


def python(script: str, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], cwd=ROOT, text=True, capture_output=True, timeout=600
    )


def same_weights(first, second) -> None:
    for (name, a), (other, b) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b), name


@both
@pytest.mark.parametrize("settings", [{}, {"dtype": "auto"}, {"dtype": torch.float32, "device_map": "cpu"}])
def test_the_weights_are_those_of_our_own_reader(artifact, settings):
    network, info = AutoModelForCausalLM.from_pretrained(artifact, output_loading_info=True, **settings)
    assert not any(info.values())
    expected, _ = load_artifact(artifact)
    same_weights(network, expected)
    assert network.dtype == torch.float32 and not network.training
    tied = network.config.tie_word_embeddings
    assert (network.get_input_embeddings().weight is network.get_output_embeddings().weight) == tied
    ids = torch.tensor([[0, 5, 300, 7, 7]])
    assert torch.equal(network(ids).logits, expected(ids).logits)


@both
def test_another_dtype_is_a_rounding(artifact, tmp_path):
    network = AutoModelForCausalLM.from_pretrained(artifact, dtype=torch.bfloat16)
    same_weights(network, load_artifact(artifact)[0].bfloat16())
    network.save_pretrained(tmp_path)
    assert (tmp_path / WEIGHTS_FILE).read_bytes() == (artifact / WEIGHTS_FILE).read_bytes()


@both
def test_save_pretrained_gives_the_same_bytes(artifact, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(artifact, moved)
    network = AutoModelForCausalLM.from_pretrained(moved)
    shutil.rmtree(moved)  # what was read is enough
    network.save_pretrained(tmp_path / "again")
    names = {path.name for path in artifact.iterdir()}
    assert {path.name for path in (tmp_path / "again").iterdir()} == names >= {"config.json", WEIGHTS_FILE}
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (artifact / name).read_bytes()
    copy.deepcopy(network).save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / WEIGHTS_FILE).read_bytes() == (artifact / WEIGHTS_FILE).read_bytes()


def test_torch_save_and_load(artifact, tmp_path):
    network = AutoModelForCausalLM.from_pretrained(artifact)
    torch.save(network, tmp_path / "whole.pt")
    again = torch.load(tmp_path / "whole.pt", weights_only=False)
    same_weights(again, network)
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / WEIGHTS_FILE).read_bytes() == (artifact / WEIGHTS_FILE).read_bytes()
    with torch.no_grad():
        again.model.norm.weight[3] += 1e-3  # it saves itself, not the network that it was made from
    with pytest.raises(ModelError, match="changed after loading"):
        again.save_pretrained(tmp_path / "changed")
    network.save_pretrained(tmp_path / "first")


def test_changed_weights_are_not_saved_as_the_old_ones(artifact, tmp_path):
    network = AutoModelForCausalLM.from_pretrained(artifact)
    with torch.no_grad():
        network.model.norm.weight[3] += 1e-3
    with pytest.raises(ModelError, match="changed after loading"):
        network.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for wrong in ({"state_dict": {}}, {"push_to_hub": True}, {"variant": "fp16"}):
        with pytest.raises(ModelError, match="as the files"):
            network.save_pretrained(tmp_path / "out", **wrong)
    plain = network.dequantize()
    plain.save_pretrained(tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    same_weights(AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32), plain)


def test_damage_is_an_artifact_error(artifact, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(artifact, broken)
    raw = bytearray((broken / WEIGHTS_FILE).read_bytes())
    raw[-9] ^= 1
    (broken / WEIGHTS_FILE).write_bytes(raw)
    with pytest.raises(ArtifactError):
        AutoModelForCausalLM.from_pretrained(broken)


def test_another_architecture_is_an_artifact_error(artifact, tmp_path):
    wider = tmp_path / "wider"
    shutil.copytree(artifact, wider)
    config = json.loads((wider / "config.json").read_text())
    (wider / "config.json").write_text(json.dumps(config | {"intermediate_size": 72}))
    with pytest.raises(ArtifactError):
        AutoModelForCausalLM.from_pretrained(wider)
    with pytest.raises(ArtifactError, match="LlamaForCausalLM, not a LlamaModel"):
        AutoModel.from_pretrained(artifact)


def test_it_opens_and_does_not_compress(artifact, tmp_path):
    from phase8.integration.quantizer import Phase8QuantizationConfig

    with pytest.raises(ValueError, match="BitsAndBytesConfig"):
        AutoModelForCausalLM.from_pretrained(artifact, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    load_artifact(artifact)[0].save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="pre-quantized"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=Phase8QuantizationConfig())


@pytest.mark.parametrize("first", ["phase8", "transformers.quantizers.auto", "transformers.generation"])
def test_registered_in_whatever_order_things_are_imported(first):
    done = python(
        f"import {first}, phase8\n"
        "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, AUTO_QUANTIZATION_CONFIG_MAPPING\n"
        "print(AUTO_QUANTIZER_MAPPING['phase8'].__name__, AUTO_QUANTIZATION_CONFIG_MAPPING['phase8'].__name__)"
    )
    assert done.stdout.split() == ["Phase8Quantizer", "Phase8QuantizationConfig"], done.stderr


def test_import_phase8_imports_nothing_heavy():
    done = python("import sys, phase8; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


def test_lm_eval_scores_an_artifact(artifact, tmp_path):
    """lm-eval's own command and `hf` model, against log-likelihoods worked out here."""
    network, tokenizer = load_artifact(artifact)
    items = [{"question": f"Two plus {n} is", "choices": [" five", " the river"], "label": n % 2} for n in range(8)] + [
        {"question": "A goose", "choices": [" eats grain", " +"], "label": 0}
    ]
    right = 0
    for item in items:
        context = tokenizer(item["question"])["input_ids"]
        scores = []
        for choice in item["choices"]:
            ids = torch.tensor([tokenizer(item["question"] + choice)["input_ids"]])
            with torch.no_grad():
                log_p = network(ids).logits[0].log_softmax(-1)
            rest = range(len(context), ids.shape[1])
            scores.append(sum(log_p[i - 1, ids[0, i]].item() for i in rest))
        right += scores.index(max(scores)) == item["label"]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (tmp_path / "tiny.yaml").write_text(
        f"task: tiny\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path / 'items.jsonl'}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: label\nmetric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    arguments = ["--model", "hf", "--model_args", f"pretrained={artifact}", "--tasks", "tiny", "--device", "cpu"]
    arguments += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "results.json")]
    done = run_here(ROOT / "phase8" / "__main__.py", "lm-eval", "run", *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = tmp_path.glob("**/results*.json")
    assert json.loads(path.read_text())["results"]["tiny"]["acc,none"] == pytest.approx(right / len(items))
