"""A rehearsal before hours of work: can what will be written be opened as a user opens it, and is it this model?

An artifact is opened from nothing but its files: `config.json` names the architecture, a fresh network of it takes the
weights, the tokenizer comes from its own files. A network in memory may be more than that: layers that were added or
pruned, a hook, a buffer set by hand, a class that transformers does not know, a tokenizer that does not save all of
itself. Then the run would end well and its artifact would be another model, or none.

Nor would a run be worth anything where the model looks ahead, so that every benchmark would show it the answers: a BERT
that is no decoder, and CPM-Ant and XLNet, which see the whole text unless they are asked in ways of their own. Or where
it answers by chance, as a Reformer without a seed does, or cannot read as far as its window.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from phase8.artifact.write import settings_files
from phase8.errors import ModelError, said
from phase8.files import TEMPORARY, temporary_directory, writing
from phase8.model.forward import logits_of
from phase8.model.source import SourceModel, unique_parameters
from phase8.model.window import window

TEXT = "Once upon a time, in 1984, a miller said: 'def f(x): return x + 1'.\n\n\tÇa va? 東京 \U0001f600"
TOKENS = 24
LONGEST = 1024
"""Tokens that are read to see whether the window holds, where it has so many."""
TOLERANCE = 1e-4
"""Of the logits, relative to the largest: attention may be computed in another order."""


def check_reopens(source: SourceModel) -> None:
    """Opens the model's settings from files, gives the fresh network its weights, and compares the two.

    Raises:
        ModelError: it cannot be opened, has other parameters, answers otherwise, or cuts text into other tokens; it
            looks ahead, answers by chance, or cannot read a text as long as its window.
    """
    where = source.name
    _reads_forwards(source)
    with temporary_directory() as directory:
        with writing(directory, TEMPORARY):
            for name, content in settings_files(source.network, "rehearsal").items():
                (directory / name).write_bytes(content)
            source.tokenizer.save_pretrained(directory)
        try:
            with torch.random.fork_rng(devices=[]):  # a run's chance is seeded elsewhere, and not spent here
                config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
                del config.quantization_config
                fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
                fresh.tie_weights()
            tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        except Exception as error:  # transformers raises anything; whatever it is, the artifact would be useless
            raise ModelError(
                f"an artifact of this model could not be opened again: {said(error)}",
                where=where,
                fix="AutoModelForCausalLM must be able to build it from its config.json, without code of its own",
            ) from error
    _same_parameters(source, fresh)
    _same_answers(source, fresh)
    _reads_its_window(source, fresh)  # not the source: some rotary embeddings stretch with the longest text so far
    if tokenizer(TEXT)["input_ids"] != source.tokenizer(TEXT)["input_ids"]:
        raise ModelError(
            "saved and opened again, the tokenizer cuts text otherwise", where=where, fix="save it as tokenizer.json"
        )


def _same_parameters(source: SourceModel, fresh: Any) -> None:
    mine = {name: tuple(parameter.shape) for name, (_, parameter) in source.parameters.items()}
    theirs = {name: tuple(parameter.shape) for name, (_, parameter) in unique_parameters(fresh).items()}
    different = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    if different:
        shown = [
            f"{name} ({mine.get(name, 'absent')}; by config.json {theirs.get(name, 'absent')})" for name in different
        ]
        raise ModelError(
            f"{len(different)} parameters are not those that the configuration describes: {'; '.join(shown[:4])}",
            where=source.name,
            fix="merge adapters, undo changes to single layers or ties, or give the configuration that describes them",
        )


def _text(source: SourceModel, count: int) -> torch.Tensor:
    """Tokens (1, L), at most so many, of the source's vocabulary."""
    count = min(count, window(source.network) or count)
    return (3 + 7 * torch.arange(count, device=source.network.device))[None] % len(source.tokenizer)


def _answers(source: SourceModel, network: Any, ids_1L: torch.Tensor) -> torch.Tensor:
    try:
        return logits_of(network, ids_1L)
    except Exception as error:  # transformers raises anything
        raise ModelError(
            f"the model cannot read a text of {ids_1L.shape[1]} tokens, though its window has "
            f"{window(network) or 'no end'}: {said(error)}",
            where=source.name,
            fix="write into config.json how long a text it can read (max_position_embeddings or what it is called)",
        ) from error


def _apart(before: torch.Tensor, after: torch.Tensor) -> float:
    """By how much logits differ, relative to the largest; 0.0 where they are no numbers to begin with."""
    before, after = before.float(), after.float()
    if not bool(torch.isfinite(before).all()):
        return 0.0
    return float((before - after).abs().max()) / max(float(before.abs().max()), 1e-30)


@torch.no_grad()
def _reads_forwards(source: SourceModel) -> None:
    before_1L = _text(source, TOKENS)
    half = before_1L.shape[1] // 2
    if not half:
        return
    after_1L = before_1L.clone()
    after_1L[:, half:] = before_1L[:, half:].flip(1)
    before, after = (_answers(source, source.network, ids_1L)[:, :half] for ids_1L in (before_1L, after_1L))
    if not _apart(before, after) <= TOLERANCE:
        raise ModelError(
            f"the model looks ahead: what follows a token changes what is predicted after it (by "
            f"{_apart(before, after):.1%} of the largest logit), so benchmarks would show it their answers",
            where=source.name,
            fix="give a model that reads from left to right; a BERT that was trained so has is_decoder: true in its "
            "config.json, an XLM causal: true",
        )


@torch.no_grad()
def _reads_its_window(source: SourceModel, network: Any) -> None:
    ids_1L = _text(source, min(window(network) or TOKENS, LONGEST))
    before, after = (_answers(source, network, ids_1L) for _ in range(2))
    if not _apart(before, after) <= TOLERANCE:
        raise ModelError(
            f"the model answers by chance: a text of {ids_1L.shape[1]} tokens read twice gives logits that differ by "
            f"{_apart(before, after):.1%} of the largest, so no two measurements could be compared",
            where=source.name,
            fix="switch the chance off in config.json; for Reformer set hash_seed",
        )


@torch.no_grad()
def _same_answers(source: SourceModel, fresh: Any) -> None:
    for name, (_, parameter) in unique_parameters(fresh).items():
        parameter.copy_(source.parameters[name][1])
    fresh = fresh.eval().to(source.network.device)
    ids_1L = _text(source, TOKENS)
    apart = _apart(*(_answers(source, model, ids_1L) for model in (source.network, fresh)))
    if not apart <= TOLERANCE:
        raise ModelError(
            f"built anew from its configuration and its weights, the model answers otherwise (logits differ by "
            f"{apart:.1%} of the largest)",
            where=source.name,
            fix="something in memory is in neither: a hook, a changed method or buffer; save_pretrained and load it",
        )
