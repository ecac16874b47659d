"""An artifact's model as GGUF, the file of llama.cpp; through the `gguf` library of that project.

Three things are not a matter of renaming:

- **Rotary embeddings.** transformers turns the planes (i, i + D/2) of a head, llama.cpp the planes (2i, 2i + 1). The
  rows of the query and key matrices are put in that order, which leaves every score as it is. Example, D = 4: rows
  0 1 2 3 become 0 2 1 3. Llama 3's stretched frequencies go into a tensor `rope_freqs` of divisors.
- **A tied head** is left out; llama.cpp then uses the embedding.
- **The tokenizer.** A byte-level BPE is stored as its tokens (bytes spelt as GPT-2 does) and its merges. How text is
  cut before merging is stored as a name only, one of those that llama.cpp has compiled in. If the tokenizer's cut has
  no name there, the nearest is written, and the export says how often it differed on sample lines. The whole
  `tokenizer.json` is stored too (`tokenizer.huggingface.json`). A tokenizer of another kind is left out ("none"): the
  file opens and takes token numbers.

Numpy only; neither torch nor transformers is needed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from phase8.artifact.read import strict_json
from phase8.errors import ArtifactError, ModelError
from phase8.export.extra import optional
from phase8.files import read_bounded
from phase8.runtime import Llama, load_model
from phase8.runtime.llama import rotary_frequencies

_JSON_LIMIT = 2**28
_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_LLAMA3 = {
    "type": "Split",
    "pattern": {
        "Regex": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    },
    "behavior": "Isolated",
    "invert": False,
}
CUTS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_GPT2],
    "smollm": [{"type": "Digits", "individual_digits": True}, _GPT2],
    "llama-bpe": [_LLAMA3, _BYTES],
}
"""llama.cpp's name of a cut -> the steps of a `tokenizers` pre-tokenizer that cuts alike."""

SAMPLES = (
    "Once upon a time there was a miller, who kept seven grey geese.",
    "In 1984, 12345 of them (about 7.5 %) didn't fly.",
    "def add(a, b):\n    if a > 10:\n        return a + b\n\n\treturn None",
    "Question: what is 12 + 30?\nAnswer: 42\n\n\nQuestion:   next",
    "Ça va? Größe, naïve café; 東京は大きい… \U0001f600!",
    "A line that ends in blanks   \nand   another  one ",
    'https://example.org/a_b?c=d&e=f "quoted" <tag/> #1 $x = {y: [z]};',
    "ALL CAPS CamelCase snake_case kebab-case I'LL THEY'RE rock'n'roll",
)


class _Tokenizer(NamedTuple):
    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str
    starts: bool
    ends: bool
    notes: list[str]


def write_gguf(artifact: Path, path: Path, *, dtype: str = "float32") -> list[str]:
    """Writes one GGUF file; see `phase8.export.export`, also for what it returns and raises."""
    gguf = optional("gguf")
    config = _json(artifact / "config.json")[1]
    if not isinstance(config, dict) or config.get("model_type") != "llama":
        kind = str(config.get("model_type"))[:40] if isinstance(config, dict) else "?"
        raise ModelError(
            f"the GGUF export knows models of type 'llama', not {kind!r}",
            where=str(artifact),
            fix="export to safetensors, then use llama.cpp's own convert_hf_to_gguf.py",
        )
    model = load_model(artifact)
    raw, tokenizer = _json(artifact / "tokenizer.json")
    writer = gguf.GGUFWriter(path, "llama")
    _describe(gguf, writer, model, dtype, artifact.absolute().name)
    try:
        found = _byte_level_bpe(gguf, raw, tokenizer, model.shape.vocab_size)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ArtifactError(
            f"the tokenizer is malformed: {type(error).__name__}: {error}",
            where=str(artifact / "tokenizer.json"),
            fix="copy the directory anew",
        ) from error
    writer.add_string("tokenizer.huggingface.json", raw)
    notes = _add_tokenizer(writer, found, config, model.shape.vocab_size)
    kind = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
    for name, values in _tensors(model):
        wanted = gguf.GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return notes


def _json(path: Path) -> tuple[str, Any]:
    """A file's text, and what it says as JSON."""
    raw = read_bounded(path, _JSON_LIMIT, error=ArtifactError)
    try:
        return raw.decode("utf-8"), strict_json(raw)
    except ValueError as error:
        raise ArtifactError(f"this is not JSON: {error}", where=str(path), fix="copy the directory anew") from error


def _describe(gguf: Any, writer: Any, model: Llama, dtype: str, name: str) -> None:
    shape, rope = model.shape, model.shape.rope
    kinds = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16"}
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[kinds[dtype]])
    writer.add_vocab_size(shape.vocab_size)
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _tensors(model: Llama):
    """Yields every tensor under its name in GGUF, float32."""
    shape = model.shape
    if shape.rope["rope_type"] == "llama3":
        plain = rotary_frequencies(shape.head_dim, dict(shape.rope) | {"rope_type": "default"})
        yield "rope_freqs.weight", plain / rotary_frequencies(shape.head_dim, shape.rope)
    for name, values in model.weights.items():
        stem, _, leaf = name.rpartition(".")
        if stem in _TOP:
            yield f"{_TOP[stem]}.{leaf}", values
            continue
        _, _, layer, part = stem.split(".", 3)
        if part == "self_attn.q_proj":
            values = interleave(values, shape.num_attention_heads)
        elif part == "self_attn.k_proj":
            values = interleave(values, shape.num_key_value_heads)
        yield f"blk.{layer}.{_NAMES[part]}.{leaf}", values


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorders the rows of each head from (0, D/2, 1, D/2 + 1, ...) planes apart to planes side by side.

    Args:
        rows: [heads * D, I], or a bias [heads * D].
    """
    split = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)


def _add_tokenizer(writer: Any, found: _Tokenizer | None, config: dict[str, Any], vocab_size: int) -> list[str]:
    if found is None:
        writer.add_tokenizer_model("none")
        return ["The tokenizer is no byte-level BPE, so model.gguf has none: give token numbers, not text."]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(found.pre)
    writer.add_token_list(found.tokens)
    writer.add_token_types(found.types)
    writer.add_token_merges(found.merges)
    writer.add_add_bos_token(found.starts)
    writer.add_add_eos_token(found.ends)
    for add, key in (
        (writer.add_bos_token_id, "bos_token_id"),
        (writer.add_eos_token_id, "eos_token_id"),
        (writer.add_pad_token_id, "pad_token_id"),
    ):
        number = config.get(key)
        number = number[0] if isinstance(number, list) and number else number
        if type(number) is int and 0 <= number < vocab_size:
            add(number)
    return found.notes


def _byte_level_bpe(gguf: Any, raw: str, content: dict[str, Any], vocab_size: int) -> _Tokenizer | None:
    """What GGUF stores of a byte-level BPE; None for any other tokenizer."""
    model, before = content["model"], content.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    byte_level = any(step.get("type") == "ByteLevel" and not step.get("add_prefix_space") for step in steps)
    if model.get("type") != "BPE" or not byte_level or content.get("normalizer") or model.get("byte_fallback"):
        return None
    special = {token["id"]: token for token in content.get("added_tokens", [])}
    by_number = {number: text for text, number in model["vocab"].items()}
    by_number |= {number: token["content"] for number, token in special.items()}
    kinds = gguf.TokenType
    tokens, types = [], []
    for number in range(vocab_size):
        tokens.append(by_number.get(number, f"[PAD{number}]"))
        if number in special:
            kind = kinds.CONTROL if special[number]["special"] else kinds.USER_DEFINED
        else:
            kind = kinds.NORMAL if number in by_number else kinds.UNUSED
        types.append(int(kind))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    after = content.get("post_processor") or {}
    template: list[Any] = next((step["single"] for step in after.get("processors", [after]) if "single" in step), [])
    around = ["SpecialToken" in piece for piece in template] or [False]
    pre, notes = _name_of_cut(raw, steps, whole_words=bool(model.get("ignore_merges")))
    return _Tokenizer(tokens, types, merges, pre, starts=around[0], ends=around[-1], notes=notes)


def _name_of_cut(raw: str, steps: list[dict[str, Any]], *, whole_words: bool) -> tuple[str, list[str]]:
    """The name of llama.cpp's cut that is the tokenizer's, or of the nearest, with a note.

    Args:
        whole_words: a word that is a token is not merged (`ignore_merges`); llama.cpp does so for `llama-bpe` only.
    """

    def essence(listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: value for key, value in step.items() if key != "trim_offsets"} for step in listed]

    for name, cut in CUTS.items():
        if essence(steps) == essence(cut) and whole_words == (name == "llama-bpe"):
            return name, []
    from tokenizers import Tokenizer

    mine = Tokenizer.from_str(raw)
    alike = {}
    for name, cut in CUTS.items():
        listed = [{"trim_offsets": True, **step} if step["type"] == "ByteLevel" else step for step in cut]
        other = Tokenizer.from_str(
            json.dumps({**json.loads(raw), "pre_tokenizer": {"type": "Sequence", "pretokenizers": listed}})
        )
        alike[name] = sum(mine.encode(line).ids == other.encode(line).ids for line in SAMPLES)
    name = max(alike, key=lambda key: alike[key])
    return name, [
        f"llama.cpp has no name for this tokenizer's way of cutting text; the nearest, {name!r}, gave the same tokens "
        f"on {alike[name]} of {len(SAMPLES)} sample lines. Where it matters, give llama.cpp token numbers."
    ]
