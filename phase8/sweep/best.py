"""The best settings of a study as a file, and a run that begins from it: `python run.py +from_study=studies/NAME`.

study: retention_floor
trial: 17
figures: {ratio: 12.7, retention: 0.976}
overrides: [vptq.codebook_size=512, hyper.enabled=false]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from phase8.errors import ConfigError
from phase8.files import read_bounded, write_atomic

BEST_FILE = "best.yaml"
MAX_BYTES = 1 << 20
NOT_EXPORTED = ("sweep", "logger.", "paths.", "hydra", "logger")
"""Of a trial's overrides: what belongs to the study, not to the model."""


def write_best(path: Path, study: str, trials: Sequence[Mapping[str, Any]]) -> Path:
    """Writes the best trial; for several objectives the first of the front, the others beside it under `front`.

    Args:
        trials: `{"trial", "figures", "overrides"}` each, the one to take first.
    """
    first, *others = [
        {**trial, "overrides": [text for text in trial["overrides"] if not _belongs_to_study(text)]} for trial in trials
    ]
    content = {"study": study, **first, **({"front": others} if others else {})}
    here = Path.cwd()
    place = path.parent.relative_to(here) if path.parent.is_relative_to(here) else path.parent
    head = f"# Written by a study. To run with these settings: python run.py +from_study={place}\n"
    return write_atomic(path, head + yaml.safe_dump(content, sort_keys=False, width=120))


def _belongs_to_study(override: str) -> bool:
    name = override.lstrip("+~").partition("=")[0]
    return any(name == word or name.startswith(word if word.endswith(".") else f"{word}.") for word in NOT_EXPORTED)


def expand_study(arguments: Sequence[str]) -> list[str]:
    """Puts a study's best overrides in the place of `+from_study=PATH`; what is given beside it on the command line
    stands.

    Args:
        arguments: as typed. PATH is the study's directory, or a YAML file as `write_best` writes; `PATH#TRIAL` takes
            another trial of the front.

    Raises:
        ConfigError: the file is missing or is not one.
    """
    found: list[str] = []
    given = {word.lstrip("+~").partition("=")[0] for word in arguments}
    for word in arguments:
        name, _, value = word.partition("=")
        if name.lstrip("+") != "from_study":
            found.append(word)
            continue
        found += [text for text in read_best(value) if text.lstrip("+~").partition("=")[0] not in given]
    return found


def read_best(place: str) -> list[str]:
    """The overrides in a study's best file.

    Raises:
        ConfigError: the file is missing or is not one.
    """
    name, _, number = place.partition("#")
    path = Path(name)
    path = path / BEST_FILE if path.is_dir() else path
    fix = "name the directory of a study that has finished trials, such as studies/retention_floor, or its best.yaml"
    try:
        content = yaml.safe_load(read_bounded(path, MAX_BYTES, error=ConfigError, fix=fix))
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {str(error).splitlines()[0]}", where=str(path), fix=fix) from error
    if isinstance(content, Mapping) and number:
        front = [content, *content.get("front", [])]
        content = next((t for t in front if isinstance(t, Mapping) and str(t.get("trial")) == number), None)
        if content is None:
            known = ", ".join(str(t.get("trial")) for t in front if isinstance(t, Mapping))
            raise ConfigError(f"trial {number} is not on the study's front", where=str(path), fix=f"there are {known}")
    overrides = content.get("overrides") if isinstance(content, Mapping) else None
    if not isinstance(overrides, list) or not all(isinstance(text, str) and "=" in text for text in overrides):
        raise ConfigError("no list of overrides is in it", where=str(path), fix=fix)
    return overrides
