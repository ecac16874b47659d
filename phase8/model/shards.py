"""The index of a checkpoint in several files: `model.safetensors.index.json`."""

from __future__ import annotations

import json
from pathlib import Path

from phase8.errors import ModelError
from phase8.files import read_bounded

INDEX = "model.safetensors.index.json"
_JSON_LIMIT = 64 * 2**20


def read_index(path: Path) -> dict[str, str]:
    """The file of every tensor, by the tensor's name.

    Raises:
        ModelError: it is malformed, or names a file that does not lie beside it: an index may come from anywhere, and
            `../other/model.safetensors` would be another model.
    """
    try:
        listed = json.loads(read_bounded(path, _JSON_LIMIT, error=ModelError))["weight_map"]
        files = {str(name): str(file) for name, file in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError("the index of the shards is malformed", where=str(path), fix="copy the file anew") from error
    for file in files.values():
        if file in ("", ".", "..") or "/" in file or "\\" in file or "\0" in file:
            raise ModelError(
                f"the index of the shards names {file[:80]!r}, which is not a file beside it",
                where=str(path),
                fix="put all shards into one directory, and their plain names into the index",
            )
    return files
