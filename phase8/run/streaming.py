"""Encoding a checkpoint from disk to disk: never the model in memory, and no large matrix of it.

`python run.py` holds the network, since it has to measure it. This is the way for models that do not fit: the
architecture is laid out without memory (PyTorch's meta device), matrices are read from the safetensors shards in strips
as the codec wants them, every group is encoded, entropy-coded and written before the next one is read. What is held is
the streams of one group with the codec's working memory, and of the groups before only their entries in the manifest.
(Polynomial, Fourier and manifold trajectories, and the transposed layers of GPT-2, have a matrix in memory as a whole.)

Groups are those of a run, cut where they exceed `group_weights` weights: a cut group has codebooks of its own. So a
model of no more weights than that becomes the same file, byte for byte, as `write_artifact` makes of it; a larger one a
file with a few more codebooks and frequency tables. Example: VPTQ with `share=kind`, 22 layers of `up_proj` with 11.5
million weights each and room for 24 million: 11 groups of two layers each.

No calibration: nothing is run through the network, all weights count alike. Seeds and trajectories do not use it
anyway; VPTQ loses its second-order loop, and the gates of a run are not asked.
"""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from phase8.artifact.read import WEIGHTS_FILE, Manifest, read_manifest
from phase8.artifact.write import code_pools, describe_group, file_header, files_beside
from phase8.codecs import EncodedGroup
from phase8.codecs.base import Progress
from phase8.codecs.matrices import AT_ONCE, HeldMatrix, Matrix
from phase8.config import CompressionConfig
from phase8.errors import ModelError, said
from phase8.files import OUT, directory_swap, make_directory, write_atomic
from phase8.limits import TRUSTED
from phase8.model.adapter import refuse_adapter
from phase8.model.generation import read_generation
from phase8.model.names import Origin, map_names
from phase8.model.network import check_known, check_names
from phase8.model.shards import INDEX, read_index
from phase8.model.source import (
    as_matrix,
    check_tokenizer,
    content_hash,
    is_matrix,
    saved_tokenizer,
    unique_parameters,
)
from phase8.run.encode import encode_coded, encode_plain, plan

GROUP_WEIGHTS = 1 << 23
"""Most weights of a group, unless one matrix alone has more: the streams of so many are held."""
_SINGLE = "model.safetensors"
_M_MMAP_THRESHOLD = -3
_MAPPED_BYTES = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face directory with safetensors shards, opened without reading a weight.

    Names are mapped as transformers' own loader does. A parameter that is put together from several stored tensors, or
    is a part of one, is held as a whole while it is read.
    """

    directory: Path
    network: PreTrainedModel
    """The architecture on the meta device: shapes without memory."""
    tokenizer: PreTrainedTokenizerBase
    _origins: dict[str, tuple[str, Origin]]
    """Of every parameter the name under which its origin gives it, and that origin."""
    _shards: dict[str, Path]
    """Of every stored tensor."""
    _made: dict[str, Tensor] = field(default_factory=dict)
    """The parameter put together last."""

    @cached_property
    def parameters(self) -> dict[str, tuple[nn.Module, Tensor]]:
        """See `unique_parameters`; tensors without memory."""
        return unique_parameters(self.network)

    @property
    def parameter_count(self) -> int:
        """Number of parameters, tied ones once."""
        return sum(parameter.numel() for _, parameter in self.parameters.values())

    def part(self, name: str, begin: int, end: int) -> Tensor:
        """Weights `begin` .. `end` - 1 of one parameter, in row-major order of its own shape; float32, no view.

        Raises:
            ModelError: it cannot be read, or has another shape.
        """
        target, origin = self._origins[name]
        shape = self.parameters[name][1].shape
        if origin.rule is not None:
            if name not in self._made:
                self._made.clear()
                self._made[name] = origin.make(self.network, self._stored)[target].reshape(-1)
            return self._made[name][begin:end].to(torch.float32, copy=True)
        stored = origin.stored[0][0]
        with self._opened(stored) as file:
            if not shape:
                return file.get_tensor(stored).to(torch.float32, copy=True).reshape(1)[begin:end]
            row = max(1, math.prod(shape[1:]))
            first = begin // row
            flat = file.get_slice(stored)[first : -(-end // row)].reshape(-1)
            return flat[begin - first * row : end - first * row].to(torch.float32, copy=True)

    def _stored(self, stored: str) -> Tensor:
        with self._opened(stored) as file:
            return file.get_tensor(stored)

    @contextmanager
    def _opened(self, stored: str) -> Iterator[Any]:
        """The shard of a stored tensor, opened anew each time: as long as it is open, all that was read of it counts as
        held memory."""
        shard = self._shards[stored]
        try:
            with safe_open(shard, framework="pt") as file:
                yield file
        except (OSError, SafetensorError) as error:
            raise ModelError(f"a shard cannot be read: {error}", where=str(shard), fix="copy the file anew") from error

    def read(self, name: str) -> Tensor:
        """One parameter in its own shape, float32; raises as `part`."""
        shape = self.parameters[name][1].shape
        return self.part(name, 0, shape.numel()).reshape(shape)

    def held(self, name: str) -> Tensor:
        """As `read`, seen as a matrix [O, I]."""
        return as_matrix(self.parameters[name][0], self.read(name)).contiguous()

    def matrix(self, name: str) -> Matrix:
        """The same, to be read in parts."""
        module, parameter = self.parameters[name]
        seen = as_matrix(module, parameter)
        # Else rows of the matrix are columns of the file, or the file has it in pieces.
        in_order = seen.is_contiguous() and self._origins[name][1].rule is None
        return _StoredMatrix(tuple(seen.shape), partial(self.part, name)) if in_order else HeldMatrix(self.held(name))

    def content_hash(self) -> str:
        """As `SourceModel.content_hash`; reads every tensor once."""

        def parts(name: str, size: int) -> Iterator[Tensor]:
            return (self.part(name, begin, min(begin + AT_ONCE, size)) for begin in range(0, size, AT_ONCE))

        stored = ((name, p.shape, parts(name, p.numel())) for name, (_, p) in self.parameters.items())
        return content_hash(self.network, self.tokenizer, stored)


@dataclass(frozen=True, slots=True)
class _StoredMatrix:
    """A matrix in a shard, see `phase8.codecs.matrices.Matrix`."""

    shape: tuple[int, ...]
    part: Callable[[int, int], Tensor]


def open_checkpoint(directory: Path | str) -> Checkpoint:
    """Opens a checkpoint and holds its tensors' names against the architecture.

    Raises:
        ModelError: no safetensors, no architecture, or names that are not the architecture's.
    """
    directory = Path(directory)
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        network.tie_weights()
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # transformers raises anything on a broken file
        raise ModelError(
            f"config.json or the tokenizer cannot be read: {said(error)}",
            where=str(directory),
            fix="name a directory that save_pretrained wrote",
        ) from error
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError("the checkpoint is compressed already", where=str(directory), fix="give the original")
    refuse_adapter(directory)
    check_known(network.config, where=str(directory))
    check_tokenizer(network, tokenizer, where=str(directory))
    if settings := read_generation(directory):
        network.generation_config = settings
    shards = _shards(directory)
    try:
        mapped = map_names(network, _shapes(shards))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"a shard cannot be read: {error}", where=str(directory), fix="copy the file anew") from error
    except (KeyError, IndexError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise ModelError(
            f"the checkpoint's tensors cannot be put together: {said(error)}",
            where=str(directory),
            fix="use the config.json that belongs to this checkpoint",
        ) from error
    parameters, aliases = unique_parameters(network), _aliases(network)
    origins = {}
    for name in parameters:
        target = next((alias for alias in aliases[name] if alias in mapped.origins), None)
        if target is not None:
            origins[name] = target, mapped.origins[target]
    misshapen = [
        f"{name}: {mapped.shapes[target]} on disk, {tuple(parameters[name][1].shape)} needed"
        for name, (target, _) in origins.items()
        if mapped.shapes[target] != tuple(parameters[name][1].shape)
    ]
    check_names(parameters.keys() - origins.keys(), mapped.unexpected, misshapen, where=str(directory))
    return Checkpoint(directory=directory, network=network, tokenizer=tokenizer, _origins=origins, _shards=shards)


def _shapes(shards: dict[str, Path]) -> dict[str, tuple[int, ...]]:
    """The shape of every stored tensor, from the shards' headers."""
    shapes = {}
    for shard in sorted(set(shards.values())):
        with safe_open(shard, framework="pt") as file:
            listed = set(file.keys())
            shapes |= {n: tuple(file.get_slice(n).get_shape()) for n, place in shards.items() if place == shard}
            if absent := [n for n, place in shards.items() if place == shard and n not in listed]:
                raise SafetensorError(f"{shard.name} lacks {absent[:3]}")
    return shapes


def _aliases(network: nn.Module) -> dict[str, list[str]]:
    """All names of every parameter and saved buffer (tied ones have several), by the first."""
    first: dict[int, str] = {id(tensor): name for name, (_, tensor) in unique_parameters(network).items()}
    found: dict[str, list[str]] = {name: [] for name in first.values()}
    for name, tensor in network.state_dict(keep_vars=True).items():
        if id(tensor) in first:
            found[first[id(tensor)]].append(name)
    return found


def _shards(directory: Path) -> dict[str, Path]:
    """The shard of every stored tensor."""
    index = directory / INDEX
    if index.is_file():
        return {name: directory / file for name, file in read_index(index).items()}
    single = directory / _SINGLE
    if not single.is_file():
        raise ModelError(
            "there are no safetensors here", where=str(directory), fix="save the model with save_pretrained"
        )
    try:
        with safe_open(single, framework="pt") as file:
            return dict.fromkeys(file.keys(), single)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"the weights cannot be read: {error}", where=str(single), fix="copy the file anew") from error


def encode_groups(
    checkpoint: Checkpoint,
    stage: str,
    config: CompressionConfig,
    *,
    group_weights: int = GROUP_WEIGHTS,
    on_progress: Progress | None = None,
) -> Iterator[EncodedGroup]:
    """Reads and encodes one group after the other: the stage's, then the vectors, then protected matrices."""
    matrices = {n: p.numel() for n, (_, p) in checkpoint.parameters.items() if is_matrix(p)}
    vectors = {n: p.numel() for n, (_, p) in checkpoint.parameters.items() if not is_matrix(p)}
    planned = plan(stage, config, matrices, vectors, group_weights=group_weights)
    yield from encode_coded(planned, stage, config, checkpoint.matrix, on_progress=on_progress)
    yield from encode_plain(
        planned, config, lambda name: (checkpoint.read if name in vectors else checkpoint.held)(name)
    )


def _return_freed_arrays() -> None:
    """Makes glibc map every array of 1 MiB and more on its own, for the rest of the process, so that it goes back to
    the system when it is freed.

    By default that limit rises to the largest array freed so far, up to 32 MiB; such arrays then come from heaps that a
    small array behind them keeps from shrinking (`experiments/LOG.md`, 2026-11-25).
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(library, "mallopt"):  # musl has none
        library.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


def encode_checkpoint(
    directory: Path | str,
    out: Path | str,
    stage: str,
    config: CompressionConfig,
    *,
    group_weights: int = GROUP_WEIGHTS,
    on_progress: Progress | None = None,
) -> Manifest:
    """Encodes a checkpoint into an artifact, completely or not at all, and reads the file's outline and checksums back.

    Args:
        directory: the checkpoint, see `Checkpoint`.
        out: the artifact's directory.
        stage: its name; its settings are those of that name in `config`.
        group_weights: most weights of a group, unless one matrix alone has more.
        on_progress: called with the number of weights finished since the last call.

    Raises:
        ModelError: the checkpoint cannot be read.
        CodecError: weights that are NaN or infinite.
        OutputError: disk full or not writable; what was there before is untouched.
    """
    _return_freed_arrays()
    checkpoint, out = open_checkpoint(directory), Path(out)
    source = {"hash": checkpoint.content_hash(), "parameters": checkpoint.parameter_count}
    listed, pools = [], []
    with directory_swap(out, OUT) as fresh:
        # The header stands first in the file and is known last.
        waiting = fresh / "payload"
        with waiting.open("wb") as payload:
            groups = encode_groups(checkpoint, stage, config, group_weights=group_weights, on_progress=on_progress)
            for index, group in enumerate(groups):
                listed.append(describe_group(group))
                for pool, blob in code_pools(index, group):
                    pools.append(pool)
                    payload.write(blob)
                del group
            length = payload.tell()
        with (fresh / WEIGHTS_FILE).open("wb") as file, waiting.open("rb") as payload:
            beside = files_beside(checkpoint.network, saved_tokenizer(checkpoint.tokenizer), stage)
            file.write(file_header(stage, source, listed, pools, length, beside))
            shutil.copyfileobj(payload, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
        waiting.unlink()
        for name, content in beside.items():
            make_directory((fresh / name).parent)
            write_atomic(fresh / name, content, OUT)
    return read_manifest(out, limits=TRUSTED)
