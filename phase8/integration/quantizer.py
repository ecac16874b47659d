"""The transformers quantizer `phase8`: an artifact opens with `from_pretrained` and is saved as it was.

How `from_pretrained` is led (transformers 5): it builds the network without memory (device `meta`), asks the quantizer
to prepare it, then walks over the file's tensors and gives each to the parameter of its name. An artifact's file has
one tensor, `payload`, which stands for all parameters. So

1. `_process_model_before_weight_loading` reads the file with `phase8.artifact.read`, which takes it for hostile,
   holds it against the network's parameters, and decodes it;
2. `update_weight_conversions` says that `payload` turns into those parameters (transformers' own one-to-many rule, made
   for fused weights), so that device placement, tied weights and the report of missing tensors work as for any model;
3. `_process_model_after_weight_loading` gives the network a `save_pretrained` that writes the artifact's own files.

The weights are ordinary parameters, bit for bit those of `phase8.artifact.write.load_artifact`; a `dtype` other than
float32 is a cast of them. Nothing is computed on compressed weights: memory and speed are those of the plain model.

This module is imported while transformers is still importing itself, so it takes from it only what is there by then.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from phase8.artifact.architecture import check_buffers, check_config
from phase8.artifact.read import FORMAT, WEIGHTS_FILE, parse, read_manifest
from phase8.errors import ArtifactError, ModelError
from phase8.files import make_directory, read_bounded, write_atomic
from phase8.limits import Limits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LARGEST_BESIDE = 2**28
_PAYLOAD = "payload"
_Places = dict[str, tuple[nn.Module, Tensor]]


@register_quantization_config(FORMAT)
class Phase8QuantizationConfig(QuantizationConfigMixin):
    """`quantization_config` in an artifact's `config.json`: it names the format, the weights file says the rest."""

    def __init__(self, *, quant_method: str = FORMAT, **fields: Any) -> None:
        self.quant_method = quant_method  # type: ignore[assignment]
        self.format_version = fields.get("format_version")
        self.stage = fields.get("stage")


@register_quantizer(FORMAT)
class Phase8Quantizer(HfQuantizer):
    """Opens artifacts; it does not compress: `python run.py` does."""

    requires_calibration = True

    def __init__(self, quantization_config: QuantizationConfigMixin, **settings: Any) -> None:
        super().__init__(quantization_config, **settings)
        self._files: dict[str, bytes] = {}
        self._decoded: dict[str, Tensor] = {}

    @property
    def is_trainable(self) -> bool:
        """False: what would be trained is not what would be saved. `model.dequantize()` gives a model to train."""
        return False

    def is_serializable(self, safe_serialization: bool | None = None) -> bool:
        """True; see `save_artifact`."""
        return True

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """float32 where nothing else was asked for; `dtype="auto"` finds the payload's uint8."""
        return dtype if dtype is not None and dtype.is_floating_point else torch.float32

    def update_attn_implementation(self, config: Any) -> Any:
        """The one place where transformers shows the configuration before it builds the network; nothing is changed.

        Raises:
            ArtifactError: it asks for more than the artifact has.
        """
        directory = Path(str(getattr(config, "name_or_path", "")))
        if (directory / WEIGHTS_FILE).is_file():  # an artifact on a hub is looked at when it is here
            check_config(config.to_dict(), read_manifest(directory))
        return config

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **settings: Any
    ) -> PreTrainedModel:
        """Reads, checks and decodes the artifact's file.

        Raises:
            ArtifactError: it is damaged or forged, or its tensors are not those of the network.
        """
        if not checkpoint_files or len(checkpoint_files) != 1:
            raise ArtifactError(
                "an artifact has one file of weights", where=str(checkpoint_files), fix=f"copy {WEIGHTS_FILE} anew"
            )
        path = Path(checkpoint_files[0])
        manifest = read_manifest(path.parent)
        check_buffers(model, manifest)
        self._files[WEIGHTS_FILE] = read_bounded(path, Limits().max_file_bytes, error=ArtifactError)
        for name in manifest.files:
            self._files[name] = read_bounded(path.parent / name, _LARGEST_BESIDE, error=ArtifactError)
        meant, here = model.config.architectures or [], type(model).__name__
        if here not in meant:
            raise ArtifactError(
                f"the artifact holds a {', '.join(map(str, meant))[:80]}, not a {here}",
                where=str(path),
                fix="load it with AutoModelForCausalLM; its `.base_model` is the network without the head",
            )
        self._decoded = dict(self._weights(_parameters(model), str(path)))
        for module in model.modules():
            if isinstance(module, nn.Embedding) and not module._buffers:  # else Youtu's own code empties a row of it
                module._is_hf_initialized = True  # type: ignore[assignment]
        return model

    def _weights(self, wanted: _Places, where: str) -> Iterator[tuple[str, Tensor]]:
        """Yields name and weights, in the shape and dtype of the network's parameter."""
        from phase8.model.source import in_place

        sizes = {name: parameter.numel() for name, (_, parameter) in wanted.items()}
        manifest = parse(self._files[WEIGHTS_FILE], where=where)
        manifest.require(sizes)
        for name, values in manifest.artifact().tensors():
            place = wanted[name]
            tensor = in_place(place, torch.from_numpy(np.ascontiguousarray(values)))
            yield name, tensor.contiguous().to(place[1].dtype)

    def update_weight_conversions(
        self, weight_conversions: list[Any], model: PreTrainedModel | None = None
    ) -> list[Any]:
        """`payload` becomes every parameter. The model's own rules are for checkpoints of older names: not for this.

        transformers before 5.21 does not give the model.
        """
        from transformers.core_model_loading import WeightConverter

        operation: Any = _HandOver(self)
        return [WeightConverter(f"^{_PAYLOAD}$", next(iter(self._decoded)), [operation], force_cpu=True)]

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **settings: Any) -> PreTrainedModel:
        # A bound method would be pickled by a name that the class does not have, and not load again.
        vars(model).update(_weight_conversions=None, save_pretrained=partial(save_artifact, model))
        return model

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
        """The same network as an ordinary one, to train or to save uncompressed."""
        vars(model).pop("save_pretrained", None)
        return model

    def check_unchanged(self, model: PreTrainedModel) -> None:
        """Compares the network's weights with the file's.

        Raises:
            ModelError: a tensor differs; the artifact's bytes would not be this network.
        """
        wanted = _parameters(model)
        for name, tensor in self._weights(wanted, WEIGHTS_FILE):
            if not torch.equal(wanted[name][1].detach().cpu(), tensor):
                raise ModelError(
                    "the weights were changed after loading, so the artifact's bytes are no longer this model",
                    where=name,
                    fix="model.dequantize().save_pretrained(DIR) writes it uncompressed; run.py compresses it anew",
                )

    def files(self) -> dict[str, bytes]:
        """Content of the artifact's own files, by name, as they were read."""
        return dict(self._files)


def _parameters(model: PreTrainedModel) -> _Places:
    from phase8.model.source import unique_parameters

    tied = model.all_tied_weights_keys
    return {name: place for name, place in unique_parameters(model).items() if name not in tied}


class _HandOver:
    """Gives out the tensors that the quantizer decoded from the payload, and keeps none.

    It has what transformers asks of a `ConversionOps`, whose module may not be imported yet.
    """

    supports_many_to_many = False

    def __init__(self, quantizer: Phase8Quantizer) -> None:
        self.quantizer = quantizer

    def __deepcopy__(self, memo: dict[int, Any]) -> _HandOver:
        return self  # transformers copies every rule it applies; a copy of all weights is not needed

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **settings: Any
    ) -> dict[str, Any]:
        decoded, self.quantizer._decoded = self.quantizer._decoded, {}
        return decoded


def save_artifact(
    model: PreTrainedModel,
    save_directory: str | os.PathLike,
    is_main_process: bool = True,
    state_dict: dict | None = None,
    push_to_hub: bool = False,
    **settings: Any,
) -> None:
    """`save_pretrained` of a network that came from an artifact: writes the artifact's own files, byte for byte.

    transformers' own would write a file of the same tensors with other metadata, and a longer `config.json`, and both
    count. Arguments that shape a plain checkpoint (`max_shard_size` and the like) have no meaning here and are ignored.

    Raises:
        ModelError: the weights are no longer those of the artifact, or an upload was asked for.
        OutputError: the place cannot be written to.
    """
    if state_dict is not None or push_to_hub or settings.get("variant"):
        raise ModelError(
            "an artifact is saved as the files that it was read from: no state_dict, variant or push_to_hub",
            where="save_pretrained",
            fix="save without it, then upload the directory with `hf upload`; or model.dequantize() first",
        )
    if not is_main_process:
        return
    quantizer = cast(Phase8Quantizer, model.hf_quantizer)
    quantizer.check_unchanged(model)
    directory = make_directory(Path(save_directory), "save_directory")
    for name, content in quantizer.files().items():
        make_directory((directory / name).parent, "save_directory")
        write_atomic(directory / name, content, "save_directory")
