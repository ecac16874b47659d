"""One event as a line of the log and back, through the dataclass of its kind.

    StageStart(attempt=1) of `seedlm`
    {"time": 1795443496.2, "kind": "stage_start", "stage": "seedlm", "data": {"attempt": 1}}

Types are checked by pydantic in both directions, so that whatever is written can be read. Within a version fields are
only added: a reader leaves out those that it does not know. A new kind is a new version.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from phase8.errors import ArtifactError
from phase8.events.kinds import KINDS, Data


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    `time` is in unix seconds; `stage` is `baseline`, the name of a stage, or None; `data` is one of the classes in
    `phase8.events.kinds`.
    """

    time: float
    stage: str | None
    data: Data

    @property
    def kind(self) -> str:
        """The name of its kind in the log."""
        return self.data.kind


def plain(value: Any, where: str = "data") -> Any:
    """`value` as JSON values: NaN and infinity become None, tuples lists, enums their value, dataclasses dicts.

    Raises:
        TypeError: a value has no JSON form; the message names the key.
    """
    if isinstance(value, Enum):
        return plain(value.value, where)
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(plain(key, where)): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(items)]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name), f"{where}.{field.name}") for field in fields(value)}
    if callable(getattr(value, "tolist", None)):  # numpy scalars and arrays, torch tensors
        return plain(value.tolist(), where)
    raise TypeError(f"{where} is a {type(value).__name__}, which has no JSON form")


@cache
def _adapter(kind: str) -> TypeAdapter[Any]:
    return TypeAdapter(KINDS[kind])


def to_line(time: float, stage: str | None, data: Data) -> tuple[Event, bytes]:
    """Returns the event as a reader will see it, and its line.

    Raises:
        TypeError: a field holds a value that its type does not allow; names the kind and the field.
    """
    text = json.dumps(plain(data), allow_nan=False)
    try:
        told = _adapter(data.kind).validate_json(text, strict=True)
    except ValidationError as error:
        raise TypeError(f"{data.kind}: {_problems(error)}") from error
    head = json.dumps({"time": time, "kind": data.kind, "stage": stage})
    return Event(time, stage, told), f'{head[:-1]}, "data": {text}}}\n'.encode()


def from_line(line: bytes, where: str) -> Event:
    """Reads one line.

    Raises:
        ArtifactError: it is no JSON, no event, of a kind that is not known, or a field has the wrong type.
    """

    def reject(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        record = json.loads(line, parse_constant=reject)
    except (ValueError, RecursionError) as error:
        raise bad_log(f"not a line of JSON: {error}", where) from error
    if not isinstance(record, dict):
        raise bad_log("not an event: the line is no JSON object", where)
    moment, kind, stage, data = (record.get(key) for key in ("time", "kind", "stage", "data"))
    valid = (
        isinstance(moment, int | float)
        and not isinstance(moment, bool)
        and abs(moment) < 2**53
        and isinstance(kind, str)
        and (stage is None or isinstance(stage, str))
        and isinstance(data, dict)
    )
    if not valid:
        raise bad_log("not an event: needs time (number), kind (text), stage (text or null) and data (object)", where)
    if kind not in KINDS:
        raise bad_log(f"{kind[:40]!r} is no kind of event", where)
    try:
        return Event(float(moment), stage, _adapter(kind).validate_json(json.dumps(data), strict=True))
    except (ValidationError, ValueError, RecursionError) as error:
        what = _problems(error) if isinstance(error, ValidationError) else str(error)
        raise bad_log(f"not a {kind}: {what}", where) from error


def schema() -> dict[str, Any]:
    """The JSON Schema of every kind's data, by kind; for generating types in other languages."""
    return {kind: _adapter(kind).json_schema() for kind in KINDS}


def _problems(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False)
    listed = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in found[:3]]
    return "; ".join(listed) + (f" (and {len(found) - 3} more)" if len(found) > 3 else "")


def bad_log(what: str, where: str) -> ArtifactError:
    """The error of a log that cannot be read."""
    return ArtifactError(what, where=where, fix="the log is damaged: restore it, or run again")
