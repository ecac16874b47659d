"""Checks before the first trial: that every value of a space can be composed and makes sense to the program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from phase8.errors import ConfigError, Phase8Error
from phase8.sweep.samplers import seed_of
from phase8.sweep.space import Parameter, Space
from phase8.sweep.trial import changed

OTHERS = 8
"""With so many random values of the other parameters a value is tried before it counts as impossible."""


def compose(context: Any, config: Any, overrides: Sequence[str]) -> Any:
    """The configuration of one job.

    Raises:
        ConfigError: an override names nothing, or its value does not fit.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        return context.config_loader.load_sweep_config(config, list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        what = " ".join(str(error).split("\n")[:2]).strip()
        named = next((o for o in overrides if o.lstrip("+~").split("=")[0] in what), "")
        name = named.lstrip("+~").split("=")[0]
        near = get_close_matches(name, _names(config), n=3, cutoff=0.5) if name else []
        raise ConfigError(
            f"there is no such setting, or its value does not fit: {what}",
            where=named or "the search space",
            fix=f"did you mean {' or '.join(near)}?" if near else "`--cfg job` lists all settings",
        ) from error


def _names(config: Any) -> list[str]:
    from omegaconf import DictConfig

    names: list[str] = []

    def walk(node: DictConfig, prefix: str) -> None:
        for key in node:
            if prefix or key != "hydra":
                names.append(f"{prefix}{key}")
                child = node._get_node(key)
                if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():
                    walk(child, f"{prefix}{key}.")

    walk(config, "")
    return names


def check_combinations(context: Any, config: Any, jobs: Sequence[Sequence[str]]) -> None:
    """Composes every job of a plain multirun.

    Raises:
        ConfigError: one cannot be composed.
    """
    for overrides in jobs:
        compose(context, config, overrides)


def check_space(context: Any, config: Any, space: Space, check: str | None, *, seed: int) -> None:
    """Tries every value at the border of a space, first with the other settings as they are, then with random ones.

    A value that is refused with all of them is impossible; one that goes with some is left to the search.

    Args:
        check: dotted path of a function that takes a composed configuration and raises `Phase8Error`; None: composing
            is all.

    Raises:
        ConfigError: names the value, and why it is refused.
    """
    from hydra.utils import get_method

    if not space.parameters:
        raise ConfigError(
            "nothing is searched",
            where="hydra.sweeper.params",
            fix="give a parameter a range: 'vptq.codebook_size=choice(128,256)'; docs/cluster.md, Search space",
        )
    accept: Callable[[Any], None] = get_method(check) if check else lambda composed: None
    for parameter in space.parameters:
        for value in parameter.ends:
            _check_value(context, config, space, accept, parameter, value, seed)


def check_preview(context: Any, config: Any, space: Space, preview: Mapping[str, Any], check: str | None) -> None:
    """Tries the settings of a preview (`StudySettings.preview`) beside those that all trials share.

    Raises:
        ConfigError: one names nothing, or its value is refused.
    """
    from hydra.utils import get_method

    if preview:
        composed = changed(compose(context, config, space.fixed), preview)
        if check:
            get_method(check)(composed)


def _check_value(
    context: Any, config: Any, space: Space, accept: Callable[[Any], None], parameter: Parameter, value: Any, seed: int
) -> None:
    refusal: Phase8Error | None = None
    for number in range(OTHERS + 1):
        others = {} if number == 0 else _values(space, seed_of(seed, number))
        try:
            accept(compose(context, config, space.overrides({**others, parameter.name: value})))
            return
        except Phase8Error as error:
            refusal = refusal or error
    assert refusal is not None
    raise ConfigError(
        f"{parameter.override(value)} is refused, whatever the other values: {refusal.what}",
        where="the search space (hydra.sweeper.params, or the command line)",
        fix=refusal.fix,
    ) from refusal


def _values(space: Space, seed: int) -> dict[str, Any]:
    """Random values of all parameters, as a sampler would draw them."""
    import optuna

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return study.ask(space.distributions).params
