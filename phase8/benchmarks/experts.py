"""Which benchmarks judge which expert of the Phase 7 model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def expert_map(overrides: Mapping[str, Sequence[str] | None] | None = None) -> dict[str, tuple[str, ...]]:
    """The table above, with some experts' benchmarks replaced, or experts added; None replaces nothing."""
    given = {expert: tuple(names) for expert, names in (overrides or {}).items() if names is not None}
    return EXPERT_BENCHMARKS | given


def check_experts(experts: Sequence[str], known: Mapping[str, Sequence[str]] = EXPERT_BENCHMARKS) -> None:
    """Raises `BenchmarkError` naming every expert that has no benchmarks here, and those that have."""
    unknown = [expert for expert in experts if expert not in known]
    if unknown:
        raise BenchmarkError(
            f"nobody knows the expert{'s' if len(unknown) > 1 else ''} {', '.join(map(repr, unknown))}",
            where="experts in the expert file",
            fix=f"known experts: {', '.join(known)}; `+benchmarks.experts.NAME=[BENCHMARK]` adds one",
        )


def experts_for(benchmark: str, known: Mapping[str, Sequence[str]] = EXPERT_BENCHMARKS) -> tuple[str, ...]:
    """The experts that a benchmark judges."""
    return tuple(expert for expert, names in known.items() if any(stands_for(benchmark, name) for name in names))


def stands_for(benchmark: str, name: str) -> bool:
    """Whether a benchmark is the one that an expert calls for; the `ARC` of the table is `ARC-Challenge` too."""
    return benchmark == name or benchmark.startswith(f"{name}-")
