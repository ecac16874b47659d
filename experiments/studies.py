"""Studies of the reference model in closed form (nothing is trained), with kills, and what they cost.

    python -m experiments.studies run vptq --kills 3      60 trials; the process is killed three times on the way
    python -m experiments.studies run vptq_random_1       the same space by chance, seed 1; vptq_1: TPE with seed 1

A study searches VPTQ's settings for the largest ratio whose chance-corrected retention stays at or above
0.95, on every second item of the core benchmarks; each trial is tried on 25 items first. Everything is an ordinary
`python run.py -m ...`, in `studies/`; a study that is there already is gone on with.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
STUDIES = Path("studies")
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


def main() -> None:
    """Does what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run")
    command.add_argument("study")
    command.add_argument("--kills", type=int, default=0)
    command.add_argument("--every", type=int, default=15, help="trials between kills")
    command.add_argument("--seed", type=int, default=0, help="of the kills' moments")
    args = parser.parse_args()
    os.chdir(ROOT)
    run_study(args.study, args.kills, args.every, args.seed)


if __name__ == "__main__":
    main()
