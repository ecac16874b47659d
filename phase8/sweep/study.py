"""A study: which trials there are, which is next, and when it is enough.

    asked ── RUNNING ──┬── COMPLETE   its figures stand
                       ├── PRUNED     ended early; its figures up to there stand
                       ├── FAIL       with the reason: counts as a trial
                       └── its process was killed: FAIL, marked `lost`, and its values wait to be taken up again

A study is finished when `n_trials` trials have ended in one of the first three ways, however often it was started and
by however many processes. Nothing is kept but in the storage. Each step can be cut off by a kill: what the next process
finds is either done or done again. A trial taken up again names the one it replaces, so that two processes that notice
the same loss leave one replacement standing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from phase8.errors import ConfigError, StudyError
from phase8.sweep.life import DRIVER, JOB, alive, sign
from phase8.sweep.samplers import make_pruner, make_sampler, seed_of
from phase8.sweep.space import Parameter, Space
from phase8.sweep.storage import absolute, open_storage, shown

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

FIGURES, REASON, LOST, SURPLUS = "figures", "reason", "lost", "surplus"
REPLACES, RESTARTS, START, OVERRIDES, DIRECTORY = "replaces", "restarts", "start", "overrides", "directory"
PROCESSOR_S, PREVIEWED, UNASKED = "processor_s", "previewed", "unasked"
DEFINITION = "definition"


@dataclass(frozen=True, kw_only=True, slots=True)
class StudySettings:
    """What `hydra.sweeper` says of a study."""

    study: str
    storage: str
    objectives: Mapping[str, str]
    """Figure -> `maximize` or `minimize`."""
    constraints: Mapping[str, str] = field(default_factory=dict)
    """Figure -> `>= NUMBER` or `<= NUMBER`."""
    n_trials: int = 20
    workers: int = 1
    """Jobs that the launcher runs side by side."""
    batch: int | None = None
    """Trials that are asked for at a time, which the workers take one after the other; None: one for each worker."""
    sampler: str = "tpe"
    sampler_options: Mapping[str, Any] = field(default_factory=dict)
    pruner: str = "none"
    pruner_options: Mapping[str, Any] = field(default_factory=dict)
    start: Sequence[Mapping[str, Any]] = ()
    """Values to try first."""
    preview: Mapping[str, Any] = field(default_factory=dict)
    """Settings that make a run cheap, such as `{benchmark_samples: 40}`: every trial is run with them first."""
    preview_constraints: Mapping[str, str] = field(default_factory=dict)
    """What a preview has to hold for the whole run to follow; in the form of `constraints`, with some slack."""
    prune_dominated: bool = False
    """Whether a trial ends unasked where its objective is known before its quality (`ratio`, `bytes`) and another trial
    within the constraints has a better one. For one objective."""
    seed: int = 0
    heartbeat_s: float = 30.0
    grace_s: float = 120.0
    max_restarts: int = 3
    check: str | None = None

    def __post_init__(self) -> None:
        def require(condition: bool, name: str, what: str, fix: str) -> None:
            if not condition:
                value = getattr(self, name)
                raise ConfigError(f"hydra.sweeper.{name} is {value!r}, {what}", where="hydra.sweeper", fix=fix)

        require(bool(self.study), "study", "needs a name", "hydra.sweeper.study=NAME")
        require(bool(self.objectives), "objectives", "needs at least one", "objectives: {ratio: maximize}")
        for name, direction in self.objectives.items():
            ok = direction in ("maximize", "minimize")
            require(ok, "objectives", f"{name} has the direction {direction!r}", "maximize or minimize")
        for held in ("constraints", "preview_constraints"):
            for name, text in getattr(self, held).items():
                require(bound(text) is not None, held, f"{name} {text!r} cannot be read", "'>= 0.84' or '<= 3'")
        ends = bool(self.preview_constraints) or self.pruner != "none"
        require(ends or not self.preview, "preview", "but nothing ends a trial after it", "give preview_constraints")
        fix = "hydra.sweeper.preview={benchmark_samples: 40}"
        require(bool(self.preview) or not self.preview_constraints, "preview", "and constraints hang on it", fix)
        single = len(self.objectives) == 1
        fix = "of several objectives a trial may be best at another one: leave it out"
        require(single or not self.prune_dominated, "prune_dominated", "and needs a single objective", fix)
        require(self.n_trials >= 1, "n_trials", "needs at least 1", "hydra.sweeper.n_trials=60")
        require(self.workers >= 1, "workers", "needs at least 1", "hydra.sweeper.workers=2")
        at_least = self.batch is None or self.batch >= self.workers
        require(at_least, "batch", "needs to be at least `workers`", "hydra.sweeper.batch=8 hydra.sweeper.workers=2")
        require(0 < self.heartbeat_s < self.grace_s, "heartbeat_s", "needs to be below grace_s", "heartbeat_s=30")
        require(self.max_restarts >= 0, "max_restarts", "needs 0 or more", "the default is 3")

    @property
    def directions(self) -> list[str]:
        """In the order of the objectives."""
        return list(self.objectives.values())

    def gain(self, value: float) -> float:
        """A value of the first objective as a number that is to be large."""
        return value if self.directions[0] == "maximize" else -value


def bound(text: str) -> tuple[str, float] | None:
    """`(">=", 0.84)` from `">= 0.84"`; None where it is no bound."""
    sign_, number = str(text).strip()[:2], str(text).strip()[2:]
    try:
        return (sign_, float(number)) if sign_ in (">=", "<=") else None
    except ValueError:
        return None


def violations(constraints: Mapping[str, str], figures: Mapping[str, float]) -> dict[str, float]:
    """By how much each constraint is missed; 0 or less where it holds. A figure that is missing misses by 1."""
    found = {}
    for name, text in constraints.items():
        side, limit = bound(text)  # type: ignore[misc]
        value = figures.get(name)
        found[name] = 1.0 if value is None else (limit - value if side == ">=" else value - limit)
    return found


@dataclass(frozen=True, slots=True)
class Asked:
    """A trial to run."""

    trial_id: int
    number: int
    values: dict[str, Any]
    overrides: list[str]


class Study:
    """A study opened by one process.

    Raises:
        ConfigError: a setting makes no sense.
        StudyError: the storage cannot be used, or holds a study of this name that asks something else.
    """

    def __init__(self, settings: StudySettings, space: Space) -> None:
        import optuna

        self.settings, self.space = settings, space
        self._sampler(0)
        pruner = make_pruner(settings.pruner, settings.pruner_options, objectives=len(settings.objectives))
        self.storage = open_storage(settings.storage)
        try:
            self.study: optuna.Study = optuna.create_study(
                study_name=settings.study,
                storage=self.storage,
                directions=settings.directions,
                pruner=pruner,
                load_if_exists=True,
            )
        except optuna.exceptions.StorageInternalError as error:
            raise StudyError(f"cannot open the study: {error}", where=shown(settings.storage)) from error
        self._check_definition()
        self._add_start()

    def _sampler(self, place: int) -> Any:
        from phase8.sweep.told import LEARNING, ToldSampler

        s = self.settings
        sampler = make_sampler(
            s.sampler,
            s.sampler_options,
            seed=seed_of(s.seed, place),
            objectives=len(s.objectives),
            constrained=bool(s.constraints),
        )
        told = s.sampler in LEARNING and len(s.objectives) == 1
        return ToldSampler(sampler, s, self.space.distributions) if told else sampler

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        return self.study.get_trials(deepcopy=False)

    @property
    def finished(self) -> list[FrozenTrial]:
        """Trials that count and have ended."""
        return [trial for trial in self.trials if counts(trial) and trial.state.is_finished()]

    # Beginning --------------------------------------------------------------------------------------------------

    def _check_definition(self) -> None:
        """One name, one question: values found for another objective or by other fixed settings do not mix."""
        from optuna.distributions import check_distribution_compatibility

        now = {
            "objectives": dict(self.settings.objectives),
            "fixed": sorted(self.space.fixed),
            "labels": {p.name: list(p.labels) for p in self.space.parameters if p.labels is not None},
        }
        before = self.study.user_attrs.get(DEFINITION)
        if before is None:
            self.study.set_user_attr(DEFINITION, now)
            self.study.set_metric_names(list(self.settings.objectives))
            return
        fix = "give the study another name (hydra.sweeper.study=NAME), or the settings that it had"
        where = f"study {self.settings.study} in {shown(absolute(self.settings.storage))}"
        for name in ("objectives", "fixed"):
            if before.get(name) != now[name]:
                what = f"this study was begun with other {name}: {before.get(name)}, now {now[name]}"
                raise StudyError(what, where=where, fix=fix)
        known = {name: d for trial in self.trials for name, d in trial.distributions.items()}
        for parameter in self.space.parameters:
            labels = before["labels"].get(parameter.name)
            changed = labels is not None and labels != now["labels"].get(parameter.name)
            if not changed and parameter.name in known:
                try:
                    check_distribution_compatibility(known[parameter.name], parameter.distribution)
                except ValueError:
                    changed = True
            if changed:
                raise StudyError(f"{parameter.name} was searched among other values before", where=where, fix=fix)

    def _add_start(self) -> None:
        """The values to try first wait as trials; each is added once, however often the study is opened."""
        present = {trial.user_attrs.get(START) for trial in self.trials}
        for index, values in enumerate(self.settings.start):
            if index in present:
                continue
            searched = {}
            for parameter in self.space.parameters:
                if parameter.name in values:
                    searched[parameter.name] = self._internal(parameter, values[parameter.name])
            unknown = sorted(set(values) - {p.name for p in self.space.parameters})
            if unknown:
                raise ConfigError(
                    f"a start value for {unknown[0]}, which is not searched",
                    where=f"hydra.sweeper.start[{index}]",
                    fix=f"searched are {', '.join(self.space.distributions)}",
                )
            self.study.enqueue_trial(searched, user_attrs={START: index})

    def _internal(self, parameter: Parameter, value: Any) -> Any:
        """A value as the sampler sees it."""
        if parameter.labels is not None:
            inside = str(value) in parameter.labels
            found = parameter.labels.index(str(value)) if inside and parameter.ordered else str(value)
        else:
            low, high = parameter.ends
            inside, found = isinstance(value, int | float) and low <= value <= high, value
        if not inside:
            raise ConfigError(
                f"the start value {value} of {parameter.name} lies outside its range",
                where="hydra.sweeper.start",
                fix="widen the range or drop the value",
            )
        return found

    # Asking -----------------------------------------------------------------------------------------------------

    def ask(self) -> Asked | None:
        """The next trial, or None where enough are finished or under way."""
        self.take_up_lost()
        trials = self.trials
        if sum(counts(trial) and _begun(trial) for trial in trials) >= self.settings.n_trials:
            return None
        self.study.sampler = self._sampler(sum(map(_sampled, trials)))
        trial = self.study.ask()
        trial_id = trial._trial_id
        self.storage.set_trial_user_attr(trial_id, DRIVER, sign())
        if self._is_surplus(trial.number):
            self.storage.set_trial_user_attr(trial_id, SURPLUS, True)
            self.study.tell(trial.number, state=_state("FAIL"))
            return None
        for parameter in self.space.parameters:
            _suggest(trial, parameter)
        overrides = self.space.overrides(trial.params)
        self.storage.set_trial_user_attr(trial_id, OVERRIDES, overrides)
        return Asked(trial_id, trial.number, dict(trial.params), overrides)

    def _is_surplus(self, number: int) -> bool:
        """Whether others asked at the same moment and were first, or another replacement of the same trial stands."""
        trials = self.trials
        before = [t for t in trials if t.number < number and counts(t) and _begun(t)]
        replaced = trials[number].user_attrs.get(REPLACES)
        twin = replaced is not None and any(t.user_attrs.get(REPLACES) == replaced for t in trials[:number])
        return twin or len(before) >= self.settings.n_trials

    def take_up_lost(self) -> int:
        """Marks trials whose processes were killed, and lets their values wait for whoever asks next.

        Returns:
            How many trials were newly lost.
        """
        lost = 0
        for trial in self.trials:
            if trial.state.name == "RUNNING" and not self._alive(trial):
                lost += self.lose(trial, "its process was killed")
        trials = self.trials
        replaced = {trial.user_attrs.get(REPLACES) for trial in trials}
        for trial in trials:
            if LOST not in trial.user_attrs or not trial.state.is_finished() or trial.number in replaced:
                continue
            values = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
            if values or START in trial.user_attrs:
                attributes = {REPLACES: trial.number, RESTARTS: trial.user_attrs.get(RESTARTS, 0) + 1}
                if START in trial.user_attrs:
                    attributes[START] = trial.user_attrs[START]
                self.study.enqueue_trial(values, user_attrs=attributes)
        return lost

    def lose(self, trial: FrozenTrial, why: str) -> bool:
        """Ends a trial that nobody works on any more; after `max_restarts` it counts as failed.

        Returns:
            Whether this process was the one that ended it.
        """
        from optuna.exceptions import UpdateFinishedTrialError

        restarts = trial.user_attrs.get(RESTARTS, 0)
        key, text = (LOST, why) if restarts < self.settings.max_restarts else (REASON, f"{why}, {restarts + 1} times")
        try:
            self.storage.set_trial_user_attr(trial._trial_id, key, text)
            return self.storage.set_trial_state_values(trial._trial_id, _state("FAIL"))
        except UpdateFinishedTrialError:
            return False

    def _alive(self, trial: FrozenTrial) -> bool:
        records = [trial.user_attrs[role] for role in (DRIVER, JOB) if role in trial.user_attrs]
        grace_s = self.settings.grace_s
        if records:
            return any(alive(record, grace_s=grace_s) for record in records)
        begun = trial.datetime_start
        return begun is not None and time.time() - begun.timestamp() <= grace_s

    # After a batch ----------------------------------------------------------------------------------------------

    def fail(self, asked: Asked, reason: str) -> None:
        """Records a trial that could not be run at all."""
        from optuna.exceptions import UpdateFinishedTrialError

        try:
            self.storage.set_trial_user_attr(asked.trial_id, REASON, reason)
            self.study.tell(asked.number, state=_state("FAIL"))
        except (UpdateFinishedTrialError, ValueError):
            pass  # its job was quicker

    def lose_unfinished(self, batch: Sequence[Asked], why: str) -> None:
        """Ends the trials of a batch whose launcher gave up on them."""
        for asked in batch:
            trial = self.storage.get_trial(asked.trial_id)
            if not trial.state.is_finished():
                self.lose(trial, why)

    def best(self) -> list[FrozenTrial]:
        """The best feasible trials: one for one objective, the Pareto front for several; empty where none is."""
        feasible = [trial for trial in self.trials if is_feasible(trial)]
        if not feasible:
            return []
        if len(self.settings.objectives) > 1:
            return list(self.study.best_trials)
        return [max(feasible, key=lambda trial: (self.settings.gain(trial.values[0]), -trial.number))]


def _suggest(trial: optuna.Trial, parameter: Parameter) -> None:
    d: Any = parameter.distribution
    match type(d).__name__:
        case "CategoricalDistribution":
            trial.suggest_categorical(parameter.name, d.choices)
        case "IntDistribution":
            trial.suggest_int(parameter.name, d.low, d.high, step=d.step, log=d.log)
        case _:
            trial.suggest_float(parameter.name, d.low, d.high, step=d.step, log=d.log)


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial is one of the `n_trials`: not one that was lost or was one too many."""
    return LOST not in trial.user_attrs and SURPLUS not in trial.user_attrs


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a trial completed within the constraints, as measured."""
    return trial.state.name == "COMPLETE" and all(value <= 0 for value in trial.constraints.values())


def _sampled(trial: FrozenTrial) -> bool:
    """Whether a trial took its place in the sequence of suggestions: not as a replacement, nor before it had values."""
    if REPLACES in trial.user_attrs or SURPLUS in trial.user_attrs:
        return False
    return LOST not in trial.user_attrs or bool(trial.params or trial.system_attrs.get("fixed_params"))


def _begun(trial: FrozenTrial) -> bool:
    return trial.state.name != "WAITING"


def _state(name: str) -> Any:
    from optuna.trial import TrialState

    return TrialState[name]
