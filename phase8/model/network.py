"""A network out of files: built from its settings, its weights read as tensors, and all of it checked.

A Hugging Face directory or hub id goes through transformers' own loader, without code from the model's directory; a
Phase 7 hand-over's `phase7_output.pt` is read by `phase8.model.torch_file`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from phase8.errors import ModelError, said
from phase8.model.adapter import is_adapted
from phase8.model.generation import read_generation
from phase8.model.shards import INDEX, read_index
from phase8.model.torch_file import read_state

CHECKPOINT = "phase7_output.pt"


def load_network(source: str | Path, where: str) -> PreTrainedModel:
    """The network of a directory or a hub id, on the CPU.

    Raises:
        ModelError: it cannot be read or built, is none that this tool compresses, or its tensors do not fit it.
    """
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # transformers raises anything on a broken file
        raise ModelError(
            f"the configuration cannot be read: {error}",
            where=where,
            fix="check model.path and the network; a hub id needs internet access, a directory a valid config.json",
        ) from error
    check_known(config, where=where)
    packed = getattr(config, "quantization_config", None)
    if packed is not None:
        method = packed.get("quant_method") if isinstance(packed, dict) else packed.quant_method
        raise ModelError(
            f"the checkpoint is compressed already (quantization_config: {method})",
            where=where,
            fix="give the original; an artifact of this tool becomes a plain model with `python -m phase8 export`",
        )
    checkpoint = Path(source) / CHECKPOINT if isinstance(source, Path) else None
    if isinstance(source, Path) and (source / INDEX).is_file():
        read_index(source / INDEX)  # transformers would follow it anywhere
    try:
        if checkpoint is not None and checkpoint.is_file():
            network = _load_checkpoint(config, checkpoint)
            if settings := read_generation(source):
                network.generation_config = settings
            return network
        with _loaded_rows_kept():
            network, info = AutoModelForCausalLM.from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
        if is_adapted(network):
            fix = "download it, and give the directory as model.path"
            raise ModelError("the checkpoint comes with an adapter", where=where, fix=fix)
        check_names(info["missing_keys"], info["unexpected_keys"], info["mismatched_keys"], where=where)
        check_known(network.config, where=where)
        return network
    except ModelError:
        raise
    except Exception as error:  # transformers raises anything on a broken file
        _check_buildable(config, where)
        raise ModelError(
            f"the weights cannot be read: {said(error)}",
            where=where,
            fix="the file may be missing or cut short: copy it anew, as safetensors (or phase7_output.pt with tensors)",
        ) from error


def check_known(config: Any, *, where: str) -> None:
    """Raises `ModelError` where transformers has no causal language model for a configuration.

    Of a network too: those of Emu3 and Mllama are told by the settings of the whole, which has images beside, and keep
    those of the text alone, by which none is found again.
    """
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ModelError(
            f"the architecture {config.model_type!r} has no causal language model in transformers",
            where=where,
            fix="this tool compresses causal language models, such as Llama, GPT-2 or Qwen",
        )


def _check_buildable(config: Any, where: str) -> None:
    """Raises `ModelError` where it is not the weights that are wrong: transformers makes no network of the settings."""
    try:
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config)
    except Exception as error:  # transformers raises anything
        raise ModelError(
            f"transformers cannot build a causal language model of this configuration: {said(error)}",
            where=where,
            fix="install what it asks for, or correct config.json: AutoModelForCausalLM.from_config must take it",
        ) from error


@contextmanager
def _loaded_rows_kept() -> Iterator[None]:
    """While open, `from_pretrained` leaves embeddings alone that it has read from a file.

    After loading, transformers initialises what was missing. It marks the tensors that were not, but Youtu's own code
    (transformers 5.23) writes zeros into a slice, the padding token's row, which does not carry the mark.
    """
    own = PreTrainedModel._initialize_weights

    def careful(network: PreTrainedModel, module: nn.Module, *rest: Any, **settings: Any) -> None:
        if not _is_read_embedding(module):
            own(network, module, *rest, **settings)

    PreTrainedModel._initialize_weights = careful
    try:
        yield
    finally:
        PreTrainedModel._initialize_weights = own


def _is_read_embedding(module: nn.Module) -> bool:
    """Whether a module is an embedding whose every number came from a file."""
    return (
        isinstance(module, nn.Embedding) and not module._buffers and getattr(module.weight, "_is_hf_initialized", False)
    )


def _load_checkpoint(config: Any, path: Path) -> PreTrainedModel:
    state = read_state(path)
    layers = getattr(config, "num_hidden_layers", 0) or 0
    if layers > len(state):  # a network of them costs memory before any name is compared
        raise ModelError(
            f"config.json asks for {layers:,} layers, the checkpoint has {len(state):,} tensors",
            where=str(path),
            fix="use the config.json that belongs to this checkpoint",
        )
    with torch.device("meta"):
        wanted = AutoModelForCausalLM.from_config(config, dtype=torch.float32).state_dict()
    different = [name for name, tensor in state.items() if name in wanted and wanted[name].shape != tensor.shape]
    if different:
        raise ModelError(
            f"the checkpoint does not fit the architecture; other shapes: {different[:5]}",
            where=str(path),
            fix="use the config.json that belongs to this checkpoint",
        )
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    missing, unexpected = network.load_state_dict(state, strict=False)
    network.tie_weights()
    tied = set(getattr(network, "_tied_weights_keys", None) or ())
    missing = [name for name in missing if name not in tied]
    if missing or unexpected:
        raise ModelError(
            f"the checkpoint does not fit the architecture; missing: {missing[:5]}, unexpected: {unexpected[:5]}",
            where=str(path),
            fix="use the config.json that belongs to this checkpoint",
        )
    return network


def check_names(missing: Iterable[Any], unexpected: Iterable[Any], mismatched: Iterable[Any], *, where: str) -> None:
    """Holds what loading a checkpoint found against what it should: every learned number has one place, and none is
    made up or left out.

    Raises:
        ModelError: tensors are missing, of another shape, or not the architecture's; names them.
    """
    absent = sorted(map(str, missing)) + sorted(map(str, mismatched))
    if absent:
        raise ModelError(
            f"the checkpoint lacks {len(absent)} of the architecture's tensors: {', '.join(absent[:5])}",
            where=where,
            fix="copy the whole checkpoint, with the config.json that belongs to it",
        )
    left = sorted(map(str, unexpected))
    if left:
        raise ModelError(
            f"the checkpoint has {len(left)} tensors that the architecture has no place for: {', '.join(left[:5])}"
            f"{' ...' if len(left) > 5 else ''}; what they have learned would be lost",
            where=where,
            fix="correct config.json (perhaps a setting such as attention_bias is false there); or, to leave them out, "
            "load the model with transformers and write it anew with save_pretrained",
        )
