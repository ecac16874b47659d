"""Scores of generated programs for lm-eval's HumanEval and MBPP, from the sandbox.

lm-eval's own task files score with `code_eval` of the `evaluate` library, which they load from the network as soon as
they are read, and which runs programs in a mere subprocess. The metrics below take its place in the tasks, and
`without_code_eval` lets the files be read without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from phase8.benchmarks.sandbox import run_tests_batch

TIMEOUT_S = 3.0
"""Of each program, tests included; as in `code_eval`."""


def pass_at_k(references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int]) -> dict[str, float]:
    """`{"pass@1": ..., ...}`, the mean over the problems.

    The unbiased estimate of Chen et al. 2021 (arXiv 2107.03374), equation 1, for each k up to the number of programs.

    Args:
        references: the tests of each problem.
        predictions: the programs for each problem.

    Raises:
        BenchmarkError: this system cannot run programs in a sandbox.
    """
    passed = [
        run_tests_batch([f"{program}\n{tests}" for program in programs], TIMEOUT_S)
        for tests, programs in zip(references, predictions, strict=True)
    ]
    fewest = min(map(len, passed))
    return {
        f"pass@{size}": sum(chance_of_a_pass(len(one), sum(one), size) for one in passed) / len(passed)
        for size in k
        if size <= fewest
    }


def pass_at_1(references: Sequence[str], predictions: Sequence[str | Sequence[str]]) -> float:
    """Share of the programs that pass their tests, one program for each problem."""
    programs = [[one] if isinstance(one, str) else one for one in predictions]
    return pass_at_k(references, programs, [1])["pass@1"]


def chance_of_a_pass(programs: int, right: int, k: int) -> float:
    """Chance that one of `k` programs, drawn from `programs` of which `right` pass, passes."""
    return 1.0 - math.comb(programs - right, k) / math.comb(programs, k)


class _Sandboxed:
    """What `evaluate.load("code_eval")` gives meanwhile; whoever keeps it runs programs in the sandbox too."""

    def compute(
        self, references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int] = (1,), **_: Any
    ) -> tuple[dict[str, float], dict[str, Any]]:
        return pass_at_k(references, predictions, k), {}


@contextmanager
def without_code_eval() -> Iterator[None]:
    """While open, nothing is loaded from the network for `evaluate.load("code_eval")`."""
    import evaluate

    original = evaluate.load

    def load(path: str, *arguments: Any, **settings: Any) -> Any:
        return _Sandboxed() if path == "code_eval" else original(path, *arguments, **settings)

    evaluate.load = load
    try:
        yield
    finally:
        evaluate.load = original
