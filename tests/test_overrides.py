"""What the command line says of values that Hydra reads otherwise than they were meant."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from phase8.errors import ConfigError
from run import check_overrides


@pytest.mark.parametrize(
    "value", ["/data/my model (v1)", "a[1]", "it's (x)", 'say "hi" (x)', "models/a,b", "a, b\\c(d)", "(d)\\"]
)
def test_the_advice_for_a_path_is_what_mends_it(value):
    with pytest.raises(ConfigError) as found:
        check_overrides([f"model.path={value}"])
    advice = next(word for word in shlex.split(found.value.fix) if word.startswith("model.path="))
    check_overrides([advice])
    (override,) = OverridesParser.create().parse_overrides([advice])
    assert override.value() == value


def test_several_values_are_fine_where_several_runs_are_asked_for():
    check_overrides(["-m", "seedlm.bits=3,4"])
    with pytest.raises(ConfigError, match="several values"):
        check_overrides(["seedlm.bits=3,4"])
