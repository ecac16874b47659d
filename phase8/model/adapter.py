"""Adapters (LoRA and its kin): merged into the weights before anything is measured, or refused.

An adapter adds a few small matrices beside the weights. Neither an artifact nor an encoder knows such modules, so what
would be handed over is the model without its adapter. peft, where it is installed, adds the product to the weights; the
merged model answers as the adapted one. Example: LoRA of rank r makes W [O, I] into W + s B A with B [O, r], A [r, I].

The only file that imports peft.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from phase8.errors import ModelError
from phase8.files import temporary_directory

ADAPTER_FILE = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_BY_HAND = (
    "merge it and save the whole model: PeftModel.from_pretrained(model, DIR).merge_and_unload().save_pretrained(OUT)"
)


def has_adapter(directory: Path) -> bool:
    """Whether an adapter lies in a model's directory."""
    return (directory / ADAPTER_FILE).is_file()


def refuse_adapter(directory: Path) -> None:
    """Raises `ModelError` where an adapter lies in a directory whose weights are read as they are."""
    if has_adapter(directory):
        raise ModelError("an adapter lies beside the weights", where=str(directory / ADAPTER_FILE), fix=_BY_HAND)


@contextmanager
def without_adapter(directory: Path) -> Iterator[Path]:
    """A directory with the same files but the adapter's: transformers would load it by itself, and unmerged."""
    with temporary_directory() as temporary:
        for path in directory.iterdir():
            if not path.name.startswith("adapter_"):
                os.symlink(path.absolute(), temporary / path.name)
        yield temporary


def merge_from(directory: Path, network: Any) -> Any:
    """The network with the directory's adapter merged into its weights.

    Raises:
        ModelError: peft is not installed, or cannot merge this adapter into this network.
    """
    where = str(directory / ADAPTER_FILE)
    if find_spec("peft") is None:
        fix = f"pip install peft, which then merges it here; or {_BY_HAND}"
        raise ModelError("an adapter lies beside the weights, and peft is not installed", where=where, fix=fix)
    if not (directory / _WEIGHTS).is_file():
        raise ModelError(f"an adapter without {_WEIGHTS}", where=where, fix="save it as safetensors, or remove it")
    from peft import PeftModel

    try:
        adapted = PeftModel.from_pretrained(network, str(directory))
    except Exception as error:  # peft raises anything on what does not fit
        what = f"the adapter does not fit the weights beside it: {type(error).__name__}: {str(error)[:200]}"
        raise ModelError(what, where=where, fix=_BY_HAND) from error
    return merge_held(adapted, where=where)


def merge_held(network: Any, *, where: str) -> Any:
    """A network without adapters: the same where it has none; else with them merged, in place.

    Raises:
        ModelError: peft cannot merge these.
    """
    if not is_adapted(network):
        return network
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    try:
        if isinstance(network, PeftModel):
            network = network.merge_and_unload(safe_merge=True)
        for name, layer in list(network.named_modules()):
            if isinstance(layer, BaseTunerLayer):
                layer.merge(safe_merge=True)
                owner, _, last = name.rpartition(".")
                setattr(network.get_submodule(owner), last, layer.get_base_layer())
    except Exception as error:  # peft raises anything on what does not fit
        what = f"the adapter cannot be merged: {type(error).__name__}: {str(error)[:200]}"
        raise ModelError(what, where=where, fix="give the model without it, or an adapter of LoRA's kind") from error
    if is_adapted(network):
        raise ModelError("an adapter that cannot be merged is left", where=where, fix="give the model without it")
    network._hf_peft_config_loaded = False
    vars(network).pop("peft_config", None)
    return network


def is_adapted(network: nn.Module) -> bool:
    """Whether a network has modules of peft."""
    return any(type(module).__module__.split(".")[0] == "peft" for module in network.modules())
