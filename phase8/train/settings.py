"""Settings of the training: reconstruction and the Grokfast filter."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from phase8.checks import require
from phase8.world.mix import Mix


class GrokfastVariant(Enum):
    """Which gradient filter; see `phase8.train.grokfast`."""

    ema = "ema"
    as_printed = "as_printed"
    ma = "ma"
    off = "off"


@dataclass(frozen=True, kw_only=True, slots=True)
class GrokfastConfig:
    """Grokfast (arXiv 2405.20233) and the number of reconstruction iterations that it filters."""

    enabled: bool = False
    """Whether the filter is used; the iterations run either way. With the paper's values it did harm in every training
    measured (experiments/results/grokfast.md), so it is off but in the variant as_printed."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """Training within a byte budget: how long, how fast, on how much text; see `phase8.train.within_budget`."""

    steps: int = 5500
    """Optimiser steps; the learning rate's fall and the size's ramp are shares of them."""
    retry_share: float = 0.5
    """Of the steps, which a retry takes: it goes on where the last attempt ended."""
    batch_sequences: int = 16
    sequences: int = 24576
    """Sequences of training text at most, each `optimizer.sequence_tokens` long; the original answers each once. What
    it writes itself ends at `phase8.train.text.ENOUGH`."""
    mix: Mix = Mix.judged
    """Of skills in the embedded model's text; other text is as it is."""
    kept_answers: int = 32
    """Likeliest next tokens that are kept of the original's answer at each place."""
    lr: float = 0.01
    """Adam's highest step, as a share of a matrix's root mean square."""
    ramp: float = 0.3
    """Share of the steps over which the size falls to the budget."""
    fall: float = 0.75
    """Share of the steps, the last ones, over which the learning rate falls to zero."""
    focus: float = 0.6
    """After a first reading, sequences are drawn in proportion to their last divergence to this power; 0: all alike."""
    certainty: float = 0.0
    """A token counts exp(-certainty H), with H the entropy of the original's answer, in nats: what the original is sure
    of counts for more. 0: all alike, the best for bits per byte."""
    checkpoint_every: int = 100
    """Steps between two checkpoints from which a killed run goes on."""
    from_artifact: str | None = None
    """An artifact's directory. The stage that wrote it begins with what it holds, at half of `lr`; None: with the
    original. Model and kept shape must be the same; a smaller budget is reached over `ramp` of the steps."""
    grokfast: bool = False
    """Filters the gradients with the values of `grokfast`, whatever `grokfast.enabled` says of the reconstruction."""

    def __post_init__(self) -> None:
        def bounds(name: str, low: float, high: float, default: float) -> None:
            value = getattr(self, name)
            require(
                low <= value <= high,
                f"training.{name} is {value}, needs {low:g} to {high:g}",
                where="training",
                fix=f"the default is training.{name}={default:g}",
            )

        bounds("steps", 1, 100_000_000, 5500)
        bounds("retry_share", 0.01, 10.0, 0.5)
        bounds("batch_sequences", 1, 65_536, 16)
        bounds("sequences", 1, 100_000_000, 24576)
        bounds("kept_answers", 1, 1_000_000, 32)
        bounds("lr", 1e-7, 1.0, 0.01)
        bounds("ramp", 0.0, 1.0, 0.3)
        bounds("fall", 0.0, 1.0, 0.75)
        bounds("focus", 0.0, 4.0, 0.6)
        bounds("certainty", 0.0, 16.0, 0.0)
        bounds("checkpoint_every", 1, 100_000_000, 100)


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
