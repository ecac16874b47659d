"""Multirun: plain combinations and studies, through whichever launcher Hydra was given.

A launcher runs jobs in this process (`basic`) or elsewhere (joblib, submitit, Ray). What a job came to does not hang on
the launcher: a job of a study records its own end in the study's storage, a plain job in `job.json` in its directory.
So a launcher that gives up (a worker was killed, and joblib drops the whole batch) loses no finished job.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins

from phase8.errors import ConfigError, Phase8Error
from phase8.files import fresh_directory, make_directory, read_bounded, write_atomic
from phase8.sweep.check import check_combinations, check_preview, check_space, compose
from phase8.sweep.life import DRIVER, Heartbeat
from phase8.sweep.objective import job
from phase8.sweep.space import parse_space
from phase8.sweep.storage import absolute
from phase8.sweep.study import Asked, Study
from phase8.sweep.trial import TrialJob, reason_of, settings_of
from phase8.sweep.waiting import leave

JOB_FILE, WAITING = "job.json", "waiting"
OUR_ERROR, SOME_FAILED, INTERRUPTED = 2, 1, 130
MAX_JOB_BYTES = 1 << 20


def quoted(text: str) -> str:
    """Any text as a value in Hydra's override syntax."""
    return QuotedString(text, Quote.single).with_quotes()


class GridJob:
    """A task function that leaves `job.json` in its directory and never fails itself."""

    def __init__(self, task: Callable[[Any], Any]) -> None:
        self.task = task

    def __call__(self, config: Any) -> dict[str, Any]:
        """Runs the task; returns and writes its state, reason and what it returned."""
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        outcome: dict[str, Any] = {"overrides": list(hydra.overrides.task)}
        try:
            with job():
                returned = self.task(config)
            outcome |= {"state": "COMPLETE", "reason": "", "figures": returned if isinstance(returned, dict) else {}}
        except KeyboardInterrupt:
            raise
        except (Exception, SystemExit) as error:
            outcome |= {"state": "FAIL", "reason": reason_of(error), "figures": {}}
        write_atomic(Path(hydra.runtime.output_dir) / JOB_FILE, json.dumps(outcome, default=str))
        return outcome


def _or_exit(work: Callable[[], Any]) -> Any:
    """Runs `work`; an error of ours is printed for a person, without Hydra's traceback."""
    try:
        return work()
    except Phase8Error as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(OUR_ERROR)


# Plain multirun --------------------------------------------------------------------------------------------------


def run_grid(context: Any, task: Callable[[Any], Any], config: Any, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Runs every combination of the values given; prints and writes a summary.

    Raises:
        SystemExit: a job failed (1), or nothing could be begun (2).
    """
    return _or_exit(lambda: _run_grid(context, task, config, arguments))


def _run_grid(context: Any, task: Callable[[Any], Any], config: Any, arguments: Sequence[str]) -> list[dict[str, Any]]:
    from phase8.sweep.summary import summarise_jobs

    jobs = combinations(config.hydra.sweeper.params, arguments, context.config_loader)
    check_combinations(context, config, jobs)
    root = fresh_directory(Path(str(config.hydra.sweep.dir)).absolute())
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=context, task_function=GridJob(task), config=config
    )
    names = [str(number) for number in range(len(jobs))]

    def launch(chosen: Sequence[int]) -> None:
        batch = [
            [*jobs[n], f"hydra.sweep.dir={quoted(str(root))}", f"hydra.sweep.subdir={quoted(names[n])}"] for n in chosen
        ]
        launcher.launch(batch, initial_job_idx=chosen[0])

    interrupted = False
    try:
        launch(range(len(jobs)))
    except KeyboardInterrupt:
        interrupted = True
    except Exception as error:  # the launcher's: a worker died, and with it the whole batch
        print(f"the launcher gave up ({reason_of(error)}); jobs without a result run again, one by one")
        for number in range(len(jobs)):
            if outcome_of(root / names[number]) is None:
                try:
                    launch([number])
                except Exception as again:
                    reason = f"its process ended without a result: {reason_of(again)}"
                    directory = make_directory(root / names[number])
                    lost = {"overrides": jobs[number], "state": "FAIL", "reason": reason, "figures": {}}
                    write_atomic(directory / JOB_FILE, json.dumps(lost))
    outcomes = []
    for number, name in enumerate(names):
        missing = {"overrides": jobs[number], "state": "NOT RUN", "reason": "interrupted", "figures": {}}
        outcomes.append({**(outcome_of(root / name) or missing), "directory": str(root / name)})
    summarise_jobs(root, outcomes)
    if interrupted:
        sys.exit(INTERRUPTED)
    if any(outcome["state"] != "COMPLETE" for outcome in outcomes):
        sys.exit(SOME_FAILED)
    return outcomes


def combinations(params: Any, arguments: Sequence[str], loader: Any) -> list[list[str]]:
    """The overrides of every job: the product of all values, the last one given changing fastest.

    Raises:
        ConfigError: a sweep that has no finite list of values.
    """
    words = [*(f"{name}={value}" for name, value in params.items()), *arguments]
    lists: dict[str, list[str]] = {}
    for override in OverridesParser.create(config_loader=loader).parse_overrides(words):
        key = override.get_key_element()
        if not override.is_sweep_override():
            lists[key] = [override.input_line or f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            lists[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise ConfigError(
                f"{key}: an interval has no list of values to run one by one",
                where=override.input_line or key,
                fix="give values (a,b,c) or range(low,end,step=...), or search it: hydra/sweeper=study, or sweep=NAME",
            )
    return [list(combination) for combination in itertools.product(*lists.values())]


def outcome_of(directory: Path) -> dict[str, Any] | None:
    """What a plain job left behind, or None."""
    try:
        outcome = json.loads(read_bounded(directory / JOB_FILE, MAX_JOB_BYTES, error=ConfigError))
    except (ConfigError, ValueError):
        return None
    return outcome if isinstance(outcome, dict) and "state" in outcome else None


# Studies ---------------------------------------------------------------------------------------------------------


def run_study(context: Any, task: Callable[[Any], Any], config: Any, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Begins, continues or helps a study until it has its trials; prints and writes its report.

    Raises:
        SystemExit: nothing could be begun (2), or no trial completed (1).
    """
    return _or_exit(lambda: _run_study(context, task, config, arguments))


def _run_study(context: Any, task: Callable[[Any], Any], config: Any, arguments: Sequence[str]) -> list[dict[str, Any]]:
    from phase8.sweep.report import progress_line, report_study

    settings = settings_of(config.hydra.sweeper)
    parser = OverridesParser.create(config_loader=context.config_loader)
    space = parse_space(config.hydra.sweeper.params, arguments, parser)
    check_space(context, config, space, settings.check, seed=settings.seed)
    check_preview(context, config, space, settings.preview, settings.check)
    root = make_directory(Path(str(config.hydra.sweep.dir)).absolute())
    study = Study(settings, space)
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=context, task_function=TrialJob(task, context, config), config=config
    )
    before, returned = len(study.finished), []
    if before:
        print(f"study {settings.study}: {before} of {settings.n_trials} trials are there already", flush=True)
    try:
        while batch := _batch(study, context, config):
            jobs = [_job(asked, root, settings.storage) for asked in batch]
            with Heartbeat(study.storage, [asked.trial_id for asked in batch], DRIVER, settings.heartbeat_s):
                try:
                    returned += _launch(launcher, jobs, settings.workers, root, batch[0].number)
                except Exception as error:  # the launcher's: a worker died
                    study.lose_unfinished(batch, f"the launcher gave up: {reason_of(error)}")
                except BaseException:
                    study.lose_unfinished(batch, "interrupted")
                    raise
            for asked in batch:
                print(progress_line(study, asked.number), flush=True)
    finally:
        report_study(study, root)
    if not study.best() and not any(trial.state.name == "COMPLETE" for trial in study.finished):
        sys.exit(SOME_FAILED)
    return returned


def _launch(launcher: Any, jobs: list[list[str]], workers: int, root: Path, first: int) -> list[dict[str, Any]]:
    """Gives each worker a trial and leaves the others where whoever is free takes them."""
    place = leave(root / WAITING, jobs[workers:]) if len(jobs) > workers else None
    hint = [f"hydra.sweeper.waiting={quoted(str(place))}"] if place is not None else []
    try:
        results = launcher.launch([[*job, *hint] for job in jobs[:workers]], initial_job_idx=first)
        return [trial for result in results for trial in result.return_value]
    finally:
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)


def _batch(study: Study, context: Any, config: Any) -> list[Asked]:
    """The next trials to run together; one that cannot even be composed is recorded as failed."""
    batch: list[Asked] = []
    while len(batch) < (study.settings.batch or study.settings.workers):
        asked = study.ask()
        if asked is None:
            break
        try:
            compose(context, config, asked.overrides)
        except ConfigError as error:
            study.fail(asked, str(error))
            continue
        batch.append(asked)
    return batch


def _job(asked: Asked, root: Path, storage: str) -> list[str]:
    """A trial's overrides, with what tells the job which trial it is and where it goes."""
    directory = fresh_directory(root / f"trial-{asked.number:04d}")
    hydra = [
        f"hydra.sweeper.trial={asked.trial_id}",
        f"hydra.sweep.dir={quoted(str(root))}",
        f"hydra.sweep.subdir={quoted(directory.name)}",
    ]
    if absolute(storage) != storage:  # the worker may stand in another directory; a server's URL stays as it was given
        hydra.append(f"hydra.sweeper.storage={quoted(absolute(storage))}")
    return [*asked.overrides, *hydra]
