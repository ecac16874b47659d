"""What the command line says of values that Hydra reads otherwise than they were meant."""

import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import run
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


@pytest.mark.parametrize(("ended", "when"), [(False, "before the run began"), (True, "after the run had written")])
def test_ctrl_c_says_what_it_interrupted(ended, when, monkeypatch, capsys):
    """The second Ctrl-C may come when the run's own handlers are gone and Python is still leaving."""

    def interrupted():
        if ended:
            run.ENDED.append(True)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "ENDED", [])
    monkeypatch.setattr(run, "main", interrupted)
    monkeypatch.setattr("sys.argv", ["run.py"])
    with pytest.raises(SystemExit) as left:
        run.program()
    assert left.value.code == 130 and when in capsys.readouterr().err


def test_runs_that_start_in_one_second_get_directories_of_their_own(tmp_path, monkeypatch):
    """As `conf/hydra` names them; Hydra's own `now` is the same for both."""
    monkeypatch.chdir(tmp_path)
    written = OmegaConf.load(Path(run.__file__).parent / "conf" / "hydra" / "default.yaml")
    OmegaConf.register_new_resolver("now", lambda pattern: "same", replace=True)
    try:
        first, second = (OmegaConf.create({"dir": OmegaConf.to_container(written)["run"]["dir"]}) for _ in range(2))
        found = [first.dir, second.dir, first.dir]
    finally:
        OmegaConf.clear_resolver("now")
    assert found == ["outputs/same/same", "outputs/same/same-2", "outputs/same/same"]
    assert all((tmp_path / name).is_dir() for name in found)
