"""What training within a byte budget costs: against the bare passes of the network, and for larger models.

    python -m experiments.training_cost        # writes experiments/results/training_cost.{json,md}; about ten minutes

Two models, each in a process of its own: the embedded one, narrowed as the default run narrows it (width 128, 352
units), and the 25M-parameter Llama of `experiments.whole_model` at its whole width. Steps of 2,048 tokens, of which the
first few are left out:

    bare passes   forward and backward of the same network through transformers' modules and autograd, with gradients
                  of every matrix, in as many slices side by side as the trainer takes; loss: the divergence from the
                  kept answers. The trainer itself asks by passes that are written out (`phase8/train/llama.py`)
    step          a whole step of the trainer: drawing, rounding, both passes, the price of the bits, Adam, bookkeeping;
                  not what the real coder takes, which is asked five times in a training
    answers       the original's answers, once for each sequence of the text

Peak memory is the process's largest resident set (VmHWM) before the bare passes, imported libraries included. The costs
of larger models follow from the 25M one's seconds per token and weight, at 2,048 x 5,000 tokens (what the 40x point of
the embedded model took); a GPU's are not measured.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from experiments.whole_model import make_model, peak_mb
from phase8.files import write_atomic

RESULTS = Path(__file__).parent / "results" / "training_cost"
ROOT = Path(__file__).parent.parent
BATCH, LENGTH, KEPT, WARM, STEPS = 16, 128, 48, 2, 6
TOKENS_40X = 5000 * BATCH * LENGTH
LARGER = (25, 125, 1000)


def measure(model: str) -> dict[str, Any]:
    """One model, in this process."""
    import torch

    from phase8.artifact.write import contents
    from phase8.model.source import load_source
    from phase8.train import sliced, within_budget
    from phase8.train.precision import takes_bfloat16
    from phase8.train.settings import Precision
    from phase8.train.shape import Shape
    from phase8.train.sliced import SlicedBatch
    from phase8.train.threads import side_by_side
    from phase8.train.whole import TrainedStage
    from phase8.train.within_budget import Plan, StepDone

    within_budget.SNAPSHOT_EVERY = STEPS // 2  # so that the peak has one in it
    with tempfile.TemporaryDirectory() as place:
        large = Path(place) / "model"
        if model == "25M":
            make_model(large, 25)
        source = load_source(str(large) if model == "25M" else "embedded:reference")
    share = 1.0 if model == "25M" else 0.5
    vocabulary = source.network.config.vocab_size
    tokens = torch.randint(4, vocabulary, (128, LENGTH), generator=torch.Generator().manual_seed(0))
    stage = TrainedStage(
        source,
        tokens,
        shape=Shape(width=share, units=share),
        start_step=0.6,
        size=lambda groups: sum(map(len, contents(groups, source, stage="hyper").values())),
        kept_answers=KEPT,
    )
    times: dict[str, list[float]] = {"answers": [], "step": [], "bare": []}

    def clock(into: str):
        def tick(*_: Any) -> None:
            times[into].append(time.perf_counter())

        return tick

    class Enough(Exception):
        pass

    def after(done: StepDone) -> None:
        clock("step")()
        if done.step == STEPS + WARM + 1:
            raise Enough  # of a long plan: the real coder is asked five times in all, not at every second step

    with suppress(Enough):
        plan = Plan(steps=5000, batch_sequences=BATCH)
        stage.run(source.original_bytes // 40, plan, on_answers=clock("answers"), on_step=after)

    peak = peak_mb()

    # Its parts again, for the bare passes.
    answers, part = stage._answers(None), stage._narrow()
    network = source.network if part is None else part.network
    weights = {name: p.detach() for name, p in network.named_parameters() if p.dim() == 2}
    device = torch.device("cpu")
    sliced.why_not_written_out = lambda *_: "bare passes are transformers'"
    with side_by_side(device) as (slices, apply):
        bfloat16 = takes_bfloat16(Precision.auto, device)
        batch = SlicedBatch(network, answers, device=device, bfloat16=bfloat16, slices=slices, apply=apply)
        for _ in range(STEPS + WARM + 1):
            clock("bare")()
            batch.ask(weights, tokens[:BATCH], torch.arange(BATCH))
    median = {name: _median(found) for name, found in times.items()}
    return {
        "model": model,
        "parameters": source.parameter_count,
        "trained_parameters": sum(weight.numel() for weight in weights.values()),
        "slices": slices,
        "bare_s": median["bare"],
        "step_s": median["step"],
        "step_over_bare": median["step"] / median["bare"],
        "answers_s_per_million": 1e6 * (times["answers"][-1] - times["answers"][0]) / (LENGTH * (128 - 16 * slices)),
        "step_s_per_million": 1e6 * median["step"] / (BATCH * LENGTH),
        "peak_mb": peak,
    }


def _median(ticks: list[float]) -> float:
    return statistics.median(after - before for before, after in zip(ticks[WARM:], ticks[WARM + 1 :], strict=False))


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The tables."""
    lines = [
        "# What training within a byte budget costs",
        "",
        "`python -m experiments.training_cost`; what is measured how stands at the head of that file.",
        "",
        "s/M: seconds per million tokens; MB: peak memory.",
        "",
        "| model | trained parameters | slices | bare passes, s | step, s | step / bare | s/M | answers, s/M | MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        lines.append(
            f"| {r['model']} | {r['trained_parameters']:,} | {r['slices']} | {r['bare_s']:.3f} | {r['step_s']:.3f} | "
            f"{r['step_over_bare']:.2f} | {r['step_s_per_million']:,.0f} | {r['answers_s_per_million']:,.0f} | "
            f"{r['peak_mb']:,.0f} |"
        )
    large = rows[-1]
    lines += [
        "",
        f"At {TOKENS_40X / 1e6:.1f} million tokens, this machine, seconds in proportion to the parameters:",
        "",
    ]
    for size in LARGER:
        hours = large["step_s_per_million"] * TOKENS_40X / 1e6 * size / (large["parameters"] / 1e6) / 3600
        lines.append(f"- {size}M parameters: {hours:,.1f} hours")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measures both models in processes of their own, or one in this."""
    if len(sys.argv) == 2 and sys.argv[1] in ("reference", "25M"):
        print(json.dumps(measure(sys.argv[1])))
        return 0
    rows = []
    for model in ("reference", "25M"):
        command = [sys.executable, "-m", "experiments.training_cost", model]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    write_atomic(RESULTS.with_suffix(".json"), json.dumps(rows, indent=1) + "\n")
    write_atomic(RESULTS.with_suffix(".md"), as_markdown(rows))
    print(as_markdown(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
