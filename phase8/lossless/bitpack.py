"""Unsigned integers of 1 to 32 bits as a run of bytes without gaps.

Order: bit j of value i is bit i * bits + j of the run, and bit k of the run is bit k % 8 (least significant first) of
byte k // 8. The last byte is filled up with zeros. Example: [1, 2, 3] at 2 bits is 1 + 2 * 4 + 3 * 16 = 57, one byte.
"""

from __future__ import annotations

import numpy as np

from phase8.errors import ArtifactError, CodecError

_CHUNK = 1 << 12  # values spread into single bits at a time; a multiple of 8, so that chunks end on whole bytes


def packed_bytes(count: int, bits: int) -> int:
    """Returns how many bytes `count` values of `bits` bits take."""
    return (count * bits + 7) // 8


def narrowest(bits: int) -> type[np.unsignedinteger]:
    """Returns the smallest of uint8, uint16 and uint32 that holds `bits` bits."""
    return np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32


def pack(values: np.ndarray, bits: int) -> bytes:
    """Packs a 1-D array of unsigned integers.

    Raises:
        CodecError: `bits` is not 1 to 32, or a value needs more.
    """
    if not 1 <= bits <= 32:
        raise CodecError(f"cannot pack values of {bits} bits", fix="use 1 to 32")
    if values.size and (int(values.min()) < 0 or int(values.max()) >> bits):
        raise CodecError(f"a value from {values.min()} to {values.max()} does not fit {bits} bits")
    parts = []
    for begin in range(0, values.size, _CHUNK):
        chunk = np.ascontiguousarray(values[begin : begin + _CHUNK], dtype="<u4")
        spread = np.unpackbits(chunk.view(np.uint8).reshape(-1, 4), axis=1, bitorder="little", count=bits)
        parts.append(np.packbits(spread, bitorder="little").tobytes())
    return b"".join(parts)


def unpack(data: bytes | memoryview, bits: int, count: int) -> np.ndarray:
    """Returns `count` values, 1-D, in the narrowest of uint8, uint16 and uint32.

    Raises:
        ArtifactError: `bits` is not 1 to 32, `data` has not exactly the bytes that `count` values take, or the bits
            that fill up its last byte are not zero.
    """
    if not 1 <= bits <= 32:
        raise ArtifactError(f"a stream of {bits}-bit values cannot be unpacked")
    if len(data) != packed_bytes(count, bits):
        raise ArtifactError(f"{count} values of {bits} bits take {packed_bytes(count, bits)} bytes, not {len(data)}")
    if data and count * bits % 8 and data[-1] >> (count * bits % 8):
        raise ArtifactError("the last byte of a packed stream is not filled up with zeros")
    dtype = np.dtype(narrowest(bits)).newbyteorder("<")
    if bits == 8 * dtype.itemsize:
        return np.frombuffer(data, dtype=dtype).astype(narrowest(bits))
    raw = np.frombuffer(data, dtype=np.uint8)
    values = np.empty(count, dtype=narrowest(bits))
    padded = np.zeros((min(_CHUNK, count), 8 * dtype.itemsize), dtype=np.uint8)
    for begin in range(0, count, _CHUNK):
        size = min(_CHUNK, count - begin)
        first = begin * bits // 8
        spread = np.unpackbits(raw[first : first + packed_bytes(size, bits)], bitorder="little", count=size * bits)
        padded[:size, :bits] = spread.reshape(size, bits)
        values[begin : begin + size] = np.packbits(padded[:size], axis=1, bitorder="little").view(dtype)[:, 0]
    return values
