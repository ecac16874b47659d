"""Bytes before and after entropy coding, for every stream of the artifacts, against the streams' empirical entropy.

    python -m experiments.entropy_table           # -> experiments/results/entropy.{md,json}

Encodes the embedded reference model as a run does (calibration included, no reconstruction), with the settings of
`compressor=default` and `compressor=max_compression` and, for the hyper stage, with the published ones, and takes the
pools of the file apart. Per pool:

- *packed*: every value at its fixed width;
- *stored*: what lies in the file, of which *table* is the model: its header and its table of frequencies, both planes'
  where a pool is stored as byte planes;
- *entropy*: the empirical order-0 entropy of the values, n times the sum of -p log2 p. It is no bound for a coder that
  must also say what p is, and of n different values in n places it says nothing but log2 n;
- *adaptive*: what an adaptive order-0 coder spends that learns p while it codes (Krichevsky-Trofimov estimator over the
  values that occur at all, whose list is not counted). Its excess over the entropy is the price of learning;
- *uniform*: the empirical entropy of as many uniform draws (seeded) over the same alphabet, whose true entropy is log2
  of the alphabet's size (*uniform: truth*). What it falls short of that is no redundancy but the bias of the measure:
  a sample is always more regular than its source, the more so the fewer draws there are for a symbol;
- *corrected*: the entropy with Miller and Madow's first-order correction, + (symbols seen - 1) / (2 n ln 2) bits a
  value. It is meant for many draws of every symbol; with few it still falls short, and *uniform: corrected*, the same
  of the uniform draws, shows by how much.

Excess is stored / entropy - 1. The aim is at most 1 %. At the end, the small streams of 16 bits of the default hyper
stage are coded in two planes parted at every bit, to see what another coding could win there.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from phase8.artifact.read import parse
from phase8.artifact.write import file_bytes
from phase8.codecs.stages import NAMES
from phase8.codecs.streams import EncodedGroup
from phase8.config import CompressionConfig, HyperConfig, WandbMode, Winding
from phase8.files import write_atomic
from phase8.lossless.bitpack import narrowest, packed_bytes
from phase8.lossless.entropy import CODINGS
from phase8.lossless.entropy import encode as entropy_encode
from phase8.model.source import load_source
from phase8.run.calibration import Calibration
from phase8.run.groups import encode_all

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
COMPRESSORS = ("default", "max_compression")
BAR = 0.01
PUBLISHED = HyperConfig(dims=2, grid=1600, classes=3, winding=Winding.power, side=0.1)
HEADINGS = (
    "codec: stream", "pools", "values", "bits", "coding", "packed", "stored", "of it table", "entropy", "excess",
    "excess without table", "adaptive", "stored against adaptive", "uniform: truth", "uniform: entropy",
    "uniform: corrected", "corrected", "excess over corrected",
)  # fmt: skip
SMALL = 10_000
"""Values of a small stream at most."""
SUMMED = ("packed", "stored", "table", "entropy", "adaptive", "truth", "uniform", "uniform_corrected", "corrected")


def configured(compressor: str) -> CompressionConfig:
    """The settings that `python run.py compressor=...` would run with."""
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        composed = compose("config", overrides=[f"compressor={compressor}", "paths.output_dir=unused"])
    config = CompressionConfig.from_dict(OmegaConf.to_container(composed, resolve=True))
    return replace(config, logger=replace(config.logger, mode=WandbMode.disabled))


def entropy_bytes(values: np.ndarray) -> float:
    """Empirical order-0 entropy of all values together, in bytes."""
    counts = np.unique(values, return_counts=True)[1]
    return float(counts @ np.log2(counts.sum() / counts)) / 8


def adaptive_bytes(values: np.ndarray) -> float:
    """Length under the Krichevsky-Trofimov estimator over the alphabet that occurs, in bytes.

    Example: 0, 1: 1/2 for the first, (0 + 1/2) / (1 + 1) for the second, 3 bits in all.
    """
    counts = np.unique(values, return_counts=True)[1].tolist()
    alphabet = len(counts)
    nats = math.lgamma(values.size + alphabet / 2) - math.lgamma(alphabet / 2)
    nats -= sum(math.lgamma(count + 0.5) for count in counts) - alphabet * math.lgamma(0.5)
    return nats / math.log(2) / 8


def corrected_bytes(values: np.ndarray) -> float:
    """`entropy_bytes` with Miller and Madow's correction.

    Example: 0, 1: 2 bits of entropy in all and half of log2 e for one symbol beside the first, 2.72 bits.
    """
    return entropy_bytes(values) + (np.unique(values).size - 1) / (2 * math.log(2)) / 8


def alphabet(group: EncodedGroup, role: str, bits: int) -> int:
    """How many values a stream may hold."""
    settings = group.settings
    if group.codec == "hyper" and role == "codes":
        return (settings["classes"] + 1) * (settings["grid"] + 1)
    if group.codec == "vptq" and role.startswith("index_"):
        return settings["codebook_sizes"][int(role.removeprefix("index_"))]
    return 2**bits


def best_split(values: np.ndarray) -> dict[str, int]:
    """The shortest coding of 16-bit values in two planes: its bytes, where they part, how many of them are `ans`.

    Each plane in the shortest of the format's codings, and the 6 bytes of the header of `planes`.
    """
    found = []
    for low in range(1, 16):
        parts = ((values >> low, 16 - low), (values & ((1 << low) - 1), low))
        coded = [entropy_encode(part.astype(narrowest(bits)), bits) for part, bits in parts]
        size = 6 + sum(len(blob) for _, blob in coded)
        found.append({"bytes": size, "low_bits": low, "ans": sum(coding == "ans" for coding, _ in coded)})
    return min(found, key=lambda split: split["bytes"])


def table_bytes(coding: str, blob: memoryview | bytes) -> int:
    """Bytes of a blob that are not coded values (docs/format.md, section 4)."""
    if coding == "packed":
        return 0
    if coding == "ans":
        _, span, mantissa_bits = struct.unpack_from("<HHB", blob)
        return 5 + packed_bytes(span + 1, 4 + mantissa_bits)
    high, low, middle = struct.unpack_from("<BBI", blob)
    parts = table_bytes(CODINGS[high], blob[6 : 6 + middle]) + table_bytes(CODINGS[low], blob[6 + middle :])
    return 6 + parts


def pool_values(groups: tuple[EncodedGroup, ...]) -> dict[tuple[int, str, bool, int], np.ndarray]:
    """The values of every pool, one after the other as they are coded."""
    found: dict[tuple[int, str, bool, int], list[np.ndarray]] = {}
    for index, group in enumerate(groups):
        for shared, parts in ((True, [group.shared]), (False, [t.streams for t in group.tensors.values()])):
            for part in parts:
                for role, stream in part.items():
                    found.setdefault((index, role, shared, stream.bits), []).append(stream.values)
    return {key: np.concatenate(values) for key, values in found.items()}


def pools_of(groups: list[EncodedGroup], stage: str, parameters: int) -> list[dict[str, Any]]:
    """Writes the file into memory, reads it, and describes its pools."""
    raw = file_bytes(groups, stage, {"parameters": parameters})
    manifest = parse(raw)
    artifact = manifest.artifact()
    values = pool_values(artifact.groups)
    position, found = manifest.overhead_bytes, []
    for pool in artifact.pools:
        blob = raw[position : position + pool.size_bytes]
        position += pool.size_bytes
        run, group = values[pool.group, pool.role, pool.shared, pool.bits], artifact.groups[pool.group]
        size = alphabet(group, pool.role, pool.bits)
        uniform = np.random.default_rng(0).integers(0, size, run.size)
        found.append(
            {
                "codec": group.codec,
                "role": pool.role,
                "bits": pool.bits,
                "coding": pool.coding,
                "values": int(run.size),
                "distinct": int(np.unique(run).size),
                "packed": packed_bytes(run.size, pool.bits),
                "stored": pool.size_bytes,
                "table": table_bytes(pool.coding, blob),
                "entropy": entropy_bytes(run),
                "adaptive": adaptive_bytes(run),
                "alphabet": size,
                "truth": run.size * math.log2(size) / 8,
                "uniform": entropy_bytes(uniform),
                "uniform_corrected": corrected_bytes(uniform),
                "corrected": corrected_bytes(run),
                "split": best_split(run) if pool.bits == 16 and 1 < run.size < SMALL else None,
            }
        )
    if position != len(raw):
        raise ValueError("the pools do not fill the file")
    found.append({"codec": "", "role": "header and manifest", "stored": manifest.overhead_bytes})
    return found


def encode(name: str, config: CompressionConfig, stages: tuple[str, ...] = NAMES) -> dict[str, list[dict[str, Any]]]:
    """Pools per stage."""
    source = load_source(config.model.path)
    found = {}
    calibration = Calibration(source)
    for stage in stages:
        groups = encode_all(source, calibration, stage, config)
        found[stage] = pools_of(groups, stage, source.parameter_count)
        print(f"{name} {stage}: {sum(pool['stored'] for pool in found[stage]):,} bytes", flush=True)
    return found


def by_role(pools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds up pools of one codec, role, width and coding (one per group that shares a codebook)."""
    sums: dict[tuple, dict[str, Any]] = {}
    for pool in pools:
        if not pool["codec"]:
            continue
        key = tuple(pool[name] for name in ("codec", "role", "bits", "coding"))
        row = sums.setdefault(key, {**dict(zip(("codec", "role", "bits", "coding"), key, strict=True)), "pools": 0})
        row["pools"] += 1
        for name in ("values", *SUMMED):
            row[name] = row.get(name, 0) + pool[name]
    return list(sums.values())


def as_markdown(found: dict[str, Any]) -> str:
    lines = [
        "# Entropy coding: bytes before and after, stream by stream",
        "",
        "`python -m experiments.entropy_table`: the embedded reference model "
        f"({found['parameters']:,} parameters), encoded with calibration and without reconstruction. Bytes; pools of"
        " one role and coding added up. `table`: the part of `stored` that describes the model; `entropy`: empirical"
        " order-0 entropy, which pays for no model; `adaptive`: an adaptive order-0 coder that learns it. The script's"
        " head has the definitions.",
    ]
    for compressor, stages in found["pools"].items():
        for stage, pools in stages.items():
            rows = by_role(pools)
            total = {name: sum(row[name] for row in rows) for name in SUMMED}
            lines += [
                "",
                f"## {compressor}, {stage}",
                "",
                f"| {' | '.join(HEADINGS)} |",
                "| --- " * len(HEADINGS) + "|",
            ]
            for row in [*rows, {"codec": "all streams", "role": "", **total}]:
                count = row.get("values")
                # A pool of one repeated value has no entropy at all.
                excess = f"{100 * (row['stored'] / row['entropy'] - 1):+.2f} %" if row["entropy"] >= 1 else "-"
                body = (
                    f"{100 * ((row['stored'] - row['table']) / row['entropy'] - 1):+.2f} %"
                    if row["entropy"] >= 1 else "-"
                )  # fmt: skip
                against = f"{100 * (row['stored'] / row['adaptive'] - 1):+.2f} %" if row["adaptive"] >= 1 else "-"
                over = f"{100 * (row['stored'] / row['corrected'] - 1):+.2f} %" if row["corrected"] >= 1 else "-"
                name = f"{row['codec']}: {row['role']}" if row["role"] else f"**{row['codec']}**"
                lines.append(
                    f"| {name} | {row.get('pools', '')} | {'' if count is None else f'{count:,}'} | "
                    f"{row.get('bits', '')} | {row.get('coding', '')} | {row['packed']:,} | {row['stored']:,} | "
                    f"{row['table']:,} | {row['entropy']:,.0f} | {excess} | {body} | {row['adaptive']:,.0f} | "
                    f"{against} | {row['truth']:,.0f} | {row['uniform']:,.0f} | {row['uniform_corrected']:,.0f} | "
                    f"{row['corrected']:,.0f} | {over} |"
                )
            overhead = next(pool["stored"] for pool in pools if not pool["codec"])
            saved = total["packed"] - total["stored"]
            outside = [row for row in rows if row["entropy"] >= 1 and row["stored"] > (1 + BAR) * row["entropy"]]
            share = sum(row["stored"] for row in outside) / total["stored"]
            lines += [
                "",
                f"Entropy coding saves {saved:,} of {total['packed']:,} bytes ({100 * saved / total['packed']:.1f} %); "
                f"header and manifest take {overhead:,} beside the streams. All streams together: "
                f"{100 * (total['stored'] / total['entropy'] - 1):+.2f} % of the entropy, tables included, "
                f"{100 * (total['stored'] / total['corrected'] - 1):+.2f} % of the corrected one; the entropy of as"
                f" many uniform draws is {100 * (1 - total['uniform'] / total['truth']):.2f} % below theirs. "
                + (
                    "Not within 1 %: "
                    + ", ".join(f"{row['codec']} `{row['role']}` ({row['coding']})" for row in outside)
                    + f", together {100 * share:.1f} % of the bytes."
                    if outside else "Every stream is within 1 %."
                ),
            ]  # fmt: skip
            for row in outside:
                if row["coding"] == "packed":
                    excess, bias = row["stored"] - row["entropy"], row["truth"] - row["uniform"]
                    lines += [
                        "",
                        f"{row['codec']} `{row['role']}`, packed: of {excess:,.0f} bytes above the entropy,"
                        f" {bias:,.0f} are the bias that as many uniform draws show; {max(excess - bias, 0):,.0f} are"
                        f" left ({100 * max(excess - bias, 0) / row['stored']:.2f} %), from which a coder would have to"
                        " pay for its table.",
                    ]
    return "\n".join([*lines, *small_streams(found["pools"]["default"]["hyper"])]) + "\n"


def small_streams(pools: list[dict[str, Any]]) -> list[str]:
    """What another split into planes would win."""
    lines = [
        "",
        "## Small streams of the default hyper stage, parted at other bits",
        "",
        "`planes` parts 16 bits into 8 and 8. Here they are parted wherever it is shortest, each plane coded in the"
        " shortest of the format's codings; `at most` takes 3 bytes for the header instead of 6, and 2 bytes less of"
        " every entropy-coded plane, as words of 16 bits instead of 32 would.",
        "",
        "| stream | values | stored | best split | low bits | won | at most |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    all_won = all_most = 0
    for pool in pools:
        if pool.get("split"):
            split = pool["split"]
            won = max(pool["stored"] - split["bytes"], 0)
            most = max(pool["stored"] - split["bytes"] + 3 + 2 * split["ans"], 0)
            all_won, all_most = all_won + won, all_most + most
            lines.append(
                f"| {pool['codec']}: {pool['role']} | {pool['values']:,} | {pool['stored']:,} | {split['bytes']:,} | "
                f"{split['low_bits']} | {won} | {most} |"
            )
    stored = sum(pool["stored"] for pool in pools)
    lines += ["", f"Together {all_won} bytes of the file's {stored:,}, at most {all_most}."]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "entropy", help="without extension")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    parameters = load_source(CompressionConfig().model.path).parameter_count
    pools = {compressor: encode(compressor, configured(compressor)) for compressor in COMPRESSORS}
    settings = "published (dims=2 grid=1600 classes=3 winding=power side=0.1)"
    pools[settings] = encode(settings, replace(configured("default"), hyper=PUBLISHED), ("hyper",))
    found = {"parameters": parameters, "pools": pools}
    write_atomic(options.out.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
    write_atomic(options.out.with_suffix(".md"), as_markdown(found))
    print(as_markdown(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
