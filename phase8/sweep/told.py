"""What a sampler is told of a study with one objective: all that is known of every trial.

    measured            its value, and what it misses of each constraint
    ended by a preview  the preview's figures, as if they were the whole run's
    ended for its size  the size, known or estimated; every constraint counts as held
    ended without       the worst value known, and the largest miss: what fails is not to be suggested again and again
    in hand             its settings, so that two workers do not try the same

Optuna's own record calls the second to the fourth kind pruned or failed, from which a Gaussian process learns nothing
and a Parzen estimator little. On the reference model more than half of a study's trials are of those kinds.

What was tried is not suggested again: a run repeats to the bit. A model that sees nothing better than its best point is
asked again with a part of what is known, drawn by chance.
"""

from __future__ import annotations

import random

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from phase8.sweep.study import FIGURES, PREVIEWED, UNASKED, StudySettings, counts, violations

LEARNING = ("tpe", "gp")
"""Samplers that suggest from what they are told alone: the others keep a state of their own in the study's storage."""
PART, TRIES, DRAWS = 0.8, 8, 100
"""Share of the known that is told when asked again; how often the model is, and then chance."""


class ToldSampler(BaseSampler):
    """Suggests what another sampler does who is told all that is known.

    Args:
        sampler: makes the suggestions.
        settings: of the study, which has one objective.
        distributions: what is searched.
    """

    def __init__(
        self, sampler: BaseSampler, settings: StudySettings, distributions: dict[str, BaseDistribution]
    ) -> None:
        self._sampler, self._settings, self._distributions = sampler, settings, distributions

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All that is searched."""
        return self._distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, object]:
        """Values for everything, that were not tried."""
        others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        known = told(others, self._settings, search_space)
        tried = [other.params for other in known]
        draw, part = random.Random(f"{self._settings.seed} {len(known)}"), known
        for _ in range(TRIES):
            params = _suggested(self._sampler, study, part, search_space)
            if params not in tried:
                return params
            part = draw.sample(known, int(PART * len(known)))
        chance = optuna.samplers.RandomSampler(seed=draw.randrange(1 << 32))
        for _ in range(DRAWS):  # a small space may have been tried whole
            params = _suggested(chance, study, [], search_space)
            if params not in tried:
                break
        return params

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> object:
        """One value that the above did not give."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)


def _suggested(
    sampler: BaseSampler, study: optuna.Study, known: list[FrozenTrial], search_space: dict[str, BaseDistribution]
) -> dict[str, object]:
    """What a sampler suggests to a study that holds these trials."""
    memory = optuna.create_study(directions=study.directions, sampler=sampler)
    memory.add_trials(known)
    return memory.ask(search_space).params


def told(
    trials: list[FrozenTrial], settings: StudySettings, distributions: dict[str, BaseDistribution]
) -> list[FrozenTrial]:
    """Trials as the sampler is to see them; those that were lost or have no values yet are left out."""
    tried = [trial for trial in trials if counts(trial) and distributions.keys() <= trial.params.keys()]
    known = {trial.number: found for trial in tried if (found := _known(trial, settings)) is not None}
    worst = min((value for value, _ in known.values()), key=settings.gain, default=None)
    largest = {name: max([0.0, *(missed[name] for _, missed in known.values())]) for name in settings.constraints}
    seen = []
    for trial in tried:
        params = {name: trial.params[name] for name in distributions}
        if not trial.state.is_finished():
            seen.append(create_trial(state=TrialState.RUNNING, params=params, distributions=distributions))
        elif worst is not None:
            value, missed = known.get(trial.number, (worst, largest))
            seen.append(create_trial(value=value, params=params, distributions=distributions, constraints=missed))
    return seen


def _known(trial: FrozenTrial, settings: StudySettings) -> tuple[float, dict[str, float]] | None:
    """A trial's value, and by how much each constraint is missed."""
    if trial.state == TrialState.COMPLETE:
        return trial.values[0], dict(trial.constraints)
    if UNASKED in trial.user_attrs:
        return trial.user_attrs[UNASKED], dict.fromkeys(settings.constraints, 0.0)
    figures, objective = trial.user_attrs.get(FIGURES, {}), next(iter(settings.objectives))
    if PREVIEWED in trial.user_attrs and objective in figures:
        return figures[objective], violations(settings.constraints, figures)
    return None
