"""Settings as dataclasses: checked, built from plain nested mappings and turned back into them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from enum import Enum
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from phase8.errors import ConfigError


def require(condition: bool, what: str, *, where: str, fix: str) -> None:
    """Raises `ConfigError` unless `condition`."""
    if not condition:
        raise ConfigError(what, where=where, fix=fix)


_ALIASES = {"lambda": "lambda_"}
"""Settings whose name is a keyword of Python."""


def plain(value: Any) -> Any:
    """Settings as plain nested values, in the form that `build` reads."""
    if is_dataclass(value):
        names = {alias: name for name, alias in _ALIASES.items()}
        return {names.get(f.name, f.name): plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return value


def build(kind: type, data: Any, prefix: str, problems: list[str]) -> Any:
    """Builds dataclass `kind` from a mapping; every problem is noted, none raised."""
    if not isinstance(data, Mapping):
        problems.append(f"{prefix.rstrip('.') or 'the configuration'}: needs settings, not {data!r}")
        return None
    types = get_type_hints(kind)
    hints = {field.name: types[field.name] for field in fields(kind)}
    values: dict[str, Any] = {}
    for key, value in data.items():
        name = _ALIASES.get(str(key), str(key))
        if name not in hints:
            near = get_close_matches(str(key), [_plain_name(n) for n in hints], n=1)
            known = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(map(_plain_name, hints))}"
            problems.append(f"{prefix}{key}: there is no such setting; {known}")
            continue
        if is_dataclass(hints[name]) and isinstance(value, Mapping) and (standard := _standard(kind, name)) is not None:
            value = {**plain(standard), **value}  # what is not named keeps its default
        values[name] = _convert(hints[name], value, f"{prefix}{key}", problems)
    if any(problem.startswith(prefix) for problem in problems) and prefix:
        return None
    if problems and not prefix:
        return None
    try:
        return kind(**values)
    except ConfigError as error:
        problems.append(f"{prefix}{error.what}" if not error.what.startswith(prefix) else error.what)
        problems.append(f"  mend: {error.fix}")
        return None


def _standard(kind: type, name: str) -> Any:
    """The default of a field that holds settings, or None."""
    factory = next(field.default_factory for field in fields(kind) if field.name == name)
    return None if factory is MISSING else factory()


def _plain_name(name: str) -> str:
    return next((alias for alias, target in _ALIASES.items() if target == name), name)


def _convert(hint: Any, value: Any, path: str, problems: list[str]) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, path, problems)
    if is_dataclass(hint):
        return build(hint, value, f"{path}.", problems)
    if isinstance(hint, type) and issubclass(hint, Enum):
        choices = [member.value for member in hint]
        # YAML reads the bare word `off` as false.
        spelt = "off" if value is False and "off" in choices else value
        if spelt in choices:
            return hint(spelt)
        problems.append(f"{path}: {value!r} is not one of {', '.join(map(str, choices))}")
        return None
    if origin is tuple:
        if isinstance(value, Sequence) and not isinstance(value, str):
            return tuple(_convert(arguments[0], item, path, problems) for item in value)
        problems.append(f"{path}: needs a list, not {value!r}")
        return None
    if origin is dict:
        if isinstance(value, Mapping):
            return {str(k): _convert(arguments[1], v, f"{path}.{k}", problems) for k, v in value.items()}
        problems.append(f"{path}: needs a mapping, not {value!r}")
        return None
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
        problems.append(f"{path}: needs a finite number, not {value!r}")
        return None
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    problems.append(f"{path}: needs {hint.__name__}, not {type(value).__name__} {value!r}")
    return None
