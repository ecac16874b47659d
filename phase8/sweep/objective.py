"""A run's figures: what `main` returns to whoever searches, and what a study's objectives and constraints name.

They are those of the *last attempt*, whether its gate passed or not: a search learns more from "12.3x with 91 %" than
from "fell back". What the run kept is beside them.

    ratio                 FP32 bytes / bytes on disk
    bytes                 bytes on disk
    bits_per_weight
    retention             mean core retention, score / baseline
    retention_corrected   the same, (score - chance) / (baseline - chance)
    bits_per_byte         of the held-out text
    passed                1 where the last gate passed
    kept_ratio, kept_retention, kept_retention_corrected     of the artifact that passed last; 1 where none did
    success               1 where all seven criteria hold
    seconds               the whole run's time
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PREVIEW = "preview"
"""Directory of a trial's preview, inside the trial's own."""

_inside = _preview = False


@contextmanager
def job(*, preview: bool = False) -> Iterator[None]:
    """Marks the block as one job of several: its errors are for the sweeper to record.

    Args:
        preview: whether it is a trial's cheap run, after which the whole one may follow.
    """
    global _inside, _preview
    before = _inside, _preview
    _inside, _preview = True, preview
    try:
        yield
    finally:
        _inside, _preview = before


def inside_job() -> bool:
    """Whether this process is running one job of a multirun or study."""
    return _inside


def in_preview() -> bool:
    """Whether it is a trial's cheap run, of which nobody reads a report."""
    return _preview


def place_in_sweep(config: Any) -> Any:
    """The settings of a job of several: it shares finished steps, and stands in the group of its study or multirun."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    study = hydra.sweeper.get("study")
    changes: dict[str, Any] = {}
    if config.paths.reuse is None:
        changes["paths.reuse"] = True
    if config.logger.group is None:
        changes["logger.group"] = str(study or Path(str(hydra.sweep.dir)).name)
    if config.logger.job_type is None:
        changes["logger.job_type"] = PREVIEW if _preview else "trial" if study else "job"
    if _preview:
        changes["paths.output_dir"] = str(Path(config.paths.output_dir) / PREVIEW)
    return config.changed(changes)


def figures(result: Mapping[str, Any]) -> dict[str, float]:
    """The figures in the content of a `result.json`; those that were not measured are left out."""
    metrics = result["metrics"]
    found: dict[str, Any] = {
        "kept_ratio": metrics["total_compression_ratio"],
        "kept_retention": metrics.get("core_retention"),
        "kept_retention_corrected": metrics.get("core_retention_corrected"),
        "success": result["success"],
        "seconds": result["seconds"],
    }
    stages = list(result["stages"].values())
    if stages:
        last = stages[-1]["attempts"][-1]
        found |= {
            "ratio": last["ratio"],
            "bytes": last["bytes"],
            "bits_per_weight": last["bits_per_weight"],
            "retention": last.get("core_retention"),
            "retention_corrected": last.get("core_retention_corrected"),
            "bits_per_byte": last.get("bits_per_byte"),
            "passed": last["passed"] is True,
        }
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


def check_settings(composed: Any) -> None:
    """Checks a composed configuration as `run.py` would before a run.

    Raises:
        ConfigError: a setting makes no sense.
    """
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    from phase8.config import CompressionConfig
    from phase8.errors import ConfigError

    with open_dict(composed):
        composed.pop("hydra", None)
        if "paths" in composed:
            composed.paths.output_dir = "outputs"  # known only inside a job
    try:
        settings = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        name = error.full_key or "SETTING"
        raise ConfigError(str(error).splitlines()[0], where=name, fix=f"write {name}=VALUE") from error
    CompressionConfig.from_dict(settings)  # type: ignore[arg-type]
