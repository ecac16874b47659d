"""Writing text with a model: one token after the other, the likeliest or one drawn at random.

Drawing at temperature t takes token i with probability exp(logit_i / t) / sum_j exp(logit_j / t). Example: logits
(2, 0) give the first token in 88 % of the draws at t = 1, and in 98 % at t = 0.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from phase8.errors import ArtifactError, Phase8Error
from phase8.runtime.llama import Llama


def generate(
    model: Llama, prompt: Sequence[int], *, tokens: int = 60, temperature: float = 0.0, seed: int = 0
) -> Iterator[int]:
    """Yields the tokens that continue a prompt, until `tokens` are written, the context is full or the text ends.

    Args:
        model: what to ask.
        prompt: token ids, one at least.
        tokens: most tokens to write.
        temperature: 0 takes the likeliest token each time; above 0 draws.
        seed: for a temperature above 0; the same seed gives the same text on one machine.

    Raises:
        Phase8Error: the prompt is empty, longer than the context, or names a token that the vocabulary lacks;
            the model's weights are so large that its answer is not a number.
    """
    room = model.shape.max_position_embeddings - len(prompt)
    if not prompt or room < 1:
        what = "the prompt is empty" if not prompt else "the text is longer than the model's context"
        raise Phase8Error(what, where="prompt", fix=f"give 1 to {model.shape.max_position_embeddings - 1} tokens")
    draw = np.random.default_rng(seed)
    cache = model.cache(len(prompt) + min(tokens, room))
    ahead: Sequence[int] = prompt
    for _ in range(min(tokens, room)):
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # looked for below
                logits = model.logits(list(ahead), cache, last_only=True)[0]
        except ValueError as error:
            raise Phase8Error(str(error), where="prompt", fix="use the model's own tokenizer") from error
        if not np.isfinite(logits).all():
            raise Phase8Error("the model's answer is not a number", fix="the weights are damaged: write the file anew")
        token = int(logits.argmax()) if temperature <= 0 else _drawn(logits, temperature, draw)
        if token in model.shape.eos:
            return
        yield token
        ahead = [token]


def _drawn(logits: np.ndarray, temperature: float, draw: np.random.Generator) -> int:
    odds = np.exp((logits - logits.max()).astype(np.float64) / temperature)
    return int(draw.choice(len(odds), p=odds / odds.sum()))


def load_tokenizer(directory: Path | str) -> Any:
    """Returns the artifact's tokenizer (a `tokenizers.Tokenizer`).

    Raises:
        Phase8Error: the optional library is not installed.
        ArtifactError: `tokenizer.json` is missing or cannot be read.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        fix = "pip install tokenizers, or give token numbers with --ids"
        raise Phase8Error("text needs the tokenizers library, which is not installed", fix=fix) from error
    path = Path(directory) / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        what = f"the tokenizer cannot be read: {str(error)[:200]}"
        raise ArtifactError(
            what, where=str(path), fix="copy the directory anew, or give token numbers with --ids"
        ) from error
