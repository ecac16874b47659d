"""The page's types are those of the events and of the REST calls."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from phase8.events import kinds
from phase8.watch.server import schema
from phase8.watch.server.page import SOURCE
from phase8.watch.server.types import api_ts, events_ts, interface, typescript


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (int, "number"),
        (str | None, "string | null"),
        (int | float | None, "number | null"),
        (tuple[str, ...], "string[]"),
        (list[int | None], "(number | null)[]"),
        (tuple[float | None, float | None] | None, "[number | null, number | null] | null"),
        (dict[str, list[bool]], "Record<string, boolean[]>"),
        (dict[str, Any], "Record<string, unknown>"),
        (Literal["a", "b"], '"a" | "b"'),
        (list[schema.Node], "Node[]"),
    ],
)
def test_a_type_s_counterpart(hint, expected):
    assert typescript(hint) == expected


def test_what_has_no_counterpart_is_refused():
    with pytest.raises(TypeError, match="no counterpart"):
        typescript(bytes)


def test_only_what_a_caller_may_leave_out_is_optional():
    assert "settings?: Record<string, boolean | number | string | null>;" in interface(schema.Start)
    assert "reason: string;" in interface(schema.Abort)
    assert "?:" not in interface(schema.StageSummary)


def test_every_kind_stands_in_the_table():
    text = events_ts()
    for name, kind in kinds.KINDS.items():
        assert f"  {name}: {kind.__name__};" in text and f"export interface {kind.__name__} {{" in text


@pytest.mark.parametrize(("name", "text"), [("events.ts", events_ts), ("api.ts", api_ts)])
def test_the_page_has_these_types(name, text):
    written = SOURCE / "src" / "lib" / name
    if not SOURCE.is_dir():
        pytest.skip("the page's sources are not here")
    assert written.read_text(encoding="utf-8") == text(), "run `python -m phase8.watch.server.types`"
