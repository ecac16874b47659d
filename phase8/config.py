"""Every setting of a run, as typed dataclasses, checked once at the entry.

`run.py` composes `conf/` with Hydra and hands the result to `CompressionConfig.from_dict`; below that nobody sees a
`DictConfig`. Unknown names, wrong types and impossible combinations raise `ConfigError` before any work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from enum import Enum
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from phase8.errors import ConfigError


def require(condition: bool, what: str, *, where: str, fix: str) -> None:
    """Raises `ConfigError` unless `condition`."""
    if not condition:
        raise ConfigError(what, where=where, fix=fix)


def check_limit(settings: Any, prefix: str) -> None:
    """Checks `budget_bytes` and `target_ratio` of a stage, or of the run (prefix "")."""
    budget, ratio = settings.budget_bytes, settings.target_ratio
    require(
        budget is None or ratio is None,
        f"{prefix}budget_bytes and {prefix}target_ratio are both set",
        where=f"{prefix}budget_bytes",
        fix="give one of the two, and null for the other",
    )
    require(
        budget is None or budget >= 1,
        f"{prefix}budget_bytes is {budget}, needs at least 1",
        where=f"{prefix}budget_bytes",
        fix=f"{prefix}budget_bytes=400_000, for example",
    )
    require(
        ratio is None or 1 < ratio < float("inf"),
        f"{prefix}target_ratio is {ratio}, needs a number above 1",
        where=f"{prefix}target_ratio",
        fix=f"{prefix}target_ratio=12, for example",
    )


class SeedSearch(Enum):
    fast = "fast"
    exhaustive = "exhaustive"


class Trajectory(Enum):
    polynomial = "polynomial"
    fourier = "fourier"
    ergodic = "ergodic"
    manifold = "manifold"


class Axis(Enum):
    """What a polynomial or Fourier series runs along."""

    block = "block"
    """Consecutive weights of a matrix."""
    depth = "depth"
    """The layers: one weight of all matrices of the same kind and shape."""


class Sharing(Enum):
    """Which matrices share a codebook."""

    tensor = "tensor"
    kind = "kind"
    model = "model"


class CodebookSource(Enum):
    """Where the entries of a codebook come from."""

    learned = "learned"
    """Fitted to the weights and stored."""
    seeded = "seeded"
    """Generated from a seed, which costs no bytes; only a gain per codebook is fitted and stored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedLMConfig:
    """SeedLM (arXiv 2410.10714): a block of weights is a seeded pseudo-random basis times a few small coefficients."""

    enabled: bool = True
    block_size: int = 8
    """C: consecutive weights, in row-major order, that share a seed."""
    latent_dim: int = 3
    """P: coefficients per block."""
    bits: int = 4
    """Width of one coefficient: two's complement from 3 bits on; 1 bit is -1/+1 and 2 bits are -3/-1/+1/+3."""
    seed_bits: int = 16
    """K: width of the shift register; 2**K - 1 seeds are searched."""
    exponent_bits: int = 4
    """Width of the power of two that a block's coefficients share; the tensor has a scale beside it."""
    search: SeedSearch = SeedSearch.fast
    """exhaustive: look at every seed for every block. fast: at the seeds whose bases lie near the block's direction."""
    candidates: int = 0
    """How many of the best-looking seeds of a block are compared exactly, with quantised coefficients; 0: as many as
    the width of the coefficients asks for (`phase8.codecs.seedlm.seed_search`)."""
    budget_bytes: int | None = None
    """Most bytes of this stage's artifact; each tensor then gets settings of its own, chosen by measured distortion."""
    target_ratio: float | None = None
    """The same limit as a ratio: FP32 bytes of the model / bytes of the artifact, at least. Give one of the two."""
    weighted: bool = False
    """Weighs squared errors by the diagonal of the layer's Hessian and by token frequency, from calibration text."""

    def __post_init__(self) -> None:
        check_limit(self, "seedlm.")
        fix = "the paper's settings are block_size=8 latent_dim=3 bits=4 seed_bits=16 exponent_bits=4"

        def within(name: str, low: int, high: int) -> None:
            value = getattr(self, name)
            ok = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
            what = f"seedlm.{name} is {value!r}, needs a whole number from {low} to {high}"
            require(ok, what, where="seedlm", fix=fix)

        within("block_size", 1, 4096)
        within("latent_dim", 1, 64)
        within("bits", 1, 8)
        within("seed_bits", 4, 20)
        within("exponent_bits", 2, 8)
        within("candidates", 0, 4096)
        require(
            self.latent_dim <= self.block_size,
            f"seedlm.latent_dim is {self.latent_dim}, more than seedlm.block_size ({self.block_size})",
            where="seedlm",
            fix="lower seedlm.latent_dim or raise seedlm.block_size",
        )
        require(
            self.latent_dim**2 << self.seed_bits <= 1 << 26,
            f"seedlm.latent_dim={self.latent_dim} with seed_bits={self.seed_bits} needs more than 256 MiB of tables",
            where="seedlm",
            fix="lower seedlm.latent_dim or seedlm.seed_bits so that latent_dim**2 * 2**seed_bits is at most 2**26",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class VPTQConfig:
    """VPTQ (arXiv 2409.17066): indices into codebooks of weight vectors, chosen under the layer's Hessian."""

    enabled: bool = True
    vector_dim: int = 4
    """v: consecutive output rows of one input column that form a vector."""
    product: int = 1
    """Consecutive parts of a vector, each with codebooks and indices of its own; divides `vector_dim`."""
    codebook_size: int = 1024
    """Entries of each codebook."""
    num_codebooks: int = 1
    """Residual codebooks: each codes what the ones before left over."""
    share: Sharing = Sharing.kind
    """Which matrices share the codebooks."""
    share_layers: int = 0
    """Only matrices of so many consecutive layers share them; 0: of all layers. With `share=model`, 1 is one set of
    codebooks per layer."""
    codebook_source: CodebookSource = CodebookSource.learned
    codebook_bits: int = 8
    """16: float16 entries; 8: 8-bit entries with one float16 scale per codebook. Seeded entries are not stored."""
    hessian_damping: float = 1.0
    """Added to the Hessian's diagonal, in units of its mean. The paper's 0.01 fits the layers' outputs more closely;
    after reconstruction 1.0 came out better (experiments/LOG.md)."""
    second_order: bool = True
    """The column loop that pushes each column's error into the columns still to be coded."""
    kmeans_iterations: int = 20
    budget_bytes: int | None = None
    """Most bytes of this stage's artifact; each tensor then gets settings of its own, chosen by measured distortion."""
    target_ratio: float | None = None
    """The same limit as a ratio: FP32 bytes of the model / bytes of the artifact, at least. Give one of the two."""
    outlier_columns: float = 0.0
    """Share of a matrix's columns, those of the Hessian's largest diagonal, that have a codebook of their own."""
    outlier_vector_dim: int = 2
    """Elements of an outlier column's vectors; divides `vector_dim`."""
    outlier_codebook_size: int = 1024
    """Entries of the outliers' codebook."""

    def __post_init__(self) -> None:
        check_limit(self, "vptq.")
        fix = "a good start is vector_dim=8 codebook_size=256 num_codebooks=2, which is 2 bits per weight"
        for name, low, high in (
            ("vector_dim", 1, 1024),
            ("product", 1, 1024),
            ("codebook_size", 2, 65536),
            ("num_codebooks", 1, 16),
            ("share_layers", 0, 100_000),
            ("kmeans_iterations", 1, 10_000),
            ("outlier_vector_dim", 1, 1024),
            ("outlier_codebook_size", 2, 65536),
        ):
            value = getattr(self, name)
            require(
                low <= value <= high, f"vptq.{name} is {value}, needs {low} to {high}", where=f"vptq.{name}", fix=fix
            )
        require(
            self.vector_dim % self.product == 0,
            f"vptq.product is {self.product}, which does not divide vptq.vector_dim ({self.vector_dim})",
            where="vptq.product",
            fix="1 divides everything; product=2 vector_dim=8 takes turns between two codebooks of vectors of 4",
        )
        require(
            self.codebook_bits in (8, 16),
            f"vptq.codebook_bits is {self.codebook_bits}, needs 8 or 16",
            where="vptq.codebook_bits",
            fix="16 is exact enough for anything; 8 halves the codebooks",
        )
        require(
            0 < self.hessian_damping < float("inf"),
            f"vptq.hessian_damping is {self.hessian_damping}, needs a finite number above 0",
            where="vptq.hessian_damping",
            fix="the paper's setting is 0.01",
        )
        require(
            0 <= self.outlier_columns <= 0.5,
            f"vptq.outlier_columns is {self.outlier_columns}, needs 0 to 0.5",
            where="vptq.outlier_columns",
            fix="the paper takes 0.01 to 0.05",
        )
        require(
            self.outlier_columns == 0 or self.vector_dim % self.outlier_vector_dim == 0,
            f"vptq.outlier_vector_dim is {self.outlier_vector_dim}, which does not divide vptq.vector_dim "
            f"({self.vector_dim})",
            where="vptq.outlier_vector_dim",
            fix="1 divides everything",
        )


class Winding(Enum):
    """Direction of the ergodic winding; see `phase8.codecs.hyper.ergodic`."""

    power = "power"
    reciprocal = "reciprocal"
    primes = "primes"


@dataclass(frozen=True, kw_only=True, slots=True)
class HyperConfig:
    """Hyper-Compression (arXiv 2409.00592) and its relatives: weights as values of a function along a trajectory.

    Measured on Gaussian weights (`experiments/results/trajectories.md`), the ergodic winding is the best of the
    four at about 0.13 bit per weight and at 1 bit. The defaults are for the former: 14 bits for 112 weights, relative
    squared error 0.868 (`dims=128 grid=65535`: 0.865 in several times the time). For 1 bit take `dims=12 grid=4095`
    (0.327) or, ten times slower, `dims=16 grid=65535` (0.314). The published codec is
    `dims=2 grid=1600 classes=3 winding=power side=0.1`.
    """

    enabled: bool = True
    trajectory_type: Trajectory = Trajectory.ergodic
    degree: int = 5
    """polynomial: its degree. fourier: number of frequencies. Short tensors use as many as they can hold."""
    axis: Axis = Axis.block
    """polynomial, fourier: along the weights of a block, or over the layers. Matrices without a partner in another
    layer (the embedding) are coded in blocks either way."""
    block_size: int = 0
    """polynomial, fourier: consecutive weights per trajectory; 0 takes the whole flattened tensor, as printed.
    manifold: consecutive weights per block, at least 1."""
    coefficient_bits: int = 8
    """polynomial, fourier, manifold: width of one coefficient, sign included."""
    inputs: int = 2
    """manifold: K, coefficients that go into the network; an amplitude stands beside them."""
    width: int = 32
    """manifold: units of a hidden layer."""
    depth: int = 2
    """manifold: hidden layers."""
    frequency: int = 128
    """manifold: the range of an input in sixteenths of a turn to either side; higher folds the manifold more often."""
    network_seed: int = 0
    """manifold: the network is this number."""
    dims: int = 112
    """ergodic: K, consecutive weights per code."""
    grid: int = 16383
    """ergodic: U, points of the winding beside the centroid; 2**n - 1 fills n bits."""
    classes: int = 0
    """ergodic: M, radial classes outside the cube (0: none)."""
    winding: Winding = Winding.primes
    """ergodic: direction of the line."""
    side: float = 0.0
    """ergodic: l, side of the cube in units of the weights; 0 chooses it from the data, with a scale per tensor."""
    budget_bytes: int | None = None
    """Most bytes of this stage's artifact; each tensor then gets settings of its own, chosen by measured distortion."""
    target_ratio: float | None = None
    """The same limit as a ratio: FP32 bytes of the model / bytes of the artifact, at least. Give one of the two."""

    def __post_init__(self) -> None:
        def bounds(name: str, low: int, high: int, fix: str) -> None:
            value = getattr(self, name)
            require(
                low <= value <= high, f"hyper.{name} is {value}, needs {low} to {high}", where=f"hyper.{name}", fix=fix
            )

        check_limit(self, "hyper.")
        bounds("degree", 0, 1024, "the printed value is hyper.degree=5")
        bounds("block_size", 0, 1 << 24, "0 takes the whole tensor, 64 is a short block")
        bounds("coefficient_bits", 2, 16, "the printed value is hyper.coefficient_bits=8")
        bounds("dims", 1, 1024, "the published value is hyper.dims=2, the default 112")
        bounds("grid", 2, 65535, "the published value is hyper.grid=1600, the default 16383")
        bounds("classes", 0, 15, "the published value is at most 3, the default 0")
        require(
            self.side == 0.0 or 1e-4 <= self.side <= 1e4,
            f"hyper.side is {self.side}, needs 0 or 0.0001 to 10000",
            where="hyper.side",
            fix="the published value is hyper.side=0.1; 0 chooses it from the data",
        )
        bounds("inputs", 1, 32, "the default is 2")
        bounds("width", 1, 64, "the default is 32")
        bounds("depth", 1, 3, "the default is 2")
        bounds("frequency", 1, 65536, "the default is 128, eight turns to either side")
        bounds("network_seed", 0, (1 << 31) - 1, "the default is 0")
        require(
            self.axis is Axis.block or self.trajectory_type in (Trajectory.polynomial, Trajectory.fourier),
            f"hyper.axis is depth, but only a polynomial or fourier series runs over the layers, and "
            f"hyper.trajectory_type is {self.trajectory_type.value}",
            where="hyper.axis",
            fix="set hyper.axis=block, or hyper.trajectory_type=polynomial",
        )
        if self.trajectory_type is Trajectory.manifold:
            self._check_manifold()
        # Over the layers the degree is that of the stacks; the few matrices in blocks use as much of it as they hold.
        elif self.block_size and self.trajectory_type is not Trajectory.ergodic and self.axis is Axis.block:
            polynomial = self.trajectory_type is Trajectory.polynomial
            highest = (
                min(self.block_size - 1, 4 * math.isqrt(self.block_size)) if polynomial else (self.block_size - 1) // 2
            )
            require(
                self.degree <= highest,
                f"hyper.degree is {self.degree}, but a {self.trajectory_type.value} over hyper.block_size="
                f"{self.block_size} weights holds at most {highest}",
                where="hyper.degree",
                fix=f"set hyper.degree={highest} or less, or a larger hyper.block_size",
            )

    def _check_manifold(self) -> None:
        require(
            1 <= self.block_size <= 4096,
            f"hyper.block_size is {self.block_size}, a manifold's block needs 1 to 4096 weights",
            where="hyper.block_size",
            fix="set hyper.block_size=128",
        )
        work = (self.inputs + (self.depth - 1) * self.width) * self.width
        require(
            work <= 256 * self.block_size,
            f"the network takes {work} products for a block of {self.block_size} weights, needs at most 256 for each",
            where="hyper.width",
            fix="lower hyper.width or hyper.depth, or raise hyper.block_size",
        )


class GrokfastVariant(Enum):
    """Which gradient filter; see `phase8.train.grokfast`."""

    ema = "ema"
    as_printed = "as_printed"
    ma = "ma"
    off = "off"


@dataclass(frozen=True, kw_only=True, slots=True)
class GrokfastConfig:
    """Grokfast (arXiv 2405.20233) and the number of reconstruction iterations that it filters."""

    enabled: bool = True
    """false is the same as variant=off; the iterations still run."""
    alpha: float = 0.98
    """Momentum of the running mean of the gradients."""
    lambda_: float = 2.0
    """How much of the slow part is added. Called `grokfast.lambda` in YAML and on the command line."""
    iterations: int = 100
    """Optimiser steps of a stage's reconstruction; 0 leaves the closed form as it is."""
    variant: GrokfastVariant = GrokfastVariant.ema
    window: int = 100
    """variant=ma: gradients in the moving average."""

    def __post_init__(self) -> None:
        fix = "the paper's settings are alpha=0.98 lambda=2.0"
        require(
            0.0 <= self.alpha < 1.0,
            f"grokfast.alpha is {self.alpha}, needs 0 <= alpha < 1",
            where="grokfast",
            fix=fix,
        )
        require(
            0.0 <= self.lambda_ <= 100.0,
            f"grokfast.lambda is {self.lambda_}, needs 0 to 100",
            where="grokfast",
            fix=fix,
        )
        require(
            0 <= self.iterations <= 1_000_000,
            f"grokfast.iterations is {self.iterations}, needs 0 to 1,000,000",
            where="grokfast",
            fix="grokfast.iterations=100",
        )
        require(
            1 <= self.window <= 10_000,
            f"grokfast.window is {self.window}, needs 1 to 10,000",
            where="grokfast",
            fix="the paper's window is 100",
        )


class Precision(Enum):
    """Number format of the matrix products in training; parameters and the optimiser stay in float32."""

    auto = "auto"
    """bfloat16 where the processor multiplies it natively, float32 elsewhere (there bfloat16 is many times slower)."""
    bfloat16 = "bfloat16"
    float32 = "float32"


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """Reconstruction: how a stage's continuous parameters are trained against the original model."""

    lr: float = 1.0
    """Multiplies Adam's steps, which each codec sets in proportion to its parameters' size."""
    warmup: float = 0.05
    """Fraction of the iterations in which the step grows from 0; then it follows a cosine down to 0."""
    batch_sequences: int = 8
    sequence_tokens: int = 128
    calibration_sequences: int = 256
    """Sequences of training text; each iteration draws `batch_sequences` of them."""
    held_out_sequences: int = 32
    """Sequences that no step sees: they decide whether the trained parameters are kept."""
    weight_phase: float = 0.0
    """Fraction of the iterations that fit the original weights before the rest fit the original logits."""
    hidden_weight: float = 0.0
    """Weight of the relative squared error of every layer's output beside the divergence of the logits."""
    temperature: float = 1.0
    """Softens both distributions in the loss."""
    precision: Precision = Precision.auto

    def __post_init__(self) -> None:
        def bounds(name: str, low: float, high: float, default: float) -> None:
            value = getattr(self, name)
            require(
                low <= value <= high,
                f"optimizer.{name} is {value}, needs {low:g} to {high:g}",
                where="optimizer",
                fix=f"the default is optimizer.{name}={default:g}",
            )

        bounds("lr", 1e-6, 1000.0, 1.0)
        bounds("warmup", 0.0, 1.0, 0.05)
        bounds("batch_sequences", 1, 65_536, 8)
        bounds("sequence_tokens", 2, 131_072, 128)
        bounds("calibration_sequences", 1, 1_000_000, 256)
        bounds("held_out_sequences", 1, 100_000, 32)
        bounds("weight_phase", 0.0, 1.0, 0.0)
        bounds("hidden_weight", 0.0, 1e6, 0.0)
        bounds("temperature", 0.01, 100.0, 1.0)
        require(
            self.batch_sequences <= self.calibration_sequences,
            f"optimizer.batch_sequences ({self.batch_sequences}) is larger than optimizer.calibration_sequences "
            f"({self.calibration_sequences})",
            where="optimizer",
            fix="raise optimizer.calibration_sequences",
        )


class WandbMode(Enum):
    offline = "offline"
    online = "online"
    disabled = "disabled"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The model to compress."""

    path: str = "embedded:reference"
    """`embedded:reference`, a directory (Hugging Face or Phase 7 hand-over), or a hub id."""
    experts: str | None = None
    """An expert file elsewhere than beside the model."""

    def __post_init__(self) -> None:
        require(bool(self.path), "model.path is empty", where="model", fix="name a directory or embedded:reference")


class EdgePool(Enum):
    """Where the questions of edge of chaos come from; see `phase8.benchmarks.edge`."""

    auto = "auto"
    shipped = "shipped"
    calibrated = "calibrated"


EXPERTS = ("analytical", "creative", "code", "reasoning", "communication", "memory", "planning", "execution")
"""The experts of the specification; a model may have others."""


class BenchmarkSuite(Enum):
    mini = "mini"
    core = "core"


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarksConfig:
    """What quality is measured with."""

    suite: BenchmarkSuite = BenchmarkSuite.mini
    """`mini`: the embedded benchmarks; `core`: the published ones, through lm-eval."""
    data_dir: str | None = None
    """A directory with the published benchmarks' data; null loads them from the network."""
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
        unused = [f"benchmarks.{name}" for name in ("data_dir", "run_generated_code") if getattr(self, name)]
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


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggerConfig:
    """Weights & Biases."""

    mode: WandbMode = WandbMode.offline
    project: str = "phase8"
    group: str | None = None
    """Runs of one sweep share a group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PathsConfig:
    """Where a run writes."""

    output_dir: str = "outputs/run"
    cache_dir: str = "outputs/cache"
    """Baselines, by model and suite; safe to delete."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressionConfig:
    """One run, whole."""

    variant: str = "default"
    """Name of the compressor variant, for the report."""
    seed: int = 0
    device: str = "cpu"
    threads: int = 0
    """CPU threads; 0 takes one per core."""
    max_retries: int = 1
    """How often a stage whose gate failed is tried again with a recommendation."""
    max_accuracy_loss: float = 0.16
    """Largest relative loss of the average core score against the baseline, at every stage."""
    min_compression_ratio: float = 40.0
    """Least ratio that counts as success."""
    target_compression_ratio: float = 280.0
    budget_bytes: int | None = None
    """Most bytes of the artifact of every stage that has no limit of its own; see docs/design.md, Byte budgets."""
    target_ratio: float | None = None
    """The same limit as a ratio: FP32 bytes of the model / bytes of the artifact, at least. Give one of the two."""
    calibration_text: str | None = None
    """A UTF-8 text file for Hessians and reconstruction, documents parted by blank lines; null takes the embedded
    world's training text, which suits the embedded model only."""
    protect: tuple[str, ...] = ()
    """Patterns of tensor names (as in file globs) that stay in 16 bits."""
    benchmark_samples: int | None = None
    """Items per benchmark; null takes all."""
    skip_expert_benchmarks: bool = False
    model: ModelConfig = field(default_factory=ModelConfig)
    seedlm: SeedLMConfig = field(default_factory=SeedLMConfig)
    vptq: VPTQConfig = field(default_factory=VPTQConfig)
    hyper: HyperConfig = field(default_factory=HyperConfig)
    grokfast: GrokfastConfig = field(default_factory=lambda: GrokfastConfig())
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig())
    benchmarks: BenchmarksConfig = field(default_factory=lambda: BenchmarksConfig())
    gates: GateConfig = field(default_factory=lambda: GateConfig())
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)

    def __post_init__(self) -> None:
        require(
            0 <= self.max_retries <= 5,
            f"max_retries is {self.max_retries}, needs 0 to 5",
            where="max_retries",
            fix="the default is 1",
        )
        require(
            0 <= self.max_accuracy_loss < 1,
            f"max_accuracy_loss is {self.max_accuracy_loss}, needs 0 to below 1 (0.16 keeps 84 %)",
            where="max_accuracy_loss",
            fix="the default is 0.16",
        )
        require(
            0 < self.min_compression_ratio <= self.target_compression_ratio,
            f"min_compression_ratio is {self.min_compression_ratio}, needs above 0 and at most "
            f"target_compression_ratio ({self.target_compression_ratio})",
            where="min_compression_ratio",
            fix="the defaults are 40 and 280",
        )
        require(
            self.benchmark_samples is None or self.benchmark_samples >= 4,
            f"benchmark_samples is {self.benchmark_samples}, needs at least 4 (an item for each eudaimonia rule), or "
            "null for all items",
            where="benchmark_samples",
            fix="leave it out to use every item",
        )
        check_limit(self, "")
        require(self.threads >= 0, f"threads is {self.threads}", where="threads", fix="0 takes one per core")
        require(
            self.seedlm.enabled or self.vptq.enabled or self.hyper.enabled,
            "every stage is switched off",
            where="seedlm.enabled, vptq.enabled, hyper.enabled",
            fix="switch on at least one",
        )
        limit = self.limit_of("hyper")
        require(
            limit is None or not self.hyper.enabled or self.hyper.trajectory_type is Trajectory.ergodic,
            f"{limit and limit[0]} is set, but bytes are allocated for the ergodic trajectory only, and "
            f"hyper.trajectory_type is {self.hyper.trajectory_type.value}",
            where="hyper.trajectory_type",
            fix="take hyper.trajectory_type=ergodic, or limit the other stages one by one",
        )

    def limit_of(self, stage: str) -> tuple[str, float] | None:
        """The setting that limits a stage's bytes, and its value: the stage's own, else the run's, else None."""
        for settings, prefix in ((getattr(self, stage), f"{stage}."), (self, "")):
            for name in ("budget_bytes", "target_ratio"):
                if getattr(settings, name) is not None:
                    return f"{prefix}{name}", getattr(settings, name)
        return None

    def budget_of(self, stage: str, original_bytes: int) -> int | None:
        """Most bytes of a stage's artifact, or None where nothing limits them."""
        limit = self.limit_of(stage)
        if limit is None:
            return None
        name, value = limit
        return int(value) if name.endswith("budget_bytes") else int(original_bytes / value)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CompressionConfig:
        """Builds and checks a run's settings from plain nested mappings, as Hydra composes them.

        Raises:
            ConfigError: names every unknown setting and wrong type at once.
        """
        problems: list[str] = []
        built = _build(cls, data, "", problems)
        if problems:
            raise ConfigError(
                "\n  ".join(["the configuration has errors:", *problems]),
                where="command line or conf/",
                fix="`python run.py --cfg job` shows every setting with its value",
            )
        return built

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, in the form that `from_dict` reads."""
        return _plain(self)


_ALIASES = {"lambda": "lambda_"}
"""Settings whose name is a keyword of Python."""


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        names = {alias: name for name, alias in _ALIASES.items()}
        return {names.get(f.name, f.name): _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _build(kind: type, data: Any, prefix: str, problems: list[str]) -> Any:
    """Builds dataclass `kind` from a mapping; every problem is noted, none raised."""
    if not isinstance(data, Mapping):
        problems.append(f"{prefix.rstrip('.') or 'the configuration'}: needs settings, not {data!r}")
        return None
    hints = get_type_hints(kind)
    values = {}
    for key, value in data.items():
        name = _ALIASES.get(str(key), str(key))
        if name not in hints:
            near = get_close_matches(str(key), [_plain_name(n) for n in hints], n=1)
            known = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(map(_plain_name, hints))}"
            problems.append(f"{prefix}{key}: there is no such setting; {known}")
            continue
        values[name] = _convert(hints[name], value, f"{prefix}{key}", problems)
    if any(problem.startswith(prefix) for problem in problems) and prefix:
        return None
    if problems and not prefix:
        return None
    try:
        return kind(**values)
    except ConfigError as error:
        problems.append(f"{prefix}{error.what}" if not error.what.startswith(prefix) else error.what)
        problems.append(f"  mend: {error.fix}")
        return None


def _plain_name(name: str) -> str:
    return next((alias for alias, target in _ALIASES.items() if target == name), name)


def _convert(hint: Any, value: Any, path: str, problems: list[str]) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, path, problems)
    if is_dataclass(hint):
        return _build(hint, value, f"{path}.", problems)
    if isinstance(hint, type) and issubclass(hint, Enum):
        choices = [member.value for member in hint]
        # YAML reads the bare word `off` as false.
        spelt = "off" if value is False and "off" in choices else value
        if spelt in choices:
            return hint(spelt)
        problems.append(f"{path}: {value!r} is not one of {', '.join(map(str, choices))}")
        return None
    if origin is tuple:
        if isinstance(value, Sequence) and not isinstance(value, str):
            return tuple(_convert(arguments[0], item, path, problems) for item in value)
        problems.append(f"{path}: needs a list, not {value!r}")
        return None
    if origin is dict:
        if isinstance(value, Mapping):
            return {str(k): _convert(arguments[1], v, f"{path}.{k}", problems) for k, v in value.items()}
        problems.append(f"{path}: needs a mapping, not {value!r}")
        return None
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
        problems.append(f"{path}: needs a finite number, not {value!r}")
        return None
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    problems.append(f"{path}: needs {hint.__name__}, not {type(value).__name__} {value!r}")
    return None


class GateReference(Enum):
    """What a stage's threshold is relative to. The cumulative threshold and the abort limits are always relative to
    the baseline."""

    stage_input = "stage_input"
    baseline = "baseline"


class GatePolicy(Enum):
    """How a figure is compared with its threshold; see `phase8.judge.policy`."""

    point = "point"
    """The measured figure itself must reach the threshold."""
    confident = "confident"
    """The figure must reach the threshold with 95 % confidence."""
    not_worse = "not_worse"
    """The figure must not lie significantly beyond the threshold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageThresholds:
    """Least retention, or least score, that each stage must keep; each between 0 and 1."""

    seedlm: float
    vptq: float
    hyper: float


@dataclass(frozen=True, kw_only=True, slots=True)
class GateConfig:
    """Thresholds of the gates after each stage, of the abort limits and of the final success criteria.

    All thresholds on benchmarks are on raw retention, score / reference score. The limits on the cumulative loss and on
    the ratio are settings of the run: `max_accuracy_loss`, `min_compression_ratio`.
    """

    reference: GateReference = GateReference.stage_input
    policy: GatePolicy = GatePolicy.point
    core: StageThresholds = StageThresholds(seedlm=0.98, vptq=0.95, hyper=0.90)
    """Mean retention of the core benchmarks, relative to `reference`."""
    expert: StageThresholds = StageThresholds(seedlm=0.98, vptq=0.93, hyper=0.88)
    """Mean retention of the experts, relative to `reference`."""
    rule: StageThresholds = StageThresholds(seedlm=0.65, vptq=0.65, hyper=0.60)
    """Score of each eudaimonia rule."""
    final_expert: float = 0.80
    final_rule: float = 0.60
    edge_low: float = 0.70
    edge_high: float = 0.80
    min_informative: int = 4
    """Core benchmarks whose baseline must be above chance by two standard errors for a verdict to be possible."""
    abort_benchmark: float = 0.80
    """Abort where one core benchmark keeps less than this of the baseline; no benchmark may at the end."""
    abort_knowledge_loss: float = 0.20
    """Abort where MMLU and GSM8K together lose more than this."""
    abort_rule: float = 0.50
    """Abort where a eudaimonia rule scores less than this."""
    abort_first_expert_loss: float = 0.25
    """Abort where the first expert's benchmarks lose more than this."""
    max_latency_ms: float = 100.0
    """Per token, on the target device."""

    def __post_init__(self) -> None:
        figures = {
            name: getattr(self, name)
            for name in (
                "final_expert",
                "final_rule",
                "edge_low",
                "edge_high",
                "abort_benchmark",
                "abort_knowledge_loss",
                "abort_rule",
                "abort_first_expert_loss",
            )
        }
        for group in ("core", "expert", "rule"):
            thresholds = getattr(self, group)
            figures |= {f"{group}.{stage}": getattr(thresholds, stage) for stage in ("seedlm", "vptq", "hyper")}
        for name, value in figures.items():
            require(
                0.0 <= value <= 1.0,
                f"gates.{name} is {value}, needs 0 to 1",
                where="gates",
                fix="give a fraction: 0.95, not 95",
            )
        require(
            self.edge_low < self.edge_high,
            f"gates.edge_low ({self.edge_low}) is not below gates.edge_high ({self.edge_high})",
            where="gates",
            fix="the specified band is edge_low=0.70 edge_high=0.80",
        )
        require(
            1 <= self.min_informative <= 7,
            f"gates.min_informative is {self.min_informative}, needs 1 to 7",
            where="gates",
            fix="there are seven core benchmarks; the default is 4",
        )
        require(
            self.max_latency_ms > 0.0,
            f"gates.max_latency_ms is {self.max_latency_ms}, needs to be above 0",
            where="gates",
            fix="the specified limit is 100",
        )
