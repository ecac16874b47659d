"""Studies of the reference model in closed form (nothing is trained), with kills, and what they cost.

    python -m experiments.studies run vptq --kills 3      60 trials; the process is killed three times on the way
    python -m experiments.studies run vptq_random_1       the same space by chance; vptq_1, vptq_2: other seeds
    python -m experiments.studies hand                    the values that conf/compressor has, on the same items
    python -m experiments.studies alone --trials 5        trials of the study as runs on their own, without a cache
    python -m experiments.studies table                   experiments/results/studies.md from what is there

A study searches VPTQ's or SeedLM's settings for the largest ratio whose chance-corrected retention stays at or above
0.95, on 100 of the 200 items of each core benchmark (every second one); the others stay apart, and say afterwards
whether what was found holds there (`table`). Everything is an ordinary `python run.py -m ...`, in `studies/`; whatever
is there already is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

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
HAND = {
    "vptq default, skip_hyper": ["seedlm.enabled=false"],
    "vptq max_compression": ["seedlm.enabled=false", "vptq.codebook_size=128", "vptq.vector_dim=3"],
    "vptq quality_preserving": ["seedlm.enabled=false", "vptq.codebook_size=512", "vptq.vector_dim=3"],
    "seedlm default, quality_preserving": ["vptq.enabled=false"],
    "seedlm max_compression": [
        "vptq.enabled=false", "seedlm.bits=1", "seedlm.block_size=6", "seedlm.latent_dim=4",
    ],
}  # fmt: skip
"""The variants' settings of one stage, as conf/compressor has them."""


def program(*words: str) -> list[str]:
    """A command of this repository's, with a cache that all studies share."""
    return [sys.executable, str(ROOT / "run.py"), *CLOSED, *words]


def study_command(name: str) -> list[str]:
    """The command of one study: SPACE, SPACE_random, SPACE_SEED or SPACE_random_SEED."""
    space, *rest = name.split("_")
    seed = rest.pop() if rest and rest[-1].isdigit() else "0"
    sampler = rest[0] if rest else "tpe"
    return program(
        "-m", *FLOOR, *SPACES[space], f"hydra.sweeper.study={name}", f"hydra.sweeper.sampler={sampler}",
        f"hydra.sweeper.seed={seed}", f"paths.cache_dir={STUDIES / 'cache'}",
    )  # fmt: skip


def environment() -> dict[str, str]:
    """One thread, and this tree."""
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


def run_study(name: str, kills: int, seed: int) -> None:
    """Runs a study to its total; kills its process where a trial drawn at random has run for a random time."""
    from phase8.sweep.study import counts

    draw = random.Random(seed)
    log = STUDIES / name / "kills.jsonl"
    done = len(log.read_text().splitlines()) if log.is_file() else 0
    for number in range(done, kills):
        process = subprocess.Popen(study_command(name), env=environment(), start_new_session=True)
        wanted = TRIALS * (number + 1) // (kills + 1) + draw.randrange(-4, 5)
        while process.poll() is None:
            time.sleep(10)
            if sum(trial.state.is_finished() and counts(trial) for trial in trials_of(name)) >= wanted:
                break
        time.sleep(draw.uniform(0, 20))
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
    target = SWEEPS / name
    target.mkdir(parents=True, exist_ok=True)
    for file in ("study.csv", "study.html", "best.yaml", "kills.jsonl"):
        if (STUDIES / name / file).is_file():
            shutil.copy(STUDIES / name / file, target / file)


def main() -> None:
    """Does what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run")
    command.add_argument("study")
    command.add_argument("--kills", type=int, default=0)
    command.add_argument("--seed", type=int, default=0, help="of the kills' moments")
    args = parser.parse_args()
    os.chdir(ROOT)
    if args.command == "run":
        run_study(args.study, args.kills, args.seed)


if __name__ == "__main__":
    main()
