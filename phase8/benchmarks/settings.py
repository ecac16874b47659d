"""What quality is measured with."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from phase8.checks import require


class EdgePool(Enum):
    """Where the questions of edge of chaos come from; see `phase8.benchmarks.edge`."""

    auto = "auto"
    shipped = "shipped"
    calibrated = "calibrated"


class BenchmarkSuite(Enum):
    mini = "mini"
    core = "core"


EXPERTS = ("analytical", "creative", "code", "reasoning", "communication", "memory", "planning", "execution")
"""The experts of the specification; a model may have others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarksConfig:
    """What quality is measured with."""

    suite: BenchmarkSuite = BenchmarkSuite.mini
    """`mini`: the embedded benchmarks; `core`: the published ones, through lm-eval."""
    data_dir: str | None = None
    """A directory with the benchmarks' data. Null: those of `core` from the network, those of `mini` as shipped. For
    `mini` it holds `TASK.jsonl` as `python -m phase8.world.items DIRECTORY` writes them: items of another seed."""
    run_generated_code: bool = False
    """Whether the programs that a model writes for HumanEval and MBPP may be run (always in the sandbox)."""
    pass_at: int = 1
    """Of HumanEval: 1 scores one greedy program per problem, 10 the chance of a right one among ten sampled."""
    experts: dict[str, tuple[str, ...] | None] = field(default_factory=lambda: dict.fromkeys(EXPERTS))
    """An expert's benchmarks; null: those of the specification."""
    batch_tokens: int = 8192
    """Tokens per forward pass."""
    perplexity_text: str | None = None
    """A UTF-8 file of held-out text, documents parted by blank lines; null: the embedded world's."""
    edge_pool: EdgePool = EdgePool.auto
    """calibrated: questions picked by difficulty so that this model solves about 75 %. shipped: those that suit the
    embedded model. auto: shipped for the embedded model, calibrated for any other."""
    edge_pool_file: str | None = None
    """JSON lines with prompt, choices, answer and level to build the pool from; null: arithmetic questions."""
    eudaimonia_file: str | None = None
    """JSON lines of preference pairs {rule, context, good, bad} for the four rules; null: the embedded world's."""

    def __post_init__(self) -> None:
        unused = ["benchmarks.run_generated_code"] if self.run_generated_code else []
        unused += ["benchmarks.pass_at"] if self.pass_at != 1 else []
        require(
            self.edge_pool_file is None or self.edge_pool is not EdgePool.shipped,
            "benchmarks.edge_pool_file is given, but edge_pool=shipped asks the shipped questions",
            where="benchmarks",
            fix="set benchmarks.edge_pool=calibrated",
        )
        require(
            self.suite is BenchmarkSuite.core or not unused,
            f"the embedded benchmarks do not use {' and '.join(unused)}",
            where="benchmarks",
            fix="add benchmarks=core, or leave it out",
        )
        require(
            self.pass_at in (1, 10),
            f"benchmarks.pass_at is {self.pass_at}, known: 1, 10",
            where="benchmarks",
            fix="the specification's is pass@1",
        )
        require(
            self.batch_tokens >= 256,
            f"benchmarks.batch_tokens is {self.batch_tokens}, needs at least 256",
            where="benchmarks",
            fix="the default is 8192",
        )
