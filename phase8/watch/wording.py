"""How figures and names are written for people, the same in console, report and plots."""

from __future__ import annotations

import re
from typing import Any

from phase8.codecs.stages import STAGES
from phase8.events import CheckResult, QualityGate
from phase8.printable import HARMFUL
from phase8.watch.view import number

NOTHING = "–"
"""Stands where there is no figure."""

_BREAKS = re.compile(r"[\t\n]")


def clean(text: Any) -> str:
    """One line without control characters: what a log holds may come from anywhere."""
    return _BREAKS.sub(" ", HARMFUL.sub(" ", str(text))).strip()


def size(value: float | None) -> str:
    """Bytes in decimal units: 2_104_332 -> `2.10 MB`."""
    if value is None:
        return NOTHING
    for unit, power in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= power:
            return f"{value / power:.{2 if abs(value) < 10 * power else 1}f} {unit}"
    return f"{value:.0f} B"


def times(value: float | None) -> str:
    """A ratio: 8.04 -> `8.0×`, 128.4 -> `128×`."""
    return NOTHING if value is None else f"{value:.{1 if abs(value) < 100 else 0}f}×"


def percent(value: float | None) -> str:
    """A fraction: 0.9714 -> `97.1 %`."""
    return NOTHING if value is None else f"{100 * value:.1f} %"


def seconds(value: float | None) -> str:
    """A duration: 0.42 -> `0.4 s`, 75 -> `1 min 15 s`."""
    if value is None:
        return NOTHING
    if value < 9.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def spread(check: CheckResult) -> str:
    """The 90 % interval of a check's figure, "0.931 to 0.978"; empty where it has none."""
    if check.low is None and check.high is None:
        return ""
    return f"{figure(check.low)} to {figure(check.high)}"


def bits_per_byte(gate: QualityGate | None) -> str:
    """What a gate's event says of held-out text; empty where it was not measured."""
    if gate is None or gate.baseline_bits_per_byte is None or gate.bits_per_byte is None:
        return ""
    before, after = gate.baseline_bits_per_byte, gate.bits_per_byte
    if before <= 0:
        return ""
    text = f"held-out text ({clean(gate.text)})" if gate.text else "held-out text"
    return f"{text} takes {after:.4f} bits per byte, the baseline {before:.4f} ({after / before - 1:+.1%})"


def figure(value: Any) -> str:
    """Any figure of a check, to four significant digits; text and truth values as they are."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return " to ".join(figure(item) for item in value)
    known = number(value)
    if known is None:
        return NOTHING if value is None else clean(value)
    if known == int(known) and abs(known) < 1e6:
        return f"{int(known)}"
    return f"{known:,.0f}" if abs(known) >= 1e4 else f"{known:.4g}"


def words(name: Any) -> str:
    """A name for people: `core_retention` -> `core retention`."""
    return clean(name).replace("_", " ")


def stage_name(name: str) -> str:
    """A stage for people."""
    return {"baseline": "Baseline", **{stage.name: stage.short for stage in STAGES}}.get(name, clean(name))


def settings(values: Any) -> str:
    """Adjustments on one line: `seedlm.bits=5, calibration.samples=64`."""
    return ", ".join(f"{clean(name)}={figure(value)}" for name, value in values.items()) or "nothing"
