"""The published benchmarks under their own names, through lm-eval's own task files: prompts, few-shot examples, scores.

    suite = load_real_suite(["code"], data_dir="data", run_generated_code=True)

Without `data_dir` lm-eval loads each data set from the network; with it, `local.py` reads local files in their place.
The rest is lm-eval's: its scores and these are the same. Programs that a model writes (HumanEval, MBPP) are run after
an explicit yes only, and always in `sandbox.py`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from phase8.benchmarks.code_eval import pass_at_1, pass_at_k, without_code_eval
from phase8.benchmarks.experts import check_experts, expert_map, stands_for
from phase8.benchmarks.local import Row, check_data_dir, has_files, read_all
from phase8.benchmarks.perplexity import held_out_documents
from phase8.benchmarks.sandbox import shared_sandbox
from phase8.benchmarks.suite import (
    MINI,
    Suite,
    Task,
    hash_directory,
    load_tasks,
    read_tasks,
    spread,
    without_dataset_bars,
)
from phase8.errors import BenchmarkError

Splits = dict[str, list[Row]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """One benchmark of lm-eval."""

    name: str
    """As the specification calls it, or lm-eval where it does not."""
    task: str
    """lm-eval's name of the task, or of the group whose items count as one benchmark."""
    folder: str
    """Where its task files are, below lm-eval's `tasks`."""
    metric: str
    """Metric and filter of the score that counts; empty: the accuracy, or else the first that the task reports."""
    shots: int | None = None
    """Worked examples in the prompt; None leaves lm-eval's number."""
    data: str = ""
    """Its folder in the data directory, by default the task's name."""
    programs: int = 1
    """Answers to each problem; more than one are sampled."""
    beside: str = ""
    """A second task on the same items, shown beside the score that counts."""

    @property
    def data_folder(self) -> str:
        return self.data or self.task


CORE = (
    Published(name="MMLU", task="mmlu", folder="mmlu/default", shots=5, metric="acc,none"),
    Published(name="GSM8K", task="gsm8k", folder="gsm8k", shots=8, metric="exact_match,strict-match"),
    Published(name="HumanEval", task="humaneval", folder="humaneval", shots=0, metric="pass@1,create_test"),
    Published(name="HellaSwag", task="hellaswag", folder="hellaswag", shots=10, metric="acc_norm,none"),
    Published(name="ARC-Challenge", task="arc_challenge", folder="arc", shots=25, metric="acc_norm,none"),
    Published(
        name="TruthfulQA", task="truthfulqa_mc1", folder="truthfulqa", shots=0, metric="acc,none", data="truthfulqa",
        beside="truthfulqa_mc2",
    ),
    Published(name="WinoGrande", task="winogrande", folder="winogrande", shots=5, metric="acc,none"),
)  # fmt: skip
"""The seven, with the numbers of shots and the metrics under which their scores are usually published."""

CORE_TASKS = tuple(one.task for one in CORE)

EXPERT = (
    Published(name="MATH", task="hendrycks_math", folder="hendrycks_math", metric="exact_match,none"),
    Published(name="StoryCloze", task="storycloze_2018", folder="storycloze", metric="acc,none"),
    Published(name="MBPP", task="mbpp", folder="mbpp", shots=3, metric="pass_at_1,none"),
    Published(name="LAMBADA", task="lambada_openai", folder="lambada", metric="acc,none"),
    Published(name="SQuAD", task="squad_completion", folder="squad_completion", metric="contains,none"),
    Published(name="TriviaQA", task="triviaqa", folder="triviaqa", metric="exact_match,remove_whitespace"),
)
NO_TASK = ("ALFWorld", "BabyAI", "WebShop", "Countdown")
"""Benchmarks of the expert map for which lm-eval 0.4.13 has no task. (Its `longproc_countdown` tasks are made for very
long answers; `benchmarks.experts` may name them.)"""
UNSAFE = {"humaneval": pass_at_k, "mbpp": pass_at_1}
"""Tasks that run programs, with the metric from the sandbox that takes the place of lm-eval's."""
GROUPS = {"mmlu": "mmlu_", "hendrycks_math": "hendrycks_math_"}
"""Groups of lm-eval's whose tasks, one for each subject, count as one benchmark; how the names of these begin."""
TASK_LINE = re.compile(r"""^["']?task["']?:[ ]*["']?([\w.+-]+)["']?[ ]*$""", re.MULTILINE)
PROGRAMS = 20
SAMPLING = {"do_sample": True, "temperature": 0.2, "top_p": 0.95}
"""As in lm-eval's `humaneval_64`, of which 64 programs would cost three times as much."""
CONSENT = "benchmarks.run_generated_code=true"


def load_real_suite(
    experts: Sequence[str] = (),
    *,
    samples: int | None = None,
    skip_expert_benchmarks: bool = False,
    text: str | None = None,
    data_dir: str | None = None,
    run_generated_code: bool = False,
    pass_at: int = 1,
    overrides: Mapping[str, Sequence[str] | None] | None = None,
) -> Suite:
    """Loads the seven published core benchmarks, those that the experts call for, and the two integration tests.

    Args:
        experts: names from the expert file.
        samples: so many items of each benchmark, evenly spread over it; None for all.
        skip_expert_benchmarks: leave out the benchmarks whose only role is to judge an expert.
        text: a file of held-out text for the bits per byte; None takes the embedded world's.
        data_dir: local files for every benchmark (see `local.py`); None loads them from the network.
        run_generated_code: whether programs that the model writes may be run, in the sandbox.
        pass_at: of HumanEval, 1 or 10: pass@1 of one greedy program, or pass@10 from `PROGRAMS` sampled ones.
        overrides: for some experts, other benchmarks than those of the table in `experts.py`: names from it, or
            lm-eval's.

    Raises:
        ConfigError: the data directory or the text cannot be read.
        BenchmarkError: an expert or a benchmark is unknown, data are missing or malformed, or programs may be run and
            this system has no sandbox.
    """
    known = expert_map(overrides)
    check_experts(experts, known)
    directory = check_data_dir(data_dir) if data_dir is not None else None
    documents = held_out_documents(text)
    wanted, missing = _wanted(experts, known, directory, skip_expert_benchmarks)
    if pass_at > 1:
        wanted["humaneval"] = replace(wanted["humaneval"], metric=f"pass@{pass_at},create_test", programs=PROGRAMS)
    notes: list[str] = []
    unsafe = [one for one in wanted.values() if one.task in UNSAFE and not run_generated_code]
    if unsafe:
        why = f"scoring runs programs that the model writes; {CONSENT} allows it, in a sandbox with limits"
        missing += [f"{_role(one)}: {one.name} ({why})" for one in unsafe]
    wanted = {task: one for task, one in wanted.items() if one not in unsafe}
    # All data are read and checked before anything else that takes time.
    local = read_all((one.data_folder for one in wanted.values()), directory) if directory is not None else None
    if any(task in UNSAFE for task in wanted):
        shared_sandbox()  # a system that cannot run programs safely is told now, not after hours
    tasks: list[Task] = []
    loaded: dict[str, Any] = {}
    digest = hashlib.sha256(hash_directory(MINI).encode())
    for one in wanted.values():
        splits = local[one.data_folder] if local is not None else None
        parts = _load_parts(one, splits)
        beside = {one.beside: _load_one(one, one.beside, splits)} if one.beside else {}
        loaded |= parts | beside
        if one.task in GROUPS and local is not None and len(parts) < len(_part_names(one)):
            notes.append(f"{one.name}: the data hold {len(parts)} of {len(_part_names(one))} subjects")
        judges = tuple(
            expert
            for expert, names in known.items()
            if any((found := _published(name)) and found.task == one.task for name in names)
        )
        with without_dataset_bars():
            chance = _chance(parts, samples)
            digest.update(f"{one.task} {one.shots} {one.programs} {one.metric}".encode())
            for name, task in (parts | beside).items():
                digest.update(name.encode() + _items_hash(task))
        tasks.append(
            Task(
                name=one.task,
                role=_role(one),
                metric=one.metric or _first_metric(parts[one.task]),
                chance=chance,
                stands_for=one.name,
                experts=judges,
                parts=tuple(parts),
                beside=tuple(beside),
            )
        )
    integration = [task for task in read_tasks(MINI) if task.role == "integration"]
    loaded |= load_tasks(MINI, [task.name for task in integration])
    from phase8.benchmarks.lm import PlanCache

    return Suite(
        content=digest.hexdigest(),
        tasks=(*tasks, *integration),
        loaded=loaded,
        experts=tuple(experts),
        missing=tuple(missing),
        samples=samples,
        text=tuple(documents),
        cache=PlanCache(),
        notes=tuple(notes),
    )


def _wanted(
    experts: Sequence[str], known: Mapping[str, Sequence[str]], directory: Path | None, skip_expert_benchmarks: bool
) -> tuple[dict[str, Published], list[str]]:
    """The benchmarks of a run by task, and what cannot be among them, with the reason."""
    wanted = {one.task: one for one in CORE}
    missing: list[str] = []
    for expert in experts:
        for name in known[expert]:
            found = _published(name)
            if found is None:
                missing.append(f"{expert}: {name} (lm-eval has no task for it)")
            elif found.task in wanted:
                continue
            elif skip_expert_benchmarks:
                missing.append(f"{expert}: {name} (skip_expert_benchmarks)")
            elif directory is not None and not has_files(found.data_folder, directory):
                missing.append(f"{expert}: {name} (no {found.data_folder}/ in {directory})")
            else:
                wanted[found.task] = found
    return wanted, missing


def _role(one: Published) -> str:
    return "core" if one.task in CORE_TASKS else "expert"


def _published(name: str) -> Published | None:
    """The benchmark of a name of the expert map, or of lm-eval; None for one that the harness lacks."""
    for one in (*CORE, *EXPERT):
        if name in (one.task, one.beside) or stands_for(one.name, name):
            return one
    if name in NO_TASK:
        return None
    folders = _folders()
    if name in folders:
        return Published(name=name, task=name, folder=folders[name], metric="")
    near = get_close_matches(name, [*folders, *(one.name for one in (*CORE, *EXPERT))], n=3)
    raise BenchmarkError(
        f"lm-eval has no task called {name}",
        where="benchmarks.experts",
        fix=f"did you mean {' or '.join(near)}?" if near else "`lm_eval --tasks list` names all",
    )


def _load_parts(one: Published, splits: Splits | None) -> dict[str, Any]:
    """lm-eval's task objects whose items together are a benchmark: one, or those of a group."""
    if one.task not in GROUPS:
        return {one.task: _load_one(one, one.task, splits)}
    prefix, names = GROUPS[one.task], _part_names(one)
    if splits is None:
        return {name: _load_one(one, name, None) for name in names}
    by_part: dict[str, Splits] = {}
    for split, rows in splits.items():
        for row in rows:
            by_part.setdefault(f"{prefix}{row['subject']}", {}).setdefault(split, []).append(row)
    strange = sorted(name.removeprefix(prefix) for name in set(by_part) - set(names))
    if strange:
        raise BenchmarkError(
            f"{one.name} has no subject {', '.join(map(repr, strange))}",
            where=f"benchmarks.data_dir, {one.data_folder}/",
            fix=f"its subjects are {', '.join(name.removeprefix(prefix) for name in names)}",
        )
    return {name: _load_one(one, name, by_part[name]) for name in names if "test" in by_part.get(name, ())}


def _part_names(one: Published) -> list[str]:
    return [name for name in _manager(one.folder).all_subtasks if name.startswith(GROUPS[one.task])]


def _load_one(one: Published, name: str, splits: Splits | None) -> Any:
    """One of lm-eval's tasks, on local rows where there are any.

    Raises:
        BenchmarkError: the data cannot be read, or are too few for the examples in the prompt.
    """
    settings: dict[str, Any] = {"task": name}
    if one.shots is not None:
        settings["num_fewshot"] = one.shots
    if one.task in UNSAFE:
        metric = {"metric": UNSAFE[one.task], "aggregation": "mean", "higher_is_better": True}
        settings["metric_list"] = [metric | ({"k": [1, 10]} if one.task == "humaneval" else {})]
        settings["repeats"] = one.programs
    if splits is not None:
        settings["custom_dataset"] = lambda **_: _datasets(splits)
        if name == "squad_completion":  # a class of its own, which takes no settings
            settings["class"] = _squad(splits)
    source = "its data from the network" if splits is None else f"on local data, {one.data_folder}/"
    where = f"lm-eval's task {name}, {source}"
    # What it would say of every task with arguments for its reader is a hint for lm-eval's own command line.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        with without_code_eval(), nullcontext() if splits is None else without_dataset_bars():
            # Only as a member of a group does lm-eval take a task of its own with settings changed.
            task = _manager(one.folder).load([{"group": "phase8", "task": [settings]}])["tasks"][name]
    except Exception as error:  # lm-eval and datasets raise anything; the reader needs to know which benchmark
        raise BenchmarkError(
            f"the benchmark {name} cannot be loaded: {type(error).__name__}: {error}",
            where=where,
            fix="check its data" if splits is not None else "check the connection, or give benchmarks.data_dir",
        ) from error
    if getattr(task, "UNSAFE_CODE", False) and one.task not in UNSAFE:
        raise BenchmarkError(
            f"{name} runs generated code, and not in the sandbox",
            where="benchmarks.experts",
            fix=f"of the benchmarks that run code, {' and '.join(UNSAFE)} are offered",
        )
    if one.programs > 1:
        task.set_config("generation_kwargs", SAMPLING, update=True)
    if task.config.num_fewshot is None:
        task.set_config("num_fewshot", 0)
    shots, there = task.config.num_fewshot, len(task.sampler.df)
    # lm-eval draws one more where it thinks that the item itself may be among them, and so it does for lack of a split.
    needed = shots + (shots > 0 and task.fewshot_cfg.split == task.config.test_split)
    if needed > there:
        raise BenchmarkError(
            f"{name} has {there} examples for its prompts, which take {needed}",
            where=where,
            fix="give more rows in the split that the examples come from (train or dev)",
        )
    return task


@cache
def _manager(folder: str) -> Any:
    """lm-eval's index of one folder of its task files; that of all of them takes ten seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=False, include_path=[str(_tasks_directory() / folder)])


@cache
def _folders() -> dict[str, str]:
    """The folder of every task of lm-eval's, by a look at its files' text."""
    found: dict[str, str] = {}
    root = _tasks_directory()
    for path in sorted(root.rglob("*.yaml")):
        for name in TASK_LINE.findall(path.read_text(encoding="utf-8", errors="replace")):
            found.setdefault(name, path.parent.relative_to(root).as_posix())
    return found


def _tasks_directory() -> Path:
    import lm_eval.tasks

    return Path(lm_eval.tasks.__file__).parent


def _squad(splits: Splits) -> type:
    from lm_eval.tasks.squad_completion.task import SQUADCompletion

    class LocalSQuAD(SQUADCompletion):
        def download(self, *_: Any, **__: Any) -> None:
            self.dataset = _datasets(splits)

    return LocalSQuAD


def _datasets(splits: Splits) -> dict[str, Any]:
    from datasets import Dataset

    return {split: Dataset.from_list(rows) for split, rows in splits.items()}


def _chance(parts: dict[str, Any], samples: int | None) -> float:
    """What a guess scores: the mean of 1 / choices over the items taken, 0 where there are no choices."""
    items = [(task, doc) for task in parts.values() if task.OUTPUT_TYPE == "multiple_choice" for doc in task.eval_docs]
    if not items:
        return 0.0
    taken = [items[number] for number in spread(len(items), samples)]
    return float(np.mean([1 / len(task.doc_to_choice(doc)) for task, doc in taken]))


def _first_metric(task: Any) -> str:
    names = list(task.aggregation())
    return f"{'acc' if 'acc' in names else names[0]},{task._filters[0].name}"


def _items_hash(task: Any) -> bytes:
    """Hash of what a task is scored on and of its examples."""
    digest = hashlib.sha256()
    for docs in (task.eval_docs, task.sampler.df if task.config.num_fewshot else ()):
        for doc in docs:
            digest.update(json.dumps(doc, sort_keys=True, default=str).encode() + b"\n")
    return digest.digest()
