"""Opens hundreds of thousands of broken and forged artifacts, and checks that none does harm.

    python -m experiments.fuzz                      # 200,000 mutations -> experiments/results/fuzz.{md,json}
    python -m experiments.fuzz --resume             # goes on where an interrupted campaign stopped
    python -m experiments.fuzz --replay 17 3        # chunk 17, mutation 3, with its traceback

Small valid artifacts of every codec are mutated: cut, bits flipped, bytes overwritten, manifests edited (numbers
changed, fields swapped, dropped or added, counts made huge or negative, types replaced), streams replaced, manifests
that inflate, `config.json` edited. A checksum rejects nearly all of these at the door, so every edit of a manifest or a
stream is made twice as likely to have its checksums *recomputed* as not: that is what an attacker would do, and what
reaches the checks behind the door.

After each mutation the file must have been

- rejected with `ArtifactError`, or
- decoded to the right weights, bit for bit, or,
- only where a checksum was recomputed: decoded to finite float32 weights of the architecture's shapes;

within 1 s of processor time, without a warning, and with no more than twice the memory that the honest file takes and
1 MiB (peak of what `tracemalloc` counts while it is opened: Python's objects and numpy's arrays, not the entropy
coder's own tables). Chunk c of a campaign draws from the seed (campaign seed, c), so that each can be repeated alone.
"""

from __future__ import annotations

import argparse
import json
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.fuzz_mutations import FAMILIES
from experiments.fuzz_samples import Sample, measured, open_artifact, samples
from phase8.errors import ArtifactError
from phase8.files import write_atomic
from phase8.runtime.llama import LlamaShape

RESULTS = Path(__file__).parent / "results"
CHUNK = 1000
SECONDS_LIMIT = 1.0
MEMORY_LIMIT, MEMORY_BASE = 2.0, 1 << 20


@dataclass(kw_only=True)
class Tally:
    """What a campaign has seen."""

    mutations: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    by_family: dict[str, Counter[str]] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    slowest_seconds: float = 0.0
    slowest: str = ""
    largest_ratio: float = 0.0
    largest: str = ""
    failures: list[str] = field(default_factory=list)


def judge(result: Any, sample: Sample, checksum: bool) -> str:
    """Returns the outcome, which begins with `FAILED` where it is not one of those allowed."""
    if isinstance(result, ArtifactError):
        return "rejected"
    if isinstance(result, BaseException):
        return f"FAILED: {type(result).__name__}: {str(result)[:200]}"
    if {name: weights.tobytes() for name, weights in result.items()} == sample.weights:
        return "decoded to the right weights"
    if not checksum:
        return "FAILED: decoded to wrong weights although no checksum was recomputed"
    shapes = LlamaShape.from_config(json.loads(sample.config)).tensor_shapes()
    if {name: weights.shape for name, weights in result.items()} != shapes:
        return "FAILED: decoded to other shapes than the architecture's"
    if not all(weights.dtype == np.float32 and np.isfinite(weights).all() for weights in result.values()):
        return "FAILED: decoded to weights that are not finite float32"
    return "decoded to other finite weights (checksum recomputed)"


def mutation(made: Sequence[Sample], draw: np.random.Generator) -> tuple[Sample, str, bytes, bytes, bool]:
    """Draws one mutation: sample, family, file, config, whether a checksum was recomputed."""
    sample = made[draw.integers(len(made))]
    names = list(FAMILIES)
    family = names[draw.choice(len(names), p=[share for _, share in FAMILIES.values()])]
    raw, config, checksum = FAMILIES[family][0](draw, sample)
    return sample, family, raw, config, checksum


def run_chunk(made: Sequence[Sample], seed: int, chunk: int, count: int, tally: Tally) -> None:
    """Opens `count` mutated artifacts."""
    draw = np.random.default_rng([seed, chunk])
    for number in range(count):
        sample, family, raw, config, checksum = mutation(made, draw)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result, seconds, peak = measured(partial(open_artifact, raw, config))
        outcome, ratio = judge(result, sample, checksum), peak / sample.peak_bytes
        here = f"chunk {chunk}, mutation {number}: {sample.name}, {family}"
        if seconds > SECONDS_LIMIT:
            outcome = f"FAILED: took {seconds:.2f} s"
        elif peak > MEMORY_LIMIT * sample.peak_bytes + MEMORY_BASE:
            outcome = f"FAILED: took {ratio:.2f} times the honest file's memory"
        if outcome.startswith("FAILED"):
            tally.failures.append(f"{here}: {outcome}")
            outcome = "FAILED"
        tally.mutations += 1
        tally.outcomes[outcome] += 1
        tally.by_family.setdefault(family, Counter())[outcome] += 1
        if isinstance(result, ArtifactError):
            tally.reasons[_reason(result)] += 1
        if seconds > tally.slowest_seconds:
            tally.slowest_seconds, tally.slowest = seconds, here
        if ratio > tally.largest_ratio:
            tally.largest_ratio, tally.largest = ratio, here
        del result


def _reason(error: ArtifactError) -> str:
    """An error's text without its numbers and names, so that like ones are counted together."""
    words = error.what.split("(")[0].split(":")[:3]
    kept = [w for w in " ".join(words).split() if w.replace("_", "").replace("-", "").isalpha()]
    return " ".join(kept[:12]) or "(no words)"


def campaign(mutations: int, seed: int, *, tally: Tally | None = None, on_chunk: Callable[[Tally], None] | None = None):
    """Runs a whole campaign, chunk by chunk, going on where `tally` stands.

    Returns:
        the tally, and the samples that were mutated.
    """
    tally = tally or Tally()
    made = samples()
    while tally.mutations < mutations:
        chunk = tally.mutations // CHUNK
        run_chunk(made, seed, chunk, min(CHUNK, mutations - tally.mutations), tally)
        if on_chunk is not None:
            on_chunk(tally)
    return tally, made


def as_json(tally: Tally, made: Sequence[Sample] | None, seed: int) -> dict[str, Any]:
    """The results as they are written."""
    honest = [
        {"sample": s.name, "bytes": len(s.raw), "milliseconds": round(1000 * s.seconds, 2), "peak_bytes": s.peak_bytes}
        for s in made or []
    ]
    return {
        "seed": seed,
        "mutations": tally.mutations,
        "failures": tally.failures,
        "outcomes": dict(tally.outcomes.most_common()),
        "by_family": {family: dict(tally.by_family[family].most_common()) for family in sorted(tally.by_family)},
        "slowest_seconds": round(tally.slowest_seconds, 4),
        "slowest": tally.slowest,
        "largest_memory_ratio": round(tally.largest_ratio, 3),
        "largest": tally.largest,
        "honest": honest,
        "reasons": dict(tally.reasons.most_common(80)),
    }


def as_markdown(found: dict[str, Any]) -> str:
    """The results as a page."""
    kinds = [
        "rejected",
        "decoded to the right weights",
        "decoded to other finite weights (checksum recomputed)",
        "FAILED",
    ]
    lines = [
        "# Opening broken and forged artifacts",
        "",
        f"`python -m experiments.fuzz --mutations {found['mutations']} --seed {found['seed']}`",
        "",
        f"{found['mutations']:,} mutated artifacts, {len(found['failures'])} failures. The slowest took "
        f"{1000 * found['slowest_seconds']:.0f} ms (limit 1 s; {found['slowest']}). The most memory was "
        f"{found['largest_memory_ratio']:.2f} times the honest file's (limit 2, and 1 MiB; {found['largest']}). "
        "Files that are forged from nothing: `forge.md`.",
        "",
        "| family | mutations | rejected | right weights | other finite weights, checksum recomputed | failed |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    total = Counter(found["outcomes"])
    for family, outcomes in [*found["by_family"].items(), ("all", total)]:
        cells = " | ".join(f"{outcomes.get(kind, 0):,}" for kind in kinds)
        lines.append(f"| {family} | {sum(outcomes.values()):,} | {cells} |")
    lines += ["", "| honest artifact | bytes | ms | peak memory, bytes |", "| --- | --- | --- | --- |"]
    for row in found["honest"]:
        lines.append(f"| {row['sample']} | {row['bytes']:,} | {row['milliseconds']} | {row['peak_bytes']:,} |")
    lines += [
        "",
        "The commonest reasons given:",
        "",
        "| reason (numbers and names left out) | times |",
        "| --- | --- |",
    ]
    lines += [f"| {reason} | {count:,} |" for reason, count in list(found["reasons"].items())[:25]]
    lines += ["", *(f"- {failure}" for failure in found["failures"][:50])] if found["failures"] else []
    return "\n".join(lines) + "\n"


def _resumed(path: Path, seed: int) -> Tally:
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["seed"] != seed or found["mutations"] % CHUNK:
        raise SystemExit(f"{path} is of another seed, or complete: start afresh without --resume")
    return Tally(
        mutations=found["mutations"],
        outcomes=Counter(found["outcomes"]),
        by_family={family: Counter(outcomes) for family, outcomes in found["by_family"].items()},
        reasons=Counter(found["reasons"]),
        slowest_seconds=found["slowest_seconds"],
        slowest=found["slowest"],
        largest_ratio=found["largest_memory_ratio"],
        largest=found["largest"],
        failures=found["failures"],
    )


def replay(seed: int, chunk: int, number: int) -> None:
    """Prints what one mutation does."""
    made = samples()
    draw = np.random.default_rng([seed, chunk])
    for _ in range(number + 1):
        sample, family, raw, config, checksum = mutation(made, draw)
    result, seconds, peak = measured(partial(open_artifact, raw, config))
    print(f"{sample.name}, {family}, checksum recomputed: {checksum}; {len(raw)} bytes")
    print(f"{judge(result, sample, checksum)}; {1000 * seconds:.1f} ms; {peak:,} bytes, honest {sample.peak_bytes:,}")
    if isinstance(result, BaseException):
        traceback.print_exception(result)


def main() -> int:
    """Runs a campaign and writes its results; the exit status is 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "fuzz")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--replay", type=int, nargs=2, metavar=("CHUNK", "MUTATION"))
    options = parser.parse_args()
    if options.replay:
        replay(options.seed, *options.replay)
        return 0
    path = options.out.with_suffix(".json")
    tally = _resumed(path, options.seed) if options.resume and path.exists() else Tally()
    state: dict[str, Sequence[Sample] | None] = {"made": None}

    def save(now: Tally) -> None:
        found = as_json(now, state["made"], options.seed)
        write_atomic(path, json.dumps(found, indent=1) + "\n")
        print(f"{now.mutations:,} mutations, {len(now.failures)} failures", flush=True)

    tally, state["made"] = campaign(options.mutations, options.seed, tally=tally, on_chunk=save)
    found = as_json(tally, state["made"], options.seed)
    write_atomic(path, json.dumps(found, indent=1) + "\n")
    write_atomic(options.out.with_suffix(".md"), as_markdown(found))
    print(as_markdown(found))
    return 1 if tally.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
