"""The published benchmarks: what is loaded, what is left out and says so, and scores equal to plain lm-eval's."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import evaluate as hf_evaluate
import lm_eval
import pytest
from lm_eval.tasks import TaskManager

import phase8
from phase8.benchmarks.code_eval import chance_of_a_pass, pass_at_k
from phase8.benchmarks.evaluate import evaluate
from phase8.benchmarks.local import local_splits
from phase8.benchmarks.real import CORE, _load_parts, load_real_suite
from phase8.benchmarks.suite import suite_hash
from phase8.errors import BenchmarkError
from phase8.model.source import load_source
from tests.benchmark_files import (
    SUBJECTS,
    invented,
    invented_for_experts,
    write_as_authors,
    write_data_sets,
    write_lines,
)
from tests.tiny_model import tiny_model, tiny_tokenizer

ROWS = invented()
FIVE = ("analytical", "creative", "code", "reasoning", "communication")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    write_data_sets(path, ROWS)
    return path


@pytest.fixture(scope="module")
def suite(data):
    return load_real_suite(FIVE, samples=6, data_dir=str(data), run_generated_code=True)


def test_the_seven_under_their_names_and_shots(suite):
    core = {task.name: task for task in suite.tasks if task.role == "core"}
    assert list(core) == [
        "mmlu", "gsm8k", "humaneval", "hellaswag", "arc_challenge", "truthfulqa_mc1", "winogrande",
    ]  # fmt: skip
    shots = {name: suite.loaded[task.runs[0]].config.num_fewshot for name, task in core.items()}
    assert shots == {
        "mmlu": 5, "gsm8k": 8, "humaneval": 0, "hellaswag": 10, "arc_challenge": 25, "truthfulqa_mc1": 0,
        "winogrande": 5,
    }  # fmt: skip
    assert core["mmlu"].runs == tuple(f"mmlu_{subject}" for subject in SUBJECTS)
    assert core["truthfulqa_mc1"].beside == ("truthfulqa_mc2",)
    assert [task.name for task in suite.tasks if task.role == "integration"] == [
        "mini_edge_of_chaos", "mini_eudaimonia",
    ]  # fmt: skip


def test_chance_is_counted_from_the_choices(suite):
    chance = {task.name: task.chance for task in suite.tasks}
    assert chance["mmlu"] == chance["hellaswag"] == chance["truthfulqa_mc1"] == 0.25
    assert chance["winogrande"] == 0.5 and chance["gsm8k"] == chance["humaneval"] == 0.0
    counts = [len(row["choices"]["text"]) for row in ROWS["arc_challenge"]["test"]]
    assert chance["arc_challenge"] == pytest.approx(sum(1 / count for count in counts) / len(counts))


def test_the_authors_files_make_the_same_prompts(suite, tmp_path):
    write_as_authors(tmp_path, ROWS)
    other = load_real_suite(FIVE, samples=6, data_dir=str(tmp_path), run_generated_code=True)
    assert prompts(other) == prompts(suite)


def prompts(suite):
    found = {}
    for name, task in suite.loaded.items():
        task.set_fewshot_seed(1234)
        task.build_all_requests(limit=2)
        found[name] = [instance.args for instance in task.instances]
    return found


HUB = {
    "cais/mmlu": "mmlu", "openai/gsm8k": "gsm8k", "openai/openai_humaneval": "humaneval",
    "Rowan/hellaswag": "hellaswag", "allenai/ai2_arc": "arc_challenge", "truthfulqa/truthful_qa": "truthfulqa",
    "allenai/winogrande": "winogrande",
}  # fmt: skip


def test_without_a_directory_lm_eval_loads_its_own_data_sets(suite, monkeypatch):
    asked = []

    def load_dataset(path, name=None, **_):
        asked.append((path, name))
        splits = ROWS[HUB[path]]
        if path == "cais/mmlu":
            splits = {split: [row for row in rows if row["subject"] == SUBJECTS[0]] for split, rows in splits.items()}
        return {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    online = load_real_suite(FIVE, samples=6, skip_expert_benchmarks=True, run_generated_code=True)
    assert {path for path, _ in asked} == set(HUB) and len(asked) == 57 + 7
    assert {name for path, name in asked if path == "allenai/winogrande"} == {"winogrande_xl"}
    local = prompts(suite)
    mmlu = f"mmlu_{SUBJECTS[1]}"
    assert {name: text for name, text in prompts(online).items() if name in local and name != mmlu} == {
        name: text for name, text in local.items() if name != mmlu
    }


def test_a_data_set_out_of_reach_is_one_error(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(BenchmarkError, match="Couldn't reach it") as caught:
        load_real_suite()
    assert "benchmarks.data_dir" in caught.value.fix


def test_two_evaluations_take_the_same_examples_and_a_model_the_same_scores(suite):
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    suite = replace(suite, text=())
    first = evaluate(model, tokenizer, suite)
    assert evaluate(model, tokenizer, suite) == first
    mmlu = first.scores["mmlu"]
    assert mmlu.n == 6 and mmlu.labels == tuple(subject for subject in SUBJECTS for _ in range(3))
    assert "truthfulqa_mc2 acc,none" in first.scores["truthfulqa_mc1"].also
    assert "25" not in first.scores["winogrande"].note
    assert "window of 96 tokens" in first.scores["arc_challenge"].note
    assert "cut at 48 tokens instead of 1024" in first.scores["humaneval"].note


def test_what_is_not_measured_is_said_with_the_reason(data):
    suite = load_real_suite([*FIVE, "planning"], data_dir=str(data))
    reasons = dict(entry.split(" (", 1) for entry in suite.missing)
    assert reasons["planning: ALFWorld"] == reasons["planning: BabyAI"] == "lm-eval has no task for it)"
    assert reasons["analytical: MATH"].startswith("no hendrycks_math/ in ")
    assert reasons["core: HumanEval"].startswith("scoring runs programs that the model writes; benchmarks.run_")
    assert not any("HumanEval" in note for note in suite.notes)  # one absence is told once
    assert "MMLU: the data hold 2 of 57 subjects" in suite.notes
    assert "humaneval" not in suite.loaded
    skipped = load_real_suite(["analytical"], data_dir=str(data), skip_expert_benchmarks=True)
    assert "analytical: MATH (skip_expert_benchmarks)" in skipped.missing


def test_an_expert_may_have_other_benchmarks(data, tmp_path):
    write_data_sets(tmp_path, ROWS | {"arc_easy": ROWS["arc_challenge"]})
    overrides = {"analytical": ["arc_easy", "GSM8K"], "gardening": ["winogrande"]}
    suite = load_real_suite(["analytical", "gardening"], data_dir=str(tmp_path), overrides=overrides)
    tasks = {task.name: task for task in suite.tasks}
    assert tasks["arc_easy"].role == "expert" and tasks["arc_easy"].experts == ("analytical",)
    assert tasks["arc_easy"].metric == "acc,none" and 0.2 <= tasks["arc_easy"].chance <= 0.34
    assert "analytical" not in tasks["arc_challenge"].experts and "analytical" in tasks["gsm8k"].experts
    assert "gardening" in tasks["winogrande"].experts
    either = load_real_suite(["gardening"], data_dir=str(data), overrides={"gardening": ["truthfulqa_mc2"]})
    assert "gardening" in {task.name: task for task in either.tasks}["truthfulqa_mc1"].experts
    with pytest.raises(BenchmarkError, match="arc_esy") as caught:
        load_real_suite(["code"], data_dir=str(data), overrides={"code": ["arc_esy"]})
    assert "arc_easy" in caught.value.fix
    with pytest.raises(BenchmarkError, match="cookery") as caught:
        load_real_suite(["cookery"], data_dir=str(data))


def test_the_experts_further_benchmarks_from_local_files(tmp_path):
    write_data_sets(tmp_path, ROWS | invented_for_experts())
    suite = load_real_suite([*FIVE, "memory"], samples=2, data_dir=str(tmp_path), run_generated_code=True)
    assert suite.missing == ()
    ours = {task.name: task for task in suite.tasks if task.role == "expert"}
    assert {name: task.stands_for for name, task in ours.items()} == {
        "hendrycks_math": "MATH", "storycloze_2018": "StoryCloze", "mbpp": "MBPP", "lambada_openai": "LAMBADA",
        "squad_completion": "SQuAD", "triviaqa": "TriviaQA",
    }  # fmt: skip
    assert ours["hendrycks_math"].runs == ("hendrycks_math_algebra", "hendrycks_math_counting_and_prob")
    assert ours["storycloze_2018"].chance == 0.5 and ours["triviaqa"].experts == ("memory",)
    tokenizer = tiny_tokenizer()
    few = replace(suite, tasks=tuple(ours.values()), text=())
    scores = evaluate(tiny_model(tokenizer), tokenizer, few).scores
    assert {score.n for score in scores.values()} == {2} and all(0 <= score.value <= 1 for score in scores.values())
    task = suite.loaded["mbpp"]
    doc = task.eval_docs[0]
    assert task.process_results(doc, [doc["code"]]) == {"pass_at_1": 1.0}
    assert task.process_results(doc, ["def f(x):\n    return -1"]) == {"pass_at_1": 0.0}


def test_pass_at_ten_samples_twenty_programs(data):
    suite = load_real_suite(["code"], samples=2, data_dir=str(data), run_generated_code=True, pass_at=10)
    (task,) = (task for task in suite.tasks if task.name == "humaneval")
    assert task.metric == "pass@10,create_test" and task.experts == ("code",) and task.role == "core"
    tokenizer = tiny_tokenizer()
    score = evaluate(tiny_model(tokenizer), tokenizer, replace(suite, tasks=(task,), text=())).scores["humaneval"]
    assert score.n == 2 and set(score.also) == {"pass@1,create_test"}
    loaded = suite.loaded["humaneval"]
    doc = loaded.eval_docs[0]
    right, wrong = doc["prompt"] + doc["canonical_solution"], doc["prompt"] + "    return 0\n"
    found = loaded.process_results(doc, [[right] * 2 + [wrong] * 18])
    assert found == {"pass@1": pytest.approx(0.1), "pass@10": pytest.approx(1 - (10 * 9) / (20 * 19))}


def test_a_task_that_would_run_code_outside_the_sandbox_is_refused(data, tmp_path):
    write_data_sets(tmp_path, ROWS | {"humaneval_plus": ROWS["humaneval"]})
    with pytest.raises(BenchmarkError, match="humaneval_plus runs generated code"):
        load_real_suite(
            ["code"], data_dir=str(tmp_path), overrides={"code": ["humaneval_plus"]}, run_generated_code=True
        )


def test_where_programs_cannot_be_run_safely_the_suite_is_refused(data, monkeypatch):
    def refuse(*_, **__):
        raise BenchmarkError("no fork here")

    monkeypatch.setattr("phase8.benchmarks.real.shared_sandbox", refuse)
    with pytest.raises(BenchmarkError, match="no fork here"):
        load_real_suite(data_dir=str(data), run_generated_code=True)
    load_real_suite(data_dir=str(data))


def test_a_subject_nobody_knows_and_too_few_examples(tmp_path):
    write_data_sets(tmp_path, ROWS)
    rows = [row | {"subject": "sorcery"} for row in ROWS["mmlu"]["test"]]
    write_lines(tmp_path / "mmlu" / "test.jsonl", rows)
    with pytest.raises(BenchmarkError, match="no subject 'sorcery'"):
        load_real_suite(data_dir=str(tmp_path))
    write_data_sets(tmp_path, ROWS | {"winogrande": {"train": ROWS["winogrande"]["train"][:4]}})
    with pytest.raises(BenchmarkError, match="winogrande has 4 examples for its prompts, which take"):
        load_real_suite(data_dir=str(tmp_path))


@pytest.mark.parametrize("benchmark", ["gsm8k", "hellaswag", "arc_challenge", "winogrande", "mmlu"])
def test_the_fewest_examples_that_are_taken_are_enough(tmp_path, benchmark):
    """Lessens the examples until the suite is refused; with one more, every prompt can be made."""
    (one,) = (one for one in CORE if one.data_folder == benchmark)
    splits = {
        split: [row for row in rows if row.get("subject", SUBJECTS[0]) == SUBJECTS[0]]
        for split, rows in ROWS[benchmark].items()
    }
    examples = next(iter(splits))
    few = splits[examples][: one.shots + 1]
    while True:
        write_data_sets(tmp_path, {benchmark: splits | {examples: few}})
        try:
            parts = _load_parts(one, local_splits(benchmark, tmp_path))
        except BenchmarkError as error:
            assert f"has {len(few)} examples" in error.what
            break
        (task,) = parts.values()
        task.set_fewshot_seed(1234)
        task.build_all_requests()
        few = few[:-1]
    assert len(few) in (one.shots - 1, one.shots)


def test_the_hash_follows_items_examples_and_consent(data, tmp_path):
    base = suite_hash(load_real_suite(data_dir=str(data)))
    write_data_sets(tmp_path, ROWS)
    assert suite_hash(load_real_suite(data_dir=str(tmp_path))) == base
    assert suite_hash(load_real_suite(data_dir=str(tmp_path), run_generated_code=True)) != base
    train = [row | {"answer": row["answer"] + "0"} for row in ROWS["gsm8k"]["train"]]
    write_lines(tmp_path / "gsm8k" / "train.jsonl", train)
    assert suite_hash(load_real_suite(data_dir=str(tmp_path))) != base


def test_programs_are_scored_in_the_sandbox(suite):
    task = suite.loaded["humaneval"]
    for doc in task.eval_docs:
        right, wrong = doc["prompt"] + doc["canonical_solution"], doc["prompt"] + "    return 0\n"
        assert task.process_results(doc, [[right]]) == {"pass@1": 1.0}
        assert task.process_results(doc, [[wrong]]) == {"pass@1": 0.0}
    leave = "import os\nos._exit(0)\n"
    assert pass_at_k(["assert False"], [[leave]], [1]) == {"pass@1": 0.0}


def test_pass_at_k_is_the_chance_of_drawing_a_right_program():
    from itertools import combinations

    for programs, right, k in ((1, 1, 1), (1, 0, 1), (5, 2, 1), (5, 2, 3), (6, 1, 6), (20, 3, 10)):
        draws = list(combinations([True] * right + [False] * (programs - right), k))
        assert chance_of_a_pass(programs, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


# -- the same scores as plain lm-eval ------------------------------------------------------------------------------

FOLDERS = sorted({one.folder for one in CORE})
LM_EVAL = Path(lm_eval.__file__).parent
ASSETS = Path(phase8.__file__).parent / "assets"
ITEMS = 10


class PlainCodeEval:
    """What `evaluate` would load from the network: each program in a Python of its own."""

    def compute(self, references, predictions, k, **_):
        right = [
            subprocess.run([sys.executable, "-c", f"{programs[0]}\n{tests}"], capture_output=True, timeout=600)
            for tests, programs in zip(references, predictions, strict=True)
        ]
        return {"pass@1": sum(run.returncode == 0 for run in right) / len(right)}, {}


def plain_tasks(rows, directory):
    """lm-eval's tasks on JSON files, by lm-eval's own settings."""
    names = {name: (name, splits) for name, splits in rows.items() if name not in ("mmlu", "truthfulqa")}
    names |= {f"truthfulqa_mc{number}": ("truthfulqa", rows["truthfulqa"]) for number in (1, 2)}
    for subject in sorted({row["subject"] for row in rows["mmlu"]["test"]}):
        of_subject = {
            split: [row for row in items if row["subject"] == subject] for split, items in rows["mmlu"].items()
        }
        names[f"mmlu_{subject}"] = ("mmlu", of_subject)
    shots = {one.data_folder: one.shots for one in CORE}
    tasks = []
    for name, (benchmark, splits) in names.items():
        files = {}
        for split, items in splits.items():
            files[split] = str(directory / name / f"{split}.jsonl")
            write_lines(directory / name / f"{split}.jsonl", items)
        settings = {"task": name, "dataset_path": "json", "dataset_name": None, "num_fewshot": shots[benchmark]}
        settings["dataset_kwargs"] = {"data_files": files}
        if name == "humaneval":  # 1024 new tokens do not go into the window; lm-eval would refuse
            until = ["\nclass", "\ndef", "\n#", "\nif", "\nprint"]
            settings["generation_kwargs"] = {"until": until, "max_gen_toks": 256, "do_sample": False}
        tasks.append(settings)
    return tasks


def same_answers(instances, rows):
    """Prompts, and what the model gave for them: texts alike, log-probabilities as alike as float32 sums are."""
    ours = sorted(instances, key=lambda one: (one.doc_id, one.idx))
    first = rows[0]["filter"]
    rows = sorted((row for row in rows if row["filter"] == first), key=lambda row: row["doc_id"])
    prompts = [arguments[0] for row in rows for arguments in row["arguments"]]
    answers = [answer[0] for row in rows for answer in row["resps"]]
    assert [one.args[0] for one in ours] == prompts
    if isinstance(answers[0], str):
        assert [one.resps[0] for one in ours] == answers
    else:
        assert [one.resps[0][1] for one in ours] == [greedy for _, greedy in answers]
        assert [one.resps[0][0] for one in ours] == pytest.approx([value for value, _ in answers], abs=1e-3)


@pytest.mark.slow
def test_scores_equal_plain_lm_eval_to_the_digit(tmp_path, monkeypatch):
    """PHASE8_BENCHMARK_DATA names a directory with real data; without it the items are invented."""
    directory = os.environ.get("PHASE8_BENCHMARK_DATA")
    if directory is None:
        write_data_sets(tmp_path / "data", invented(items=20))
        directory = str(tmp_path / "data")
    source = load_source("embedded:reference")
    suite = load_real_suite(samples=ITEMS, data_dir=directory, run_generated_code=True)
    ours = evaluate(source.network, source.tokenizer, suite)

    monkeypatch.setattr(hf_evaluate, "load", lambda *_, **__: PlainCodeEval())
    monkeypatch.delitem(sys.modules, "lm_eval.tasks.humaneval.utils", raising=False)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = {one.data_folder: local_splits(one.data_folder, Path(directory)) for one in CORE}
    manager = TaskManager(include_defaults=False, include_path=[str(LM_EVAL / "tasks" / name) for name in FOLDERS])
    tasks = plain_tasks(rows, tmp_path / "plain")
    chosen = {}
    for task in suite.tasks:
        if task.role == "core":
            places = [(name, number) for name in task.runs for number in range(len(suite.loaded[name].eval_docs))]
            for position in range(ITEMS):
                name, number = places[position * len(places) // ITEMS]
                chosen.setdefault(name, []).append(number)
            chosen |= {name: chosen[task.name] for name in task.beside}
    theirs = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(ASSETS / "reference"), "dtype": "float32"},
        tasks=[{"group": "all", "task": [task for task in tasks if task["task"] in chosen]}],
        task_manager=manager,
        samples=chosen,
        batch_size=1,
        device="cpu",
        bootstrap_iters=0,
        confirm_run_unsafe_code=True,
    )
    for task in suite.tasks:
        if task.role != "core":
            continue
        score = ours.scores[task.name]
        metric, kind = task.metric.split(",")
        items = [
            row[metric]
            for name in task.runs
            for row in sorted(theirs["samples"].get(name, ()), key=lambda row: row["doc_id"])
            if row["filter"] == kind
        ]
        assert list(score.items) == items, task.name
        for name in (*task.runs, *task.beside):
            if name in chosen:
                same_answers(suite.loaded[name].instances, theirs["samples"][name])
        if len(task.runs) == 1:
            assert score.value == pytest.approx(theirs["results"][task.name][task.metric], abs=1e-12)
    mc2 = theirs["results"]["truthfulqa_mc2"]["acc,none"]
    assert ours.scores["truthfulqa_mc1"].also["truthfulqa_mc2 acc,none"] == pytest.approx(mc2, abs=1e-6)
