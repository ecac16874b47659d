"""Error against bits per weight: the three codecs, their published settings, the Gaussian limit, and other quantisers.

    python -m experiments.peers                  # -> experiments/results/peers.{md,json,png}
    python -m experiments.peers --ggml-library PATH/libggml-base.so
    python -m experiments.peers --ours           # our codecs again; the peers' rows stay as they were measured

Sources: matrices of 1024 x 1024 independent weights (Gaussian, Laplace, Student-t of 5 degrees of freedom; standard
deviation 0.02), and every matrix of the embedded reference model. A megaweight is the least at which a codebook is a
small part of the file: 4096 FP16 entries of 6 weights are 0.375 bit a weight on it, and 0.023 on a 4096 x 4096 matrix.

- *error*: squared error / squared weights of each matrix; over several matrices the mean by number of weights.
- *bits*: ours are 8 x the bytes of the written `model.safetensors` / weights, codebooks, scales, manifest and headers
  included, entropy coding as the format does it; `packed` is the same without entropy coding or headers. What is
  measured is what is read back from those bytes. The peers' bits are counted in their favour (`peer_coders`).

No calibration is used: this is about weights alone. "Ours at the same bits" is the lower convex hull of our points in
(bits, error): a mixture of two settings over the tensors of a model reaches every point of it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.peer_coders import Peer, peers, rows_of, version
from phase8.artifact.read import parse
from phase8.artifact.write import file_bytes
from phase8.codecs import get_codec
from phase8.config import HyperConfig, SeedLMConfig, Trajectory, VPTQConfig, Winding
from phase8.files import write_atomic

RESULTS = Path(__file__).parent / "results"
REFERENCE = Path(__file__).parent.parent / "phase8" / "assets" / "reference" / "model.safetensors"
SIGMA, DEGREES = 0.02, 5
LOWEST, HIGHEST = 1.0, 4.0
"""The range of the aim, in bits per weight."""
PACKAGES = ("torch", "hqq", "optimum-quanto", "torchao", "gguf", "llama-cpp-python")
CODECS = {"seedlm": "SeedLM", "vptq": "VPTQ", "hyper": "Hyper-Compression"}


SINGLE = "polynomial, degree 0, single weights"


def seedlm(block: int, latent: int, bits: int, seed_bits: int = 16) -> SeedLMConfig:
    return SeedLMConfig(block_size=block, latent_dim=latent, bits=bits, seed_bits=seed_bits)


def vptq(dim: int, size: int, books: int = 1, bits: int = 8) -> VPTQConfig:
    return VPTQConfig(vector_dim=dim, codebook_size=size, num_codebooks=books, codebook_bits=bits)


def winding(dims: int, grid: int) -> HyperConfig:
    return HyperConfig(dims=dims, grid=grid)


def single(bits: int) -> HyperConfig:
    """A polynomial of degree 0 over each weight by itself: a uniform scalar quantiser, then entropy coding."""
    return HyperConfig(trajectory_type=Trajectory.polynomial, block_size=1, degree=0, coefficient_bits=bits)


PUBLISHED: list[tuple[str, str, Any]] = [
    ("seedlm", "published 4 bit: C=8 P=3 K=16", seedlm(8, 3, 4)),
    ("seedlm", "published 3 bit: C=12 P=4 K=16", seedlm(12, 4, 4)),
    ("vptq", "published 2.02 bit: v=6, 4096 FP16 entries", vptq(6, 4096, bits=16)),
    (
        "hyper",
        "published: K=2 U=1600 M=3 l=0.1",
        HyperConfig(dims=2, grid=1600, classes=3, winding=Winding.power, side=0.1),
    ),
]
OURS: list[tuple[str, str, Any]] = [
    ("seedlm", "C=16 P=2 1 bit K=12", seedlm(16, 2, 1, 12)),
    ("seedlm", "C=12 P=4 1 bit K=16", seedlm(12, 4, 1)),
    ("seedlm", "C=8 P=3 2 bit K=16", seedlm(8, 3, 2)),
    ("seedlm", "C=12 P=4 2 bit K=16", seedlm(12, 4, 2)),
    ("seedlm", "C=8 P=4 2 bit K=16", seedlm(8, 4, 2)),
    ("seedlm", "C=9 P=4 3 bit K=16", seedlm(9, 4, 3)),
    ("seedlm", "C=8 P=4 3 bit K=16", seedlm(8, 4, 3)),
    ("vptq", "v=8, 256", vptq(8, 256)),
    ("vptq", "v=4, 64", vptq(4, 64)),
    ("vptq", "v=4, 256", vptq(4, 256)),
    ("vptq", "v=4, 1024 (default)", vptq(4, 1024)),
    ("vptq", "v=2, 64", vptq(2, 64)),
    ("vptq", "v=2, 128", vptq(2, 128)),
    ("vptq", "v=2, 256", vptq(2, 256)),
    ("vptq", "v=2, 512", vptq(2, 512)),
    ("hyper", "winding K=12 U=4095", winding(12, 4095)),
    ("hyper", "winding K=4 U=255", winding(4, 255)),
    *(("hyper", f"{SINGLE}, {bits} bit", single(bits)) for bits in (2, 3, 4, 5)),
]


def sources(size: int) -> dict[str, dict[str, Tensor]]:
    """Matrices by source, float32; the synthetic ones [size, size] of standard deviation 0.02, seeded."""
    from safetensors.torch import load_file

    rng = np.random.default_rng(0)
    draws = {
        "Gaussian": rng.standard_normal((size, size)),
        "Laplace": rng.laplace(size=(size, size)) / math.sqrt(2.0),
        f"Student-t, {DEGREES} df": rng.standard_t(DEGREES, (size, size)) / math.sqrt(DEGREES / (DEGREES - 2)),
    }
    made = {name: {"w.weight": torch.from_numpy(SIGMA * draw).float()} for name, draw in draws.items()}
    stored = load_file(REFERENCE)
    made["reference model"] = {name: w.float() for name, w in stored.items() if w.dim() == 2}
    return made


def mean_error(weights: Mapping[str, Tensor], decoded: Mapping[str, Tensor]) -> float:
    """Relative squared error of each matrix; the mean by number of weights."""
    total = sum(w.numel() for w in weights.values())
    result = 0.0
    for name, w in weights.items():
        exact = w.double()
        error = (exact - decoded[name].double()).square().sum() / exact.square().sum()
        result += w.numel() / total * float(error)
    return result


def ours(codec_name: str, config: Any, weights: Mapping[str, Tensor]) -> dict[str, float]:
    """Encodes, writes, reads back; returns error and bits."""
    total = sum(w.numel() for w in weights.values())
    begin = time.perf_counter()
    group = get_codec(codec_name).encode(weights, config, importance={}, seed=0)
    raw = file_bytes([group], codec_name, {"parameters": total})
    seconds = time.perf_counter() - begin
    decoded = {name: torch.from_numpy(w) for name, w in parse(raw).artifact().tensors()}
    return {
        "bits": 8 * len(raw) / total,
        "packed": group.packed_bits() / total,
        "error": mean_error(weights, decoded),
        "seconds": seconds,
    }


def theirs(peer: Peer, weights: Mapping[str, Tensor]) -> dict[str, float]:
    """Runs a peer over every matrix."""
    assert peer.code is not None
    total, stored, decoded = sum(w.numel() for w in weights.values()), 0.0, {}
    begin = time.perf_counter()
    for name, w in weights.items():
        rebuilt, bits = peer.code(rows_of(w))
        decoded[name] = rebuilt.reshape(w.shape)
        stored += bits
    seconds = time.perf_counter() - begin
    bits = stored / total
    return {"bits": bits, "packed": bits, "error": mean_error(weights, decoded), "seconds": seconds}


def hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Lower convex hull of (bits, error), as far as the error falls."""
    best: list[tuple[float, float]] = []
    for point in sorted(points):
        if best and point[1] >= best[-1][1]:
            continue
        while len(best) >= 2:
            (x0, y0), (x1, y1) = best[-2:]
            if (y1 - y0) * (point[0] - x0) < (point[1] - y0) * (x1 - x0):
                break
            best.pop()
        best.append(point)
    return best


def at(curve: list[tuple[float, float]], bits: float) -> float | None:
    """Error on the hull at these bits; None outside of it."""
    if not curve or not curve[0][0] <= bits <= curve[-1][0]:
        return None
    return float(np.interp(bits, *zip(*curve, strict=True)))


def curves(rows: list[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Hulls of our points of one source: all of them, parts of them, and all by their packed bits."""
    mine = [row for row in rows if row["ours"]]

    def of(some: list[dict[str, Any]], bits: str = "bits") -> list[tuple[float, float]]:
        return hull([(row[bits], row["error"]) for row in some])

    return {
        "all": of(mine),
        **{codec: of([row for row in mine if row["coder"] == label]) for codec, label in CODECS.items()},
        "without_single": of([row for row in mine if not row["setting"].startswith(SINGLE)]),
        "packed": of(mine, "packed"),
    }


def compare(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For every peer's point: by how many dB its error exceeds ours at the same bits (negative: the peer is ahead)."""
    found = []
    for source in dict.fromkeys(row["source"] for row in rows):
        here = [row for row in rows if row["source"] == source]
        hulls = curves(here)
        for row in here:
            if row["ours"]:
                continue
            margins = {}
            for name, curve in hulls.items():
                error = at(curve, row["bits"])
                margins[name] = None if error is None else 10 * math.log10(row["error"] / error)
            found.append({"source": source, "coder": row["coder"], "setting": row["setting"], "bits": row["bits"],
                          "error": row["error"], "margin_db": margins})  # fmt: skip
    return found


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Signal-to-noise ratio against bits, one panel per source."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["source"] for row in rows))
    coders = list(dict.fromkeys(row["coder"] for row in rows))
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 8.5), sharex=True, sharey=True)
    markers = dict(zip(coders, "os^vDPXd<>", strict=False))
    for axis, source in zip(axes.flat, names, strict=True):
        here = [row for row in rows if row["source"] == source]
        limit = np.array([0.5, 5.0])
        axis.plot(limit, 20 * math.log10(2) * limit, color="black", linewidth=1, label="Gaussian limit 2^(-2R)")
        curve = hull([(row["bits"], row["error"]) for row in here if row["ours"]])
        bits = np.linspace(curve[0][0], curve[-1][0], 200)
        axis.plot(bits, [-10 * math.log10(at(curve, b)) for b in bits], color="tab:red", linewidth=1, label="our hull")
        for coder in coders:
            some = [row for row in here if row["coder"] == coder]
            filled = any(row["ours"] for row in some)
            axis.scatter(
                [row["bits"] for row in some], [-10 * math.log10(row["error"]) for row in some], s=22,
                marker=markers[coder], label=coder, color=None if filled else "none",
                edgecolors=None if filled else f"C{coders.index(coder)}",
            )  # fmt: skip
        axis.set_title(source, fontsize=10)
        axis.set_xlim(0.8, 5.2)
        axis.set_ylim(0, 30)
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("bits per weight")
    for axis in axes[:, 0]:
        axis.set_ylabel("weights / error, dB")
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=75)


def as_markdown(found: dict[str, Any]) -> str:
    rows, compared = found["rows"], found["compared"]
    names = list(dict.fromkeys(row["source"] for row in rows))
    installed = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
    lines = [
        "# Error against bits: the codecs, their published settings, and other quantisers",
        "",
        f"`python -m experiments.peers`: synthetic matrices of {found['size']} x {found['size']} weights, and"
        f" the {found['reference_weights']:,} weights in the matrices of the embedded reference model. Relative squared"
        " error; bits per weight with every byte counted (ours: the written file; `packed`: before entropy coding and"
        " without headers). No calibration. The script's head says how each is counted. Encoding times with"
        f" {found['threads']} threads, at a load average of {found['load']:.1f} when it began"
        + (f" (peers: in a run of their own, {found['peers_load']:.1f})" if "peers_load" in found else "")
        + f". {installed}.",
        "",
        "![error against bits](peers.png)",
        "",
        f"## Is a peer ahead, from {LOWEST:g} to {HIGHEST:g} bits?",
        "",
        "Margin: by how many dB a peer's error exceeds ours at the same bits (6.02 dB are one bit per weight). Below 0"
        " the peer is ahead. `ours` is the hull of all three codecs, beside it each codec alone; `-`: that codec has no"
        " setting on both sides of this rate.",
        "",
    ]
    within = [row for row in compared if LOWEST <= row["bits"] <= HIGHEST]

    def behind(key: str) -> tuple[list[dict[str, Any]], int]:
        known = [row for row in within if row["margin_db"][key] is not None]
        return sorted((r for r in known if r["margin_db"][key] < 0), key=lambda r: r["margin_db"][key]), len(known)

    def named(some: list[dict[str, Any]], key: str) -> str:
        return "; ".join(
            f"{row['coder']} {row['setting']} on {row['source']} ({row['bits']:.2f} bits,"
            f" {-row['margin_db'][key]:.2f} dB)"
            for row in some
        )

    ahead, count = behind("all")
    nearest = min((row for row in within if row["margin_db"]["all"] is not None), key=lambda r: r["margin_db"]["all"])
    lines += [
        f"{count} of {len(within)} points of peers lie at rates that our curve covers; "
        + (f"**in {len(ahead)} of them the peer is ahead**: {named(ahead, 'all')}." if ahead else
           "in none of them the peer is ahead.")
        + f" Nearest: {nearest['coder']} {nearest['setting']} on {nearest['source']}, {nearest['bits']:.2f} bits,"
        f" margin {nearest['margin_db']['all']:+.2f} dB.",
        "",
    ]  # fmt: skip
    for key, label in (
        *((codec, f"{label} alone") for codec, label in CODECS.items()),
        ("without_single", "All three without the polynomial over single weights, which is a uniform scalar quantiser"),
        ("packed", "All three without entropy coding"),
    ):
        some, count = behind(key)
        text = f": {named(some[:8], key)}" + (" ..." if len(some) > 8 else "") if some else ""
        lines.append(f"- {label}: {len(some)} of {count} points of peers are ahead{text}.")

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:+.2f}"

    margins = {(row["source"], row["coder"], row["setting"]): row["margin_db"] for row in compared}
    for source in names:
        lines += [
            "", f"## {source}", "",
            "| coder | setting | packed | bits | error | 2^(-2R) | encode, s | margin to ours, dB | SeedLM | VPTQ |"
            " Hyper-Compression |",
            "| --- " * 11 + "|",
        ]  # fmt: skip
        for row in sorted((r for r in rows if r["source"] == source), key=lambda r: r["bits"]):
            name = f"**{row['coder']}**" if row["ours"] else row["coder"]
            margin = margins.get((source, row["coder"], row["setting"]))
            tail = " | | | |" if margin is None else "".join(f" {number(margin[key])} |" for key in ("all", *CODECS))
            lines.append(
                f"| {name} | {row['setting']} | {row['packed']:.3f} | {row['bits']:.3f} | {row['error']:.5f} | "
                f"{2 ** (-2 * row['bits']):.5f} | {row['seconds']:.1f} |{tail}"
            )
    if found["missing"]:
        lines += ["", "## Not installed", ""]
        lines += [f"- {row['coder']} {row['setting']}: {row['note']}" for row in found["missing"]]
    return "\n".join(lines) + "\n"


def publish(found: dict[str, Any], out: Path) -> None:
    """Writes results, table and plot; prints the verdict."""
    found["compared"] = compare(found["rows"])
    write_atomic(out.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
    text = as_markdown(found)
    write_atomic(out.with_suffix(".md"), text)
    plot(found["rows"], out.with_suffix(".png"))
    print(text.split("\n## ")[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="rows and columns of the synthetic matrices")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ggml-library", type=Path, help="where libggml-base lies, for GGUF's k-quants")
    parser.add_argument("--ours", action="store_true", help="measure our codecs only, beside the peers' stored rows")
    parser.add_argument("--table", action="store_true", help="write table and plot from the JSON, measure nothing")
    parser.add_argument("--out", type=Path, default=RESULTS / "peers", help="without extension")
    options = parser.parse_args()
    stored: dict[str, Any] = {}
    if options.table or options.ours:
        stored = json.loads(options.out.with_suffix(".json").read_text(encoding="utf-8"))
    if options.table:
        publish(stored, options.out)
        return 0
    if stored and stored["size"] != options.size:
        parser.error(f"the stored rows are of --size {stored['size']}")
    torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]
    known = [] if stored else peers(options.ggml_library)
    made = sources(options.size)
    rows: list[dict[str, Any]] = []

    def tell(source: str, coder: str, setting: str, own: bool, figures: dict[str, float]) -> None:
        rows.append({"source": source, "coder": coder, "setting": setting, "ours": own, **figures})
        print(f"{source:18} {coder:18} {setting:44} {figures['bits']:.3f} bits  error {figures['error']:.5f}  "
              f"limit {2 ** (-2 * figures['bits']):.5f}  {figures['seconds']:.1f} s", flush=True)  # fmt: skip

    for codec, setting, config in [*PUBLISHED, *OURS]:  # by setting: SeedLM's tables are made once for each
        for source, weights in made.items():
            tell(source, CODECS[codec], setting, True, ours(codec, config, weights))
    for peer in known:
        for source, weights in made.items():
            if peer.code is not None:
                tell(source, peer.coder, peer.setting, False, theirs(peer, weights))
    rows += [row for row in stored.get("rows", []) if not row["ours"]]
    order = {source: number for number, source in enumerate(made)}
    rows.sort(key=lambda row: order[row["source"]])
    found = {
        "size": options.size,
        "threads": options.threads,
        "load": load,
        **({"peers_load": stored.get("peers_load", stored["load"])} if stored else {}),
        "reference_weights": sum(w.numel() for w in made["reference model"].values()),
        "versions": stored.get("versions") or {package: version(package) for package in PACKAGES},
        "rows": rows,
        "missing": stored.get("missing")
        or [{"coder": peer.coder, "setting": peer.setting, "note": peer.note} for peer in known if peer.code is None],
    }
    publish(found, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
