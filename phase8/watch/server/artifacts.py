"""A run's artifacts for the page: the list, where the bytes of one are, and the model that it was made from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import phase8
from phase8.errors import ArtifactError
from phase8.watch.server.fold import BASELINE
from phase8.watch.server.library import Run
from phase8.watch.server.schema import ARTIFACT_NAME, ArtifactDetail, ArtifactLine, BesideFile, Node, TensorLine

EMBEDDED = "embedded:"


def lines(run: Run) -> list[ArtifactLine]:
    """Every artifact that the run's events name."""
    found = []
    for stage, attempts in run.fold.stages.items():
        for attempt in attempts:
            if stage != BASELINE and attempt.artifact and re.match(ARTIFACT_NAME, attempt.artifact):
                found.append(
                    ArtifactLine(
                        name=attempt.artifact,
                        stage=stage,
                        attempt=attempt.number,
                        passed=attempt.passed,
                        bytes=attempt.bytes,
                        ratio=attempt.ratio,
                        bits_per_weight=attempt.bits_per_weight,
                    )
                )
    return found


def detail(name: str, account: Mapping[str, Any]) -> ArtifactDetail:
    """What `python -m phase8 inspect --json` says, with its rows as a tree: artifact > section > kind of tensor."""
    sections: dict[str, list[Node]] = {}
    for section, kind, size in account["account"]:
        sections.setdefault(section, []).append(Node(name=kind, bytes=size))
    children = [
        Node(name=section, bytes=sum(kind.bytes for kind in kinds), children=kinds)
        for section, kinds in sections.items()
    ]
    return ArtifactDetail(
        name=name,
        stage=account["stage"],
        parameters=account["parameters"],
        bytes=account["bytes"],
        ratio=account["ratio"],
        ratio_vs_16bit=account["ratio"] / 2,
        bits_per_weight=account["bits_per_weight"],
        tree=Node(name=name, bytes=sum(child.bytes for child in children), children=children),
        beside=[BesideFile(name=file, bytes=size) for file, size in account["beside"].items()],
        tensors=[TensorLine(**tensor) for tensor in account["tensors"]],
    )


def original_of(path: Any) -> Path:
    """The directory of the model that a run compressed.

    Raises:
        ArtifactError: it is not on this machine.
    """
    if isinstance(path, str) and path.startswith(EMBEDDED):
        directory = Path(phase8.__file__).parent / "assets" / path.removeprefix(EMBEDDED)
    else:
        directory = Path(str(path))
    if not isinstance(path, str) or not (directory / "config.json").is_file():
        raise ArtifactError(
            "the original model is not on this machine",
            where=str(path),
            fix="talk to the artifact alone: python -m phase8 generate ARTIFACT TEXT",
        )
    return directory
