"""Kills a small run at random moments and goes on with it, again and again: is anything lost, are the bytes the same?

    python experiments/kills.py --kills 100 --seed 0 --out experiments/results/kills.md

A run of all stages on a tiny model (with a retry, or within a byte budget) is done once without interruption. Then runs
are started as child processes, and each is sent SIGKILL after a time drawn uniformly from the uninterrupted run's
duration; `resume` goes on with it, and is killed in the same way, until the run ends by itself. Its artifacts are
compared with the uninterrupted run's, byte by byte, and what its result says, but for times and memory.

With `--out` the counts are kept after every run, in a JSON file beside: the same command goes on where it was stopped.
It begins anew where the uninterrupted runs no longer give the same bytes, for then the code was changed.

Children are forked, so that a run costs no imports; what a kill does to the files is the same. For the same reason the
scores are not lm-eval's (an item counts as solved where the network's likeliest token is the original's), and a retry
trains 12 iterations, not 100.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a forked child has no other threads

from phase8.files import write_atomic

CASES = ("retry", "budget", "trained")
MOST_KILLS = 8
"""Of one run."""
TIMES = ("seconds", "peak_memory_mb", "inference_latency_measured_ms")
"""What of a result says how long something took or how much memory, which no two runs share."""


@dataclass
class Row:
    """What came of one kind of run."""

    expected: dict[str, str]
    """Of the uninterrupted run: SHA-256 of each file of its artifacts, and of its result."""
    seconds: float
    kills: int = 0
    runs: int = 0
    same: int = 0


def tiny_source() -> Any:
    """A random Llama of 12,000 weights over bytes, in memory."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from phase8.model.source import ExpertFile, source_from_network

    vocabulary = {symbol: n + 2 for n, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE(vocab=vocabulary | {"<|end|>": 0, "<pad>": 1}, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<|end|>", eos_token="<|end|>", pad_token="<pad>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258, hidden_size=16, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
        pad_token_id=1,
    )  # fmt: skip
    return source_from_network(LlamaForCausalLM(config).eval(), tokenizer, ExpertFile(), "tiny")


def settings(case: str, run_dir: Path, cache_dir: Path) -> Any:
    """A run of seconds. `retry`: all stages, and the last one's gate fails. `budget`: VPTQ within a byte budget.
    `trained`: a lattice trained within its bytes, whose gate fails, so that the retry trains on."""
    from phase8.config import CompressionConfig

    free = {"seedlm": 0.0, "vptq": 0.0, "hyper": 0.0}
    config: dict[str, Any] = {
        "benchmark_samples": 4,
        "skip_expert_benchmarks": True,
        "max_accuracy_loss": 0.99,
        "gates": {
            "core": free, "expert": free, "rule": free | ({} if case == "budget" else {"hyper": 1.0}), "edge_low": 0.0,
            "edge_high": 1.0, "min_informative": 1, "abort_benchmark": 0.0, "abort_rule": 0.0,
            "abort_knowledge_loss": 1.0, "abort_first_expert_loss": 1.0,
        },
        "seedlm": {"seed_bits": 6, "enabled": case == "retry"},
        "vptq": {"codebook_size": 16, "enabled": case != "trained"},
        "hyper": {
            "enabled": case != "budget", "dims": 16, "grid": 255, "kept_width": 0.5,
            "trajectory_type": "lattice" if case == "trained" else "ergodic",
            "budget_bytes": 5000 if case == "trained" else None,
        },
        "training": {"steps": 12, "batch_sequences": 2, "sequences": 8, "checkpoint_every": 3},
        "target_ratio": 5.0 if case == "budget" else None,
        "grokfast": {"enabled": True, "iterations": 6},
        "optimizer": {
            "batch_sequences": 2, "sequence_tokens": 32, "calibration_sequences": 4, "held_out_sequences": 2,
            "precision": "float32",
        },
        "benchmarks": {"edge_pool": "shipped"},
        "logger": {"mode": "disabled"},
        "paths": {"output_dir": str(run_dir), "cache_dir": str(cache_dir)},
    }  # fmt: skip
    return CompressionConfig.from_dict(config)


def be_quick(source: Any, pause_s: float = 0.005) -> None:
    """Puts scores that cost milliseconds in the place of lm-eval's, and short retries; loads what forks will need.

    Args:
        pause_s: between two reports of progress, long enough to be killed in.
    """
    import lm_eval.evaluator  # noqa: F401
    import matplotlib.backends.backend_svg  # noqa: F401
    import pytorch_lightning  # noqa: F401
    import torch

    import phase8.run.pipeline
    import phase8.watch.report  # noqa: F401
    from phase8.benchmarks.evaluate import Score, SuiteResult
    from phase8.benchmarks.suite import EUDAIMONIA, RULES, load_suite
    from phase8.run import retry
    from phase8.run import score as scoring

    tokens_NT = torch.randint(2, 258, (40, 24), generator=torch.Generator().manual_seed(7))

    def likeliest(network: Any) -> Any:
        with torch.no_grad():
            return network(input_ids=tokens_NT, use_cache=False).logits.argmax(-1)

    original_NT = likeliest(source.network)

    def evaluate(network: Any, _tokenizer: Any, suite: Any, *, on_task: Any, on_progress: Any, **_: Any) -> Any:
        same_NT = likeliest(network) == original_NT
        scores = {}
        for place, task in enumerate(suite.tasks):
            for done in range(0, 41, 10):
                on_progress(task.name, done, 40)
                time.sleep(pause_s)
            labels = tuple(RULES[n % 4] for n in range(40)) if task.stands_for == EUDAIMONIA else ()
            scores[task.name] = Score(
                task=task.name, role=task.role, stands_for=task.stands_for, experts=task.experts, chance=task.chance,
                items=tuple(map(float, same_NT[:, place].tolist())), labels=labels,
            )  # fmt: skip
            on_task(scores[task.name])
        return SuiteResult(scores=scores, missing=suite.missing, bits_per_byte=1.0)

    load_suite((), samples=4, skip_expert_benchmarks=True)  # what it reads and imports, no fork has to
    scoring.evaluate = evaluate
    retry._longer = lambda _, config: {"grokfast.iterations": 2 * config.grokfast.iterations}


def in_child(work: Callable[[], Any], kill_after_s: float | None) -> int:
    """Does some work in a forked process; returns how it ended: 0, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            work()
            status = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os._exit(status)
    if kill_after_s is not None:
        end = time.monotonic() + kill_after_s
        while time.monotonic() < end:
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                break
            time.sleep(min(0.02, max(0.0, end - time.monotonic())))
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def artifacts(run_dir: Path) -> dict[str, str]:
    """SHA-256 of every file of every artifact."""
    files = sorted(path for path in (run_dir / "artifacts").rglob("*") if path.is_file())
    return {str(path.relative_to(run_dir)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def without_times(value: Any, run_dir: Path) -> Any:
    """A result without what no two runs share: times, memory, the directory."""
    if isinstance(value, dict):
        return {name: without_times(item, run_dir) for name, item in value.items() if name not in TIMES}
    if isinstance(value, list):
        return [without_times(item, run_dir) for item in value]
    return value.replace(str(run_dir), "RUN_DIR") if isinstance(value, str) else value


def outcome(run_dir: Path) -> dict[str, str]:
    """SHA-256 of what a finished run left: of each file of its artifacts, and of its result without times."""
    result = without_times(json.loads((run_dir / "result.json").read_text()), run_dir)
    text = json.dumps(result, sort_keys=True)
    return artifacts(run_dir) | {"result.json": hashlib.sha256(text.encode()).hexdigest()}


def kill_until_done(
    case: str, folder: Path, source: Any, duration_s: float, rng: random.Random, most: int, kills: Counter[str]
) -> tuple[Path, list[str]]:
    """Starts a run and kills it until it ends by itself or was killed `most` times, then lets it end.

    Returns:
        Its directory, and what was wrong on the way.
    """
    from phase8 import api
    from phase8.events import read_events

    run_dir = folder / f"run{rng.getrandbits(40):x}"
    config = settings(case, run_dir, folder / f"cache_{run_dir.name}")
    problems, killed, steps = [], 0, 0
    while True:
        begun = (run_dir / "events.jsonl").exists()

        def work(begun: bool = begun) -> None:
            if begun and any(event.kind == "run_start" for event in read_events(run_dir / "events.jsonl")):
                api.resume(run_dir, source, console=False)
            else:
                api.run_configured(config, source, console=False)

        status = in_child(work, rng.uniform(0.0, duration_s) if killed < most else None)
        if status == 0:
            return run_dir, problems
        if status != -signal.SIGKILL:
            return run_dir, [*problems, f"ended with {status} after {killed} kills"]
        killed += 1
        events = read_events(run_dir / "events.jsonl") if (run_dir / "events.jsonl").exists() else []
        done = sum(event.kind == "step_complete" for event in events)
        if done < steps:
            problems.append(f"finished steps were lost: {steps} -> {done}")
        steps = done
        begins = [event.time for event in events if event.kind in ("run_start", "run_resumed")]
        result = run_dir / "result.json"
        if begins and result.exists() and result.stat().st_mtime < begins[-1]:
            problems.append("an old result lies beside a run that was begun anew")
        last = next((event for event in reversed(events) if event.stage), None)
        kills[f"{last.stage} {getattr(last.data, 'step', last.kind)}" if last else "before the first event"] += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    source = tiny_source()
    be_quick(source)
    with tempfile.TemporaryDirectory() as folder:
        rows = {case: measure_whole(case, Path(folder), source) for case in CASES}
        kills, problems = restore(options.out, options.seed, rows)
        while kills.total() < options.kills:
            case = min(CASES, key=lambda name: rows[name].kills)
            row, before = rows[case], kills.total()
            most = min(options.kills - before, MOST_KILLS)
            rng = random.Random(f"{options.seed} {case} {row.runs}")
            run_dir, found = kill_until_done(case, Path(folder), source, row.seconds, rng, most, kills)
            if not found:
                left = outcome(run_dir)
                differ = [name for name in sorted(left | row.expected) if left.get(name) != row.expected.get(name)]
                found = [f"{case}, run {row.runs}: {', '.join(differ)} differ"] if differ else []
            problems += found
            row.kills += kills.total() - before
            row.runs += 1
            row.same += not found
            shutil.rmtree(run_dir)
            if options.out is not None:
                keep(options.out, options.seed, rows, kills, problems)
            print(f"{case}: {row.kills} kills, {row.runs} runs, {row.same} the same", file=sys.stderr, flush=True)
    print(report(rows, kills, problems, options.seed))
    return 0 if not problems and all(row.runs == row.same for row in rows.values()) else 1


def keep(out: Path, seed: int, rows: dict[str, Row], kills: Counter[str], problems: list[str]) -> None:
    """Writes the counts so far, for readers and for `restore`."""
    facts = {"seed": seed, "rows": {case: asdict(row) for case, row in rows.items()}, "kills": kills}
    write_atomic(out.with_suffix(".json"), json.dumps(facts | {"problems": problems}, indent=1) + "\n")
    write_atomic(out, report(rows, kills, problems, seed))


def restore(out: Path | None, seed: int, rows: dict[str, Row]) -> tuple[Counter[str], list[str]]:
    """Counts of an earlier call with the same seed into `rows`, if the uninterrupted runs are still the same.

    Returns:
        Where its kills came, and its problems.
    """
    facts_file = out.with_suffix(".json") if out is not None else None
    if facts_file is None or not facts_file.exists():
        return Counter(), []
    facts = json.loads(facts_file.read_text())
    earlier = {case: Row(**row) for case, row in facts["rows"].items()}
    if facts["seed"] != seed or {case: row.expected for case, row in earlier.items()} != {
        case: row.expected for case, row in rows.items()
    }:
        print(f"{facts_file} is of another seed or other code: beginning anew", file=sys.stderr)
        return Counter(), []
    for case, row in earlier.items():
        rows[case].kills, rows[case].runs, rows[case].same = row.kills, row.runs, row.same
    return Counter(facts["kills"]), facts["problems"]


def measure_whole(case: str, folder: Path, source: Any) -> Row:
    """A run without interruption."""
    from phase8 import api

    run_dir = folder / f"whole_{case}"
    config = settings(case, run_dir, folder / f"cache_{run_dir.name}")
    begin = time.monotonic()
    status = in_child(lambda: api.run_configured(config, source, console=False), None)
    if status != 0:
        raise SystemExit(f"the uninterrupted run of {case} ended with {status}")
    return Row(expected=outcome(run_dir), seconds=time.monotonic() - begin)


def report(rows: dict[str, Row], kills: Counter[str], problems: list[str], seed: int) -> str:
    """The results as Markdown."""
    lines = [
        "# Kills",
        "",
        f"`python experiments/kills.py --kills {kills.total()} --seed {seed} --out experiments/results/kills.md`: runs",
        "of a tiny model are sent SIGKILL at moments drawn uniformly from an uninterrupted run's duration, and gone on",
        "with by `resume`, until they end.",
        "",
        "| run | kills | runs | of them with the same bytes and result | uninterrupted, s | files compared |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {case} | {row.kills} | {row.runs} | {row.same} | {row.seconds:.1f} | {len(row.expected) - 1} |"
            for case, row in rows.items()
        ),
        "",
        f"Problems: {len(problems)}." if problems else "Nothing was lost: no finished step had to be done again.",
        *(f"- {problem}" for problem in problems),
        "",
        "What was going on when the kill came, by the last event of a stage:",
        "",
        *(f"- {place}: {count}" for place, count in sorted(kills.items())),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
