"""Text files as documents, calibration text as token sequences.

A document ends at a blank line, whatever ends the lines (LF, CRLF, CR, NEL, Unicode's own) and whatever white space or
invisible mark stands on the blank one, or at Unicode's paragraph separator. A byte-order mark is no text.

Documents are tokenised one by one (the tokenizer adds its own beginning-of-text token), laid end to end and cut into
sequences of equal length, as a language model is trained.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from phase8.errors import ConfigError
from phase8.files import read_bounded
from phase8.world.mix import Mix

MAX_TEXT_BYTES = 2**30
LINE_END = re.compile("\r\n|[\r\n\x85\u2028]")
MARK = re.compile("(?:^|(?<=[\r\x85\u2028\u2029]))\ufeff", re.MULTILINE)
BLANK = re.compile("[\\s\u00ad\u180e\u200b-\u200f\u2060-\u2064\ufeff]*")
"""What a line may hold and still look empty: Unicode's white space, and characters of no width."""


def token_sequences(
    tokenizer: PreTrainedTokenizerBase,
    *,
    sequences: int,
    length: int,
    seed: int,
    path: str | None = None,
    on_read: Callable[[int, int], None] | None = None,
    mix: Mix = Mix.first,
) -> Tensor:
    """Returns int64 [sequences, length].

    Args:
        path: a UTF-8 text file, documents parted by blank lines; None takes the embedded world's training text.
        seed: which part of the embedded text.
        mix: of skills in the embedded text.
        on_read: called with how many documents and tokens the file holds.

    Raises:
        ConfigError: the file cannot be read, or holds too little text.
    """
    needed = sequences * length
    tokens: list[int] = []
    if path is None:
        from phase8.world.corpus import calibration_documents

        batch = max(64, needed // 40)
        documents = calibration_documents(batch, seed, mix=mix)
        while len(tokens) < needed:
            for ids in tokenizer(documents)["input_ids"]:
                tokens.extend(ids)
            if len(tokens) < needed:
                batch *= 2
                tokens, documents = [], calibration_documents(batch, seed, mix=mix)
    else:
        fix = "set calibration_text to a UTF-8 text file, documents parted by blank lines"
        documents = read_documents(path, fix)
        for ids in tokenizer(documents, verbose=False)["input_ids"]:
            tokens.extend(ids)
        if on_read is not None:
            on_read(len(documents), len(tokens))
        if len(tokens) < needed:
            raise ConfigError(
                f"the calibration text has {len(tokens):,} tokens in {len(documents):,} documents, {needed:,} are "
                f"needed ({sequences} sequences of {length})",
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
    text = decoded(read_bounded(path, MAX_TEXT_BYTES, error=ConfigError, fix=fix), where=str(Path(path)), fix=fix)
    documents: list[list[str]] = [[]]
    for line in LINE_END.split(text.replace("\u2029", "\n\n")):
        if not BLANK.fullmatch(line):
            documents[-1].append(line)
        elif documents[-1]:
            documents.append([])
    found = ["\n".join(lines) for lines in documents if lines]
    if not found:
        raise ConfigError("the file holds no text", where=str(Path(path)), fix=fix)
    return found


def decoded(raw: bytes, *, where: str, fix: str = "it must be UTF-8 text") -> str:
    """The text of a UTF-8 file, without byte-order marks (files laid end to end have several).

    Raises:
        ConfigError: it is not UTF-8; names UTF-16 and UTF-32 where it looks like them.
    """
    known = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32",
             codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}  # fmt: skip
    other = next((name for mark, name in known.items() if raw.startswith(mark)), None)
    if other is not None:
        raise ConfigError(f"the text is {other}, not UTF-8", where=where, fix=f"save the file as UTF-8; {fix}")
    try:
        text = MARK.sub("", raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"the text is not UTF-8: {error}", where=where, fix=fix) from error
    if "\0" in text:
        raise ConfigError("the text holds zero bytes; UTF-16 does, UTF-8 does not", where=where, fix=fix)
    return text
