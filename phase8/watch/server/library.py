"""All runs below the watched directories, each known by a number that says nothing of its path.

A run is a directory with an event log, or one that a job was started in. Its number is the first 16 hex digits of the
SHA-256 of the path: what comes from a page is looked up here and never becomes a path.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from phase8.errors import ArtifactError, OutputError, Phase8Error
from phase8.events import is_live
from phase8.files import read_bounded, write_atomic
from phase8.watch.server.fold import Fold, mapping, text
from phase8.watch.server.jobs import Job, Jobs, console_end
from phase8.watch.server.schema import ErrorText, RunState, RunSummary
from phase8.watch.server.tail import Record, Tail

LOG_FILE = "events.jsonl"
CONTROL_FILE = "control.json"
DEEPEST = 4
"""Directories between a watched one and a run's: outputs/DATE/TIME, multirun/DATE/TIME/NUMBER."""
NOT_RUNS = {"artifacts", "state", "wandb", "cache"}
SMALL_FILE = 1 << 20
RESULT_FILE = 64 << 20
ENDED: frozenset[RunState] = frozenset({"complete", "aborted", "interrupted", "failed", "lost"})
_SECRET = ("token", "secret", "password", "api_key", "apikey", "credential")


def run_id(directory: Path) -> str:
    """The number of a run's directory."""
    return hashlib.sha256(os.path.abspath(directory).encode()).hexdigest()[:16]


@dataclass
class Run:
    """A run that is known."""

    id: str
    directory: Path
    name: str
    study: str | None = None
    source: Literal["command line", "dashboard", "replay"] = "command line"
    job: Job | None = None
    fold: Fold = field(default_factory=Fold)
    tail: Tail = field(init=False)
    live: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while the tail is read."""
    wandb_url: str | None = None
    replay_of: str | None = None
    speed: float | None = None

    def __post_init__(self) -> None:
        self.tail = Tail(self.directory / LOG_FILE)

    def advance(self) -> tuple[list[Record], bool]:
        """Reads what was added to the log; also says whether the log began anew."""
        with self.lock:
            replaced = self.tail.replaced
            records = self.tail.read()
            anew = self.tail.replaced != replaced
            if anew:
                self.fold = Fold()
            for record in records:
                self.fold.feed(record)
            return records, anew

    def wish(self) -> str:
        """What the control file asks for: `run`, `pause` or `abort`."""
        try:
            raw = read_bounded(self.directory / CONTROL_FILE, SMALL_FILE, error=ArtifactError)
            state = mapping(json.loads(raw)).get("state")
        except (Phase8Error, ValueError, RecursionError):
            return "run"
        return state if state in ("pause", "abort") else "run"

    def ask(self, state: Literal["run", "pause", "abort"], reason: str = "") -> None:
        """Writes the control file, which the run looks at between steps.

        Raises:
            OutputError: it cannot be written.
        """
        write_atomic(self.directory / CONTROL_FILE, json.dumps({"state": state, "reason": reason}) + "\n")

    def refresh(self) -> None:
        """Looks whether a process writes the log; a job that has not ended counts, it may still be loading."""
        self.live = (self.job is not None and self.job.ended is None) or is_live(self.directory)
        if self.wandb_url is None:
            self.wandb_url = self._wandb_url()

    def _wandb_url(self) -> str | None:
        """The run's page at W&B, where it is online."""
        try:
            raw = read_bounded(self.directory / "wandb" / "url.txt", 2048, error=ArtifactError)
            url = raw.decode().strip()
        except (Phase8Error, UnicodeDecodeError):
            return None
        return url if url.startswith("https://") and not any(map(str.isspace, url)) else None

    def state(self) -> RunState:
        """Where the run is."""
        fold = self.fold
        if fold.result is not None:
            if fold.result.get("interrupted") is not True:
                return "complete"
            return "aborted" if fold.aborted is not None else "interrupted"
        if fold.failed is not None:
            return "failed"
        if not self.live:
            return "failed" if self.job is not None and self.job.exit_code else "lost"
        if fold.started is None:
            return "starting"
        wish = self.wish()
        if wish == "abort":
            return "aborting"
        if fold.paused is not None:
            return "paused"
        return "pausing" if wish == "pause" else "running"

    def summary(self) -> RunSummary:
        """The run in a line of the list."""
        state = self.state()
        summary = RunSummary(
            run=self.id,
            name=self.name,
            study=self.study,
            source=self.source,
            state=state,
            steerable=state in ("starting", "running", "pausing", "paused"),
            wandb_url=self.wandb_url,
            replay_of=self.replay_of,
            speed=self.speed,
        )
        self.fold.fill(summary, state in ENDED)
        if state == "failed" and summary.error is None:
            last = console_end(self.directory) or "the process ended without a word"
            summary.error = ErrorText(what=last, where=self.name, fix="run it in a terminal to see more")
        return summary

    # Files beside the log

    def settings(self) -> dict[str, Any]:
        """The run's settings by dotted name, without what looks like a secret; empty where there are none."""
        try:
            raw = read_bounded(self.directory / "config.yaml", SMALL_FILE, error=ArtifactError)
            loaded = yaml.safe_load(raw)
        except (Phase8Error, yaml.YAMLError, RecursionError):
            return {}
        found = dict(_flat(mapping(loaded)))
        return {name: value for name, value in found.items() if not any(word in name.lower() for word in _SECRET)}

    def result(self) -> dict[str, Any] | None:
        """The content of `result.json`, or None where there is none."""
        try:
            raw = read_bounded(self.directory / "result.json", RESULT_FILE, error=ArtifactError)
            loaded = json.loads(raw)
        except (Phase8Error, ValueError, RecursionError):
            return None
        return loaded if isinstance(loaded, dict) else None

    def records(self) -> list[Record]:
        """Every event up to where the tail has come."""
        with self.lock:
            end, again = self.tail.seq, Tail(self.tail.path)
        records = again.read(10_000_000)
        return [record for record in records if record["seq"] < end]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class Library:
    """The runs below some directories, and the jobs.

    Args:
        roots: directories to look in, usually `outputs` and `multirun`.
        jobs: runs started from the page.
    """

    def __init__(self, roots: Iterable[Path], jobs: Jobs) -> None:
        self.roots = [Path(os.path.abspath(root)) for root in roots]
        self.jobs = jobs
        self.runs: dict[str, Run] = {}

    def scan(self) -> list[Run]:
        """Finds runs that are new, and returns them with their events read."""
        fresh, known = [], {str(run.directory) for run in self.runs.values()}
        for root in self.roots:
            for directory in _directories(root, DEEPEST, known):
                fresh.append(self.add(directory))
        for run in list(self.runs.values()):
            if run.source == "command line" and not run.directory.is_dir():
                del self.runs[run.id]
        for job in self.jobs.all():
            run = self.runs.get(job.run)
            if run is None and any(Path(job.directory).is_relative_to(root) for root in self.roots):
                if Path(job.directory).is_dir():
                    run = self.add(Path(job.directory))
                    fresh.append(run)
            if run is not None:
                run.job, run.source = job, "dashboard"
        for run in fresh:
            run.advance()
            run.refresh()
        return fresh

    def add(self, directory: Path) -> Run:
        """Takes in one directory."""
        root = next(root for root in self.roots if directory.is_relative_to(root))
        study = None
        if (directory.parent / "multirun.yaml").is_file() or (root.name == "studies" and directory.parent != root):
            study = str(directory.parent.relative_to(root))
        name = str(directory.relative_to(root)) if directory != root else root.name
        run = Run(run_id(directory), directory, text(name, 300), study)
        self.runs[run.id] = run
        return run

    def find(self, query: str) -> list[Run]:
        """Runs that hold every word of the query in name, model, variant, level, study or settings; newest first."""
        words = query.lower().split()
        chosen = []
        for run in self.runs.values():
            fold = run.fold
            about = f"{run.name} {run.study or ''} {fold.model} {fold.compressor} {run.source} {run.state()}"
            about += f" {mapping(fold.result).get('compression_level', '')}"
            if words and any("=" in word or "." in word for word in words):
                about += " " + " ".join(f"{name}={value}" for name, value in run.settings().items())
            if all(word in about.lower() for word in words):
                chosen.append(run)
        return sorted(chosen, key=_age, reverse=True)


def _age(run: Run) -> float:
    return run.fold.started or (run.job.started if run.job else 0.0)


def _directories(root: Path, depth: int, known: set[str]) -> Iterable[Path]:
    """Directories with an event log that are not known yet; hidden ones, links, and what is in a run are left out."""
    try:
        with os.scandir(root) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return
    if any(entry.name == LOG_FILE for entry in listed):
        if str(root) not in known:
            yield root
        return
    if depth:
        for entry in listed:
            plain = not entry.name.startswith(".") and entry.name not in NOT_RUNS and entry.path not in known
            if plain and entry.is_dir(follow_symlinks=False):
                yield from _directories(Path(entry.path), depth - 1, known)


def require_directory(path: Path) -> Path:
    """Makes a directory that is watched.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"cannot make it: {error.strerror}"
        raise OutputError(what, where=str(path), fix="name another with --runs") from error
    return path
