"""Turns an artifact into files that other programs open: plain safetensors, GGUF, ONNX.

    python -m phase8 export ARTIFACT --format gguf OUT

Every export is the decompressed model, so it is as large as a plain one; what it is for is to run where nothing of this
package is. OUT is a directory with the model file and the tokenizer's own files beside it, written completely or not at
all. In float32 every weight is the artifact's, bit for bit; the tests open each file in its own program (transformers,
llama.cpp, onnxruntime) and compare the outputs.

| format | file | opens in | architectures |
| --- | --- | --- | --- |
| `safetensors` | `model.safetensors`, `config.json` | transformers, vLLM, ... | all |
| `gguf` | `model.gguf` | llama.cpp | Llama type |
| `onnx` | `model.onnx` | onnxruntime | all that torch can trace |
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from phase8.artifact.read import COUNTED_FILES
from phase8.errors import ModelError, OutputError
from phase8.files import OUT, directory_swap


class Format(StrEnum):
    """Kinds of files that an artifact can be turned into."""

    safetensors = "safetensors"
    gguf = "gguf"
    onnx = "onnx"


def export(artifact: Path | str, out: Path | str, format: Format | str, *, dtype: str = "float32") -> list[str]:
    """Writes an artifact's model in another format.

    Args:
        artifact: the artifact's directory.
        out: a directory that does not exist yet.
        format: see `Format`.
        dtype: `float32`, where the weights are exact; `float16` and `bfloat16` round them (not for `onnx`).

    Returns:
        What the reader of the export should know, one sentence each; mostly nothing.

    Raises:
        ArtifactError: the artifact cannot be read.
        ModelError: the format has no place for this architecture or dtype, or a library is not installed.
        OutputError: `out` exists already or cannot be written.
    """
    artifact, out = Path(artifact), Path(out)
    if out.exists():
        raise OutputError("OUT exists already", where=str(out), fix="name a directory that does not exist yet")
    if dtype not in ("float32", "float16", "bfloat16"):
        raise ModelError(f"{dtype!r} is no dtype of an export", where="dtype", fix="float32, float16 or bfloat16")
    if format not in list(Format):
        raise ModelError(f"there is no export to {format!r}", where="format", fix=f"known: {', '.join(Format)}")
    writers: dict[Format, Callable[[Path, Path, str], list[str]]] = {
        Format.safetensors: _write_safetensors,
        Format.gguf: _write_gguf,
        Format.onnx: _write_onnx,
    }
    with directory_swap(out, OUT) as fresh:
        return writers[Format(format)](artifact, fresh, dtype)


def _write_safetensors(artifact: Path, out: Path, dtype: str) -> list[str]:
    import torch

    from phase8.artifact.write import load_artifact

    network, _ = load_artifact(artifact)
    network.to(getattr(torch, dtype)).save_pretrained(out)
    _copy_tokenizer(artifact, out)
    return []


def _write_gguf(artifact: Path, out: Path, dtype: str) -> list[str]:
    from phase8.export.gguf_file import write_gguf

    notes = write_gguf(artifact, out / "model.gguf", dtype=dtype)
    _copy_tokenizer(artifact, out)
    return notes


def _write_onnx(artifact: Path, out: Path, dtype: str) -> list[str]:
    from phase8.artifact.write import load_artifact
    from phase8.export.onnx_file import write_onnx

    if dtype != "float32":
        raise ModelError("ONNX is written in float32 only", where="dtype", fix="leave --dtype away")
    network, _ = load_artifact(artifact)
    write_onnx(network, out / "model.onnx")
    _copy_tokenizer(artifact, out)
    return ["model.onnx reads the whole text each time: it scores texts, and has no cache for generating."]


def _copy_tokenizer(artifact: Path, out: Path) -> None:
    for path in artifact.iterdir():
        if path.is_file() and path.name not in COUNTED_FILES:
            shutil.copyfile(path, out / path.name)
