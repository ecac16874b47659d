"""What a manifest may say: every field of a type, every count the one that settings and shapes ask for, every cost
within the budget. `docs/format.md`, section 3.

Example: a group of one 8 x 3 matrix under VPTQ with vectors of 4 has 6 indices; a manifest that lists 7, or a pool of
7, is refused here, before a byte of the payload is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from phase8.artifact.raw import Raw, checksum
from phase8.codecs import decoders
from phase8.codecs.streams import Layout, Sizes, size_of
from phase8.errors import ArtifactError
from phase8.limits import Budget
from phase8.lossless.bitpack import packed_bytes

WEIGHTS_FILE = "model.safetensors"
_LONGEST_NAME = 256


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """A group as the manifest describes it; the order of roles is the order of the values in the pools."""

    codec: str
    settings: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    layout: Layout


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


def natural(value: Any, limit: int) -> int:
    if type(value) is not int or not 0 <= value <= limit:
        raise ValueError(f"{str(value)[:40]} is not a whole number from 0 to {limit}")
    return value


def text_of(value: Any) -> str:
    """A name: printable ASCII, so that it can be shown anywhere, and not long."""
    if not isinstance(value, str):
        raise TypeError(f"text is needed, not {type(value).__name__}")
    if not (value.isascii() and value.isprintable() and 0 < len(value) <= _LONGEST_NAME):
        raise ValueError(f"{value[:40]!r} is no name of 1 to {_LONGEST_NAME} printable ASCII characters")
    return value


def keys_of(value: Any, *names: str) -> list[Any]:
    if not isinstance(value, dict) or value.keys() != set(names):
        raise ValueError(f"an object with {', '.join(names)} is needed")
    return [value[name] for name in names]


def list_of(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"a list is needed, not {type(value).__name__}")
    return value


def check_groups(listed: list[Any], source: Any, budget: Budget, where: str) -> tuple[Group, ...]:
    """Reads the groups, and spends what decoding them will cost."""
    groups: list[Group] = []
    names: set[str] = set()
    weights = operations = 0
    for entry in listed:
        group = _check_group(entry)
        for name, shape in group.shapes.items():
            if name in names:
                raise ValueError(f"the tensor {name!r} occurs twice")
            names.add(name)
            size = size_of(shape, name)
            weights += size
            budget.spend("weights", size)
        streams = [group.layout.shared, *group.layout.tensors.values()]
        budget.spend("values", sum(count for sizes in streams for count, _ in sizes.values()))
        budget.spend("steps", group.layout.steps)
        if group.layout.table > budget.most("table"):  # one group's is held at a time
            budget.spend("table", group.layout.table)
        operations += group.layout.operations
        groups.append(group)
    budget.spend("operations", operations, weights=weights)
    if not isinstance(source, dict) or weights != natural(source["parameters"], budget.limits.max_weights):
        raise ArtifactError(f"the manifest does not promise the {weights} parameters that it lists", where=where)
    return tuple(groups)


def check_files(listed: list[Any]) -> dict[str, tuple[int, int]]:
    """Reads what the manifest says of the files beside it: length and CRC-32 by name."""
    files: dict[str, tuple[int, int]] = {}
    for entry in listed:
        name, size, crc = list_of(entry)
        parts = text_of(name).split("/")
        if name in files or name == WEIGHTS_FILE or "\\" in name or any(part in ("", ".", "..") for part in parts):
            raise ValueError(f"{name!r} is no name of a file beside {WEIGHTS_FILE}")
        files[name] = natural(size, 1 << 32), natural(crc, (1 << 32) - 1)
    return files


def _check_group(entry: Any) -> Group:
    """Reads one group and compares the streams that it lists with those that its codec says it must have."""
    codec, settings, shared, tensors = keys_of(entry, "codec", "settings", "shared", "tensors")
    if not isinstance(settings, dict):
        raise TypeError("settings must be an object")
    shapes, own = {}, {}
    for name, shape, streams in list_of(tensors):
        if text_of(name) in shapes:
            raise ValueError(f"the tensor {name!r} occurs twice")
        shapes[name] = tuple(list_of(shape))
        own[name] = _sizes(streams)
    wanted = decoders.layout(text_of(codec), settings, shapes)
    listed = replace(wanted, shared=_sizes(shared), tensors=own)
    if listed != wanted:
        raise ValueError(f"the streams of a {codec} group are not those that its settings and shapes ask for")
    # `listed` is equal to `wanted` and in the order of the file, which is the order of the values in the pools.
    return Group(codec=codec, settings=settings, shapes=shapes, layout=listed)


def _sizes(streams: Any) -> Sizes:
    sizes: Sizes = {}
    for role, bits, count in list_of(streams):
        if text_of(role) in sizes:
            raise ValueError(f"the stream {role!r} occurs twice")
        if type(bits) is not int or type(count) is not int:
            raise TypeError("bits and count must be whole numbers")
        sizes[role] = count, bits
    return sizes


def check_pools(listed: list[Any], groups: list[Group], raw: Raw, front_bytes: int, where: str) -> tuple[Pool, ...]:
    wanted = pool_sizes([group.layout for group in groups])
    if len(listed) != len(wanted):
        raise ValueError(f"{len(listed)} pools where the groups need {len(wanted)}")
    pools, position = [], front_bytes
    for entry, (key, needed) in zip(listed, wanted.items(), strict=True):
        index, role, shared, bits, count, coding, size, crc = list_of(entry)
        numbers = all(type(value) is int for value in (index, shared, bits, count))
        if not numbers or (index, role, shared, bits, count) != (*key, needed):
            raise ValueError(f"pool {str(entry)[:80]} where {(*key, needed)} must be")
        longest = packed_bytes(count, bits)  # any other coding is shorter, or would not have been taken
        if natural(size, raw.size - position) > longest or (size < longest and coding == "packed"):
            raise ValueError(f"pool {role!r} of group {index} has {size} bytes, packed it would have {longest}")
        if checksum(raw, position, size) != crc or type(crc) is not int:
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
                coding=text_of(coding),
                size_bytes=size,
                crc=crc,
            )  # fmt: skip
        )
    if position != raw.size:
        raise ValueError("the pools do not cover the payload")
    return tuple(pools)
