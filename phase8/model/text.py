"""Calibration text as token sequences.

Documents are tokenised one by one (the tokenizer adds its own beginning-of-text token), laid end to end and cut into
sequences of equal length, as a language model is trained.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from phase8.errors import ConfigError
from phase8.files import read_bounded

MAX_TEXT_BYTES = 2**30


def token_sequences(
    tokenizer: PreTrainedTokenizerBase, *, sequences: int, length: int, seed: int, path: str | None = None
) -> Tensor:
    """Returns int64 [sequences, length].

    Args:
        path: a UTF-8 text file, documents parted by blank lines; None takes the embedded world's training text.
        seed: which part of the embedded text.

    Raises:
        ConfigError: the file cannot be read, or holds too little text.
    """
    needed = sequences * length
    tokens: list[int] = []
    if path is None:
        from phase8.world.corpus import calibration_documents

        batch = max(64, needed // 40)
        documents = calibration_documents(batch, seed)
        while len(tokens) < needed:
            for ids in tokenizer(documents)["input_ids"]:
                tokens.extend(ids)
            if len(tokens) < needed:
                batch *= 2
                tokens, documents = [], calibration_documents(batch, seed)
    else:
        fix = "set calibration_text to a UTF-8 text file, documents parted by blank lines"
        for ids in tokenizer(read_documents(path, fix))["input_ids"]:
            tokens.extend(ids)
        if len(tokens) < needed:
            raise ConfigError(
                f"the calibration text has {len(tokens)} tokens, {needed} are needed "
                f"({sequences} sequences of {length})",
                where=str(Path(path)),
                fix="give more text, or lower optimizer.calibration_sequences, optimizer.held_out_sequences or "
                "optimizer.sequence_tokens",
            )
    return torch.tensor(tokens[:needed], dtype=torch.int64).view(sequences, length)


def read_documents(path: str, fix: str) -> list[str]:
    """The documents of a UTF-8 text file, parted by blank lines; at least one.

    Raises:
        ConfigError: the file cannot be read, is not UTF-8, or holds no text; `fix` says how to mend it.
    """
    raw = read_bounded(path, MAX_TEXT_BYTES, error=ConfigError, fix=fix)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"the text is not UTF-8: {error}", where=str(Path(path)), fix=fix) from error
    documents = [document for document in text.split("\n\n") if document.strip()]
    if not documents:
        raise ConfigError("the file holds no text", where=str(Path(path)), fix=fix)
    return documents
