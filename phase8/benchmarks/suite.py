"""The benchmarks of a run: which they are, what they stand for, and their items, loaded once.

The embedded suite is a directory with one lm-eval YAML file per task, their data, and `suite.json`, which says of each
task its role, the metric that counts, the score of a guess, and the benchmark that it stands for. The published
benchmarks are loaded by `real.py`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phase8.benchmarks.experts import check_experts, expert_map, experts_for, stands_for
from phase8.benchmarks.perplexity import held_out_documents
from phase8.benchmarks.sandbox import shared_sandbox
from phase8.errors import BenchmarkError
from phase8.files import read_bounded

if TYPE_CHECKING:
    from phase8.benchmarks.lm import PlanCache

HERE = Path(__file__).parent
MINI = HERE / "mini"
ROLES = ("core", "expert", "integration")
EDGE_OF_CHAOS = "edge of chaos"
EUDAIMONIA = "eudaimonia"
RULES = ("autonomy", "honesty", "harm", "dignity")
MAX_SUITE_BYTES = 1 << 20
SCORING_CODE = (
    "lm.py", "packing.py", "scoring.py", "generation.py", "evaluate.py", "perplexity.py", "code_eval.py", "sandbox.py",
    "sandbox_server.py", "walls/kernel.py", "walls/landlock.py", "walls/namespaces.py", "walls/seccomp.py",
)  # fmt: skip
"""A change in these may change a score, so it parts a cached baseline from a new one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One benchmark."""

    name: str
    role: str
    """`core`, `expert` or `integration`."""
    metric: str
    """lm-eval's key of the score that counts: metric and filter, as in `acc,none`."""
    chance: float
    """What a guess scores."""
    stands_for: str
    """The published benchmark after which it is modelled."""
    experts: tuple[str, ...]
    """The experts that it judges, by the table in `experts.py`."""
    parts: tuple[str, ...] = ()
    """lm-eval's tasks whose items together are this benchmark; empty for the one of its own name."""
    beside: tuple[str, ...] = ()
    """lm-eval's tasks on the same items whose scores are reported beside it."""

    @property
    def runs(self) -> tuple[str, ...]:
        return self.parts or (self.name,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """The benchmarks of a run, loaded."""

    content: str
    """Hash of everything that the tasks are made of: settings and items."""
    tasks: tuple[Task, ...]
    loaded: dict[str, Any]
    """lm-eval's task objects by name; used again for every evaluation."""
    experts: tuple[str, ...]
    missing: tuple[str, ...]
    """Benchmarks that are called for and not measured, as `expert: benchmark` or `core: benchmark`, with the reason
    where it is not that the suite lacks them."""
    samples: int | None
    """Items per benchmark; None takes all."""
    text: tuple[str, ...]
    """Documents whose bits per byte are measured."""
    cache: PlanCache = field(repr=False)
    edge_pool: str = ""
    """Questions of edge of chaos built for this model (JSON lines); empty where the suite's own are asked."""
    edge_probes: tuple[dict[str, Any], ...] = ()
    """Questions that calibrated `edge_pool` and are not in it; see `probes.py`. They change no score."""
    notes: tuple[str, ...] = ()
    """What a user should know before anything is computed."""


def load_suite(
    experts: Sequence[str] = (),
    *,
    samples: int | None = None,
    skip_expert_benchmarks: bool = False,
    text: str | None = None,
    directory: Path = MINI,
    data_dir: str | None = None,
    overrides: Mapping[str, Sequence[str] | None] | None = None,
) -> Suite:
    """Loads a suite: its core and integration benchmarks, and those that its experts call for.

    Args:
        experts: names from the expert file.
        samples: so many items of each benchmark, evenly spread over it, and so many of the embedded world's documents;
            None for all.
        skip_expert_benchmarks: leave out the benchmarks whose only role is to judge an expert.
        text: a file of held-out text for the bits per byte; None takes the embedded world's.
        directory: where the YAML files and `suite.json` are.
        data_dir: where the items are, one `TASK.jsonl` for each task; None takes those beside the YAML files.
        overrides: for some experts, other benchmarks than those of the table in `experts.py`.

    Raises:
        ConfigError: the text cannot be read.
        BenchmarkError: an expert is unknown, or a file of the suite is missing or malformed.
    """
    known = expert_map(overrides)
    check_experts(experts, known)
    documents = held_out_documents(text)
    if text is None:
        documents = [documents[number] for number in spread(len(documents), samples)]
    tasks = [
        task
        for task in read_tasks(directory, known)
        if task.role != "expert" or (not skip_expert_benchmarks and set(task.experts) & set(experts))
    ]
    covered = {task.stands_for for task in tasks}  # those left out below say so themselves
    tasks, unsafe, why = _without_unsafe(tasks)
    missing = [
        f"{expert}: {benchmark}"
        for expert in experts
        for benchmark in known[expert]
        if not any(stands_for(name, benchmark) for name in covered)
    ]
    missing += [f"{'core' if one.role == 'core' else one.experts[0]}: {one.stands_for} ({why})" for one in unsafe]
    from phase8.benchmarks.lm import PlanCache  # lm-eval and transformers take seconds to import

    return Suite(
        content=hash_directory(directory) + (hash_directory(Path(data_dir)) if data_dir else ""),
        tasks=tuple(tasks),
        loaded=load_tasks(directory, [task.name for task in tasks], data_dir=data_dir),
        experts=tuple(experts),
        missing=tuple(missing),
        samples=samples,
        text=tuple(documents),
        cache=PlanCache(),
    )


def _without_unsafe(tasks: list[Task]) -> tuple[list[Task], list[Task], str]:
    """The tasks that can be scored on this system, those that cannot, and why: they run what the model writes."""
    unsafe = [task for task in tasks if task.metric.startswith("pass_at_1")]
    try:
        if unsafe:
            shared_sandbox()
        return tasks, [], ""
    except BenchmarkError as error:
        return [task for task in tasks if task not in unsafe], unsafe, error.what


def spread(items: int, samples: int | None) -> list[int]:
    """Which items to take: all, or so many at equal distances, so that every subject and rule keeps its share."""
    wanted = items if samples is None else min(samples, items)
    return [number * items // wanted for number in range(wanted)]


def read_tasks(directory: Path, known: Mapping[str, Sequence[str]] | None = None) -> list[Task]:
    """What `suite.json` says; `known` is the table of experts, by default the one of `experts.py`.

    Raises:
        BenchmarkError: the file is missing, is not JSON, or lacks something; says which entry and what.
    """
    path = directory / "suite.json"
    fix = "each task needs name, role, metric, chance and stands_for"
    try:
        entries = json.loads(read_bounded(path, MAX_SUITE_BYTES, error=BenchmarkError))["tasks"]
    except (ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"not a list of benchmarks: {error!r}", where=str(path), fix=fix) from error
    tasks = []
    for number, entry in enumerate(entries):
        try:
            task = Task(
                name=entry["name"],
                role=entry["role"],
                metric=entry["metric"],
                chance=float(entry["chance"]),
                stands_for=entry["stands_for"],
                experts=experts_for(entry["stands_for"], expert_map() if known is None else known),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BenchmarkError(f"benchmark {number} is incomplete: {error!r}", where=str(path), fix=fix) from error
        if task.role not in ROLES or not 0 <= task.chance < 1 or task.metric.count(",") != 1:
            raise BenchmarkError(
                f"{task.name}: role {task.role!r}, chance {task.chance}, metric {task.metric!r}",
                where=str(path),
                fix=f"role is one of {', '.join(ROLES)}; chance is from 0 to below 1; metric as in 'acc,none'",
            )
        tasks.append(task)
    return tasks


def load_tasks(directory: Path, names: Sequence[str], *, data_dir: str | None = None) -> dict[str, Any]:
    """lm-eval's task objects, with data from `data_dir` where it is given.

    Raises:
        BenchmarkError: lm-eval does not find or cannot read a task; data of a wrong shape.
    """
    from lm_eval.tasks import TaskManager

    # What it would say of every task with arguments for its reader is a hint for lm-eval's own command line.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    metadata = {"data_dir": data_dir} if data_dir else {}
    manager = TaskManager(include_defaults=False, include_path=[str(directory)], metadata=metadata)
    absent = [name for name in names if name not in manager.all_subtasks]
    if absent:
        raise BenchmarkError(
            f"no YAML file defines {', '.join(absent)}",
            where=str(directory),
            fix="add it, or remove it from suite.json",
        )
    loaded: dict[str, Any] = {}
    for name in names:
        try:
            loaded.update(manager.load([name])["tasks"])
        except BenchmarkError:
            raise
        except Exception as error:  # lm-eval and datasets raise anything; the reader needs to know which benchmark
            raise BenchmarkError(
                f"the benchmark {name} cannot be loaded: {type(error).__name__}: {error}",
                where=str(directory),
                fix="check its YAML file and its data",
            ) from error
    return loaded


def suite_hash(suite: Suite) -> str:
    """Changes with everything that can change a score: tasks, items, how many, the code that scores, lm-eval."""
    import lm_eval

    digest = hashlib.sha256()

    def add(*parts: object) -> None:
        for part in parts:
            data = part if isinstance(part, bytes) else str(part).encode()
            digest.update(len(data).to_bytes(8, "little") + data)

    add(lm_eval.__version__, suite.samples, len(suite.text), *suite.text, *(task.name for task in suite.tasks))
    add(suite.content, suite.edge_pool)
    for name in SCORING_CODE:
        add(name, (HERE / name).read_bytes())
    return digest.hexdigest()


@contextmanager
def without_dataset_bars() -> Iterator[None]:
    """While open, the `datasets` library draws no bars for the work of a moment."""
    import datasets

    drawn = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if drawn:
            datasets.enable_progress_bars()


def hash_directory(directory: Path) -> str:
    """Changes with the name or content of any file in it."""
    digest = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        for part in (path.relative_to(directory).as_posix().encode(), path.read_bytes()):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
