"""Imports run one way, as docs/design.md says."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "phase8"
LAYERS = """printable output < errors < checks files limits world lossless < events cache < codecs < model < artifact
    < train benchmarks < judge runtime integration < config < export allocation watch < run < api cli < sweep
    < __init__ __main__"""
LEVEL = {part: level for level, parts in enumerate(LAYERS.split("<")) for part in parts.split()}
IMPORTERS = {"pytorch_lightning": "train", "wandb": "watch", "lm_eval": "benchmarks"}
"""Of optional libraries."""
NUMPY_ALONE = ("lossless/*.py", "codecs/*/decode.py", "codecs/*/settings.py", "runtime/*.py", "artifact/read.py",
               "codecs/decoders.py")  # fmt: skip


def imports(path):
    """Whatever a file imports, wherever in the file: `phase8.run.retry.advice`, `torch`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_files_import_downwards_and_optional_libraries_in_one_place():
    problems, libraries = [], set()
    for path in sorted(PACKAGE.rglob("*.py")):
        here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for name in imports(path):
            top, part = (*name.split("."), "")[:2]
            if top == "phase8" and part not in ("", here) and LEVEL[part] >= LEVEL[here]:
                problems.append(f"{path.relative_to(PACKAGE)} imports {name}")
            elif top in IMPORTERS:
                libraries.add((top, here))
    assert not problems, "\n".join(problems)
    assert libraries == set(IMPORTERS.items())


def test_what_decodes_needs_no_torch():
    """Transitively it is shown by a process without torch (`test_runtime.py`); this names the file."""
    readers = [path for pattern in NUMPY_ALONE for path in PACKAGE.glob(pattern)]
    assert len(readers) > 15
    assert not [path for path in readers if any(name.split(".")[0] == "torch" for name in imports(path))]
