"""Studies of the reference model in closed form (nothing is trained), with kills, and what they cost.

    python -m experiments.studies run vptq --kills 3      60 trials; the process is killed three times on the way
    python -m experiments.studies run vptq_random_1       the same space by chance, seed 1; vptq_1: TPE with seed 1
    python -m experiments.studies alone vptq --trials 3   some of its trials as runs of their own, without a cache
    python -m experiments.studies table vptq              sweeps/vptq/: the report, and README.md with the table

A study searches VPTQ's or SeedLM's settings for the largest ratio whose chance-corrected retention stays at or above
0.95, on every second item of the core benchmarks; each trial is tried on 25 items first. Everything is an ordinary
`python run.py -m ...`, in `studies/`; a study that is there already is gone on with.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from pathlib import Path
from statistics import mean, median

from phase8.files import write_atomic

ROOT = Path(__file__).parent.parent
STUDIES, SWEEPS = Path("studies"), Path("sweeps")
TRIALS = 60
CLOSED = [
    "model=reference", "grokfast.iterations=0", "optimizer.precision=float32", "logger=none", "threads=1",
    "benchmark_samples=100", "max_retries=0", "skip_expert_benchmarks=true",
]  # fmt: skip
FLOOR = [
    "sweep=retention_floor", "hydra.sweeper.constraints.retention_corrected='>= 0.95'",
    "hydra.sweeper.preview={benchmark_samples: 25}", "hydra.sweeper.preview_constraints.retention_corrected='>= 0.88'",
    f"hydra.sweeper.n_trials={TRIALS}",
]  # fmt: skip
SPACES = {
    "vptq": [
        "vptq.vector_dim=range(2,9)", "vptq.codebook_size=tag(ordered,choice(64,128,256,512,1024,2048))",
        "vptq.num_codebooks=range(1,3)", "vptq.share=choice(kind,model)",
        "vptq.hessian_damping=tag(ordered,choice(0.1,0.3,1,3,10))",
    ],
    "seedlm": [
        "seedlm.enabled=true", "vptq.enabled=false", "seedlm.block_size=range(4,13)", "seedlm.latent_dim=range(1,5)",
        "seedlm.bits=range(1,5)", "seedlm.weighted=choice(true,false)", "vptq.vector_dim=4", "vptq.codebook_size=1024",
        "vptq.num_codebooks=1", "vptq.share=kind", "vptq.hessian_damping=1",
    ],
}  # fmt: skip


def program(*words: str) -> list[str]:
    """A command of this repository's, with a cache that all studies share."""
    return [sys.executable, str(ROOT / "run.py"), *words]


def study_command(name: str) -> list[str]:
    """The command of one study: SPACE, SPACE_random, SPACE_SEED or SPACE_random_SEED."""
    space, *rest = name.split("_")
    seed = rest.pop() if rest and rest[-1].isdigit() else "0"
    sampler = rest[0] if rest else "tpe"
    return program(
        "-m", *CLOSED, *FLOOR, *SPACES[space], f"hydra.sweeper.study={name}", f"hydra.sweeper.sampler={sampler}",
        f"hydra.sweeper.seed={seed}", f"paths.cache_dir={STUDIES / 'cache'}",
    )  # fmt: skip


def environment() -> dict[str, str]:
    """One thread, and this repository's own package."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def trials_of(name: str) -> list:
    """All trials of a study so far."""
    import optuna

    from phase8.sweep.storage import open_storage

    if not (STUDIES / name / "study.db").is_file():
        return []
    try:
        return optuna.load_study(study_name=name, storage=open_storage(f"sqlite:///{STUDIES / name}/study.db")).trials
    except KeyError:
        return []  # the tables are there, the study not yet


def finished(name: str) -> int:
    """How many trials have ended and count."""
    from phase8.sweep.study import counts

    return sum(trial.state.is_finished() and counts(trial) for trial in trials_of(name))


def run_study(name: str, kills: int, every: int, seed: int) -> None:
    """Runs a study to its total; kills its process after about `every` more trials, where one has run for a while."""
    draw = random.Random(seed)
    log = STUDIES / name / "kills.jsonl"
    done = len(log.read_text().splitlines()) if log.is_file() else 0
    for number in range(done, kills):
        process = subprocess.Popen(study_command(name), env=environment(), process_group=0)
        wanted = finished(name) + every + draw.randrange(-1, 2)
        while process.poll() is None:
            time.sleep(10)
            if finished(name) >= wanted:
                break
        time.sleep(draw.uniform(0, 30))
        if process.poll() is not None:
            print(f"ended by itself before kill {number + 1}")
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        running = [trial.number for trial in trials_of(name) if trial.state.name == "RUNNING"]
        with log.open("a") as file:
            file.write(json.dumps({"kill": number + 1, "in_hand": running}) + "\n")
        print(f"killed, trial {running} in hand", flush=True)
    subprocess.run(study_command(name), env=environment(), check=True)


def run_alone(name: str, count: int) -> None:
    """Runs trials of a study that completed each on its own: a new process, no cache, all its items at once."""
    path = STUDIES / name / "alone.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    complete = [trial for trial in trials_of(name) if trial.state.name == "COMPLETE"][:count]
    for trial in complete:
        if str(trial.number) in known:
            continue
        overrides = [text for text in trial.user_attrs["overrides"] if not text.startswith("sweep=")]
        with tempfile.TemporaryDirectory() as directory:
            before = children_s()
            command = program(*CLOSED, *overrides, f"hydra.run.dir={directory}/run", f"paths.cache_dir={directory}/c")
            subprocess.run(command, env=environment(), check=True)
            result = json.loads(Path(directory, "run", "result.json").read_text())
        last = list(result["stages"].values())[-1]["attempts"][-1]
        same = {"ratio": last["ratio"], "retention_corrected": last["core_retention_corrected"]}
        told = {figure: trial.user_attrs["figures"][figure] for figure in same}
        known[str(trial.number)] = {"processor_s": children_s() - before, "alone": same, "in_study": told}
        write_atomic(path, json.dumps(known, indent=1) + "\n")


def children_s() -> float:
    """Processor time of all children that have ended, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def write_table(name: str) -> None:
    """Copies a study's report to `sweeps/` and writes what became of its trials, and what they cost."""
    from phase8.sweep.study import LOST, PROCESSOR_S, REPLACES, SURPLUS, counts

    source, target = STUDIES / name, SWEEPS / name
    target.mkdir(parents=True, exist_ok=True)
    for file in ("study.csv", "study.html", "best.yaml", "kills.jsonl", "alone.json"):
        if (source / file).is_file():
            shutil.copy(source / file, target / file)
    trials = trials_of(name)
    counted = [trial for trial in trials if counts(trial) and trial.state.is_finished()]
    lost = [trial for trial in trials if LOST in trial.user_attrs]
    replaced = Counter(t.user_attrs[REPLACES] for t in counted if REPLACES in t.user_attrs)
    again = sum(replaced[trial.number] == 1 for trial in lost)
    kills = (source / "kills.jsonl").read_text().splitlines() if (source / "kills.jsonl").is_file() else []
    rows = [
        ("trials that count", f"{len(counted)} of {TRIALS}"),
        *(
            (state.lower(), str(sum(t.state.name == state for t in counted)))
            for state in ("COMPLETE", "PRUNED", "FAIL")
        ),
        ("kills (SIGKILL)", f"{len(kills)}"),
        ("trials in hand when killed", f"{len(lost)}; taken up again and ended, once each: {again}"),
        ("trials doubled", f"{sum(count > 1 for count in replaced.values())}"),
        ("asked in vain by two processes", f"{sum(SURPLUS in trial.user_attrs for trial in trials)}"),
    ]
    for label, states in (("of a trial", ("COMPLETE", "PRUNED")), ("pruned", ("PRUNED",)), ("whole", ("COMPLETE",))):
        costs = [t.user_attrs[PROCESSOR_S] for t in counted if t.state.name in states and PROCESSOR_S in t.user_attrs]
        if costs:
            rows.append((f"processor time, {label}", f"mean {mean(costs):.1f} s, median {median(costs):.1f} s"))
    if (source / "alone.json").is_file():
        costs = [found["processor_s"] for found in json.loads((source / "alone.json").read_text()).values()]
        rows.append((f"the same as {len(costs)} runs of their own", f"mean {mean(costs):.1f} s"))
    command = shlex.join(["python", "run.py", *study_command(name)[2:]])
    lines = [f"# {name}", "", *wrap(command, 112), "", "| | |", "| --- | --- |", *(f"| {a} | {b} |" for a, b in rows)]
    write_atomic(target / "README.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


def wrap(command: str, width: int) -> list[str]:
    """A command as an indented block, continued with backslashes."""
    lines = textwrap.wrap(command, width, break_long_words=False, break_on_hyphens=False)
    return [f"    {line} \\" for line in lines[:-1]] + [f"    {lines[-1]}"]


def main() -> None:
    """Does what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run")
    command.add_argument("study")
    command.add_argument("--kills", type=int, default=0)
    command.add_argument("--every", type=int, default=15, help="trials between kills")
    command.add_argument("--seed", type=int, default=0, help="of the kills' moments")
    command = commands.add_parser("alone")
    command.add_argument("study")
    command.add_argument("--trials", type=int, default=3)
    commands.add_parser("table").add_argument("study")
    args = parser.parse_args()
    os.chdir(ROOT)
    match args.command:
        case "run":
            run_study(args.study, args.kills, args.every, args.seed)
        case "alone":
            run_alone(args.study, args.trials)
        case "table":
            write_table(args.study)


if __name__ == "__main__":
    main()
