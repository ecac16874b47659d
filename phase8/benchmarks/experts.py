"""Which benchmarks judge which expert of the Phase 7 model."""

from __future__ import annotations

from collections.abc import Sequence

from phase8.errors import BenchmarkError

EXPERT_BENCHMARKS: dict[str, tuple[str, ...]] = {
    "analytical": ("MATH", "ARC", "GSM8K"),
    "creative": ("HellaSwag", "StoryCloze"),
    "code": ("HumanEval", "MBPP"),
    "reasoning": ("MMLU", "WinoGrande"),
    "communication": ("TruthfulQA", "LAMBADA"),
    "memory": ("SQuAD", "TriviaQA"),
    "planning": ("ALFWorld", "BabyAI"),
    "execution": ("WebShop", "Countdown"),
}


def check_experts(experts: Sequence[str]) -> None:
    """Raises `BenchmarkError` naming every expert that has no benchmarks here, and those that have."""
    unknown = [expert for expert in experts if expert not in EXPERT_BENCHMARKS]
    if unknown:
        raise BenchmarkError(
            f"nobody knows the expert{'s' if len(unknown) > 1 else ''} {', '.join(map(repr, unknown))}",
            where="experts in the expert file",
            fix=f"known experts: {', '.join(EXPERT_BENCHMARKS)}",
        )


def experts_for(benchmark: str) -> tuple[str, ...]:
    """The experts that a benchmark judges; the `ARC` of the table stands for `ARC-Challenge` too."""
    return tuple(
        expert
        for expert, names in EXPERT_BENCHMARKS.items()
        if any(benchmark == name or benchmark.startswith(f"{name}-") for name in names)
    )
