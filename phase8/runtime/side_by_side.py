"""`python -m phase8.runtime.side_by_side ARTIFACT ORIGINAL`: two models continue one prompt, token by token.

Reads one line of JSON, `{"prompt": TEXT, "tokens": 60, "temperature": 0, "seed": 0}`, and writes one for each token,
the original's and the compressed model's in turn, as they are made:

    {"kind": "token", "side": "original", "index": 0, "text": " sea", "ms": 3.1, "probability": 0.93}

then `end` for each side and `done`. An error is a line too: `{"kind": "error", "what": ..., "where": ..., "fix": ...}`.
Numpy alone, and Llama-type models only, like all of `phase8.runtime`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from phase8.errors import ArtifactError, Phase8Error
from phase8.files import read_bounded
from phase8.output import run_program
from phase8.runtime.generate import load_tokenizer
from phase8.runtime.llama import Llama, LlamaShape, end_tokens, load_model

MAX_ORIGINAL_BYTES = 8 << 30
_CONFIG_LIMIT = 1 << 20


def load_original(directory: Path | str) -> Llama:
    """Reads an uncompressed Llama from a Hugging Face directory with safetensors.

    Raises:
        ArtifactError: another architecture, no safetensors, or tensors that do not fit.
    """
    directory = Path(directory)
    path = directory / "config.json"
    try:
        config = json.loads(read_bounded(path, _CONFIG_LIMIT, error=ArtifactError))
    except ValueError as error:
        raise ArtifactError(f"config.json is not JSON: {error}", where=str(path)) from error
    shape = LlamaShape.from_config(config, where=str(path))
    shape = replace(shape, eos=end_tokens(directory, shape.eos))  # both sides end at the same tokens
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise ArtifactError("the original holds no safetensors", where=str(directory), fix="save it with safetensors")
    if sum(file.stat().st_size for file in files) > MAX_ORIGINAL_BYTES:
        raise ArtifactError("the original is too large to be talked to here", where=str(directory))
    weights = {name: weight for file in files for name, weight in _tensors(file)}
    wanted = shape.tensor_shapes()
    return Llama(shape, {name: weight for name, weight in weights.items() if name in wanted})


def _tensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    from safetensors import SafetensorError, deserialize

    kinds = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"), "F64": np.dtype("<f8")}
    try:
        listed = deserialize(path.read_bytes())
    except SafetensorError as error:
        raise ArtifactError(f"not a safetensors file: {error}", where=str(path)) from error
    for name, entry in listed:
        if entry["dtype"] not in kinds:
            continue
        raw = np.frombuffer(entry["data"], dtype=kinds[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":  # the upper half of a float32
            yield name, (raw.astype(np.uint32) << 16).view(np.float32)
        else:
            yield name, raw.astype(np.float32)


class Speaker:
    """One side: a model with what it has said so far.

    Args:
        side: its name in the lines.
        model: the model.
        tokenizer: a `tokenizers.Tokenizer`.
        prompt: token ids, one at least.
    """

    def __init__(self, side: str, model: Llama, tokenizer: Any, prompt: list[int], tokens: int, seed: int) -> None:
        self.side, self.model, self.tokenizer = side, model, tokenizer
        room = model.shape.max_position_embeddings - len(prompt)
        if not prompt or room < 1:
            what = "the prompt is empty" if not prompt else "the text is longer than the model's context"
            raise Phase8Error(what, where="prompt", fix=f"give 1 to {model.shape.max_position_embeddings - 1} tokens")
        self._left, self._full = min(tokens, room), tokens >= room
        self._cache = model.cache(len(prompt) + self._left)
        self._ids, self._ahead = list(prompt), list(prompt)
        self._shown, self.count, self.seconds = tokenizer.decode(prompt), 0, 0.0
        self._draw = np.random.default_rng(seed)
        self.over: str | None = None

    def step(self, temperature: float) -> dict[str, Any]:
        """Says one token, or ends."""
        begin = time.perf_counter()
        if self._left == 0:
            self.over = "context full" if self._full else "length"
            return self._end()
        with np.errstate(over="ignore", invalid="ignore"):
            logits = self.model.logits(self._ahead, self._cache, last_only=True)[0].astype(np.float64)
        if not np.isfinite(logits).all():
            raise Phase8Error("the model's answer is not a number", where=self.side)
        odds = np.exp(logits - logits.max())
        odds /= odds.sum()
        token = int(logits.argmax())
        if temperature > 0:
            drawn = np.exp((logits - logits.max()) / temperature)
            token = int(self._draw.choice(len(drawn), p=drawn / drawn.sum()))
        took = time.perf_counter() - begin
        self.seconds += took
        if token in self.model.shape.eos:
            self.over = "end of text"
            return self._end()
        self._ids.append(token)
        self._ahead, self._left = [token], self._left - 1
        whole = self.tokenizer.decode(self._ids)
        text = "" if whole.endswith("\ufffd") else whole[len(self._shown) :]  # half of a character waits for the rest
        self._shown = self._shown if whole.endswith("\ufffd") else whole
        line = {"kind": "token", "side": self.side, "index": self.count, "text": text, "ms": round(1000 * took, 3)}
        self.count += 1
        return line | {"probability": round(float(odds[token]), 6)}

    def _end(self) -> dict[str, Any]:
        seconds = round(self.seconds, 6)
        return {"kind": "end", "side": self.side, "tokens": self.count, "seconds": seconds, "reason": self.over}


def converse(artifact: Path, original: Path, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The lines for one request.

    Raises:
        Phase8Error: a model cannot be read, or the prompt does not fit.
    """
    temperature, tokens = float(request.get("temperature", 0.0)), int(request.get("tokens", 60))
    yield {"kind": "state", "text": "loading the compressed model"}
    compressed, tokenizer = load_model(artifact), load_tokenizer(artifact)
    yield {"kind": "state", "text": "loading the original"}
    models = {"original": load_original(original), "compressed": compressed}
    prompt = tokenizer.encode(str(request["prompt"])).ids
    seed = int(request.get("seed", 0))
    speakers = [Speaker(side, model, tokenizer, prompt, tokens, seed) for side, model in models.items()]
    while any(speaker.over is None for speaker in speakers):
        for speaker in speakers:
            if speaker.over is None:
                yield speaker.step(temperature)
    yield {"kind": "done"}


def main(arguments: list[str]) -> int:
    """Answers one request; returns the exit status."""
    try:
        artifact, original = map(Path, arguments)
        for line in converse(artifact, original, json.loads(sys.stdin.readline())):
            print(json.dumps(line), flush=True)
    except Phase8Error as error:
        print(json.dumps({"kind": "error", "what": error.what, "where": error.where, "fix": error.fix}), flush=True)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]))
