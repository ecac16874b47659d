"""Imports run one way, as docs/design.md says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "phase8"
LAYERS = [
    {"printable", "output"},
    {"errors"},
    {"checks", "files", "limits", "world", "lossless"},
    {"events", "cache"},
    {"codecs"},
    {"model"},
    {"artifact"},
    {"train", "benchmarks"},
    {"judge", "runtime", "integration"},
    {"config"},
    {"export", "allocation", "watch"},
    {"run"},
    {"api", "cli"},
    {"sweep"},
    {"__init__", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def part(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Parts of this package that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module] if node.module != "phase8" else [f"phase8.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("phase8.")}
    return found


def test_every_file_has_a_layer_and_imports_only_downwards():
    problems = []
    for path in sorted(PACKAGE.rglob("*.py")):
        here = part(path)
        if here not in LEVEL:
            problems.append(f"{here} has no layer")
            continue
        for other in imported(path) - {here}:
            if LEVEL.get(other, 99) >= LEVEL[here]:
                problems.append(f"{path.relative_to(PACKAGE)} imports {other}")
    assert not problems, "\n".join(problems)


def test_optional_parts_have_one_importer():
    importers = {"pytorch_lightning": set(), "wandb": set(), "lm_eval": set()}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in names:
                if name.split(".")[0] in importers:
                    importers[name.split(".")[0]].add(path.relative_to(PACKAGE).parts[0])
    assert importers["pytorch_lightning"] == {"train"}
    assert importers["wandb"] == {"watch"}
    assert importers["lm_eval"] == {"benchmarks"}


def test_what_decodes_needs_no_torch():
    """Transitively it is shown by a process without torch (`test_runtime.py`); this names the file."""
    readers = [
        *PACKAGE.glob("lossless/*.py"),
        *PACKAGE.glob("codecs/*/decode.py"),
        *PACKAGE.glob("codecs/*/settings.py"),
    ]
    readers += [*PACKAGE.glob("runtime/*.py"), PACKAGE / "artifact" / "read.py", PACKAGE / "codecs" / "decoders.py"]
    for path in readers:
        assert not re.search(r"^(import torch|from torch)", path.read_text(encoding="utf-8"), re.MULTILINE), path
