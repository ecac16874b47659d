"""What runs share: the steps that other runs finished, found by content (`phase8/cache.py`).

    importance   what calibration text says of each matrix (Hessians)
    encoded      a stage's groups before training: the seed searches and the k-means
    trained      the same after training
    scores       the score of every item on an artifact, by the bytes of its files

Off for a run on its own, which does what it says; on inside a multirun or study (`paths.reuse`). Every step depends on
nothing but the original model, the texts and its settings, so what is found is what would have been made: the same
bytes on the same machine with the same number of threads, both of which are in the key. Steps within a byte budget are
not shared, their scores are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from phase8.benchmarks.evaluate import SuiteResult
from phase8.benchmarks.suite import Suite, suite_hash
from phase8.cache import ContentCache, code_version, content_key
from phase8.codecs import EncodedGroup, Importance
from phase8.codecs.stages import NAMES
from phase8.config import CompressionConfig
from phase8.errors import ArtifactError
from phase8.model.source import SourceModel
from phase8.run.journal import read_facts, read_groups, read_scores, write_facts, write_groups, write_scores

AROUND = frozenset(
    "variant max_retries max_accuracy_loss min_compression_ratio target_compression_ratio benchmark_samples "
    "skip_expert_benchmarks benchmarks gates logger paths model calibration_text dashboard fallback".split()
)
"""Settings that change nothing in a stage's groups. The model and the texts stand in the key by their content."""
TRAINING = frozenset(("grokfast", "optimizer"))
Trained = tuple[list[EncodedGroup], dict[str, Any]]
"""Groups after training, and facts about it as plain values (`phase8.run.optimise`)."""


class Shared:
    """The shared steps of one run.

    Args:
        tell: called with a sentence where a step is taken from another run.
    """

    def __init__(
        self, source: SourceModel, cache_dir: Path | str, *, enabled: bool, tell: Callable[[str, str | None], Any]
    ) -> None:
        self.source, self.cache, self._tell = source, ContentCache(cache_dir, enabled=enabled), tell

    def importance(
        self, tokens: Tensor, batch_sequences: int, make: Callable[[], dict[str, Importance]]
    ) -> dict[str, Importance]:
        """Hessians and row weights of every matrix, by name."""
        parts = {**self._place(), "tokens": _hash(tokens), "batch": batch_sequences}
        return self.cache.get_or_make(
            "importance",
            {**parts, "code": code_version("model")},
            read=_read_importance,
            make=make,
            write=_write_importance,
            suffix=".safetensors",
            found=lambda: self._tell("Hessians taken from another run", None),
        )

    def encoded(
        self, stage: str, config: CompressionConfig, tokens: Tensor, make: Callable[[], list[EncodedGroup]]
    ) -> list[EncodedGroup]:
        """A stage's groups before training.

        Args:
            tokens: the training text, int64 [N, T], which the Hessians are of.
        """
        return self.cache.get_or_make(
            "encoded",
            self._stage_parts(stage, config, tokens),
            read=read_groups,
            make=make,
            write=lambda path, groups: write_groups(path, groups, stage, self.source.parameter_count),
            suffix=".p8",
            found=lambda: self._tell(f"{stage}: encoded by another run", stage),
        )

    def trained(
        self,
        stage: str,
        config: CompressionConfig,
        texts: tuple[Tensor, Tensor],
        filtered: bool,
        make: Callable[[], Trained],
    ) -> tuple[Trained, bool]:
        """A stage's groups after training.

        Args:
            texts: training and held-out text.
            filtered: whether the gradient filter may be used.

        Returns:
            Groups with facts, and whether another run made them.
        """
        taken = False

        def found() -> None:
            nonlocal taken
            taken = True
            self._tell(f"{stage}: encoded and trained by another run", stage)

        parts = self._stage_parts(stage, config, texts[0], training=True)
        parts |= {"held out": _hash(texts[1]), "filtered": filtered, "training code": code_version("train")}
        facts_path = self.cache.directory / "trained" / f"{content_key(parts)}.json"

        def write(path: Path, result: Trained) -> None:
            write_facts(facts_path, result[1])  # first: groups without facts are never found
            write_groups(path, result[0], stage, self.source.parameter_count)

        result = self.cache.get_or_make(
            "trained",
            parts,
            read=lambda path: (read_groups(path), read_facts(facts_path)),
            make=make,
            write=write,
            suffix=".p8",
            found=found,
            beside=facts_path,
        )
        return result, taken

    def scores(
        self, artifact: Path, suite: Suite, config: CompressionConfig, make: Callable[[], SuiteResult]
    ) -> tuple[SuiteResult, bool]:
        """The scores of an artifact, and whether another run measured them."""
        taken = False

        def found() -> None:
            nonlocal taken
            taken = True
            self._tell("scores taken from another run", None)

        parts = {
            **self._place(),
            "artifact": _directory_hash(artifact),
            "suite": suite_hash(suite),
            "batch tokens": config.benchmarks.batch_tokens,
            "code": code_version("benchmarks", "model", "codecs", "lossless", "artifact"),
        }
        result = self.cache.get_or_make(
            "scores", parts, read=read_scores, make=make, write=write_scores, suffix=".json", found=found
        )
        return result, taken

    def _place(self) -> dict[str, Any]:
        """The model, and what decides how sums are rounded."""
        return {
            "model": self.source.content_hash,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": str(next(self.source.network.parameters()).device),
        }

    def _stage_parts(
        self, stage: str, config: CompressionConfig, tokens: Tensor, *, training: bool = False
    ) -> dict[str, Any]:
        left_out = AROUND | ({name for name in NAMES if name != stage}) | (frozenset() if training else TRAINING)
        settings = {name: value for name, value in config.to_dict().items() if name not in left_out}
        return {
            **self._place(),
            "stage": stage,
            "settings": settings,
            "tokens": _hash(tokens),
            "batch": config.optimizer.batch_sequences,
            "code": code_version("codecs", "lossless", "model", "artifact"),
        }


def _directory_hash(directory: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(directory).as_posix()}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _hash(tokens: Tensor) -> str:
    values = np.ascontiguousarray(tokens.cpu().numpy())
    return hashlib.sha256(repr(values.shape).encode() + values.tobytes()).hexdigest()


def _read_importance(path: Path) -> dict[str, Importance]:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"not Hessians: {error}", where=str(path)) from error
    names = {key.rpartition("/")[0] for key in tensors}
    return {
        name: Importance(hessian_II=tensors.get(f"{name}/hessian"), row_O=tensors.get(f"{name}/row")) for name in names
    }


def _write_importance(path: Path, found: dict[str, Importance]) -> None:
    tensors = {f"{name}/hessian": i.hessian_II for name, i in found.items() if i.hessian_II is not None}
    tensors |= {f"{name}/row": i.row_O for name, i in found.items() if i.row_O is not None}
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
