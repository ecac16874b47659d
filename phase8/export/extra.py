"""The libraries of the `export` extra, which only exports need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from phase8.errors import ModelError


def optional(name: str) -> Any:
    """Imports a library of the `export` extra.

    Raises:
        ModelError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ModelError(
            f"this export needs the library {name!r}", where=str(error), fix='pip install -e ".[export]"'
        ) from error
