"""Teaches transformers to open artifacts, at no cost to whoever does not use it.

After `import phase8`, `AutoModelForCausalLM.from_pretrained(ARTIFACT)` works, and whatever is built on it: pipelines,
lm-eval's `hf` model (`python -m phase8 lm-eval run --model hf --model_args pretrained=ARTIFACT ...`).

transformers keeps its quantizers in two registers, in `transformers.quantizers.auto`. That module imports torch and
takes seconds, so `import phase8` must not import it. Instead a finder is put in front of Python's import path
(`sys.meta_path`, PEP 302): when somebody imports that module, the quantizer is registered right after. Nothing else is
touched.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

_REGISTER = "transformers.quantizers.auto"


def teach_transformers() -> None:
    """Registers `quant_method: phase8` with transformers: now if its registers are loaded, else once they are."""
    if _REGISTER in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def _register() -> None:
    if find_spec("torch") is not None:
        import_module("phase8.integration.quantizer")


class _AfterImport:
    """Finds the one module as the other finders do, and makes its loader register the quantizer in the end."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _REGISTER:
            return None
        others = (finder for finder in list(sys.meta_path) if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
