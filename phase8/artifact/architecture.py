"""What `config.json` may ask for, held against the manifest before a network is built.

The file comes from the same hand as the weights, and a network costs time and memory before any weight is compared:
20,000 layers beside an artifact of two, or 60 million positions whose tables are worked out at the start. So every
count in it has a bound that follows from the artifact. Example: an artifact of 24 tensors cannot have 25 layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from phase8.artifact.read import Manifest
from phase8.errors import ArtifactError

_LAYERS = {
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers", "encoder_layers", "num_decoder_layers",
    "num_encoder_layers", "num_nextn_predict_layers",
}  # fmt: skip
_NO_EXTENTS = ("base", "id", "ids", "seed", "theta", "token", "tokens")
"""Last words of fields that are large numbers and cost nothing."""
_LARGEST = 1 << 24
"""Most of anything that need not be in the weights, such as positions; Llama 4 has 10 million of these."""
_MOST_EXPERTS = 1 << 12
_BUFFER_BASE, _BUFFER_GAIN = 1 << 26, 4
_FIX = "config.json and model.safetensors must come from one artifact: copy the directory anew"


def _whole_numbers(fields: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Every whole number of a configuration, parts of parts included, by the name of its field."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _whole_numbers(value)
        elif type(value) is int:
            yield name, value
        elif isinstance(value, list | tuple):
            yield from ((name, one) for one in value if type(one) is int)


def check_config(fields: Mapping[str, Any], manifest: Manifest) -> None:
    """Holds a configuration against an artifact.

    Args:
        fields: of `config.json`.
        manifest: of the weights beside it.

    Raises:
        ArtifactError: it asks for more layers than there are tensors, for too many experts, or for an extent beyond
            both the number of weights and 2^24.
    """
    tensors, weights = len(manifest.shapes), manifest.source["parameters"]
    for name, value in _whole_numbers(fields):
        if name in _LAYERS:
            most, why = tensors, f"the artifact has {tensors:,} tensors"
        elif "expert" in name:
            most, why = max(tensors, _MOST_EXPERTS), f"at most {max(tensors, _MOST_EXPERTS):,} are built"
        elif name.split("_")[-1] in _NO_EXTENTS:
            continue
        else:
            most, why = max(weights, _LARGEST), f"the artifact has {weights:,} weights"
        if abs(value) > most:
            raise ArtifactError(f"config.json asks for {name} = {value:,}: {why}", where=manifest.where, fix=_FIX)


def check_buffers(network: Any, manifest: Manifest) -> None:
    """Holds what a network works out at its start (masks, tables of positions) against an artifact's size.

    Args:
        network: a torch module on the meta device, where nothing has memory yet.
        manifest: of its weights.

    Raises:
        ArtifactError: its buffers take more than 64 MiB and four times the weights' memory.
    """
    found = sum(buffer.numel() * buffer.element_size() for buffer in network.buffers())
    most = _BUFFER_BASE + _BUFFER_GAIN * 4 * manifest.source["parameters"]
    if found > most:
        raise ArtifactError(
            f"config.json asks for {found:,} bytes of tables beside the weights, more than the {most:,} allowed",
            where=manifest.where,
            fix=_FIX,
        )
