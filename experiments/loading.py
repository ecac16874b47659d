"""How fast an artifact opens and answers: the numpy reader and the torch loader against the uncompressed model.

    python -m experiments.loading                   # embedded model -> experiments/results/loading.{md,json}
    python -m experiments.loading --model DIR       # any Llama-type model in the form of transformers

Encodes the model with every stage's default settings (no calibration: neither time depends on it), then

1. asserts that the numpy reader and the torch loader give the same weights, bit for bit;
2. opens each in a process of its own, one thread, and lets it write greedily after a prompt: seconds to import the
   libraries, to load the weights, milliseconds per token (a key-value cache in all of them), peak memory.

The rounds are interleaved, and every ratio is taken within a round: what else the machine does falls on all alike. The
ratio given is the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
STAGES = ("seedlm", "vptq", "hyper")
READERS = {
    "uncompressed": "uncompressed, transformers",
    "torch": "artifact, torch loader",
    "numpy": "artifact, numpy reader",
    "loop": "artifact, numpy reader without constriction",
}
FIELDS = ("import_s", "load_s", "token_ms", "peak_mib")


# -------------------------------------------------------------------------------- one reader, in a process of its own


def _torch_step(directory: str, compressed: bool) -> tuple[float, Any]:
    """Returns when the libraries were imported, and a function that loads and returns a token-by-token function."""
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401  what AutoModel would import while it loads
    from transformers import AutoModelForCausalLM

    from phase8.artifact.write import load_artifact

    imported = time.perf_counter()
    torch.set_num_threads(1)

    def load():
        if compressed:
            network = load_artifact(directory)[0]
        else:
            network = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        state = {}

        @torch.no_grad()
        def step(tokens: list[int]) -> int:
            out = network(torch.tensor([tokens]), past_key_values=state.get("cache"), use_cache=True, logits_to_keep=1)
            state["cache"] = out.past_key_values
            return int(out.logits[0, -1].argmax())

        return step, state.clear

    return imported, load


def _numpy_step(directory: str, library: bool, room: int) -> tuple[float, Any]:
    from phase8.lossless import entropy
    from phase8.runtime import load_model

    imported = time.perf_counter()
    if not library:
        entropy.constriction = None

    def load():
        model = load_model(directory)
        state = {"cache": model.cache(room)}

        def step(tokens: list[int]) -> int:
            return int(model.logits(tokens, state["cache"], last_only=True)[0].argmax())

        def restart() -> None:
            state["cache"] = model.cache(room)

        return step, restart

    return imported, load


def _peak_mib() -> float:
    """Most memory that this process has held. (`getrusage` counts the parent's, up to the start of this program.)"""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def worker(reader: str, directory: str, prompt: list[int], count: int) -> dict[str, Any]:
    """Loads, writes `count` tokens twice (the first time warms up), and returns what it took."""
    begun = time.perf_counter()
    if reader in ("numpy", "loop"):
        imported, load = _numpy_step(directory, reader == "numpy", len(prompt) + count)
    else:
        imported, load = _torch_step(directory, reader == "torch")
    started = time.perf_counter()
    step, restart = load()
    loaded = time.perf_counter()
    for _ in range(2):
        restart()
        written = [step(prompt)]
        first = time.perf_counter()
        while len(written) < count:
            written.append(step(written[-1:]))
        seconds = time.perf_counter() - first
    return {
        "import_s": imported - begun,
        "load_s": loaded - started,
        "token_ms": 1000 * seconds / (count - 1),
        "peak_mib": _peak_mib(),
        "written": written,
    }


def _in_a_process(reader: str, directory: Path, prompt: list[int], count: int) -> dict[str, Any]:
    order = json.dumps({"reader": reader, "directory": str(directory), "prompt": prompt, "count": count})
    environment = os.environ | {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    call = [sys.executable, "-m", "experiments.loading", "--worker", order]
    done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{reader} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------------------------------------------- the whole table


def write_artifacts(model: str, directory: Path) -> dict[str, Any]:
    """Writes the uncompressed model and one artifact per stage; returns the facts about the model."""
    from phase8.artifact.write import write_artifact
    from phase8.codecs import get_codec
    from phase8.config import CompressionConfig
    from phase8.model.source import load_source

    source, config = load_source(model), CompressionConfig()
    source.network.save_pretrained(directory / "uncompressed")
    sizes = {}
    plain = get_codec("plain").encode(source.vectors(), None, importance={}, seed=0)
    for stage in STAGES:
        start = time.perf_counter()
        group = get_codec(stage).encode(source.matrices(), getattr(config, stage), importance={}, seed=0)
        artifact = write_artifact(directory / stage, [group, plain], source, stage=stage)
        sizes[stage] = artifact.size_bytes
        print(f"{stage}: {artifact.size_bytes:,} bytes, encoded in {time.perf_counter() - start:.0f} s", flush=True)
    vocabulary = source.network.get_input_embeddings().num_embeddings
    prompt = [(7 * i + 11) % vocabulary for i in range(16)]
    return {"model": source.name, "parameters": source.parameter_count, "bytes": sizes, "prompt": prompt}


def assert_identical(directory: Path) -> int:
    """Compares the two loaders bit for bit; returns the number of weights compared.

    Raises:
        AssertionError: they differ.
    """
    from phase8.artifact.write import load_artifact
    from phase8.model.source import unique_parameters
    from phase8.runtime import load_model

    weights = load_model(directory).weights
    network, _ = load_artifact(directory)
    parameters = {name: p.detach().numpy() for name, (_, p) in unique_parameters(network).items()}
    assert weights.keys() == parameters.keys(), "the loaders disagree about the tensors"
    for name, weight in weights.items():
        assert weight.shape == parameters[name].shape and weight.tobytes() == parameters[name].tobytes(), name
    return sum(weight.size for weight in weights.values())


def measure(directory: Path, facts: dict[str, Any], rounds: int, count: int) -> dict[str, Any]:
    """Runs every reader in every round and returns medians, and medians of the ratios within each round."""
    cells = [("uncompressed", None), *((r, stage) for stage in STAGES for r in READERS if r != "uncompressed")]
    seen: dict[tuple[str, str | None], list[dict[str, Any]]] = {cell: [] for cell in cells}
    for number in range(rounds):
        for reader, stage in cells:
            place = directory / (stage or "uncompressed")
            seen[reader, stage].append(_in_a_process(reader, place, facts["prompt"], count))
        print(f"round {number + 1} of {rounds}", flush=True)
    base = seen["uncompressed", None]
    rows = []
    for (reader, stage), runs in seen.items():
        row: dict[str, Any] = {"stage": stage, "reader": reader}
        for name in FIELDS:
            row[name] = statistics.median(run[name] for run in runs)
            row[f"{name}_ratio"] = statistics.median(run[name] / one[name] for run, one in zip(runs, base, strict=True))
        if stage is not None:
            row["same_text_as_torch"] = runs[0]["written"] == seen["torch", stage][0]["written"]
        rows.append(row)
    return {**facts, "rounds": rounds, "tokens": count, "rows": rows}


def as_markdown(found: dict[str, Any]) -> str:
    """The results as a page."""
    lines = [
        "# Opening an artifact, and the latency per token",
        "",
        f"`python -m experiments.loading`: {found['model']}, {found['parameters']:,} parameters, one thread, "
        f"{found['rounds']} interleaved rounds, prompt of {len(found['prompt'])} tokens, {found['tokens']} tokens "
        "written greedily with a key-value cache. Medians; in brackets the ratio to the uncompressed model in "
        "transformers, taken within each round.",
        "",
        f"The weights of the numpy reader and of the torch loader were compared: {found['compared']:,} float32 "
        "numbers, identical bit for bit, all stages.",
        "",
        "| stage | bytes | reader | import, s | load, s | ms per token | peak memory, MiB | same text as torch |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in found["rows"]:
        size = f"{found['bytes'][row['stage']]:,}" if row["stage"] else f"{4 * found['parameters']:,}"
        shown = [f"{row[name]:.{digits}f} ({row[f'{name}_ratio']:.2f})" for name, digits in zip(FIELDS, (2, 2, 2, 0))]  # noqa: B905
        same = {True: "yes", False: "no", None: ""}[row.get("same_text_as_torch")]
        cells = [row["stage"] or "none", size, READERS[row["reader"]], *shown, same]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "The two readers compute the same products in another order, so their logits differ in the last digits; the",
        "text can part where two tokens are almost equally likely. Import time is that of a fresh process's libraries.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs the experiment, or one reader of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:reference")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--out", type=Path, default=RESULTS / "loading")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(worker(**json.loads(options.worker))))
        return 0
    from phase8.files import write_atomic

    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        facts = write_artifacts(options.model, directory)
        facts["compared"] = sum(assert_identical(directory / stage) for stage in STAGES)
        found = measure(directory, facts, options.rounds, options.tokens)
    write_atomic(options.out.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
    write_atomic(options.out.with_suffix(".md"), as_markdown(found))
    print(as_markdown(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
