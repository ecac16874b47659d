"""The artifact's writing half, and the way back into a torch network. `phase8.artifact.read` reads.

An artifact is a directory: `model.safetensors` in the format of `docs/format.md`, the model's own `config.json` with a
`quantization_config`, and the tokenizer's files. It is written completely or not at all, and read back at once.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from phase8.artifact.account import account, bytes_by_kind
from phase8.artifact.architecture import check_buffers, check_config
from phase8.artifact.read import (
    COUNTED_FILES,
    FORMAT,
    VERSION,
    WEIGHTS_FILE,
    Artifact,
    Pool,
    read_artifact,
    read_manifest,
)
from phase8.codecs.streams import EncodedGroup
from phase8.errors import ArtifactError
from phase8.files import directory_swap, make_directory, write_atomic
from phase8.limits import TRUSTED
from phase8.lossless import entropy
from phase8.model.generation import GENERATION_FILE, generation_text, read_generation
from phase8.model.source import SourceModel, architecture_json, as_parameters, unique_parameters

__all__ = [
    "COUNTED_FILES", "FORMAT", "VERSION", "WEIGHTS_FILE", "Artifact", "Pool", "account", "bytes_by_kind", "code_pools",
    "config_text", "contents", "describe_group", "file_bytes", "file_header", "load_artifact",
    "load_weights", "read_artifact", "write_artifact",
]  # fmt: skip


def code_pools(index: int, group: EncodedGroup) -> Iterator[tuple[list[Any], bytes]]:
    """Codes the streams of one group; `index` is its place in the manifest.

    Yields:
        Every pool's entry of the manifest, with its bytes, in the order of the payload.
    """
    for (role, shared, bits), values in group.pooled().items():
        coding, blob = entropy.encode(values, bits)
        yield [index, role, int(shared), bits, int(values.size), coding, len(blob), zlib.crc32(blob)], blob


def describe_group(group: EncodedGroup) -> dict[str, Any]:
    """A group's entry of the manifest."""
    return {
        "codec": group.codec,
        "settings": group.settings,
        "shared": [[role, s.bits, int(s.values.size)] for role, s in group.shared.items()],
        "tensors": [
            [name, list(t.shape), [[role, s.bits, int(s.values.size)] for role, s in t.streams.items()]]
            for name, t in group.tensors.items()
        ],
    }


def file_header(
    stage: str,
    source: dict[str, Any],
    groups: list[dict[str, Any]],
    pools: list[list[Any]],
    payload_bytes: int,
    beside: Mapping[str, bytes],
) -> bytes:
    """Everything of `model.safetensors` that stands before the payload.

    Args:
        stage: the stage's name.
        source: of what model, see `docs/format.md`.
        groups: see `describe_group`.
        pools: see `code_pools`.
        payload_bytes: the payload's length.
        beside: every other file of the artifact, by name; the manifest vouches for them.
    """
    files = [[name, len(content), zlib.crc32(content)] for name, content in sorted(beside.items())]
    manifest = {"stage": stage, "source": source, "files": files, "groups": groups, "pools": pools}
    raw = json.dumps(manifest, separators=(",", ":"), allow_nan=False).encode()
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "manifest": base64.b64encode(zlib.compress(raw, 9)).decode(),
        "manifest_crc32": str(zlib.crc32(raw)),
    }
    # Written here and not by the safetensors library, whose order of metadata differs from process to process.
    entry = {"dtype": "U8", "shape": [payload_bytes], "data_offsets": [0, payload_bytes]}
    header = json.dumps({"__metadata__": metadata, "payload": entry}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header


def file_bytes(
    groups: Iterable[EncodedGroup], stage: str, source: dict[str, Any], beside: Mapping[str, bytes] | None = None
) -> bytes:
    """Returns `model.safetensors`; `source` has at least `parameters`, how many weights the groups hold."""
    listed, pools, blobs = [], [], []
    for index, group in enumerate(groups):
        listed.append(describe_group(group))
        for pool, blob in code_pools(index, group):
            pools.append(pool)
            blobs.append(blob)
    payload = b"".join(blobs)
    return file_header(stage, source, listed, pools, len(payload), beside or {}) + payload


def files_beside(network: PreTrainedModel, tokenizer_files: Mapping[str, bytes], stage: str) -> dict[str, bytes]:
    """Every file of an artifact but its weights, by name."""
    return {**tokenizer_files, **settings_files(network, stage)}


def every_file(groups: Iterable[EncodedGroup], source: SourceModel, *, stage: str) -> dict[str, bytes]:
    """All files of an artifact by name."""
    details = {"hash": source.content_hash, "parameters": source.parameter_count}
    beside = files_beside(source.network, source.tokenizer_files, stage)
    return {WEIGHTS_FILE: file_bytes(groups, stage, details, beside), **beside}


def contents(groups: Iterable[EncodedGroup], source: SourceModel, *, stage: str) -> dict[str, bytes]:
    """The counted files of an artifact by name; their lengths add up to `size_bytes` of what `write_artifact` makes."""
    return {name: data for name, data in every_file(groups, source, stage=stage).items() if name in COUNTED_FILES}


def settings_files(network: PreTrainedModel, stage: str) -> dict[str, bytes]:
    """The counted files beside the weights: the configuration and, where they say more, the generation settings."""
    generation = generation_text(network)
    own = {} if generation is None else {GENERATION_FILE: generation.encode()}
    return {"config.json": config_text(network, stage).encode(), **own}


def write_artifact(
    directory: Path | str, groups: Iterable[EncodedGroup], source: SourceModel, *, stage: str
) -> Artifact:
    """Writes an artifact directory, completely or not at all, and reads it back.

    Raises:
        OutputError: disk full or not writable; what was there before is untouched.
    """
    directory = Path(directory)
    with directory_swap(directory) as fresh:
        for name, content in every_file(groups, source, stage=stage).items():
            make_directory((fresh / name).parent)
            write_atomic(fresh / name, content)
    return read_artifact(directory, limits=TRUSTED)


def config_text(network: PreTrainedModel, stage: str) -> str:
    """The artifact's `config.json`: the network's own configuration, and how its weights are stored."""
    config = json.loads(architecture_json(network))
    config["quantization_config"] = {"quant_method": FORMAT, "format_version": VERSION, "stage": stage}
    return json.dumps(config, separators=(",", ":"), sort_keys=True) + "\n"


def load_weights(network: PreTrainedModel, decoded: dict[str, np.ndarray], *, where: str) -> None:
    """Copies decoded tensors into a network of the same architecture.

    Raises:
        ArtifactError: names or sizes differ.
    """
    shaped = as_parameters(network, decoded, where=where)
    with torch.no_grad():
        for name, (_, parameter) in unique_parameters(network).items():
            parameter.copy_(shaped[name])


def load_artifact(directory: Path | str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Rebuilds the model that an artifact holds: float32, evaluation mode, the same weights bit for bit every time.

    Raises:
        ArtifactError: the artifact cannot be read or does not fit its own configuration.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        check_config(config.to_dict(), manifest)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with torch.device("meta"):
            outline = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        outline.tie_weights()
        manifest.require({name: parameter.numel() for name, (_, parameter) in unique_parameters(outline).items()})
        check_buffers(outline, manifest)
        network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except ArtifactError:
        raise
    except Exception as error:  # transformers raises anything on a broken file
        raise ArtifactError(
            f"config.json or the tokenizer cannot be read: {error}", where=str(directory), fix="copy the directory anew"
        ) from error
    network.tie_weights()
    if settings := read_generation(directory, error=ArtifactError):
        network.generation_config = settings
    load_weights(network, manifest.artifact().decode(), where=str(directory))
    return network.eval(), tokenizer
