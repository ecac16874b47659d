"""A run's settings, put together from those of its parts, and checked once at the entry.

`run.py` composes `conf/` with Hydra and hands the result to `CompressionConfig.from_dict`; below that nobody sees a
`DictConfig`. Unknown names, wrong types and impossible combinations raise `ConfigError` before any work. Each part has
its own `settings.py`; those of the stages come from the table in `phase8.codecs.stages`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from enum import Enum
from typing import Any, Self

from phase8.benchmarks.settings import EXPERTS, BenchmarksConfig, BenchmarkSuite, EdgePool
from phase8.checks import build, plain, require
from phase8.codecs.hyper.settings import Axis, HyperConfig, Trajectory, Winding
from phase8.codecs.seedlm.settings import SeedLMConfig, SeedSearch
from phase8.codecs.settings import StageSettings, check_limit
from phase8.codecs.stages import NAMES, STAGES
from phase8.codecs.vptq.settings import Sharing, VPTQConfig
from phase8.errors import ConfigError
from phase8.judge.settings import GateConfig, GatePolicy, GateReference, StageThresholds
from phase8.model.settings import ModelConfig
from phase8.train.settings import GrokfastConfig, GrokfastVariant, OptimizerConfig, Precision, TrainingConfig

__all__ = [
    "EXPERTS", "STAGES", "Axis", "BenchmarkSuite", "BenchmarksConfig", "CompressionConfig",
    "EdgePool", "Fallback", "GateConfig", "GatePolicy", "GateReference", "GrokfastConfig", "GrokfastVariant",
    "HyperConfig", "LoggerConfig", "ModelConfig", "OptimizerConfig", "PathsConfig", "Precision", "SeedLMConfig",
    "SeedSearch", "Sharing", "StageThresholds", "TrainingConfig", "Trajectory", "VPTQConfig",
    "WandbMode", "Winding",
]  # fmt: skip


class WandbMode(Enum):
    offline = "offline"
    online = "online"
    disabled = "disabled"


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggerConfig:
    """Where metrics go beside the event log: Weights & Biases, plain files, the terminal."""

    mode: WandbMode = WandbMode.offline
    project: str = "phase8"
    group: str | None = None
    """Runs of one multirun or study share a group; null: its name."""
    job_type: str | None = None
    """null: `stage` for a run on its own, `job` in a multirun, `trial` in a study."""
    tags: tuple[str, ...] = ()
    """Beside the variant and the enabled stages."""
    files: bool = True
    """Also write the metrics as `metrics.csv` and `metrics.jsonl` into the run's directory."""
    verbose: bool = False
    """The terminal also tells details; `-v` on the command line."""


class Fallback(Enum):
    """What happens where a stage's gate failed for good."""

    auto = "auto"
    """The run ends with the last stage that passed."""
    manual = "manual"
    """The run pauses first, until somebody says `run` (fall back) or `abort` in the control file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PathsConfig:
    """Where a run writes."""

    output_dir: str = "outputs/run"
    cache_dir: str = "outputs/cache"
    """Baselines, by model and suite, and what runs share; safe to delete."""
    reuse: bool | None = None
    """Take steps that other runs finished (Hessians, encodings, trainings, scores) from the cache, by their content;
    null: inside a multirun or study."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """What a run has beside its stages; use `CompressionConfig`."""

    variant: str = "default"
    """Name of the compressor variant, for the report."""
    seed: int = 0
    device: str = "cpu"
    devices: int = 1
    """Devices that train a stage within its byte budget: GPUs, or shares of the CPU's threads. All else takes one."""
    threads: int = 0
    """CPU threads; 0 takes one per core."""
    dashboard: bool = False
    """Serve the dashboard beside the run; `python -m phase8 dashboard` serves all runs."""
    max_retries: int = 1
    """How often a stage whose gate failed is tried again with a recommendation."""
    fallback: Fallback = Fallback.auto
    """Whether the run asks before it falls back; see `phase8.run.control`."""
    max_accuracy_loss: float = 0.16
    """Largest relative loss of the average core score against the baseline, at every stage."""
    min_compression_ratio: float = 40.0
    """Least ratio that counts as success."""
    target_compression_ratio: float = 280.0
    budget_bytes: int | None = None
    """Most bytes of the artifact of every stage that has no limit of its own; see docs/design.md, Byte budgets."""
    target_ratio: float | None = None
    """The same limit as a ratio: FP32 bytes of the model / bytes of the artifact, at least. Give one of the two."""
    calibration_text: str | None = None
    """A UTF-8 text file for Hessians and reconstruction, documents parted by blank lines; null takes the embedded
    world's training text, which suits the embedded model only."""
    protect: tuple[str, ...] = ()
    """Patterns of tensor names (as in file globs) that stay in 16 bits."""
    benchmark_samples: int | None = None
    """Items per benchmark; null takes all."""
    skip_expert_benchmarks: bool = False
    model: ModelConfig = field(default_factory=ModelConfig)
    grokfast: GrokfastConfig = field(default_factory=GrokfastConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    benchmarks: BenchmarksConfig = field(default_factory=BenchmarksConfig)
    gates: GateConfig = field(default_factory=GateConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)

    def __post_init__(self) -> None:
        require(
            0 <= self.max_retries <= 5,
            f"max_retries is {self.max_retries}, needs 0 to 5",
            where="max_retries",
            fix="the default is 1",
        )
        require(
            0 <= self.max_accuracy_loss < 1,
            f"max_accuracy_loss is {self.max_accuracy_loss}, needs 0 to below 1 (0.16 keeps 84 %)",
            where="max_accuracy_loss",
            fix="the default is 0.16",
        )
        require(
            0 < self.min_compression_ratio <= self.target_compression_ratio,
            f"min_compression_ratio is {self.min_compression_ratio}, needs above 0 and at most "
            f"target_compression_ratio ({self.target_compression_ratio})",
            where="min_compression_ratio",
            fix="the defaults are 40 and 280",
        )
        require(
            self.benchmark_samples is None or self.benchmark_samples >= 4,
            f"benchmark_samples is {self.benchmark_samples}, needs at least 4 (an item for each eudaimonia rule), or "
            "null for all items",
            where="benchmark_samples",
            fix="leave it out to use every item",
        )
        check_limit(self, "")
        most = self.training.batch_sequences
        require(
            1 <= self.devices <= most,
            f"devices is {self.devices}, needs 1 to training.batch_sequences ({most}): each takes a part of the batch",
            where="devices",
            fix="the default is devices=1",
        )
        require(self.threads >= 0, f"threads is {self.threads}", where="threads", fix="0 takes one per core")
        require(
            any(self.stage(name).enabled for name in NAMES),
            "every stage is switched off",
            where=", ".join(f"{name}.enabled" for name in NAMES),
            fix="switch on at least one",
        )
        for name in NAMES:
            limit, stage = self.limit_of(name), self.stage(name)
            if not stage.enabled:
                continue
            if limit is not None:
                stage.check_budget(limit[0])
            require(
                limit is not None or not stage.trained,
                f"{name} is trained within a byte budget, and none is set",
                where=f"{name}.target_ratio",
                fix=f"{name}.target_ratio=40, for example",
            )

    def stage(self, name: str) -> StageSettings:
        """The settings of a stage."""
        return getattr(self, name)

    def limit_of(self, stage: str) -> tuple[str, float] | None:
        """The setting that limits a stage's bytes, and its value: the stage's own, else the run's, else None."""
        for settings, prefix in ((self.stage(stage), f"{stage}."), (self, "")):
            for name in ("budget_bytes", "target_ratio"):
                if getattr(settings, name) is not None:
                    return f"{prefix}{name}", getattr(settings, name)
        return None

    def budget_of(self, stage: str, original_bytes: int) -> int | None:
        """Most bytes of a stage's artifact, or None where nothing limits them."""
        limit = self.limit_of(stage)
        if limit is None:
            return None
        name, value = limit
        return int(value) if name.endswith("budget_bytes") else int(original_bytes / value)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Builds and checks a run's settings from plain nested mappings, as Hydra composes them.

        Raises:
            ConfigError: names every unknown setting and wrong type at once.
        """
        problems: list[str] = []
        built = build(cls, data, "", problems)
        if problems:
            raise ConfigError(
                "\n  ".join(["the configuration has errors:", *problems]),
                where="command line or conf/",
                fix="`python run.py --cfg job` shows every setting with its value",
            )
        return built

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, in the form that `from_dict` reads."""
        return plain(self)

    def changed(self, values: Mapping[str, Any]) -> Self:
        """These settings with other values, as plain JSON, by dotted names, all of them at once: two changes may only
        be possible with each other. Example: `config.changed({"vptq.codebook_size": 512, "seed": 1})`.

        Raises:
            ConfigError: a name that no setting has; a value that the checks refuse.
        """
        tree = self.to_dict()
        for name, value in values.items():
            branch: Any = tree
            *parents, leaf = name.split(".")
            for parent in parents:
                branch = branch.setdefault(parent, {}) if isinstance(branch, dict) else None
            if not isinstance(branch, dict):
                raise ConfigError(
                    f"there is no setting called {name!r}", where=name, fix="`python run.py --cfg job` shows all"
                )
            branch[leaf] = value
        return self.from_dict(tree)


CompressionConfig: Any = make_dataclass(
    "CompressionConfig",
    [(stage.name, stage.settings, field(default_factory=stage.settings)) for stage in STAGES],
    bases=(RunSettings,),
    namespace={"__module__": __name__, "__doc__": "One run, whole: `RunSettings`, and the settings of every stage."},
    frozen=True,
    kw_only=True,
    slots=True,
)
