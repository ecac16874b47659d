"""An artifact in the dashboard: where its bytes are, and talking to it beside its original."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from phase8.artifact.read import read_artifact
from phase8.runtime.side_by_side import load_original
from tests import invented_log
from tests.dashboard_server import REPOSITORY, served

PROMPT = "Question: What is the"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A recorded run of the embedded model with the artifact of its last stage."""
    run = tmp_path_factory.mktemp("runs") / "a"
    shutil.copytree(REPOSITORY / "tests" / "data" / "run", run)
    shutil.copy(REPOSITORY / "phase8" / "assets" / "reference" / "tokenizer.json", run / "artifacts" / "hyper")
    with served(run.parent) as server:
        yield server


def test_the_list_holds_an_artifact_per_attempt(server):
    found = server.ask(f"artifacts/{server.only_run()}").json["artifacts"]
    assert [(row["name"], row["attempt"], row["passed"]) for row in found] == [
        ("seedlm", 1, True), ("vptq", 1, True), ("hyper", 1, False)
    ]  # fmt: skip
    result = json.loads((server.runs / "a" / "result.json").read_text())
    assert {row["name"]: row["bytes"] for row in found} == {
        stage: told["bytes"] for stage, told in result["stages"].items()
    }


def test_every_byte_stands_in_the_tree(server):
    answer = server.ask(f"artifacts/{server.only_run()}/hyper")
    assert answer.status == 200, answer.body
    directory = server.runs / "a" / "artifacts" / "hyper"
    size = sum((directory / name).stat().st_size for name in ("model.safetensors", "config.json"))
    assert answer.json["bytes"] == answer.json["tree"]["bytes"] == size == _told(server, "hyper")

    def adds_up(node) -> bool:
        inside = node["children"]
        return not inside or (sum(c["bytes"] for c in inside) == node["bytes"] and all(map(adds_up, inside)))

    assert adds_up(answer.json["tree"])
    artifact = read_artifact(directory)
    assert {row["name"]: tuple(row["shape"]) for row in answer.json["tensors"]} == {
        name: tensor.shape for group in artifact.groups for name, tensor in group.tensors.items()
    }
    assert "tokenizer.json" in [row["name"] for row in answer.json["beside"]]


def _told(server, stage: str) -> int:
    """What the run itself said of the artifact's size."""
    return json.loads((server.runs / "a" / "result.json").read_text())["stages"][stage]["bytes"]


def talk(server, **wanted):
    return server.ask(f"talk/{server.only_run()}/hyper", "POST", {"prompt": PROMPT, "tokens": 6, **wanted})


def test_both_models_speak_token_by_token(server):
    answer = talk(server)
    assert answer.status == 200 and answer.headers["Content-Type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.body.splitlines()]
    assert lines[-1] == {"kind": "done"}
    for side in ("original", "compressed"):
        tokens = [line for line in lines if line["kind"] == "token" and line["side"] == side]
        (end,) = [line for line in lines if line["kind"] == "end" and line["side"] == side]
        assert end["tokens"] == len(tokens) and end["reason"] in ("length", "end of text")
        assert [token["index"] for token in tokens] == list(range(len(tokens)))
        assert all(0 < token["probability"] <= 1 for token in tokens)
    assert server.ask(f"talk/{server.only_run()}/hyper", "POST", {"prompt": PROMPT, "tokens": 6}).body.count(b"\n") > 4


def test_the_original_says_what_transformers_says(server):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = REPOSITORY / "phase8" / "assets" / "reference"
    tokenizer = AutoTokenizer.from_pretrained(path)
    network = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    inputs = tokenizer(PROMPT, return_tensors="pt")
    with torch.no_grad():
        expected = network.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        probabilities = torch.softmax(network(**inputs).logits[0, -1], -1)
    lines = [json.loads(line) for line in talk(server).body.splitlines()]
    said = [line for line in lines if line["kind"] == "token" and line["side"] == "original"]
    assert "".join(line["text"] for line in said) == tokenizer.decode(expected, skip_special_tokens=True)
    assert said[0]["probability"] == pytest.approx(float(probabilities.max()), abs=1e-4)
    ours, theirs = load_original(path).weights, dict(network.named_parameters())
    assert all(np.array_equal(ours[name], theirs[name].detach().numpy()) for name in ours)


@pytest.mark.parametrize(
    ("wanted", "status"),
    [({"prompt": ""}, 422), ({"prompt": "x" * 2001}, 422), ({"tokens": 0}, 422), ({"path": "/etc"}, 422)],
)
def test_what_may_not_be_asked(server, wanted, status):
    assert talk(server, **wanted).status == status


def test_a_prompt_that_is_too_long_for_the_model_is_an_error_line(server):
    lines = [json.loads(line) for line in talk(server, prompt="sea " * 499).body.splitlines()]
    reasons = [line.get("reason", line["kind"]) for line in lines]
    assert "error" in reasons or "context full" in reasons


def test_artifacts_that_are_not_there(server):
    run = server.only_run()
    for name in ("vptq", "nothing"):
        assert server.ask(f"artifacts/{run}/{name}").status == 404
    for name in ("..%2F..", "UPPER", "a.b"):
        assert server.ask(f"artifacts/{run}/{name}").status in (404, 422)


def test_a_damaged_artifact_is_an_error_that_says_so(tmp_path):
    run = invented_log.write(tmp_path / "runs" / "a")
    (run / "artifacts" / "hyper").mkdir(parents=True)
    (run / "artifacts" / "hyper" / "model.safetensors").write_bytes(b"x" * 100)
    with served(tmp_path / "runs") as server:
        answer = server.ask(f"artifacts/{server.only_run()}/hyper")
        assert answer.status == 404 and answer.json["error"]["what"]


def test_an_original_that_is_gone(tmp_path):
    run = invented_log.write(tmp_path / "runs" / "a", settings="model: {path: /nowhere}\n")
    (run / "artifacts" / "hyper").mkdir(parents=True)
    with served(tmp_path / "runs") as server:
        answer = talk(server)
        assert answer.status == 404 and "not on this machine" in answer.json["error"]["what"]
