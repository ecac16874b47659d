"""Trials of a batch that wait for a worker: a file each, which whoever is free takes by giving it another name.

    driver   asks for `batch` trials, hands the launcher `workers` of them, leaves the others here
    worker   runs its own trial, then takes one here after the other, until there is none

Renaming a file is atomic, also on a disk that several machines share, so no trial is taken twice. What a dead worker
took is lost as its own trial is (`phase8.sweep.study`); what nobody took ends with the batch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from phase8.errors import ConfigError
from phase8.files import fresh_directory, read_bounded, write_atomic

MAX_BYTES = 1 << 20
_SUFFIX = ".json"


def leave(directory: Path, jobs: Sequence[Sequence[str]]) -> Path:
    """Writes the overrides of each job; returns the directory, which is new."""
    place = fresh_directory(directory)
    for number, overrides in enumerate(jobs):
        write_atomic(place / f"{number:06d}{_SUFFIX}", json.dumps(list(overrides)))
    return place


def take(directory: Path) -> list[str] | None:
    """The overrides of the next job that nobody has, None where there is none left.

    Raises:
        ConfigError: a file there holds something else.
    """
    for path in sorted(directory.glob(f"*{_SUFFIX}")):
        mine = path.with_suffix(".taken")
        try:
            path.rename(mine)
        except FileNotFoundError:
            continue  # another worker was faster
        return list(map(str, json.loads(read_bounded(mine, MAX_BYTES, error=ConfigError))))
    return None
