"""The space of a study, in Hydra's override syntax.

    vptq.codebook_size=choice(128,256,512)            one of these
    vptq.codebook_size=tag(ordered, choice(128,256))  the same, and the sampler knows their order
    seedlm.bits=range(1,5)                            whole numbers 1 to 4 (the end is left out, as everywhere in Hydra)
    hyper.side=range(0.1,0.9,step=0.2)                0.1, 0.3, 0.5, 0.7
    optimizer.lr=tag(log, interval(0.1,10))           any number between, on a logarithmic scale
    hyper.grid=tag(log, int(interval(64,16384)))      whole numbers, both ends included
    seed=3                                            no sweep: every trial has it

An ordered choice is searched by its place in the list, so that samplers which need numbers (GP, CMA-ES) see a scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from phase8.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from optuna.distributions import BaseDistribution

LARGEST_CHOICE = 1000
FORMS = "choice(a,b), range(low,end), interval(low,high), tag(log, ...), int(interval(...)), tag(ordered, choice(...))"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One setting that is searched.

    `labels` holds, for a choice, the text of each value as it stands in an override; `ordered` says that the sampler
    sees their index in place of the text.
    """

    name: str
    distribution: BaseDistribution
    labels: tuple[str, ...] | None = None
    ordered: bool = False

    def override(self, value: Any) -> str:
        """`NAME=VALUE` for a value that the sampler suggested."""
        text = self.labels[value] if self.ordered and self.labels is not None else _text(value)
        return f"{self.name}={text}"

    @property
    def ends(self) -> list[Any]:
        """Values at the border of the space: every choice, or the lowest and the highest number."""
        if self.labels is not None:
            return list(range(len(self.labels))) if self.ordered else list(self.labels)
        return [self.distribution.low, self.distribution.high]  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Space:
    """What a study searches, and the overrides that all its trials share."""

    parameters: tuple[Parameter, ...]
    fixed: tuple[str, ...]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """By parameter, as Optuna's `ask` takes them."""
        return {parameter.name: parameter.distribution for parameter in self.parameters}

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """A trial's overrides: the shared ones, then the suggested values."""
        return [*self.fixed, *(p.override(values[p.name]) for p in self.parameters if p.name in values)]


def parse_space(params: Mapping[str, Any], arguments: Sequence[str], parser: Any) -> Space:
    """Reads a space from a configuration and the command line.

    Args:
        params: `{NAME: SWEEP}`, as in `hydra.sweeper.params`.
        arguments: overrides of the command line; one with a name of `params` replaces it.
        parser: Hydra's `OverridesParser`.

    Raises:
        ConfigError: a sweep cannot be read, is empty or has its ends the wrong way round.
    """
    words = {name: f"{name}={value}" for name, value in params.items()}
    fixed: dict[str, str] = {}
    parameters: dict[str, Parameter] = {}
    for override in _parse([*words.values(), *arguments], parser):
        key = override.get_key_element()
        name = override.key_or_group
        if override.is_sweep_override():
            fixed.pop(name, None)
            parameters[name] = _parameter(override)
        else:
            parameters.pop(name, None)
            fixed[name] = override.input_line or f"{key}={override.get_value_element_as_str()}"
    return Space(tuple(parameters.values()), tuple(fixed.values()))


def _parse(words: Sequence[str], parser: Any) -> list[Override]:
    from hydra.errors import HydraException

    try:
        return parser.parse_overrides(list(words))
    except (HydraException, ValueError) as error:
        raise ConfigError(
            f"cannot read the search space: {str(error).splitlines()[0]}",
            where="hydra.sweeper.params, or the command line",
            fix=f"the forms are {FORMS}",
        ) from error


def _parameter(override: Override) -> Parameter:
    from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, RangeSweep
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    name, sweep = override.get_key_element(), override.value()
    line = override.input_line or name

    def refuse(what: str) -> ConfigError:
        return ConfigError(f"{name}: {what}", where=line, fix=f"the forms are {FORMS}")

    tags = set(getattr(sweep, "tags", ()))
    if unknown := tags - {"log", "ordered"}:
        raise refuse(f"unknown tag {sorted(unknown)[0]!r}; known: log, ordered")
    if isinstance(sweep, ChoiceSweep | Glob) or override.is_choice_sweep():
        labels = tuple(dict.fromkeys(override.sweep_string_iterator()))
        if not labels or len(labels) > LARGEST_CHOICE:
            raise refuse(f"{len(labels)} values to choose from, needs 1 to {LARGEST_CHOICE}")
        if "log" in tags:
            raise refuse("a choice has no logarithmic scale")
        if "ordered" in tags and len(labels) > 1:
            return Parameter(name, IntDistribution(0, len(labels) - 1), labels, ordered=True)
        return Parameter(name, CategoricalDistribution(labels), labels)
    log = "log" in tags
    if isinstance(sweep, RangeSweep):
        values = list(sweep.range()) if sweep.step != 0 else []
        if not values:
            raise refuse(f"the range holds no value (from {sweep.start} to below {sweep.stop}, step {sweep.step})")
        step = abs(sweep.step)
        low, high = min(values), max(values)
        if log and step != 1:
            raise refuse("a logarithmic range has no step")
        if all(isinstance(value, int) for value in values):
            return Parameter(name, _checked(refuse, IntDistribution, low, high, log=log, step=1 if log else int(step)))
        exact = Decimal(str(low)) + (len(values) - 1) * Decimal(str(step))  # else 0.1 + 3 * 0.2 is not 0.7
        return Parameter(name, _checked(refuse, FloatDistribution, low, float(exact), step=float(step)))
    if isinstance(sweep, IntervalSweep):
        low, high = sweep.start, sweep.end
        if low is None or high is None or not low < high:
            raise refuse(f"the interval from {low} to {high} is empty")
        whole = isinstance(low, int) and isinstance(high, int)
        kind = IntDistribution if whole else FloatDistribution
        return Parameter(name, _checked(refuse, kind, low, high, log=log))
    raise refuse("not a form that can be searched")


def _checked(refuse: Any, kind: type, low: float, high: float, **options: Any) -> Any:
    try:
        return kind(low, high, **options)
    except ValueError as error:
        raise refuse(str(error).rstrip(".")) from error


def _text(value: Any) -> str:
    """A suggested value as override text; a float keeps all its digits."""
    return value if isinstance(value, str) else repr(value)
