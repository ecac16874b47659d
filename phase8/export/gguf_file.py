"""An artifact's model as GGUF, the file of llama.cpp; through the `gguf` library of that project.

Three things are not a matter of renaming:

- **Rotary embeddings.** transformers turns the planes (i, i + D/2) of a head, llama.cpp the planes (2i, 2i + 1). The
  rows of the query and key matrices are put in that order, which leaves every score as it is. Example, D = 4: rows
  0 1 2 3 become 0 2 1 3. Llama 3's stretched frequencies go into a tensor `rope_freqs` of divisors.
- **A tied head** is left out; llama.cpp then uses the embedding.
- **The tokenizer** is described anew in llama.cpp's terms (`gguf_tokenizer.py`), with its chat template and its end
  tokens. The whole `tokenizer.json` is stored too (`tokenizer.huggingface.json`).

Numpy only; neither torch nor transformers is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from phase8.artifact.read import strict_json
from phase8.errors import ArtifactError, ModelError
from phase8.export.extra import optional
from phase8.export.gguf_tokenizer import Described, describe
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
        found = describe(raw, tokenizer, model.shape.vocab_size)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ArtifactError(
            f"the tokenizer is malformed: {type(error).__name__}: {error}",
            where=str(artifact / "tokenizer.json"),
            fix="copy the directory anew",
        ) from error
    writer.add_string("tokenizer.huggingface.json", raw)
    notes = _add_tokenizer(writer, found)
    notes += _add_special_tokens(writer, artifact, config, model)
    notes += _add_chat_template(writer, artifact)
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


def _add_tokenizer(writer: Any, found: Described | None) -> list[str]:
    if found is None:
        writer.add_tokenizer_model("none")
        return [
            "llama.cpp has nothing that does what this tokenizer does, so model.gguf has none: give token numbers, not "
            "text."
        ]
    writer.add_tokenizer_model(found.model)
    writer.add_tokenizer_pre(found.pre)
    writer.add_token_list(found.tokens)
    writer.add_token_types(found.types)
    if found.scores is None:
        writer.add_token_merges(found.merges)
    else:
        writer.add_token_scores(found.scores)
        writer.add_add_space_prefix(found.space_first)
    writer.add_add_bos_token(found.starts)
    writer.add_add_eos_token(found.ends)
    return list(found.notes)


def _add_special_tokens(writer: Any, artifact: Path, config: dict[str, Any], model: Llama) -> list[str]:
    """The numbers of the tokens that begin, end and pad a text. GGUF has three places for tokens that end one."""

    def number(value: Any) -> int | None:
        value = value[0] if isinstance(value, list) and value else value
        return value if type(value) is int and 0 <= value < model.shape.vocab_size else None

    ends = [token for token in dict.fromkeys(model.shape.eos) if number(token) is not None]
    settings = artifact / "generation_config.json"
    config = config | (_json(settings)[1] if settings.is_file() else {})
    for add, token in (
        (writer.add_bos_token_id, number(config.get("bos_token_id"))),
        (writer.add_pad_token_id, number(config.get("pad_token_id"))),
        *zip((writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id), ends, strict=False),
    ):
        if token is not None:
            add(token)
    if len(ends) > 3:
        return [f"GGUF names three tokens that end a text; {ends[3:]} end one in the artifact only."]
    return []


def _add_chat_template(writer: Any, artifact: Path) -> list[str]:
    """The tokenizer's chat template, from either of the two places where transformers keeps it."""
    path, settings = artifact / "chat_template.jinja", artifact / "tokenizer_config.json"
    template: Any = None
    if path.is_file():
        template = read_bounded(path, _JSON_LIMIT, error=ArtifactError).decode("utf-8", "replace")
    elif settings.is_file():
        listed = _json(settings)[1]
        template = listed.get("chat_template") if isinstance(listed, dict) else None
    if isinstance(template, list):  # several by name
        template = next((one.get("template") for one in template if one.get("name") == "default"), None)
    if isinstance(template, str) and template:
        writer.add_chat_template(template)
    return []
