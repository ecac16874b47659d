"""An invented event log, line by line as a run writes it. No figure here was ever measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BEGIN = 1_795_700_000.0
ORIGINAL = 14_951_424
TASKS = {"mini_mmlu": ("core", 0.9, 0.25), "mini_arc": ("core", 0.8, 0.25), "mini_mbpp": ("expert", 0.7, 0.0)}
SIZES = {"seedlm": 1_700_000, "vptq": 1_200_000, "hyper": 62_900}
LIMITS = {"core": {"seedlm": 0.98, "vptq": 0.95, "hyper": 0.9}, "cumulative_retention": 0.84}


class Lines:
    """Makes lines, 0.1 s apart."""

    def __init__(self, begin: float = BEGIN) -> None:
        self.time = begin

    def __call__(self, kind: str, stage: str | None = None, **data: Any) -> str:
        self.time += 0.1
        return json.dumps({"time": self.time, "kind": kind, "stage": stage, "data": data}) + "\n"


def head(line: Lines, run_dir: Path) -> Iterator[str]:
    """Up to the end of the baseline."""
    yield line("log_start", version=2, program="phase8")
    yield line(
        "run_start", run_dir=str(run_dir), compressor="default", model="embedded:reference", parameters=3_737_856,
        original_bytes=ORIGINAL, stages=list(SIZES), titles={"seedlm": "SeedLM", "vptq": "VPTQ", "hyper": "Hyper"},
        seed=0, limits=LIMITS, pid=1, host="there",
    )  # fmt: skip
    yield line("stage_start", "baseline", attempt=1)
    for done in (1, 2, 3):
        yield line("activity", "baseline", step="evaluate", done=done, total=3, text=f"{done} of 3")
    for task, (role, score, chance) in TASKS.items():
        yield line("benchmark_result", "baseline", task=task, role=role, attempt=1, score=score, stderr=0.02, n=200,
                   chance=chance, informative=True, also={"acc_norm,none": score})  # fmt: skip
    yield line("stage_complete", "baseline", attempt=1, passed=True, seconds=1.0, artifact=None, final=True)


def attempt(
    line: Lines, run_dir: Path, stage: str, number: int, kept: float, passed: bool, final: bool
) -> Iterator[str]:
    """One attempt that keeps the share `kept` of every score."""
    name = stage if number == 1 else f"{stage}_retry{number - 1}"
    size = SIZES[stage] + 1000 * number
    yield line("stage_start", stage, attempt=number)
    yield line("log", stage, level="info", text=f"{stage} begins")
    yield line("activity", stage, step="encode", done=50, total=100, text=f"{stage} weights")
    yield line("activity", stage, step="encode", done=100, total=100, text=f"{stage} weights")
    yield line("compression_progress", stage, attempt=number, compressed_bytes=size, original_bytes=ORIGINAL,
               ratio=ORIGINAL / size, bits_per_weight=8 * size / 3_737_856, groups={"q_proj": size})  # fmt: skip
    for task, (role, score, chance) in TASKS.items():
        yield line("benchmark_result", stage, task=task, role=role, attempt=number, score=kept * score, stderr=0.02,
                   n=200, chance=chance, informative=True, also={}, retention=kept,
                   retention_interval=[kept - 0.02, kept + 0.02], retention_corrected=2 * kept - 1,
                   retention_corrected_interval=[2 * kept - 1.04, 2 * kept - 0.96])  # fmt: skip
    checks = [{"name": "core_retention_cumulative", "value": kept, "threshold": 0.84, "passed": kept >= 0.84,
               "low": kept - 0.02, "high": kept + 0.02}]  # fmt: skip
    yield line("quality_gate", stage, attempt=number, passed=passed, abort=None, checks=checks, wording="invented",
               bits_per_byte=1.0, baseline_bits_per_byte=0.9)  # fmt: skip
    if not passed:
        yield line("recommendation", stage, attempt=number, action="raise_rate", adjustments={"seed": 1}, reason="bits")
    yield line("stage_complete", stage, attempt=number, passed=passed, seconds=2.0, final=final,
               artifact=str(run_dir / "artifacts" / name))  # fmt: skip


def tail(line: Lines, kept: float, size: int, **more: Any) -> Iterator[str]:
    """The end."""
    metrics = {"total_compression_ratio": ORIGINAL / size, "compressed_size_mb": size / 1e6, "core_retention": kept,
               "core_retention_interval": [kept - 0.01, kept + 0.01]}  # fmt: skip
    data = {"success": False, "compression_level": "vptq", "metrics": metrics, "stages": {}, "interrupted": False,
            "stopped": "", "seconds": 12.5}  # fmt: skip
    yield line("phase_complete", None, **{**data, **more})


def whole(run_dir: Path, kept: float = 0.97, begin: float = BEGIN) -> Iterator[str]:
    """A run whose vptq passes at the second try and whose hyper does not."""
    line = Lines(begin)
    yield from head(line, run_dir)
    yield from attempt(line, run_dir, "seedlm", 1, 0.99, True, True)
    yield from attempt(line, run_dir, "vptq", 1, 0.80, False, False)
    yield line("retry_start", "vptq", attempt=2, action="raise_rate", adjustments={"seed": 1}, reason="bits")
    yield from attempt(line, run_dir, "vptq", 2, kept, True, True)
    yield from attempt(line, run_dir, "hyper", 1, 0.30, False, True)
    yield from tail(line, kept, SIZES["vptq"] + 2000)


SETTINGS = "seed: 0\nvptq: {codebook_size: 256}\n"


def write(run_dir: Path, lines: Iterator[str] | None = None, settings: str = SETTINGS) -> Path:
    """Writes a run's directory."""
    run_dir.mkdir(parents=True, exist_ok=True)
    text = list(whole(run_dir) if lines is None else lines)
    (run_dir / "events.jsonl").write_text("".join(text))
    (run_dir / "config.yaml").write_text(settings)
    last = json.loads(text[-1])
    if last["kind"] == "phase_complete":
        (run_dir / "result.json").write_text(json.dumps(last["data"]))
    return run_dir
