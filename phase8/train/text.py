"""Text to train on: the embedded world's, a user's file, or what the original writes itself.

Training shows a compressed model every skill that it is to keep, so the embedded world's documents are drawn from a mix
of all of them (`phase8.world.mix`). A user's file is read whole; where it holds less than `ENOUGH`, the original writes
the rest itself: sequences sampled from it token by token (temperature 1), which hold what the model knows and nothing
else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import PreTrainedModel

from phase8.cache import ContentCache, code_version
from phase8.errors import ConfigError
from phase8.files import CACHE, write_atomic
from phase8.model.latency import CACHES
from phase8.model.source import EMBEDDED, SourceModel
from phase8.model.text import read_documents
from phase8.world.mix import Mix

ENOUGH = 16_384
"""Sequences up to which the original writes: more is better, but writing takes many times as long as answering."""
PART = 10_000
"""Between the seeds of two parts."""
WRITTEN_AT_ONCE, WRITTEN_BYTES = 256, 1 << 27
"""Sequences that the original writes side by side, and what it may keep of them meanwhile (keys and values)."""
SAME = 1e-3
"""Of the largest logit: sums are taken in another order with a cache."""


@dataclass(frozen=True, kw_only=True)
class TrainingText:
    """Sequences to train on, and where they come from."""

    tokens_NT: Tensor
    """int64 [N, T]."""
    told: str
    """For people: "8,192 sequences of the embedded world's text"."""


def training_text(
    source: SourceModel,
    *,
    model_path: str,
    path: str | None,
    sequences: int,
    length: int,
    seed: int,
    part: int = 0,
    mix: Mix = Mix.judged,
    cache: ContentCache | None = None,
    on_written: Callable[[int, int], None] | None = None,
) -> TrainingText:
    """Collects `sequences` sequences of `length` tokens.

    Args:
        model_path: the model's name; an embedded model has text of its own.
        path: a UTF-8 text file; None where the user gave none.
        part: 0 for the first text, 1 for another, as long as the source has more: a training that goes on learns more
            from text that it has not read yet (experiments/LOG.md, 2026-11-27).
        mix: of skills in an embedded model's text.
        cache: keeps what the original writes for other runs.
        on_written: told how many sequences the original has written, of how many.

    Raises:
        ConfigError: the file cannot be read, is not text, or holds not even one sequence.
    """
    seed += PART * part
    if path is None and model_path.startswith(EMBEDDED):
        from phase8.model.text import token_sequences

        tokens = token_sequences(source.tokenizer, sequences=sequences, length=length, seed=seed, mix=mix)
        return TrainingText(tokens_NT=tokens, told=f"{sequences:,} sequences of the embedded world's text")
    found = torch.empty(0, length, dtype=torch.int64)
    told = "no text was given"
    if path is not None:
        found = _from_file(source, path, length)
        told = f"{Path(path).name} holds {found.numel():,} tokens"
        if len(found) >= sequences:
            first = sequences * part if len(found) >= sequences * (part + 1) else 0
            told = f"{sequences:,} sequences of {Path(path).name}"
            return TrainingText(tokens_NT=found[first : first + sequences], told=told)
    missing = min(sequences, ENOUGH) - len(found)
    if missing <= 0:
        return TrainingText(tokens_NT=found, told=f"{len(found):,} sequences of {told}")
    written = _written(source, missing, length, seed, cache, on_written)
    told += f"; {missing:,} sequences of {length} tokens were written by the original itself"
    return TrainingText(tokens_NT=torch.cat([found, written]), told=told)


def _written(
    source: SourceModel,
    sequences: int,
    length: int,
    seed: int,
    cache: ContentCache | None,
    on_written: Callable[[int, int], None] | None,
) -> Tensor:
    def make() -> Tensor:
        return write_text(source.network, sequences, length, seed=seed, on_written=on_written)

    def write(path: Path, tokens: Tensor) -> None:
        write_atomic(path, save({"tokens": tokens.contiguous()}), CACHE)

    if cache is None:
        return make()
    made_from = {"model": source.content_hash, "sequences": sequences, "length": length, "seed": seed}
    made_from["code"] = code_version("train/text")
    return cache.get_or_make("text", made_from, read=lambda path: load_file(path)["tokens"], make=make, write=write)


def _from_file(source: SourceModel, path: str, length: int) -> Tensor:
    fix = "give a UTF-8 text file, documents parted by blank lines, or none: the original then writes its own text"
    ids: list[int] = []
    for document in source.tokenizer(read_documents(path, fix), verbose=False)["input_ids"]:
        ids.extend(document)
    whole = len(ids) // length
    if whole == 0:
        raise ConfigError(
            f"the text holds {len(ids):,} tokens, not even one sequence of {length}", where=str(Path(path)), fix=fix
        )
    return torch.tensor(ids[: whole * length], dtype=torch.int64).view(whole, length)


@torch.no_grad()
def write_text(
    network: PreTrainedModel,
    sequences: int,
    length: int,
    *,
    seed: int,
    on_written: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Has the model write: int64 [sequences, length], each begun with its first token of text, sampled after it."""
    config, device = network.config, next(network.parameters()).device
    begin = config.bos_token_id if config.bos_token_id is not None else config.eos_token_id
    begin = begin[0] if isinstance(begin, list) else begin
    generator = torch.Generator().manual_seed(seed)
    cached = sequences > 0 and cache_holds(network, length)
    parts = []
    of_each = 8 * length * config.hidden_size * (getattr(config, "num_hidden_layers", 0) or 32)
    together = max(1, min(WRITTEN_AT_ONCE, WRITTEN_BYTES // of_each))
    for first in range(0, sequences, together):
        count = min(together, sequences - first)
        if begin is None:
            text = torch.randint(config.vocab_size, (count, 1), generator=generator)
        else:
            text = torch.full((count, 1), int(begin), dtype=torch.int64)
        kept: dict[str, Any] = {}
        for _ in range(length - 1):
            fed = text[:, -1:] if kept else text
            answer = network(input_ids=fed.to(device), use_cache=cached, **kept)
            kept = _kept(answer) if cached else {}
            odds = answer.logits[:, -1].float().softmax(-1).cpu()
            text = torch.cat([text, torch.multinomial(odds, 1, generator=generator)], 1)
        parts.append(text)
        if on_written is not None:
            on_written(first + count, sequences)
    return torch.cat(parts) if parts else torch.empty(0, length, dtype=torch.int64)


@torch.no_grad()
def cache_holds(network: PreTrainedModel, length: int) -> bool:
    """Whether a model that reads `length` tokens one by one answers as one that reads them at once.

    State-space models call their cache otherwise, some architectures have none, and some have one that is wrong.
    """
    device = next(network.parameters()).device
    ids_1L = ((3 + 7 * torch.arange(length, device=device)) % network.get_input_embeddings().weight.shape[0])[None]
    try:
        whole = network(input_ids=ids_1L, use_cache=False).logits.float()
        kept: dict[str, Any] = {}
        for place in range(length):
            answer = network(input_ids=ids_1L[:, place : place + 1], use_cache=True, **kept)
            apart = float((answer.logits[:, -1].float() - whole[:, place]).abs().max())
            kept = _kept(answer)
            if not kept or not apart <= SAME * float(whole.abs().max()):
                return False
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError):
        return False
    return True


def _kept(answer: Any) -> dict[str, Any]:
    return {name: answer[name] for name in CACHES if answer.get(name) is not None}
