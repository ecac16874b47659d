"""Plain multirun: jobs that fail, directories of their own, the summary; and several workers through each launcher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import optuna
import pytest

from phase8.errors import ConfigError
from phase8.files import fresh_directory
from phase8.sweep.best import expand_study, write_best
from phase8.sweep.jobs import quoted
from phase8.sweep.storage import open_storage
from phase8.watch.runs import read_runs
from tests.program import ROOT, run_here

APP = ROOT / "tests" / "sweep_app" / "app.py"


def app(directory: Path, *overrides: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(APP), *overrides],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables},
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=400,
    )


def test_a_failed_job_does_not_end_the_others(tmp_path):
    ended = run_here(
        APP, "-m", "hydra/sweeper=grid", "x=0,2", "n=1,2", "fail_above=1", "hydra.sweep.dir=many", cwd=tmp_path
    )
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    outcomes = json.loads((tmp_path / "many" / "summary.json").read_text())
    assert [(o["overrides"][:2], o["state"]) for o in outcomes] == [
        (["x=0", "n=1"], "COMPLETE"), (["x=0", "n=2"], "COMPLETE"), (["x=2", "n=1"], "FAIL"), (["x=2", "n=2"], "FAIL"),
    ]  # fmt: skip
    assert "4 jobs, 2 finished, 2 did not" in ended.stdout
    assert "ValueError: x is 2" in ended.stdout
    page = (tmp_path / "many" / "summary.html").read_text()
    assert page.count("ValueError: x is 2") == 2 and "What failed" in page
    assert outcomes[1]["figures"] == {"value": -2.0, "size": 2.0}
    again = run_here(APP, "-m", "hydra/sweeper=grid", "x=0", "hydra.sweep.dir=many", cwd=tmp_path)
    assert again.returncode == 0 and (tmp_path / "many-2" / "summary.json").exists()


@pytest.mark.slow
def test_a_missing_model_among_good_ones(tmp_path, tiny_model_dir):
    """Through `run.py` itself: the other job finishes, and the summary says what failed."""
    ended = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "-m", "model=local", f"model.path={tmp_path}/nowhere,{tiny_model_dir}",
         "seedlm.enabled=false", "hyper.enabled=false", "vptq.codebook_size=16", "grokfast.iterations=0",
         "benchmark_samples=4", "skip_expert_benchmarks=true", "max_retries=0", "benchmarks.edge_pool=shipped",
         "optimizer.calibration_sequences=4", "optimizer.held_out_sequences=2", "optimizer.batch_sequences=2",
         "logger=none", "hydra.sweep.dir=many", f"paths.cache_dir={tmp_path}/cache"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, cwd=tmp_path, capture_output=True,
        text=True, timeout=1500,
    )  # fmt: skip
    assert ended.returncode == 1 and "Traceback" not in ended.stderr, ended.stderr[-3000:]
    missing, good = json.loads((tmp_path / "many" / "summary.json").read_text())
    assert (missing["state"], good["state"]) == ("FAIL", "COMPLETE"), good["reason"]
    assert f"{tmp_path}/nowhere" in missing["reason"]
    assert (tmp_path / "many" / "1" / "result.json").is_file()
    assert "2 jobs, 1 finished, 1 did not" in ended.stdout
    reason = missing["reason"].splitlines()[0]
    assert reason in ended.stdout and reason in (tmp_path / "many" / "summary.html").read_text()


def test_an_interval_has_no_combinations(tmp_path):
    ended = run_here(APP, "-m", "hydra/sweeper=grid", "x=interval(0,1)", cwd=tmp_path)
    assert ended.returncode == 2 and "an interval has no list of values" in ended.stderr


def test_directories_are_unique_whoever_asks_at_once(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: fresh_directory(tmp_path / "a" / "12-00-00"), range(16)))
    assert len(set(found)) == 16 and tmp_path / "a" / "12-00-00" in found


@pytest.mark.parametrize("text", ["plain", "a b", "it's", 'say "no"', "back\\slash", "a,b=[c]", "ünï"])
def test_quoted_text_comes_back(text):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (override,) = OverridesParser.create().parse_overrides([f"name={quoted(text)}"])
    assert override.value() == text


def test_a_run_from_a_study_takes_its_best_overrides(tmp_path):
    trials = [
        {"trial": 3, "figures": {"ratio": 12.0}, "overrides": ["sweep=smoke", "vptq.codebook_size=512", "seed=1"]},
        {"trial": 5, "figures": {"ratio": 10.0}, "overrides": ["vptq.codebook_size=64", "logger.mode=disabled"]},
    ]
    write_best(tmp_path / "best.yaml", "frontier", trials)
    assert expand_study(["a=1", f"+from_study={tmp_path}"]) == ["a=1", "vptq.codebook_size=512", "seed=1"]
    assert expand_study([f"from_study={tmp_path}/best.yaml", "seed=7"]) == ["vptq.codebook_size=512", "seed=7"]
    assert expand_study([f"+from_study={tmp_path}#5"]) == ["vptq.codebook_size=64"]
    assert expand_study(["compressor=default"]) == ["compressor=default"]
    for bad in (tmp_path / "nowhere", f"{tmp_path}#4"):
        with pytest.raises(ConfigError):
            expand_study([f"+from_study={bad}"])
    (tmp_path / "best.yaml").write_text("overrides: {a: 1}\n")
    with pytest.raises(ConfigError, match="no list of overrides"):
        expand_study([f"+from_study={tmp_path}"])


def test_a_multirun_stands_for_its_jobs(tmp_path):
    for name, state in (("0", "COMPLETE"), ("1", "FAIL")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "job.json").write_text(json.dumps({"state": state, "reason": "why", "overrides": ["a=1"]}))
    runs = read_runs([tmp_path])
    assert [run.name for run in runs] == ["0", "1"] and runs[1].state == "FAIL" and runs[1].reason == "why"


LAUNCHERS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", ["hydra/launcher=submitit_local"]),
    "ray": (
        "hydra_plugins.hydra_ray_launcher",
        ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2",
         "+hydra.launcher.ray.init.include_dashboard=false"],
    ),
}  # fmt: skip


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("batch", [2, 6])
@pytest.mark.parametrize("launcher", sorted(LAUNCHERS))
def test_two_workers_share_a_study(launcher, batch, tmp_path):
    module, overrides = LAUNCHERS[launcher]
    if not _installed(module):
        extra = "ray" if launcher == "ray" else "cluster"
        pytest.skip(f'{launcher} is not installed: pip install -e ".[{extra}]"')
    ended = app(
        tmp_path, "-m", "hydra/sweeper=study", "hydra.sweeper.study=toy", "+hydra.sweeper.objectives={value: maximize}",
        "hydra.sweeper.n_trials=6", "hydra.sweeper.workers=2", f"hydra.sweeper.batch={batch}",
        "hydra.sweep.dir=study", "x=interval(-3,3)", "sleep_s=0.3",
        "fail_above=2.5", f"log={tmp_path}/log", *overrides, RAY_AUTH_MODE="disabled",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    study = optuna.load_study(study_name="toy", storage=open_storage(f"sqlite:///{tmp_path}/study/study.db"))
    assert [trial.state.name for trial in study.trials] == [
        "FAIL" if trial.params["x"] > 2.5 else "COMPLETE" for trial in study.trials
    ] and len(study.trials) == 6  # fmt: skip
    pids = {trial.user_attrs["job"]["pid"] for trial in study.trials}
    drivers = {trial.user_attrs["driver"]["pid"] for trial in study.trials}
    assert len(drivers) == 1 and len(pids) >= 2 and not pids & drivers
    if batch == 6:  # two jobs took all six
        assert len(pids) == 2 and not (tmp_path / "study" / "waiting").exists()


def test_the_program_itself_can_be_sent_to_workers():
    """What `python run.py` hands a launcher is sent by value: nothing that it names may hold a lock."""
    pytest.importorskip("cloudpickle")
    sent = (
        "import cloudpickle, runpy, sys; sys.argv = ['run.py', '--help']; names = runpy.run_path('run.py');"
        "names['main'].__module__ = '__main__'; sys.modules['__main__'].__dict__.update(names);"
        "print(len(cloudpickle.dumps(names['main'])))"
    )
    ended = subprocess.run([sys.executable, "-c", sent], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0 and int(ended.stdout) > 1000, ended.stderr[-2000:]
