"""Calibration text and what it says of each matrix, made once per set of texts and shared by the stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from phase8.codecs import Importance
from phase8.config import CompressionConfig, OptimizerConfig
from phase8.model.importance import collect_importance
from phase8.model.source import SourceModel
from phase8.model.text import token_sequences
from phase8.model.window import window
from phase8.run.shared import Shared

CALIBRATION_SEED = 1009
"""Added to the run's seed: calibration text is drawn apart from everything else."""


@dataclass
class Calibration:
    """Text of one model, by the settings that choose it."""

    source: SourceModel
    shared: Shared
    on_note: Callable[[str], None] | None = None
    """Told once what was read, and what was shortened."""
    _tokens: dict[OptimizerConfig, Tensor] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)
    _importances: dict[OptimizerConfig, dict[str, Importance]] = field(default_factory=dict)

    def tokens(self, config: CompressionConfig) -> tuple[Tensor, Tensor]:
        """Training and held-out sequences, int64 [N, T] and [M, T]; held-out text is the same whatever N."""
        optimizer = config.optimizer
        held_out = optimizer.held_out_sequences
        if optimizer not in self._tokens:
            self._tokens[optimizer] = token_sequences(
                self.source.tokenizer,
                sequences=held_out + optimizer.calibration_sequences,
                length=self.length(optimizer),
                seed=CALIBRATION_SEED + config.seed,
                path=config.calibration_text,
                on_read=lambda documents, tokens: self._note(
                    f"calibration text: {config.calibration_text}, {documents:,} documents, {tokens:,} tokens"
                ),
            )
        tokens = self._tokens[optimizer]
        return tokens[held_out:], tokens[:held_out]

    def length(self, optimizer: OptimizerConfig) -> int:
        """Tokens of a sequence: as set, or the model's window where that is shorter."""
        limit = window(self.source.network)
        if limit is None or optimizer.sequence_tokens <= limit:
            return optimizer.sequence_tokens
        self._note(
            f"sequences of text have {limit} tokens instead of optimizer.sequence_tokens="
            f"{optimizer.sequence_tokens}: the model reads no more at a time"
        )
        return limit

    def _note(self, text: str) -> None:
        if self.on_note is not None and text not in self._told:
            self._told.add(text)
            self.on_note(text)

    def importance(self, config: CompressionConfig) -> dict[str, Importance]:
        """Hessian and row weights of every matrix, by name."""
        if config.optimizer not in self._importances:
            training, _ = self.tokens(config)
            batches = training.split(config.optimizer.batch_sequences)
            # The last set alone is kept: a retry's replaces the first attempt's.
            found = self.shared.importance(
                training,
                config.optimizer.batch_sequences,
                lambda: collect_importance(self.source.network, batches, tuple(self.source.matrices())),
            )
            self._importances = {config.optimizer: found}
        return self._importances[config.optimizer]
