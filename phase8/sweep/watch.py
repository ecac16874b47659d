"""What a run tells its trial: figures after each attempt, and whether it is worth going on.

A listener of the run's event log. A study with `prune_dominated` may end the trial for its size: by an estimate where
the last stage begins, by the file where it is written. After every gate the attempt's figures are reported, and the
study's pruner may end the trial there. A trial whose gate failed before the last stage is pruned as well: the stages
after it did not run, so its figures are not of what the study searches; those up to there stand beside the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from phase8.codecs.stages import NAMES
from phase8.config import CompressionConfig
from phase8.errors import RunStopped
from phase8.events import CompressionProgress, Event, QualityGate, StageComplete, StageStart
from phase8.sweep.trial import CurrentTrial, TrialPruned, current

CODERS_GAIN = 1.25
"""How much better than its indices' packed bits a file may be. Measured on the reference model: 0.94 to 1.03 below four
bits a weight (codebooks count too), 1.4 at eleven."""


class TrialWatch:
    """Listener of one run; does nothing outside a study."""

    def __init__(self, config: CompressionConfig) -> None:
        self._config = config
        self.stages = [name for name in NAMES if config.stage(name).enabled]
        self.pruned = ""
        """Why the trial ends early, if it does."""
        self._ratio: float | None = None

    def __call__(self, event: Event) -> None:
        """Takes one event.

        Raises:
            RunStopped: the trial is not worth going on.
        """
        match event.data:
            case StageStart(attempt=1) if event.stage == self.stages[-1]:
                self._estimate(event.stage)
            case CompressionProgress() if event.stage in self.stages:
                self._ratio = event.data.ratio
                if event.stage == self.stages[-1]:
                    self._compare(event.data)
            case QualityGate() if event.stage in self.stages:
                self._report(event.data)
            case StageComplete(final=True, passed=False) if event.stage in self.stages[:-1]:
                after = ", ".join(self.stages[self.stages.index(event.stage) + 1 :])
                self.pruned = f"the gate after {event.stage} failed; {after} did not run"

    def _report(self, gate: QualityGate) -> None:
        found = {check.name: check.value for check in gate.checks}
        figures = {"ratio": self._ratio, "retention": found.get("core_retention_cumulative")}
        self._or_stop(lambda trial: trial.report({n: v for n, v in figures.items() if v is not None}))

    def _estimate(self, stage: str) -> None:
        """What the settings alone say of the last stage's size, before anything is encoded."""
        settings = self._config.stage(stage)
        if settings.trained or self._config.limit_of(stage) is not None:
            return  # the size is what a budget makes it
        bits = settings.bits_per_weight()
        figures = {"ratio": 32 / bits, "bits_per_weight": bits}
        self._or_stop(lambda trial: trial.check_dominated(figures, slack=CODERS_GAIN))

    def _compare(self, size: CompressionProgress) -> None:
        """The last stage's size is known before anything is asked."""
        figures = {"ratio": size.ratio, "bytes": size.compressed_bytes, "bits_per_weight": size.bits_per_weight}
        self._or_stop(lambda trial: trial.check_dominated(figures))

    def _or_stop(self, tell: Callable[[CurrentTrial], None]) -> None:
        """Tells the trial something; where it is not worth going on, the run ends."""
        trial = current()
        if trial is None:
            return
        try:
            tell(trial)
        except TrialPruned as end:
            self.pruned = str(end)
            raise RunStopped(self.pruned, by="study") from end

    def end(self, result: Mapping[str, Any]) -> None:
        """Called when the run has written its result.

        Raises:
            TrialPruned: the trial ended early.
            KeyboardInterrupt: somebody else ended the run.
        """
        if current() is not None and self.pruned:
            raise TrialPruned(self.pruned)
        if result.get("interrupted") is True:
            raise KeyboardInterrupt(str(result.get("stopped") or "the run was ended"))
