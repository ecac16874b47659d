"""Codes matrices of small signed integers, most of them zero, in fewer bits than their frequencies alone allow.

A matrix becomes yes-no decisions: which rows and which columns hold anything at all, and, of what is in these, is the
value zero (row after row), its sign, is its magnitude above 1, above 2, ... Each decision is coded with its own
probability by asymmetric numeral systems (Duda 2013). The probability of a non-zero value is a mixture of five
opinions: how often this column was non-zero so far, how often lately, how often this row was non-zero so far, how often
the matrix is, and a constant. Opinions are combined in the logistic domain, p = squash(sum of w_i stretch(p_i)), and
the weights w_i follow the coding error (Mahoney 2005, logistic mixing), so that whichever opinion is worth more counts
for more. A magnitude's probability is a count over decisions of the same level whose row and column are about as dense;
that of a row's being empty one over rows that were, or were not, in the last matrix with as many: what a shape leaves
out of a head is the same in its queries and its keys.

    stretch(p) = ln(p / (1 - p))        squash(x) = 1 / (1 + e^-x)

Decisions of a row are taken in runs of at least `RUN` columns at once, with what was known before the run, so that
numpy does the work. Encoder and decoder walk the same path (`_walk`) and differ only in who names the outcome.
Everything is integer arithmetic and the two tables are correctly rounded, so every machine finds the same
probabilities.

Worked example: a 512 x 256 matrix with one value in ten at +-1, columns alternately 2 % and 18 % full, takes 0.60 bits
a value by its frequencies (0.47 for the places, 0.1 for the signs, ...) and 0.52 here; see `tests/test_contexts.py`.

Shapes: O rows, I columns of a matrix, o and i of them not empty. Probabilities are of "yes", in 1/65536.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal, localcontext
from functools import cache

import numpy as np

from phase8.errors import ArtifactError, CodecError

try:
    import constriction
except ImportError:  # a reader without the library
    constriction = None

ONE = 1 << 16
RUN = 64
"""Columns whose decisions are taken at once, at least; wide matrices take a quarter of a row."""
LEVELS = 18
"""Magnitudes below this are told by yes-no decisions alone."""
DOUBLINGS = 15
"""Larger ones are LEVELS - 1 + x, x as Elias (1975) codes it: how many bits it has after its first, then these bits."""
LARGEST = LEVELS - 1 + (2 << DOUBLINGS) - 1

_LEAST = 8
_UNIT = 256
_REACH = 12 * _UNIT - 1
_TRUST = 2
_RATE = 3
_AT_ONCE = 2048
"""Most decisions on magnitudes between two updates of their counts."""
_BINS = 24
_KEPT_AT_ONCE = 16
_EVEN = 1 << 14
"""Most even decisions (signs, the bits of large magnitudes) that are taken at once; the bytes do not depend on it."""

Take = Callable[[np.ndarray], np.ndarray]
"""Given probabilities int64 [n], names the outcomes, int64 [n] of 0 and 1."""


@cache
def _squash_table() -> np.ndarray:
    with localcontext(prec=30):
        values = [Decimal(ONE) / (1 + (-Decimal(x) / _UNIT).exp()) for x in range(-_REACH, _REACH + 1)]
    return np.array([min(ONE - _LEAST, max(_LEAST, int(v.to_integral_value()))) for v in values], dtype=np.int64)


@cache
def _stretch_table() -> np.ndarray:
    half = Decimal("0.5")
    with localcontext(prec=30):
        values = [_UNIT * ((p + half) / (4096 - p - half)).ln() for p in map(Decimal, range(4096))]
    return np.array([int(v.to_integral_value()) for v in values], dtype=np.int64)


def _squash(x: np.ndarray) -> np.ndarray:
    return _squash_table()[np.clip(x, -_REACH, _REACH) + _REACH]


def _stretch(p: np.ndarray) -> np.ndarray:
    return _stretch_table()[p >> 4]


def _run_length(columns: int) -> int:
    return max(RUN, -(-columns // 4))


class _Mixer:
    """Weights of the opinions, one set for each run of a row (the first knows nothing of its row)."""

    def __init__(self, opinions: int, sets: int) -> None:
        self.w_SK = np.full((sets, opinions), ONE // 4, dtype=np.int64)

    def predict(self, place: int, x_KN: np.ndarray) -> np.ndarray:
        self._place, self._x_KN = place, x_KN
        self._p_N = _squash((self.w_SK[place][:, None] * x_KN).sum(0) >> 16)
        return self._p_N

    def learn(self, outcome_N: np.ndarray) -> None:
        error_N = (outcome_N << 16) - self._p_N
        self.w_SK[self._place] += ((self._x_KN * error_N).sum(1) * _RATE) >> 20


class _State:
    """What is remembered from one matrix to the next: the mixer, how full the columns of each width were, and which of
    so many rows or columns were not empty."""

    def __init__(self) -> None:
        self.mixer = _Mixer(5, 4)
        self.columns: dict[int, np.ndarray] = {}
        self.kept: dict[int, np.ndarray] = {}
        self.whole_yes, self.whole_total = [0, 0], [0, 0]
        self.yes = np.zeros((LEVELS + DOUBLINGS + 1, _BINS), dtype=np.int64)
        self.total = np.zeros((LEVELS + DOUBLINGS + 1, _BINS), dtype=np.int64)

    def fade(self) -> None:
        """Before the next matrix: a count of the last one is worth a quarter of its own."""
        self.yes >>= 2
        self.total >>= 2


def _kept(count: int, state: _State, take: Take) -> np.ndarray:
    """Which of so many rows or columns hold anything, bool [count]: whether all do, and if not, one after the other."""
    before = state.kept.get(count)
    kept = state.kept[count] = np.ones(count, dtype=bool)
    of = int(before is None or before.all())
    yes, total = state.whole_yes, state.whole_total
    whole = int(take(np.array([(2 * yes[of] + 1 << 16) // (2 * total[of] + 2)]).clip(_LEAST, ONE - _LEAST))[0])
    yes[of], total[of] = yes[of] + whole, total[of] + 1
    if whole:
        return kept
    of_N = np.zeros(count, dtype=np.int64) if before is None else 1 + before.astype(np.int64)
    yes_C, total_C = np.zeros((2, 3), dtype=np.int64)
    for begin in range(0, count, _KEPT_AT_ONCE):
        part = slice(begin, begin + _KEPT_AT_ONCE)
        of = of_N[part]
        kept[part] = take(np.clip((2 * yes_C[of] + 1 << 16) // (2 * total_C[of] + 2), _LEAST, ONE - _LEAST))
        yes_C += np.bincount(of[kept[part]], minlength=3)
        total_C += np.bincount(of, minlength=3)
    return kept


def _places(rows: int, columns_I: np.ndarray, state: _State, take: Take, full: int) -> np.ndarray:
    """The map of non-zero values in so many rows and the columns that are not empty, bool [o, i]; `full` is the share
    of them there."""
    whole_I = state.columns.setdefault(columns_I.size, np.full(columns_I.size, full, dtype=np.int64))
    slow_I = whole_I[columns_I]
    columns = slow_I.size
    places = np.zeros((rows, columns), dtype=bool)
    fast_I = slow_I.copy()
    # A guess of the density is worth as many rows as it takes to see `_TRUST` non-zero values.
    trust = min(max(_TRUST * ONE // full, 4), 400)
    steady, lately = 8 * trust + 128, max(16, 2 * trust)
    length = _run_length(columns)
    typical_row, constant = full, int(_stretch(np.array([full]))[0])
    for row in range(rows):
        ones = seen = 0
        share = ONE // min(row + trust, steady)
        for number, begin in enumerate(range(0, columns, length)):
            run = slice(begin, min(columns, begin + length))
            in_row = ((ones << 16) + 4 * trust * typical_row) // (seen + 4 * trust)
            x_KN = np.empty((5, run.stop - begin), dtype=np.int64)
            x_KN[0], x_KN[1] = _stretch(slow_I[run]), _stretch(fast_I[run])
            x_KN[2] = _stretch_table()[min(max(in_row, 32), ONE - 32) >> 4]
            x_KN[3], x_KN[4] = constant, _UNIT
            outcome_N = take(state.mixer.predict(min(number, 3), x_KN))
            places[row, run] = outcome_N
            state.mixer.learn(outcome_N)
            ones += int(outcome_N.sum())
            seen += run.stop - begin
            target_N = outcome_N << 16
            slow_I[run] += ((target_N - slow_I[run]) * share) >> 16
            fast_I[run] += (target_N - fast_I[run]) // lately
        typical_row += ((ones << 16) // columns - typical_row) >> 5
        np.clip(slow_I, 32, ONE - 32, out=slow_I)
        np.clip(fast_I, 32, ONE - 32, out=fast_I)
    whole_I[columns_I] = slow_I
    return places


def _density_bins(places: np.ndarray) -> np.ndarray:
    """For each non-zero value, in reading order, how dense its row and column are together, uint8, 0 .. _BINS - 1."""
    rows, columns = places.shape
    in_row, in_column = places.sum(1), places.sum(0)
    # Half octaves of the product of the two densities, by comparing squares: every operation is one IEEE operation.
    limits = np.float64(rows * columns) ** 2 * 0.5 ** np.arange(_BINS, dtype=np.float64)[::-1]
    bins, end = np.empty(int(in_row.sum()), dtype=np.uint8), 0
    at_once = max(1, _EVEN // columns)
    for begin in range(0, rows, at_once):
        row, column = np.nonzero(places[begin : begin + at_once])
        product = (in_row[begin + row] * in_column[column]).astype(np.float64)
        found = np.searchsorted(limits, product * product, side="right").clip(0, _BINS - 1)
        bins[end : end + found.size] = found
        end += found.size
    return bins


def _parts(count: int) -> Iterator[slice]:
    """Growing runs of decisions on magnitudes: the counts are updated after each."""
    begin, size = 0, 64
    while begin < count:
        yield slice(begin, begin + size)
        begin += size
        size = min(2 * size, _AT_ONCE)


def _even_parts(count: int) -> Iterator[slice]:
    """Runs of decisions that are as likely to be yes as no."""
    return (slice(begin, min(count, begin + _EVEN)) for begin in range(0, count, _EVEN))


def _even(count: int, take: Take) -> np.ndarray:
    """Takes so many even decisions; bool [count]."""
    outcomes = np.empty(count, dtype=bool)
    for part in _even_parts(count):
        outcomes[part] = take(np.full(part.stop - part.start, ONE // 2, dtype=np.int64))
    return outcomes


def _magnitudes(bins: np.ndarray, state: _State, take: Take) -> np.ndarray:
    """Magnitudes of the non-zero values, int32, at least 1."""
    values, bits = np.ones(bins.size, dtype=np.int32), np.zeros(bins.size, dtype=np.int32)
    alive = np.arange(bins.size)
    for level in range(2, LEVELS + DOUBLINGS + 1):
        if alive.size == 0:
            break
        yes, total = state.yes[level], state.total[level]
        larger = np.zeros(alive.size, dtype=bool)
        for part in _parts(alive.size):
            of = bins[alive[part]]
            p = np.clip((yes[of] + 1 << 16) // (total[of] + 3), _LEAST, ONE - _LEAST)
            larger[part] = take(p)
            yes += np.bincount(of[larger[part]], minlength=_BINS)
            total += np.bincount(of, minlength=_BINS)
        alive = alive[larger]
        (values if level <= LEVELS else bits)[alive] += 1
    values += (1 << bits) - 1
    for bit in range(int(bits.max(initial=0)) - 1, -1, -1):
        having = np.nonzero(bits > bit)[0]
        values[having] += _even(having.size, take).astype(np.int32) << bit
    return values


def _walk(shape: tuple[int, int], full: int, state: _State, take: Take) -> np.ndarray:
    """Takes every decision of a matrix in order; returns its values, int32 [O, I]."""
    values = np.zeros(shape, dtype=np.int32)
    rows_O = _kept(shape[0], state, take)
    if not rows_O.any():
        return values
    columns_I = _kept(shape[1], state, take)
    if not columns_I.any():  # no encoder writes this
        return values
    places = _places(int(rows_O.sum()), columns_I, state, take, full)
    state.fade()
    negative = _even(int(places.sum()), take)
    found = _magnitudes(_density_bins(places), state, take)
    np.negative(found, out=found, where=negative)
    kept = np.zeros(places.shape, dtype=np.int32)
    kept[places] = found
    values[np.ix_(rows_O, columns_I)] = kept
    return values


class _Recorder:
    """Names the outcomes from a matrix that is known, and keeps each with its probability."""

    def __init__(self) -> None:
        self.p: list[np.ndarray] = []
        self.outcomes: list[np.ndarray] = []

    def follow(self, values: np.ndarray, full: int, state: _State) -> None:
        self._script = iter(self._outcomes(values))
        _walk(values.shape, full, state, self._take)

    @staticmethod
    def _outcomes(values: np.ndarray) -> Iterator[np.ndarray]:
        magnitudes, nonzero = np.abs(values), values != 0
        rows_O, columns_I = nonzero.any(1), nonzero.any(0)
        for kept in (rows_O, columns_I) if rows_O.any() else (rows_O,):
            yield kept.all(keepdims=True)
            if not kept.all():
                yield from (kept[begin : begin + _KEPT_AT_ONCE] for begin in range(0, kept.size, _KEPT_AT_ONCE))
        run = _run_length(int(columns_I.sum()))
        for row in nonzero[rows_O]:
            row = row[columns_I]
            for begin in range(0, row.size, run):
                yield row[begin : begin + run]
        alive, negative = magnitudes[nonzero], values[nonzero] < 0
        yield from (negative[part] for part in _even_parts(negative.size))
        for level in range(2, LEVELS + DOUBLINGS + 1):
            if alive.size == 0:
                break
            least = level if level <= LEVELS else LEVELS - 1 + (1 << level - LEVELS)
            for part in _parts(alive.size):
                yield alive[part] >= least
            alive = alive[alive >= least]
        x = magnitudes[nonzero] - (LEVELS - 1)
        for bit in range(int(x.max(initial=1)).bit_length() - 2, -1, -1):
            having = x[x >= 2 << bit]
            yield from (having[part] >> bit & 1 for part in _even_parts(having.size))

    def _take(self, p: np.ndarray) -> np.ndarray:
        outcome = next(self._script).astype(np.int64)
        self.p.append(p.astype(np.uint16))
        self.outcomes.append(outcome.astype(np.uint8))
        return outcome


def _share_of(values: np.ndarray) -> int:
    """The share of non-zero values where rows and columns are not empty, in 1/256, 1 .. 255: a byte of the stream."""
    nonzero = values != 0
    size = int(nonzero.any(1).sum()) * int(nonzero.any(0).sum())
    return min(255, max(1, round(256 * float(np.count_nonzero(nonzero)) / max(1, size))))


def encode(matrices: Iterable[np.ndarray]) -> bytes:
    """Codes integer matrices [O, I], one after the other; what was learned from one helps with the next.

    Returns:
        A byte per matrix (its share of non-zero values, see `_share_of`), then the coded decisions as 32-bit words.

    Raises:
        CodecError: a value's magnitude is above `LARGEST`; the constriction library is missing.
    """
    if constriction is None:
        raise CodecError("entropy coding needs the constriction library", fix="pip install constriction")
    recorder, state = _Recorder(), _State()
    shares = bytearray()
    for values in matrices:
        if np.abs(values).max(initial=0) > LARGEST:
            raise CodecError(f"a stored integer is beyond {LARGEST}", fix="take a larger step")
        shares.append(_share_of(values))
        recorder.follow(values.astype(np.int64), shares[-1] << 8, state)
    coder = constriction.stream.stack.AnsCoder()
    model = constriction.stream.model.Bernoulli(perfect=True)
    for p, outcome in zip(reversed(recorder.p), reversed(recorder.outcomes), strict=True):
        if p.size:  # a stack: the last decision goes in first
            coder.encode_reverse(outcome.astype(np.int32), model, p / float(ONE))
    return bytes(shares) + coder.get_compressed().astype("<u4").tobytes()


def code_length_bits(matrices: Iterable[np.ndarray]) -> float:
    """How many bits `encode` takes, without coding: minus the sum of log2 p over the outcomes, and the shares. Holds
    what belongs to one matrix at a time."""
    state, bits = _State(), 0.0
    for values in matrices:
        recorder = _Recorder()
        recorder.follow(values.astype(np.int64), _share_of(values) << 8, state)
        p, yes = np.concatenate(recorder.p) / ONE, np.concatenate(recorder.outcomes) == 1
        bits += 8.0 - float(np.log2(np.where(yes, p, 1.0 - p)).sum())
    return bits


class _Coder:
    """Names the outcomes from coded words, by the library or, without it, by a loop some twenty times as slow."""

    def __init__(self, words: np.ndarray) -> None:
        self._library = None
        if constriction is not None:
            self._library = constriction.stream.stack.AnsCoder(words)
            self._model = constriction.stream.model.Bernoulli(perfect=True)
            return
        self._words = words.tolist()
        if self._words and self._words[-1] == 0:
            raise ValueError("the last word is 0")
        self._state = 0
        for _ in range(min(2, len(self._words))):
            self._state = self._state << 32 | self._words.pop()

    def take(self, p: np.ndarray) -> np.ndarray:
        if p.size == 0:
            return np.zeros(0, dtype=np.int64)
        if self._library is not None:
            return self._library.decode(self._model, p / float(ONE)).astype(np.int64)
        outcomes, words, state = np.empty(p.size, dtype=np.int64), self._words, self._state
        for i, probability in enumerate(p.tolist()):
            no = (ONE - probability) << 8  # of 2**24 units, "no" has the first
            place = state & 0xFFFFFF
            yes = place >= no
            state = (state >> 24) * (probability << 8) + place - no if yes else (state >> 24) * no + place
            if state < 1 << 32 and words:
                state = state << 32 | words.pop()
            outcomes[i] = yes
        self._state = state
        return outcomes

    def is_empty(self) -> bool:
        if self._library is not None:
            return self._library.is_empty()
        return self._state == 0 and not self._words


def decode_each(blob: bytes | memoryview, shapes: Sequence[tuple[int, int]]) -> Iterator[np.ndarray]:
    """Yields the matrices, int32 [O, I] of the shapes given, that `encode` was called with, one after the other.

    Time and memory follow from the shapes, which the caller has to have checked.

    Raises:
        ArtifactError: the blob is not what `encode` writes for matrices of these shapes.
    """
    count = len(shapes)
    if len(blob) < count or (len(blob) - count) % 4:
        raise ArtifactError("a stream of coded matrices is cut short")
    shares = bytes(blob[:count])
    if 0 in shares:
        raise ArtifactError("a stream of coded matrices has a density of 0")
    state = _State()
    try:
        coder = _Coder(np.frombuffer(blob, dtype="<u4", offset=count).astype(np.uint32))
        for share, shape in zip(shares, shapes, strict=True):
            yield _walk(shape, share << 8, state, coder.take)
    except ValueError as error:
        raise ArtifactError(f"a stream of coded matrices is damaged: {error}") from error
    if not coder.is_empty():
        raise ArtifactError("a stream of coded matrices does not end where its values do")


def decode(blob: bytes | memoryview, shapes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """All of `decode_each`; raises as it does."""
    return list(decode_each(blob, shapes))


def microseconds(shapes: Sequence[tuple[int, int]], coded_bytes: int) -> int:
    """About how long decoding takes at most, before it begins.

    Every run of columns, however short, costs numpy's calls, and so do every level of magnitudes of a matrix and every
    part of the lists of what is kept. A value may be asked for 32 levels and 15 bits more, but a coder that has been
    read to its end says "no" for ever: a sign takes a bit of the stream, and so does each of the 15, of which there are
    as many as levels beyond the 17th.
    """
    stored = sum(rows * columns for rows, columns in shapes)
    bits = 8 * coded_bytes
    runs = sum(rows * -(-columns // _run_length(columns)) for rows, columns in shapes)
    listed = sum(rows + columns for rows, columns in shapes)
    calls = 1400 * len(shapes) + 60 * runs + 4 * listed
    return calls + stored // 4 + 4 * min(stored, bits) + min(3 * stored, bits // 4)


def numbers_held(shape: tuple[int, int]) -> int:
    """Most numbers, of eight bytes, that decoding a matrix holds at once, the matrix among them."""
    return 4 * shape[0] * shape[1] + 20 * _run_length(shape[1])
