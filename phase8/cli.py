"""Artifacts and runs on the command line: `python -m phase8 encode | inspect | generate | export | dashboard | ...`."""

from __future__ import annotations

import argparse
import json
import math
import os
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from phase8.codecs.stages import NAMES
from phase8.errors import ArtifactError, ConfigError, Phase8Error
from phase8.printable import line, printable

if TYPE_CHECKING:
    from phase8.artifact.read import Artifact


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command is not _lm_eval:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = rest
    try:
        return options.command(options)
    except Phase8Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m phase8",
        description="Look into, try and unpack what `python run.py` made.",
        epilog="An ARTIFACT is a directory such as outputs/DATE/TIME/artifacts/vptq.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    encode = commands.add_parser("encode", help="compress a model from disk to disk: no run, no gates, little memory")
    encode.add_argument("model", type=Path, metavar="MODEL", help="a directory with safetensors, see save_pretrained")
    encode.add_argument("out", type=Path, metavar="OUT", help="the artifact's directory; replaced if it exists")
    encode.add_argument("--stage", choices=NAMES, required=True)
    encode.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="such as vptq.vector_dim=8")
    encode.add_argument(
        "--group-weights", type=int, default=1 << 23, help="most weights whose streams are held (default 8388608)"
    )
    encode.set_defaults(command=_encode)

    inspect = commands.add_parser("inspect", help="what is inside, every byte accounted for")
    inspect.add_argument("artifact", type=Path, metavar="ARTIFACT")
    inspect.add_argument("--tensors", action="store_true", help="also list every tensor")
    inspect.add_argument("--json", action="store_true", help="everything, the tensors too, as JSON for programs")
    inspect.set_defaults(command=_inspect)

    generate = commands.add_parser("generate", help="let the compressed model continue a text")
    generate.add_argument("artifact", type=Path, metavar="ARTIFACT", help="an artifact, or a Hugging Face directory")
    generate.add_argument("prompt", metavar="TEXT")
    generate.add_argument("--tokens", type=int, default=60, help="most tokens to write (default 60)")
    generate.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default)")
    generate.add_argument("--seed", type=int, default=0, help="for a temperature above 0")
    generate.set_defaults(command=_generate)

    export = commands.add_parser("export", help="write it as safetensors, GGUF or ONNX for other programs")
    export.add_argument("artifact", type=Path, metavar="ARTIFACT")
    export.add_argument("out", type=Path, metavar="OUT", help="a directory that does not exist yet")
    export.add_argument("--format", choices=["safetensors", "gguf", "onnx"], default="safetensors")
    export.add_argument(
        "--dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="float32 is exact (default)"
    )
    export.set_defaults(command=_export)

    decompress = commands.add_parser("decompress", help="write an ordinary Hugging Face directory")
    decompress.add_argument("artifact", type=Path, metavar="ARTIFACT")
    decompress.add_argument("out", type=Path, metavar="OUT", help="a directory that does not exist yet")
    decompress.set_defaults(command=_export, format="safetensors", dtype="float32")

    compare = commands.add_parser("compare", help="several runs side by side: table, frontier, retention, settings")
    compare.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's directory, or a multirun's")
    compare.add_argument("--html", type=Path, metavar="FILE", help="also write a page with plots")
    compare.set_defaults(command=_compare)

    harness = commands.add_parser(
        "lm-eval", add_help=False, help="lm-eval's own command, which then opens artifacts: --model hf"
    )
    harness.set_defaults(command=_lm_eval)

    dashboard = commands.add_parser(
        "dashboard",
        help="watch, start and steer runs in a browser",
        epilog="Beyond this machine a token is always asked for: that of PHASE8_DASHBOARD_TOKEN, or one made anew.",
    )
    dashboard.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    dashboard.add_argument("--port", type=int, help="default 8008, or the next that is free")
    dashboard.add_argument(
        "--runs",
        type=Path,
        action="append",
        metavar="DIR",
        help="where runs are (default: outputs, multirun and studies)",
    )
    dashboard.add_argument("--model", action="append", default=[], metavar="DIR", help="a model that may be started")
    dashboard.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="a name it answers to")
    dashboard.add_argument("--jobs", type=int, default=1, help="runs started from the page at once (default 1)")
    dashboard.add_argument("--no-build", action="store_true", help="do not build the page, even if it is not there")
    dashboard.set_defaults(command=_dashboard)
    return parser


def _encode(options: argparse.Namespace) -> int:
    import yaml

    from phase8.config import CompressionConfig
    from phase8.run.streaming import encode_checkpoint

    values = {}
    for setting in options.set:
        name, separator, value = setting.partition("=")
        if not separator or not name or name.endswith("."):
            raise ConfigError(f"{setting!r} is no NAME=VALUE", where="--set", fix="for example --set vptq.vector_dim=8")
        values[name] = yaml.safe_load(value)
    config, finished = CompressionConfig().changed(values), 0

    def on_progress(weights: int) -> None:
        nonlocal finished
        finished += weights
        if sys.stderr.isatty():
            print(f"\r{finished:,} weights", end="", file=sys.stderr, flush=True)

    manifest = encode_checkpoint(
        options.model, options.out, options.stage, config, group_weights=options.group_weights, on_progress=on_progress
    )
    if sys.stderr.isatty():
        print(file=sys.stderr)
    size, weights = sum(manifest.sizes.values()), manifest.source["parameters"]
    print(
        f"{line(options.out)}: {weights:,} parameters, {size:,} bytes = 1/{4 * weights / size:.2f} of FP32, "
        f"{8 * size / weights:.3f} bits per weight; not calibrated, not judged"
    )
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from phase8.artifact.account import account
    from phase8.artifact.read import COUNTED_FILES, read_artifact

    artifact = read_artifact(options.artifact)
    if options.json:
        print(json.dumps(_facts(options.artifact, artifact, account(artifact))))
        return 0
    # No markup and no emoji codes: names in a file, and the names of files, may look like either.
    console = Console(soft_wrap=not sys.stdout.isatty(), markup=False, emoji=False)
    size = artifact.size_bytes
    heading = (
        f"{line(options.artifact)}: stage ",
        (artifact.stage, "bold"),
        f", {artifact.parameter_count:,} parameters",
    )
    console.print(Text.assemble(*heading))
    console.print(
        f"{size:,} bytes = 1/{artifact.ratio:.2f} of FP32, 1/{artifact.ratio / 2:.2f} of 16 bits, "
        f"{artifact.bits_per_weight:.3f} bits per weight"
    )
    table = Table(box=None, header_style="bold", show_footer=True)
    table.add_column("part", footer="total")
    table.add_column("of which")
    table.add_column("bytes", justify="right", footer=f"{size:,}")
    table.add_column("share", justify="right", footer="100.0 %")
    rows = account(artifact)
    if sum(row[2] for row in rows) != size:
        raise ArtifactError("the parts do not add up to the file's size", where=str(options.artifact))
    for part, what, count in rows:
        table.add_row(part, what, f"{count:,}", f"{100 * count / size:.1f} %")
    console.print(table)
    beside = sorted(p for p in options.artifact.iterdir() if p.is_file() and p.name not in COUNTED_FILES)
    if beside:
        listed = ", ".join(f"{line(p.name)} {p.stat().st_size:,}" for p in beside)
        console.print(f"beside it, not counted: {listed} bytes")
    if options.tensors:
        tensors = Table(box=None, header_style="bold")
        for column in ("tensor", "shape", "codec", "group", "packed bits per weight"):
            tensors.add_column(column, justify="right" if column in ("group", "packed bits per weight") else "left")
        for number, group in enumerate(artifact.groups):
            settings = ", ".join(line(f"{key} {value}") for key, value in group.settings.items())
            console.print(f"group {number}: {group.codec}, {len(group.tensors)} tensors: {settings}", highlight=False)
            for name, tensor in group.tensors.items():
                bits = sum(s.bits * s.values.size for s in tensor.streams.values())
                weights = 1
                for extent in tensor.shape:
                    weights *= extent
                shape, rate = "x".join(map(str, tensor.shape)), f"{bits / max(weights, 1):.3f}"
                tensors.add_row(name, shape, group.codec, str(number), rate)
        console.print(tensors)
    return 0


def _facts(directory: Path, artifact: Artifact, rows: list[tuple[str, str, int]]) -> dict[str, Any]:
    """What `inspect` shows, for programs: the account's rows add up to `bytes`."""
    from phase8.artifact.read import COUNTED_FILES

    beside = {p.name: p.stat().st_size for p in directory.iterdir() if p.is_file() and p.name not in COUNTED_FILES}
    return {
        "stage": artifact.stage,
        "parameters": artifact.parameter_count,
        "bytes": artifact.size_bytes,
        "ratio": artifact.ratio,
        "bits_per_weight": artifact.bits_per_weight,
        "account": rows,
        "beside": dict(sorted(beside.items())),
        "tensors": [
            {
                "name": name,
                "shape": list(tensor.shape),
                "codec": group.codec,
                "group": number,
                "settings": dict(group.settings),
                "packed_bits_per_weight": sum(s.bits * s.values.size for s in tensor.streams.values())
                / max(math.prod(tensor.shape), 1),
            }
            for number, group in enumerate(artifact.groups)
            for name, tensor in group.tensors.items()
        ],
    }


def _generate(options: argparse.Namespace) -> int:
    import torch
    from transformers.utils import logging

    from phase8.artifact.write import load_artifact
    from phase8.model.source import load_source
    from phase8.model.window import window

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        network, tokenizer = load_artifact(options.artifact)
    except ArtifactError:
        if not (options.artifact / "config.json").is_file() or _is_artifact(options.artifact):
            raise
        source = load_source(str(options.artifact.absolute()))
        network, tokenizer = source.network, source.tokenizer
    torch.manual_seed(options.seed)
    inputs = tokenizer(options.prompt, return_tensors="pt")
    limit = window(network) or 2**31
    room = limit - inputs["input_ids"].shape[1]
    if room < 1:
        raise Phase8Error("the text is longer than the model's context", where="TEXT", fix="give a shorter one")
    sampling = {"do_sample": options.temperature > 0}
    if options.temperature > 0:
        sampling["temperature"] = options.temperature
    with torch.no_grad():
        output = network.generate(
            **inputs,
            **sampling,
            max_new_tokens=min(options.tokens, room),
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        )
    print(printable(tokenizer.decode(output[0], skip_special_tokens=True)))
    return 0


def _is_artifact(directory: Path) -> bool:
    try:
        method = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("quantization_config", {})
    except (ValueError, AttributeError):
        return False
    return isinstance(method, dict) and method.get("quant_method") == "phase8"


def _export(options: argparse.Namespace) -> int:
    from phase8.export import export

    notes = export(options.artifact, options.out, options.format, dtype=options.dtype)
    for path in sorted(options.out.iterdir()):
        print(f"{line(path)}  {path.stat().st_size:,} bytes")
    for note in notes:
        print(f"note: {printable(note)}")
    return 0


def _dashboard(options: argparse.Namespace) -> int:
    from phase8.watch.server.serve import TOKEN_VARIABLE, Options, serve

    runs = tuple(options.runs or (Path("outputs"), Path("multirun"), Path("studies")))
    serve(
        Options(
            host=options.host,
            port=options.port,
            runs=runs,
            token=os.environ.get(TOKEN_VARIABLE) or None,
            allow_hosts=tuple(options.allow_host),
            models=tuple(options.model),
            most_jobs=options.jobs,
        ),
        build_page=not options.no_build,
    )
    return 0


def _compare(options: argparse.Namespace) -> int:
    from phase8.watch.compare import print_comparison, write_comparison
    from phase8.watch.runs import read_runs

    runs = read_runs(options.runs)
    print_comparison(runs)
    if options.html is not None:
        print(write_comparison(options.html, runs, title=f"Phase 8: {len(runs)} runs compared"))
    return 0


def _lm_eval(options: argparse.Namespace) -> int:
    """lm-eval has no plug-ins, so its command must run in a process that has imported this package. This is one."""
    sys.argv = ["lm-eval", *options.rest]
    runpy.run_module("lm_eval", run_name="__main__", alter_sys=True)
    return 0
