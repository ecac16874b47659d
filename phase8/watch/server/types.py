"""Writes the page's types: `python -m phase8.watch.server.types` -> web/src/lib/events.ts and api.ts.

    events.ts   the data of every kind of event, from the dataclasses in `phase8.events.kinds`
    api.ts      what the REST calls take and return, from `schema.py`

One field a line, under its text. Example: `bits: tuple[int, ...] | None` becomes `bits: number[] | null;`. A test
compares the files with what this module writes.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from phase8.events import kinds
from phase8.watch.server import schema
from phase8.watch.server.page import SOURCE
from phase8.watch.server.texts import field_texts

HEAD = "// Written by `python -m phase8.watch.server.types`. Do not edit.\n\n"
REQUESTS = (schema.Start, schema.Nothing, schema.Abort, schema.StartReplay, schema.ChangeReplay, schema.Talk)
"""Here a field with a default may be left out."""
_PLAIN = {str: "string", int: "number", float: "number", bool: "boolean", NoneType: "null", Any: "unknown"}
_NAMED = {schema.RunState: "RunState", schema.StageState: "StageState"}


def typescript(hint: Any) -> str:
    """A Python type as TypeScript.

    Raises:
        TypeError: it has no counterpart here.
    """
    if hint in _PLAIN:
        return _PLAIN[hint]
    if hint in _NAMED:
        return _NAMED[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return _union(hint, " | ")
    if origin in (Union, UnionType):
        return " | ".join(dict.fromkeys(typescript(argument) for argument in arguments))
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _array(arguments[0])
    if origin is tuple:
        return f"[{', '.join(map(typescript, arguments))}]"
    if origin is list:
        return _array(arguments[0])
    if origin is dict:
        return f"Record<string, {typescript(arguments[1])}>"
    if isinstance(hint, type) and (dataclasses.is_dataclass(hint) or issubclass(hint, BaseModel)):
        return hint.__name__
    raise TypeError(f"{hint!r} has no counterpart in TypeScript")


def _union(literal: Any, between: str) -> str:
    return between.join(f'"{value}"' for value in get_args(literal))


def _array(item: Any) -> str:
    inner = typescript(item)
    return f"({inner})[]" if " " in inner and not inner.startswith("Record") else f"{inner}[]"


def interface(kind: type) -> str:
    """A class as a TypeScript interface, with its texts."""
    about = " ".join((vars(kind).get("__doc__") or "").split())
    lines = [f"/** {about} */"] if about and not about.startswith(f"{kind.__name__}(") else []
    lines.append(f"export interface {kind.__name__} {{")
    texts = field_texts(kind)
    for name, hint, optional in _fields(kind):
        if name in texts:
            lines.append(f"  /** {texts[name]} */")
        lines.append(f"  {name}{'?' if optional else ''}: {typescript(hint)};")
    return "\n".join([*lines, "}\n"])


def _fields(kind: type) -> Iterator[tuple[str, Any, bool]]:
    if issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            yield name, field.annotation, kind in REQUESTS and not field.is_required()
    else:
        hints = get_type_hints(kind)
        for field in dataclasses.fields(kind):
            yield field.name, hints[field.name], False


def _classes(module: Any, base: type | None = None) -> list[type]:
    """The module's own classes in the order of its text."""
    own = [item for item in vars(module).values() if inspect.isclass(item) and item.__module__ == module.__name__]
    return [item for item in own if dataclasses.is_dataclass(item) or (base and issubclass(item, base))]


def events_ts() -> str:
    """The text of events.ts."""
    parts = [interface(kind) for kind in _classes(kinds) if kind is not kinds.Data]
    table = "\n".join(f"  {name}: {kind.__name__};" for name, kind in kinds.KINDS.items())
    return (
        HEAD
        + f"export const LOG_VERSION = {kinds.VERSION};\n\n"
        + "\n".join(parts)
        + f"\n/** The data of each kind of event. */\nexport interface EventData {{\n{table}\n}}\n\n"
        "export type Kind = keyof EventData;\n\n"
        "/** One line of a run's log; `seq` is its number. */\n"
        "export type AnyEvent = {\n"
        "  [K in Kind]: { seq: number; time: number; kind: K; stage: string | null; data: EventData[K] };\n"
        "}[Kind];\n"
    )


def api_ts() -> str:
    """The text of api.ts."""
    unions = [f"export type {name} =\n  | {_union(hint, f'{chr(10)}  | ')};\n" for hint, name in _NAMED.items()]
    event = (
        "/** One line of a run's log; a kind that this page does not know has data of any form. */\n"
        "export type RunEvent = AnyEvent;\n"
    )
    parts = [event if kind is schema.RunEvent else interface(kind) for kind in _classes(schema, BaseModel)]
    return HEAD + 'import type { AnyEvent } from "./events";\n\n' + "\n".join([*unions, *parts])


def main(directory: Path) -> int:
    """Writes both files."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in (("events.ts", events_ts()), ("api.ts", api_ts())):
        (directory / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE / "src" / "lib"))
