"""The scoreboard: quality against bytes on disk, our methods beside others, on two models.

    python -m experiments.scoreboard          # results/frontier.json -> SCOREBOARD.md, results/frontier.png

Rows come from whoever measures: `add_row` puts one into `results/frontier.json` (atomically; a row of the same model,
method, setting and seed is replaced), and this command draws what is there. Nothing is measured here.

A row has at least the fields of `FIELDS`. `ratio` is the FP32 bytes of the original's parameters over `artifact_bytes`.
Retention comes with `_low` and `_high` (95 %) where it was measured. A method that could not be had is a row without
`artifact_bytes` whose `note` says what it needs. Example:

    add_row({"method": "round-to-nearest", "setting": "4 bits, groups of 64", "ours": False, "group": NO_TRAINING,
             "model": "reference", "artifact_bytes": 2105600, "ratio": 7.1, "retention_raw": 0.99,
             "retention_chance_corrected": 0.99, "bits_per_byte": 0.53, "seed": 0, "trained_tokens": 0,
             "training_s": 0.0, "command": "python -m experiments.peers_scored"})
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any

from filelock import FileLock

from phase8.errors import ConfigError
from phase8.files import write_atomic

HERE = Path(__file__).parent
ROWS = HERE / "results" / "frontier.json"
MODELS = ("reference", "tinystories")
OURS_TRAINED, OURS_UNTRAINED = "ours, trained", "ours, no training"
NO_TRAINING, CONTROL = "peer, no training", "control, trained"
GROUPS = (OURS_TRAINED, OURS_UNTRAINED, CONTROL, NO_TRAINING)
KEY = ("model", "method", "setting", "seed")
FIELDS: dict[str, tuple[type, ...]] = {
    "method": (str,),
    "setting": (str,),
    "ours": (bool,),
    "group": (str,),
    "model": (str,),
    "artifact_bytes": (int, type(None)),
    "ratio": (float, int, type(None)),
    "retention_raw": (float, int, type(None)),
    "retention_chance_corrected": (float, int, type(None)),
    "bits_per_byte": (float, int, type(None)),
    "seed": (int,),
    "trained_tokens": (int,),
    "training_s": (float, int),
    "command": (str,),
}
"""What every row has, and of which type; None where it was not measured or does not exist."""


def check(row: Mapping[str, Any]) -> None:
    """Raises `ConfigError` where a row lacks a field, or has one of a wrong type or range."""
    where = f"row {row.get('method', '?')} {row.get('setting', '')}".rstrip()
    for name, types in FIELDS.items():
        if name not in row:
            raise ConfigError(f"the row lacks `{name}`", where=where, fix=f"needed: {', '.join(FIELDS)}")
        value = row[name]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ConfigError(f"`{name}` is {value!r}", where=where, fix=f"needed: {types[0].__name__}")
        if number and not math.isfinite(value):
            raise ConfigError(f"`{name}` is {value!r}", where=where, fix="a finite number, or null")
    if row["group"] not in GROUPS or row["model"] not in MODELS:
        raise ConfigError(
            f"group {row['group']!r}, model {row['model']!r}", where=where, fix=f"known: {GROUPS}, {MODELS}"
        )
    if row["artifact_bytes"] is None and not row.get("note"):
        raise ConfigError("a row without bytes needs a note that says why", where=where, fix="add `note`")
    if row["artifact_bytes"] is not None and (row["artifact_bytes"] < 1 or not row["ratio"] or row["ratio"] <= 0):
        raise ConfigError("bytes and ratio must be above 0", where=where, fix="ratio is FP32 bytes / artifact_bytes")


def read_rows(path: Path = ROWS) -> list[dict[str, Any]]:
    """Every row, checked; none where there is no file yet.

    Raises:
        ConfigError: the file is no list of rows.
    """
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"not JSON: {error}", where=str(path), fix="take the file from version control") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError("not a list of rows", where=str(path), fix="take the file from version control")
    for row in rows:
        check(row)
    return rows


def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row is known by: `KEY`."""
    return tuple(row[name] for name in KEY)


def add_row(row: Mapping[str, Any], path: Path = ROWS) -> None:
    """Puts a row in; one of the same key is replaced. Several processes may do so at once.

    Raises:
        ConfigError: the row or the file is malformed; the file is untouched.
        OutputError: it cannot be written.
    """
    check(row)
    name = sha256(str(path.resolve()).encode()).hexdigest()[:16]
    with FileLock(Path(tempfile.gettempdir(), f"phase8-scoreboard-{name}.lock")):
        rows = [one for one in read_rows(path) if key(one) != key(row)] + [dict(row)]
        rows.sort(key=lambda one: (MODELS.index(one["model"]), one["ratio"] or 0.0, *map(str, key(one))))
        write_atomic(path, "[\n" + ",\n".join(json.dumps(one, ensure_ascii=False) for one in rows) + "\n]\n")


# ------------------------------------------------------------------------------------------------------------ the table

RULES = """\
# Scoreboard

Quality against bytes on disk, made by `python -m experiments.scoreboard` from `results/frontier.json`. Beat a row: same
bytes or fewer, and more of what it keeps. `experiments/LOG.md` says what was tried and why it did or did not work.

## Rules

1. **Bytes on disk count, all of them.** `ratio` is the FP32 bytes of the original's parameters (tied ones once) over
   the bytes that it takes to rebuild it. Ours: every counted file of the written artifact; headers, codebooks, scales,
   norms and configuration included; the tokenizer's files, which no method changes, are left out. Others: their
   integers, scales and norms, the embedding quantised by the same method, and **in their favour** no header, no
   manifest, no configuration. Where integers are entropy-coded they really are, and the coded bytes count.
2. **What is scored is what the stored numbers decode to**, in float32, never a simulation before rounding.
3. **Reference model** (`embedded:reference`): retention over the seven core mini benchmarks (200 items each, raw and
   with chance taken off: a guesser keeps 0), and bits per byte of held-out text, the lower the better. **TinyStories**
   (stories260K, 260,032 parameters, real stories): bits per byte alone.
4. **Training and calibration** see training text alone; no benchmark item enters training, calibration or any choice.
   What trains says with how many tokens and seconds.
5. Intervals are 95 %: over items for one row, the spread of seeds where a row has several. Differences inside them are
   none.
6. **A line of the plot goes through the best file at each size, by that plot's measure.** At 280x these are two files:
   the one that keeps most of the core scores was told only what the core benchmarks ask (`training.mix=core`), and pays
   in bits per byte, off the second plot.
"""


def merged(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows that differ in the seed alone as one: means, `seeds`, the seeds' range instead of the items' interval."""
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in KEY if name != "seed"), []).append(row)
    result = []
    for some in found.values():
        one = dict(some[0]) | {"seeds": len(some)}
        if len(some) > 1:
            for name in ("artifact_bytes", "ratio", "retention_raw", "retention_chance_corrected", "bits_per_byte",
                         "training_s"):  # fmt: skip
                values = [row[name] for row in some if row[name] is not None]
                one[name] = fmean(values) if len(values) == len(some) else None
                if name.startswith(("retention", "bits")) and one[name] is not None:
                    one |= {f"{name}_low": min(values), f"{name}_high": max(values)}
        result.append(one)
    return result


def best(rows: list[dict[str, Any]], quality: str, *, larger: bool) -> set[int]:
    """Indices of the rows that none beats: no other has at least its ratio and a better `quality`."""
    sign = 1 if larger else -1
    known = [(row["ratio"], sign * row[quality], at) for at, row in enumerate(rows) if row[quality] is not None]
    return {at for ratio, value, at in known if not any(r >= ratio and v > value for r, v, _ in known)}


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The whole of SCOREBOARD.md."""
    measured = merged(row for row in rows if row["artifact_bytes"] is not None)
    lines = [RULES]
    if measured:
        lines += ["![quality against ratio](results/frontier.png)", ""]
    for model in MODELS:
        here = sorted((row for row in measured if row["model"] == model), key=lambda row: row["ratio"])
        if not here:
            continue
        reference = model == "reference"
        quality = "retention_chance_corrected" if reference else "bits_per_byte"
        unbeaten = best(here, quality, larger=reference)
        original = next((row["bits_per_byte_original"] for row in here if "bits_per_byte_original" in row), None)
        lines += [f"## {'Reference model' if reference else 'TinyStories'}", ""]
        lines += [
            "Bold: ours. ★: no row has at least its ratio and is better in "
            + ("chance-corrected retention" if reference else "bits per byte")
            + ("" if original is None else f". The original: {original:.4f} bits per byte")
            + ".",
            "",
        ]
        head = ["", "ratio", "bytes", "method", "setting", "group"]
        head += ["core raw", "chance-corrected"] if reference else []
        head += ["bits/byte", "tokens trained", "training", "seeds"]
        lines += [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
        for at, row in enumerate(here):
            name = f"**{row['method']}**" if row["ours"] else row["method"]
            cells = ["★" if at in unbeaten else "", f"{row['ratio']:.2f}x", f"{round(row['artifact_bytes']):,}", name]
            cells += [row["setting"], row["group"]]
            cells += [_cell(row, "retention_raw"), _cell(row, "retention_chance_corrected")] if reference else []
            cells += [_cell(row, "bits_per_byte", digits=4), _count(row["trained_tokens"])]
            cells += [f"{row['training_s']:,.0f} s" if row["trained_tokens"] else "-", str(row["seeds"])]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    lines += _notes(rows, measured)
    return "\n".join(lines).rstrip() + "\n"


def _notes(rows: list[dict[str, Any]], measured: list[dict[str, Any]]) -> list[str]:
    lines: list[str] = []
    present, noted = [row for row in rows if row["artifact_bytes"] is not None], dict[str, str]()
    for method, note in {(row["method"], row["note"]) for row in present if row.get("note")}:
        of = [row for row in present if row["method"] == method]
        settings = [row["setting"] for row in of if row.get("note") == note]
        noted[method if len(settings) == len(of) else f"{method}, {'; '.join(settings)}"] = note
    if noted:
        lines += ["## What the methods are", "", *(f"- {name}: {note}" for name, note in sorted(noted.items())), ""]
    absent = [row for row in rows if row["artifact_bytes"] is None]
    if absent:
        lines += ["## Not measured", ""]
        lines += [f"- {name}: {note}" for name, note in sorted({(row["method"], row["note"]) for row in absent})]
        lines.append("")
    commands = sorted({row["command"] for row in measured})
    if commands:
        lines += ["## Commands", "", *(f"- `{command}`" for command in commands), ""]
    return lines


def _cell(row: Mapping[str, Any], name: str, digits: int = 3) -> str:
    if row[name] is None:
        return "-"
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    interval = "" if low is None or high is None else f" ({low:.{digits}f} to {high:.{digits}f})"
    return f"{row[name]:.{digits}f}{interval}"


def _count(tokens: int) -> str:
    return "-" if tokens == 0 else f"{tokens / 1e6:.1f} M"


def main() -> int:
    """Writes the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--out", type=Path, default=HERE / "SCOREBOARD.md")
    parser.add_argument("--plot", type=Path, default=HERE / "results" / "frontier.png")
    options = parser.parse_args()
    from experiments.scoreboard_plot import plot

    rows = read_rows(options.rows)
    measured = merged(row for row in rows if row["artifact_bytes"] is not None)
    if measured:
        plot(measured, options.plot)
    write_atomic(options.out, as_markdown(rows))
    print(f"{len(rows)} rows -> {options.out}, {options.plot}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
