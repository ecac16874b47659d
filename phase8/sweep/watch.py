"""What a run tells its trial: figures after each attempt, and whether it is worth going on.

A listener of the run's event log. After every gate it reports the attempt's figures, and the study's pruner may end the
trial there. A trial whose gate failed before the last stage is pruned as well: the stages after it did not run, so its
figures are not of what the study searches; those up to there stand beside the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phase8.codecs.stages import NAMES
from phase8.config import CompressionConfig
from phase8.errors import RunStopped
from phase8.events import CompressionProgress, Event, QualityGate, StageComplete
from phase8.sweep.trial import TrialPruned, current


class TrialWatch:
    """Listener of one run; does nothing outside a study."""

    def __init__(self, config: CompressionConfig) -> None:
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
            case CompressionProgress() if event.stage in self.stages:
                self._ratio = event.data.ratio
            case QualityGate() if event.stage in self.stages:
                self._report(event.data)
            case StageComplete(final=True, passed=False) if event.stage in self.stages[:-1]:
                after = ", ".join(self.stages[self.stages.index(event.stage) + 1 :])
                self.pruned = f"the gate after {event.stage} failed; {after} did not run"

    def _report(self, gate: QualityGate) -> None:
        trial = current()
        if trial is None:
            return
        found = {check.name: check.value for check in gate.checks}
        figures = {"ratio": self._ratio, "retention": found.get("core_retention_cumulative")}
        try:
            trial.report({n: v for n, v in figures.items() if v is not None})
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
