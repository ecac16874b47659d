"""Files that set out to do harm, other than artifacts: checkpoints, shard indices, code, names on a terminal."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phase8.artifact.write import write_artifact
from phase8.cli import main
from phase8.codecs import get_codec
from phase8.errors import ModelError, Phase8Error
from phase8.files import write_atomic
from phase8.model.shards import INDEX
from phase8.model.source import load_source
from phase8.model.torch_file import read_state
from phase8.printable import line, printable
from phase8.run.streaming import open_checkpoint
from phase8.watch import wording

# -- checkpoints of torch ------------------------------------------------------------------------------------------


def _repacked(path: Path, change) -> None:
    """The zip of `torch.save` written anew; `change(name, content)` returns the content and the way it is stored."""
    with zipfile.ZipFile(path) as file:
        entries = [(one.filename, file.read(one)) for one in file.infolist()]
    with zipfile.ZipFile(path, "w") as file:
        for name, content in entries:
            content, method = change(name, content)
            file.writestr(name, content, method)


def test_what_torch_saves_is_read(tmp_path, tiny_network):
    path = tmp_path / "a.pt"
    for wrapped in (lambda s: s, lambda s: {"model_state_dict": s, "step": 3, "note": "x", "loss": [0.5]}):
        torch.save(wrapped(tiny_network.state_dict()), path)
        state = read_state(path)
        assert all(torch.equal(state[name], tensor) for name, tensor in tiny_network.state_dict().items())
    torch.save(
        {"a": torch.ones(2, 3).half(), "b": torch.arange(4).to(torch.bfloat16), "c": torch.nn.Parameter(torch.ones(1))},
        path,
    )
    assert [t.dtype for t in read_state(path).values()] == [torch.float16, torch.bfloat16, torch.float32]


def test_entries_that_inflate_are_refused_before_they_do(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.zeros(1 << 16)}, path)
    _repacked(path, lambda name, content: (content, zipfile.ZIP_DEFLATED))
    with pytest.raises(ModelError, match="entries that inflate"):
        read_state(path)
    assert path.stat().st_size < 1 << 13


def test_a_view_of_one_number_is_no_tensor(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.zeros(1).expand(1 << 40)}, path)
    with pytest.raises(ModelError, match="1,099,511,627,776 numbers that it does not hold"):
        read_state(path)


class _Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "payload",
    [_Call(bytearray, 1 << 36), _Call(print, "ran"), _Call(torch.zeros, (1 << 20, 1 << 20)), _Call(complex, 1, 2)],
    ids=["bytearray", "print", "torch.zeros", "complex"],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_names_anything_else_is_refused(tmp_path, payload, protocol, capsys):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.zeros(2)}, path)
    hostile = pickle.dumps({"w": payload}, protocol=protocol)
    _repacked(path, lambda name, content: (hostile if name.endswith(".pkl") else content, zipfile.ZIP_STORED))
    with pytest.raises(ModelError, match="which no state dict needs"):
        read_state(path)
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"\x80\x02}q\0.", pickle.dumps([1] * 99)])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(ModelError):
        read_state(path)


def test_the_old_format_is_named(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match="since 1.6"):
        read_state(path)


def test_config_json_is_held_against_a_checkpoint_before_a_network_is_built(tmp_path, tiny_model_dir, tiny_network):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_model_dir / name).read_bytes())
    torch.save(tiny_network.state_dict(), tmp_path / "phase7_output.pt")
    load_source(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    for change, says in (
        ({"num_hidden_layers": 20_000}, "asks for 20,000 layers"),
        ({"intermediate_size": 1 << 22}, "other shapes"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ModelError, match=says):
            load_source(str(tmp_path))


# -- shards --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file", ["../other/model.safetensors", "/tmp/model.safetensors", "a/b", "..", "", "a\\b", "a\0b"]
)
def test_an_index_names_files_beside_it(tmp_path, tiny_model_dir, file):
    for path in tiny_model_dir.iterdir():
        if path.name != "model.safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": file}}))
    for reader in (lambda: load_source(str(tmp_path)), lambda: open_checkpoint(tmp_path)):
        with pytest.raises(ModelError, match="not a file beside it"):
            reader()


# -- code ----------------------------------------------------------------------------------------------------------


def _with_code(directory: Path, witness: Path) -> None:
    """A model's directory whose configuration asks for Python code in it, and that has pickled weights only."""
    config = json.loads((directory / "config.json").read_text())
    config["model_type"] = "mine"
    config["auto_map"] = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "mine.py").write_text(
        f"open({str(witness)!r}, 'w').write('ran')\nclass Config: pass\nclass Model: pass\n"
    )


@pytest.mark.parametrize("command", [["generate", "DIR", "text"], ["inspect", "DIR"], ["export", "DIR", "OUT"]])
def test_no_command_runs_code_from_a_directory(tmp_path, tiny_model_dir, monkeypatch, capsys, command):
    directory = tmp_path / "model"
    directory.mkdir()
    for path in tiny_model_dir.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    witness = tmp_path / "witness"
    _with_code(directory, witness)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    filled = [{"DIR": str(directory), "OUT": str(tmp_path / "out")}.get(word, word) for word in command]
    assert main(filled) == 2
    assert not witness.exists() and "error:" in capsys.readouterr().err


def test_generate_takes_safetensors_only(tmp_path, tiny_model_dir, capsys):
    for path in tiny_model_dir.iterdir():
        if path.name != "model.safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save({"w": _Call(print, "ran")}, tmp_path / "pytorch_model.bin")
    assert main(["generate", str(tmp_path), "text"]) == 2
    shown = capsys.readouterr()
    assert "ran" not in shown.out and "safetensors" in shown.err
    assert main(["generate", str(tiny_model_dir), "text", "--tokens", "2"]) == 0


# -- names on a terminal -------------------------------------------------------------------------------------------

HARMFUL = [
    "\x1b[2J",
    "\x07",
    "\r",
    "\x9b31m",
    "\u202e",
    "\u2066",
    "\ud800",
    "\udcff",
    "\x00",
    "\u2028",
    "\x7f",
    "\ufeff",
    "\u2060",
    "\U000e0041",
]


@given(st.text(alphabet=st.characters() | st.sampled_from("".join(HARMFUL))))
def test_shown_text_can_be_written_and_obeys_nobody(text):
    for shown in (printable(text), line(text), str(Phase8Error(text, where=text, fix=text)), wording.clean(text)):
        shown.encode()
        assert not any(part in shown for part in HARMFUL)
    assert "\n" not in line(text) + wording.clean(text) and line("ab é 東 \U0001f600") == "ab é 東 \U0001f600"


def test_a_name_cannot_add_lines_to_an_error():
    error = Phase8Error("bad", where="a\n  mend:  run this", fix="do that")
    assert str(error).splitlines() == ["bad", "  where: a\\n  mend:  run this", "  mend:  do that"]


def test_inspect_shows_names_that_look_like_markup(tiny_model_dir, tmp_path, capsys):
    source = load_source(str(tiny_model_dir))
    plain = get_codec("plain")
    groups = [plain.encode(part(), None, importance={}, seed=0) for part in (source.matrices, source.vectors)]
    name = "[bold]a [red]b :smile: \x1b[2J"
    directory = tmp_path / name
    write_artifact(directory, groups, source, stage="[/bold]x")
    (directory / "[i] \x1b]0;title\x07").write_text("")
    (directory / b"\xff".decode("utf-8", "surrogateescape")).write_text("")
    assert main(["inspect", str(directory), "--tensors"]) == 0
    shown = capsys.readouterr().out
    assert "[bold]a [red]b :smile:" in shown and "stage [/bold]x" in shown and "[i]" in shown
    assert not any(part in shown for part in HARMFUL) and "\\udcff" in shown
    assert main(["inspect", str(tmp_path / "no such [bold]\x1b[2J")]) == 2
    shown = capsys.readouterr().err
    assert "[bold]\\x1b[2J" in shown and "\x1b" not in shown


def test_what_a_model_writes_cannot_drive_the_terminal(tiny_model_dir, monkeypatch, capsys):
    from transformers import PreTrainedTokenizerBase

    monkeypatch.setattr(PreTrainedTokenizerBase, "decode", lambda *_, **__: "text \x1b[2J\ud800\nmore")
    assert main(["generate", str(tiny_model_dir), "text", "--tokens", "1"]) == 0
    assert capsys.readouterr().out == "text \\x1b[2J\\ud800\nmore\n"


def test_half_a_character_can_be_written_to_a_file(tmp_path):
    assert write_atomic(tmp_path / "a", "x\ud800y").read_text() == "x\\ud800y"


def test_a_header_of_a_sparse_file_is_not_read(tmp_path):
    from phase8.artifact.read import read_manifest
    from phase8.errors import ArtifactError

    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 3 << 30))
        file.truncate((3 << 30) + 8)
    with pytest.raises(ArtifactError, match="than any header"):
        read_manifest(tmp_path)
