"""Calibration text and what it says of each matrix, made once per set of texts and shared by the stages."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from phase8.codecs import Importance
from phase8.config import CompressionConfig, OptimizerConfig
from phase8.model.importance import collect_importance
from phase8.model.source import SourceModel
from phase8.model.text import token_sequences

CALIBRATION_SEED = 1009
"""Added to the run's seed: calibration text is drawn apart from everything else."""


@dataclass
class Calibration:
    """Text of one model, by the settings that choose it."""

    source: SourceModel
    _tokens: dict[OptimizerConfig, Tensor] = field(default_factory=dict)
    _importances: dict[OptimizerConfig, dict[str, Importance]] = field(default_factory=dict)

    def tokens(self, config: CompressionConfig) -> tuple[Tensor, Tensor]:
        """Training and held-out sequences, int64 [N, T] and [M, T]; held-out text is the same whatever N."""
        optimizer = config.optimizer
        held_out = optimizer.held_out_sequences
        if optimizer not in self._tokens:
            self._tokens[optimizer] = token_sequences(
                self.source.tokenizer,
                sequences=held_out + optimizer.calibration_sequences,
                length=optimizer.sequence_tokens,
                seed=CALIBRATION_SEED + config.seed,
                path=config.calibration_text,
            )
        tokens = self._tokens[optimizer]
        return tokens[held_out:], tokens[:held_out]

    def importance(self, config: CompressionConfig) -> dict[str, Importance]:
        """Hessian and row weights of every matrix, by name."""
        if config.optimizer not in self._importances:
            training, _ = self.tokens(config)
            batches = training.split(config.optimizer.batch_sequences)
            # The last set alone is kept: a retry's replaces the first attempt's.
            self._importances = {
                config.optimizer: collect_importance(self.source.network, batches, tuple(self.source.matrices()))
            }
        return self._importances[config.optimizer]
