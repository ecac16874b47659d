"""A rehearsal before hours of work: can what will be written be opened as a user opens it, and is it this model?

An artifact is opened from nothing but its files: `config.json` names the architecture, a fresh network of it takes the
weights, the tokenizer comes from its own files. A network in memory may be more than that: layers that were added or
pruned, a hook, a buffer set by hand, a class that transformers does not know, a tokenizer that does not save all of
itself. Then the run would end well and its artifact would be another model, or none.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from phase8.artifact.write import settings_files
from phase8.errors import ModelError
from phase8.files import TEMPORARY, temporary_directory, writing
from phase8.model.source import SourceModel, unique_parameters
from phase8.model.window import window

TEXT = "Once upon a time, in 1984, a miller said: 'def f(x): return x + 1'.\n\n\tÇa va? 東京 \U0001f600"
TOKENS = 24
TOLERANCE = 1e-4
"""Of the logits, relative to the largest: attention may be computed in another order."""


def check_reopens(source: SourceModel) -> None:
    """Opens the model's settings from files, gives the fresh network its weights, and compares the two.

    Raises:
        ModelError: it cannot be opened, has other parameters, answers otherwise, or cuts text into other tokens.
    """
    where = source.name
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
                f"an artifact of this model could not be opened again: {type(error).__name__}: {str(error)[:200]}",
                where=where,
                fix="AutoModelForCausalLM must be able to build it from its config.json, without code of its own",
            ) from error
    _same_parameters(source, fresh)
    _same_answers(source, fresh)
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


@torch.no_grad()
def _same_answers(source: SourceModel, fresh: Any) -> None:
    for name, (_, parameter) in unique_parameters(fresh).items():
        parameter.copy_(source.parameters[name][1])
    fresh = fresh.eval().to(source.network.device)
    count = min(TOKENS, window(source.network) or TOKENS)
    rows = source.network.get_input_embeddings().weight.shape[0]
    ids_1L = (3 + 7 * torch.arange(count, device=source.network.device))[None] % rows
    before, after = (model(input_ids=ids_1L).logits.float() for model in (source.network, fresh))
    largest = max(float(before.abs().max()), 1e-30)
    apart = float((before - after).abs().max()) / largest
    if not apart <= TOLERANCE and bool(torch.isfinite(before).all()):
        raise ModelError(
            f"built anew from its configuration and its weights, the model answers otherwise (logits differ by "
            f"{apart:.1%} of the largest)",
            where=source.name,
            fix="something in memory is in neither: a hook, a changed method or buffer; save_pretrained and load it",
        )
