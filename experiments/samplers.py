"""Is a search better than chance, at equal trials? Every sampler on one table of measured outcomes, ten seeds each.

    python -m experiments.samplers

A study of the reference model takes a quarter of a minute of processor time per trial, so ten seeds of each sampler
would take most of a day. So the question is asked in small: two pieces of the reference model (half the rows of q_proj
and o_proj of its second layer) are encoded by VPTQ with all 504 settings of a space like that of
`conf/sweep/retention_floor.yaml`, and each gives its packed bits per weight, codebooks counted, and its error under the
layers' Hessians, relative to the weights' own. The table is `results/samplers.csv`. Then studies of 60 trials ask it
(`phase8.sweep.study`, as `python run.py -m` does) for the largest ratio at no more error than the variants' hand-set
values make, and `results/samplers.md` says what was found after 15, 30 and 60 trials.

It is not a search for quality on benchmarks; what it says of samplers rests on one small space.
"""

from __future__ import annotations

import csv
import io
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

from phase8.allocation.measure import weighted_energy
from phase8.codecs.pools import pools
from phase8.codecs.vptq.encode import VPTQCodec
from phase8.config import CompressionConfig
from phase8.files import write_atomic
from phase8.model.importance import collect_importance
from phase8.model.source import load_source
from phase8.model.text import token_sequences
from phase8.sweep.space import parse_space
from phase8.sweep.study import Study, StudySettings, violations

RESULTS = Path(__file__).parent / "results"
NAMES = ("model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.o_proj.weight")
ROWS = 128
SPACE: dict[str, tuple[Any, ...]] = {
    "vector_dim": tuple(range(2, 9)),
    "codebook_size": (64, 128, 256, 512, 1024, 2048),
    "num_codebooks": (1, 2),
    "share": ("kind", "model"),
    "hessian_damping": (0.1, 1.0, 10.0),
}
SWEEPS = [
    "vector_dim=range(2,9)", "codebook_size=tag(ordered,choice(64,128,256,512,1024,2048))", "num_codebooks=range(1,3)",
    "share=choice(kind,model)", "hessian_damping=tag(ordered,choice(0.1,1.0,10.0))",
]  # fmt: skip
HAND = {
    "default, skip_hyper": (4, 1024, 1, "kind", 1.0),
    "max_compression": (3, 128, 1, "kind", 1.0),
    "quality_preserving": (3, 512, 1, "kind", 1.0),
}
SAMPLERS, SEEDS, TRIALS, SHOWN = ("tpe", "random"), 10, 60, (15, 30, 60)
Table = dict[tuple[Any, ...], tuple[float, float]]
"""Settings in the order of `SPACE` -> bits per weight, relative weighted error."""


def measure() -> Table:
    """Encodes both matrices with every setting; what `results/samplers.csv` holds already is taken from there."""
    path = RESULTS / "samplers.csv"
    if path.is_file():
        with path.open(newline="") as file:
            return {
                (int(r["vector_dim"]), int(r["codebook_size"]), int(r["num_codebooks"]), r["share"],
                 float(r["hessian_damping"])): (float(r["bits"]), float(r["error"]))
                for r in csv.DictReader(file)
            }  # fmt: skip
    source = load_source("embedded:reference")
    tokens_NT = token_sequences(source.tokenizer, sequences=32, length=128, seed=0, path=None)
    importance = collect_importance(source.network, tokens_NT.split(8), NAMES)
    matrices = {name: source.matrices()[name].detach().float()[:ROWS] for name in NAMES}
    weights = sum(matrix.numel() for matrix in matrices.values())
    whole = sum(float(weighted_energy(matrices[name], importance[name]).sum()) for name in NAMES)
    codec, table, begin = VPTQCodec(), {}, time.process_time()
    for values in itertools.product(*SPACE.values()):
        chosen = {f"vptq.{name}": value for name, value in zip(SPACE, values, strict=True)}
        config = CompressionConfig().changed(chosen).vptq
        bits, error = 0, 0.0
        for pool in pools(NAMES, config):
            group = codec.encode({name: matrices[name] for name in pool}, config, importance=importance, seed=0)
            bits += group.packed_bits()
            for name, decoded in codec.decode(group).items():
                difference = matrices[name] - torch.from_numpy(np.ascontiguousarray(decoded))
                error += float(weighted_energy(difference, importance[name]).sum())
        table[values] = (bits / weights, error / whole)
    print(f"{len(table)} settings in {time.process_time() - begin:.0f} s of processor time", flush=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*SPACE, "bits", "error"])
    writer.writerows([*values, f"{bits:.6g}", f"{error:.6g}"] for values, (bits, error) in table.items())
    write_atomic(path, text.getvalue())
    return table


def searched(table: Table, sampler: str, seed: int, limit: float) -> list[float]:
    """The largest ratio within the limit after each trial of one study; 0 where none was within it."""
    space = parse_space({}, SWEEPS, OverridesParser.create())
    best: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        settings = StudySettings(
            study="table", storage=f"journal:{directory}/log", objectives={"ratio": "maximize"},
            constraints={"error": f"<= {limit}"}, n_trials=TRIALS, sampler=sampler, seed=seed,
        )  # fmt: skip
        study = Study(settings, space)
        while (asked := study.ask()) is not None:
            texts = dict(text.split("=", 1) for text in asked.overrides)
            key = tuple(type(values[0])(texts[name]) for name, values in SPACE.items())
            bits, error = table[key]
            figures = {"ratio": 32 / bits, "error": error}
            missed = violations(settings.constraints, figures)
            _constrain(study, asked.trial_id, missed)
            study.study.tell(asked.number, 32 / bits)
            held = all(by <= 0 for by in missed.values())
            best.append(max([*best[-1:], 32 / bits if held else 0.0]))
    return best


def _constrain(study: Study, trial_id: int, missed: dict[str, float]) -> None:
    import optuna

    trial = optuna.trial.Trial(study.study, trial_id)
    for name, value in missed.items():
        trial.set_constraint(name, value)


def main() -> None:
    """Measures, searches, writes both files."""
    torch.set_num_threads(1)
    table = measure()
    lines = [
        "Written by `python -m experiments.samplers`. Largest ratio (32 / packed bits per weight) found within an",
        f"error: mean (lowest, highest) of {SEEDS} seeds. *reached*: seeds that found the best of all {len(table)}.",
        "",
        "| error at most that of | its ratio | best of all | sampler | "
        + " | ".join(f"{n} trials" for n in SHOWN)
        + " | reached | beat the hand-set ratio after (median trial) |",
        "| --- " * (6 + len(SHOWN)) + "|",
    ]
    for hand, values in HAND.items():
        bits, limit = table[values]
        top = max(32 / b for b, e in table.values() if e <= limit)
        for sampler in SAMPLERS:
            paths = np.array([searched(table, sampler, seed, limit) for seed in range(SEEDS)])
            cells = [
                f"{paths[:, n - 1].mean():.2f} ({paths[:, n - 1].min():.2f}, {paths[:, n - 1].max():.2f})"
                for n in SHOWN
            ]
            above = [int(np.argmax(path > 32 / bits)) + 1 if path[-1] > 32 / bits else None for path in paths]
            beat = sorted(n if n is not None else TRIALS + 1 for n in above)[SEEDS // 2]
            reached = int((paths[:, -1] >= top - 1e-9).sum())
            lines.append(
                f"| {hand} | {32 / bits:.2f} | {top:.2f} | {sampler} | {' | '.join(cells)} | {reached} of {SEEDS} "
                f"| {beat if beat <= TRIALS else 'never'} |"
            )
            print(lines[-1], flush=True)
    write_atomic(RESULTS / "samplers.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
