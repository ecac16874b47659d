"""The Python entry points: one pipeline under `run.py`, these classes, sweeps and the dashboard."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from anyio import to_thread

from phase8.config import CompressionConfig, PathsConfig, WandbMode
from phase8.errors import ConfigError, OutputError, Phase8Error
from phase8.events import Event, EventLog, Failed, Listener, RunStart, StepComplete, plain, read_events
from phase8.files import CACHE, fresh_directory, make_directory, read_bounded, write_atomic
from phase8.run.signals import EndOnSignal

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from phase8.model.source import SourceModel
    from phase8.run.journal import Journal

MAX_CONFIG_BYTES = 1 << 20


def run_configured(
    config: CompressionConfig,
    source: SourceModel | None = None,
    *,
    console: bool = True,
    listeners: Sequence[Listener] = (),
    report: bool = True,
) -> dict[str, Any]:
    """Runs the whole pipeline with console, report and tracking; returns the content of `result.json`.

    Args:
        source: a model in memory; None loads `config.model`.
        console: show progress on the terminal.
        listeners: called with every event; one may raise `RunStopped` to end the run in order.
        report: write `report.html`.

    Raises:
        Phase8Error: bad settings, model or output directory, or a directory that holds a run already.
    """
    from phase8.run.journal import Journal

    run_dir = make_directory(Path(config.paths.output_dir))
    with EndOnSignal() as ending, EventLog(run_dir / "events.jsonl") as events:
        if any(isinstance(event.data, RunStart) for event in read_events(events.path)):
            raise OutputError(
                "the directory holds a run already",
                where=str(run_dir),
                fix=f"go on with it: python run.py 'resume={run_dir}'; or choose another with hydra.run.dir "
                "(in Python: paths.output_dir)",
            )
        write_atomic(run_dir / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))
        return _run(config, source, events, Journal(run_dir), ending, console, listeners, report=report)


def resume(
    run_dir: Path | str,
    source: SourceModel | None = None,
    *,
    console: bool = True,
    verbose: bool = False,
    listeners: Sequence[Listener] = (),
    training_steps: int | None = None,
) -> dict[str, Any]:
    """Goes on with a run that was killed or ended early, with its own settings; see `phase8.run.journal`.

    Args:
        run_dir: the run's directory.
        source: the model, where it came from memory.
        console, listeners: as in `run_configured`; listeners that have a `view` are fed the events so far.
        verbose: the terminal tells details, whatever the run's settings say.
        training_steps: a greater `training.steps` than the run's, for what is still to be trained or was stopped in
            training: the learning rate's fall and the size's ramp are shares of it from there on.

    Returns:
        The content of `result.json`.

    Raises:
        Phase8Error: there is no run to go on with, it has ended, another process is at it, its model has changed, or
            `training_steps` are no more than it has.
    """
    from phase8.run.journal import Journal

    run_dir = Path(run_dir)
    past = read_events(run_dir / "events.jsonl")
    with EndOnSignal() as ending, EventLog(run_dir / "events.jsonl") as events:
        past = read_events(events.path)
        journal = Journal(run_dir, past)
        if journal.ended is not None and not journal.ended.interrupted:
            if not (run_dir / "report.html").exists():  # the end came while the report was being written
                from phase8.watch.report import write_report

                write_report(run_dir)
                return plain(journal.ended)
            raise ConfigError(
                "this run has come to its end: there is nothing to go on with",
                where=f"resume={run_dir}",
                fix=f"its result is in {run_dir / 'result.json'}; start a new run for other settings",
            )
        raw = read_bounded(run_dir / "config.yaml", MAX_CONFIG_BYTES, error=ConfigError)
        try:
            settings = yaml.safe_load(raw)
        except yaml.YAMLError as error:
            raise ConfigError(f"not YAML: {error}", where=str(run_dir / "config.yaml"), fix="restore it") from error
        config = CompressionConfig.from_dict(settings)
        if training_steps is not None:
            config = _longer(config, training_steps)
            write_atomic(run_dir / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))
        config = replace(
            config,
            paths=replace(config.paths, output_dir=str(run_dir)),
            logger=replace(config.logger, verbose=config.logger.verbose or verbose),
        )
        return _run(config, source, events, journal, ending, console, listeners, past)


def _longer(config: CompressionConfig, steps: int) -> CompressionConfig:
    """The same settings with more steps of training."""
    if steps <= config.training.steps:
        raise ConfigError(
            f"training.steps={steps} is no more than the run's {config.training.steps}",
            where="a resumed run trains as long as it was to, or longer",
            fix="give more steps, or none",
        )
    return replace(config, training=replace(config.training, steps=steps))


def _run(
    config: CompressionConfig,
    source: SourceModel | None,
    events: EventLog,
    journal: Journal,
    ending: EndOnSignal,
    console: bool,
    listeners: Sequence[Listener],
    past: Sequence[Event] = (),
    report: bool = True,
) -> dict[str, Any]:
    """Runs with the log open; a report, where one is wanted, is written whatever happens."""
    run_dir, cache_dir = Path(config.paths.output_dir), make_directory(Path(config.paths.cache_dir), CACHE)
    if not config.model.path.count("/") == 1 or Path(config.model.path).exists():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    os.environ.setdefault("HF_HOME", str(cache_dir.absolute() / "huggingface"))
    with ExitStack() as open_listeners:

        def subscribe(listener: Any) -> None:
            for event in past if hasattr(listener, "view") else ():
                listener.view.feed(event)
            events.subscribe(listener)

        try:
            if console:
                from phase8.watch.console import ConsoleListener

                subscribe(open_listeners.enter_context(ConsoleListener(verbose=config.logger.verbose)))
            for listener in listeners:
                subscribe(listener)
            begin = time.monotonic()
            source = _loaded(config, source)
            seconds = time.monotonic() - begin
            if config.logger.files:
                from phase8.watch.metrics import LocalTracker

                subscribe(open_listeners.enter_context(LocalTracker(run_dir)))
            if config.logger.mode is not WandbMode.disabled:
                from phase8.watch.tracking import WandbTracker

                subscribe(open_listeners.enter_context(WandbTracker(config.to_dict(), run_dir=run_dir)))
            from phase8.run.pipeline import Pipeline

            events.emit(StepComplete(step="start", seconds=seconds), "baseline")
            return Pipeline(config, source, run_dir, cache_dir, events, journal, ending).run()
        except Exception as error:  # told to the log, and raised again
            ending.hold()
            with suppress(OutputError):  # where the disk is full, `error` says so already
                events.emit(failed(error))
            raise
        finally:
            ending.hold()
            under_way = sys.exception() is not None
            try:
                open_listeners.close()
            finally:
                if report:
                    _write_report(run_dir, under_way)


def _write_report(run_dir: Path, under_way: bool) -> None:
    """Writes the report; where another error is under way, one of the report's does not take its place."""
    from phase8.watch.report import write_report

    with suppress(OutputError) if under_way else nullcontext():
        write_report(run_dir)


def _loaded(config: CompressionConfig, source: SourceModel | None) -> SourceModel:
    from transformers.utils import logging as transformers_logging

    from phase8.model.source import load_source
    from phase8.run.machine import check_device, set_threads

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    set_threads(config.threads)
    check_device(config.device, config.devices)
    if source is None:
        source = load_source(config.model.path, experts_path=config.model.experts, device=config.device)
    return source


def failed(error: Exception) -> Failed:
    """The event of an error that ends the process."""
    if isinstance(error, Phase8Error):
        return Failed(error=type(error).__name__, what=error.what, where=error.where, fix=error.fix)
    return Failed(error=type(error).__name__, what=str(error))


class FinalCompressionPhase:
    """Phase 8 for a network in memory.

    config = CompressionConfig()
    result = await FinalCompressionPhase(config).run(model)
    """

    def __init__(
        self,
        config: CompressionConfig | None = None,
        *,
        expert_config: Mapping[str, Any] | str | Path | None = None,
    ):
        self.config = config or CompressionConfig()
        self.expert_config = expert_config

    async def run(
        self, model: PreTrainedModel | str | Path, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> dict[str, Any]:
        """Compresses a network, or the model at a path, in a worker thread.

        Args:
            model: a causal LM in memory (give its tokenizer too), or a path as in `model.path`. A network in memory is
                copied and stays as it is.

        Returns:
            The content of `result.json`.

        Raises:
            Phase8Error: bad settings, model or output directory.
        """
        # anyio's, not asyncio's: it works under trio too. Whoever cancels does not wait for the run.
        return await to_thread.run_sync(self._run, model, tokenizer, abandon_on_cancel=True)

    def _run(self, model: PreTrainedModel | str | Path, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
        from phase8.errors import ModelError
        from phase8.model.source import ExpertFile, load_source, source_from_network

        if isinstance(model, str | Path):
            source = load_source(str(model), experts_path=self.config.model.experts, device=self.config.device)
        elif tokenizer is None:
            raise ModelError("a network in memory needs its tokenizer", where="run(model)", fix="run(model, tokenizer)")
        else:
            source = source_from_network(model, tokenizer, ExpertFile(), type(model).__name__, self.config.device)
        if isinstance(self.expert_config, str | Path):
            source = replace(source, experts=ExpertFile.read(Path(self.expert_config)))
        elif self.expert_config is not None:
            source = replace(source, experts=ExpertFile.from_dict(dict(self.expert_config), where="expert_config"))
        config = self.config
        if config.paths.output_dir == PathsConfig().output_dir:  # nobody chose one: each run gets its own
            own = fresh_directory(config.paths.output_dir)
            config = replace(config, paths=replace(config.paths, output_dir=str(own)))
        return run_configured(config, source, console=sys.stdout.isatty())


class CompressionOrchestrator:
    """Phase 8 with the expert configuration that Phase 7 hands over."""

    def __init__(
        self,
        model: PreTrainedModel | str | Path,
        expert_config: Mapping[str, Any] | str | Path | None = None,
        *,
        config: CompressionConfig | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.phase = FinalCompressionPhase(config, expert_config=expert_config)

    def run_phase8(self) -> dict[str, Any]:
        """Runs the pipeline and returns the content of `result.json`; also where an event loop runs already, as in a
        notebook."""
        return self.phase._run(self.model, self.tokenizer)
