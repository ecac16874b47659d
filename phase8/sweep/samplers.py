"""Samplers and pruners by name: what `hydra.sweeper.sampler` and `hydra.sweeper.pruner` accept.

A sampler is made anew for every trial, with a seed drawn from the study's and the trial's place: a study that was
killed and resumed suggests what it would have suggested uninterrupted, where a sampler seeded once would begin its
sequence again and repeat itself. Those that keep a state (CMA-ES, NSGA-II) keep it in the storage.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from phase8.errors import ConfigError

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

SAMPLERS = {
    "tpe": "TPESampler",
    "gp": "GPSampler",
    "nsgaii": "NSGAIISampler",
    "cmaes": "CmaEsSampler",
    "random": "RandomSampler",
}
PRUNERS = {
    "none": "NopPruner",
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "halving": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "tpe": {"multivariate": True, "constant_liar": True},
    "gp": {"deterministic_objective": True, "warn_independent_sampling": False},
    "nsgaii": {"population_size": 16},
    "cmaes": {"warn_independent_sampling": False},
}
"""TPE sees what other workers are still trying. NSGA-II has 50 in a generation of its own accord, more than a study."""


def seed_of(seed: int, place: int) -> int:
    """A seed of 32 bits for the trial that is sampled as number `place`."""
    return int(np.random.SeedSequence((seed, place)).generate_state(1)[0])


def make_sampler(
    name: str, options: Mapping[str, Any], *, seed: int, objectives: int = 1, constrained: bool = False
) -> BaseSampler:
    """Makes a sampler.

    Raises:
        ConfigError: no such sampler or option, or it cannot do what the study needs.
    """
    import optuna

    where = f"hydra.sweeper.sampler={name}"
    if name == "cmaes" and (objectives > 1 or constrained):
        what = "several objectives" if objectives > 1 else "constraints"
        raise ConfigError(f"CMA-ES knows no {what}", where=where, fix="take sampler=tpe, gp or nsgaii")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _make(optuna.samplers, SAMPLERS, name, {**DEFAULTS.get(name, {}), **options, "seed": seed}, where)


def make_pruner(name: str, options: Mapping[str, Any], *, objectives: int = 1) -> BasePruner:
    """Makes a pruner.

    Raises:
        ConfigError: no such pruner or option, or the study has several objectives.
    """
    import optuna

    where = f"hydra.sweeper.pruner={name}"
    if objectives > 1 and name != "none":
        raise ConfigError(
            "pruning by comparison needs one objective",
            where=where,
            fix="take pruner=none; preview_constraints still end hopeless trials",
        )
    return _make(optuna.pruners, PRUNERS, name, options, where)


def _make(module: Any, known: Mapping[str, str], name: str, options: Mapping[str, Any], where: str) -> Any:
    if name not in known:
        raise ConfigError(f"{name!r} is not known", where=where, fix=f"one of {', '.join(known)}")
    kind = getattr(module, known[name])
    accepted = set(inspect.signature(kind.__init__).parameters) - {"self"}
    if unknown := sorted(set(options) - accepted):
        raise ConfigError(
            f"{known[name]} has no option {unknown[0]!r}", where=where, fix=f"it has {', '.join(sorted(accepted))}"
        )
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{known[name]} refuses its options: {error}", where=where, fix="see Optuna's manual"
        ) from error
