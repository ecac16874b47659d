"""Writes artifacts from nothing that are right in every checksum and count, and cost as much as a small file can.

    python -m experiments.forge                            # 400 forgeries -> experiments/results/forge.{md,json}

`experiments.fuzz` changes honest files; this is the other hand: somebody who knows the format, and chooses settings and
shapes so that little is stored and much has to be done. One matrix of 268 million weights under six coefficients; 57
shift registers of 20 bits for 266 weights; sixteen codebooks under vectors of one;
stacks of 256 layers; streams of one symbol, of which the entropy coder writes a million in a dozen bytes; thousands of
tensors of one weight; manifests of brackets; lattices whose coded decisions are one byte, a million times; lattices
whose matrices share the integers of one that is not there, of each other in a circle, or of one thousands of times.
Sizes are drawn on both sides of what `phase8.limits` allows, so that files just below a budget are among them: what
these take is what a file of that length can take at most.

Measured are the processor time and the memory (`tracemalloc`: Python's objects and numpy's arrays) that it takes to get
from the file's bytes to all weights, held together as a network holds them.
"""

from __future__ import annotations

import argparse
import base64
import json
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from phase8.artifact.check import pool_sizes
from phase8.artifact.read import VERSION, parse
from phase8.codecs import decoders
from phase8.errors import ArtifactError
from phase8.files import write_atomic
from phase8.lossless import contexts, entropy

RESULTS = Path(__file__).parent / "results"
SECONDS_LIMIT, PEAK_LIMIT = 10.0, 192 << 20
"""What no file of a few kilobytes may take: on one core, and of memory."""
MOST_VALUES = 1 << 23
"""Streams longer than this are claimed but not written: they are beyond every budget of so short a file."""

Draw = np.random.Generator


class Group(NamedTuple):
    """A group to forge."""

    codec: str
    settings: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    streams: dict[str, np.ndarray] = {}
    """Values of streams by role, where one value throughout would not do."""
    written: tuple[dict[str, Any], dict[str, tuple[int, ...]]] | None = None
    """Settings and shapes that the manifest states in place of those that its streams are counted by: for what no
    layout takes."""


class Forgery(NamedTuple):
    """One forged file."""

    family: str
    raw: bytes
    what: str


class Seen(NamedTuple):
    """What opening it did."""

    family: str
    what: str
    size: int
    outcome: str
    seconds: float
    peak_bytes: int


def _blob(bits: int, count: int, value: int | np.ndarray) -> tuple[str, bytes]:
    """A run of one value (or the values given), in as few bytes as the format has for it."""
    if count > MOST_VALUES:
        return "ans", b"\0" * 12
    if isinstance(value, np.ndarray):
        return entropy.encode(np.resize(value, count).astype(np.uint32 if bits > 16 else np.uint16), bits)
    return entropy.encode(np.full(count, value, dtype=np.uint32 if bits > 16 else np.uint16), bits)


def put_together(groups: list[Group], value: Callable[[str, int], int], note: Any = None) -> bytes:
    """A file whose manifest, streams and checksums agree; every value of a stream is `value(role, bits)`, if the group
    does not say more."""
    listed, layouts = [], []
    for codec, settings, shapes, _, written in groups:
        layout = decoders.layout(codec, settings, shapes)
        layouts.append(layout)
        own = {name: [[role, bits, n] for role, (n, bits) in sizes.items()] for name, sizes in layout.tensors.items()}
        shared = [[role, bits, n] for role, (n, bits) in layout.shared.items()]
        settings, shapes = written or (settings, shapes)
        tensors = [[name, list(shape), own[name]] for name, shape in shapes.items()]
        listed.append({"codec": codec, "settings": settings, "shared": shared, "tensors": tensors})
    pools, payload = [], b""
    for (index, role, shared, bits), count in pool_sizes(layouts).items():
        coding, blob = _blob(bits, count, groups[index].streams.get(role, value(role, bits)))
        pools.append([index, role, int(shared), bits, count, coding, len(blob), zlib.crc32(blob)])
        payload += blob
    weights = sum(int(np.prod(shape, dtype=object)) for group in groups for shape in group.shapes.values())
    source = {"hash": "", "parameters": weights} | ({} if note is None else {"note": note})
    manifest = {"stage": "hyper", "source": source, "files": [], "groups": listed, "pools": pools}
    text = json.dumps(manifest, separators=(",", ":")).encode()
    metadata = {
        "format": "phase8", "version": str(VERSION), "manifest": base64.b64encode(zlib.compress(text, 9)).decode(),
        "manifest_crc32": str(zlib.crc32(text)),
    }  # fmt: skip
    entry = {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}
    front = json.dumps({"__metadata__": metadata, "payload": entry}).encode()
    return struct.pack("<Q", len(front)) + front + payload


def _valid(role: str, bits: int) -> int:
    """A value that every decoder takes: float16 1.0 for scales and steps, 1 for seeds, 0 for what must be small."""
    if role in ("scale", "side", "shrink", "step") or role.endswith(("_step", "_gain")):
        return 0x3C00 if bits == 16 else 1
    return 1 if role == "seeds" else 0


def _around(draw: Draw, middle: float, most: int) -> int:
    """A size from an eighth of the middle to eight times it, evenly in its logarithm."""
    return int(np.clip(middle * 8 ** draw.uniform(-1, 1), 1, most))


def _matrix(draw: Draw, weights: int) -> tuple[int, int]:
    rows = max(1, int(weights ** draw.uniform(0, 1)))
    return rows, max(1, weights // rows)


def _series(draw: Draw) -> list[Group]:
    kind, whole = ["polynomial", "fourier"][draw.integers(2)], bool(draw.random() < 0.5)
    length = 0 if whole else int(2 ** draw.integers(4, 24))
    degree = int(draw.integers(0, 1025)) if whole else int(draw.integers(0, min(1024, (length - 1) // 2, 64) + 1))
    settings = {"trajectory": kind, "degree": degree, "block_size": length, "coefficient_bits": 8, "exponent": 0}
    return [Group("hyper", settings, {"a": _matrix(draw, _around(draw, 2**22, 2**28))})]


def _registers(draw: Draw) -> list[Group]:
    bits = int(draw.integers(16, 21))
    extent = int(draw.integers(1, 8))
    settings = {"latent_dim": 1, "bits": 4, "seed_bits": bits, "exponent_bits": 4}
    count = _around(draw, 8, 60)
    return [Group("seedlm", {**settings, "block_size": extent + n}, {f"a{n}": (2, 2)}) for n in range(count)]


def _long_blocks(draw: Draw) -> list[Group]:
    latent = int(2 ** draw.integers(0, 7))
    settings = {"block_size": int(draw.integers(latent, 4097)), "latent_dim": latent, "bits": 1, "seed_bits": 8}
    return [Group("seedlm", {**settings, "exponent_bits": 2}, {"a": _matrix(draw, _around(draw, 2**21, 2**26))})]


def _codebooks(draw: Draw) -> list[Group]:
    v = int(2 ** draw.integers(0, 11))
    settings: dict[str, Any] = {
        "vector_dim": v,
        "codebook_sizes": [int(2 ** draw.integers(1, 9))] * draw.integers(1, 17),
    }
    settings["codebook_bits"] = [8, 16][draw.integers(2)]
    rows = int(draw.integers(1, 9))
    return [Group("vptq", settings, {"a": (rows, _around(draw, 2**20, 2**26))})]


def _winding(draw: Draw) -> list[Group]:
    settings = {"trajectory": "ergodic", "dims": int(draw.integers(1, 1025)), "grid": 65535, "classes": 0}
    shape = _matrix(draw, _around(draw, 2**22, 2**27))
    return [Group("hyper", {**settings, "winding": "primes", "exponent": 0}, {"a": shape})]


def _manifold(draw: Draw) -> list[Group]:
    settings = {
        "trajectory": "manifold", "inputs": 32, "width": 64, "depth": int(draw.integers(1, 4)), "frequency": 1,
        "network_seed": 1, "block_size": int(2 ** draw.integers(6, 13)), "coefficient_bits": 2, "exponent": 0,
    }  # fmt: skip
    return [Group("hyper", settings, {"a": _matrix(draw, _around(draw, 2**21, 2**26))})]


def _stacks(draw: Draw) -> list[Group]:
    settings = {"trajectory": "polynomial", "degree": 64, "block_size": 0, "coefficient_bits": 2, "exponent": 0}
    members = int(draw.integers(2, 257))
    shape = _matrix(draw, max(1, _around(draw, 2**21, 2**26) // members))
    return [Group("hyper", {**settings, "axis": "depth"}, {f"m.{n}.w": shape for n in range(members)})]


def _zeros(draw: Draw) -> list[Group]:
    dtype = ["float16", "float32"][draw.integers(2)]
    return [Group("plain", {"dtype": dtype}, {"a": (_around(draw, 2**21, 2**27),)})]


def _many_tensors(draw: Draw) -> list[Group]:
    count = _around(draw, 1000, 8000)
    return [Group("plain", {"dtype": "float16"}, {f"{n}": (1,) for n in range(count)})]


def _many_groups(draw: Draw) -> list[Group]:
    settings = {"trajectory": "polynomial", "degree": 1, "block_size": 0, "coefficient_bits": 2, "exponent": 0}
    return [Group("hyper", settings, {f"{n}": (1, 2)}) for n in range(_around(draw, 200, 1000))]


def _lattice(codes: np.ndarray, extents: list[tuple[int, int]], shapes: list[tuple[int, int]], coded: int = 0) -> Group:
    settings = {"extents": [list(extent) for extent in extents], "coded_bytes": coded or codes.size}
    named = {str(n): shape for n, shape in enumerate(shapes)}
    return Group("lattice", settings, named, {"codes": codes})


def _lattice_codes_of_one_byte(draw: Draw) -> list[Group]:
    """Coded decisions that the entropy coder of the pool writes in a dozen bytes, whatever they claim to be long."""
    extent = _matrix(draw, _around(draw, 2**18, 2**24))
    coded = 1 + 4 * int(extent[0] * extent[1] * max(0.0, draw.uniform(-0.5, 1.2)))
    byte = np.array([int(draw.integers(1, 256))])
    return [_lattice(byte, [extent], [extent], coded)]


def _lattice_large_integers(draw: Draw) -> list[Group]:
    """Integers that take every decision there is, honestly coded; of larger matrices, only the beginning."""
    extent = _matrix(draw, _around(draw, 2**16, 2**26))
    integers = np.full(extent if extent[0] * extent[1] <= 2**15 else (128, 256), contexts.LARGEST)
    integers *= draw.choice([0, -1, 1], integers.shape, p=[0.1, 0.1, 0.8])
    if draw.random() < 0.5:
        integers = integers.clip(-17, 17)
    return [_lattice(np.frombuffer(contexts.encode([integers]), dtype=np.uint8), [extent], [extent])]


def _lattice_many_matrices(draw: Draw) -> list[Group]:
    """Matrices of one integer, each with all of numpy's calls."""
    count = _around(draw, 400, 3000)
    codes = np.frombuffer(contexts.encode([np.array([[contexts.LARGEST]])] * count), dtype=np.uint8)
    return [_lattice(codes, [(1, 1)] * count, [(1, 1)] * count)]


def _lattice_thin(draw: Draw) -> list[Group]:
    """Rows of few columns: a run of decisions each. All are zero, which takes a byte."""
    extent = (_around(draw, 2**14, 2**20), int(draw.integers(1, 4)))
    return [_lattice(np.array([int(draw.integers(1, 256))]), [extent], [extent], 1)]


def _lattice_wide(draw: Draw) -> list[Group]:
    """Two rows of very many columns, all but one of them empty, which is told column by column."""
    integers = np.zeros((2, _around(draw, 2**14, 2**19)), dtype=np.int64)
    integers[0, draw.integers(integers.shape[1])] = 1
    codes = np.frombuffer(contexts.encode([integers]), dtype=np.uint8)
    return [_lattice(codes, [integers.shape], [integers.shape])]


def _lattice_parts(draw: Draw) -> list[Group]:
    """A part of one integer in a matrix of millions; with a step of NaN, infinity, 0 or less, or an ordinary one."""
    shape = _matrix(draw, _around(draw, 2**22, 2**28))
    group = _lattice(np.frombuffer(contexts.encode([np.array([[1]])]), dtype=np.uint8), [(1, 1)], [shape])
    step = [0x3C00, 0x7E00, 0x7C00, 0x8000, 0xBC00][draw.integers(5)]
    return [group._replace(streams={**group.streams, "step": np.array([step])})]


WRONG_OWNERS: dict[str, Callable[[int, int], Any]] = {
    "itself": lambda n, count: n,
    "a later one": lambda n, count: n + 1,
    "one in a circle with it": lambda n, count: n ^ 1,
    "the one before it, which shares too": lambda n, count: n - 1,
    "one that is not there": lambda n, count: count + n,
    "one below the first": lambda n, count: -1 - n,
    "a truth value": lambda n, count: True,
    "a broken number": lambda n, count: 1.0,
    "a number beyond all": lambda n, count: 10**400,
    "a text": lambda n, count: "1",
    "nothing": lambda n, count: None,
    "a list": lambda n, count: [0],
}
"""Whose integers a matrix claims to have, by its number and how many matrices there are. All are to be refused."""
OTHER_SHAPE = "one of another shape"


def wrong_owner(kind: str, count: int, extent: tuple[int, int]) -> Group:
    """A lattice of so many matrices, the first two of which have integers of their own, the others claim another's."""
    codes = np.frombuffer(contexts.encode([np.ones(extent, dtype=np.int64)] * 2), dtype=np.uint8)
    shapes = {str(n): extent for n in range(count)}
    honest = {"extents": [list(extent)] * 2 + [0] * (count - 2), "coded_bytes": codes.size}
    if kind == OTHER_SHAPE:  # turned by a quarter
        listed, written = honest["extents"], {name: extent if int(name) < 2 else extent[::-1] for name in shapes}
    else:
        listed = [list(extent)] * 2 + [WRONG_OWNERS[kind](n, count) for n in range(2, count)]
        written = shapes
    return Group("lattice", honest, shapes, {"codes": codes}, ({**honest, "extents": listed}, written))


def _lattice_wrong_owners(draw: Draw) -> list[Group]:
    """Integers of itself, of a later matrix, in a circle, along a chain, of a matrix of another shape or of none."""
    kinds = [*WRONG_OWNERS, OTHER_SHAPE]
    extent = int(draw.integers(1, 20)), int(draw.integers(21, 40))
    return [wrong_owner(kinds[draw.integers(len(kinds))], 3 + _around(draw, 30, 3000), extent)]


def _lattice_of_one_matrix(draw: Draw) -> list[Group]:
    """One matrix of zeros, which takes a byte, and its integers again and again, in the corner of a claimed matrix."""
    count, extent = _around(draw, 100, 4000), _matrix(draw, _around(draw, 2**12, 2**22))
    shape = (min(extent[0] * int(draw.integers(1, 3)), 65536), extent[1])
    settings = {"extents": [list(extent)] + [0] * (count - 1), "coded_bytes": 1}
    byte = np.array([int(draw.integers(1, 256))])
    return [Group("lattice", settings, {str(n): shape for n in range(count)}, {"codes": byte})]


def _lattice_that_waits(draw: Draw) -> list[Group]:
    """All matrices with integers of their own first, then one more for each: all integers are held at once."""
    count, extent = _around(draw, 30, 500), _matrix(draw, _around(draw, 2**13, 2**20))
    codes = np.full(count, int(draw.integers(1, 256)))
    settings = {"extents": [list(extent)] * count + list(range(count)), "coded_bytes": count}
    return [Group("lattice", settings, {str(n): extent for n in range(2 * count)}, {"codes": codes})]


def _brackets(draw: Draw) -> Any:
    count = _around(draw, 5000, 200_000)
    return [[[]] * count, [{"": 0}] * (count // 4), " " * (40 * count), [0] * count][draw.integers(4)]


FAMILIES: dict[str, Callable[[Draw], list[Group]]] = {
    "series over a claimed matrix": _series,
    "a shift register for every group": _registers,
    "long blocks under few seeds": _long_blocks,
    "codebooks under claimed vectors": _codebooks,
    "winding": _winding,
    "manifold": _manifold,
    "stacks over depth": _stacks,
    "plain zeros": _zeros,
    "thousands of tensors": _many_tensors,
    "hundreds of groups": _many_groups,
    "lattice: codes of one byte": _lattice_codes_of_one_byte,
    "lattice: large integers": _lattice_large_integers,
    "lattice: hundreds of matrices": _lattice_many_matrices,
    "lattice: thin matrices": _lattice_thin,
    "lattice: wide matrices": _lattice_wide,
    "lattice: parts of claimed matrices": _lattice_parts,
    "lattice: integers of no matrix": _lattice_wrong_owners,
    "lattice: integers of one, again and again": _lattice_of_one_matrix,
    "lattice: integers that wait": _lattice_that_waits,
}
NEVER_READ = ("lattice: integers of no matrix",)
"""Families that are no files of the format, however small."""


def forge(draw: Draw, only: str = "") -> Forgery | None:
    """One forgery, of a family whose name begins with `only`; None where the settings are none of the format's."""
    names = [name for name in (*FAMILIES, "manifest of brackets") if name.startswith(only)]
    family = names[draw.integers(len(names))]
    if family == "manifest of brackets":
        note = _brackets(draw)
        return Forgery(family, put_together(_zeros(np.random.default_rng(0))[:0], _valid, note), f"{len(note):,} parts")
    groups = FAMILIES[family](draw)
    try:
        raw = put_together(groups, _valid)
    except ArtifactError:
        return None
    codec, settings, shapes, _, written = groups[0]
    settings, shapes = written or (settings, shapes)
    what = f"{len(groups)} x {codec} {str(settings)[:200]} {next(iter(shapes.values()))} x {len(shapes)}"
    return Forgery(family, raw, what)


def measure(forgery: Forgery) -> Seen:
    """Opens one forgery."""
    tracemalloc.start()
    begin = time.process_time()
    try:
        weights = dict(parse(forgery.raw).artifact().tensors())
        outcome = f"decoded: {sum(w.size for w in weights.values()):,} weights"
        del weights
    except ArtifactError as error:
        outcome = f"refused: {error.what}"
    seconds, peak = time.process_time() - begin, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return Seen(forgery.family, forgery.what, len(forgery.raw), outcome, seconds, peak)


def campaign(count: int, seed: int, only: str = "") -> list[Seen]:
    """So many forgeries, of families whose names begin with `only`; each can be made again from seed and number."""
    found: list[Seen] = []
    number = 0
    while len(found) < count:
        forgery = forge(np.random.default_rng([seed, number]), only)
        number += 1
        if forgery is not None:
            found.append(measure(forgery))
    return found


def as_markdown(found: list[Seen], seed: int, only: str = "") -> str:
    """The results as a page."""
    accepted = [one for one in found if one.outcome.startswith("decoded")]
    slowest, largest = max(found, key=lambda one: one.seconds), max(found, key=lambda one: one.peak_bytes)
    relative = max(found, key=lambda one: one.peak_bytes / one.size)
    lines = [
        "# Opening forged artifacts",
        "",
        f"`python -m experiments.forge --count {len(found)} --seed {seed}{only and f' --only {only}'}`",
        "",
        f"{len(found):,} files of {min(one.size for one in found):,} to "
        f"{max(one.size for one in found):,} bytes, right "
        f"in every checksum and count; {len(found) - len(accepted):,} refused, {len(accepted):,} within the budgets of "
        f"`phase8/limits.py` and decoded.",
        "",
        f"- slowest: {slowest.seconds:.2f} s ({slowest.family}, {slowest.size:,} bytes: {slowest.outcome[:60]})",
        f"- most memory: {largest.peak_bytes / 1e6:.1f} MB ({largest.family}, {largest.size:,} bytes: "
        f"{largest.outcome[:60]})",
        f"- most memory for its length: {relative.peak_bytes / relative.size:,.0f} bytes a byte ({relative.family}, "
        f"{relative.size:,} bytes, {relative.peak_bytes / 1e6:.1f} MB)",
        "",
        "| family | files | refused | slowest, s | most memory, MB | most memory refused, MB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for family in dict.fromkeys(one.family for one in found):
        mine = [one for one in found if one.family == family]
        refused = [one for one in mine if one.outcome.startswith("refused")]
        lines.append(
            f"| {family} | {len(mine)} | {len(refused)} | {max(one.seconds for one in mine):.2f} "
            f"| {max(one.peak_bytes for one in mine) / 1e6:.1f} "
            f"| {max((one.peak_bytes for one in refused), default=0) / 1e6:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs a campaign and writes its results; the exit status is 1 where a file took more than it may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="families whose names begin so")
    parser.add_argument("--out", type=Path, default=RESULTS / "forge")
    options = parser.parse_args()
    found = campaign(options.count, options.seed, options.only)
    write_atomic(options.out.with_suffix(".json"), json.dumps([one._asdict() for one in found], indent=1) + "\n")
    write_atomic(options.out.with_suffix(".md"), as_markdown(found, options.seed, options.only))
    print(as_markdown(found, options.seed, options.only))
    harmful = [one for one in found if one.seconds > SECONDS_LIMIT or one.peak_bytes > PEAK_LIMIT]
    for one in harmful:
        print(one)
    return 1 if harmful else 0


if __name__ == "__main__":
    raise SystemExit(main())
