"""Weights & Biases: a listener that logs a run under the metric names of the specification, section 7.

The only file that imports `wandb`. Offline by default: everything lies in `RUN_DIR/wandb`, nothing is sent, no account
is needed; `wandb sync RUN_DIR/wandb/offline-run-*` uploads it later. `close` has to be called whatever happens, also
after Ctrl-C: use the tracker as a context manager or in a `finally`.
"""

from __future__ import annotations

import io
import json
import os
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from phase8.codecs.stages import NAMES
from phase8.config import LoggerConfig, WandbMode
from phase8.errors import ArtifactError, ConfigError
from phase8.events import Event, PhaseComplete, StageComplete, TrainingComplete, TrainingProgress, plain
from phase8.files import write_atomic
from phase8.watch.metrics import final_metrics, stage_metrics, training_metrics
from phase8.watch.plots import quality_png
from phase8.watch.view import BASELINE, RunView, Stage, mapping
from phase8.watch.wording import stage_name

COMPARISON_TABLE = "phase8/benchmark_comparison"
URL_FILE = "url.txt"
"""Beside W&B's own files where the run is online: its page, for the dashboard."""
QUALITY_PLOT = "phase8/quality_vs_compression"
_ENVIRONMENT = ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR")


def _run_id(path: Path) -> str:
    """The id of this run at W&B: drawn once, and kept for when the run is gone on with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        write_atomic(path, uuid.uuid4().hex[:16])
    return path.read_text(encoding="utf-8").strip()


def _tags(settings: Mapping[str, Any]) -> list[str]:
    """The variant, the enabled stages, and what the settings add."""
    stages = [name for name in NAMES if mapping(settings.get(name)).get("enabled") is True]
    own = mapping(settings.get("logger")).get("tags") or ()
    return [str(tag) for tag in dict.fromkeys([settings.get("variant"), *stages, *own]) if tag]


class WandbTracker:
    """Listener that writes one W&B run.

    Args:
        settings: the whole run's configuration, a plain dict; its `logger` section (`mode`, `project`, `group`) is
            this tracker's own.
        run_dir: the run's directory.

    A run that is gone on with continues the same W&B run: its id stands in `RUN_DIR/wandb/run_id`. What W&B itself
    refuses or breaks on is a warning; no compression ends for it.

    Raises:
        ConfigError: wandb is not installed.
    """

    def __init__(self, settings: Mapping[str, Any], *, run_dir: Path | str) -> None:
        logger = {name: plain(value) for name, value in mapping(settings.get("logger")).items()}
        defaults = LoggerConfig()
        self.mode = WandbMode(logger.get("mode", defaults.mode.value))
        self.view = RunView()
        self._run: Any = None
        self._complete = self._compared = False
        self._environment: dict[str, str | None] = {}
        if self.mode is WandbMode.disabled:
            return
        directory = Path(run_dir).absolute()
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                "wandb is not installed", where="logger.mode", fix="pip install wandb, or set logger.mode=disabled"
            ) from error
        self._wandb = wandb
        inside = {name: directory / "wandb" / name.removeprefix("WANDB_").lower() for name in _ENVIRONMENT}
        inside["WANDB_DIR"] = directory
        for name, path in inside.items():  # else caches and staged files go to the home directory
            self._environment[name] = os.environ.get(name)
            os.environ[name] = str(path)
            path.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=logger.get("project") or defaults.project,
                group=logger.get("group"),
                job_type=logger.get("job_type") or "stage",
                tags=_tags(settings),
                id=_run_id(directory / "wandb" / "run_id"),
                resume="allow" if self.mode is WandbMode.online else None,
                name=directory.name,
                dir=str(directory),
                config=plain(settings),
                mode=self.mode.value,
                reinit="create_new",
                settings=wandb.Settings(
                    silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True
                ),
            )
            if self.mode is WandbMode.online and self._run.url:  # offline, the question alone prints a warning
                write_atomic(directory / "wandb" / URL_FILE, self._run.url + "\n")
        except Exception as error:  # wandb raises anything; no run ends for it
            self._restore_environment()
            warnings.warn(
                f"W&B cannot start, this run is not tracked there: {error} (logger.mode=offline needs no account, "
                "logger.mode=disabled asks for nothing)",
                stacklevel=2,
            )

    def __enter__(self) -> WandbTracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    def __call__(self, event: Event) -> None:
        self.view.feed(event)
        if self._run is None:
            return
        match event.data:
            case TrainingProgress() | TrainingComplete() as data if event.stage is not None:
                self._training(event.stage, data)
            case StageComplete() if event.stage is not None:
                self._stage(self.view.stages[event.stage])
            case PhaseComplete():
                self._finish(mapping(self.view.result))

    def close(self, *, failed: bool = False) -> None:
        """Ends the W&B run; a run without a result still gets its table and plot. Safe to call twice."""
        if self._run is None:
            return
        run, self._run = self._run, None
        try:
            if not self._complete:
                failed = True
                if not self._compared:
                    self._compare(run)
            run.finish(exit_code=1 if failed else 0)
        except Exception as error:  # wandb raises anything; no run ends for it
            warnings.warn(f"W&B did not end well; the run itself is not touched by it: {error}", stacklevel=2)
        finally:
            self._restore_environment()

    def _restore_environment(self) -> None:
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def _training(self, stage: str, data: TrainingProgress | TrainingComplete) -> None:
        if known := training_metrics(stage, data):
            self._run.log(known)

    def _stage(self, stage: Stage) -> None:
        """Metrics and artifact of the attempt that has just ended."""
        if stage.last is not None:
            self._run.log(stage_metrics(stage, self.view.original_bytes))
            self._log_artifact(stage)

    def _log_artifact(self, stage: Stage) -> None:
        attempt = stage.last
        if attempt is None:
            return
        scores = {result.task: result.score for result in attempt.results.values()}
        metadata = {
            "bytes": attempt.compressed_bytes,
            "ratio": attempt.ratio,
            "bits_per_weight": attempt.bits_per_weight,
            "passed": attempt.passed,
            "attempt": attempt.order,
            "made_from": self._kept_before(stage),
        }
        if stage.name == BASELINE:
            # The input model stays where it is; what is kept of it is what it scored.
            artifact = self._wandb.Artifact("phase8-baseline", type="baseline", metadata={"model": self.view.model})
            with artifact.new_file("baseline.json", mode="w") as file:
                json.dump({"model": self.view.model, "bytes": self.view.original_bytes, "scores": scores}, file)
        elif attempt.complete is not None and attempt.complete.artifact is not None:
            artifact = self._wandb.Artifact(f"phase8-{stage.name}", type="model", metadata=metadata)
            directory = Path(attempt.complete.artifact)
            files = sorted(path for path in directory.rglob("*") if path.is_file())
            if not files:
                raise ArtifactError("nothing to log: no file in the artifact's directory", where=str(directory))
            for path in files:  # `add_dir` would print; immutable: referred to, not copied
                artifact.add_file(str(path), name=path.relative_to(directory).as_posix(), policy="immutable")
        else:
            return
        self._run.log_artifact(artifact)

    def _kept_before(self, stage: Stage) -> str | None:
        """The artifact that the stage started from: the lineage, from each artifact to the one before."""
        if stage.name == BASELINE:
            return None
        before = [other.name for other in self.view.compressing if other is not stage and other.kept is not None]
        return f"phase8-{before[-1] if before else BASELINE}"

    def _finish(self, result: Mapping[str, Any]) -> None:
        self._compare(self._run)
        self._run.summary.update(final_metrics(result))
        self._complete = result.get("interrupted") is not True

    def _compare(self, run: Any) -> None:
        """The table and the plot over all stages."""
        view = self.view
        chosen = {stage.name: stage.shown for stage in view.compressing}
        last_kept = [stage.kept for stage in view.compressing if stage.kept is not None]
        table = self._wandb.Table(columns=["Benchmark", "Baseline", *map(stage_name, NAMES), "Retention"])
        for task, baseline in view.baseline.items():
            scores = []
            for name in NAMES:
                attempt = chosen.get(name)
                result = attempt.results.get(task) if attempt is not None else None
                scores.append(result.score if result is not None else None)
            final = last_kept[-1].results.get(task) if last_kept else None
            table.add_data(task, baseline.score, *scores, final.retention if final is not None else None)
        logged: dict[str, Any] = {COMPARISON_TABLE: table}
        picture = quality_png(view)
        if picture is not None:
            from PIL import Image

            logged[QUALITY_PLOT] = self._wandb.Image(Image.open(io.BytesIO(picture)))
        run.log(logged)
        self._compared = True
