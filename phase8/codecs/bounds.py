"""The format's own bounds on a group's settings: what a file may say, whatever a run may be set to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phase8.errors import ArtifactError

Bounds = Mapping[str, tuple[int, int]]
"""Least and largest value by the setting's name."""


def whole_numbers(settings: Mapping[str, Any], bounds: Bounds, where: str) -> dict[str, int]:
    """The settings that are whole numbers within bounds, by name.

    Raises:
        ArtifactError: one is missing, no whole number, or beyond its bounds.
    """
    found = {}
    for name, (low, high) in bounds.items():
        value = settings.get(name)
        if type(value) is not int or not low <= value <= high:
            raise ArtifactError(
                f"impossible settings: {name} is {value!r}, the format needs {low} to {high}",
                where=where,
                fix="write the file anew",
            )
        found[name] = value
    return found
