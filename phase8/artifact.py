"""The compressed model on disk.

A directory with `model.safetensors` (this format), `config.json` and the tokenizer's files. `model.safetensors` is an
ordinary safetensors file with one uint8 tensor, `payload`. Its metadata say `format=phase8`, the format version, and
the manifest: JSON, deflated, base64. The manifest lists

- `groups`: codec, settings, and per tensor its name, shape and streams (role, bits, count);
- `pools`: all streams of one role and width within a group, one after the other, coded together by the entropy coder
  or packed plainly, whichever is smaller; each with its coding, length in bytes and CRC-32;
- `source`: the hash and the parameter count of the model that was compressed.

A worked example: a VPTQ group of two matrices with 4 and 6 indices of 8 bits has one pool `indices_0` with 10 values.
If its coded form is not smaller than 10 bytes it is stored packed, as these 10 bytes.

Everything is checked before it is used: sizes against the file's own length, counts against the shapes, checksums
before decoding.
"""

from __future__ import annotations

import base64
import json
import math
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from phase8.codecs import entropy, get_codec
from phase8.codecs.base import EncodedGroup, EncodedTensor, Stream
from phase8.errors import ArtifactError
from phase8.files import directory_swap, read_bounded, write_atomic
from phase8.models import SourceModel, architecture_json, as_parameters, unique_parameters

FORMAT = "phase8"
VERSION = 1
WEIGHTS_FILE = "model.safetensors"
COUNTED_FILES = (WEIGHTS_FILE, "config.json", "generation_config.json")
"""Files whose bytes are the artifact's size. Tokenizer files lie beside them and are listed, not counted."""
MAX_FILE_BYTES = 2**32
MAX_HEADER_BYTES = 64 * 2**20
MAX_MANIFEST_BYTES = 256 * 2**20
MAX_PARAMETERS = 2**36


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """Streams that were coded together."""

    group: int
    role: str
    shared: bool
    bits: int
    count: int
    coding: str
    size_bytes: int
    crc: int


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """What was read from, or is about to become, one artifact directory."""

    stage: str
    groups: tuple[EncodedGroup, ...]
    pools: tuple[Pool, ...]
    source: dict[str, Any]
    """`hash`: SHA-256 of the source model; `parameters`: its parameter count."""
    sizes: dict[str, int]
    """Bytes of each counted file, by name."""
    overhead_bytes: int
    """Bytes of `model.safetensors` outside the pools: safetensors header and manifest."""

    @property
    def size_bytes(self) -> int:
        """Bytes on disk, everything counted but the tokenizer."""
        return sum(self.sizes.values())

    @property
    def parameter_count(self) -> int:
        """Parameters that the streams stand for, tied ones once."""
        return sum(math.prod(tensor.shape) for group in self.groups for tensor in group.tensors.values())

    @property
    def ratio(self) -> float:
        """FP32 bytes of the source's parameters / bytes on disk."""
        return 4 * self.parameter_count / self.size_bytes

    @property
    def bits_per_weight(self) -> float:
        """Bits on disk per parameter."""
        return 8 * self.size_bytes / self.parameter_count

    def decode(self) -> dict[str, np.ndarray]:
        """Returns every tensor: matrices [O, I] and vectors, float32.

        Raises:
            ArtifactError: streams do not fit their shapes or settings.
        """
        decoded: dict[str, np.ndarray] = {}
        for group in self.groups:
            decoded.update(get_codec(group.codec).decode(group))
        return decoded


def _pools(groups: Iterable[EncodedGroup]) -> dict[tuple[int, str, bool, int], list[Stream]]:
    """Streams by (group, role, shared, bits), in manifest order."""
    pools: dict[tuple[int, str, bool, int], list[Stream]] = {}
    for index, group in enumerate(groups):
        for role, stream in group.shared.items():
            pools.setdefault((index, role, True, stream.bits), []).append(stream)
        for tensor in group.tensors.values():
            for role, stream in tensor.streams.items():
                pools.setdefault((index, role, False, stream.bits), []).append(stream)
    return pools


def _encode_weights(groups: tuple[EncodedGroup, ...], stage: str, source: dict[str, Any]) -> bytes:
    pools, blobs = [], []
    for (index, role, shared, bits), streams in _pools(groups).items():
        values = np.concatenate([stream.values.astype(np.uint32) for stream in streams])
        coding, blob = entropy.encode(values, bits)
        pools.append([index, role, int(shared), bits, int(values.size), coding, len(blob), zlib.crc32(blob)])
        blobs.append(blob)
    manifest = {
        "stage": stage,
        "source": source,
        "groups": [
            {
                "codec": group.codec,
                "settings": group.settings,
                "shared": [[role, s.bits, int(s.values.size)] for role, s in group.shared.items()],
                "tensors": [
                    [name, list(t.shape), [[role, s.bits, int(s.values.size)] for role, s in t.streams.items()]]
                    for name, t in group.tensors.items()
                ],
            }
            for group in groups
        ],
        "pools": pools,
    }
    raw = json.dumps(manifest, separators=(",", ":"), allow_nan=False).encode()
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "manifest": base64.b64encode(zlib.compress(raw, 9)).decode(),
        "manifest_crc32": str(zlib.crc32(raw)),
    }
    payload = b"".join(blobs)
    # Written here and not by the safetensors library, whose order of metadata differs from process to process.
    entry = {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}
    header = json.dumps({"__metadata__": metadata, "payload": entry}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + payload


def write_artifact(
    directory: Path | str, groups: Iterable[EncodedGroup], source: SourceModel, *, stage: str
) -> Artifact:
    """Writes an artifact directory, completely or not at all, and reads it back.

    Raises:
        OutputError: disk full or not writable; what was there before is untouched.
    """
    directory = Path(directory)
    groups = tuple(groups)
    config = json.loads(architecture_json(source.network))
    config["quantization_config"] = {"quant_method": FORMAT, "format_version": VERSION, "stage": stage}
    details = {"hash": source.content_hash, "parameters": source.parameter_count}
    with directory_swap(directory) as fresh:
        write_atomic(fresh / WEIGHTS_FILE, _encode_weights(groups, stage, details))
        write_atomic(fresh / "config.json", json.dumps(config, separators=(",", ":"), sort_keys=True) + "\n")
        source.tokenizer.save_pretrained(fresh)
    return read_artifact(directory)


def read_artifact(directory: Path | str) -> Artifact:
    """Reads and checks an artifact.

    Raises:
        ArtifactError: it is missing, truncated, altered, or not of this format; the message says which.
    """
    directory = Path(directory)
    path = directory / WEIGHTS_FILE
    if not path.is_file():
        raise ArtifactError(
            f"there is no {WEIGHTS_FILE} here", where=str(directory), fix="name the directory of one artifact"
        )
    raw = read_bounded(path, MAX_FILE_BYTES, error=ArtifactError)
    manifest, payload = _split(raw, str(path))
    try:
        groups, pools = _decode_manifest(manifest, payload, str(path))
        source, stage = manifest["source"], manifest["stage"]
        if not isinstance(source, dict) or not isinstance(stage, str):
            raise TypeError("source or stage")
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise ArtifactError(
            f"the manifest is malformed: {type(error).__name__}: {error}", where=str(path), fix="write it anew"
        ) from error
    sizes = {name: (directory / name).stat().st_size for name in COUNTED_FILES if (directory / name).is_file()}
    return Artifact(
        stage=stage,
        groups=groups,
        pools=pools,
        source=source,
        sizes=sizes,
        overhead_bytes=len(raw) - len(payload),
    )


def _split(raw: bytes, where: str) -> tuple[dict[str, Any], memoryview]:
    """Takes a safetensors file apart into manifest and payload."""
    fix = "the file was cut short or altered: copy it anew"
    if len(raw) < 8:
        raise ArtifactError("the file is too short to be an artifact", where=where, fix=fix)
    (header_bytes,) = struct.unpack("<Q", raw[:8])
    if header_bytes > min(len(raw) - 8, MAX_HEADER_BYTES):
        raise ArtifactError("the header is longer than the file", where=where, fix=fix)
    try:
        header = json.loads(raw[8 : 8 + header_bytes])
        metadata, entry = header["__metadata__"], header["payload"]
        begin, end = entry["data_offsets"]
        manifest_text, version = metadata["manifest"], metadata["version"]
        kind, crc = metadata["format"], int(metadata["manifest_crc32"])
        well_formed = entry["dtype"] == "U8" and begin == 0 and entry["shape"] == [end]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(
            "this is not a phase8 artifact", where=where, fix="name a directory that this tool wrote"
        ) from error
    if kind != FORMAT or not well_formed:
        raise ArtifactError("this is not a phase8 artifact", where=where, fix="name a file that this tool wrote")
    if version != str(VERSION):
        raise ArtifactError(
            f"the artifact has format version {version}, this program reads {VERSION}",
            where=where,
            fix="update phase8, or write the artifact anew",
        )
    payload = memoryview(raw)[8 + header_bytes :]
    if len(payload) != end:
        raise ArtifactError(f"the payload has {len(payload)} of {end} bytes", where=where, fix=fix)
    try:
        inflater = zlib.decompressobj()
        text = inflater.decompress(base64.b64decode(manifest_text, validate=True), MAX_MANIFEST_BYTES)
        if not inflater.eof or zlib.crc32(text) != crc:
            raise ValueError("checksum")
        manifest = json.loads(text)
    except (ValueError, zlib.error, TypeError, RecursionError) as error:
        raise ArtifactError("the manifest is damaged (checksum)", where=where, fix=fix) from error
    if not isinstance(manifest, dict):
        raise ArtifactError("the manifest is damaged", where=where, fix=fix)
    return manifest, payload


def _natural(value: Any, limit: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
        raise ValueError(f"{value!r} is not a number from 0 to {limit}")
    return value


def _decode_manifest(
    manifest: dict[str, Any], payload: memoryview, where: str
) -> tuple[tuple[EncodedGroup, ...], tuple[Pool, ...]]:
    parameters = 0
    wanted: dict[tuple[int, str, bool, int], int] = {}
    for index, group in enumerate(manifest["groups"]):
        for role, bits, count in group["shared"]:
            key = (index, str(role), True, _natural(bits, 32))
            wanted[key] = wanted.get(key, 0) + _natural(count, MAX_PARAMETERS)
        for name, shape, streams in group["tensors"]:
            size = math.prod(_natural(extent, MAX_PARAMETERS) for extent in shape)
            parameters += size
            for role, bits, count in streams:
                # A stream never holds more values than its tensor has weights (plus one block of padding a row).
                limit = 2 * size + 65536
                key = (index, str(role), False, _natural(bits, 32))
                wanted[key] = wanted.get(key, 0) + _natural(count, limit)
            if not isinstance(name, str):
                raise ValueError("a tensor's name is not text")
    if parameters != manifest["source"]["parameters"] or parameters > MAX_PARAMETERS:
        raise ArtifactError(
            f"the manifest promises {manifest['source']['parameters']} parameters and lists {parameters}", where=where
        )
    pools, position, values = [], 0, {}
    for index, role, shared, bits, count, coding, size, crc in manifest["pools"]:
        pool = Pool(
            group=_natural(index, len(manifest["groups"])),
            role=str(role),
            shared=bool(shared),
            bits=_natural(bits, 32),
            count=_natural(count, MAX_PARAMETERS),
            coding=str(coding),
            size_bytes=_natural(size, len(payload) - position),
            crc=_natural(crc, 2**32),
        )
        key = (pool.group, pool.role, pool.shared, pool.bits)
        if wanted.pop(key, None) != pool.count:
            raise ArtifactError(f"pool {role!r} of group {index} does not fit the streams listed", where=where)
        blob = bytes(payload[position : position + pool.size_bytes])
        if zlib.crc32(blob) != pool.crc:
            raise ArtifactError(
                f"pool {role!r} of group {index} is damaged (checksum)", where=where, fix="copy the file anew"
            )
        values[key] = entropy.decode(pool.coding, blob, pool.bits, pool.count)
        position += pool.size_bytes
        pools.append(pool)
    if wanted or position != len(payload):
        raise ArtifactError("streams and payload do not cover each other", where=where)

    cursor = dict.fromkeys(values, 0)

    def take(key: tuple[int, str, bool, int], count: int) -> Stream:
        begin = cursor[key]
        cursor[key] = begin + count
        return Stream(values=values[key][begin : begin + count], bits=key[3])

    groups = []
    for index, group in enumerate(manifest["groups"]):
        if not isinstance(group["settings"], dict):
            raise ValueError("settings")
        shared_streams = {role: take((index, role, True, bits), count) for role, bits, count in group["shared"]}
        tensors = {
            name: EncodedTensor(
                shape=tuple(shape),
                streams={role: take((index, role, False, bits), count) for role, bits, count in streams},
            )
            for name, shape, streams in group["tensors"]
        }
        groups.append(
            EncodedGroup(
                codec=str(group["codec"]), settings=group["settings"], tensors=tensors, shared=shared_streams
            )
        )
    return tuple(groups), tuple(pools)


def kind_of(name: str) -> str:
    """The sort of a tensor, from its name: `model.layers.0.self_attn.q_proj.weight` -> `q_proj`."""
    parts = name.split(".")
    return parts[-2] if len(parts) > 1 and parts[-1] in ("weight", "bias") else parts[-1]


def account(artifact: Artifact) -> list[tuple[str, str, int]]:
    """Every byte of the artifact as rows (section, what, bytes); the rows add up to `size_bytes`.

    A pool's bytes are shared out among the kinds of tensors in it by their packed bits (largest remainder), since the
    entropy coder codes them together.
    """
    rows: list[tuple[str, str, int]] = []
    for pool in artifact.pools:
        group = artifact.groups[pool.group]
        section = f"{group.codec}: {pool.role} ({pool.coding})"
        if pool.shared:
            owners = {kind_of(name) for name in group.tensors}
            rows.append((section, owners.pop() if len(owners) == 1 else "shared", pool.size_bytes))
            continue
        counts: dict[str, int] = {}
        for name, tensor in group.tensors.items():
            stream = tensor.streams.get(pool.role)
            if stream is not None and stream.bits == pool.bits:
                counts[kind_of(name)] = counts.get(kind_of(name), 0) + stream.values.size
        total = max(sum(counts.values()), 1)
        exact = {kind: pool.size_bytes * count / total for kind, count in counts.items()}
        share = {kind: int(value) for kind, value in exact.items()}
        for kind in sorted(exact, key=lambda k: share[k] - exact[k])[: pool.size_bytes - sum(share.values())]:
            share[kind] += 1
        rows.extend((section, kind, size) for kind, size in share.items())
    rows.append((WEIGHTS_FILE, "header and manifest", artifact.overhead_bytes))
    rows.extend((name, "whole file", size) for name, size in artifact.sizes.items() if name != WEIGHTS_FILE)
    return rows


def bytes_by_kind(artifact: Artifact) -> dict[str, int]:
    """Bytes per kind of tensor; `shared`, `header and manifest` and `whole file` (config) are kinds of their own."""
    kinds: dict[str, int] = {}
    for _, what, size in account(artifact):
        kinds[what] = kinds.get(what, 0) + size
    return kinds


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
    artifact = read_artifact(directory)
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:
        raise ArtifactError(
            f"config.json or the tokenizer cannot be read: {error}", where=str(directory), fix="copy the directory anew"
        ) from error
    network.tie_weights()
    load_weights(network, artifact.decode(), where=str(directory))
    return network.eval(), tokenizer
