"""Studies on a cheap task: resuming, killed workers, failures, several workers, bad input."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from phase8.errors import ConfigError, StudyError
from phase8.sweep.life import alive, sign
from phase8.sweep.report import drawings, plotted_study, table_csv
from phase8.sweep.samplers import SAMPLERS, make_sampler
from phase8.sweep.space import parse_space
from phase8.sweep.storage import open_storage, shown
from phase8.sweep.study import LOST, REPLACES, Study, StudySettings, counts, is_feasible
from phase8.sweep.waiting import leave, take
from tests.program import ROOT, run_here

APP = ROOT / "tests" / "sweep_app" / "app.py"
TRIALS = 8


def arguments(directory: Path, *overrides: str) -> list[str]:
    return [
        "-m", "hydra/sweeper=study", f"hydra.sweep.dir={directory}",
        "+hydra.sweeper.objectives={value: maximize}", f"hydra.sweeper.n_trials={TRIALS}", "hydra.sweeper.study=toy",
        "x=interval(-3,3)", "n=range(1,6)", *overrides,
    ]  # fmt: skip


def run(directory: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return run_here(APP, *arguments(directory, *overrides), cwd=directory.parent)


def load(directory: Path, url: str | None = None) -> optuna.Study:
    return optuna.load_study(study_name="toy", storage=open_storage(url or f"sqlite:///{directory}/study.db"))


def space(*words: str, params: dict | None = None):
    return parse_space(params or {}, words, OverridesParser.create())


def settings(url: str, **changes) -> StudySettings:
    return StudySettings(
        **{"study": "toy", "storage": url, "objectives": {"value": "maximize"}, "n_trials": TRIALS, **changes}
    )


# The space --------------------------------------------------------------------------------------------------------


def test_every_form_of_a_sweep_becomes_its_distribution():
    found = space(
        "a=choice(1,2)", "b=tag(ordered, choice(64,128,256))", "c=range(1,5)", "d=range(0.1,0.9,step=0.2)",
        "e=tag(log, interval(0.1,10))", "f=tag(log, int(interval(64,1000)))", "g=3", "h=x,y", "i=range(2,9,3)",
    )  # fmt: skip
    expected = {
        "a": optuna.distributions.CategoricalDistribution(("1", "2")),
        "b": optuna.distributions.IntDistribution(0, 2),
        "c": optuna.distributions.IntDistribution(1, 4),
        "d": optuna.distributions.FloatDistribution(0.1, 0.7, step=0.2),
        "e": optuna.distributions.FloatDistribution(0.1, 10.0, log=True),
        "f": optuna.distributions.IntDistribution(64, 1000, log=True),
        "h": optuna.distributions.CategoricalDistribution(("x", "y")),
        "i": optuna.distributions.IntDistribution(2, 8, step=3),
    }
    assert found.distributions == expected
    assert found.overrides({"b": 1, "e": 0.30000000000000004, "h": "y"}) == [
        "g=3", "b=128", "e=0.30000000000000004", "h=y",
    ]  # fmt: skip


def test_the_command_line_replaces_a_parameter_of_the_file():
    assert space("a=7", params={"a": "choice(1,2)"}).overrides({}) == ["a=7"]
    assert list(space("a=range(1,4)", params={"a": 7}).distributions) == ["a"]


@pytest.mark.parametrize(
    "word", ["a=interval(3,1)", "a=range(5,1)", "a=range(1,2,0)", "a=tag(odd, range(1,3))", "a=choice(1,",
             "a=tag(log, interval(0,1))", "a=tag(log, choice(1,2))", "a=interval(1,1)"],
)  # fmt: skip
def test_a_range_that_cannot_be_searched_is_refused(word):
    with pytest.raises(ConfigError):
        space(word)


# Samplers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_sampler_finishes_a_study(name, tmp_path):
    url = f"journal:{tmp_path}/study.log"
    study = Study(settings(url, sampler=name, n_trials=15), space("x=interval(-3,3)", "n=range(1,6)"))
    while (asked := study.ask()) is not None:
        study.study.tell(asked.number, -((asked.values["x"] - 1) ** 2) - (asked.values["n"] - 3) ** 2)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 15
    assert study.best()[0].value > -4


def test_an_interrupted_study_suggests_what_it_would_have_suggested(tmp_path):
    def values(directory: str, reopen: bool) -> list[dict]:
        found, asked, study = [], object(), None
        while asked is not None:
            if study is None or reopen:
                where = f"sqlite:///{tmp_path}/{directory}/study.db"
                study = Study(settings(where, seed=5, n_trials=14), space("x=interval(-3,3)", "n=range(1,6)"))
            if (asked := study.ask()) is not None:
                found.append(asked.values)
                study.study.tell(asked.number, -((asked.values["x"] - 1) ** 2) - asked.values["n"])
        return found

    assert values("a", reopen=False) == values("b", reopen=True)


def test_what_a_sampler_cannot_do_is_refused():
    with pytest.raises(ConfigError, match="several objectives"):
        make_sampler("cmaes", {}, seed=0, objectives=2)
    with pytest.raises(ConfigError, match="is not known"):
        make_sampler("annealing", {}, seed=0)
    with pytest.raises(ConfigError, match="no option 'sigma'"):
        make_sampler("tpe", {"sigma": 1}, seed=0)


# One process ------------------------------------------------------------------------------------------------------


def test_a_study_resumes_to_its_total_and_records_failures(tmp_path):
    directory = tmp_path / "study"
    first = run(directory, "hydra.sweeper.n_trials=4", "fail_above=1.0")
    assert first.returncode == 0, first.stderr
    second = run(directory, "fail_above=1.0")
    assert "4 of 8 trials are there already" in second.stdout
    trials = load(directory).trials
    assert len(trials) == TRIALS
    for trial in trials:
        failed = trial.params["x"] > 1.0
        assert trial.state.name == ("FAIL" if failed else "COMPLETE")
        assert ("ValueError" in trial.user_attrs.get("reason", "")) == failed
        assert Path(trial.user_attrs["directory"]).is_dir()
    assert {trial.state.name for trial in trials} == {"FAIL", "COMPLETE"}  # the seed gives some of both
    third = run(directory, "fail_above=1.0")
    assert third.returncode == 0 and len(load(directory).trials) == TRIALS


def test_three_kills_lose_and_double_no_trial(tmp_path):
    directory, log = tmp_path / "study", tmp_path / "log"
    overrides = ["sleep_s=0.5", f"log={log}"]
    for kill in range(3):
        begun = len(log.read_text().splitlines()) if log.exists() else 0
        process = subprocess.Popen(
            [sys.executable, str(APP), *arguments(directory, *overrides)], cwd=tmp_path, stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        end = time.monotonic() + 120  # killed in the middle of its second trial
        while time.monotonic() < end and (not log.exists() or log.read_text().count("begin") < begun // 2 + 2):
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert load(directory).trials[-1].state.name in ("RUNNING", "COMPLETE"), kill
    last = run(directory, *overrides)
    assert last.returncode == 0, last.stderr
    trials = load(directory).trials
    counted = [trial for trial in trials if counts(trial)]
    assert [trial.state.name for trial in counted] == ["COMPLETE"] * TRIALS
    assert len({(trial.params["x"], trial.params["n"]) for trial in counted}) == TRIALS
    lost = [trial for trial in trials if LOST in trial.user_attrs]
    assert len(lost) == 3 and all(trial.state.name == "FAIL" for trial in lost)
    taken_up = {trial.user_attrs[REPLACES]: trial for trial in trials if REPLACES in trial.user_attrs}
    for trial in lost:  # each lost one once, with its own values
        assert taken_up.pop(trial.number).params == trial.params
    assert not taken_up
    ends = [line.split()[1:3] for line in log.read_text().splitlines() if line.startswith("end")]
    assert len(ends) == len({tuple(end) for end in ends}) == TRIALS


def test_a_worker_takes_one_waiting_trial_after_the_other(tmp_path):
    directory, log = tmp_path / "study", tmp_path / "log"
    ended = run(directory, "hydra.sweeper.batch=5", "fail_above=1.0", f"log={log}")
    assert ended.returncode == 0, ended.stderr
    trials = load(directory).trials
    assert [t.state.name for t in trials] == ["FAIL" if t.params["x"] > 1.0 else "COMPLETE" for t in trials]
    assert len(trials) == TRIALS and len({t.user_attrs["directory"] for t in trials}) == TRIALS
    begun = [tuple(map(float, line.split()[1:3])) for line in log.read_text().splitlines() if line.startswith("begin")]
    assert sorted(begun) == sorted((t.params["x"], t.params["n"]) for t in trials)  # each once
    assert not (directory / "waiting").exists()


def test_nobody_takes_a_waiting_trial_twice(tmp_path):
    place = leave(tmp_path / "waiting", [[f"x={number}", "name='a b'"] for number in range(200)])
    with ThreadPoolExecutor(8) as pool:
        found = [job for jobs in pool.map(lambda _: list(iter(lambda: take(place), None)), range(8)) for job in jobs]
    assert sorted(found, key=lambda job: int(job[0][2:])) == [[f"x={n}", "name='a b'"] for n in range(200)]


def test_a_batch_smaller_than_its_workers_is_refused(tmp_path):
    ended = run(tmp_path / "study", "hydra.sweeper.workers=2", "hydra.sweeper.batch=1")
    assert ended.returncode == 2 and "hydra.sweeper.batch is 1" in ended.stderr


# Several processes ------------------------------------------------------------------------------------------------


def test_processes_that_ask_together_stop_at_the_total(tmp_path):
    url = f"journal:{tmp_path}/study.log"
    words = ("x=interval(-3,3)",)
    studies = [Study(settings(url, n_trials=3), space(*words)) for _ in range(2)]
    numbers = [asked.number for index in range(8) if (asked := studies[index % 2].ask()) is not None]
    assert len(numbers) == 3
    late = Study(settings(url, n_trials=3), space(*words))
    late.study.ask()  # as if it had asked at the same moment as the third
    assert late._is_surplus(3)


def test_a_trial_lost_to_a_dead_process_is_taken_up_once(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    first = Study(settings(url), space("x=interval(-3,3)"))
    asked = first.ask()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    record = {**sign(), "pid": dead.pid, "born": 1.0}
    dead.wait()
    first.storage.set_trial_user_attr(asked.trial_id, "driver", record)
    second = Study(settings(url), space("x=interval(-3,3)"))
    again = second.ask()
    assert again.values == asked.values and again.number != asked.number
    assert second.trials[asked.number].state.name == "FAIL"
    assert not counts(second.trials[asked.number]) and counts(second.trials[again.number])
    first.study.enqueue_trial(asked.values, user_attrs={REPLACES: asked.number})  # another process saw the loss too
    assert first.ask() is None or first.trials[-1].user_attrs.get("surplus")


def test_a_trial_that_kills_its_process_every_time_fails_in_the_end(tmp_path):
    study = Study(settings(f"journal:{tmp_path}/study.log", n_trials=1, max_restarts=2), space("x=interval(-3,3)"))
    for _ in range(3):
        asked = study.ask()
        study.lose_unfinished([asked], "its process was killed")
    assert study.ask() is None
    assert [trial.state.name for trial in study.finished] == ["FAIL"]
    assert study.finished[0].user_attrs["reason"] == "its process was killed, 3 times"


def test_signs_of_life():
    here = sign()
    assert alive(here, grace_s=0.0, now=here["time"] + 1e6)  # on this machine the process itself is asked
    assert not alive({**here, "born": 1.0}, grace_s=1e9)  # its number now belongs to another process
    elsewhere = {**here, "machine": "another"}
    assert alive(elsewhere, grace_s=60, now=here["time"] + 59)
    assert not alive(elsewhere, grace_s=60, now=here["time"] + 61)


def test_start_values_come_first_and_once(tmp_path):
    url = f"journal:{tmp_path}/study.log"
    start = [{"x": 0.5, "n": 128}, {"n": 64}]
    words = ("x=interval(-3,3)", "n=tag(ordered, choice(64,128))")
    first = Study(settings(url, start=start), space(*words)).ask()
    assert first.overrides == ["x=0.5", "n=128"]
    second = Study(settings(url, start=start), space(*words)).ask()
    assert second.overrides[1] == "n=64"
    with pytest.raises(ConfigError, match="outside its range"):
        Study(settings(f"journal:{tmp_path}/b.log", start=[{"n": 65}]), space(*words))


# Bad input --------------------------------------------------------------------------------------------------------


def test_storage_that_cannot_be_used_is_an_error_before_the_first_trial(tmp_path):
    has_driver = importlib.util.find_spec("psycopg") is not None  # of the extra `cluster`
    kind, says = (StudyError, "cannot be reached") if has_driver else (ConfigError, "driver .* is not installed")
    with pytest.raises(kind, match=says) as refused:
        open_storage("postgresql://me:secret@127.0.0.1:1/x")
    assert "secret" not in str(refused.value)
    open_storage(f"sqlite:///{tmp_path}/a.db")
    holder = sqlite3.connect(tmp_path / "a.db")
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StudyError, match="locked"):
        open_storage(f"sqlite:///{tmp_path}/a.db", wait_s=0.2)
    (tmp_path / "b.db").write_text("this is no database, whatever its name says\n" * 100)
    with pytest.raises(StudyError, match="no SQLite database"):
        open_storage(f"sqlite:///{tmp_path}/b.db")
    with pytest.raises(ConfigError, match="kind 'mysql'"):
        open_storage("mysql://x")
    assert shown("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"


@pytest.mark.parametrize(
    ("word", "text"),
    [("hydra.sweeper.storage=postgresql://me@127.0.0.1:1/x", ("cannot be reached", "needs a driver")),
     ("hydra.sweeper.storage=sqlite:////proc/nowhere/study.db", ("/proc/nowhere",)),
     ("hydra.sweep.dir=/proc/nowhere", ("/proc/nowhere",))],
)  # fmt: skip
def test_a_storage_that_cannot_be_used_ends_the_program(tmp_path, word, text):
    ended = run(tmp_path / "study", word)
    assert ended.returncode == 2, ended.stdout
    assert any(part in ended.stderr for part in text) and "Traceback" not in ended.stderr
    assert not list(tmp_path.glob("study/trial-*"))


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/version").exists(), reason="needs a place nobody may write")
def test_storage_where_nothing_may_be_written():
    from phase8.errors import OutputError

    with pytest.raises(OutputError):
        open_storage("sqlite:////proc/nowhere/study.db")


def test_another_question_under_the_same_name_is_refused(tmp_path):
    url = f"journal:{tmp_path}/study.log"
    Study(settings(url), space("n=choice(1,2)", "seed=3"))
    for changes, words in (
        ({"objectives": {"other": "maximize"}}, ("n=choice(1,2)", "seed=3")),
        ({}, ("n=choice(1,2)", "seed=4")),
        ({}, ("n=choice(1,2,3)", "seed=3")),
    ):
        with pytest.raises((StudyError, ConfigError)):
            Study(settings(url, **changes), space(*words))
    Study(settings(url, n_trials=90), space("n=choice(1,2)", "seed=3"))


@pytest.mark.parametrize(
    ("word", "text"),
    [("xx=interval(0,1)", "did you mean x"), ("n=range(5,1)", "holds no value"), ("x=interval(1,1)", "is empty")],
)
def test_a_wrong_space_ends_before_the_first_trial(tmp_path, word, text):
    ended = run(tmp_path / "study", word)
    assert ended.returncode == 2, ended.stdout
    assert text in ended.stderr and "Traceback" not in ended.stderr
    assert not list(tmp_path.glob("study/trial-*"))


def test_a_figure_that_the_task_does_not_return_is_a_failure(tmp_path):
    ended = run(tmp_path / "study", "hydra.sweeper.n_trials=1", "+hydra.sweeper.objectives={speed: maximize}")
    assert ended.returncode == 1
    assert "no finite figure 'speed'" in load(tmp_path / "study").trials[0].user_attrs["reason"]


# Trials that cannot be the best -----------------------------------------------------------------------------------


def test_a_trial_that_cannot_become_the_best_ends_unasked(tmp_path):
    """The size is known when the file is written, and about known before."""
    from phase8.sweep.trial import CurrentTrial, TrialPruned

    url = f"sqlite:///{tmp_path}/study.db"
    asked_for = {"objectives": {"ratio": "maximize"}, "constraints": {"retention": ">= 0.9"}, "prune_dominated": True}
    words = ("x=interval(-3,3)",)
    study = Study(settings(url, **asked_for), space(*words))

    def trial() -> CurrentTrial:
        return CurrentTrial(study.settings, study.ask().trial_id)

    first = trial()
    first.check_dominated({"ratio": 5.0})  # nothing is there to compare with
    first.complete({"ratio": 5.0, "retention": 0.95})
    infeasible = trial()
    infeasible.check_dominated({"ratio": 9.0})
    infeasible.complete({"ratio": 9.0, "retention": 0.5})
    better = trial()
    better.check_dominated({"ratio": 6.0, "bytes": 10})  # better than what holds the constraint
    better.complete({"ratio": 6.0, "retention": 0.91})
    for ratio in (6.0, 5.5):
        smaller = trial()
        with pytest.raises(TrialPruned, match=f"ratio is {ratio:.4g}; trial 2 has 6") as end:
            smaller.check_dominated({"ratio": ratio})
        smaller.prune(str(end.value))
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 3 + ["PRUNED"] * 2
    assert study.trials[4].user_attrs["unasked"] == 5.5
    assert [is_feasible(t) for t in study.trials] == [True, False, True, False, False]
    assert study.trials[1].constraints["retention"] == pytest.approx(0.4)
    assert study.best()[0].number == 2
    estimated = trial()
    estimated.check_dominated({"ratio": 5.0}, slack=1.25)  # 6.25 at best
    with pytest.raises(TrialPruned, match="ratio comes to about 4.5, at best 5.625; trial 2 has 6") as end:
        estimated.check_dominated({"ratio": 4.5}, slack=1.25)
    estimated.prune(str(end.value))
    assert (
        study.trials[5].state.name == "PRUNED" and study.trials[5].user_attrs["figures"] == {}
    )  # nothing was measured
    rows = list(csv.DictReader(io.StringIO(table_csv(study))))
    assert [row["state"] for row in rows] == ["COMPLETE"] * 3 + ["UNASKED"] * 3
    unknown = trial()
    unknown.check_dominated({"bits_per_weight": 3.0})  # the objective is not among what is known


def test_plots_show_the_values_of_ordered_choices_and_not_their_places(tmp_path):
    words = ("size=tag(ordered,choice(64,256,1024))", "how=tag(ordered,choice(low,high))", "kind=choice(a,b)")
    study = Study(settings(f"sqlite:///{tmp_path}/study.db"), space(*words))
    while (asked := study.ask()) is not None:
        study.study.tell(asked.number, float(asked.number))
    counted = plotted_study(study).trials
    assert len(counted) == TRIALS
    for trial, plotted in zip(study.trials, counted, strict=True):
        assert plotted.params["size"] == (64, 256, 1024)[trial.params["size"]]
        assert plotted.params["how"] == ("low", "high")[trial.params["how"]]
        assert plotted.params["kind"] == trial.params["kind"] and plotted.values == trial.values
    assert len(drawings(study)) == 3


def test_dominated_trials_need_one_objective(tmp_path):
    with pytest.raises(ConfigError, match="needs a single objective"):
        settings("journal:x", objectives={"ratio": "maximize", "retention": "maximize"}, prune_dominated=True)


def test_the_smallest_is_best_where_the_objective_is_minimised(tmp_path):
    from phase8.sweep.trial import CurrentTrial, TrialPruned

    url = f"sqlite:///{tmp_path}/study.db"
    study = Study(settings(url, objectives={"bytes": "minimize"}, prune_dominated=True), space("x=interval(-3,3)"))
    CurrentTrial(study.settings, study.ask().trial_id).complete({"bytes": 100.0})
    CurrentTrial(study.settings, study.ask().trial_id).check_dominated({"bytes": 99.0})
    with pytest.raises(TrialPruned):
        CurrentTrial(study.settings, study.ask().trial_id).check_dominated({"bytes": 100.0})


# What the shipped studies are -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf" / "sweep").glob("*.yaml")))
def test_no_shipped_study_trains_for_half_an_hour(name):
    """Both ends of every setting have only stages in closed form: the lattice trains longer than a trial may last."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from phase8.codecs.stages import NAMES
    from phase8.config import CompressionConfig

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        sweeper = compose("config", [f"sweep={name}"], return_hydra_config=True).hydra.sweeper
        found = space(params=OmegaConf.to_container(sweeper.params))
        for end in (0, -1):
            values = {parameter.name: parameter.ends[end] for parameter in found.parameters}
            settled = compose("config", [f"sweep={name}", *found.overrides(values)])
            settled.paths.output_dir = "outputs"
            config = CompressionConfig.from_dict(OmegaConf.to_container(settled, resolve=True))
            assert any(config.stage(stage).enabled for stage in NAMES)
            assert not any(config.stage(stage).enabled and config.stage(stage).trained for stage in NAMES)


# A cheap run first ------------------------------------------------------------------------------------------------


def test_a_preview_ends_hopeless_trials_and_the_others_run_whole(tmp_path):
    directory, log = tmp_path / "study", tmp_path / "log"
    ended = run(
        directory, f"log={log}", "+hydra.sweeper.preview={kind: cheap}",
        "+hydra.sweeper.preview_constraints={value: '>= -4'}",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    trials, lines = load(directory).trials, log.read_text().splitlines()
    for trial in trials:
        place = f"{trial.params['x']} {trial.params['n']} "
        kinds = [line.split()[-1] for line in lines if line.startswith(f"end {place}")]
        held = trial.user_attrs["figures"]["value"] >= -4
        assert kinds == (["cheap", "round"] if held else ["cheap"])
        assert trial.state.name == ("COMPLETE" if held else "PRUNED")
        assert ("its preview ends it: value" in trial.user_attrs.get("reason", "")) == (not held)
        assert trial.user_attrs["processor_s"] >= 0
    assert {trial.state.name for trial in trials} == {"COMPLETE", "PRUNED"}  # the seed gives some of both


@pytest.mark.parametrize(
    ("preview", "held", "text"),
    [("{kin: cheap}", "{value: '>= -4'}", "kin"), ("{kind: cheap}", "{}", "nothing ends a trial after it"),
     ("{}", "{value: '>= -4'}", "constraints hang on it"), ("{kind: cheap}", "{value: '-4'}", "cannot be read")],
)  # fmt: skip
def test_a_preview_that_makes_no_sense_ends_before_the_first_trial(tmp_path, preview, held, text):
    ended = run(tmp_path / "study", f"+hydra.sweeper.preview={preview}", f"+hydra.sweeper.preview_constraints={held}")
    assert ended.returncode == 2, ended.stdout
    assert text in ended.stderr and "Traceback" not in ended.stderr
    assert not list(tmp_path.glob("study/trial-*"))
