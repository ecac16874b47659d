"""Reading a state dict that `torch.save` wrote, as if it came from an enemy.

Such a file is a zip of a pickle and of the tensors' bytes. `torch.load(weights_only=True)` runs no code from it, but
spends what it says: an entry of the zip may be deflated (3 MB that inflate to 3.4 GB), the pickle may call for a
`bytearray` of any length, a tensor may be a view of one number with a billion elements. `torch.save` never writes
these, so they are looked for before anything is loaded, and whatever else is unusual is refused.

Example: `torch.save({"w": torch.ones(2)}, "a.pt")` has a pickle that names `collections.OrderedDict` (for what belongs
to the state dict), `torch._utils._rebuild_tensor_v2` and `torch.FloatStorage`.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from phase8.errors import ModelError

_PICKLE_BYTES = 1 << 26
_ENTRIES = 1 << 20
_KNOWN = {
    "collections OrderedDict",
    "torch Size",
    "torch device",
    "torch.nn.parameter Parameter",
    "torch.serialization _get_layout",
    "torch.storage TypedStorage",
    "torch.storage UntypedStorage",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
}
_FIX = "save it with torch.save(model.state_dict(), ...), or better as safetensors"


def read_state(path: Path) -> dict[str, Tensor]:
    """Reads a state dict, or the one within a checkpoint (`model_state_dict`, `state_dict` or `model`).

    Raises:
        ModelError: it is not a zip of `torch.save`, has deflated or oversized entries, names something that no state
            dict needs, or holds something else than tensors that own their numbers.
    """
    _check_zip(path)
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    for key in ("model_state_dict", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(
            "the checkpoint is not a state dict of tensors", where=str(path), fix="save model.state_dict()"
        )
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ModelError(
                f"{name!r} is a tensor of {tensor.numel():,} numbers that it does not hold", where=str(path)
            )
    return state


def _check_zip(path: Path) -> None:
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
            deflated = [one.filename for one in entries if one.compress_type != zipfile.ZIP_STORED]
            if deflated or len(entries) > _ENTRIES or sum(one.file_size for one in entries) > size:
                what = "has entries that inflate" if deflated else "claims more bytes than it has"
                raise ModelError(f"the checkpoint {what}, which torch.save never writes", where=str(path), fix=_FIX)
            pickles = [one for one in entries if one.filename.endswith(".pkl")]
            if len(pickles) != 1 or pickles[0].file_size > _PICKLE_BYTES:
                raise ModelError("the checkpoint has no pickle of a state dict's size", where=str(path), fix=_FIX)
            _check_pickle(file.read(pickles[0]), path)
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise ModelError(
            f"the checkpoint is not a file of torch.save since 1.6: {error}", where=str(path), fix=_FIX
        ) from error


def _check_pickle(content: bytes, path: Path) -> None:
    """Looks at what the pickle names, without running it."""
    for operation, argument, _ in pickletools.genops(content):
        name = str(argument)
        if operation.name == "GLOBAL":
            module, _, last = name.partition(" ")
            dtype = module == "torch" and isinstance(getattr(torch, last, None), torch.dtype)
            if name in _KNOWN or dtype or (module == "torch" and last.endswith("Storage")):
                continue
        elif operation.name not in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            continue
        raise ModelError(f"the checkpoint asks for {name[:80]!r}, which no state dict needs", where=str(path), fix=_FIX)
