"""A Llama in numpy: enough to run an artifact where neither torch nor transformers is installed.

One layer, with x the residual stream of T tokens (Touvron et al. 2023, arXiv 2302.13971, section 2.2):

    x += Attention(norm(x)) W_o^T        norm(x) = x / sqrt(mean(x^2) + eps) * g                         (RMSNorm)
    x += (silu(n W_gate^T) * n W_up^T) W_down^T,  n = norm(x),  silu(a) = a / (1 + exp(-a))              (SwiGLU)

Queries and keys are turned by their position t (rotary embeddings, Su et al. 2021, arXiv 2104.09864): element i and
element i + D/2 of a head form a plane that turns by t * theta^(-2i/D). Keys and values of earlier tokens are kept, so
that a new token costs one row of every product. Several query heads may share a key head (grouped-query attention).

Shape legend: T new tokens, S all tokens so far, V vocabulary, H width, Q query heads, K key heads, D width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from phase8.artifact.raw import strict_json
from phase8.artifact.read import Outline, read_manifest
from phase8.errors import ArtifactError
from phase8.files import read_bounded
from phase8.limits import Limits

_CONFIG_LIMIT = 1 << 20
_MOST = 1 << 24
_MOST_LAYERS = 4096


@dataclass(frozen=True, kw_only=True)
class LlamaShape:
    """The fields of `config.json` that decide what is computed. A field that is left out has transformers' default."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 128
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    rope: Mapping[str, Any] = field(default_factory=dict)
    """`rope_theta`, `rope_type` and what that type needs."""
    eos: tuple[int, ...] = (2,)

    @classmethod
    def from_config(cls, config: Any, *, where: str = "config.json") -> LlamaShape:
        """Reads a transformers configuration.

        Raises:
            ArtifactError: another architecture, a variant of Llama that this file does not compute, or a field of the
                wrong type or size.
        """
        fix = "phase8.runtime runs Llama-type models; use `python -m phase8 generate` for any other"
        if not isinstance(config, dict) or config.get("model_type") != "llama":
            kind = config.get("model_type") if isinstance(config, dict) else None
            raise ArtifactError(f"the model is of type {str(kind)[:40]!r}, not 'llama'", where=where, fix=fix)
        if config.get("hidden_act", "silu") != "silu":
            raise ArtifactError("only the activation 'silu' is known here", where=where, fix=fix)

        def whole(name: str, default: int, most: int = _MOST) -> int:
            value = config.get(name)
            value = default if value is None else value
            if type(value) is not int or not 1 <= value <= most:
                raise ArtifactError(f"{name} is not a whole number from 1 to {most}", where=where, fix=fix)
            return value

        def truth(name: str) -> bool:
            value = config.get(name, False)
            if not isinstance(value, bool):
                raise ArtifactError(f"{name} is neither true nor false", where=where, fix=fix)
            return value

        heads = whole("num_attention_heads", cls.num_attention_heads)
        hidden = whole("hidden_size", cls.hidden_size)
        shape = cls(
            vocab_size=whole("vocab_size", cls.vocab_size),
            hidden_size=hidden,
            intermediate_size=whole("intermediate_size", cls.intermediate_size),
            num_hidden_layers=whole("num_hidden_layers", cls.num_hidden_layers, _MOST_LAYERS),
            num_attention_heads=heads,
            num_key_value_heads=whole("num_key_value_heads", heads),
            head_dim=whole("head_dim", max(1, hidden // heads)),
            max_position_embeddings=whole("max_position_embeddings", cls.max_position_embeddings),
            rms_norm_eps=_number(config.get("rms_norm_eps", cls.rms_norm_eps), "rms_norm_eps", where),
            tie_word_embeddings=truth("tie_word_embeddings"),
            attention_bias=truth("attention_bias"),
            mlp_bias=truth("mlp_bias"),
            rope=_rope_settings(config, where),
            eos=_tokens(config.get("eos_token_id", 2)),
        )
        if shape.num_attention_heads % shape.num_key_value_heads or shape.head_dim % 2:
            raise ArtifactError("the heads cannot be shared out evenly", where=where, fix=fix)
        return shape

    def outline(self) -> Outline:
        """How much `tensor_shapes` holds; takes no memory, whatever the number of layers."""
        one, two = (replace(self, num_hidden_layers=layers).tensor_shapes() for layers in (1, 2))
        weights = [sum(map(math.prod, shapes.values())) for shapes in (one, two)]
        more = self.num_hidden_layers - 1
        return Outline(
            tensors=len(one) + more * (len(two) - len(one)), weights=weights[0] + more * (weights[1] - weights[0])
        )

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor that the model has, by its name in transformers; tied ones once."""
        width, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        attention = {"q": (queries, width), "k": (keys, width), "v": (keys, width), "o": (width, queries)}
        mlp = {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, width)}
        for layer in range(self.num_hidden_layers):
            prefix = f"model.layers.{layer}."
            for part, matrices, bias in (("self_attn", attention, self.attention_bias), ("mlp", mlp, self.mlp_bias)):
                for name, shape in matrices.items():
                    shapes[f"{prefix}{part}.{name}_proj.weight"] = shape
                    if bias:
                        shapes[f"{prefix}{part}.{name}_proj.bias"] = shape[:1]
            shapes[f"{prefix}input_layernorm.weight"] = (width,)
            shapes[f"{prefix}post_attention_layernorm.weight"] = (width,)
        shapes["model.norm.weight"] = (width,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, width)
        return shapes


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
        raise ArtifactError(f"{name} is not a positive number", where=where)
    return float(value)


def _tokens(value: Any) -> tuple[int, ...]:
    listed = value if isinstance(value, list) else [value]
    return tuple(token for token in listed if type(token) is int)


def _rope_settings(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Rotary settings in one form: transformers 5 writes `rope_parameters`, version 4 `rope_theta`, `rope_scaling`."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise ArtifactError("rope_parameters is not an object", where=where)
    kind = given.get("rope_type", given.get("type", "default"))
    wanted = {
        "default": (),
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    }
    if not isinstance(kind, str) or kind not in wanted or given.get("partial_rotary_factor", 1.0) != 1.0:
        raise ArtifactError(f"rotary embeddings of type {str(kind)[:40]!r} are not known here", where=where)
    theta = given.get("rope_theta", config.get("rope_theta", 10000.0))
    settings: dict[str, Any] = {"rope_type": kind, "rope_theta": _number(theta, "rope_theta", where)}
    return settings | {name: _number(given.get(name), name, where) for name in wanted[kind]}


def rotary_frequencies(head_dim: int, rope: Mapping[str, Any]) -> np.ndarray:
    """Angle per position of each plane, float32 [D / 2]; `llama3` stretches the slow ones (Llama 3.1)."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequency = (1.0 / np.float32(rope["rope_theta"]) ** exponents).astype(np.float32)
    if rope["rope_type"] == "default":
        return frequency
    slow = frequency / np.float32(rope["factor"])
    if rope["rope_type"] == "linear":
        return slow
    turns = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    share = np.clip((turns - low) / (high - low), 0.0, 1.0) if high > low else (turns > low).astype(np.float32)
    return ((1 - share) * slow + share * frequency).astype(np.float32)


class Cache:
    """Keys and values of the tokens so far, float32 [layers, K, capacity, D] each, and how many tokens they are."""

    def __init__(self, shape: LlamaShape, capacity: int) -> None:
        size = shape.num_hidden_layers, shape.num_key_value_heads, capacity, shape.head_dim
        self.keys, self.values = np.empty(size, dtype=np.float32), np.empty(size, dtype=np.float32)
        self.length = 0


class Llama:
    """A Llama-type causal language model; weights are used as they are, no copies.

    Args:
        shape: the architecture.
        weights: float32 by name, exactly `shape.tensor_shapes()`.

    Raises:
        ArtifactError: a tensor is missing, superfluous or of another shape.
    """

    def __init__(self, shape: LlamaShape, weights: Mapping[str, np.ndarray]) -> None:
        wanted = shape.tensor_shapes()
        mine = {name: w.shape for name, w in weights.items()}
        wrong = sorted(name for name in wanted.keys() | mine.keys() if mine.get(name) != wanted.get(name))
        if wrong:
            raise ArtifactError(
                f"tensors that do not fit the architecture: {', '.join(wrong[:4])}", where="config.json"
            )
        self.shape, self.weights = shape, dict(weights)
        self._head = self.weights.get("lm_head.weight", self.weights["model.embed_tokens.weight"])
        self._frequency = rotary_frequencies(shape.head_dim, shape.rope)

    def cache(self, capacity: int) -> Cache:
        """Returns an empty cache for `capacity` tokens."""
        return Cache(self.shape, capacity)

    def logits(self, tokens: np.ndarray | list[int], cache: Cache, *, last_only: bool = False) -> np.ndarray:
        """Reads `tokens` after those that the cache holds already, and adds them to it.

        Returns:
            float32 [T, V], or [1, V] with `last_only`: the scores of the token that follows each one.

        Raises:
            ValueError: no tokens, a token that the vocabulary lacks, or more tokens than the cache has room for.
        """
        ids = np.asarray(tokens, dtype=np.int64)
        if ids.ndim != 1 or not ids.size or ids.min() < 0 or ids.max() >= self.shape.vocab_size:
            raise ValueError(f"tokens must be numbers from 0 to {self.shape.vocab_size - 1}, one at least")
        end = cache.length + ids.size
        if end > cache.keys.shape[2]:
            raise ValueError(f"{end} tokens exceed the cache's {cache.keys.shape[2]}")
        x_TH = self.weights["model.embed_tokens.weight"][ids]
        angle = np.arange(cache.length, end, dtype=np.float32)[:, None] * self._frequency
        turn = np.cos(angle), np.sin(angle)
        for layer in range(self.shape.num_hidden_layers):
            prefix = f"model.layers.{layer}."
            x_TH = x_TH + self._attention(self._norm(x_TH, prefix + "input_layernorm"), layer, cache, turn)
            n_TH = self._norm(x_TH, prefix + "post_attention_layernorm")
            gate, up = self._linear(n_TH, prefix + "mlp.gate_proj"), self._linear(n_TH, prefix + "mlp.up_proj")
            x_TH = x_TH + self._linear(_silu(gate) * up, prefix + "mlp.down_proj")
        cache.length = end
        return self._norm(x_TH[-1:] if last_only else x_TH, "model.norm") @ self._head.T

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        mean = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
        return x / np.sqrt(mean + np.float32(self.shape.rms_norm_eps)) * self.weights[name + ".weight"]

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        y = x @ self.weights[name + ".weight"].T
        bias = self.weights.get(name + ".bias")
        return y if bias is None else y + bias

    def _attention(self, n_TH: np.ndarray, layer: int, cache: Cache, turn: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        shape, prefix = self.shape, f"model.layers.{layer}.self_attn."
        count, begin = len(n_TH), cache.length
        end = begin + count

        def heads(name: str, number: int) -> np.ndarray:
            return self._linear(n_TH, prefix + name).reshape(count, number, shape.head_dim).transpose(1, 0, 2)

        q_QTD = _rotate(heads("q_proj", shape.num_attention_heads), *turn)
        cache.keys[layer, :, begin:end] = _rotate(heads("k_proj", shape.num_key_value_heads), *turn)
        cache.values[layer, :, begin:end] = heads("v_proj", shape.num_key_value_heads)
        k_KSD, v_KSD = cache.keys[layer, :, :end], cache.values[layer, :, :end]
        # The queries that share a key head are rows of one matrix.
        q_KND = q_QTD.reshape(shape.num_key_value_heads, -1, shape.head_dim)
        scores = q_KND @ k_KSD.transpose(0, 2, 1) * np.float32(shape.head_dim**-0.5)
        scores = scores.reshape(shape.num_key_value_heads, -1, count, end)
        if count > 1:  # a token sees itself and what came before
            scores = np.where(np.arange(end) <= np.arange(begin, end)[:, None], scores, np.float32(-np.inf))
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = weights.reshape(shape.num_key_value_heads, -1, end) @ v_KSD
        mixed = mixed.reshape(shape.num_attention_heads, count, shape.head_dim).transpose(1, 0, 2)
        return self._linear(mixed.reshape(count, -1), prefix + "o_proj")


def _rotate(x: np.ndarray, cosine: np.ndarray, sine: np.ndarray) -> np.ndarray:
    """Turns the planes (i, i + D/2) of every head, [heads, T, D]."""
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


def _silu(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and the quotient 0, as it should be
        return x / (1 + np.exp(-x))


def end_tokens(directory: Path, default: tuple[int, ...]) -> tuple[int, ...]:
    """Those of `generation_config.json`, which outranks `config.json` where it is there."""
    path = directory / "generation_config.json"
    if not path.is_file():
        return default
    try:
        settings = strict_json(read_bounded(path, _CONFIG_LIMIT, error=ArtifactError))
    except ValueError as error:
        raise ArtifactError(f"the settings are not JSON: {error}", where=str(path), fix="copy it anew") from error
    ends = settings.get("eos_token_id") if isinstance(settings, dict) else None
    return default if ends is None else _tokens(ends)


def load_model(directory: Path | str, *, limits: Limits | None = None) -> Llama:
    """Reads an artifact into a `Llama`; the weights are those of `phase8.artifact.write.load_artifact`, bit for bit.

    Args:
        directory: the artifact's.
        limits: what opening it may cost, see `phase8.limits`.

    Raises:
        ArtifactError: the artifact is damaged or forged, not of Llama's architecture, or beyond the limits.
    """
    directory = Path(directory)
    path = directory / "config.json"
    raw = read_bounded(path, _CONFIG_LIMIT, error=ArtifactError, fix="name an artifact's directory")
    try:
        config = strict_json(raw)
    except ValueError as error:
        raise ArtifactError(f"config.json is not JSON: {error}", where=str(path), fix="copy it anew") from error
    shape = LlamaShape.from_config(config, where=str(path))
    shape = replace(shape, eos=end_tokens(directory, shape.eos))
    manifest = read_manifest(directory, limits=limits)
    manifest.vouch("config.json", raw, where=str(path))
    manifest.require_outline(shape.outline())
    wanted = shape.tensor_shapes()
    manifest.require({name: math.prod(extents) for name, extents in wanted.items()})
    weights = {name: w.reshape(wanted[name]) for name, w in manifest.artifact().tensors()}
    return Llama(shape, weights)
