"""The Python entry points: one pipeline under `run.py`, these classes, sweeps and the dashboard."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from phase8.config import CompressionConfig, WandbMode
from phase8.events import EventLog, StepComplete
from phase8.files import make_directory, write_atomic

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from phase8.model.source import SourceModel


def run_configured(
    config: CompressionConfig, source: SourceModel | None = None, *, console: bool = True
) -> dict[str, Any]:
    """Runs the whole pipeline with console, report and tracking; returns the content of `result.json`.

    Args:
        source: a model in memory; None loads `config.model`.
        console: show progress on the terminal.

    Raises:
        Phase8Error: bad settings, model or output directory.
    """
    run_dir = make_directory(Path(config.paths.output_dir))
    cache_dir = make_directory(Path(config.paths.cache_dir))
    if not config.model.path.count("/") == 1 or Path(config.model.path).exists():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    os.environ.setdefault("HF_HOME", str(cache_dir.absolute() / "huggingface"))
    write_atomic(run_dir / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))
    with EventLog(run_dir / "events.jsonl") as events:
        screen = None
        if console:
            from phase8.watch.console import ConsoleListener

            screen = ConsoleListener()
            events.subscribe(screen)
        try:
            begin = time.monotonic()
            from transformers.utils import logging as transformers_logging

            from phase8.model.source import load_source
            from phase8.run.pipeline import Pipeline, check_device, set_threads

            transformers_logging.set_verbosity_error()
            transformers_logging.disable_progress_bar()

            set_threads(config.threads)
            check_device(config.device)
            if source is None:
                source = load_source(config.model.path, experts_path=config.model.experts, device=config.device)
            seconds = time.monotonic() - begin
            tracker = None
            if config.logger.mode is not WandbMode.disabled:
                from phase8.watch.tracking import WandbTracker

                tracker = WandbTracker(config.to_dict(), run_dir=run_dir)
                events.subscribe(tracker)
            try:
                events.emit(StepComplete(step="start", seconds=seconds), "baseline")
                pipeline = Pipeline(config=config, source=source, run_dir=run_dir, cache_dir=cache_dir, events=events)
                result = pipeline.run()
            finally:
                if tracker is not None:
                    tracker.close()
        finally:
            if screen is not None:
                screen.close()
            from phase8.watch.report import write_report

            write_report(run_dir)
    return result


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
        return await asyncio.to_thread(self._run, model, tokenizer)

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
        return run_configured(self.config, source, console=sys.stdout.isatty())


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
