"""What makes a model behave as it does beside its weights and its architecture: its generation settings.

End tokens (a chat model has several), sampling, penalties, forbidden tokens. transformers keeps them in
`generation_config.json`; where there is none it makes them from `config.json`. A model that is handed over without that
file has one end token and writes past its turn. (The tokenizer's own files hold the chat template and the special
tokens; `save_pretrained` writes them.)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from phase8.errors import ModelError, Phase8Error

GENERATION_FILE = "generation_config.json"
_VOLATILE = ("transformers_version", "_from_model_config")


def generation_text(network: Any) -> str | None:
    """The content of `generation_config.json`; None where `config.json` says as much."""
    settings, implied = _plain(network.generation_config), _plain(GenerationConfig.from_model_config(network.config))
    if settings == implied:
        return None
    return json.dumps(settings, separators=(",", ":"), sort_keys=True) + "\n"


def read_generation(directory: Path | str, *, error: type[Phase8Error] = ModelError) -> GenerationConfig | None:
    """A directory's generation settings; None where it has none.

    Raises:
        error: the file cannot be read.
    """
    path = Path(directory) / GENERATION_FILE
    if not path.is_file():
        return None
    try:
        return GenerationConfig.from_pretrained(str(directory))
    except Exception as problem:  # transformers raises anything on a broken file; it is told with the file's name
        what = f"the generation settings cannot be read: {str(problem)[:200]}"
        raise error(what, where=str(path), fix="copy the file anew, or remove it") from problem


def end_tokens(settings: GenerationConfig | None) -> list[int]:
    """The tokens that end a text."""
    ends = None if settings is None else settings.eos_token_id
    return [] if ends is None else list(ends) if isinstance(ends, list | tuple) else [int(ends)]


def _plain(settings: GenerationConfig | None) -> dict[str, Any]:
    if settings is None:
        return {}
    return {name: value for name, value in json.loads(settings.to_json_string()).items() if name not in _VOLATILE}
