"""Other methods on the scoreboard, after training nothing, and our own stages' closed forms beside them.

    PHASE8_TINYSTORIES=DIRECTORY python -m experiments.peers_scored              # every row that is not there yet
    python -m experiments.peers_scored --models reference --methods hqq GGUF --limit 3
    python -m experiments.peers_scored --list

Each row: every matrix of the original, the tied embedding included, is coded by one method with one setting, the norms
are kept in 16 bits, the bytes are counted (`experiments.scoreboard`, rule 1), and the network made of what the stored
numbers decode to is scored (`experiments.score`). A row costs about 35 seconds of one core on the reference model, of
which the benchmarks take nearly all (`--bits` leaves them out; a later call without it fills them in). Rows that exist
are skipped (`--fresh` measures them again).

- *nominal width* (`peer_coders`): round-to-nearest, hqq, optimum-quanto, torchao, GGUF
- *entropy-coded* (`peer_lattices`): rounding, pruning, Huffman-GPTQ, WaterSIC-like
- *in a file* (`peer_files`): NNCodec (ISO/IEC 15938-17), ONNX Runtime's int8
- *ours*: SeedLM, VPTQ, Hyper-Compression as a run encodes them before its training, through the artifact's writer

Calibration: 64 sequences of 256 tokens of training text (the second model: of its train.txt).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from experiments import peer_files, peer_lattices
from experiments.peer_coders import Peer, peers, round_to_nearest, rows_of
from experiments.score import MODELS, calibration_text, load, score
from experiments.scoreboard import NO_TRAINING, OURS_UNTRAINED, ROWS, add_row, key, read_rows
from phase8.artifact.read import parse
from phase8.artifact.write import WEIGHTS_FILE, contents, load_weights
from phase8.codecs.base import Importance
from phase8.config import CompressionConfig, HyperConfig, SeedLMConfig, Trajectory, VPTQConfig, Winding
from phase8.model.importance import collect_importance
from phase8.model.text import token_sequences
from phase8.run.encode import encode_coded, encode_plain, plan

COMMAND = "python -m experiments.peers_scored"
SEQUENCES, TOKENS = 64, 256
CALIBRATION_SEED = 1009
SCALES = (0.15, 0.35, 0.6, 1.0, 1.5, 2.2)
"""Steps of the entropy-coded grids, in standard deviations: about 4.8, 3.5, 2.8, 2.1, 1.5 and 1.0 bits a weight."""


@dataclass(frozen=True, kw_only=True)
class Original:
    """A model to be coded, with what methods may look at."""

    name: str

    @cached_property
    def source(self) -> Any:
        return load(self.name)

    @cached_property
    def target(self) -> Any:
        """A second network, into which what was decoded is loaded."""
        return load(self.name).network

    @cached_property
    def matrices(self) -> dict[str, Tensor]:
        return self.source.matrices()

    @cached_property
    def importance(self) -> dict[str, Importance]:
        tokens = token_sequences(
            self.source.tokenizer, sequences=SEQUENCES, length=TOKENS, seed=CALIBRATION_SEED,
            path=calibration_text(self.name),
        )  # fmt: skip
        return collect_importance(self.source.network, tokens.split(16), tuple(self.matrices))


Coded = tuple[Mapping[str, Tensor | np.ndarray], int]
"""Decoded tensors [O, I] (vectors too, where the method stores them), and the bytes that they take."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One method with one setting."""

    method: str
    setting: str
    code: Callable[[Original], Coded] | None
    """None: cannot be had here, for the reason in `note`."""
    note: str = ""
    ours: bool = False
    models: tuple[str, ...] = field(default=MODELS)


def nominal(peer: Peer) -> Callable[[Original], Coded]:
    """A coder of single matrices (`peer_coders`) over all of them."""

    def code(original: Original) -> Coded:
        decoded, bits = {}, 0.0
        for name, w in original.matrices.items():
            rebuilt, stored = peer.code(rows_of(w))
            decoded[name] = rebuilt.reshape(w.shape).float()
            bits += stored
        return decoded, -int(-bits // 8)

    return code


def lattice(make: Callable[[Original], peer_lattices.Lattice]) -> Callable[[Original], Coded]:
    """Integers times steps, entropy-coded."""

    def code(original: Original) -> Coded:
        integers, decoded, step_bits = make(original)
        return decoded, peer_lattices.coded_bytes(integers) + -(-step_bits // 8)

    return code


def own(stage: str, config: Any) -> Callable[[Original], Coded]:
    """A stage's closed form as an artifact: every counted file, as `write_artifact` writes it."""

    def code(original: Original) -> Coded:
        settings = CompressionConfig(**{stage: config})
        matrices, vectors = original.matrices, original.source.vectors()
        planned = plan(
            stage, settings, {n: w.numel() for n, w in matrices.items()}, {n: v.numel() for n, v in vectors.items()}
        )
        tensors = {**matrices, **vectors}
        groups = [
            *encode_coded(planned, stage, settings, tensors.__getitem__, importance=original.importance),
            *encode_plain(planned, settings, tensors.__getitem__),
        ]
        files = contents(groups, original.source, stage=stage)
        decoded = dict(parse(files[WEIGHTS_FILE]).artifact().tensors())
        return decoded, sum(map(len, files.values()))

    return code


NOTES = {
    "round-to-nearest": "asymmetric, groups along rows, float16 scale and zero; no entropy coding.",
    "round-to-nearest, entropy-coded": "one step a matrix, integers entropy-coded (order 0, a table a matrix).",
    "pruning + quantisation": "magnitude pruning a matrix, symmetric integers, entropy-coded; without fine-tuning.",
    "Huffman-GPTQ": "own minimal GPTQ on a uniform grid, entropy-coded (order 0); our Hessians.",
    "WaterSIC-like": "own minimal version: GPTQ with each column's own step and gain, entropy-coded; without the "
    "paper's rates per layer, row rescaling and mixed inputs.",
    "hqq": "hqq's quantiser, scales and zeros counted at 16 bits, codes at their nominal width.",
    "optimum-quanto": "qint4 and qint2 with its HQQ optimiser, scale and shift at 16 bits.",
    "torchao": "IntxWeightOnlyConfig, asymmetric, scales at 16 bits.",
    "GGUF": "llama.cpp's own quantisers, every matrix in the type named, flat importance matrix; blocks as stored.",
    "NNCodec": "`nncodec` (ISO/IEC 15938-17, DeepCABAC), its bitstream's bytes.",
    "ONNX Runtime": "quantize_dynamic, int8 weights a channel; the whole .onnx file, scored with float activations.",
}


def entries(ggml_library: Path | None, nncodec_python: Path | None, begin: tuple[str, ...] = ("",)) -> list[Entry]:
    """Every row of this experiment whose method begins so, the settings of a method one after another."""
    found = [*_entropy_coded(), *_ours()]
    if any(name.startswith(begin) for name in WIDTHS):  # their libraries take seconds to import
        found += _nominal(ggml_library)
    for qp in peer_files.QPS:
        code, note = peer_files.nncodec(qp, nncodec_python)
        found.append(Entry(method="NNCodec", setting=f"qp {qp}", code=code, note=note))
    code, note = peer_files.onnx_int8()
    found.append(Entry(method="ONNX Runtime", setting="dynamic int8, per channel", code=code, note=note))
    found.append(
        Entry(
            method="TensorRT", setting="int8", code=None, models=("reference",),
            note="needs an NVIDIA GPU and the `tensorrt` package: its engines are built for and run on one card. Its "
            "weights would be int8 or FP8 (4x), as ONNX Runtime's are.",
        )
    )  # fmt: skip
    return [entry for entry in found if entry.method.startswith(begin)]


def _entropy_coded() -> list[Entry]:
    found = []

    def add(method: str, setting: str, make: Callable[[Original], peer_lattices.Lattice]) -> None:
        found.append(Entry(method=method, setting=setting, code=lattice(make)))

    for scale in SCALES:
        step = f"step {scale:g} sd"
        add("WaterSIC-like", step, lambda o, c=scale: peer_lattices.fed_back(o.matrices, o.importance, c, columns=True))
        add("Huffman-GPTQ", step, lambda o, c=scale: peer_lattices.fed_back(o.matrices, o.importance, c, columns=False))
        add("round-to-nearest, entropy-coded", step, lambda o, c=scale: peer_lattices.nearest(o.matrices, c))
    for share, bits in ((0.3, 5), (0.5, 4), (0.7, 4), (0.85, 4), (0.95, 4)):
        setting = f"{share:.0%} pruned, {bits} bits"
        add("pruning + quantisation", setting, lambda o, p=share, b=bits: peer_lattices.pruned(o.matrices, p, b))
    return found


def _ours() -> list[Entry]:
    def seedlm(block: int, latent: int, bits: int, seed_bits: int = 16) -> SeedLMConfig:
        return SeedLMConfig(block_size=block, latent_dim=latent, bits=bits, seed_bits=seed_bits)

    def vptq(dim: int, size: int) -> VPTQConfig:
        return VPTQConfig(vector_dim=dim, codebook_size=size)

    def single(bits: int) -> HyperConfig:
        return HyperConfig(trajectory_type=Trajectory.polynomial, block_size=1, degree=0, coefficient_bits=bits)

    published = HyperConfig(dims=2, grid=1600, classes=3, winding=Winding.power, side=0.1)
    cubic = HyperConfig(trajectory_type=Trajectory.polynomial, block_size=64, degree=15, coefficient_bits=4)
    settings: list[tuple[str, str, str, Any]] = [
        ("seedlm", "SeedLM", "published 4 bit: C=8 P=3 K=16", seedlm(8, 3, 4)),
        ("seedlm", "SeedLM", "published 3 bit: C=12 P=4 K=16", seedlm(12, 4, 4)),
        ("seedlm", "SeedLM", "C=12 P=4 1 bit K=16", seedlm(12, 4, 1)),
        ("seedlm", "SeedLM", "C=16 P=2 1 bit K=12", seedlm(16, 2, 1, 12)),
        ("vptq", "VPTQ", "v=2, 256 entries", vptq(2, 256)),
        ("vptq", "VPTQ", "v=4, 1024 entries", vptq(4, 1024)),
        ("vptq", "VPTQ", "v=4, 256 entries", vptq(4, 256)),
        ("vptq", "VPTQ", "v=4, 64 entries", vptq(4, 64)),
        ("vptq", "VPTQ", "v=8, 128 entries", vptq(8, 128)),
        ("hyper", "Hyper, ergodic", "published: K=2 U=1600 M=3 l=0.1", published),
        ("hyper", "Hyper, ergodic", "K=4 U=255", HyperConfig(dims=4, grid=255)),
        ("hyper", "Hyper, ergodic", "K=8 U=255", HyperConfig(dims=8, grid=255)),
        ("hyper", "Hyper, ergodic", "K=12 U=4095", HyperConfig(dims=12, grid=4095)),
        ("hyper", "Hyper, polynomial", "single weights, 4 bits", single(4)),
        ("hyper", "Hyper, polynomial", "single weights, 3 bits", single(3)),
        ("hyper", "Hyper, polynomial", "single weights, 2 bits", single(2)),
        ("hyper", "Hyper, polynomial", "blocks of 64, degree 15, 4 bits", cubic),
    ]
    return [
        Entry(method=f"{title}, closed form", setting=setting, code=own(stage, config), ours=True)
        for stage, title, setting, config in settings
    ]


WIDTHS: dict[str, list[str]] = {
    "round-to-nearest": ["4 bit, group 64", "3 bit, group 64", "2 bit, group 64", "2 bit, group 128"],
    "hqq": ["4 bit, group 64", "3 bit, group 64", "2 bit, group 64", "2 bit, group 128", "1 bit, group 64"],
    "optimum-quanto": ["4 bit, group 64, hqq", "2 bit, group 64, hqq", "2 bit, group 128, hqq"],
    "torchao": [f"int{bits}, group 64, asymmetric" for bits in (4, 3, 2)] + ["int2, group 128, asymmetric"],
    "GGUF": ["Q4_K", "Q3_K", "Q2_K", "IQ3_XXS", "IQ2_XXS", "IQ1_S"],
}
"""Of `peer_coders`: methods and settings."""


def _nominal(ggml_library: Path | None) -> list[Entry]:
    had = {(peer.coder, peer.setting): peer for peer in peers(ggml_library)}
    found = [
        Entry(
            method="round-to-nearest",
            setting="8 bit, group 128",
            code=nominal(Peer(coder="round-to-nearest", setting="8 bit", code=lambda w: round_to_nearest(w, 8, 128))),
        )
    ]
    for coder, settings in WIDTHS.items():
        missing = next((peer for (name, _), peer in had.items() if name == coder and peer.code is None), None)
        for setting in settings:
            peer = had.get((coder, setting))
            if peer is not None and peer.code is not None:
                found.append(Entry(method=coder, setting=setting, code=nominal(peer)))
            else:
                found.append(Entry(method=coder, setting=setting, code=None, note=missing.note if missing else ""))
    return found


def measure(entry: Entry, original: Original, *, benchmarks: bool = True) -> dict[str, Any]:
    """Codes, counts, decodes into a fresh network, scores; returns the row."""
    begin = time.perf_counter()
    decoded, size = entry.code(original)
    seconds = time.perf_counter() - begin
    tensors = {name: np.asarray(value, dtype=np.float32) for name, value in decoded.items()}
    for name, vector in original.source.vectors().items():
        if name not in tensors:  # norms in 16 bits
            tensors[name] = vector.half().float().numpy()
            size += 2 * vector.numel()
    load_weights(original.target, tensors, where=entry.method)
    return {
        "artifact_bytes": size,
        "ratio": original.source.original_bytes / size,
        **score(original.target, original.source.tokenizer, model=original.name, benchmarks=benchmarks),
        "encode_s": round(seconds, 2),
    }


def row_of(entry: Entry, model: str, measured: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the scoreboard; `measured` is empty where the method cannot be had."""
    nothing = dict.fromkeys(("artifact_bytes", "ratio", "retention_raw", "retention_chance_corrected", "bits_per_byte"))
    row = {
        "method": entry.method,
        "setting": entry.setting,
        "ours": entry.ours,
        "group": OURS_UNTRAINED if entry.ours else NO_TRAINING,
        "model": model,
        **nothing,
        **measured,
        "seed": 0,
        "trained_tokens": 0,
        "training_s": 0.0,
        "command": COMMAND,
    }
    note = entry.note or NOTES.get(entry.method, "")
    return row | ({"note": note} if note else {})


def is_complete(row: Mapping[str, Any], bits: bool) -> bool:
    """Whether a row needs no measuring; with `bits` nobody asks for its benchmarks."""
    scored = bits or row["model"] != "reference" or row["retention_raw"] is not None
    return row["artifact_bytes"] is not None and scored


def main() -> int:
    """Measures what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--methods", nargs="+", help="only those whose name begins so")
    parser.add_argument("--limit", type=int, help="measure at most so many rows")
    parser.add_argument("--fresh", action="store_true", help="measure again what is measured")
    parser.add_argument("--bits", action="store_true", help="bits per byte only, no benchmarks")
    parser.add_argument("--list", action="store_true", help="only say what would be measured")
    parser.add_argument("--ggml-library", type=Path, help="libggml-base, for GGUF's k- and i-quants (peer_coders)")
    parser.add_argument("--nncodec-python", type=Path, help="a Python that has nncodec (peer_files)")
    parser.add_argument("--rows", type=Path, default=ROWS)
    options = parser.parse_args()
    had = set() if options.fresh else {key(row) for row in read_rows(options.rows) if is_complete(row, options.bits)}
    done = 0
    for model in options.models:
        original = Original(name=model)
        for entry in entries(options.ggml_library, options.nncodec_python, tuple(options.methods or [""])):
            if (model, entry.method, entry.setting, 0) in had or model not in entry.models:
                continue
            if options.limit is not None and done >= options.limit:
                return 0
            if options.list:
                print(model, entry.method, entry.setting, "" if entry.code else f"({entry.note})", sep=" | ")
                continue
            measured: dict[str, Any] = {}
            if entry.code is not None:
                done += 1
                try:
                    measured = measure(entry, original, benchmarks=not options.bits)
                except RuntimeError as error:  # a library's own: not every setting takes every shape
                    entry = replace(entry, note=f"{entry.setting} fails on {model}: {error}")
            row = row_of(entry, model, measured)
            add_row(row, options.rows)
            shown = {n: row[n] for n in ("ratio", "retention_chance_corrected", "bits_per_byte")}
            print(model, entry.method, entry.setting, shown, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
