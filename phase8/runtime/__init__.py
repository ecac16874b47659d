"""Reading and running artifacts with numpy alone: no torch, no transformers, no safetensors library.

    from phase8.runtime import generate, load_model
    model = load_model("outputs/DATE/TIME/artifacts/vptq")
    print(list(generate(model, [1, 17, 4], tokens=20)))

or `python -m phase8.runtime ARTIFACT --prompt "Once upon a time"`. Two libraries are used where they are installed:
`constriction` decodes entropy-coded streams some twenty times faster, `tokenizers` turns text into tokens and back.
The parts of the package that this needs are `errors`, `config`, `files`, `lossless/`, `codecs/` (the decoding half),
`artifact/read.py`, `integration/__init__.py` (standard library only) and `runtime/`.
"""

from phase8.artifact.read import Artifact, Manifest, read_artifact, read_manifest
from phase8.runtime.generate import generate, load_tokenizer
from phase8.runtime.llama import Llama, LlamaShape, load_model

__all__ = [
    "Artifact",
    "Llama",
    "LlamaShape",
    "Manifest",
    "generate",
    "load_model",
    "load_tokenizer",
    "read_artifact",
    "read_manifest",
]
