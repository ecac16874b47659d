"""Several trained points side by side on one GPU, within a time limit: a small network leaves most of it idle.

    python -m experiments.frontier_gpu 440 DIRECTORY              # every point, in 440 seconds
    python -m experiments.frontier_gpu 440 DIRECTORY --only 280x  # points whose name begins so
    python -m experiments.frontier_gpu --rows DIRECTORY           # scores what is there (on the CPU) for the scoreboard

The text and the original's answers are made once; each point is a process that trains on them. It times itself while
all the others run too, and plans as many steps as the time allows. What it writes is an artifact and a JSON file beside
it: steps, seconds, tokens, and the divergence from the original on other text, by which points are chosen before any
benchmark is asked.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from experiments.scoreboard import add_row
from phase8.artifact.write import contents, write_artifact
from phase8.codecs.decoders import decode
from phase8.files import write_atomic
from phase8.model.source import SourceModel, load_source
from phase8.model.text import token_sequences
from phase8.run.calibration import CALIBRATION_SEED
from phase8.train.answers import load_answers, save_answers
from phase8.train.collect import collect_answers
from phase8.train.divergence import mean_kl
from phase8.train.settings import Precision
from phase8.train.shape import Shape
from phase8.train.whole import TrainedStage
from phase8.train.within_budget import Plan, StepDone
from phase8.world.mix import Mix

LENGTH, BATCH, SEQUENCES, KEPT = 128, 64, 65536, 48
TEXT_SEED, OTHER_TEXT_SEED = CALIBRATION_SEED + 1, CALIBRATION_SEED + 7_000
TIMED_AFTER, TIMED_FOR = 40, 8.0
"""Steps before a point times itself, and seconds that it does."""
RESERVE = 10.0
"""Seconds for coding: the coder runs on one core."""
MARGIN = 0.9
"""Of the time that is left at this speed is planned for."""


@dataclass(frozen=True)
class Point:
    """One training: shares of width, units and heads, and layers in a row that share their integers."""

    name: str
    ratio: float
    shape: tuple[float, float, float, int]
    seed: int = 0
    lr: float = 0.01
    batch: int = BATCH
    random: bool = False
    """Begins at random numbers instead of the original's weights: a small network distilled."""
    start_step: float = 0.6
    focus: float = 0.6


W48, W64, W96 = (0.1875, 0.1364, 0.5, 1), (0.25, 0.1818, 0.5, 1), (0.375, 0.2727, 0.5, 1)
POINTS = (
    *(Point("280x, width 64, 128 units, half the heads", 280.0, W64, seed=seed, lr=0.02) for seed in (0, 1, 2)),
    Point("280x, width 48, 96 units, half the heads", 280.0, W48, lr=0.02),
    Point("280x, width 96, 192 units, half the heads", 280.0, W96, lr=0.02),
    Point("280x, width 64, 128 units, all heads", 280.0, (0.25, 0.1818, 1.0, 1), lr=0.02),
    Point("280x, width 96, 192 units, half the heads, 2 layers share", 280.0, (0.375, 0.2727, 0.5, 2), lr=0.02),
    Point("280x, width 64 as the first, from random numbers", 280.0, W64, lr=0.02, random=True),
    Point("100x, width 96, 192 units, half the heads", 100.0, W96, lr=0.02),
    Point("100x, width 112, 256 units, all heads", 100.0, (0.4375, 0.3636, 1.0, 1)),
    *(Point("40x, width 176, 480 units", 40.2, (0.6875, 0.6875, 1.0, 1), seed=seed) for seed in (0, 1, 2)),
    Point("16x, whole width", 16.1, (1.0, 1.0, 1.0, 1)),
)


def folder(point: Point) -> str:
    """Its directory's name."""
    return f"{point.name.replace(', ', '_').replace(' ', '-')}_seed{point.seed}"


def prepare(place: Path, device: str) -> None:
    """The text and the original's answers to it."""
    place.mkdir(parents=True, exist_ok=True)
    source = load_source("embedded:reference")
    begin = time.monotonic()
    tokens = token_sequences(source.tokenizer, sequences=SEQUENCES, length=LENGTH, seed=TEXT_SEED, mix=Mix.last)
    torch.save(tokens, place / "tokens.pt")
    print(f"text: {time.monotonic() - begin:.0f} s", flush=True)
    network = source.network.to(device)
    save_answers(place, "all", collect_answers(network, tokens, kept=KEPT, batch_sequences=128))
    print(f"answers: {time.monotonic() - begin:.0f} s", flush=True)


def _stage(source: SourceModel, tokens: torch.Tensor, point: Point) -> TrainedStage:
    def size(groups: Any) -> int:
        return sum(map(len, contents(groups, source, stage="hyper").values()))

    width, units, heads, shared = point.shape
    shape = Shape(width=width, units=units, heads=heads, shared=shared)
    return TrainedStage(source, tokens, shape=shape, start_step=point.start_step, size=size, kept_answers=KEPT)


class _Enough(Exception):
    pass


def train(number: int, points: Sequence[Point], place: Path, out: Path, end: float, device: str) -> None:
    """One point, in a process of its own; `end` is a moment of `time.time`."""
    point = points[number]
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    source = load_source("embedded:reference")
    tokens = torch.load(place / "tokens.pt")
    answers = load_answers(place, "all", (len(tokens), LENGTH))
    assert answers is not None
    plan = Plan(
        steps=100_000, batch_sequences=point.batch, lr=point.lr, ramp=0.3, seed=point.seed, focus=point.focus,
        precision=Precision.float32,
    )  # fmt: skip
    budget, times = int(source.original_bytes / point.ratio), {}

    def timed(done: StepDone) -> None:
        if done.step >= TIMED_AFTER:
            times[done.step] = time.monotonic()
            if times[done.step] - times[TIMED_AFTER] > TIMED_FOR:
                raise _Enough

    def until(done: StepDone) -> None:
        if done.step % 4000 == 0:
            print(f"{point.name}: {done.step} of {done.steps}, loss {done.loss:.4f}", flush=True)
        if time.time() > end:
            raise _Enough

    part = _stage(source, tokens, point)._narrow()
    if point.random and part is not None:
        randomise(part.network)

    def fresh() -> TrainedStage:
        stage = _stage(source, tokens, point)
        stage._answers = lambda *_: answers  # type: ignore[method-assign]
        stage._narrow = lambda: part  # type: ignore[method-assign]
        return stage

    (place / f"ready.{number}").touch()  # all time themselves while all run
    while len(list(place.glob("ready.*"))) < len(points) and time.time() < end - 60:
        time.sleep(0.2)
    try:
        fresh().run(budget, plan, device=device, on_step=timed)
    except _Enough:
        pass
    seconds = (times[max(times)] - times[TIMED_AFTER]) / (max(times) - TIMED_AFTER)
    steps = max(20, int(MARGIN * (end - time.time() - RESERVE) / seconds))
    print(f"{point.name}: {1000 * seconds:.1f} ms a step, {steps} steps", flush=True)
    stage, begin, stopped = fresh(), time.monotonic(), False
    try:
        trained = stage.run(budget, replace(plan, steps=steps), device=device, on_step=until)
        groups = trained.groups
    except _Enough:
        groups, stopped = stage.so_far(budget), True
    seconds = time.monotonic() - begin
    directory = out / folder(point)
    artifact = write_artifact(directory, groups, source, stage="hyper")
    weights = {name: torch.from_numpy(value) for group in groups for name, value in decode(group)}
    other = token_sequences(source.tokenizer, sequences=64, length=LENGTH, seed=OTHER_TEXT_SEED, mix=Mix.last)
    divergence = mean_kl(source.network.to(device), {n: w.to(device) for n, w in weights.items()}, other.to(device))
    facts = {
        **asdict(point), "steps": steps, "stopped": stopped, "training_s": seconds, "divergence": divergence,
        "trained_tokens": steps * point.batch * LENGTH, "artifact_bytes": artifact.size_bytes,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }  # fmt: skip
    if not stopped:
        facts["estimate_over_real"] = trained.outcome.estimated_bytes / trained.coded_bytes
    write_atomic(out / f"{folder(point)}.json", json.dumps(facts, indent=1) + "\n")
    print(f"{point.name}: {artifact.size_bytes:,} bytes, divergence {divergence:.4f}, {seconds:.0f} s", flush=True)


def randomise(network: torch.nn.Module) -> None:
    """A network drawn anew."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.dim() == 2:
                deviation = network.config.hidden_size**-0.5 if "embed" in name else weight.shape[1] ** -0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * deviation)


def row_of(facts: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The scoreboard's row of an artifact, measured here."""
    from experiments.score import load, score

    source = load("reference")
    from phase8.artifact.read import read_artifact

    own = dict(source.network.named_parameters())
    with torch.no_grad():
        for group in read_artifact(directory).groups:
            for name, weight in decode(group):
                own[name].copy_(torch.from_numpy(weight))
    found = score(source.network, source.tokenizer)
    keep = ("artifact_bytes", "seed", "trained_tokens", "training_s")
    return {
        "method": "dense student" if facts["random"] else "trained lattice",
        "setting": f"{facts['name']}, {facts['batch']} sequences a step, "
        f"{round(facts['training_s'] / 60)} minutes of a shared GPU",
        "ours": not facts["random"],
        "group": "control, trained" if facts["random"] else "ours, trained",
        "model": "reference",
        "ratio": source.original_bytes / facts["artifact_bytes"],
        "command": "python -m experiments.frontier_gpu 440 DIRECTORY",
        **{name: facts[name] for name in keep},
        **{name: value for name, value in found.items() if name.startswith("retention")},
        "bits_per_byte": found["bits_per_byte"],
    }


def main() -> int:
    """The parent: prepares, starts the points and waits; or scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", type=float, nargs="?", default=300.0)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--only", nargs="+", default=[""])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--points", type=Path, help="a JSON list of points, instead of the ones of this file")
    options = parser.parse_args()
    points = [Point(**{**p, "shape": tuple(p["shape"])}) for p in json.loads(options.points.read_text())] if (
        options.points
    ) else list(POINTS)  # fmt: skip
    points = [point for point in points if point.name.startswith(tuple(options.only))]
    out: Path = options.directory
    if options.rows:
        for path in sorted(out.glob("*.json")):
            facts = json.loads(path.read_text())
            if not facts["name"].startswith(tuple(options.only)):
                continue
            row = row_of(facts, path.with_suffix(""))
            add_row(row)
            print(f"{row['setting']}: {row['retention_raw']:.3f} raw, {row['bits_per_byte']:.4f}", flush=True)
        return 0
    place = out / "text"
    if options.child is not None:
        train(int(options.child), points, place, out, options.seconds, options.device)
        return 0
    end = time.time() + options.seconds
    prepare(place, options.device)
    command = [sys.executable, "-m", "experiments.frontier_gpu", str(end), str(out), "--device", options.device]
    command += ["--only", *options.only] if options.only != [""] else []
    command += ["--points", str(options.points)] if options.points else []
    children = [subprocess.Popen([*command, "--child", str(number)]) for number in range(len(points))]
    return max(child.wait() for child in children)


if __name__ == "__main__":
    raise SystemExit(main())
