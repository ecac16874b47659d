"""Inside a job of a study: what the run knows of its trial, and how the trial ends.

`run_job` wraps the task function. It runs wherever a launcher puts the job (this process, joblib, SLURM, Ray), opens
the study's storage there, shows signs of life while the task runs, and records the end itself: a job that outlives the
process that asked for it still counts. The task finds its trial with `current()`:

    if (trial := current()) is not None:
        trial.report({"retention": 0.71})     # raises TrialPruned where it is not worth going on

A study with a `preview` runs the task twice: first with settings that make it cheap (few items), and as a whole where
the preview's figures hold what the study asks of them. What the two have in common the second takes from the cache.
"""

from __future__ import annotations

import math
import os
import resource
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from phase8.sweep.life import JOB, Heartbeat
from phase8.sweep.objective import job
from phase8.sweep.samplers import make_pruner
from phase8.sweep.storage import open_storage
from phase8.sweep.study import (
    DIRECTORY,
    FIGURES,
    LOST,
    PREVIEWED,
    PROCESSOR_S,
    REASON,
    UNASKED,
    StudySettings,
    is_feasible,
    violations,
)
from phase8.sweep.waiting import take

LONGEST_REASON = 2000

_current: CurrentTrial | None = None


class TrialPruned(Exception):
    """The trial is not worth going on; its message is the reason."""


class CurrentTrial:
    """The trial that this job runs."""

    def __init__(self, settings: StudySettings, trial_id: int) -> None:
        import optuna

        self.settings = settings
        self.storage = _storage(os.getpid(), settings.storage)
        self.study = optuna.load_study(
            study_name=settings.study,
            storage=self.storage,
            sampler=optuna.samplers.RandomSampler(),  # nothing is sampled here
            pruner=make_pruner(settings.pruner, settings.pruner_options, objectives=len(settings.objectives)),
        )
        self.trial = optuna.trial.Trial(self.study, trial_id)
        self.trial_id, self.number = trial_id, self.trial.number
        self._reports = 0

    @property
    def ended(self) -> bool:
        """Whether somebody has ended this trial already, because its process seemed dead."""
        return self.storage.get_trial(self.trial_id).state.is_finished()

    def note(self, name: str, value: Any) -> None:
        """Keeps a JSON value with the trial."""
        self.storage.set_trial_user_attr(self.trial_id, name, value)

    def report(self, figures: Mapping[str, float]) -> None:
        """Tells figures on the way, those of a preview among them; the last ones told stand for a pruned trial.

        The pruner compares the first figure told with the first ones of other trials, the second with the second.

        Raises:
            TrialPruned: the study's pruner finds the trial behind the others.
        """
        self.note(FIGURES, {name: value for name, value in figures.items() if math.isfinite(value)})
        first = next(iter(self.settings.objectives))
        self._reports += 1
        if len(self.settings.objectives) == 1 and first in figures:
            self.trial.report(float(figures[first]), self._reports)
            if self.trial.should_prune():
                raise TrialPruned(f"{first} is {figures[first]:.4g} at step {self._reports}, behind the other trials")

    def check_preview(self, figures: Mapping[str, float]) -> None:
        """Decides after a preview whether the whole run follows.

        Raises:
            TrialPruned: it misses what the study asks of a preview.
        """
        self.note(FIGURES, {name: value for name, value in figures.items() if math.isfinite(value)})
        asked = self.settings.preview_constraints
        missed = [name for name, by in violations(asked, figures).items() if by > 0]
        if missed:
            self.note(PREVIEWED, True)
            told = ", ".join(f"{name} {figures.get(name, math.nan):.4g}, asked {asked[name]}" for name in missed)
            raise TrialPruned(f"its preview ends it: {told}")

    def check_dominated(self, figures: Mapping[str, float], *, slack: float = 1.0) -> None:
        """Ends a trial whose objective is known to be no better than that of the best trial so far.

        Whatever its quality turns out to be, it is not the study's answer. What is known of the objective is kept for
        the sampler (`phase8.sweep.told`).

        Args:
            figures: what is known before the quality is measured.
            slack: above 1 they are estimates, and the objective may turn out better by this factor.

        Raises:
            TrialPruned: it cannot become the best.
        """
        name = next(iter(self.settings.objectives))
        if not self.settings.prune_dominated or name not in figures:
            return
        gain, value = self.settings.gain, figures[name]
        hoped = value * slack if self.settings.directions[0] == "maximize" else value / slack
        feasible = [trial for trial in self.study.get_trials(deepcopy=False) if is_feasible(trial)]
        best = max(feasible, key=lambda trial: gain(trial.values[0]), default=None)
        if best is not None and gain(hoped) <= gain(best.values[0]):
            self.note(UNASKED, value)
            if slack == 1.0:
                self.note(FIGURES, dict(figures))
            known = f"is {value:.4g}" if slack == 1.0 else f"comes to about {value:.4g}, at best {hoped:.4g}"
            raise TrialPruned(f"{name} {known}; trial {best.number} has {best.values[0]:.4g}")

    def complete(self, figures: Mapping[str, float]) -> str:
        """Records the end; returns its state. A figure that is missing makes it a failure."""
        objectives = list(self.settings.objectives)
        values = [figures.get(name) for name in objectives]
        missing = [n for n, v in zip(objectives, values, strict=True) if v is None or not math.isfinite(v)]
        if missing:
            return self.fail(f"the task returned no finite figure {missing[0]!r}; it returned {', '.join(figures)}")
        self._figures(figures)
        self.study.tell(self.number, [float(value) for value in values if value is not None])
        return "COMPLETE"

    def prune(self, reason: str) -> str:
        """Records that the trial was not worth finishing."""
        from optuna.trial import TrialState

        self.note(REASON, reason)
        self._figures(self.storage.get_trial(self.trial_id).user_attrs.get(FIGURES, {}))
        self.study.tell(self.number, state=TrialState.PRUNED)
        return "PRUNED"

    def fail(self, reason: str) -> str:
        """Records a failure."""
        from optuna.trial import TrialState

        self.note(REASON, reason[:LONGEST_REASON])
        self.study.tell(self.number, state=TrialState.FAIL)
        return "FAIL"

    def lose(self, why: str) -> None:
        """Records that the work was cut short from outside: the values will be tried again."""
        from optuna.trial import TrialState

        self.note(LOST, why)
        self.study.tell(self.number, state=TrialState.FAIL)

    def _figures(self, figures: Mapping[str, float]) -> None:
        self.note(FIGURES, {name: value for name, value in figures.items() if math.isfinite(value)})
        for name, value in violations(self.settings.constraints, figures).items():
            self.trial.set_constraint(name, value)


@cache
def _storage(process: int, url: str) -> Any:
    """Opened once in a process that runs many jobs; opening checks the tables anew."""
    return open_storage(url)


def current() -> CurrentTrial | None:
    """The trial that this process is working on, or None outside a study."""
    return _current


class TrialJob:
    """A task function that ends its trial, whatever happens, and then takes those that wait (`phase8.sweep.waiting`).

    Travels to the workers; holds no open storage.

    Args:
        task: what a trial runs.
        context, config: Hydra's, from which a waiting trial's configuration is composed.
    """

    def __init__(self, task: Callable[[Any], Any], context: Any, config: Any) -> None:
        self.task, self.context, self.config = task, context, config

    def __call__(self, config: Any) -> list[dict[str, Any]]:
        """Runs the task; returns number, state and reason of every trial that it ran. Raises only what ends the whole
        process."""
        from hydra.core.hydra_config import HydraConfig

        waiting = HydraConfig.get().sweeper.waiting
        results = [self.one(config)]
        while waiting is not None and (overrides := take(Path(waiting))) is not None:
            results.append(self._another(overrides))
        return results

    def _another(self, overrides: Sequence[str]) -> dict[str, Any]:
        """As a launcher begins a job, but in this process."""
        from hydra.core.utils import run_job

        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        return run_job(
            hydra_context=self.context,
            task_function=self.one,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        ).return_value

    def one(self, config: Any) -> dict[str, Any]:
        """Runs the task of one trial."""
        global _current
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        trial = CurrentTrial(settings_of(hydra.sweeper), int(hydra.sweeper.trial))
        if trial.ended:
            return {"number": trial.number, "state": "SKIPPED", "reason": "ended before this job began"}
        trial.note(DIRECTORY, str(hydra.runtime.output_dir))
        with Heartbeat(trial.storage, [trial.trial_id], JOB, trial.settings.heartbeat_s):
            reason, _current, before_s = "", trial, processor_s()
            try:
                if trial.settings.preview:
                    with job(preview=True):
                        returned = self.task(changed(config, trial.settings.preview))
                    trial.check_preview(figures_of(returned, list(trial.settings.objectives)))
                with job():
                    returned = self.task(config)
                figures = figures_of(returned, list(trial.settings.objectives))
                trial.note(PROCESSOR_S, processor_s() - before_s)
                state = trial.complete(figures)
            except TrialPruned as end:
                reason = str(end)
                trial.note(PROCESSOR_S, processor_s() - before_s)
                state = trial.prune(reason)
            except KeyboardInterrupt:
                trial.lose("interrupted")
                raise
            except (Exception, SystemExit) as error:
                reason = reason_of(error)
                state = trial.fail(reason)
            finally:
                _current = None
        return {"number": trial.number, "state": state, "reason": reason}


def processor_s() -> float:
    """Processor time of this process, all its threads and its children that have ended, in seconds."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def changed(config: Any, settings: Mapping[str, Any]) -> Any:
    """A copy of a composed configuration with other values, by their dotted names.

    Raises:
        ConfigError: there is no such setting, or the value does not fit.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from phase8.errors import ConfigError

    copy = OmegaConf.create(config)
    for name, value in settings.items():
        try:
            OmegaConf.update(copy, name, value)
        except OmegaConfBaseException as error:
            raise ConfigError(
                f"there is no such setting, or its value does not fit: {str(error).splitlines()[0]}",
                where=f"hydra.sweeper.preview, {name}",
                fix="`--cfg job` lists all settings",
            ) from error
    return copy


def settings_of(sweeper: Any) -> StudySettings:
    """The settings of a study from Hydra's configuration of the sweeper."""
    from dataclasses import fields

    from omegaconf import OmegaConf

    names = {f.name for f in fields(StudySettings)}
    content = OmegaConf.to_container(sweeper, resolve=True, throw_on_missing=False)
    return StudySettings(**{name: value for name, value in content.items() if name in names})  # type: ignore[union-attr]


def figures_of(returned: Any, objectives: Sequence[str]) -> dict[str, float]:
    """Named figures from what a task returned: a mapping, or numbers in the order of the objectives.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(returned, Mapping):
        return {str(k): float(v) for k, v in returned.items() if isinstance(v, int | float)}
    values = list(returned) if isinstance(returned, list | tuple) else [returned]
    if len(values) != len(objectives) or not all(isinstance(value, int | float) for value in values):
        raise TypeError(f"the task returned {returned!r}; needs figures for {', '.join(objectives)}")
    return dict(zip(objectives, map(float, values), strict=True))


def reason_of(error: BaseException) -> str:
    """An error for the record: its message, and for a surprise the place where it arose."""
    from phase8.errors import Phase8Error

    if isinstance(error, Phase8Error):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"
