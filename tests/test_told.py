"""What a sampler is told of a study's trials, and that it finds more so."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from phase8.sweep.study import Study, is_feasible
from phase8.sweep.told import told
from phase8.sweep.trial import CurrentTrial, TrialPruned
from tests.test_studies import settings, space

SIZE = {"objectives": {"ratio": "maximize"}, "constraints": {"kept": ">= 0.9"}, "prune_dominated": True}
PREVIEW = {"preview": {"items": 5}, "preview_constraints": {"kept": ">= 0.8"}}


@pytest.fixture
def study(tmp_path):
    return Study(settings(f"sqlite:///{tmp_path}/study.db", **SIZE, **PREVIEW, n_trials=40), space("n=range(0,9)"))


def begin(study: Study) -> CurrentTrial:
    return CurrentTrial(study.settings, study.ask().trial_id)


def end(trial: CurrentTrial, check: Callable[[], None]) -> None:
    with pytest.raises(TrialPruned) as why:
        check()
    trial.prune(str(why.value))


def seen(study: Study) -> list[tuple]:
    found = told(study.trials, study.settings, study.space.distributions)
    return [(t.state.name, t.value, t.constraints) for t in found]


def test_a_sampler_is_told_all_that_is_known(study):
    begin(study).fail("no memory")
    assert seen(study) == []  # nothing is known that it could be as bad as
    begin(study).complete({"ratio": 5.0, "kept": 0.95})
    end(trial := begin(study), lambda: trial.check_preview({"ratio": 9.0, "kept": 0.5}))
    end(trial := begin(study), lambda: trial.check_dominated({"ratio": 4.5}))
    end(trial := begin(study), lambda: trial.check_dominated({"ratio": 3.0}, slack=1.25))
    begin(study).prune("the gate after seedlm failed")
    begin(study)
    killed = begin(study).number
    study.lose(study.trials[killed], "killed")
    states, values, missed = zip(*seen(study), strict=True)
    assert states == ("COMPLETE",) * 6 + ("RUNNING",)
    assert values == (3.0, 5.0, 9.0, 4.5, 3.0, 3.0, None)
    assert [m.get("kept") for m in missed] == pytest.approx([0.4, -0.05, 0.4, 0.0, 0.0, 0.4, None])
    record = [trial.state.name for trial in study.trials]
    assert record == ["FAIL", "COMPLETE", "PRUNED", "PRUNED", "PRUNED", "PRUNED", "RUNNING", "FAIL"]
    assert [is_feasible(trial) for trial in study.trials] == [False, True] + [False] * 6


def test_the_worst_is_the_largest_where_the_objective_is_to_be_small(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    study = Study(settings(url, objectives={"bytes": "minimize"}), space("n=range(0,9)"))
    begin(study).complete({"bytes": 10.0})
    begin(study).complete({"bytes": 30.0})
    begin(study).fail("no memory")
    assert [value for _, value, _ in seen(study)] == [10.0, 30.0, 30.0]


# That it finds more ------------------------------------------------------------------------------------------------


def made_up(values: dict) -> tuple[float, float]:
    """Ratio and what is kept, of a model that is a formula."""
    bits = values["books"] * values["k"] / values["v"]
    kept = 1 - 0.3 * 2 ** (-1.1 * bits) - 0.004 * values["damping"] - 0.01 * (values["books"] - 1)
    return 32.5 / (bits + 0.1 * (values["share"] == "kind")), kept


def search(tmp_path, sampler: str, seed: int) -> Study:
    """Some end for their size, some at their preview."""
    words = ("v=range(2,9)", "k=range(6,12)", "books=range(1,3)", "share=choice(kind,model)", "damping=range(0,6)")
    found = settings(f"journal:{tmp_path}/log", **SIZE, **PREVIEW, n_trials=25, sampler=sampler, seed=seed)
    study = Study(found, space(*words))
    while (asked := study.ask()) is not None:
        trial = CurrentTrial(study.settings, asked.trial_id)
        ratio, kept = made_up(study.trials[asked.number].params)
        try:
            trial.check_dominated({"ratio": ratio}, slack=1.25)
            trial.check_dominated({"ratio": ratio})
            trial.check_preview({"ratio": ratio, "kept": kept})
            trial.complete({"ratio": ratio, "kept": kept})
        except TrialPruned as why:
            trial.prune(str(why))
    return study


def test_a_gaussian_process_that_is_told_finds_the_best_of_a_thousand(tmp_path):
    study = search(tmp_path, "gp", seed=0)
    d = study.space.distributions
    choices = [d[n].choices if hasattr(d[n], "choices") else range(d[n].low, d[n].high + 1) for n in d]
    everything = [made_up(dict(zip(d, values, strict=True))) for values in itertools.product(*choices)]
    assert len(everything) == 1008
    assert study.best()[0].values[0] == pytest.approx(max(ratio for ratio, kept in everything if kept >= 0.9))
    ended_early = sum(trial.state.name == "PRUNED" for trial in study.trials)
    assert ended_early > 8, "the study was not of the kind that is meant"


@pytest.mark.parametrize("sampler", ["gp", "tpe"])
def test_what_was_tried_is_not_suggested_again(tmp_path, sampler):
    found = settings(f"journal:{tmp_path}/log", n_trials=20, sampler=sampler)
    study = Study(found, space("n=range(0,5)", "kind=choice(a,b)", "k=choice(1,2)"))
    tried = []
    while (asked := study.ask()) is not None:
        values = study.trials[asked.number].params
        tried.append(tuple(values.values()))
        CurrentTrial(study.settings, asked.trial_id).complete({"value": float(values["n"] == 3)})
    assert len(set(tried)) == 20, "every one of the twenty settings once"
