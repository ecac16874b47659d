"""The model to compress: load it, check it, name its tensors.

Accepted: the embedded reference model (`embedded:reference`), a Hugging Face directory or hub id, and a Phase 7
hand-over (a directory with `phase7_output.pt` or safetensors, a `config.json`, and `phase7_expert_config.json`).
Checkpoints are read as tensors only; nothing in them is ever executed.

Every parameter is seen as a matrix [O, I] (output rows, input columns): `nn.Linear` and embeddings as they are, GPT-2's
`Conv1D` transposed, more than two dimensions flattened to [-1, last] (the fused experts of a mixture). Vectors (norms,
biases) are not matrices; they are stored plainly. Tied parameters count once.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from phase8.errors import ArtifactError, ModelError
from phase8.files import TEMPORARY, read_bounded, temporary_directory, writing
from phase8.model.adapter import ADAPTER_FILE, has_adapter, merge_from, merge_held, without_adapter
from phase8.model.generation import generation_text
from phase8.model.network import load_network

EMBEDDED = "embedded:"
ASSETS = Path(__file__).parents[1] / "assets"
EXPERT_FILE = "phase7_expert_config.json"
_JSON_LIMIT = 16 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertFile:
    """What Phase 7 says about its experts."""

    experts: tuple[str, ...] = ()
    optimal_mixture: tuple[float, ...] = ()
    performance: dict[str, float] | None = None

    @classmethod
    def read(cls, path: Path) -> ExpertFile:
        """Reads `phase7_expert_config.json`.

        Raises:
            ModelError: not JSON, or its fields contradict each other.
        """
        fix = 'needed: {"num_experts": 2, "experts": ["analytical", "code"], "optimal_mixture": [1.0, 1.0]}'
        try:
            data = json.loads(read_bounded(path, _JSON_LIMIT, error=ModelError))
        except ValueError as error:
            raise ModelError(f"the expert file is not JSON: {error}", where=str(path), fix=fix) from error
        return cls.from_dict(data, where=str(path))

    @classmethod
    def from_dict(cls, data: Any, *, where: str) -> ExpertFile:
        """Checks an expert configuration.

        Raises:
            ModelError: its fields are missing, of the wrong type, or contradict each other.
        """
        fix = 'needed: {"num_experts": 2, "experts": ["analytical", "code"], "optimal_mixture": [1.0, 1.0]}'
        if not isinstance(data, dict) or not isinstance(data.get("experts"), list):
            raise ModelError("the expert configuration has no list called `experts`", where=where, fix=fix)
        experts, mixture = data["experts"], data.get("optimal_mixture", [])
        if not all(isinstance(name, str) for name in experts):
            raise ModelError("`experts` must be names", where=where, fix=fix)
        if data.get("num_experts", len(experts)) != len(experts):
            raise ModelError(
                f"`num_experts` is {data['num_experts']}, but {len(experts)} experts are named", where=where, fix=fix
            )
        if mixture and (len(mixture) != len(experts) or not all(isinstance(m, int | float) for m in mixture)):
            raise ModelError("`optimal_mixture` must have one number per expert", where=where, fix=fix)
        known = ("overall_accuracy", "eudaimonia_score", "edge_of_chaos_accuracy")
        record = data.get("performance", data)
        performance = {key: float(record[key]) for key in known if isinstance(record.get(key), int | float)}
        return cls(experts=tuple(experts), optimal_mixture=tuple(map(float, mixture)), performance=performance or None)


def is_matrix(tensor: Tensor) -> bool:
    """Whether a stage compresses it: a learned one of two or more dimensions. A buffer (a table of decays) is kept."""
    return tensor.dim() >= 2 and isinstance(tensor, nn.Parameter)


def as_matrix(module: nn.Module | None, parameter: Tensor) -> Tensor:
    """Views a parameter as a matrix [O, I]; see the module's text."""
    if isinstance(module, Conv1D) and parameter.dim() == 2:
        return parameter.T
    return parameter.reshape(-1, parameter.shape[-1])


def from_matrix(module: nn.Module | None, matrix_OI: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `as_matrix` for a parameter of this shape."""
    if isinstance(module, Conv1D) and len(shape) == 2:
        return matrix_OI.T.reshape(shape)
    return matrix_OI.reshape(shape)


def in_place(place: tuple[nn.Module, Tensor], tensor: Tensor) -> Tensor:
    """A decoded tensor in the shape of the parameter that it stands for; `place` as in `unique_parameters`.

    Raises:
        ModelError: the sizes differ.
    """
    module, parameter = place
    if tensor.numel() != parameter.numel():
        raise ModelError(
            f"a tensor of {tuple(tensor.shape)} cannot stand for a parameter of {tuple(parameter.shape)}",
            where=type(module).__name__,
        )
    return from_matrix(module, tensor, parameter.shape) if parameter.dim() >= 2 else tensor.reshape(parameter.shape)


def unique_parameters(network: nn.Module) -> dict[str, tuple[nn.Module, Tensor]]:
    """Everything that a network has learned, once, by its first name, with the module that holds it; in its order.

    Parameters, and buffers of real numbers that are saved with them: some mixtures of experts keep their routers'
    corrections in such buffers.
    """
    found: dict[str, tuple[nn.Module, Tensor]] = {}
    seen: set[int] = set()
    for prefix, module in network.named_modules(remove_duplicate=True):
        saved = {
            name: buffer
            for name, buffer in module.named_buffers(recurse=False)
            if name not in module._non_persistent_buffers_set and buffer.is_floating_point()
        }
        for name, tensor in [*module.named_parameters(recurse=False), *saved.items()]:
            if id(tensor) not in seen:
                seen.add(id(tensor))
                found[f"{prefix}.{name}" if prefix else name] = (module, tensor)
    return found


@dataclass(frozen=True, kw_only=True)
class SourceModel:
    """A network in float32 with its tokenizer, ready to be measured and compressed."""

    name: str
    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    experts: ExpertFile

    @cached_property
    def parameters(self) -> dict[str, tuple[nn.Module, Tensor]]:
        """See `unique_parameters`."""
        return unique_parameters(self.network)

    @property
    def parameter_count(self) -> int:
        """Number of parameters, tied ones once."""
        return sum(parameter.numel() for _, parameter in self.parameters.values())

    @property
    def original_bytes(self) -> int:
        """FP32 bytes of all parameters: the numerator of every ratio."""
        return 4 * self.parameter_count

    def matrices(self) -> dict[str, Tensor]:
        """Everything that `is_matrix` as a float32 matrix [O, I], on the CPU."""
        return {
            name: as_matrix(module, parameter.detach()).float().contiguous().cpu()
            for name, (module, parameter) in self.parameters.items()
            if is_matrix(parameter)
        }

    def vectors(self) -> dict[str, Tensor]:
        """Everything else, float32, in its own shape, on the CPU."""
        return {
            name: parameter.detach().float().cpu()
            for name, (_, parameter) in self.parameters.items()
            if not is_matrix(parameter)
        }

    @cached_property
    def tokenizer_files(self) -> dict[str, bytes]:
        """See `saved_tokenizer`."""
        return saved_tokenizer(self.tokenizer)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over configuration, tokenizer and every parameter's bytes."""
        held = ((name, parameter.shape, [parameter.detach().cpu()]) for name, (_, parameter) in self.parameters.items())
        return content_hash(self.network, self.tokenizer, held)


def saved_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    """The files that the tokenizer's own library writes, by name."""
    with temporary_directory() as directory:
        with writing(directory, TEMPORARY):
            tokenizer.save_pretrained(directory)
        paths = sorted(path for path in directory.rglob("*") if path.is_file())
        return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def content_hash(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tensors: Iterable[tuple[str, Sequence[int], Iterable[Tensor]]],
) -> str:
    """SHA-256 over a network's configuration and generation settings, its tokenizer, and every parameter's name, shape
    and bytes.

    Args:
        tensors: of every parameter the name, the shape, and its weights in row-major order, in any number of parts.
    """
    digest = hashlib.sha256(architecture_json(network).encode())
    digest.update((generation_text(network) or "").encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    digest.update(backend.to_str().encode() if backend is not None else repr(tokenizer).encode())
    for name, shape, parts in tensors:
        digest.update(f"{name}{tuple(shape)}".encode())
        for part in parts:
            digest.update(part.contiguous().numpy())
    return digest.hexdigest()


def as_parameters(network: PreTrainedModel, decoded: Mapping[str, np.ndarray], *, where: str) -> dict[str, Tensor]:
    """Decoded tensors (matrices [O, I] and vectors) in the shapes of the network's parameters.

    Raises:
        ArtifactError: names or sizes differ from the network's.
    """
    parameters = unique_parameters(network)
    if parameters.keys() != decoded.keys():
        difference = sorted(parameters.keys() ^ decoded.keys())
        raise ArtifactError(f"tensors that do not fit the architecture: {difference[:5]}", where=where)
    try:
        return {name: in_place(place, torch.from_numpy(decoded[name])) for name, place in parameters.items()}
    except ModelError as error:
        raise ArtifactError(f"a tensor does not fit the architecture: {error.what}", where=where) from error


def architecture_json(network: PreTrainedModel) -> str:
    """The network's configuration as JSON with sorted keys, without fields that only tell how it was saved."""
    config = network.config.to_diff_dict()
    for volatile in ("transformers_version", "dtype", "torch_dtype", "_name_or_path", "quantization_config"):
        config.pop(volatile, None)
    config["architectures"] = [type(network).__name__]
    return json.dumps(config, sort_keys=True)


def load_source(path: str, *, experts_path: str | None = None, device: str = "cpu") -> SourceModel:
    """Loads and checks a model.

    Args:
        path: `embedded:reference`, a directory, or a hub id.
        experts_path: an expert file elsewhere than beside the model.
        device: where the network goes.

    Raises:
        ModelError: it cannot be found, read or used; the message says what to do.
    """
    where = path
    if path.startswith(EMBEDDED):
        directory = ASSETS / path.removeprefix(EMBEDDED)
        if not directory.is_dir():
            names = sorted(p.name for p in ASSETS.iterdir() if p.is_dir()) if ASSETS.is_dir() else []
            raise ModelError(f"there is no embedded model {path!r}", where="model.path", fix=f"embedded: {names}")
    else:
        directory = Path(path).expanduser()
    if directory.exists():
        where = str(directory)
        if not directory.is_dir():
            raise ModelError(
                "model.path must be a directory", where=where, fix="name the directory that holds config.json"
            )
        if not (directory / "config.json").is_file() and has_adapter(directory):
            raise ModelError(
                "the directory holds an adapter only, not the model that it adapts",
                where=str(directory / ADAPTER_FILE),
                fix="merge it into its model and save the whole: "
                "AutoPeftModelForCausalLM.from_pretrained(DIR).merge_and_unload().save_pretrained(OUT)",
            )
        if not (directory / "config.json").is_file():
            raise ModelError(
                "the directory holds no config.json, so the architecture is unknown",
                where=where,
                fix="save the model with save_pretrained, or add the config.json of its architecture",
            )
    elif path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise ModelError(
            "no such directory", where=where, fix="check model.path; a hub id has the form organisation/name"
        )
    source: str | Path = directory if directory.exists() else path
    if directory.exists() and has_adapter(directory):
        with without_adapter(directory) as plain:
            network = load_network(plain, where)
        network = merge_from(directory, network)
    else:
        network = load_network(source, where)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # transformers raises anything on a broken file
        raise ModelError(
            f"the tokenizer cannot be loaded: {error}", where=where, fix="save it beside the model (save_pretrained)"
        ) from error
    network = network.float().eval().to(device)
    network.requires_grad_(False)
    check_network(network, tokenizer, where=where)
    expert_path = Path(experts_path) if experts_path else directory / EXPERT_FILE
    if expert_path.is_file():
        experts = ExpertFile.read(expert_path)
    elif experts_path:
        raise ModelError("no such expert file", where=experts_path, fix="check model.experts")
    else:
        experts = ExpertFile()
    return SourceModel(
        name=path if path.startswith(EMBEDDED) else directory.resolve().name or "model",
        network=network,
        tokenizer=tokenizer,
        experts=experts,
    )


def check_network(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, where: str) -> None:
    """What every model has to fulfil, wherever it comes from.

    Raises:
        ModelError: weights are NaN or infinite, or the tokenizer knows more tokens than the embedding.
    """
    bad = [
        f"{name} ({int((~torch.isfinite(p)).sum())} values)"
        for name, (_, p) in unique_parameters(network).items()
        if not torch.isfinite(p).all()
    ]
    if bad:
        raise ModelError(
            f"weights hold NaN or infinite values: {', '.join(bad[:8])}{' ...' if len(bad) > 8 else ''}",
            where=where,
            fix="use a checkpoint from before training diverged",
        )
    check_tokenizer(network, tokenizer, where=where)


def check_tokenizer(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, where: str) -> None:
    """Raises `ModelError` where a tokenizer knows tokens that the network's embedding has no row for."""
    known = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=-1))
    rows = network.get_input_embeddings().weight.shape[0]
    if known > rows:
        raise ModelError(
            f"the tokenizer knows {known} tokens, the embedding only {rows}",
            where=where,
            fix="use the tokenizer that the model was trained with",
        )


def source_from_network(
    network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, experts: ExpertFile, name: str, device: str = "cpu"
) -> SourceModel:
    """Takes a copy of a network that is already in memory; the caller's stays as it is: dtype, mode, gradients, device.

    Adapters of peft are merged into the copy.

    Raises:
        ModelError: it is compressed already, has NaN or infinite weights, or needs another tokenizer.
    """
    if getattr(network, "hf_quantizer", None) is not None:
        raise ModelError(
            "the network is compressed already", where=name, fix="give the original, or model.dequantize()"
        )
    copied = merge_held(copy.deepcopy(network), where=name)
    copied = copied.float().eval().to(device)
    copied.requires_grad_(False)
    check_network(copied, tokenizer, where=name)
    return SourceModel(name=name, network=copied, tokenizer=tokenizer, experts=experts)
