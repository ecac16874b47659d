"""What may be started from the page: variants, experiments, models and settings, and how they become a command.

Only numbers, switches and choices can be set; whatever names a file, a directory, a device or a program cannot. A start
is composed and checked here exactly as `run.py` does it, before any process exists.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

from phase8.config import CompressionConfig
from phase8.errors import ConfigError
from phase8.watch.server.schema import Setting, Start, Startable, Value
from phase8.watch.server.texts import field_texts

EMBEDDED = "embedded:reference"
CLOSED = {"variant", "device", "devices", "dashboard", "resume", "paths", "model", "benchmarks.run_generated_code"}
"""Not to be set from a page, with all that lies below."""
BOUNDS = {"max_retries": (0.0, 5.0), "max_accuracy_loss": (0.0, 0.99), "gates.min_informative": (1.0, 7.0)}
FRACTIONS = ("gates.core.", "gates.expert.", "gates.rule.", "gates.final_", "gates.edge_", "gates.abort_")
_HYDRA = threading.Lock()
"""Hydra keeps its state in the process."""
_TYPES: dict[type, Any] = {bool: "bool", int: "int", float: "float"}


@cache
def settings() -> dict[str, Setting]:
    """Every setting that a start accepts, by dotted name."""
    return {setting.name: setting for setting in _settings(CompressionConfig(), "")}


def _settings(config: Any, prefix: str) -> Iterator[Setting]:
    hints, help_ = get_type_hints(type(config)), field_texts(type(config))
    for item in fields(config):
        name = f"{prefix}{item.name.rstrip('_')}"
        value = getattr(config, item.name)
        if name in CLOSED:
            continue
        if is_dataclass(value):
            yield from _settings(value, f"{name}.")
            continue
        kinds = [kind for kind in get_args(hints[item.name]) or (hints[item.name],) if kind is not type(None)]
        nullable = type(None) in get_args(hints[item.name])
        kind = kinds[0] if len(kinds) == 1 else None
        choices = [str(member.value) for member in kind] if isinstance(kind, type) and issubclass(kind, Enum) else None
        if choices is None and kind not in _TYPES:
            continue
        low, high = BOUNDS.get(name, (0.0, 1.0) if name.startswith(FRACTIONS) else (None, None))
        yield Setting(
            name=name,
            type="choice" if choices else _TYPES[kind],
            default=value.value if isinstance(value, Enum) else value,
            choices=choices,
            low=low,
            high=high,
            nullable=nullable,
            help=help_.get(item.name, ""),
            group=prefix.partition(".")[0] or "run",
        )


@dataclass(frozen=True)
class Project:
    """The directory with `run.py` and `conf/` that runs are started in.

    Args:
        directory: where they should be.
        models: further directories of models that may be compressed.
    """

    directory: Path
    models: tuple[str, ...] = ()

    @property
    def available(self) -> bool:
        """Whether runs can be started here."""
        return (self.directory / "run.py").is_file() and (self.directory / "conf" / "config.yaml").is_file()

    def choices(self, group: str) -> list[str]:
        """The choices of a group of `conf/`, `default` first."""
        names = sorted(path.stem for path in (self.directory / "conf" / group).glob("*.yaml"))
        return sorted(names, key=lambda name: name != "default")

    def startable(self, start: Start) -> Startable:
        """What the page offers; where nothing is set, a setting has the value that the start's variant and experiment
        give it.

        Raises:
            ConfigError: there is no such variant or experiment.
        """
        offered = list(settings().values())
        if self.available:
            if problems := self._unknown(start):
                raise ConfigError("\n".join(problems), where="settings", fix="leave it out to see which there are")
            offered = list(_settings(self._compose([*_words(start), "paths.output_dir=outputs/run"]), ""))
        return Startable(
            available=self.available,
            variants=self.choices("compressor") if self.available else [],
            models=[EMBEDDED, *self.models],
            experiments=self.choices("experiment") if self.available else [],
            settings=offered,
        )

    def overrides(self, start: Start, run_dir: Path) -> list[str]:
        """The arguments of `run.py`, once all are known to be good.

        Raises:
            ConfigError: names every choice and setting that is not, or says that nothing can be started here.
        """
        if not self.available:
            raise ConfigError(
                "no run can be started: there is no run.py here",
                where=str(self.directory),
                fix="start the dashboard in a checkout of the project",
            )
        problems = self._unknown(start)
        problems += [problem for name, value in start.settings.items() if (problem := _problem(name, value))]
        if problems:
            raise ConfigError("\n".join(problems), where="start", fix="GET /api/phase8/settings lists what is accepted")
        words = _words(start)
        if start.model != EMBEDDED:
            words += ["model=local", f"model.path={_quoted(start.model)}"]
        words += [f"{name}={_word(value)}" for name, value in start.settings.items()]
        self._compose([*words, f"paths.output_dir={_quoted(str(run_dir))}"])
        return [*words, f"hydra.run.dir={_quoted(str(run_dir))}"]

    def _unknown(self, start: Start) -> list[str]:
        return [
            f"{what}: {name!r} is not one of {', '.join(filter(None, known))}"
            for what, name, known in (
                ("variant", start.variant, self.choices("compressor")),
                ("model", start.model, [EMBEDDED, *self.models]),
                ("experiment", start.experiment or "", ["", *self.choices("experiment")]),
            )
            if name not in known
        ]

    def _compose(self, words: Sequence[str]) -> CompressionConfig:
        from hydra import compose, initialize_config_dir
        from hydra.core.global_hydra import GlobalHydra
        from hydra.errors import HydraException
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        with _HYDRA:
            try:
                GlobalHydra.instance().clear()
                with initialize_config_dir(str((self.directory / "conf").absolute()), version_base="1.3"):
                    composed = OmegaConf.to_container(compose("config", overrides=list(words)), resolve=True)
            except (HydraException, OmegaConfBaseException) as error:
                what = str(error).splitlines()[0]
                raise ConfigError(what, where="start", fix="change or leave out what it names") from error
        assert isinstance(composed, Mapping)
        return CompressionConfig.from_dict(composed)

    def command(self, overrides: Sequence[str]) -> list[str]:
        """The whole command line."""
        return [sys.executable, "run.py", *overrides]


def _words(start: Start) -> list[str]:
    return [f"compressor={start.variant}", *([f"experiment={start.experiment}"] if start.experiment else [])]


def _problem(name: str, value: Value) -> str | None:
    """What is wrong with a setting's value, apart from what the settings' own checks find."""
    setting = settings().get(name)
    if setting is None:
        near = get_close_matches(name, settings(), n=1, cutoff=0.6)
        return f"{name[:80]}: there is no such setting to be set here" + (f"; did you mean {near[0]}?" if near else "")
    if value is None:
        return None if setting.nullable else f"{name}: needs a value"
    fits = {
        "bool": isinstance(value, bool),
        "int": isinstance(value, int) and not isinstance(value, bool),
        "float": isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300,
        "choice": isinstance(value, str) and value in (setting.choices or ()),
    }
    if fits[setting.type]:
        return None
    needs = f"one of {', '.join(setting.choices)}" if setting.choices else f"a value of type {setting.type}"
    return f"{name}: needs {needs}, not {str(value)[:80]!r}"


def _word(value: Value) -> str:
    """A value as the command line takes it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else f"{value!r}" if isinstance(value, float) else str(value)


def _quoted(text: str) -> str:
    """Text as a quoted value of an override."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
