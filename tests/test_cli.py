"""`python -m phase8` and `run.py` as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from phase8.artifact.write import load_artifact, write_artifact
from phase8.cli import main
from phase8.codecs import get_codec
from phase8.config import VPTQConfig
from phase8.model.source import load_source
from tests.program import ROOT, run_here

RUN = ROOT / "run.py"


@pytest.fixture
def artifact(tiny_model_dir, tmp_path):
    source = load_source(str(tiny_model_dir))
    config = VPTQConfig(codebook_size=16, vector_dim=4)
    groups = [
        get_codec("vptq").encode(source.matrices(), config, importance={}, seed=0),
        get_codec("plain").encode(source.vectors(), None, importance={}, seed=0),
    ]
    return Path(tmp_path / "artifact"), write_artifact(tmp_path / "artifact", groups, source, stage="vptq")


def test_inspect_accounts_for_every_byte(artifact, capsys):
    directory, written = artifact
    assert main(["inspect", str(directory), "--tensors"]) == 0
    shown = capsys.readouterr().out
    assert f"{written.size_bytes:,}" in shown and "q_proj" in shown
    parts = shown.split("beside it")[0]
    figures = [line.split()[-3] for line in parts.splitlines() if line.rstrip().endswith("%")]
    assert sum(int(f.replace(",", "")) for f in figures[:-1]) == written.size_bytes == int(figures[-1].replace(",", ""))


def test_decompress_gives_the_same_weights(artifact, tmp_path, capsys):
    directory, _ = artifact
    assert main(["decompress", str(directory), str(tmp_path / "plain")]) == 0
    network, _ = load_artifact(directory)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32)
    for (name, a), (_, b) in zip(network.state_dict().items(), plain.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert main(["decompress", str(directory), str(tmp_path / "plain")]) == 2
    assert "exists already" in capsys.readouterr().err


def test_export_writes_a_directory_and_says_what_is_in_it(artifact, tmp_path, capsys):
    pytest.importorskip("gguf", reason="the gguf library is not installed: pip install -e '.[export]'")
    directory, _ = artifact
    assert main(["export", str(directory), str(tmp_path / "out"), "--format", "gguf"]) == 0
    size = (tmp_path / "out" / "model.gguf").stat().st_size
    shown = capsys.readouterr().out
    assert f"model.gguf  {size:,} bytes" in shown and "note:" not in shown
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (directory / "tokenizer.json").read_bytes()
    assert main(["export", str(directory), str(tmp_path / "out"), "--format", "gguf"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_unknown_options_are_refused(artifact, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["inspect", str(artifact[0]), "--nonsense"])
    assert ended.value.code == 2
    assert "--nonsense" in capsys.readouterr().err


def test_generate_continues_the_text(artifact, capsys):
    directory, _ = artifact
    assert main(["generate", str(directory), "Once upon", "--tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("Once upon")


@pytest.mark.parametrize("command", ["inspect", "generate", "decompress", "export"])
def test_wrong_place_is_one_clear_error(command, tmp_path, capsys):
    extra = {
        "inspect": [],
        "generate": ["x"],
        "decompress": [str(tmp_path / "out")],
        "export": [str(tmp_path / "out")],
    }[command]
    assert main([command, str(tmp_path), *extra]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error:") and "mend:" in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["vptq.codebok_size=3"], "did you mean vptq.codebook_size"),
        (["compresor=default"], "did you mean compressor"),
        (["seedlm.latent_dim=99"], "latent_dim is 99"),
        (["hyper.degree=-1"], "degree"),
        (["seedlm.bits=many"], "needs int"),
        (["model.path=./nowhere", "hydra.run.dir={tmp}"], "no such directory"),
        (["model=local"], "model.path"),
        (["vptq.target_ratio=20", "vptq.budget_bytes=400_000"], "vptq.budget_bytes and vptq.target_ratio"),
    ],
)
def test_mistakes_on_the_command_line(arguments, says, tmp_path):
    if not any("run.dir" in a for a in arguments):
        arguments = [*arguments, "hydra.run.dir={tmp}"]
    ended = run_here(RUN, *[a.format(tmp=tmp_path / "run") for a in arguments])
    assert ended.returncode == 2
    assert says in ended.stderr and "Traceback" not in ended.stderr


def test_a_budget_below_the_smallest_is_refused_before_the_work(tmp_path):
    ended = run_here(
        RUN, "target_ratio=100", f"hydra.run.dir={tmp_path / 'run'}", f"paths.cache_dir={tmp_path / 'cache'}"
    )
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "target_ratio=100 allows" in ended.stderr and "for seedlm" in ended.stderr and "mend:" in ended.stderr
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert "benchmark_result" not in kinds and not (tmp_path / "run" / "artifacts").exists()


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    ended = run_here(RUN, f"hydra.run.dir={tmp_path / 'file' / 'run'}")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: cannot write") and "Traceback" not in ended.stderr


def test_help_is_a_page(tmp_path):
    ended = run_here(RUN, "--help")
    assert ended.returncode == 0
    for word in ("compressor: as_printed", "Examples", "codebook_size: 1024", "python -m phase8 inspect"):
        assert word in ended.stdout


@pytest.mark.parametrize("given, verbose", [([], "false"), (["-v"], "true"), (["--verbose"], "true")])
def test_v_tells_details(given, verbose):
    ended = run_here(RUN, *given, "--cfg", "job", "--package", "logger")
    assert ended.returncode == 0 and f"verbose: {verbose}\n" in ended.stdout
