"""The run: baseline, then encode -> optimise -> write -> read back -> evaluate -> gate for each stage.

What is judged is what was written: the network that the benchmarks see gets its weights from the artifact on disk. A
stage whose gate fails is tried again with the recommendation drawn from its failure, then the run falls back to the
last stage that passed; its artifact is already there. The pipeline tells what it does through events and returns the
content of `result.json`; whoever wants to look subscribes to the event log.
"""

from __future__ import annotations

import copy
import json
import math
import os
import resource
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phase8.allocation.budget import Allocation, Allocator
from phase8.artifact.read import Artifact, read_artifact
from phase8.artifact.write import bytes_by_kind, contents, load_weights, write_artifact
from phase8.benchmarks import edge
from phase8.benchmarks.cache import BaselineCache
from phase8.benchmarks.eudaimonia import with_eudaimonia
from phase8.benchmarks.evaluate import Score, SuiteResult, evaluate
from phase8.benchmarks.probes import choice_sensitivity, probes_of
from phase8.benchmarks.real import load_real_suite
from phase8.benchmarks.suite import EDGE_OF_CHAOS, Suite, load_suite, suite_hash
from phase8.codecs import EncodedGroup, Importance
from phase8.codecs.base import Progress
from phase8.codecs.pools import is_protected, kind_of
from phase8.codecs.stages import NAMES
from phase8.config import BenchmarkSuite, CompressionConfig, EdgePool, GrokfastConfig, GrokfastVariant, OptimizerConfig
from phase8.errors import ConfigError
from phase8.events import (
    Allocated,
    BenchmarkResult,
    CheckResult,
    CompressionProgress,
    EventLog,
    Limits,
    Log,
    Part,
    PhaseComplete,
    QualityGate,
    Recommended,
    RetryStart,
    RunStart,
    StageComplete,
    StageStart,
    StepComplete,
    TrainingComplete,
    TrainingProgress,
    TrainingRestart,
)
from phase8.files import make_directory, write_atomic
from phase8.judge.gates import judge_stage
from phase8.judge.retention import is_informative, uninformative_core
from phase8.model.importance import collect_importance
from phase8.model.latency import measure_latency_ms
from phase8.model.source import EMBEDDED, SourceModel, as_parameters
from phase8.model.text import token_sequences
from phase8.run.encode import Plan, encode_coded, encode_plain, plan
from phase8.run.result import Attempt, build_result, retention_of
from phase8.run.retry import Sensitivity, adjust, integration_failures, recommend
from phase8.train.divergence import tensor_sensitivity
from phase8.train.reconstruct import ReconstructionResult, reconstruct

CALIBRATION_SEED = 1009
"""Added to the run's seed: calibration text is drawn apart from everything else."""
SENSITIVITY_SEQUENCES = 8
BUDGET_TRIES = 3
"""How often a stage with a byte budget is allocated and trained before its untrained file has to do."""
PROTECTED_SHARE = 0.05
"""A larger part of the model is not left in 16 bits on a recommendation: it would undo the compression."""


@dataclass
class Pipeline:
    """One run of one model. Create it, subscribe listeners to `events`, call `run` once."""

    config: CompressionConfig
    source: SourceModel
    run_dir: Path
    cache_dir: Path
    events: EventLog
    attempts: dict[str, list[Attempt]] = field(default_factory=dict)
    baseline: SuiteResult | None = None
    suite: Suite | None = None
    interrupted: bool = False
    _importances: dict[OptimizerConfig, dict[str, Importance]] = field(default_factory=dict)
    _tokens: dict[OptimizerConfig, Tensor] = field(default_factory=dict)
    _unfiltered: set[str] = field(default_factory=set)
    """Stages at which the Grokfast filter did harm: their retries leave it out."""

    def run(self) -> dict[str, Any]:
        """Runs every enabled stage and writes `result.json`.

        Returns:
            The content of `result.json`.

        Raises:
            Phase8Error: bad input or output; what was finished before is on disk.
        """
        begin = time.monotonic()
        make_directory(self.run_dir)
        stages = [stage for stage in NAMES if self.config.stage(stage).enabled]
        self.events.emit(
            RunStart(
                run_dir=str(self.run_dir),
                compressor=self.config.variant,
                model=self.source.name,
                parameters=self.source.parameter_count,
                original_bytes=self.source.original_bytes,
                stages=tuple(stages),
                seed=self.config.seed,
                limits=limits_of(self.config),
                pid=os.getpid(),
                host=socket.gethostname(),
            )
        )
        for stage in stages:
            self._check_budget(stage, self.config)
        try:
            self._measure_baseline()
            for stage in stages:
                if not self._run_stage(stage):
                    break
        except KeyboardInterrupt:
            self.interrupted = True
            self.events.emit(Log(level="warning", text="interrupted; what was finished so far is kept"))
        latency = None if self.interrupted else self._latency()
        result = build_result(
            config=self.config,
            source=self.source,
            baseline=self.baseline,
            attempts=self.attempts,
            interrupted=self.interrupted,
            latency_ms=latency,
            seconds=time.monotonic() - begin,
            peak_memory_mb=peak_memory_mb(),
        )
        write_atomic(self.run_dir / "result.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
        self.events.emit(phase_complete(result))
        return result

    @property
    def best(self) -> Attempt | None:
        """The attempt that passed last, if any."""
        passed = [attempt for attempts in self.attempts.values() for attempt in attempts if attempt.verdict.passed]
        return passed[-1] if passed else None

    # Steps ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _step(self, step: str, stage: str, attempt: int = 1) -> Iterator[None]:
        begin = time.monotonic()
        yield
        seconds = time.monotonic() - begin
        self.events.emit(
            StepComplete(step=step, seconds=seconds, attempt=attempt, peak_memory_mb=peak_memory_mb()), stage
        )

    def _measure_baseline(self) -> None:
        begin = time.monotonic()
        self.events.emit(StageStart(attempt=1), "baseline")
        with self._step("load", "baseline"):
            self.suite = self._load_suite()
        if self.suite.missing:
            why = ""
            if self.config.benchmarks.suite is BenchmarkSuite.mini:
                skipped = self.config.skip_expert_benchmarks
                why = " (skipped or not in this suite)" if skipped else " (not in this suite)"
            text = f"benchmarks not measured{why}: {'; '.join(self.suite.missing)}"
            self._warn(text)
        for text in self.suite.notes:
            self._warn(text)
        cache = BaselineCache(self.cache_dir)
        self.suite = self._with_edge_pool(self.suite, cache)
        key = (self.source.content_hash, suite_hash(self.suite))
        with self._step("evaluate", "baseline"):
            self.baseline = cache.get(*key)
            if self.baseline is None:
                self.baseline = self._evaluate(self.source.network, "baseline", 1)
                cache.put(*key, self.baseline)
            else:
                self.events.emit(Log(level="info", text="baseline taken from the cache"), "baseline")
                for score in self.baseline.scores.values():
                    self._tell_score(score, "baseline", 1)
        for name, score in self.baseline.scores.items():
            if score.note:
                self._warn(f"{name}: {score.note}")
        if text := uninformative_core(self.baseline, self.config.gates.min_informative):
            self._warn(text)
        size = self.source.original_bytes
        self.events.emit(
            CompressionProgress(
                compressed_bytes=size,
                original_bytes=size,
                ratio=1.0,
                bits_per_weight=32.0,
                groups=self._original_bytes_by_kind(),
            ),
            "baseline",
        )
        self.events.emit(
            StageComplete(
                passed=True,
                seconds=time.monotonic() - begin,
                artifact=None,
                bits_per_byte=self.baseline.bits_per_byte,
                text=self._text_name(),
                peak_memory_mb=peak_memory_mb(),
            ),
            "baseline",
        )

    def _text_name(self) -> str:
        """Which held-out text the bits per byte are of."""
        return self.config.benchmarks.perplexity_text or "the embedded world's text"

    def _with_edge_pool(self, suite: Suite, cache: BaselineCache) -> Suite:
        """The suite with questions of edge of chaos that suit this model, where the settings want them."""
        settings = self.config.benchmarks
        asked = settings.edge_pool is EdgePool.calibrated or settings.edge_pool_file is not None
        foreign = settings.edge_pool is EdgePool.auto and not self.config.model.path.startswith(EMBEDDED)
        if not (asked or foreign) or not any(task.stands_for == EDGE_OF_CHAOS for task in suite.tasks):
            return suite
        file = settings.edge_pool_file
        candidates = edge.embedded_candidates() if file is None else edge.read_candidates(file)

        def answers(only: Suite) -> SuiteResult:
            key = (self.source.content_hash, suite_hash(only))
            found = cache.get(*key)
            if found is None:
                found = evaluate(
                    self.source.network, self.source.tokenizer, only, batch_tokens=settings.batch_tokens,
                    on_progress=lambda _, done, total: self.events.activity(
                        "pool", stage="baseline", done=done, total=total, text=f"candidates, {done} of {total}"
                    ),
                )  # fmt: skip
                cache.put(*key, found)
            return found

        with self._step("pool", "baseline"):
            size = min(edge.POOL_ITEMS, suite.samples or edge.POOL_ITEMS)
            pool = edge.build_pool(candidates, edge.measure_with(suite, answers), size)
        self.events.emit(Log(level="info" if pool.items else "warning", text=pool.text), "baseline")
        return edge.with_pool(suite, pool.items, pool.probes)

    def _load_suite(self) -> Suite:
        settings = self.config.benchmarks
        common = {
            "samples": self.config.benchmark_samples,
            "skip_expert_benchmarks": self.config.skip_expert_benchmarks,
            "text": settings.perplexity_text,
            "overrides": settings.experts,
        }
        experts = self.source.experts.experts
        if settings.suite is BenchmarkSuite.mini:
            suite = load_suite(experts, **common)
        else:
            suite = load_real_suite(
                experts,
                data_dir=settings.data_dir,
                run_generated_code=settings.run_generated_code,
                pass_at=settings.pass_at,
                **common,
            )
        return suite if settings.eudaimonia_file is None else with_eudaimonia(suite, settings.eudaimonia_file)

    def _warn(self, text: str) -> None:
        self.events.emit(Log(level="warning", text=text), "baseline")

    def _original_bytes_by_kind(self) -> dict[str, int]:
        kinds: dict[str, int] = {}
        for name, (_, parameter) in self.source.parameters.items():
            kinds[kind_of(name)] = kinds.get(kind_of(name), 0) + 4 * parameter.numel()
        return kinds

    def _run_stage(self, stage: str) -> bool:
        """Runs a stage with its retries; False ends the descent."""
        assert self.baseline is not None
        config = self.config
        stage_input = self.best
        for number in range(1, self.config.max_retries + 2):
            begin = time.monotonic()
            self.events.emit(StageStart(attempt=number), stage)
            attempt = self._attempt(stage, number, config, stage_input)
            self.attempts.setdefault(stage, []).append(attempt)
            verdict = attempt.verdict
            self.events.emit(
                QualityGate(
                    attempt=number,
                    passed=verdict.passed,
                    abort=verdict.abort,
                    checks=tuple(CheckResult(**asdict(check)) for check in verdict.checks),
                    wording=verdict.wording,
                    bits_per_byte=attempt.result.bits_per_byte,
                    baseline_bits_per_byte=self.baseline.bits_per_byte,
                    text=self._text_name(),
                ),
                stage,
            )
            last = verdict.passed or verdict.abort is not None or number > self.config.max_retries
            if not last:
                advice = recommend(stage, config, verdict, self._sensitivity(stage, config, attempt))
                attempt.recommendation = advice
                self.events.emit(Recommended(attempt=number, **asdict(advice)), stage)
                last = not advice.adjustments
            self.events.emit(
                StageComplete(
                    attempt=number,
                    passed=verdict.passed,
                    seconds=time.monotonic() - begin,
                    artifact=str(attempt.directory),
                    final=last,
                    peak_memory_mb=peak_memory_mb(),
                ),
                stage,
            )
            if last:
                return verdict.passed
            config = adjust(config, advice)
            self.events.emit(RetryStart(attempt=number + 1, **asdict(advice)), stage)
        return False

    def _attempt(self, stage: str, number: int, config: CompressionConfig, stage_input: Attempt | None) -> Attempt:
        begin = time.monotonic()
        if config.limit_of(stage) is None:
            with self._step("encode", stage, attempt=number):
                groups = self._encode(stage, config)
            with self._step("optimise", stage, attempt=number):
                groups, gradient_filter = self._optimise(stage, number, groups, config)
        else:
            groups, gradient_filter = self._within_budget(stage, number, config)
        directory = self.run_dir / "artifacts" / (stage if number == 1 else f"{stage}_retry{number - 1}")
        with self._step("write", stage, attempt=number):
            write_artifact(directory, groups, self.source, stage=stage)
            artifact = read_artifact(directory)
            network = copy.deepcopy(self.source.network)
            load_weights(network, artifact.decode(), where=str(directory))
        self.events.emit(
            CompressionProgress(
                attempt=number,
                compressed_bytes=artifact.size_bytes,
                original_bytes=self.source.original_bytes,
                ratio=artifact.ratio,
                bits_per_weight=artifact.bits_per_weight,
                groups=bytes_by_kind(artifact),
            ),
            stage,
        )
        with self._step("evaluate", stage, attempt=number):
            result = self._evaluate(network, stage, number)
        assert self.baseline is not None
        verdict = judge_stage(
            stage,
            baseline=self.baseline,
            stage_input=stage_input.result if stage_input is not None else self.baseline,
            result=result,
            config=config.gates,
            max_accuracy_loss=config.max_accuracy_loss,
            experts=self.source.experts.experts,
            input_bytes=stage_input.artifact.size_bytes if stage_input is not None else self.source.original_bytes,
            compressed_bytes=artifact.size_bytes,
        )
        return Attempt(
            stage=stage,
            number=number,
            directory=directory,
            artifact=_without_streams(artifact),
            result=result,
            verdict=verdict,
            left_alone=self._left_alone(artifact, config),
            gradient_filter=gradient_filter.value,
            seconds=time.monotonic() - begin,
        )

    def _plan(self, stage: str, config: CompressionConfig) -> Plan:
        matrices, vectors = (
            {name: tensor.numel() for name, tensor in tensors.items()}
            for tensors in (self.source.matrices(), self.source.vectors())
        )
        return plan(stage, config, matrices, vectors)

    def _plain(self, planned: Plan, config: CompressionConfig) -> list[EncodedGroup]:
        return list(encode_plain(planned, config, {**self.source.matrices(), **self.source.vectors()}.__getitem__))

    def _counter(self, stage: str, total: int) -> Progress:
        """Tells the encoding's progress in weights."""
        done = 0

        def on_progress(weights: int) -> None:
            nonlocal done
            done += weights
            self.events.activity("encode", stage=stage, done=min(done, total), total=total, text=f"{stage} weights")

        return on_progress

    def _encode(self, stage: str, config: CompressionConfig) -> list[EncodedGroup]:
        planned, matrices = self._plan(stage, config), self.source.matrices()
        importance = self._importance(tuple(matrices), config)
        on_progress = self._counter(stage, sum(matrices[name].numel() for group in planned.coded for name in group))
        coded = encode_coded(
            planned, stage, config, matrices.__getitem__, importance=importance, on_progress=on_progress
        )
        return [*coded, *self._plain(planned, config)]

    # Byte budgets -----------------------------------------------------------------------------------------------

    def _size(self, groups: Sequence[EncodedGroup], stage: str) -> int:
        """Bytes of the artifact that these groups would make."""
        return sum(map(len, contents(groups, self.source, stage=stage).values()))

    def _allocator(self, stage: str, config: CompressionConfig) -> tuple[Allocator, list[EncodedGroup]]:
        planned = self._plan(stage, config)
        rest, left = self._plain(planned, config), {name for group in planned.coded for name in group}
        coded = {name: matrix for name, matrix in self.source.matrices().items() if name in left}
        allocator = Allocator(
            stage, config.stage(stage), coded, lambda groups: self._size([*groups, *rest], stage), config.seed
        )
        return allocator, rest

    def _check_budget(self, stage: str, config: CompressionConfig) -> None:
        """Raises `ConfigError` where a stage's budget cannot be met."""
        limit, budget = config.limit_of(stage), config.budget_of(stage, self.source.original_bytes)
        if limit is None or budget is None:
            return
        smallest = self._allocator(stage, config)[0].smallest_bytes()
        if budget < smallest:
            name, value = limit
            highest = self.source.original_bytes / smallest
            least = f"{smallest:,} bytes" if name.endswith("bytes") else f"{math.floor(100 * highest) / 100:g}"
            raise ConfigError(
                f"{name}={value:g} allows {budget:,} bytes for {stage}, whose cheapest settings take {smallest:,} "
                f"(1/{highest:.1f} of the model's FP32 bytes)",
                where=name,
                fix=f"the limit for {stage} is {name.split('.')[-1]}={least}"
                + (f"; or switch it off: {stage}.enabled=false" if stage != NAMES[-1] else ""),
            )

    def _within_budget(
        self, stage: str, number: int, config: CompressionConfig
    ) -> tuple[list[EncodedGroup], GrokfastVariant]:
        """Encodes and trains within the stage's budget; training that adds bytes is repeated with so much less."""
        limit, budget = config.limit_of(stage), config.budget_of(stage, self.source.original_bytes)
        assert limit is not None and budget is not None
        allocator, rest = self._allocator(stage, config)
        with self._step("allocate", stage, attempt=number):
            _, held_out = self._calibration(config)
            allocator.measure(
                self.source,
                self._importance(tuple(self.source.matrices()), config),
                held_out,
                budget,
                on_step=lambda done, total: self.events.activity(
                    "allocate", stage=stage, done=done, total=total, text=f"{stage} settings"
                ),
            )
        room, total = budget, sum(m.numel() for m in allocator.matrices.values())
        for _ in range(BUDGET_TRIES):
            with self._step("encode", stage, attempt=number):
                allocation = allocator.encode(room, on_progress=self._counter(stage, total))
                self._tell_allocation(stage, number, limit[0], budget, allocation)
            with self._step("optimise", stage, attempt=number):
                groups, gradient_filter = self._optimise(stage, number, [*allocation.groups, *rest], config)
            size = self._size(groups, stage)
            if size <= budget:
                return groups, gradient_filter
            text = f"{stage}: training took the file to {size:,} bytes, above the {budget:,} allowed"
            self.events.emit(Log(level="info", text=text), stage)
            room = allocation.size_bytes - (size - budget)
            if room < allocator.smallest_bytes():
                break
        text = f"{stage}: no trained file is within the budget; untrained it is"
        self.events.emit(Log(level="warning", text=text), stage)
        return [*allocation.groups, *rest], GrokfastVariant.off

    def _tell_allocation(self, stage: str, number: int, limit: str, budget: int, allocation: Allocation) -> None:
        self.events.emit(
            Allocated(
                attempt=number,
                limit=limit,
                budget_bytes=budget,
                size_bytes=allocation.size_bytes,
                estimated_bytes=allocation.estimated_bytes,
                estimated_divergence=allocation.estimated_divergence,
                encodings=allocation.encodings,
                tensors=allocation.tensors,
            ),
            stage,
        )

    def _importance(self, names: Sequence[str], config: CompressionConfig) -> dict[str, Importance]:
        """Measured once per set of calibration texts; the stages share it."""
        if config.optimizer not in self._importances:
            calibration, _ = self._calibration(config)
            batches = calibration.split(config.optimizer.batch_sequences)
            self._importances = {config.optimizer: collect_importance(self.source.network, batches, names)}
        return self._importances[config.optimizer]

    def _calibration(self, config: CompressionConfig) -> tuple[Tensor, Tensor]:
        """Training and held-out sequences, int64 [N, T] and [M, T]; held-out text is the same whatever N."""
        optimizer = config.optimizer
        held_out = optimizer.held_out_sequences
        if config.optimizer not in self._tokens:
            self._tokens[config.optimizer] = token_sequences(
                self.source.tokenizer,
                sequences=held_out + optimizer.calibration_sequences,
                length=optimizer.sequence_tokens,
                seed=CALIBRATION_SEED + config.seed,
                path=config.calibration_text,
            )
        tokens = self._tokens[config.optimizer]
        return tokens[held_out:], tokens[:held_out]

    def _optimise(
        self, stage: str, number: int, groups: list[EncodedGroup], config: CompressionConfig
    ) -> tuple[list[EncodedGroup], GrokfastVariant]:
        """Trains the groups; where the filtered training made the held-out divergence worse, once more unfiltered.

        Returns:
            The groups, and the filter of the training that is kept (`off` also where none is).
        """
        grokfast = config.grokfast
        if grokfast.iterations == 0:
            return groups, GrokfastVariant.off
        if stage in self._unfiltered:
            grokfast = replace(grokfast, enabled=False)
        outcome = self._reconstruct(stage, number, groups, config, grokfast)
        if not outcome.kept and grokfast.enabled and grokfast.variant is not GrokfastVariant.off:
            reason = (
                f"Grokfast-filtered training raised the held-out divergence from {outcome.held_out_before:.4f} to "
                f"{outcome.held_out_after:.4f}; training again without the filter"
            )
            self.events.emit(
                TrainingRestart(
                    attempt=number,
                    filter=grokfast.variant.value,
                    held_out_before=outcome.held_out_before,
                    held_out_after=outcome.held_out_after,
                    reason=reason,
                ),
                stage,
            )
            self._unfiltered.add(stage)
            grokfast = replace(grokfast, enabled=False)
            outcome = self._reconstruct(stage, number, groups, config, grokfast)
        filtered = outcome.kept and grokfast.enabled
        return list(outcome.groups), grokfast.variant if filtered else GrokfastVariant.off

    def _reconstruct(
        self,
        stage: str,
        number: int,
        groups: list[EncodedGroup],
        config: CompressionConfig,
        grokfast: GrokfastConfig,
    ) -> ReconstructionResult:
        calibration, held_out = self._calibration(config)
        total = grokfast.iterations
        gradient_filter = grokfast.variant.value if grokfast.enabled else GrokfastVariant.off.value
        begin = time.monotonic()

        def on_step(step: int, loss: float) -> None:
            self.events.activity("optimise", stage=stage, done=step, total=total, text=f"loss {loss:.4f}")
            if step % max(1, total // 50) == 0 or step == total:
                self.events.emit(
                    TrainingProgress(
                        attempt=number,
                        step=step,
                        steps=total,
                        loss=loss,
                        seconds_left=(total - step) * (time.monotonic() - begin) / step,
                        filter=gradient_filter,
                    ),
                    stage,
                )

        outcome = reconstruct(
            self.source.network,
            groups,
            calibration=calibration,
            held_out=held_out,
            config=config.optimizer,
            grokfast=grokfast,
            seed=config.seed,
            device=config.device,
            on_step=on_step,
        )
        self.events.emit(
            TrainingComplete(
                attempt=number,
                steps=len(outcome.losses),
                loss=outcome.losses[-1] if outcome.losses else None,
                held_out_before=outcome.held_out_before,
                held_out_after=outcome.held_out_after,
                kept=outcome.kept,
                diverged=outcome.diverged,
                filter=gradient_filter,
                seconds=outcome.seconds,
            ),
            stage,
        )
        return outcome

    def _evaluate(self, network: Any, stage: str, attempt: int) -> SuiteResult:
        assert self.suite is not None
        order = {task.name: index for index, task in enumerate(self.suite.tasks)}

        def on_progress(task: str, done: int, total: int) -> None:
            text = f"{task}, {done} of {total} samples"
            whole = order[task] + (done / total if total else 1.0)
            self.events.activity("evaluate", stage=stage, done=round(1000 * whole), total=1000 * len(order), text=text)

        return evaluate(
            network,
            self.source.tokenizer,
            self.suite,
            batch_tokens=self.config.benchmarks.batch_tokens,
            on_task=lambda score: self._tell_score(score, stage, attempt),
            on_progress=on_progress,
        )

    def _tell_score(self, score: Score, stage: str, attempt: int) -> None:
        kept: dict[str, Any] = {"informative": is_informative(score)}
        if stage != "baseline" and self.baseline is not None and score.task in self.baseline.scores:
            kept = retention_of(self.baseline.scores[score.task], score)
        self.events.emit(
            BenchmarkResult(
                task=score.task,
                role=score.role,
                stands_for=score.stands_for,
                experts=score.experts,
                attempt=attempt,
                score=score.value,
                stderr=score.stderr,
                n=score.n,
                chance=score.chance,
                also=score.also,
                parts=parts_of(score),
                note=score.note,
                **kept,
            ),
            stage,
        )

    def _sensitivity(self, stage: str, config: CompressionConfig, attempt: Attempt) -> dict[str, Sensitivity]:
        """Which tensors the failed integration tests depend on; nothing where nothing can be protected."""
        failed = integration_failures(attempt.verdict)
        if not failed or config.limit_of(stage) is not None:
            return {}
        assert self.suite is not None
        network = self.source.network
        decoded = read_artifact(attempt.directory).decode()
        weights = as_parameters(network, decoded, where=str(attempt.directory))
        room = PROTECTED_SHARE * self.source.parameter_count
        matrices = {
            name: weight
            for name, weight in weights.items()
            if weight.dim() >= 2 and weight.numel() <= room and not is_protected(name, config.protect)
        }
        probes = {name: items for name, items in probes_of(self.suite).items() if name in failed and items}
        found = {}
        if probes:
            measured = choice_sensitivity(network, self.source.tokenizer, matrices, probes)
            found = {name: Sensitivity(per_weight=per_weight) for name, per_weight in measured.items()}
        if bare := [name for name in failed if name not in probes]:
            _, held_out = self._calibration(config)
            on_text = tensor_sensitivity(network, matrices, held_out[:SENSITIVITY_SEQUENCES])
            found |= dict.fromkeys(bare, Sensitivity(per_weight=on_text, on_probes=False))
        return found

    def _left_alone(self, artifact: Artifact, config: CompressionConfig) -> list[dict[str, Any]]:
        """Tensors that the stage did not compress, with the reason and their packed bytes."""
        rows = []
        for group in artifact.groups:
            if group.codec != "plain":
                continue
            names = list(group.tensors)
            reason = (
                f"matches protect={list(config.protect)}"
                if all(is_protected(name, config.protect) for name in names)
                else "a vector (norm or bias): stored in 16 bits"
            )
            rows.append({"tensors": names, "reason": reason, "packed_bytes": group.packed_bits() // 8})
        return rows

    def _latency(self) -> float | None:
        """Milliseconds per generated token on this machine, uncompressed FP32 weights (decoding happens at load)."""
        return measure_latency_ms(self.source.network)


def _without_streams(artifact: Artifact) -> Artifact:
    """The artifact without its groups' streams, to keep memory flat over a run."""
    return replace(artifact, groups=tuple(replace(g, shared={}, tensors=_shapes(g)) for g in artifact.groups))


def _shapes(group: EncodedGroup) -> dict[str, Any]:
    return {name: replace(tensor, streams={}) for name, tensor in group.tensors.items()}


def parts_of(score: Score) -> dict[str, Part]:
    """Mean and number of the items of each rule or subject; empty where the items have none."""
    rows: dict[str, list[float]] = {}
    for label, item in zip(score.labels, score.items, strict=False):
        rows.setdefault(label, []).append(item)
    return {label: Part(score=sum(items) / len(items), n=len(items)) for label, items in rows.items()}


def limits_of(config: CompressionConfig) -> Limits:
    """What the settings hold a run to, for whoever looks on."""
    gates = config.gates
    return Limits(
        core=asdict(gates.core),
        expert=asdict(gates.expert),
        rule=asdict(gates.rule),
        cumulative_retention=1.0 - config.max_accuracy_loss,
        benchmark_retention=gates.abort_benchmark,
        final_expert=gates.final_expert,
        final_rule=gates.final_rule,
        edge_low=gates.edge_low,
        edge_high=gates.edge_high,
        min_informative=gates.min_informative,
        min_ratio=config.min_compression_ratio,
        target_ratio=config.target_compression_ratio,
        max_latency_ms=gates.max_latency_ms,
        max_retries=config.max_retries,
        policy=gates.policy.value,
        reference=gates.reference.value,
    )


def phase_complete(result: Mapping[str, Any]) -> PhaseComplete:
    """The event of a run's end, from the content of `result.json`."""
    known = {field.name for field in fields(PhaseComplete)}
    values = {name: value for name, value in result.items() if name in known}
    values["criteria"] = tuple(CheckResult(**check) for check in result["criteria"])
    values["techniques_applied"] = tuple(result["techniques_applied"])
    return PhaseComplete(**values)


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def set_threads(threads: int) -> None:
    """Sets PyTorch's CPU threads; 0 leaves PyTorch's own choice."""
    if threads:
        torch.set_num_threads(threads)


def check_device(device: str) -> None:
    """Raises `ConfigError` where PyTorch cannot use this device."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        what = str(error).splitlines()[0]
        raise ConfigError(
            f"PyTorch cannot use the device {device!r}: {what}", where="device", fix="take trainer=cpu (device=cpu)"
        ) from error
