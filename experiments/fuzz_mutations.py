"""Ways to break an artifact, for `experiments/fuzz.py`: each gives file, config, and whether checksums were recomputed.

Manifests and streams are edited with their checksums recomputed as often as not: what an attacker would do.
"""

from __future__ import annotations

import base64
import copy
import json
import math
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.fuzz_samples import Sample
from phase8.lossless import entropy


def take_apart(raw: bytes) -> tuple[dict[str, Any], dict[str, Any], list[bytes]]:
    """Returns a file's header, its manifest and the blobs of its pools."""
    (size,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + size])
    manifest = json.loads(zlib.decompress(base64.b64decode(header["__metadata__"]["manifest"])))
    blobs, position = [], 8 + size
    for pool in manifest["pools"]:
        blobs.append(raw[position : position + pool[6]])
        position += pool[6]
    return header, manifest, blobs


def put_together(header: dict[str, Any], text: bytes, payload: bytes, *, checksum: bool) -> bytes:
    """The inverse; with `checksum`, that of the manifest is recomputed, and so are the payload's extents."""
    metadata = header["__metadata__"]
    if isinstance(metadata, dict):
        metadata["manifest"] = base64.b64encode(zlib.compress(text)).decode()
        if checksum:
            metadata["manifest_crc32"] = str(zlib.crc32(text))
    if checksum:
        header["payload"] |= {"shape": [len(payload)], "data_offsets": [0, len(payload)]}
    front = json.dumps(header).encode()
    return struct.pack("<Q", len(front)) + front + payload


Places = list[tuple[Any, Any]]


def _places(node: Any) -> Places:
    """Every (container, key) in a JSON tree."""
    found: Places = []
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in list(children):
        found.append((node, key))
        found.extend(_places(child))
    return found


def _strange(draw: np.random.Generator, old: Any) -> Any:
    """A value that does not belong where `old` stands."""
    if isinstance(old, int) and not isinstance(old, bool) and draw.random() < 0.5:
        near = [old + 1, old - 1, -old, 2 * old, old // 2, old << 8, old << 20, old << 40, old + 2**32]
        return near[draw.integers(len(near))]
    values = [
        0, 1, -1, 2, 7, 255, 256, 65535, 65536, 2**24, 2**31, 2**32 - 1, 2**32, 2**36, 2**53, 2**63, 2**64, 10**30,
        0.5, -0.0, 1e308, True, False, None, "", "0", "x" * 300, "ergodic", "fourier", "depth", "float32", "ans",
        "packed", [], {}, [[]], [0], [1, 2, 3], {"a": 1}, [[["x", 1, 1]]],
    ]  # fmt: skip
    return values[draw.integers(len(values))]


def _edit_tree(draw: np.random.Generator, tree: Any) -> str:
    """Makes one change somewhere in a JSON tree; returns what kind."""
    places = _places(tree)
    node, key = places[draw.integers(len(places))]
    kind = ["value", "value", "value", "drop", "repeat", "swap", "add", "rename"][draw.integers(8)]
    if kind == "value":
        node[key] = _strange(draw, node[key])
    elif kind == "drop":
        del node[key]
    elif kind == "repeat" and isinstance(node, list):
        node.insert(key, copy.deepcopy(node[key]))
    elif kind == "swap":
        other, place = places[draw.integers(len(places))]
        a, b = copy.deepcopy(node[key]), copy.deepcopy(other[place])
        node[key] = b
        if place in other if isinstance(other, dict) else place < len(other):
            other[place] = a
    elif kind == "rename" and isinstance(node, dict):
        node[f"{key}_"] = node.pop(key)
    elif isinstance(node, dict):
        node[f"extra_{draw.integers(100)}"] = _strange(draw, None)
    else:
        node.append(_strange(draw, node[key]))
    return kind


def _random_bytes(draw: np.random.Generator, count: int) -> bytes:
    return draw.integers(0, 256, count, dtype=np.uint8).tobytes()


def _flip(draw: np.random.Generator, raw: bytes) -> bytes:
    data = bytearray(raw)
    for _ in range(draw.integers(1, 9)):
        data[draw.integers(len(data))] ^= 1 << int(draw.integers(8))
    return bytes(data)


def _truncate(draw: np.random.Generator, sample: Sample) -> tuple[bytes, bytes, bool]:
    raw, at = sample.raw, int(draw.integers(len(sample.raw)))
    kind = draw.integers(4)
    if kind == 0:  # anywhere
        return raw[:at], sample.config, False
    if kind == 1:  # near the end
        return raw[: len(raw) - int(draw.integers(1, 40))], sample.config, False
    if kind == 2:  # a piece missing in the middle
        return raw[:at] + raw[at + int(draw.integers(1, 64)) :], sample.config, False
    return raw + _random_bytes(draw, int(draw.integers(1, 64))), sample.config, False


def _bits(draw: np.random.Generator, sample: Sample) -> tuple[bytes, bytes, bool]:
    return _flip(draw, sample.raw), sample.config, False


def _overwrite(draw: np.random.Generator, sample: Sample) -> tuple[bytes, bytes, bool]:
    raw, size = bytearray(sample.raw), int(draw.integers(1, 64))
    at, source = (int(draw.integers(len(raw) - size)) for _ in range(2))
    raw[at : at + size] = [bytes(size), b"\xff" * size, bytes(raw[source : source + size]), _random_bytes(draw, size)][
        draw.integers(4)
    ]
    return bytes(raw), sample.config, False


def _header(draw: np.random.Generator, sample: Sample) -> tuple[bytes, bytes, bool]:
    (size,) = struct.unpack_from("<Q", sample.raw)
    if draw.random() < 0.3:
        lengths = [0, 1, size - 1, size + 1, size + 8, len(sample.raw), 2**31, 2**62, 2**64 - 1]
        return struct.pack("<Q", lengths[draw.integers(len(lengths))]) + sample.raw[8:], sample.config, False
    header = json.loads(sample.raw[8 : 8 + size])
    _edit_tree(draw, header)
    front = json.dumps(header).encode()
    return struct.pack("<Q", len(front)) + front + sample.raw[8 + size :], sample.config, False


def _again(
    sample: Sample, header: dict[str, Any], manifest: dict[str, Any], blobs: list[bytes], checksum: bool
) -> tuple[bytes, bytes, bool]:
    """The file put together from its changed parts."""
    text = json.dumps(manifest).encode()
    return put_together(header, text, b"".join(blobs), checksum=checksum), sample.config, checksum


def _manifest(draw: np.random.Generator, sample: Sample) -> tuple[bytes, bytes, bool]:
    header, manifest, blobs = take_apart(sample.raw)
    checksum = bool(draw.random() < 2 / 3)
    for _ in range([1, 1, 1, 2, 3][draw.integers(5)]):
        _edit_tree(draw, manifest)
    return _again(sample, header, manifest, blobs, checksum)


def _consistent(draw: np.random.Generator, sample: Sample) -> tuple[bytes, bytes, bool]:
    """Counts, widths and shapes that are changed everywhere alike: what a forger who knows the format would write."""
    header, manifest, blobs = take_apart(sample.raw)
    factor = int([2, 3, 16, 256, 2**16, 2**30][draw.integers(6)])
    group = manifest["groups"][draw.integers(len(manifest["groups"]))]
    number = manifest["groups"].index(group)
    kind = draw.integers(4)
    if kind == 0:  # all counts of one group
        for stream in [*group["shared"], *(s for t in group["tensors"] for s in t[2])]:
            stream[2] *= factor
        for pool in manifest["pools"]:
            if pool[0] == number:
                pool[4] *= factor
    elif kind == 1:  # the shape of a tensor, with everything that hangs on its size
        tensor = group["tensors"][draw.integers(len(group["tensors"]))]
        tensor[1][draw.integers(len(tensor[1]))] *= factor
        manifest["source"]["parameters"] = sum(math.prod(t[1]) for g in manifest["groups"] for t in g["tensors"])
        for stream in tensor[2]:
            if stream[2] > 1:
                for pool in manifest["pools"]:
                    if pool[0] == number and pool[1] == stream[0]:
                        pool[4] += stream[2] * (factor - 1)
                stream[2] *= factor
    elif kind == 2:  # a numeric setting and the widths
        keys = [key for key, value in group["settings"].items() if type(value) is int]
        if keys:
            key = keys[draw.integers(len(keys))]
            old, new = group["settings"][key], int(draw.integers(0, 24))
            group["settings"][key] = new
            for stream in [*group["shared"], *(s for t in group["tensors"] for s in t[2])]:
                stream[1] = new if stream[1] == old else stream[1]
            for pool in manifest["pools"]:
                pool[3] = new if pool[0] == number and pool[3] == old else pool[3]
    else:  # another codec's name, or another order of the tensors
        if draw.random() < 0.5:
            group["codec"] = ["plain", "seedlm", "vptq", "hyper"][draw.integers(4)]
        else:
            group["tensors"].reverse()
    return _again(sample, header, manifest, blobs, True)


def _stream(draw: np.random.Generator, sample: Sample) -> tuple[bytes, bytes, bool]:
    """Replaces pools by others, by noise or by forged entropy-coded blobs, and recomputes their checksums or not."""
    header, manifest, blobs = take_apart(sample.raw)
    checksum = bool(draw.random() < 2 / 3)
    for _ in range(draw.integers(1, 3)):
        n = int(draw.integers(len(blobs)))
        pool, old = manifest["pools"][n], blobs[n]
        kind = draw.integers(7)
        if kind == 0:
            blobs[n] = _random_bytes(draw, len(old))
        elif kind == 1 and old:
            blobs[n] = _flip(draw, old)
        elif kind == 2:
            blobs[n] = old[: int(draw.integers(len(old) + 1))]
        elif kind == 3:
            other = int(draw.integers(len(blobs)))
            blobs[n], pool[5] = blobs[other], manifest["pools"][other][5]
        elif kind == 4:
            pool[5] = entropy.CODINGS[draw.integers(len(entropy.CODINGS))]
        elif kind == 5:  # a valid blob of other values: every code of the width may occur
            values = draw.integers(0, 2 ** pool[3], pool[4], dtype=np.uint64).astype(np.uint32)
            values[draw.random(len(values)) < draw.random()] = values[:1].max(initial=0)
            pool[5], blobs[n] = entropy.encode(values, pool[3])
        else:  # an entropy coder's blob with a header and a table of noise
            words = _random_bytes(draw, 4 * int(draw.integers(12)))
            first, span = int(draw.integers(4)), int(draw.integers(1, 2 ** min(pool[3], 10)))
            table = _random_bytes(draw, (span + 1) * 4 // 8 + 2)[: ((span + 1) * 4 + 7) // 8]
            pool[5], blobs[n] = "ans", struct.pack("<HHB", first, span, 0) + table + words
        if checksum:
            pool[6], pool[7] = len(blobs[n]), zlib.crc32(blobs[n])
    return _again(sample, header, manifest, blobs, checksum)


def _bomb(draw: np.random.Generator, sample: Sample) -> tuple[bytes, bytes, bool]:
    """Manifests that inflate to much more than they are worth."""
    header, manifest, blobs = take_apart(sample.raw)
    size = int(2 ** draw.integers(10, 21))
    kind = draw.integers(8)
    if kind == 0:
        text = json.dumps(manifest).encode() + b" " * size
    elif kind == 1:
        manifest["source"]["note"] = [[]] * (size // 4)
        text = json.dumps(manifest).encode()
    elif kind == 2:
        manifest["source"]["note"] = "x" * size
        text = json.dumps(manifest).encode()
    elif kind == 3:
        text = b"[" * size
    elif kind == 4:
        manifest["groups"] *= 1 + size // 4096
        text = json.dumps(manifest).encode()
    elif kind == 5:
        manifest["source"]["note"] = [{"": 0}] * (size // 16)
        text = json.dumps(manifest).encode()
    elif kind == 6:
        header["__metadata__"]["note"] = [[]] * (size // 4)
        text = json.dumps(manifest).encode()
    else:
        text = json.dumps(manifest).encode().replace(b'"parameters": ', b'"parameters": ' + b"9" * (size // 8))
    return put_together(header, text, b"".join(blobs), checksum=True), sample.config, True


def _config(draw: np.random.Generator, sample: Sample) -> tuple[bytes, bytes, bool]:
    """An edited config.json beside an honest file. It has no checksum; the weights must be right or refused."""
    if draw.random() < 0.2:
        return sample.raw, _flip(draw, sample.config), False
    config = json.loads(sample.config)
    _edit_tree(draw, config)
    return sample.raw, json.dumps(config).encode(), False


FAMILIES: dict[str, tuple[Callable[[np.random.Generator, Sample], tuple[bytes, bytes, bool]], float]] = {
    "cut or lengthened": (_truncate, 0.08),
    "bits flipped": (_bits, 0.10),
    "bytes overwritten": (_overwrite, 0.06),
    "header edited": (_header, 0.08),
    "manifest edited": (_manifest, 0.27),
    "manifest forged consistently": (_consistent, 0.09),
    "streams replaced": (_stream, 0.22),
    "manifest that inflates": (_bomb, 0.04),
    "config edited": (_config, 0.06),
}
