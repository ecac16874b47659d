"""The compressed model's file, read as if it came from an enemy. `docs/format.md` is the specification.

A directory with `model.safetensors` (this format), `config.json` and the tokenizer's files. `model.safetensors` is an
ordinary safetensors file with one uint8 tensor, `payload`. Its metadata say `format=phase8`, the format version, and
the manifest: JSON, deflated, base64. The manifest lists

- `groups`: codec, settings, and per tensor its name, shape and streams (role, bits, count);
- `pools`: all streams of one role and width within a group, one after the other, coded together by the entropy coder
  or packed plainly, whichever is smaller; each with its coding, length in bytes and CRC-32;
- `source`: the hash and the parameter count of the model that was compressed.

A worked example: a VPTQ group of two matrices with 4 and 6 indices of 8 bits has one pool `index_0` with 10 values.
If its coded form is not smaller than 10 bytes it is stored packed, as these 10 bytes.

Reading takes two steps. `read_manifest` inflates the manifest within a bound, works out from the codecs' settings and
the tensors' shapes which streams there must be, compares every count with that, and checks every checksum: nothing has
been decoded yet, and `Manifest.require` can hold the tensors against those that the caller expects. `Manifest.artifact`
then decodes the pools. So the memory taken is decided by the architecture that the caller asked for, and by no number
in the file alone.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from phase8.codecs import decoders
from phase8.codecs.streams import EncodedGroup, EncodedTensor, Layout, Sizes, Stream, size_of
from phase8.errors import ArtifactError
from phase8.lossless import entropy

FORMAT = "phase8"
VERSION = 1
WEIGHTS_FILE = "model.safetensors"
COUNTED_FILES = (WEIGHTS_FILE, "config.json", "generation_config.json")
"""Files whose bytes are the artifact's size. Tokenizer files lie beside them and are listed, not counted."""
MAX_FILE_BYTES = 2**32
MAX_HEADER_BYTES = 2**23
MAX_PARAMETERS = 2**34
_TEXT_BASE, _TEXT_GAIN = 1 << 14, 256
"""The inflated manifest may take `base + gain * deflated bytes`; deflate itself could reach a factor of 1032. Honest
ones reach 150: thousands of layers, sixteen codebooks, one group."""
_PARTS_BASE, _PARTS_GAIN = 1 << 10, 48
"""The same for its parts: commas and brackets, each of which becomes an object, and braces, which count four times."""
_TEXT_PER_TENSOR, _PARTS_PER_TENSOR = 512, 128
"""Tighter bounds, where the architecture is known: so much for each tensor, and beyond that no more than takes about as
much memory as the weights themselves."""
_HEADER_BASE, _HEADER_PARTS = 1 << 11, 256
"""Bytes of the safetensors header beside the manifest, and its parts: about thirty, if no other program that passed the
file on has added some."""
_CHECKED_AT_ONCE = 1 << 20
_COPY_ANEW = "the file was cut short or altered: copy it anew"
_WRITE_ANEW = "the file was altered, or written by a faulty program: write it anew"


class _Raw:
    """The bytes of a file that is in memory."""

    def __init__(self, raw: bytes) -> None:
        self._raw, self.size = memoryview(raw), len(raw)

    def part(self, begin: int, size: int) -> bytes | memoryview:
        """`size` bytes from `begin` on."""
        return self._raw[begin : begin + size]


class _RawFile:
    """The bytes of a file that are read when they are wanted, so that large artifacts take no memory."""

    def __init__(self, path: Path) -> None:
        self._path, self.size = path, path.stat().st_size

    def part(self, begin: int, size: int) -> bytes:
        """`size` bytes from `begin` on.

        Raises:
            ArtifactError: the file cannot be read, or has become shorter.
        """
        try:
            with self._path.open("rb") as file:
                file.seek(begin)
                found = file.read(size)
        except OSError as error:
            what = f"cannot read: {error.strerror or error}"
            raise ArtifactError(what, where=str(self._path), fix="check the file") from error
        if len(found) != size:
            raise ArtifactError("the file became shorter while it was read", where=str(self._path), fix=_COPY_ANEW)
        return found


class Outline(NamedTuple):
    """What is known of an artifact before it is opened: it bounds what reading the manifest may take."""

    tensors: int
    weights: int


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

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields every tensor, one after the other: its name, and float32 in its shape (matrices [O, I], vectors).

        Raises:
            ArtifactError: a value in a stream is out of range, or a weight overflows.
        """
        for group in self.groups:
            yield from decoders.decode(group)

    def decode(self) -> dict[str, np.ndarray]:
        """Returns all of `tensors`; raises as it does."""
        return dict(self.tensors())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Group:
    """A group as the manifest describes it; the order of roles is the order of the values in the pools."""

    codec: str
    settings: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    layout: Layout


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A checked file whose streams are still coded."""

    where: str
    stage: str
    source: dict[str, Any]
    pools: tuple[Pool, ...]
    overhead_bytes: int
    sizes: dict[str, int]
    """Bytes of each counted file, by name; empty where the file came from memory."""
    _groups: tuple[_Group, ...]
    _raw: _Raw | _RawFile

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor by name."""
        return {name: shape for group in self._groups for name, shape in group.shapes.items()}

    def require(self, sizes: Mapping[str, int]) -> None:
        """Holds the tensors against those of an architecture, before anything is decoded.

        Args:
            sizes: number of weights of every tensor, by name.

        Raises:
            ArtifactError: one is missing, superfluous or of another size.
        """
        mine = {name: math.prod(shape) for name, shape in self.shapes.items()}
        if mine != dict(sizes):
            different = sorted(name for name in mine.keys() | dict(sizes).keys() if mine.get(name) != sizes.get(name))
            raise ArtifactError(
                f"{len(different)} tensors do not fit the architecture: {', '.join(different[:4])[:300]}",
                where=self.where,
                fix="config.json and model.safetensors must come from one artifact: copy the directory anew",
            )

    def artifact(self) -> Artifact:
        """Decodes the streams; raises as `groups`."""
        return Artifact(
            stage=self.stage,
            groups=self.groups(),
            pools=self.pools,
            source=self.source,
            sizes=self.sizes,
            overhead_bytes=self.overhead_bytes,
        )

    def groups(self) -> tuple[EncodedGroup, ...]:
        """Returns the groups with their streams; raises as `each_group`."""
        return tuple(self.each_group())

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """As `Artifact.tensors`, but the streams are decoded as they are needed, one group's at a time.

        Raises:
            ArtifactError: as `each_group` and `Artifact.tensors`.
        """
        for group in self.each_group():
            yield from decoders.decode(group)

    def each_group(self) -> Iterator[EncodedGroup]:
        """Yields one group after the other with its streams.

        Raises:
            ArtifactError: a pool is not what its coding says.
        """
        pools, position = iter(self.pools), self.overhead_bytes  # group by group, as `_check_pools` has made sure
        for index, group in enumerate(self._groups):
            values: dict[tuple[str, bool, int], np.ndarray] = {}
            for pool in islice(pools, len(pool_sizes([group.layout]))):
                blob = self._raw.part(position, pool.size_bytes)
                if zlib.crc32(blob) != pool.crc:
                    raise ArtifactError("the file was altered while it was read", where=self.where, fix=_COPY_ANEW)
                try:
                    run = entropy.decode(pool.coding, blob, pool.bits, pool.count)
                except ArtifactError as error:
                    raise ArtifactError(
                        f"pool {pool.role!r} of group {index}: {error.what}", where=self.where, fix=_WRITE_ANEW
                    ) from error
                values[pool.role, pool.shared, pool.bits] = run
                position += pool.size_bytes
            yield _with_streams(group, values)


def _with_streams(group: _Group, values: dict[tuple[str, bool, int], np.ndarray]) -> EncodedGroup:
    """Cuts the pools of a group, by role, shared and bits, into its streams."""
    taken = dict.fromkeys(values, 0)

    def take(shared: bool, sizes: Sizes) -> dict[str, Stream]:
        streams = {}
        for role, (count, bits) in sizes.items():
            key = role, shared, bits
            begin = taken[key]
            taken[key] = begin + count
            streams[role] = Stream(values=values[key][begin : begin + count], bits=bits)
        return streams

    return EncodedGroup(
        codec=group.codec,
        settings=group.settings,
        shared=take(True, group.layout.shared),
        tensors={
            name: EncodedTensor(shape=shape, streams=take(False, group.layout.tensors[name]))
            for name, shape in group.shapes.items()
        },
    )


def pool_sizes(layouts: list[Layout]) -> dict[tuple[int, str, bool, int], int]:
    """Returns how many values each pool holds, by (group, role, shared, bits), in the order of the payload.

    Group by group, the shared streams first; a pool stands where the first of its streams does.
    """
    sizes: dict[tuple[int, str, bool, int], int] = {}
    for index, layout in enumerate(layouts):
        for shared, parts in ((True, [layout.shared]), (False, layout.tensors.values())):
            for part in parts:
                for role, (count, bits) in part.items():
                    key = index, role, shared, bits
                    sizes[key] = sizes.get(key, 0) + count
    return sizes


def read_artifact(
    directory: Path | str, *, expected: Mapping[str, int] | None = None, max_parameters: int = MAX_PARAMETERS
) -> Artifact:
    """Reads and checks an artifact.

    Args:
        directory: where its files lie.
        expected: weights per tensor, as `Manifest.require` takes them; None accepts any architecture.
        max_parameters: refuse more than these.

    Raises:
        ArtifactError: it is missing, truncated, altered, or not of this format; the message says which.
    """
    outline = None if expected is None else Outline(len(expected), sum(expected.values()))
    manifest = read_manifest(directory, outline=outline, max_parameters=max_parameters)
    if expected is not None:
        manifest.require(expected)
    return manifest.artifact()


def read_manifest(
    directory: Path | str, *, outline: Outline | None = None, max_parameters: int = MAX_PARAMETERS
) -> Manifest:
    """Reads an artifact's file and checks everything that can be checked without decoding a stream.

    Args:
        directory: where its files lie.
        outline: how much there must be in it, where that is known: it bounds the manifest's size.
        max_parameters: refuse more than these.

    Raises:
        ArtifactError: as `read_artifact`.
    """
    directory = Path(directory)
    path = directory / WEIGHTS_FILE
    if not path.is_file():
        raise ArtifactError(
            f"there is no {WEIGHTS_FILE} here", where=str(directory), fix="name the directory of one artifact"
        )
    raw = _RawFile(path)
    if raw.size > MAX_FILE_BYTES:
        raise ArtifactError(f"the file is larger than the {MAX_FILE_BYTES:,} bytes allowed here", where=str(path))
    sizes = {name: (directory / name).stat().st_size for name in COUNTED_FILES if (directory / name).is_file()}
    return _parse(raw, where=str(path), outline=outline, max_parameters=max_parameters, sizes=sizes)


def parse(
    raw: bytes, *, where: str = "", outline: Outline | None = None, max_parameters: int = MAX_PARAMETERS
) -> Manifest:
    """As `read_manifest`, of a file that is in memory."""
    return _parse(_Raw(raw), where=where, outline=outline, max_parameters=max_parameters, sizes={})


def _parse(
    raw: _Raw | _RawFile, *, where: str, outline: Outline | None, max_parameters: int, sizes: dict[str, int]
) -> Manifest:
    content, front_bytes = _front(raw, where, outline)
    try:
        groups, source, stage, pools = _check(content, raw, front_bytes, where, max_parameters)
        if outline is not None:
            found = Outline(sum(len(group.shapes) for group in groups), source["parameters"])
            if found != outline:
                raise ValueError(f"the architecture has {outline}, the file {found}")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = f"the manifest is malformed: {type(error).__name__}: {str(error)[:200]}"
        raise ArtifactError(what, where=where, fix=_WRITE_ANEW) from error
    return Manifest(
        where=where,
        stage=stage,
        source=source,
        pools=pools,
        overhead_bytes=front_bytes,
        sizes=sizes,
        _groups=groups,
        _raw=raw,
    )


def strict_json(text: bytes) -> Any:
    """Parses JSON that names no key twice and holds no NaN or infinity.

    Raises:
        ValueError: it is not such JSON (also for nesting deeper than the parser goes).
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key occurs twice")
        return found

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _front(raw: _Raw | _RawFile, where: str, outline: Outline | None) -> tuple[dict[str, Any], int]:
    """Reads what stands before the payload of a safetensors file: the manifest, and how many bytes all of it takes."""
    if raw.size < 8:
        raise ArtifactError("the file is too short to be an artifact", where=where, fix=_COPY_ANEW)
    (header_bytes,) = struct.unpack("<Q", raw.part(0, 8))
    longest_text = None if outline is None else _TEXT_PER_TENSOR * (outline.tensors + 4) + outline.weights
    longest = MAX_HEADER_BYTES if longest_text is None else min(MAX_HEADER_BYTES, _HEADER_BASE + longest_text)
    if header_bytes > min(raw.size - 8, longest):
        raise ArtifactError("the header is longer than the file, or than any header", where=where, fix=_COPY_ANEW)
    payload_bytes = raw.size - 8 - header_bytes
    try:
        front = bytes(raw.part(8, header_bytes))
        if _parts(front) > _HEADER_PARTS:
            raise ValueError("more parts than such a header has")
        header = strict_json(front)
        del front
        metadata, entry = header["__metadata__"], header["payload"]
        begin, end = entry["data_offsets"]
        kind, version, crc = metadata["format"], metadata["version"], metadata["manifest_crc32"]
        deflated = base64.b64decode(metadata["manifest"].encode("ascii"), validate=True)
        natural = all(type(n) is int and n >= 0 for n in (begin, end, *entry["shape"]))
        well_formed = natural and entry["dtype"] == "U8" and begin == 0 and entry["shape"] == [end]
        if kind != FORMAT or not well_formed or header.keys() != {"__metadata__", "payload"}:
            raise ValueError("format")
    except binascii.Error as error:
        raise ArtifactError("the manifest is damaged (base64)", where=where, fix=_COPY_ANEW) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            "this is not a phase8 artifact", where=where, fix="name a directory that this tool wrote"
        ) from error
    if version != str(VERSION):
        raise ArtifactError(
            f"the artifact has format version {str(version)[:20]}, this program reads {VERSION}",
            where=where,
            fix="update phase8, or write the artifact anew",
        )
    if payload_bytes != end:
        raise ArtifactError(f"the payload has {payload_bytes} of {end} bytes", where=where, fix=_COPY_ANEW)
    try:
        limit, parts = _TEXT_BASE + _TEXT_GAIN * len(deflated), _PARTS_BASE + _PARTS_GAIN * len(deflated)
        if outline is not None and longest_text is not None:
            limit = min(limit, longest_text)
            parts = min(parts, _PARTS_PER_TENSOR * (outline.tensors + 1) + outline.weights // 16)
        inflater = zlib.decompressobj()
        text = inflater.decompress(deflated, limit)
        if not inflater.eof or inflater.unused_data or str(zlib.crc32(text)) != crc:
            raise ValueError("checksum")
        if _parts(text) > parts:
            raise ValueError("more parts than such a manifest has")
        manifest = strict_json(text)
        if not isinstance(manifest, dict):
            raise ValueError("not an object")
    except (ValueError, zlib.error) as error:
        raise ArtifactError("the manifest is damaged (checksum)", where=where, fix=_COPY_ANEW) from error
    return manifest, 8 + header_bytes


def _parts(text: bytes) -> int:
    """Bounds the memory that a JSON text takes when it is parsed: some 64 bytes a part; a dictionary counts as four."""
    return text.count(b",") + text.count(b"[") + 4 * text.count(b"{")


def _natural(value: Any, limit: int) -> int:
    if type(value) is not int or not 0 <= value <= limit:
        raise ValueError(f"{str(value)[:40]} is not a whole number from 0 to {limit}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text is needed, not {type(value).__name__}")
    return value


def _keys(value: Any, *names: str) -> list[Any]:
    if not isinstance(value, dict) or value.keys() != set(names):
        raise ValueError(f"an object with {', '.join(names)} is needed")
    return [value[name] for name in names]


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"a list is needed, not {type(value).__name__}")
    return value


def _check(
    content: dict[str, Any], raw: _Raw | _RawFile, front_bytes: int, where: str, most: int
) -> tuple[tuple[_Group, ...], dict[str, Any], str, tuple[Pool, ...]]:
    stage, source, listed, pools = _keys(content, "stage", "source", "groups", "pools")
    groups, names, parameters = [], set(), 0
    for entry in _list(listed):
        group = _check_group(entry)
        for name, shape in group.shapes.items():
            if name in names:
                raise ValueError(f"the tensor {name!r} occurs twice")
            names.add(name)
            parameters += size_of(shape, name)
        groups.append(group)
    if not isinstance(source, dict) or parameters != _natural(source["parameters"], MAX_PARAMETERS):
        raise ArtifactError(f"the manifest does not promise the {parameters} parameters that it lists", where=where)
    if parameters > most:
        raise ArtifactError(
            f"the artifact holds {parameters:,} weights, more than the {most:,} allowed here",
            where=where,
            fix="raise max_parameters if you expect so large a model",
        )
    return tuple(groups), source, _text(stage), _check_pools(_list(pools), groups, raw, front_bytes, where)


def _check_group(entry: Any) -> _Group:
    """Reads one group and compares the streams that it lists with those that its codec says it must have."""
    codec, settings, shared, tensors = _keys(entry, "codec", "settings", "shared", "tensors")
    if not isinstance(settings, dict):
        raise TypeError("settings must be an object")
    shapes, own = {}, {}
    for name, shape, streams in _list(tensors):
        if _text(name) in shapes:
            raise ValueError(f"the tensor {name!r} occurs twice")
        shapes[name] = tuple(_list(shape))
        own[name] = _sizes(streams)
    wanted = decoders.layout(_text(codec), settings, shapes)
    listed = Layout(shared=_sizes(shared), tensors=own)
    if listed != wanted:
        raise ValueError(f"the streams of a {codec} group are not those that its settings and shapes ask for")
    # `listed` is equal to `wanted` and in the order of the file, which is the order of the values in the pools.
    return _Group(codec=codec, settings=settings, shapes=shapes, layout=listed)


def _sizes(streams: Any) -> Sizes:
    sizes: Sizes = {}
    for role, bits, count in _list(streams):
        if _text(role) in sizes:
            raise ValueError(f"the stream {role!r} occurs twice")
        if type(bits) is not int or type(count) is not int:
            raise TypeError("bits and count must be whole numbers")
        sizes[role] = count, bits
    return sizes


def _check_pools(
    listed: list[Any], groups: list[_Group], raw: _Raw | _RawFile, front_bytes: int, where: str
) -> tuple[Pool, ...]:
    wanted = pool_sizes([group.layout for group in groups])
    if len(listed) != len(wanted):
        raise ValueError(f"{len(listed)} pools where the groups need {len(wanted)}")
    pools, position = [], front_bytes
    for entry, (key, needed) in zip(listed, wanted.items(), strict=True):
        index, role, shared, bits, count, coding, size, crc = _list(entry)
        numbers = all(type(value) is int for value in (index, shared, bits, count))
        if not numbers or (index, role, shared, bits, count) != (*key, needed):
            raise ValueError(f"pool {str(entry)[:80]} where {(*key, needed)} must be")
        if _checksum(raw, position, _natural(size, raw.size - position)) != crc or type(crc) is not int:
            what = f"pool {role!r} of group {index} is damaged (checksum)"
            raise ArtifactError(what, where=where, fix="copy the file anew")
        position += size
        pools.append(
            Pool(
                group=index,
                role=role,
                shared=bool(shared),
                bits=bits,
                count=count,
                coding=_text(coding),
                size_bytes=size,
                crc=crc,
            )  # fmt: skip
        )
    if position != raw.size:
        raise ValueError("the pools do not cover the payload")
    return tuple(pools)


def _checksum(raw: _Raw | _RawFile, begin: int, size: int) -> int:
    crc, end = 0, begin + size
    for place in range(begin, end, _CHECKED_AT_ONCE):
        crc = zlib.crc32(raw.part(place, min(_CHECKED_AT_ONCE, end - place)), crc)
    return crc
