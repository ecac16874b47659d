"""Studies of the reference model in closed form (nothing is trained): kills, costs, search against chance.

    python -m experiments.studies run vptq_gp_0 --kills 3     60 trials; the process is killed three times on the way
    python -m experiments.studies run vptq_random_1           by chance, seed 1
    python -m experiments.studies hand vptq               the values that the variants have, on the same items
    python -m experiments.studies alone vptq_gp_0         some trials as runs on their own: no cache, no preview
    python -m experiments.studies workers joblib ray      eight trials by one worker, and by two of each launcher; here
                                                          each is trained, as a study's trials are by default
    python -m experiments.studies tables                  sweeps/STUDY/ and experiments/results/studies.md

A study searches one stage's settings for the largest ratio whose chance-corrected retention stays at or above 0.95, on
100 validation items of each core benchmark: of another seed than the shipped ones, and none that is among those
(`validation_items`). Each trial is tried on 25 items first. Everything is an ordinary `python run.py -m ...`, in
`studies/`; what is there already is gone on with.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
STUDIES, CACHE, ITEMS = Path("studies"), Path("studies/cache"), Path("studies/validation")
MEASURED = Path("studies/measured.jsonl")
TRIALS = 60
VALIDATION_SEED, ITEMS_KEPT = 404, 200
CLOSED = [
    "model=reference", "grokfast.iterations=0", "optimizer.precision=float32", "logger=none", "threads=1",
    "benchmark_samples=100", "max_retries=0", "skip_expert_benchmarks=true", "benchmarks.edge_pool=shipped",
    f"benchmarks.data_dir={ITEMS}", "hyper.enabled=false",
]  # fmt: skip
FLOOR = [
    "sweep=retention_floor", "hydra.sweeper.constraints.retention_corrected='>= 0.95'",
    "hydra.sweeper.preview={benchmark_samples: 25}", "hydra.sweeper.preview_constraints.retention_corrected='>= 0.88'",
]  # fmt: skip
SPACES = {
    "vptq": [
        "vptq.vector_dim=range(2,9)", "vptq.codebook_size=tag(ordered,choice(64,128,256,512,1024,2048))",
        "vptq.num_codebooks=range(1,3)", "vptq.share=choice(kind,model)",
        "vptq.hessian_damping=tag(ordered,choice(0.1,0.3,1,3,10))",
    ],
}  # fmt: skip
HAND = {
    "vptq": {
        "default, quality_preserving, skip_hyper": {"vector_dim": 3, "codebook_size": 512},
        "max_compression": {"vector_dim": 3, "codebook_size": 256},
    },
}
REST = {"vptq": {"share": "kind", "hessian_damping": 1.0}}
"""What the variants in conf/compressor/ had when the studies began."""
LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local"],
    "ray": ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2",
            "+hydra.launcher.ray.init.include_dashboard=false"],
}  # fmt: skip
WORKERS_TRIALS = 8
TRAINED = ["grokfast.iterations=100"]


def validation_items() -> None:
    """Writes the items that the studies ask: those of the core benchmarks are drawn with a seed of their own, and what
    is among the shipped items too is left out; the others, which no figure here is of, are the shipped ones."""
    from phase8.benchmarks.suite import MINI, read_tasks
    from phase8.world.items import task_items, write_items

    core = {task.name for task in read_tasks(MINI) if task.role == "core"}
    for shipped in sorted((MINI / "data").glob("*.jsonl")):
        target, name = ITEMS / shipped.name, shipped.stem
        if target.is_file():
            continue
        ITEMS.mkdir(parents=True, exist_ok=True)
        if name not in core:
            shutil.copy(shipped, target)
            continue
        known = {json.loads(line)["prompt"] for line in shipped.read_text(encoding="utf-8").splitlines()}
        drawn = [item for item in task_items(name, VALIDATION_SEED, 2 * ITEMS_KEPT) if item["prompt"] not in known]
        write_items(target, drawn[:ITEMS_KEPT])


def study_command(name: str, *more: str) -> list[str]:
    """The command of one study: SPACE_SAMPLER_SEED."""
    space, sampler, seed = name.split("_")
    return [
        sys.executable, str(ROOT / "run.py"), "-m", *FLOOR, *CLOSED, *SPACES[space], f"hydra.sweeper.study={name}",
        f"hydra.sweeper.sampler={sampler}", f"hydra.sweeper.seed={seed}", f"paths.cache_dir={CACHE}",
        *more,
    ]  # fmt: skip


def environment() -> dict[str, str]:
    """One thread, and this repository's own package."""
    return {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE",
        "RAY_AUTH_MODE": "disabled",
    }  # fmt: skip


def trials_of(name: str) -> list[Any]:
    """All trials of a study so far."""
    import optuna

    from phase8.sweep.storage import open_storage

    if not (STUDIES / name / "study.db").is_file():
        return []
    try:
        return optuna.load_study(study_name=name, storage=open_storage(f"sqlite:///{STUDIES / name}/study.db")).trials
    except KeyError:
        return []  # the tables are there, the study not yet


def ended(name: str) -> list[Any]:
    """The trials that have ended and count."""
    from phase8.sweep.study import counts

    return [trial for trial in trials_of(name) if trial.state.is_finished() and counts(trial)]


def run_study(name: str, trials: int, kills: int, every: int, seed: int) -> None:
    """Runs a study to its total; kills its process after about `every` more trials, where one has run for a while."""
    validation_items()
    draw, begin = random.Random(seed), time.time()
    log = STUDIES / name / "kills.jsonl"
    command = study_command(name, f"hydra.sweeper.n_trials={trials}")
    done = len(log.read_text().splitlines()) if log.is_file() else 0
    for number in range(done, kills):
        process = subprocess.Popen(command, env=environment(), process_group=0)
        wanted = len(ended(name)) + every + draw.randrange(-1, 2)
        while process.poll() is None and len(ended(name)) < wanted:
            time.sleep(5)
        time.sleep(draw.uniform(0, 15))
        if process.poll() is not None:
            print(f"ended by itself before kill {number + 1}")
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        running = [trial.number for trial in trials_of(name) if trial.state.name == "RUNNING"]
        with log.open("a") as file:
            file.write(json.dumps({"kill": number + 1, "ended": len(ended(name)), "in_hand": running}) + "\n")
        print(f"killed, trial {running} in hand", flush=True)
    subprocess.run(command, env=environment(), check=True)
    note(kind="study", study=name, seconds=time.time() - begin)


def note(**row: Any) -> None:
    """Adds a measurement to what `tables` reads."""
    with MEASURED.open("a") as file:
        file.write(json.dumps({name: round(v, 2) if isinstance(v, float) else v for name, v in row.items()}) + "\n")
    print(row, flush=True)


def single_run(directory: Path, *words: str) -> tuple[dict[str, Any], float]:
    """A run on its own: its result, and the processor time of its process in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, str(ROOT / "run.py"), *CLOSED, "seedlm.enabled=false", *words]
    subprocess.run([*command, f"hydra.run.dir={directory}"], env=environment(), check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads((directory / "result.json").read_text()), used


def run_hand(space: str) -> None:
    """The variants' own values of the stage, asked as a study's trials are."""
    from phase8.sweep.objective import figures

    validation_items()
    for variants, values in HAND[space].items():
        words = [f"{space}.{name}={value}" for name, value in (values | REST[space]).items()]
        place = STUDIES / "hand" / "-".join(str(value) for value in values.values())
        result, _ = single_run(place, *words, f"paths.cache_dir={CACHE}", "paths.reuse=true")
        found = figures(result)
        note(kind="hand", space=space, variants=variants, values=words, ratio=found["ratio"],
             retention_corrected=round(found["retention_corrected"], 4))  # fmt: skip


def run_alone(study: str, count: int, seed: int) -> None:
    """Trials of a study, drawn by chance, as runs on their own with an empty cache and all items at once."""
    from phase8.sweep.study import OVERRIDES, PROCESSOR_S

    space = study.split("_")[0]
    known = {(row["study"], row["trial"]) for row in measured("alone")}
    drawn = random.Random(seed).sample([t for t in ended(study) if PROCESSOR_S in t.user_attrs], count)
    for trial in drawn:
        if (study, trial.number) in known:
            continue
        searched = {word.partition("=")[0] for word in SPACES[space]}
        words = [word for word in trial.user_attrs[OVERRIDES] if word.partition("=")[0] in searched]
        place = STUDIES / "alone" / f"{study}-{trial.number}"
        shutil.rmtree(place, ignore_errors=True)
        _, used = single_run(place, *words, f"paths.cache_dir={place}/cache")
        note(kind="alone", study=study, trial=trial.number, state=trial.state.name, processor_s=used,
             in_study_s=trial.user_attrs[PROCESSOR_S])  # fmt: skip


def run_workers(launchers: list[str], repeat: int) -> None:
    """The same random trials by one worker in this process and by two of each launcher, turn by turn; a launcher has
    all of them in one batch, so that none of its workers waits for the other before the end."""
    if not CACHE.is_dir():
        raise SystemExit("begin with a study: it leaves the original's scores and the Hessians, which all trials share")
    for number in range(repeat):
        turns = ["", *launchers] if number % 2 == 0 else [*launchers, ""]
        for launcher in turns:
            name = f"workers-{launcher or 'one'}-{number}"
            cache = STUDIES / f"cache-{name}"
            for directory in (STUDIES / name, cache):
                shutil.rmtree(directory, ignore_errors=True)
            cache.mkdir(parents=True)
            for path in CACHE.glob("baseline*"):
                shutil.copy(path, cache)
            shutil.copytree(CACHE / "importance", cache / "importance")
            batch = ["hydra.sweeper.workers=2", f"hydra.sweeper.batch={WORKERS_TRIALS}"]
            placed = [*LAUNCHERS[launcher], *batch] if launcher else []
            begin = time.monotonic()
            subprocess.run(
                study_command(
                    "vptq_random_7", f"hydra.sweeper.study={name}", f"paths.cache_dir={cache}",
                    f"hydra.sweeper.n_trials={WORKERS_TRIALS}", "hydra.sweeper.prune_dominated=false", *TRAINED,
                    *placed,
                ),
                env=environment(), check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            seconds, states = time.monotonic() - begin, sorted(trial.state.name for trial in ended(name))
            note(kind="workers", launcher=launcher or "none", workers=2 if launcher else 1, seconds=seconds,
                 trials=len(states), complete=states.count("COMPLETE"))  # fmt: skip
            shutil.rmtree(cache)


def measured(kind: str) -> list[dict[str, Any]]:
    """The measurements of a kind."""
    lines = MEASURED.read_text().splitlines() if MEASURED.is_file() else []
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def main() -> None:
    """Does what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run")
    command.add_argument("study")
    command.add_argument("--trials", type=int, default=TRIALS, help="in all; more later go on with the study")
    command.add_argument("--kills", type=int, default=0)
    command.add_argument("--every", type=int, default=15, help="trials between kills")
    command.add_argument("--seed", type=int, default=0, help="of the kills' moments")
    commands.add_parser("hand").add_argument("space", choices=SPACES)
    command = commands.add_parser("alone")
    command.add_argument("study")
    command.add_argument("--trials", type=int, default=5)
    command.add_argument("--seed", type=int, default=0)
    command = commands.add_parser("workers")
    command.add_argument("launchers", nargs="+", choices=LAUNCHERS)
    command.add_argument("--repeat", type=int, default=1)
    commands.add_parser("tables")
    args = parser.parse_args()
    os.chdir(ROOT)
    STUDIES.mkdir(exist_ok=True)
    match args.command:
        case "run":
            run_study(args.study, args.trials, args.kills, args.every, args.seed)
        case "hand":
            run_hand(args.space)
        case "alone":
            run_alone(args.study, args.trials, args.seed)
        case "workers":
            run_workers(args.launchers, args.repeat)
        case "tables":
            from experiments.studies_tables import write_tables

            write_tables()


if __name__ == "__main__":
    main()
