"""Lossless coding of integer streams: plain packing, a static entropy coder, or byte planes, whichever is smallest.

- `packed`: `bits` bits a value (`bitpack`).
- `ans`: asymmetric numeral systems (Duda 2013; the `constriction` library) under a histogram. The table of frequencies
  is part of the blob: one small floating-point number per symbol between the smallest and the largest that occur, a
  4-bit exponent and `mantissa_bits` bits. How many is chosen so that table and body together are shortest.
- `planes`: the low 8 bits and the rest are coded each on its own, by any of the three. Float16 numbers profit: sign and
  exponent are predictable, the mantissa is not.

The decoder's model is built from the stored integers by exact sums and single IEEE operations (no logarithm, no
exponential), so every machine rebuilds the same one. Where the library is not installed, a loop in plain Python reads
the same blobs some twenty times more slowly; only encoding needs the library. Example: 1000 values of 2 bits, 900 of
them zero and the others alike: 250 bytes packed; 0.627 bit of entropy each, about 90 bytes with the table.

ans blob:    uint16 smallest symbol, uint16 number of symbols - 1, uint8 mantissa_bits, packed table, uint32 words; all
             little-endian.
planes blob: uint8 coding of the high plane, uint8 of the low plane (index into `CODINGS`), uint32 bytes of the high
             plane, high plane, low plane.
"""

from __future__ import annotations

import struct
from bisect import bisect_right

import numpy as np

from phase8.errors import ArtifactError, CodecError
from phase8.lossless.bitpack import narrowest, pack, packed_bytes, unpack

try:
    import constriction
except ImportError:  # a reader without the library
    constriction = None

CODINGS = ("packed", "ans", "planes")

_EXPONENT_BITS = 4
_MAX_MANTISSA_BITS = 11
_MAX_ALPHABET_BITS = 16
_ANS_HEADER = struct.Struct("<HHB")
_PLANES_HEADER = struct.Struct("<BBI")
_PRECISION = 24
"""Probabilities are multiples of 2**-24."""
_AT_ONCE = 1 << 16
"""Values decoded at a time: the library returns 4 bytes for each."""
_CODED_AT_ONCE = 1 << 18
"""Values coded at a time: the library takes 4 bytes for each, counting 8."""


def encode(values: np.ndarray, bits: int) -> tuple[str, bytes]:
    """Codes a 1-D array of unsigned integers below 2**bits in the fewest bytes this module knows.

    Returns:
        The coding's name and the blob; `decode(name, blob, bits, values.size)` gives the values back.

    Raises:
        CodecError: `bits` is not 1 to 32, or a value does not fit.
    """
    best = "packed", pack(values, bits)
    if values.size == 0:
        return best
    if bits <= _MAX_ALPHABET_BITS:
        blob = _encode_ans(values, limit_bytes=len(best[1]))
        if blob is not None and len(blob) < len(best[1]):
            best = "ans", blob
    if bits > 8:
        high_coding, high = encode(values >> np.asarray(8, values.dtype), bits - 8)
        low_coding, low = encode((values & np.asarray(255, values.dtype)).astype(np.uint8), 8)
        if _PLANES_HEADER.size + len(high) + len(low) < len(best[1]):
            header = _PLANES_HEADER.pack(CODINGS.index(high_coding), CODINGS.index(low_coding), len(high))
            best = "planes", header + high + low
    return best


def decode(coding: str, blob: bytes | memoryview, bits: int, count: int) -> np.ndarray:
    """Returns `count` values, 1-D, in the narrowest of uint8, uint16 and uint32.

    Memory stays within a small multiple of count bytes whatever the blob holds. `count` must come from a source
    that the caller has checked: a blob does not betray a count that is off by one or two.

    Raises:
        ArtifactError: the blob is not what `encode` writes for `count` values of `bits` bits.
    """
    if not 1 <= bits <= 32:
        raise ArtifactError(f"a stream of {bits}-bit values cannot be decoded")
    if coding == "packed":
        return unpack(blob, bits, count)
    if len(blob) >= packed_bytes(count, bits):  # also bounds the tables by the number of values
        raise ArtifactError(f"a stream coded as {str(coding)[:20]!r} is no shorter than its packed form")
    if coding == "ans":
        return _decode_ans(blob, bits, count)
    if coding == "planes" and bits > 8:
        if len(blob) < _PLANES_HEADER.size:
            raise ArtifactError("a stream of byte planes is cut short")
        high_coding, low_coding, high_bytes = _PLANES_HEADER.unpack_from(blob)
        if max(high_coding, low_coding) >= len(CODINGS) or high_bytes > len(blob) - _PLANES_HEADER.size:
            raise ArtifactError("the header of a stream of byte planes is damaged")
        middle = _PLANES_HEADER.size + high_bytes
        high = decode(CODINGS[high_coding], blob[_PLANES_HEADER.size : middle], bits - 8, count)
        values = high.astype(narrowest(bits))
        del high
        values <<= np.asarray(8, values.dtype)
        values |= decode(CODINGS[low_coding], blob[middle:], 8, count)
        return values
    raise ArtifactError(f"unknown stream coding {coding!r} for {bits}-bit values", fix=f"known: {', '.join(CODINGS)}")


def _table_codes(counts: np.ndarray, mantissa_bits: int) -> np.ndarray:
    """Rounds counts to floating-point table entries: 0 for none, else (exponent + 1) << mantissa_bits | mantissa.

    The largest count gets the largest exponent, 14; counts more than about 2**15 below it are rounded up to the least.
    """
    one = 1 << mantissa_bits
    used = counts > 0
    unit = max(int(counts.max()) / ((2 * one - 1) << 14), 1e-300)
    scaled = np.maximum(counts[used] / unit, one)
    fraction, exponent = np.frexp(scaled)  # scaled = fraction * 2**exponent, fraction in [0.5, 1)
    mantissa = np.rint(fraction * (2 * one)).astype(np.int64)
    exponent = exponent - mantissa_bits - 1 + (mantissa == 2 * one)
    mantissa[mantissa == 2 * one] = one
    codes = np.zeros(counts.size, dtype=np.uint32)
    codes[used] = np.minimum((exponent + 1) << mantissa_bits | mantissa - one, (15 << mantissa_bits) | one - 1)
    return codes


def _frequencies(codes: np.ndarray, mantissa_bits: int) -> np.ndarray:
    """The inverse of `_table_codes`: whole numbers below 2**26, float64. A hostile table can be long: part by part."""
    frequencies = np.empty(codes.size, dtype=np.float64)
    for begin in range(0, codes.size, 512):
        part = codes[begin : begin + 512].astype(np.int32)
        exponent = part >> mantissa_bits
        mantissa = (part & ((1 << mantissa_bits) - 1)) + (1 << mantissa_bits)
        frequencies[begin : begin + 512] = np.where(exponent > 0, mantissa << np.maximum(exponent - 1, 0), 0)
    return frequencies


def _encode_ans(values: np.ndarray, *, limit_bytes: int) -> bytes | None:
    if constriction is None:
        raise CodecError("entropy coding needs the constriction library", fix="pip install constriction")
    first, last = int(values.min()), int(values.max())
    if first == last:  # the coder's model needs two symbols at least
        first, last = max(first - 1, 0), max(last, 1)

    def symbols(begin: int) -> np.ndarray:
        return values[begin : begin + _CODED_AT_ONCE].astype(np.int32) - np.int32(first)

    starts = range(0, values.size, _CODED_AT_ONCE)
    counts = np.zeros(last - first + 1, dtype=np.int64)
    for begin in starts:
        counts += np.bincount(symbols(begin), minlength=counts.size)
    used = counts > 0
    best: tuple[float, int, np.ndarray] | None = None
    for mantissa_bits in range(_MAX_MANTISSA_BITS + 1):
        codes = _table_codes(counts, mantissa_bits)
        frequencies = _frequencies(codes, mantissa_bits)
        body_bits = float(counts[used] @ (np.log2(frequencies.sum()) - np.log2(frequencies[used])))
        total = body_bits / 8 + packed_bytes(codes.size, _EXPONENT_BITS + mantissa_bits)
        if best is None or total < best[0]:
            best = total, mantissa_bits, codes
    assert best is not None  # the loop has run
    estimate, mantissa_bits, codes = best
    if estimate > limit_bytes:
        return None
    coder, model = constriction.stream.stack.AnsCoder(), _model(codes, mantissa_bits)
    for begin in reversed(starts):  # a stack: the last symbol first
        coder.encode_reverse(symbols(begin), model)
    words = coder.get_compressed().astype("<u4").tobytes()
    header = _ANS_HEADER.pack(first, last - first, mantissa_bits)
    return header + pack(codes, _EXPONENT_BITS + mantissa_bits) + words


def _model(codes: np.ndarray, mantissa_bits: int) -> constriction.stream.model.Categorical:
    # Sums of these integers stay below 2**53, so the only rounding is in IEEE divisions and products.
    return constriction.stream.model.Categorical(_frequencies(codes, mantissa_bits), perfect=False)


def cumulative(frequencies: np.ndarray) -> np.ndarray:
    """Returns where each symbol's range begins in 0 .. 2**24, int64 [n + 1]; every symbol gets at least 1.

    Of the 2**24 units, n are given out one each; the rest in proportion to the frequencies:
    begin_s = floor(sum of the frequencies before s * ((2**24 - n) / sum of all)) + s, in float64.
    """
    before = np.concatenate([[0.0], np.cumsum(frequencies)])
    free = (1 << _PRECISION) - frequencies.size
    begin = np.floor(before * (free / before[-1])).astype(np.int64) + np.arange(before.size)
    begin[-1] = 1 << _PRECISION
    return begin


class _PlainCoder:
    """Decodes as `constriction.stream.stack.AnsCoder` does: 64 bits of state, refilled by 32-bit words from the end."""

    def __init__(self, words: np.ndarray) -> None:
        self._words = words.tolist()
        if self._words and self._words[-1] == 0:
            raise ValueError("the last word is 0")
        self._state = 0
        for _ in range(min(2, len(self._words))):
            self._state = self._state << 32 | self._words.pop()

    def decode(self, begin: np.ndarray, count: int) -> np.ndarray:
        """Takes `count` symbols off; `begin` as `cumulative` returns it."""
        limits, words, state = begin.tolist(), self._words, self._state
        symbols = np.empty(count, dtype=np.int32)
        for i in range(count):
            place = state & ((1 << _PRECISION) - 1)
            symbol = bisect_right(limits, place) - 1
            state = (state >> _PRECISION) * (limits[symbol + 1] - limits[symbol]) + place - limits[symbol]
            if state < 1 << 32 and words:
                state = state << 32 | words.pop()
            symbols[i] = symbol
        self._state = state
        return symbols

    def is_empty(self) -> bool:
        return self._state == 0 and not self._words


def _decode_ans(blob: bytes | memoryview, bits: int, count: int) -> np.ndarray:
    if bits > _MAX_ALPHABET_BITS:
        raise ArtifactError(f"{bits}-bit values are too wide for the entropy coder")
    if len(blob) < _ANS_HEADER.size:
        raise ArtifactError("an entropy-coded stream is cut short")
    first, span, mantissa_bits = _ANS_HEADER.unpack_from(blob)
    if mantissa_bits > _MAX_MANTISSA_BITS or span < 1 or (first + span) >> bits:
        raise ArtifactError("the header of an entropy-coded stream is damaged")
    end = _ANS_HEADER.size + packed_bytes(span + 1, _EXPONENT_BITS + mantissa_bits)
    if len(blob) < end or (len(blob) - end) % 4:
        raise ArtifactError("an entropy-coded stream is cut short")
    codes = unpack(blob[_ANS_HEADER.size : end], _EXPONENT_BITS + mantissa_bits, span + 1)
    if not codes.any():
        raise ArtifactError("the table of an entropy-coded stream is empty")
    words = np.frombuffer(blob, dtype="<u4", offset=end).astype(np.uint32)
    values = np.empty(count, dtype=narrowest(bits))
    try:
        if constriction is None:
            coder, model = _PlainCoder(words), cumulative(_frequencies(codes, mantissa_bits))
        else:
            coder, model = constriction.stream.stack.AnsCoder(words), _model(codes, mantissa_bits)
        for begin in range(0, count, _AT_ONCE):
            part = values[begin : begin + _AT_ONCE]
            part[:] = coder.decode(model, part.size)
            part += values.dtype.type(first)
    except ValueError as error:
        raise ArtifactError(f"an entropy-coded stream is damaged: {error}") from error
    if not coder.is_empty():
        raise ArtifactError("an entropy-coded stream does not end where its values do")
    return values
