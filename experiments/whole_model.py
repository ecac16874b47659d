"""Time and memory of encoding and decoding a whole model, stage by stage.

    python -m experiments.whole_model                             # the 25M Llama with 32,000 tokens
    python -m experiments.whole_model --sizes 1 5 25 100 300 1000 --streamed   # the curve, about 50 minutes
    python -m experiments.whole_model --table                     # write the tables again, measure nothing

Writes experiments/results/whole_model.{json,md,png}. Every measurement is added to the JSON when it is made; those that
are there are not repeated (`--fresh` repeats them).

The models are Llamas of random weights with a realistic spectrum: every matrix is U diag(s) V^T with U and V the Q
factors of seeded Gaussian matrices and singular values s_i in proportion to i^-0.3 (the slopes of the embedded
reference model's lie from -0.17 to -0.33 over their upper half), scaled to a standard deviation of 0.02; norms are 1 +-
0.1. They are written layer by layer as safetensors shards in float32.

Two ways are measured, each in a process of its own, settings as `compressor=default` has them:

- `run`: the pieces of a run. The model is loaded, the importance measured on the run's calibration text (of every
  stage: a run does it once), the stage encoded, the artifact written and read back. No reconstruction, no benchmarks.
- `streamed`: `python -m phase8 encode`, from disk to disk, one group of matrices at a time; no calibration.

Decoding is measured in a third process, with the numpy reader alone, which decodes every tensor of the file and keeps
it (`run`) or lets go of it (`streamed`). Peak memory is the process's largest resident set (VmHWM), imported libraries
included; these are also given by themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from phase8.codecs.stages import NAMES
from phase8.files import write_atomic

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
SHAPES = {  # nominal millions of parameters: tokens, width, width of the MLP, layers; heads of 64
    1: (4000, 128, 352, 3),
    5: (8000, 256, 704, 4),
    25: (32000, 384, 1024, 7),
    100: (32000, 768, 2048, 11),
    300: (32000, 1024, 2816, 21),
    1000: (32000, 2048, 5632, 18),
}
SPECTRUM = 0.3
SIGMA = 0.02
MAIN = 25
ENCODE_BAR_S, DECODE_BAR_S, MEMORY_BAR_MB = 600.0, 1.0, 500.0


# ----------------------------------------------------------------------------------------------------------- the model


def make_model(directory: Path, size: int) -> None:
    """Writes the model of `size` million parameters; see the module's text."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    tokens, width, wide, layers = SHAPES[size]
    generator = torch.Generator().manual_seed(size)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        rank = min(rows, columns)
        left, _ = torch.linalg.qr(torch.randn(rows, rank, generator=generator))
        right, _ = torch.linalg.qr(torch.randn(columns, rank, generator=generator))
        made = (left * torch.arange(1, rank + 1) ** -SPECTRUM) @ right.T
        return made * (SIGMA / made.square().mean().sqrt())

    def norm() -> torch.Tensor:
        return 1 + 0.1 * torch.randn(width, generator=generator)

    def shards():
        yield {"model.embed_tokens.weight": matrix(tokens, width), "model.norm.weight": norm()}
        for layer in range(layers):
            prefix = f"model.layers.{layer}"
            yield {
                **{f"{prefix}.self_attn.{k}_proj.weight": matrix(width, width) for k in "qkvo"},
                **{f"{prefix}.mlp.{k}_proj.weight": matrix(wide, width) for k in ("gate", "up")},
                f"{prefix}.mlp.down_proj.weight": matrix(width, wide),
                f"{prefix}.input_layernorm.weight": norm(),
                f"{prefix}.post_attention_layernorm.weight": norm(),
            }

    directory.mkdir(parents=True)
    places = {}
    for number, shard in enumerate(shards(), 1):
        name = f"model-{number:05d}-of-{layers + 1:05d}.safetensors"
        save_file(shard, directory / name, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, name)
    index = {"metadata": {}, "weight_map": places}
    write_atomic(directory / "model.safetensors.index.json", json.dumps(index))
    config = LlamaConfig(
        vocab_size=tokens, hidden_size=width, intermediate_size=wide, num_hidden_layers=layers, head_dim=64,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, max_position_embeddings=512,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(directory)
    # Bytes, and names that no text contains for the rest: the text is there to run the calibration, not to be good.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<|end|>", *alphabet, *(f"<|{n}|>" for n in range(tokens - 1 - len(alphabet)))]
    raw = Tokenizer(models.BPE(vocab={name: n for n, name in enumerate(names)}, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<|end|>", eos_token="<|end|>").save_pretrained(directory)


# ------------------------------------------------------------------------ measurements, each in a process of its own


def peak_mb() -> float:
    """Largest resident memory of this process so far, MB of 10^6 bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # `getrusage` counts the parent's, up to the start of this program
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


class Clock:
    """Seconds per step, on the clock and of processor time (all threads together)."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.processor_s: dict[str, float] = {}
        self._last = time.perf_counter(), time.process_time()

    def step(self, name: str) -> None:
        now = time.perf_counter(), time.process_time()
        self.seconds[name], self.processor_s[name] = now[0] - self._last[0], now[1] - self._last[1]
        self._last = now


def encode_run(model: Path, out: Path, stage: str, threads: int) -> dict[str, Any]:
    """The pieces of a run: load, calibrate, encode, write and check."""
    clock = Clock()
    import torch

    from phase8.artifact.write import write_artifact
    from phase8.config import CompressionConfig
    from phase8.model.source import load_source
    from phase8.run.calibration import Calibration
    from phase8.run.groups import encode_all

    torch.set_num_threads(threads)
    clock.step("import")
    libraries = peak_mb()
    source = load_source(str(model))
    clock.step("load")
    config = CompressionConfig()
    calibration = Calibration(source)
    calibration.importance(config)
    clock.step("calibrate")
    groups = encode_all(source, calibration, stage, config)
    clock.step("encode")
    artifact = write_artifact(out, groups, source, stage=stage)
    clock.step("write")
    return {"seconds": clock.seconds, "processor_s": clock.processor_s, "libraries_mb": libraries, "peak_mb": peak_mb(),
            "bytes": artifact.size_bytes, "parameters": source.parameter_count}  # fmt: skip


def encode_streamed(model: Path, out: Path, stage: str, threads: int) -> dict[str, Any]:
    """From disk to disk."""
    clock = Clock()
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401  counts as a library

    from phase8.codecs import get_codec
    from phase8.config import CompressionConfig
    from phase8.run.streaming import encode_checkpoint

    get_codec(stage)
    torch.set_num_threads(threads)
    clock.step("import")
    libraries = peak_mb()
    manifest = encode_checkpoint(model, out, stage, CompressionConfig())
    clock.step("encode")
    return {"seconds": clock.seconds, "processor_s": clock.processor_s, "libraries_mb": libraries, "peak_mb": peak_mb(),
            "bytes": sum(manifest.sizes.values()), "parameters": manifest.source["parameters"]}  # fmt: skip


def decode(artifact: Path, keep: bool) -> dict[str, Any]:
    """Reads a file and decodes every tensor with numpy alone, three times; the least time counts."""
    from phase8.artifact.read import read_manifest

    libraries, tries = peak_mb(), []
    for _ in range(3):
        begin, begin_processor = time.perf_counter(), time.process_time()
        kept = []
        for _, weights in read_manifest(artifact).tensors():
            if keep:
                kept.append(weights)
        tries.append((time.perf_counter() - begin, time.process_time() - begin_processor))
        del kept
    seconds, processor = min(tries)
    return {"decode_s": seconds, "decode_processor_s": processor, "libraries_mb": libraries, "peak_mb": peak_mb()}


def in_child(arguments: list[str], threads: int) -> dict[str, Any]:
    """Runs this script as a worker and returns what it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "experiments.whole_model", "--worker", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def worker(arguments: list[str]) -> int:
    kind, *rest = arguments
    if kind == "make":
        make_model(Path(rest[0]), int(rest[1]))
        print("{}")
    elif kind == "decode":
        print(json.dumps(decode(Path(rest[0]), rest[1] == "run")))
    else:
        encode = encode_run if kind == "run" else encode_streamed
        print(json.dumps(encode(Path(rest[0]), Path(rest[1]), rest[2], int(rest[3]))))
    return 0


def measure(size: int, way: str, stages: list[str], options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Adds the rows of one model and one way, each as soon as it is measured."""
    done = {(row["size"], row["way"], row["stage"]) for row in rows}
    wanted = [stage for stage in stages if (size, way, stage) not in done]
    if not wanted:
        return
    options.work.mkdir(parents=True, exist_ok=True)
    model = options.work / f"model_{size}"
    if not model.exists():
        fresh = model.with_suffix(".part")
        shutil.rmtree(fresh, ignore_errors=True)
        in_child(["make", str(fresh), str(size)], options.threads)
        fresh.rename(model)
    for stage in wanted:
        out = options.work / f"artifact_{size}_{way}_{stage}"
        load = os.getloadavg()[0]
        found = in_child([way, str(model), str(out), stage, str(options.threads)], options.threads)
        read = in_child(["decode", str(out), way], options.threads)
        rows.append(
            {
                "size": size,
                "way": way,
                "stage": stage,
                "threads": options.threads,
                "load": load,
                **found,
                "decode_s": read["decode_s"],
                "decode_processor_s": read["decode_processor_s"],
                "decode_peak_mb": read["peak_mb"],
                "decode_libraries_mb": read["libraries_mb"],
            }  # fmt: skip
        )
        shutil.rmtree(out)
        save(options.out, rows)
        seconds = ", ".join(f"{name} {value:.1f}" for name, value in found["seconds"].items())
        print(f"{size}M {way} {stage}: {seconds}; decode {read['decode_s']:.2f} s; peak {found['peak_mb']:.0f} MB, "
              f"decoding {read['peak_mb']:.0f} MB", flush=True)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- results


def encode_s(row: dict[str, Any]) -> float:
    """Everything between the imported libraries and the checked file."""
    return sum(value for name, value in row["seconds"].items() if name != "import")


def verdict(good: bool) -> str:
    return "met" if good else "**missed**"


def as_markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# A whole model: time and memory per stage",
        "",
        "`python -m experiments.whole_model`: Llamas of random weights with power-law singular values, default"
        " settings of every stage; the script's head says how they are made and what is measured. MB are 10^6 bytes;"
        " peak memory is that of the whole process, libraries included. `load before` is the machine's load average"
        " when the measurement began: where it is not near 0, others used the cores, and processor seconds (all threads"
        " together) say more than seconds.",
        "",
    ]
    for way, title in (
        ("run", "The pieces of a run, with calibration"),
        ("streamed", "Streamed from disk to disk, without calibration"),
    ):
        some = sorted((r for r in rows if r["way"] == way), key=lambda r: (r["size"], NAMES.index(r["stage"])))
        if not some:
            continue
        steps = [name for name in ("load", "calibrate", "encode", "write") if any(name in r["seconds"] for r in some)]
        lines += [
            f"## {title}",
            "",
            "| parameters | stage | threads | load before | " + " | ".join(f"{step}, s" for step in steps)
            + " | encode, processor s | thousand weights/s | bytes | bits/weight | decode, s | processor s"
            " | peak encoding, MB | libraries | FP32 size | above both | peak decoding, MB | libraries |",
            "| --- " * (16 + len(steps)) + "|",
        ]  # fmt: skip
        for r in some:
            weights, fp32 = r["parameters"], 4 * r["parameters"] / 1e6
            times = " | ".join(f"{r['seconds'][step]:.1f}" if step in r["seconds"] else "-" for step in steps)
            rate = weights / r["seconds"]["encode"] / 1e3
            lines.append(
                f"| {weights:,} | {r['stage']} | {r['threads']} | {r['load']:.1f} | {times} | "
                f"{r['processor_s']['encode']:.1f} | {rate:.0f} | {r['bytes']:,} | "
                f"{8 * r['bytes'] / weights:.3f} | {r['decode_s']:.2f} | "
                f"{r['decode_processor_s']:.2f} | {r['peak_mb']:.0f} | "
                f"{r['libraries_mb']:.0f} | {fp32:.0f} | {r['peak_mb'] - r['libraries_mb'] - fp32:+.0f} | "
                f"{r['decode_peak_mb']:.0f} | {r['decode_libraries_mb']:.0f} |"
            )
        lines.append("")
        main = [r for r in some if r["size"] == MAIN]
        if len(main) == len(NAMES):
            shared = {name: [r["seconds"].get(name, 0.0) for r in main] for name in ("load", "calibrate")}
            # A run loads and calibrates once; here each stage's process did.
            total = sum(encode_s(r) for r in main)
            once = total - sum(sum(values) - max(values) for values in shared.values())
            slowest, allowed = max(r["decode_s"] for r in main), 4 * main[0]["parameters"] / 1e6 + MEMORY_BAR_MB
            peak = max(r["peak_mb"] for r in main)
            lines += [
                f"At {main[0]['parameters']:,} parameters: three stages in {once:.0f} s, loading and calibrating once"
                f" (aim {ENCODE_BAR_S:.0f} s on 2 cores: {verdict(once <= ENCODE_BAR_S)}); slowest decoding"
                f" {slowest:.2f} s (aim {DECODE_BAR_S:.0f} s: {verdict(slowest <= DECODE_BAR_S)}); largest peak"
                f" {peak:.0f} MB (aim FP32 size + {MEMORY_BAR_MB:.0f} MB = {allowed:.0f} MB:"
                f" {verdict(peak <= allowed)}).",
                "",
            ]
        if way == "streamed" and len({r["size"] for r in some}) > 1:
            lines += ["![time and memory against parameters](whole_model.png)", ""]
            for stage in NAMES:
                here = [r for r in some if r["stage"] == stage]
                if len(here) > 1:  # where there are enough weights that tables and start-up do not count
                    low, high = next((r for r in here if r["size"] >= MAIN), here[0]), here[-1]
                    grown = high["parameters"] / low["parameters"]
                    time_grown = high["processor_s"]["encode"] / low["processor_s"]["encode"]
                    above = [f"{r['peak_mb'] - r['libraries_mb']:.0f}" for r in (low, high)]
                    lines.append(
                        f"- {stage}: from {low['parameters']:,} to {high['parameters']:,} parameters (x {grown:.0f})"
                        f" the encoding takes x {time_grown:.1f} the processor time, and memory above the libraries"
                        f" goes from {above[0]} to {above[1]} MB."
                    )
            lines.append("")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Encoding time and peak memory of the streamed way against the number of parameters."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    some = sorted((r for r in rows if r["way"] == "streamed"), key=lambda r: r["parameters"])
    for stage in NAMES:
        here = [r for r in some if r["stage"] == stage]
        millions = [r["parameters"] / 1e6 for r in here]
        left.plot(millions, [r["processor_s"]["encode"] for r in here], marker="o", label=stage)
        right.plot(millions, [r["peak_mb"] for r in here], marker="o", label=stage)
    sizes = sorted({r["parameters"] / 1e6 for r in some})
    right.plot(sizes, [4 * n for n in sizes], color="black", linewidth=1, linestyle="--", label="the model in FP32")
    for axis, label in ((left, "encoding, processor s"), (right, "peak memory, MB")):
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("million parameters")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=75)


def save(out: Path, rows: list[dict[str, Any]]) -> None:
    rows.sort(key=lambda r: (r["way"], r["size"], NAMES.index(r["stage"])))
    write_atomic(out.with_suffix(".json"), json.dumps({"rows": rows}, indent=1) + "\n")
    write_atomic(out.with_suffix(".md"), as_markdown(rows))
    if len({r["size"] for r in rows if r["way"] == "streamed"}) > 1:
        plot(rows, out.with_suffix(".png"))


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        return worker(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", choices=list(SHAPES), default=[MAIN], help="in millions")
    parser.add_argument("--stages", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--streamed", action="store_true", help="only that way")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="measure again what is measured")
    parser.add_argument("--table", action="store_true", help="only write the tables")
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "whole_model", help="models and artifacts")
    parser.add_argument("--out", type=Path, default=RESULTS / "whole_model", help="without extension")
    options = parser.parse_args()
    stored = options.out.with_suffix(".json")
    rows = json.loads(stored.read_text(encoding="utf-8"))["rows"] if stored.is_file() else []
    ways = ["streamed"] if options.streamed else ["run", "streamed"]
    if options.fresh:
        again = {(size, way, stage) for size in options.sizes for way in ways for stage in options.stages}
        rows = [row for row in rows if (row["size"], row["way"], row["stage"]) not in again]
    if not options.table:
        for size in options.sizes:
            for way in ways:
                measure(size, way, options.stages, options, rows)
            shutil.rmtree(options.work / f"model_{size}", ignore_errors=True)
    save(options.out, rows)
    print(as_markdown(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
