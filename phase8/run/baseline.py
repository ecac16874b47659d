"""The baseline: which benchmarks the run has, and what the original model scores on them."""

from __future__ import annotations

import time

from phase8.benchmarks import edge
from phase8.benchmarks.cache import BaselineCache
from phase8.benchmarks.eudaimonia import with_eudaimonia
from phase8.benchmarks.evaluate import SuiteResult, evaluate
from phase8.benchmarks.real import load_real_suite
from phase8.benchmarks.suite import EDGE_OF_CHAOS, Suite, load_suite, suite_hash
from phase8.cache import content_key
from phase8.codecs.pools import kind_of
from phase8.config import BenchmarkSuite, CompressionConfig, EdgePool
from phase8.events import CompressionProgress, StageComplete, StageStart
from phase8.judge.retention import uninformative_core
from phase8.model.source import EMBEDDED, SourceModel
from phase8.run.context import Context
from phase8.run.journal import read_scores, recalled, write_scores
from phase8.run.machine import peak_memory_mb
from phase8.run.result import text_name
from phase8.run.score import score, tell_score

BASELINE = "baseline"


def measure_baseline(run: Context) -> None:
    """Loads the run's suite and scores the original model: sets `run.suite` and `run.baseline`."""
    begin = time.monotonic()
    told = run.journal.complete(BASELINE, 1) is not None
    if not told:
        run.tell(StageStart(attempt=1), BASELINE)
    if told:
        run.suite = load_run_suite(run.config, run.source.experts.experts)
    else:
        with run.step("load", BASELINE):
            run.suite = load_run_suite(run.config, run.source.experts.experts)
        _tell_what_is_missing(run, run.suite)
        _tell_texts(run)
    cache = BaselineCache(run.cache_dir)
    run.suite = _with_edge_pool(run, run.suite, cache)
    run.baseline = _scores(run, cache, told)
    if told:
        return
    for name, found in run.baseline.scores.items():
        if found.note:
            run.log("warning", f"{name}: {found.note}", BASELINE)
    if text := uninformative_core(run.baseline, run.config.gates.min_informative, text_name(run.config)):
        run.log("warning", text, BASELINE)
    size = run.source.original_bytes
    run.tell(
        CompressionProgress(
            compressed_bytes=size,
            original_bytes=size,
            ratio=1.0,
            bits_per_weight=32.0,
            groups=_original_bytes_by_kind(run.source),
        ),
        BASELINE,
    )
    run.tell(
        StageComplete(
            passed=True,
            seconds=time.monotonic() - begin,
            artifact=None,
            bits_per_byte=run.baseline.bits_per_byte,
            text=text_name(run.config),
            peak_memory_mb=peak_memory_mb(),
        ),
        BASELINE,
    )


def _scores(run: Context, cache: BaselineCache, told: bool) -> SuiteResult:
    """The original's scores: of an earlier process of this run, from the cache, or measured now."""
    assert run.suite is not None
    path = run.journal.path(BASELINE, 1, "scores.json")
    if run.journal.done(BASELINE, 1, "evaluate"):
        found = recalled(run.tell, lambda: read_scores(path))
        if found is not None:
            for known in [] if told else found.scores.values():
                tell_score(run, known, BASELINE, 1)
            return found
    key = (run.source.content_hash, suite_hash(run.suite))
    # One measures, the others of a multirun wait for it: the lock is its process's and goes with it.
    with run.step("evaluate", BASELINE), run.shared.cache.lock(content_key({"baseline": key})):
        found = cache.get(*key)
        if found is None:
            found = score(run, run.source.network, BASELINE, 1)
            cache.put(*key, found)
        else:
            run.log("info", "baseline taken from the cache", BASELINE)
            for known in found.scores.values():
                tell_score(run, known, BASELINE, 1)
        write_scores(path, found)
    return found


def is_foreign(run: Context) -> bool:
    """Whether the model is any but an embedded one, from a path or from memory."""
    return not run.source.name.startswith(EMBEDDED)


def _tell_texts(run: Context) -> None:
    """Which texts the run rests on, and that the embedded world's say nothing of a foreign model."""
    assert run.suite is not None
    size = sum(len(document.encode()) for document in run.suite.text)
    if size and run.config.benchmarks.perplexity_text:
        text = f"held-out text: {text_name(run.config)}, {len(run.suite.text):,} documents, {size:,} bytes"
        run.log("info", text, BASELINE)
    if not is_foreign(run):
        return
    absent = {
        "calibration_text": run.config.calibration_text is None,
        "benchmarks.perplexity_text": bool(size) and run.config.benchmarks.perplexity_text is None,
    }
    if names := [name for name, is_absent in absent.items() if is_absent]:
        run.log(
            "warning",
            f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'} not set, so the embedded world's text stands "
            "in: invented for the embedded model, it says little of what this one knows. Better: "
            f"{' '.join(f'{name}=FILE' for name in names)}, UTF-8, documents parted by blank lines",
            BASELINE,
        )


def load_run_suite(config: CompressionConfig, experts: tuple[str, ...]) -> Suite:
    """The benchmarks that the settings and the model's experts ask for.

    Raises:
        BenchmarkError, ConfigError: data are missing or malformed.
    """
    settings = config.benchmarks
    common = {
        "samples": config.benchmark_samples,
        "skip_expert_benchmarks": config.skip_expert_benchmarks,
        "text": settings.perplexity_text,
        "data_dir": settings.data_dir,
        "overrides": settings.experts,
    }
    if settings.suite is BenchmarkSuite.mini:
        suite = load_suite(experts, **common)
    else:
        suite = load_real_suite(
            experts,
            run_generated_code=settings.run_generated_code,
            pass_at=settings.pass_at,
            **common,
        )
    return suite if settings.eudaimonia_file is None else with_eudaimonia(suite, settings.eudaimonia_file)


def _tell_what_is_missing(run: Context, suite: Suite) -> None:
    asked_for = run.config.benchmarks.suite is BenchmarkSuite.mini and run.config.skip_expert_benchmarks
    # Those with a reason of their own are not left out because the settings ask.
    skipped = [one for one in suite.missing if asked_for and not one.endswith(")")]
    absent = [one for one in suite.missing if one not in skipped]
    if skipped:
        text = f"benchmarks skipped, as the settings ask (skip_expert_benchmarks): {'; '.join(skipped)}"
        run.log("info", text, BASELINE)
    if absent:
        run.log("warning", f"benchmarks not measured: {'; '.join(absent)}", BASELINE)
    for text in suite.notes:
        run.log("warning", text, BASELINE)


def _with_edge_pool(run: Context, suite: Suite, cache: BaselineCache) -> Suite:
    """The suite with questions of edge of chaos that suit this model, where the settings want them."""
    settings = run.config.benchmarks
    asked = settings.edge_pool is EdgePool.calibrated or settings.edge_pool_file is not None
    suited = settings.edge_pool is EdgePool.auto and is_foreign(run)
    if not (asked or suited) or not any(task.stands_for == EDGE_OF_CHAOS for task in suite.tasks):
        return suite
    file = settings.edge_pool_file
    candidates = edge.embedded_candidates() if file is None else edge.read_candidates(file)
    path = run.journal.path(BASELINE, 1, "pool.json")

    def answers(only: Suite) -> SuiteResult:
        if run.journal.done(BASELINE, 1, "pool"):
            found = recalled(run.tell, lambda: read_scores(path))
            if found is not None:
                return found
        key = (run.source.content_hash, suite_hash(only))
        found = cache.get(*key)
        if found is None:
            found = evaluate(
                run.source.network,
                run.source.tokenizer,
                only,
                batch_tokens=settings.batch_tokens,
                on_progress=lambda _, done, total: run.progress(
                    "pool", BASELINE, done, total, f"candidates, {done} of {total}"
                ),
            )
            cache.put(*key, found)
        write_scores(path, found)
        return found

    size = min(edge.POOL_ITEMS, suite.samples or edge.POOL_ITEMS)
    if run.journal.done(BASELINE, 1, "pool"):
        pool = edge.build_pool(candidates, edge.measure_with(suite, answers), size)
    else:
        with run.step("pool", BASELINE):
            pool = edge.build_pool(candidates, edge.measure_with(suite, answers), size)
        run.log("info" if pool.items else "warning", pool.text, BASELINE)
    return edge.with_pool(suite, pool.items, pool.probes)


def _original_bytes_by_kind(source: SourceModel) -> dict[str, int]:
    kinds: dict[str, int] = {}
    for name, (_, parameter) in source.parameters.items():
        kinds[kind_of(name)] = kinds.get(kind_of(name), 0) + 4 * parameter.numel()
    return kinds
