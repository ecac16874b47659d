"""A training's state on disk, from which a killed run goes on.

    DIRECTORY/checkpoint.safetensors      tensors; plain values as JSON in the metadata; a checksum after the end

A flipped bit in a parameter or a moment would give another file than the seed's, in silence: hence the checksum.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from phase8.errors import ArtifactError
from phase8.files import make_directory, read_sealed, write_sealed

FILE = "checkpoint.safetensors"
MOST_BYTES = 1 << 36


@dataclass(frozen=True, slots=True)
class State:
    """Everything that a training goes on from: tensors by name, and plain values."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


def write_checkpoint(directory: Path, state: State) -> None:
    """Writes a checkpoint, whole or not at all.

    Raises:
        OutputError: the disk is full or the place is not writable; the checkpoint before is untouched.
    """
    tensors = {name: value.contiguous().cpu() for name, value in state.tensors.items()}
    write_sealed(make_directory(directory) / FILE, save(tensors, metadata={"state": json.dumps(state.values)}))


def read_checkpoint(directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> State | None:
    """Reads what `write_checkpoint` wrote; None where nothing was.

    Args:
        shapes: of tensors that must be there.

    Raises:
        ArtifactError: the file is damaged, or is of another training.
    """
    path = directory / FILE
    if not path.exists():
        return None
    raw = read_sealed(path, MOST_BYTES, error=ArtifactError)
    try:
        (length,) = struct.unpack_from("<Q", raw)
        values = json.loads(json.loads(raw[8 : 8 + length])["__metadata__"]["state"])
        tensors = load(raw)
    except (SafetensorError, struct.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"not a checkpoint: {error}", where=str(path)) from error
    found = {name: tuple(tensors[name].shape) for name in shapes if name in tensors}
    if not isinstance(values, dict) or found != dict(shapes):
        raise ArtifactError("the checkpoint is of another training", where=str(path))
    return State(tensors, values)
