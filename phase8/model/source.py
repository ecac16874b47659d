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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from phase8.errors import ArtifactError, ModelError, said
from phase8.files import TEMPORARY, read_bounded, temporary_directory, writing
from phase8.model.adapter import ADAPTER_FILE, has_adapter, is_adapted, merge_from, merge_held, without_adapter
from phase8.model.generation import generation_text, read_generation
from phase8.model.shards import INDEX, read_index
from phase8.model.torch_file import read_state

EMBEDDED = "embedded:"
ASSETS = Path(__file__).parents[1] / "assets"
CHECKPOINT = "phase7_output.pt"
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
            network = _load_network(plain, where)
        network = merge_from(directory, network)
    else:
        network = _load_network(source, where)
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


def _load_network(source: str | Path, where: str) -> PreTrainedModel:
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
        with loaded_rows_kept():
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
def loaded_rows_kept() -> Iterator[None]:
    """While open, `from_pretrained` leaves embeddings alone that it has read from a file.

    After loading, transformers initialises what was missing. It marks the tensors that were not, but Youtu's own code
    (transformers 5.23) writes zeros into a slice, the padding token's row, which does not carry the mark.
    """
    own = PreTrainedModel._initialize_weights

    def careful(network: PreTrainedModel, module: nn.Module, *rest: Any, **settings: Any) -> None:
        if not is_read_embedding(module):
            own(network, module, *rest, **settings)

    PreTrainedModel._initialize_weights = careful
    try:
        yield
    finally:
        PreTrainedModel._initialize_weights = own


def is_read_embedding(module: nn.Module) -> bool:
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
