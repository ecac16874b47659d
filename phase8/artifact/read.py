"""The compressed model's file, read as if it came from an enemy. `docs/format.md` is the specification.

A directory with `model.safetensors` (this format), `config.json` and the tokenizer's files. `model.safetensors` is an
ordinary safetensors file with one uint8 tensor, `payload`. Its metadata say `format=phase8`, the format version, and
the manifest: JSON, deflated, base64. The manifest lists

- `groups`: codec, settings, and per tensor its name, shape and streams (role, bits, count);
- `pools`: all streams of one role and width within a group, one after the other, coded together by the entropy coder
  or packed plainly, whichever is smaller; each with its coding, length in bytes and CRC-32;
- `files`: length and CRC-32 of every other file of the artifact;
- `source`: the hash and the parameter count of the model that was compressed.

A worked example: a VPTQ group of two matrices with 4 and 6 indices of 8 bits has one pool `index_0` with 10 values.
If its coded form is not smaller than 10 bytes it is stored packed, as these 10 bytes.

Reading takes two steps. `read_manifest` inflates the manifest, works out from the codecs' settings and the tensors'
shapes which streams there must be and what decoding them costs, compares every count with that and every cost with the
budget of the file's length (`phase8.limits`), and checks every checksum, those of the files beside it too: nothing has
been decoded yet, and `Manifest.require` can hold the tensors against those that the caller expects. `Manifest.artifact`
then decodes the pools. So no number in the file decides alone how much memory or time is taken.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from phase8.artifact.check import (
    WEIGHTS_FILE,
    Group,
    Pool,
    check_files,
    check_groups,
    check_pools,
    keys_of,
    list_of,
    pool_sizes,
    text_of,
)
from phase8.artifact.front import FORMAT, VERSION, read_front
from phase8.artifact.raw import COPY_ANEW, Raw, RawBytes, RawFile, checksum, strict_json
from phase8.codecs import decoders
from phase8.codecs.streams import EncodedGroup, EncodedTensor, Sizes, Stream
from phase8.errors import ArtifactError
from phase8.limits import Budget, Limits
from phase8.lossless import entropy

__all__ = [
    "COUNTED_FILES", "FORMAT", "VERSION", "WEIGHTS_FILE", "Artifact", "Manifest", "Outline", "Pool", "parse",
    "pool_sizes", "read_artifact", "read_manifest", "strict_json",
]  # fmt: skip

COUNTED_FILES = (WEIGHTS_FILE, "config.json", "generation_config.json")
"""Files whose bytes are the artifact's size. Tokenizer files lie beside them and are listed, not counted."""
MEANINGFUL = (
    "adapter_", "added_tokens", "additional_chat_templates/", "chat_template", "config", "generation_config", "merges",
    "sentencepiece", "special_tokens", "spiece", "tokenizer", "vocab",
)  # fmt: skip
"""How the names of files begin that a model's loader reads: one that the manifest does not vouch for is refused."""
_WRITE_ANEW = "the file was altered, or written by a faulty program: write it anew"


class Outline(NamedTuple):
    """How much an architecture holds: enough to refuse a file of another one before either is laid out."""

    tensors: int
    weights: int


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


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A checked file whose streams are still coded."""

    where: str
    stage: str
    source: dict[str, Any]
    files: dict[str, tuple[int, int]]
    """Length and CRC-32 of every file of the artifact beside this one, by name."""
    pools: tuple[Pool, ...]
    overhead_bytes: int
    sizes: dict[str, int]
    """Bytes of each counted file, by name; empty where the file came from memory."""
    _groups: tuple[Group, ...]
    _raw: Raw

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor by name."""
        return {name: shape for group in self._groups for name, shape in group.shapes.items()}

    def check_files(self, directory: Path) -> None:
        """Holds the files beside this one against what the manifest says of them.

        Raises:
            ArtifactError: one is missing or altered, or one that loaders read is not among them.
        """
        for name in self.files:
            path = directory / name
            if not path.is_file():
                raise ArtifactError(f"the artifact's {name} is missing", where=str(directory), fix=COPY_ANEW)
            self._vouch(name, RawFile(path), str(path))
        templates = directory / "additional_chat_templates"
        for path in (*directory.iterdir(), *(templates.iterdir() if templates.is_dir() else ())):
            name = path.relative_to(directory).as_posix()
            if name.startswith(MEANINGFUL) and path.is_file() and name not in self.files:
                raise ArtifactError(
                    f"{name!r} is no part of the artifact, but programs that open it would read it",
                    where=str(directory),
                    fix="move it elsewhere; what belongs to the model is written with it",
                )

    def vouch(self, name: str, content: bytes, where: str = "") -> None:
        """As `check_files`, for one file that is in memory."""
        if name not in self.files:
            raise ArtifactError(f"{name!r} is no part of the artifact", where=where or self.where, fix=COPY_ANEW)
        self._vouch(name, RawBytes(content), where or self.where)

    def _vouch(self, name: str, raw: Raw, where: str) -> None:
        size, crc = self.files[name]
        if raw.size != size or checksum(raw, 0, size) != crc:
            raise ArtifactError(
                f"{name} is not the file that the artifact was written with", where=where, fix=COPY_ANEW
            )

    def require_outline(self, outline: Outline) -> None:
        """As `require`, from two numbers: for an architecture that is not laid out yet.

        Raises:
            ArtifactError: the artifact has another number of tensors or weights.
        """
        found = Outline(len(self.shapes), self.source["parameters"])
        if found != outline:
            raise ArtifactError(
                f"the architecture has {outline.tensors:,} tensors and {outline.weights:,} weights, "
                f"the file {found.tensors:,} and {found.weights:,}",
                where=self.where,
                fix="config.json and model.safetensors must come from one artifact: copy the directory anew",
            )

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
                    raise ArtifactError("the file was altered while it was read", where=self.where, fix=COPY_ANEW)
                try:
                    run = entropy.decode(pool.coding, blob, pool.bits, pool.count)
                except ArtifactError as error:
                    raise ArtifactError(
                        f"pool {pool.role!r} of group {index}: {error.what}", where=self.where, fix=_WRITE_ANEW
                    ) from error
                values[pool.role, pool.shared, pool.bits] = run
                position += pool.size_bytes
            yield _with_streams(group, values)


def _with_streams(group: Group, values: dict[tuple[str, bool, int], np.ndarray]) -> EncodedGroup:
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


def read_artifact(
    directory: Path | str, *, expected: Mapping[str, int] | None = None, limits: Limits | None = None
) -> Artifact:
    """Reads and checks an artifact.

    Args:
        directory: where its files lie.
        expected: weights per tensor, as `Manifest.require` takes them; None accepts any architecture.
        limits: what opening it may cost; None takes those of `phase8.limits.Limits`.

    Raises:
        ArtifactError: it is missing, truncated, altered, or not of this format; the message says which.
    """
    manifest = read_manifest(directory, limits=limits)
    if expected is not None:
        manifest.require(expected)
    return manifest.artifact()


def read_manifest(directory: Path | str, *, limits: Limits | None = None) -> Manifest:
    """Reads an artifact's file and checks everything that can be checked without decoding a stream, the checksums of
    the files beside it among that.

    Args:
        directory: where its files lie.
        limits: as for `read_artifact`.

    Raises:
        ArtifactError: as `read_artifact`.
    """
    directory, limits = Path(directory), limits or Limits()
    path = directory / WEIGHTS_FILE
    if not path.is_file():
        raise ArtifactError(
            f"there is no {WEIGHTS_FILE} here", where=str(directory), fix="name the directory of one artifact"
        )
    raw = RawFile(path)
    if raw.size > limits.max_file_bytes:
        raise ArtifactError(
            f"the file is larger than the {limits.max_file_bytes:,} bytes allowed here",
            where=str(path),
            fix="if you trust it, open it with a higher `max_file_bytes` in phase8.limits.Limits",
        )
    sizes = {name: (directory / name).stat().st_size for name in COUNTED_FILES if (directory / name).is_file()}
    manifest = _parse(raw, where=str(path), limits=limits, sizes=sizes)
    manifest.check_files(directory)
    return manifest


def parse(raw: bytes, *, where: str = "", limits: Limits | None = None) -> Manifest:
    """As `read_manifest`, of a file that is in memory; the files beside it are the caller's to check."""
    return _parse(RawBytes(raw), where=where, limits=limits or Limits(), sizes={})


def _parse(raw: Raw, *, where: str, limits: Limits, sizes: dict[str, int]) -> Manifest:
    budget = Budget(limits, raw.size, where)
    content, front_bytes = read_front(raw, where, budget)
    try:
        stage, source, listed, files, pools = keys_of(content, "stage", "source", "groups", "files", "pools")
        groups = check_groups(list_of(listed), source, budget, where)
        return Manifest(
            where=where,
            stage=text_of(stage),
            source=source,
            files=check_files(list_of(files)),
            pools=check_pools(list_of(pools), groups, raw, front_bytes, where),
            overhead_bytes=front_bytes,
            sizes=sizes,
            _groups=groups,
            _raw=raw,
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = f"the manifest is malformed: {type(error).__name__}: {str(error)[:200]}"
        raise ArtifactError(what, where=where, fix=_WRITE_ANEW) from error
