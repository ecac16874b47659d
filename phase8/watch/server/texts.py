"""The text under each field of a class, which Python itself does not keep."""

from __future__ import annotations

import ast
import inspect
import textwrap


def field_texts(kind: type) -> dict[str, str]:
    """The text under each field of a class, on one line."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
    except (OSError, TypeError, SyntaxError):
        return {}
    texts = {}
    for field, below in zip(body, body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            if isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
                texts[field.target.id] = " ".join(below.value.value.split())
    return texts
