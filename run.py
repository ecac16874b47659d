"""The command line: `python run.py compressor=max_compression`. See `python run.py --help`."""

from __future__ import annotations

import os
import re
import sys
from difflib import get_close_matches
from pathlib import Path

# Two threads that wait actively for each other on a busy two-core machine are many times slower than sleeping ones.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from phase8.config import CompressionConfig
from phase8.errors import ConfigError, Phase8Error
from phase8.files import fresh_directory, make_directory
from phase8.output import run_program
from phase8.sweep.best import expand_study
from phase8.sweep.objective import figures, in_preview, inside_job, place_in_sweep
from phase8.sweep.watch import TrialWatch

OUR_ERROR, INTERRUPTED = 2, 130
DETAILS = "logger.verbose=true"
"""What `-v` and `--verbose` stand for."""
ENDED: list[bool] = []
"""Not empty once a run of this process has written its result: what is interrupted from then on is no run. A plain
list, since `main` is sent to the workers of a multirun with all that it names here."""
FREE = ("benchmarks.experts.",)
"""Below these a name may be new."""


def check_overrides(arguments: list[str]) -> None:
    """Finds misspelt settings before Hydra composes anything, to name the one that was probably meant.

    Raises:
        ConfigError: an override names no setting and no group.
    """
    words = [word for word in arguments if "=" in word and not word.startswith("-")]
    try:
        overrides = OverridesParser.create().parse_overrides(words)
    except HydraException as error:
        raise ConfigError(
            f"cannot read an override: {str(error).splitlines()[0]}",
            where=" ".join(words),
            fix=_quoted(words),
        ) from error
    groups = (
        "compressor", "model", "benchmarks", "gates", "optimizer", "training", "trainer", "logger", "paths",
        "experiment", "sweep",
    )  # fmt: skip
    known = [*_names(CompressionConfig().to_dict()), *groups]
    many = any(word in ("-m", "--multirun") or word.startswith("sweep=") for word in arguments)
    for override in overrides:
        if override.is_sweep_override() and not many:
            raise ConfigError(
                "several values for one setting, and this is one run",
                where=f"command line: {override.input_line}",
                fix=f"{_shown(override.input_line)} if it is one value; add -m for a run of each",
            )
        name = override.key_or_group.split("@")[0]
        if name in known or name.startswith(FREE) or name.split(".")[0].split("/")[0] == "hydra":
            continue
        near = get_close_matches(name, known, n=3, cutoff=0.5)
        raise ConfigError(
            f"there is no setting or group called {name!r}",
            where=f"command line: {override.input_line}",
            fix=f"did you mean {' or '.join(near)}?" if near else "`python run.py --help` lists all",
        )


def _quoted(words: list[str]) -> str:
    """How to write the first override that cannot be read: its value in quotes of its own, inside the shell's."""
    for word in words:
        value = word.partition("=")[2]
        try:
            OverridesParser.create().parse_overrides([word])
        except HydraException:
            if value and not value.startswith(("'", '"', "[", "{")):
                return f"a value with spaces, brackets or commas needs quotes inside those of the shell: {_shown(word)}"
    return "write SETTING=VALUE, and put it in quotes for the shell: 'protect=[\"*\"]'"


def _shown(word: str) -> str:
    """An override with its value in quotes, ready to be typed into a shell."""
    name, _, value = word.partition("=")
    # Hydra reads a backslash as it is, but before a quote.
    inner = re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + ('\\"' if found[2] else ""), value)
    return "'" + f'{name}="{inner}"'.replace("'", "'\\''") + "'"


def check_output(arguments: list[str]) -> None:
    """Makes the directory that runs go to, before Hydra tries and ends in a traceback.

    Raises:
        OutputError: it cannot be made or written to.
    """
    if any(word.startswith("-") and not word.startswith(("-m", "--multirun")) for word in arguments):
        return  # help and the like run nothing
    chosen = [word.partition("=")[2] for word in arguments if word.startswith("hydra.run.dir=")]
    fixed = (chosen[-1] if chosen else "outputs").partition("${")[0]
    make_directory(Path(fixed or "."))


def _names(settings: dict, prefix: str = "") -> list[str]:
    names = []
    for key, value in settings.items():
        names.append(f"{prefix}{key}")
        if isinstance(value, dict):
            names.extend(_names(value, f"{prefix}{key}."))
    return names


OmegaConf.register_new_resolver("fresh", lambda path: str(fresh_directory(path)), use_cache=True, replace=True)
"""`${fresh:DIR}` in conf/hydra: runs that start in the same second get directories of their own."""


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(composed: DictConfig) -> dict[str, float] | None:
    """Runs the pipeline once on the composed configuration.

    Returns:
        The run's figures (`phase8/sweep/objective.py` lists them): the objectives and constraints of a study.
    """
    try:
        try:
            settings = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            name, what = error.full_key or "SETTING", str(error).splitlines()[0]
            raise ConfigError(what, where=f"{name} (command line or conf/)", fix=f"write {name}=VALUE") from error
        config = CompressionConfig.from_dict(settings)
        if inside_job():
            config = place_in_sweep(config)
        from phase8.api import run_configured
        from phase8.watch.server.beside import dashboard_beside

        with dashboard_beside(config.dashboard and not inside_job(), config.paths.output_dir):
            watch = TrialWatch(config)
            result = run_configured(config, listeners=[watch] if inside_job() else [], report=not in_preview())
            ENDED.append(True)
    except Phase8Error as error:
        if inside_job():
            raise  # one job of several: the sweeper records it, and the others go on
        fail(error)
    if inside_job():
        watch.end(result)
    elif result["interrupted"]:
        sys.exit(INTERRUPTED)
    return figures(result)


def resumed(arguments: list[str]) -> bool:
    """Goes on with a run where `resume=RUN_DIR` is given; Hydra has no part in it, for the run keeps its settings. It
    may train longer than it was to: `training.steps=N`.

    Raises:
        Phase8Error: there is nothing to go on with, or something else is given too.
    """
    asked = [word for word in arguments if word.startswith("resume=")]
    if not asked:
        return False
    verbose = DETAILS in arguments
    others = [word for word in arguments if word not in (DETAILS, asked[0])]
    longer = [word for word in others if re.fullmatch(r"training\.steps=[0-9]{1,9}", word)]
    if others != longer[:1]:
        raise ConfigError(
            "a resumed run keeps its settings",
            where=" ".join(others),
            fix=f"give {asked[0]} alone, or with a greater training.steps=N, or start a new run",
        )
    from phase8.api import resume

    steps = int(longer[0].removeprefix("training.steps=")) if longer else None
    result = resume(asked[0].removeprefix("resume="), verbose=verbose, training_steps=steps)
    ENDED.append(True)
    if result["interrupted"]:
        sys.exit(INTERRUPTED)
    return True


def fail(error: Phase8Error) -> None:
    """Prints an error for a person and ends the program."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(OUR_ERROR)


def program() -> None:
    """The whole program, whose arguments are those of the command line."""
    try:
        sys.argv[1:] = [DETAILS if word in ("-v", "--verbose") else word for word in sys.argv[1:]]
        if not resumed(sys.argv[1:]):
            sys.argv[1:] = expand_study(sys.argv[1:])
            check_overrides(sys.argv[1:])
            check_output(sys.argv[1:])
            main()
    except Phase8Error as problem:
        fail(problem)
    except KeyboardInterrupt:
        when = "after the run had written its result" if ENDED else "before the run began"
        print(f"interrupted {when}", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    run_program(program)
