"""What Hydra sees of the sweepers: their settings. The work is done in `phase8.sweep`, imported when it begins.

Hydra imports this file at every start, so it imports nothing heavy. It does so before the module has its name, so
annotations that are only text (`from __future__ import annotations`) would not be understood here.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

_HERE = "hydra_plugins.phase8_studies.sweepers"


@dataclass
class GridConf:
    """Every combination of the values given, each job on its own."""

    _target_: str = f"{_HERE}.GridSweeper"
    params: dict[str, Any] = field(default_factory=dict)


@dataclass
class StudyConf:
    """A search by Optuna; `phase8.sweep.study.StudySettings` says what each setting means."""

    _target_: str = f"{_HERE}.StudySweeper"
    study: str = "${hydra.job.name}"
    storage: str = "sqlite:///${hydra.sweep.dir}/study.db"
    objectives: dict[str, str] = field(default_factory=dict)
    constraints: dict[str, str] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    n_trials: int = 20
    workers: int = 1
    batch: int | None = None
    sampler: str = "tpe"
    sampler_options: dict[str, Any] = field(default_factory=dict)
    pruner: str = "none"
    pruner_options: dict[str, Any] = field(default_factory=dict)
    start: list[Any] = field(default_factory=list)
    preview: dict[str, Any] = field(default_factory=dict)
    preview_constraints: dict[str, str] = field(default_factory=dict)
    prune_dominated: bool = False
    seed: int = 0
    heartbeat_s: float = 30.0
    grace_s: float = 120.0
    max_restarts: int = 3
    check: str | None = None
    trial: int | None = None
    waiting: str | None = None


ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridConf, provider="phase8")
ConfigStore.instance().store(group="hydra/sweeper", name="study", node=StudyConf, provider="phase8")


class _Sweeper(Sweeper):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config


class GridSweeper(_Sweeper):
    """`python run.py -m seed=1,2,3`: a job that fails is recorded, and the others go on."""

    def sweep(self, arguments: list[str]) -> Any:
        from phase8.sweep.jobs import run_grid

        return run_grid(self.hydra_context, self.task_function, self.config, arguments)


class StudySweeper(_Sweeper):
    """`python run.py -m sweep=frontier`: a study that can be stopped, resumed and shared."""

    def sweep(self, arguments: list[str]) -> Any:
        from phase8.sweep.jobs import run_study

        return run_study(self.hydra_context, self.task_function, self.config, arguments)
