"""A reader of artifacts written from `docs/format.md` alone, for the tests to hold the first one against.

Nothing of `phase8` is used here; numpy serves as an array of IEEE numbers. Slow on purpose: one formula at a time.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
import re
import struct
import zlib
from decimal import ROUND_CEILING, Decimal, localcontext
from pathlib import Path

import numpy as np

PAGE = (Path(__file__).parent.parent / "docs" / "format.md").read_text(encoding="utf-8")
F32, F64 = np.float32, np.float64


# ----------------------------------------------------------------------------------------- the second reader: section 4


def read_packed(blob: bytes, bits: int, count: int) -> list[int]:
    assert len(blob) == math.ceil(count * bits / 8)
    run = int.from_bytes(blob, "little")
    assert run >> (count * bits) == 0
    return [run >> (i * bits) & ((1 << bits) - 1) for i in range(count)]


def read_ans(blob: bytes, bits: int, count: int) -> list[int]:
    first, more, mantissa_bits = struct.unpack_from("<HHB", blob)
    n, table_bytes = more + 1, math.ceil((more + 1) * (4 + mantissa_bits) / 8)
    table = read_packed(blob[5 : 5 + table_bytes], 4 + mantissa_bits, n)
    frequencies = []
    for entry in table:
        exponent, mantissa = entry >> mantissa_bits, entry % 2**mantissa_bits
        frequencies.append((2**mantissa_bits + mantissa) * 2 ** (exponent - 1) if exponent else 0)
    r = (2**24 - n) / sum(frequencies)
    begins = [math.floor(sum(frequencies[:s]) * r) + s for s in range(n)] + [2**24]
    words = list(struct.unpack(f"<{(len(blob) - 5 - table_bytes) // 4}I", blob[5 + table_bytes :]))
    x, values = 0, []
    for _ in range(2):
        if words:
            x = 2**32 * x + words.pop()
    for _ in range(count):
        q = x % 2**24
        s = max(s for s in range(n) if begins[s] <= q)
        values.append(first + s)
        x = x // 2**24 * (begins[s + 1] - begins[s]) + q - begins[s]
        if x < 2**32 and words:
            x = 2**32 * x + words.pop()
    assert x == 0 and not words
    assert max(values, default=0) < 2**bits
    return values


def read_pool(coding: str, blob: bytes, bits: int, count: int) -> list[int]:
    if coding == "packed":
        return read_packed(blob, bits, count)
    assert len(blob) < math.ceil(count * bits / 8)
    if coding == "ans":
        return read_ans(blob, bits, count)
    assert coding == "planes"
    high_coding, low_coding, length = struct.unpack_from("<BBI", blob)
    names = ["packed", "ans", "planes"]
    high = read_pool(names[high_coding], blob[6 : 6 + length], bits - 8, count)
    low = read_pool(names[low_coding], blob[6 + length :], 8, count)
    return [256 * h + b for h, b in zip(high, low, strict=True)]


# --------------------------------------------------------------------------------------------------- sections 2 and 3


def read(raw: bytes) -> dict[str, np.ndarray]:
    """Reads a whole file."""
    (size,) = struct.unpack_from("<Q", raw)
    header, payload = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    metadata = header["__metadata__"]
    assert (metadata["format"], metadata["version"]) == ("phase8", "4")
    assert header["payload"] == {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}
    text = zlib.decompress(base64.b64decode(metadata["manifest"]))
    assert metadata["manifest_crc32"] == str(zlib.crc32(text))
    manifest = json.loads(text)

    wanted: dict[tuple, int] = {}
    for index, group in enumerate(manifest["groups"]):
        for shared, streams in [(1, group["shared"]), *((0, tensor[2]) for tensor in group["tensors"])]:
            for role, bits, count in streams:
                wanted[index, role, shared, bits] = wanted.get((index, role, shared, bits), 0) + count
    pools, position = {}, 0
    for pool, (key, count) in zip(manifest["pools"], wanted.items(), strict=True):
        assert (*pool[:4], pool[4]) == (*key, count)
        blob = payload[position : position + pool[6]]
        assert zlib.crc32(blob) == pool[7]
        pools[key] = iter(read_pool(pool[5], blob, pool[3], count))
        position += pool[6]
    assert position == len(payload)

    weights = {}
    for index, group in enumerate(manifest["groups"]):
        planes: dict[str, dict] = {}

        def take(streams: list, shared: int, index: int = index) -> dict[str, list[int]]:
            return {role: [next(pools[index, role, shared, bits]) for _ in range(n)] for role, bits, n in streams}

        shared = take(group["shared"], 1)
        stacks = read_stacks(group["tensors"]) if group["settings"].get("axis") == "depth" else []
        lattice = iter(read_lattice(group["settings"], shared) if group["codec"] == "lattice" else [])
        for name, shape, streams in group["tensors"]:
            own = take(streams, 0)
            if group["codec"] == "lattice":
                integers = next(lattice)
                weights[name] = np.zeros(shape, dtype=F32)
                weights[name][: len(integers), : len(integers[0])] = np.array(integers, dtype=F32) * half(
                    own["step"][0]
                )
            elif any(name in stack for stack in stacks):
                planes[name] = own
            else:
                flat = CODECS[group["codec"]](group["settings"], shape, shared, own)
                weights[name] = np.array(flat[: math.prod(shape)], dtype=F32).reshape(shape)
        shapes = {name: shape for name, shape, _ in group["tensors"]}
        for stack in stacks:
            for name, flat in read_depth(group["settings"], stack, planes).items():
                weights[name] = np.array(flat, dtype=F32).reshape(shapes[name])
    assert manifest["source"]["parameters"] == sum(w.size for w in weights.values())
    return weights


# ----------------------------------------------------------------------------------------------------- sections 5 and 6


def half(bits: int) -> np.float32:
    return F32(struct.unpack("<e", struct.pack("<H", bits))[0])


def brain(bits: int) -> np.float32:
    return F32(struct.unpack("<f", struct.pack("<I", bits << 16))[0])


def read_plain(settings: dict, shape: list[int], shared: dict, own: dict) -> list[np.float32]:
    single = {
        "bfloat16": brain,
        "float16": half,
        "float32": lambda b: F32(struct.unpack("<f", struct.pack("<I", b))[0]),
    }
    return [single[settings["dtype"]](bits) for bits in own["values"]]


def documented_taps() -> dict[int, list[int]]:
    table = PAGE[PAGE.index("| K | taps |") : PAGE.index("The numbers of a seed")]
    cells = [cell.strip() for line in table.splitlines()[2:] for cell in line.strip("|").split("|") if cell.strip()]
    return {int(k): [int(tap) for tap in taps.split()] for k, taps in zip(cells[::2], cells[1::2], strict=True)}


def read_seedlm(settings: dict, shape: list[int], shared: dict, own: dict) -> list[np.float32]:
    c, p, b, k = (settings[name] for name in ("block_size", "latent_dim", "bits", "seed_bits"))
    taps, scale, weights = documented_taps()[k], brain(own["scale"][0]), []
    for block, (seed, exponent) in enumerate(zip(own["seeds"], own["exponents"], strict=True)):
        state, numbers = seed, []
        for _ in range(c * p):
            bit = sum(state >> tap for tap in taps) % 2
            state = (state >> 1) + 2 ** (k - 1) * bit
            numbers.append(F32((state - 2 ** (k - 1)) / (2 ** (k - 1) - 1)))
        step = F32(float(scale) * 2.0 ** (exponent - 2 ** (settings["exponent_bits"] - 1)))
        codes = own["codes"][block * p : block * p + p]
        values = [code - 2 ** (b - 1) if b >= 3 else 2 * code - (3 if b == 2 else 1) for code in codes]
        g = [F32(value) * step for value in values]
        for i in range(c):
            total = F32(0)
            for j in range(p):
                total = total + numbers[i * p + j] * g[j]
            weights.append(total)
    return weights


def read_vptq(settings: dict, shape: list[int], shared: dict, own: dict) -> list[np.float32]:
    v, (rows, columns), books = settings["vector_dim"], shape, []
    product = settings.get("product", 1)
    u, sizes = v // product, settings["codebook_sizes"]
    roles = [f"codebook_{m}" for m in range(len(sizes))]
    special = own.get("outlier_column", [])
    if "outliers" in settings:
        roles.append("outlier_codebook")
    for role in roles:
        if settings["codebook_bits"] == 16:
            books.append([half(bits) for bits in shared[role]])
        else:
            step = half(shared[f"{role}_step"][0])
            books.append([F32(code - 128) * step for code in shared[role]])
    others = [j for j in range(columns) if j not in special]
    book = books.pop() if "outliers" in settings else []
    scale, weights = half(own["scale"][0]), []
    for row in range(rows):
        for j in range(columns):
            if j in special:
                v_, t = settings["outliers"][1], special.index(j)
                weights.append(book[own["outlier_index"][row // v_ * len(special) + t] * v_ + row % v_] * scale)
                continue
            g, (q, i) = row // v, divmod(row % v, u)
            place = (g * product + q) * len(others) + others.index(j)
            parts = [
                entries[(q * size + own[f"index_{m}"][place]) * u + i]
                for m, (entries, size) in enumerate(zip(books, sizes, strict=True))
            ]
            total = parts[0]
            for part in parts[1:]:
                total = total + part
            weights.append(total * scale)
    return weights


def series_rows(settings: dict, n: int) -> list[np.ndarray]:
    rows, j = [], np.arange(n)
    if settings["trajectory"] == "polynomial":
        degree = min(settings["degree"], n - 1, 4 * math.isqrt(n))
        before, now, b = np.zeros(n), np.ones(n), 0.0
        x = (2 * j - (n - 1)) / F64(n - 1) if n > 1 else np.zeros(1)
        for k in range(degree + 1):
            rows.append(now)
            if k < degree:
                following = math.sqrt((k + 1) ** 2 * (n**2 - (k + 1) ** 2) / (4 * (k + 1) ** 2 - 1)) / (n - 1)
                before, now, b = now, (x * now - b * before) / following, following
    else:
        rows.append(np.ones(n))
        for k in range(1, min(settings["degree"], (n - 1) // 2) + 1):
            angle = (k * j % n) * (2 * math.pi / n)
            rows += [math.sqrt(2) * np.cos(angle), math.sqrt(2) * np.sin(angle)]
    return [(np.rint(row * 2**15) / 2**15).astype(F32) for row in rows]


def read_series(settings: dict, shape: list[int], own: dict, s: np.float32) -> list[np.float32]:
    n = settings["block_size"] or math.prod(shape)
    rows, weights = series_rows(settings, n), []
    top = 2 ** (settings["coefficient_bits"] - 1) - 1
    for begin in range(0, len(own["coefficients"]), len(rows)):
        total = np.zeros(n, dtype=F32)
        for value, row in zip(own["coefficients"][begin:], rows, strict=False):
            total = total + F32(value - top) * row
        weights.extend(total * s)
    return weights


def read_stacks(tensors: list) -> list[list[str]]:
    alike: dict[tuple, list[tuple[int, str]]] = {}
    for name, shape, _ in tensors:
        parts = name.split(".")
        numbers = [n for n, part in enumerate(parts) if re.fullmatch("[0-9]{1,9}", part)]
        if numbers:
            key = (tuple(shape), tuple(parts[: numbers[0]]), tuple(parts[numbers[0] + 1 :]))
            alike.setdefault(key, []).append((int(parts[numbers[0]]), name))
    stacks = [[name for _, name in sorted(members, key=lambda m: m[0])] for members in alike.values()]
    return [stack for stack in stacks if len(stack) > 1]


def read_depth(settings: dict, stack: list[str], planes: dict[str, dict]) -> dict[str, np.ndarray]:
    rows, weights = series_rows(settings, len(stack)), {}
    top = 2 ** (settings["coefficient_bits"] - 1) - 1
    assert [bool(planes[name]) for name in stack] == [t < len(rows) for t in range(len(stack))]
    for place, name in enumerate(stack):
        total = np.zeros(len(planes[stack[0]]["coefficients"]), dtype=F32)
        for plane, row in zip(stack, rows, strict=False):
            s = half(planes[plane]["scale"][0]) * F32(2.0 ** settings["exponent"])
            q = np.array([F32(value - top) for value in planes[plane]["coefficients"]], dtype=F32)
            total = total + q * (s * row[place])
        weights[name] = total
    return weights


def turns(kind: str, dims: int, grid: int) -> list[int]:
    if kind == "primes":
        primes = [n for n in range(2, 10_000) if all(n % d for d in range(2, math.isqrt(n) + 1))][:dims]
        return [math.isqrt(p * 2**128) % 2**64 + 1 for p in primes]
    with localcontext() as context:
        context.prec = 50
        pi = Decimal(re.search(r"pi = (3\.\d+)", PAGE)[1])
        if kind == "reciprocal":
            ratios = [1 / (pi + k) for k in range(dims)]
        else:
            ratios = [(-Decimal(grid).ln() * (dims - k) / dims).exp() for k in range(dims)]
        return [int((r * 2**64).to_integral_value(rounding=ROUND_CEILING)) for r in ratios]


def network_number(n: int, seed: int) -> np.float32:
    z = (n + seed * 2**32 + 1) * 0x9E3779B97F4A7C15 % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return F32((z ^ z >> 31) >> 40) * F32(2.0**-23) - F32(1)


def network_sine(t: np.float32) -> np.float32:
    c = [F32(text) for text in re.search(r"nearest to (6\.28.*)\. The block", PAGE)[1].split(", ")]
    r = t - np.rint(t)
    v = min(abs(r), F32(0.5) - abs(r))
    y = v * v
    s = v * (c[0] + y * (c[1] + y * (c[2] + y * (c[3] + y * c[4]))))
    return -s if r < 0 else s


def read_manifold(settings: dict, own: dict, s: np.float32) -> list[np.float32]:
    inputs, top = settings["inputs"], 2 ** (settings["coefficient_bits"] - 1) - 1
    sizes = [inputs, *[settings["width"]] * settings["depth"], settings["block_size"]]
    layers, first = [], 0
    for rows, columns in itertools.pairwise(sizes):
        u = [network_number(first + n, settings["network_seed"]) for n in range((rows + 1) * columns)]
        layers.append((rows, columns, u))
        first += (rows + 1) * columns
    weights = []
    for begin in range(0, len(own["coefficients"]), inputs + 1):
        q = [value - top for value in own["coefficients"][begin : begin + inputs + 1]]
        x = [F32(F64(code * settings["frequency"]) / F64(16 * top)) for code in q[:-1]]
        for number, (rows, columns, u) in enumerate(layers):
            values = []
            for j in range(columns):
                a = F32(0)
                for i in range(rows):
                    a = a + x[i] * u[i * columns + j]
                if number:
                    a = a * F32(F64(1) / np.sqrt(F64(rows)))
                values.append(network_sine(a + u[rows * columns + j] * F32(0.5)))
            x = values
        weights.extend(value * F32(q[-1]) * s for value in x)
    return weights


def read_hyper(settings: dict, shape: list[int], shared: dict, own: dict) -> list[np.float32]:
    s = half(own["scale"][0]) * F32(2.0 ** settings["exponent"])
    if settings["trajectory"] == "manifold":
        return read_manifold(settings, own, s)
    if settings["trajectory"] != "ergodic":
        return read_series(settings, shape, own, s)
    dims, grid = settings["dims"], settings["grid"]
    a, side = turns(settings["winding"], dims, grid), half(shared["side"][0])
    shrink = [F32(1), *map(half, shared.get("shrink", []))]
    weights = []
    for theta in own["codes"]:
        m, i = divmod(theta, grid + 1)
        width = side / shrink[m]
        for k in range(dims):
            offset = F32((i - 1) * a[k] % 2**64 // 2**40) * F32(2.0**-24) - F32(0.5) if i else F32(0)
            weights.append(s * (half(shared["centroid"][k]) + offset * width))
    return weights


class Decisions:
    """The words of a lattice's codes, asked for one decision after the other."""

    def __init__(self, blob: bytes) -> None:
        self.words, self.x = list(struct.unpack(f"<{len(blob) // 4}I", blob)), 0
        for _ in range(2):
            self.refill()

    def refill(self) -> None:
        if self.x < 2**32 and self.words:
            self.x = 2**32 * self.x + self.words.pop()

    def ask(self, p: int) -> int:
        n, (upper, q) = 256 * (2**16 - p), divmod(self.x, 2**24)
        self.x = upper * n + q if q < n else upper * 256 * p + q - n
        self.refill()
        return int(q >= n)


def held(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))


def squash(t: int) -> int:
    return held(round(2**16 / (1 + math.exp(-held(t, -3071, 3071) / 256))), 8, 65528)


def stretch(p: int) -> int:
    k = p >> 4
    return round(256 * math.log((k + 0.5) / (4095.5 - k)))


def read_left(asked: Decisions, n: int, last: dict, whole: list[list[int]]) -> list[int]:
    """Which of n rows or columns are not all zero."""
    before, last[n] = last.get(n), [1] * n
    if ask_counted(asked, [int(before is None or 0 not in before)], whole) == [1]:
        return last[n]
    contexts, counts = [1 + one for one in before] if before else [0] * n, [[0, 0] for _ in range(3)]
    last[n] = [one for at in range(0, n, 16) for one in ask_counted(asked, contexts[at : at + 16], counts)]
    return last[n]


def ask_counted(asked: Decisions, contexts: list[int], counts: list[list[int]]) -> list[int]:
    chances = [2**16 * (2 * counts[c][0] + 1) // (2 * counts[c][1] + 2) for c in contexts]
    found = [asked.ask(held(p, 8, 65528)) for p in chances]
    for c, one in zip(contexts, found, strict=True):
        counts[c][0] += one
        counts[c][1] += 1
    return found


def read_places(asked: Decisions, d: int, o: int, columns_left: list[int], w: list[list[int]], kept: dict) -> list:
    u, m = held(2**17 // (256 * d), 4, 400), 256 * d
    whole = kept.setdefault(len(columns_left), [256 * d] * len(columns_left))
    numbers = [j for j, left in enumerate(columns_left) if left]
    s, i = [whole[j] for j in numbers], len(numbers)
    f, length, rows = list(s), max(64, math.ceil(i / 4)), []
    for row in range(o):
        b: list[int] = []
        for number, begin in enumerate(range(0, i, length)):
            columns = range(begin, min(i, begin + length))
            r = held((2**16 * sum(b) + 4 * u * m) // (len(b) + 4 * u), 32, 65504)
            x = [(stretch(s[j]), stretch(f[j]), stretch(r), stretch(256 * d), 256) for j in columns]
            mine = w[min(number, 3)]
            p = [squash(sum(a * c for a, c in zip(mine, one, strict=True)) >> 16) for one in x]
            found = [asked.ask(one) for one in p]
            e = [2**16 * one - guess for one, guess in zip(found, p, strict=True)]
            for k in range(5):
                mine[k] += 3 * sum(one[k] * wrong for one, wrong in zip(x, e, strict=True)) >> 20
            for j, one in zip(columns, found, strict=True):
                s[j] += (2**16 * one - s[j]) * (2**16 // min(row + u, 8 * u + 128)) >> 16
                f[j] += (2**16 * one - f[j]) // max(16, 2 * u)
            b += found
        m += (2**16 * sum(b) // i - m) >> 5
        s, f = ([held(one, 32, 65504) for one in many] for many in (s, f))
        rows.append(b)
    for j, one in zip(numbers, s, strict=True):
        whole[j] = one
    return rows


def read_lattice(settings: dict, shared: dict) -> list[list[list[int]]]:
    """Integers of every matrix."""
    own = [extent for extent in settings["extents"] if isinstance(extent, list)]
    blob = bytes(shared["codes"])
    asked = Decisions(blob[len(own) :])
    w, kept, last = [[2**14] * 5 for _ in range(4)], {}, {}
    whole = [[0, 0], [0, 0]]
    yes, total = ({(level, n): 0 for level in range(2, 34) for n in range(24)} for _ in range(2))
    made = []
    for d, (whole_o, whole_i) in zip(blob, own, strict=False):
        matrix = [[0] * whole_i for _ in range(whole_o)]
        made.append(matrix)
        rows_left = read_left(asked, whole_o, last, whole)
        columns_left = read_left(asked, whole_i, last, whole) if any(rows_left) else []
        if not any(columns_left):
            continue
        of_row, of_column = ([n for n, left in enumerate(lot) if left] for lot in (rows_left, columns_left))
        o, i = len(of_row), len(of_column)
        places = read_places(asked, d, o, columns_left, w, kept)
        for counts in (yes, total):
            for key in counts:
                counts[key] //= 4
        cells = [(row, column) for row in range(o) for column in range(i) if places[row][column]]
        negative = [asked.ask(2**15) for _ in cells]
        of_rows, of_columns = [sum(row) for row in places], [sum(column) for column in zip(*places, strict=True)]
        product = [F64(of_rows[row] * of_columns[column]) for row, column in cells]
        bins = [min(23, sum(rc**2 >= F64(o * i) ** 2 * 2.0**-n for n in range(24))) for rc in product]
        reached = [1] * len(cells)
        for level in range(2, 34):
            waiting = [n for n, before in enumerate(reached) if before == level - 1]
            size = 64
            while waiting:
                part, waiting = waiting[:size], waiting[size:]
                size = min(2048, 2 * size)
                p = [2**16 * (yes[level, bins[n]] + 1) // (total[level, bins[n]] + 3) for n in part]
                for n, one in zip(part, p, strict=True):
                    larger = asked.ask(held(one, 8, 65528))
                    reached[n] += larger
                    yes[level, bins[n]] += larger
                    total[level, bins[n]] += 1
        lengths = [max(0, level - 18) for level in reached]
        magnitudes = [level if level < 18 else 17 + 2 ** (level - 18) for level in reached]
        for bit in reversed(range(15)):
            for n, length in enumerate(lengths):
                magnitudes[n] += asked.ask(2**15) << bit if length > bit else 0
        for (row, column), minus, magnitude in zip(cells, negative, magnitudes, strict=True):
            matrix[of_row[row]][of_column[column]] = -magnitude if minus else magnitude
    assert asked.x == 0 and not asked.words
    numbers = [n for n, extent in enumerate(settings["extents"]) if isinstance(extent, list)]
    places_of = {n: k for k, n in enumerate(numbers)}
    return [made[places_of[n if isinstance(e, list) else e]] for n, e in enumerate(settings["extents"])]


CODECS = {"plain": read_plain, "seedlm": read_seedlm, "vptq": read_vptq, "hyper": read_hyper}
