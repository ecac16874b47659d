"""Reads the files in which benchmarks are published: JSON lines and CSV, plain or gzipped.

Every row comes with the line that it stands on, so that what is wrong with it can be said with its place.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from phase8.errors import BenchmarkError
from phase8.files import read_bounded

MAX_BYTES = 1 << 29
"""Of a file, unpacked. The largest that the seven core benchmarks publish has 48 MB."""
MAX_ROWS = 1_000_000


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) for every line of a `.jsonl` or `.jsonl.gz` file; blank lines are passed over.

    Raises:
        BenchmarkError: the file cannot be read, is too large, is not UTF-8, or a line is not a JSON object.
    """
    fix = "each line must be one JSON object, as in the published file; download or convert it anew"
    # Not `splitlines`: JSON text may hold the other characters at which Python ends a line.
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        _bound_rows(path, number)
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BenchmarkError(f"not JSON: {error}", where=f"{path}, line {number}", fix=fix) from error
        if not isinstance(row, dict):
            raise BenchmarkError(f"a JSON {type(row).__name__}, not an object", where=f"{path}, line {number}", fix=fix)
        yield number, row


def read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, row by column name) for every row of a `.csv` or `.csv.gz` file whose first row names the columns.

    Raises:
        BenchmarkError: the file cannot be read, is too large, is not UTF-8, is not CSV, or a row is longer or shorter
            than the first.
    """
    names: list[str] | None = None
    for number, cells in read_csv_cells(path):
        if names is None:
            names = [cell.strip() for cell in cells]
            continue
        if len(cells) != len(names):
            raise BenchmarkError(
                f"{len(cells)} columns, the first row names {len(names)}",
                where=f"{path}, line {number}",
                fix="quote cells that hold commas, or download the file anew",
            )
        yield number, dict(zip(names, cells, strict=True))


def read_csv_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) for every row of a CSV file without column names; empty rows are passed over.

    Raises:
        BenchmarkError: the file cannot be read, is too large, is not UTF-8, or is not CSV.
    """
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    line = 1
    try:
        for cells in reader:
            _bound_rows(path, line)
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise BenchmarkError(
            f"not CSV: {error}", where=f"{path}, line {line}", fix="download or convert the file anew"
        ) from error


def _text(path: Path) -> str:
    """The whole file, unpacked, as text; a byte-order mark at its start is dropped."""
    data = read_bounded(path, MAX_BYTES, error=BenchmarkError)
    if path.suffix == ".gz":
        try:
            with gzip.open(io.BytesIO(data)) as unpacked:
                data = unpacked.read(MAX_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise BenchmarkError(f"not a whole gzip file: {error}", where=str(path), fix="download it anew") from error
        if len(data) > MAX_BYTES:
            raise BenchmarkError(
                f"unpacks to more than {MAX_BYTES:,} bytes", where=str(path), fix="check that it is the right file"
            )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BenchmarkError(
            f"not UTF-8: byte 0x{data[error.start]:02x}",
            where=f"{path}, line {line}",
            fix="convert the file to UTF-8, for example with `iconv -f latin1 -t utf-8`",
        ) from error


def _bound_rows(path: Path, line: int) -> None:
    if line > MAX_ROWS:
        raise BenchmarkError(f"more than {MAX_ROWS:,} lines", where=str(path), fix="check that it is the right file")
