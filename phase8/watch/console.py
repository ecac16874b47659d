"""What a person sees in the terminal while a run goes on: a listener of the event log.

In a terminal: a progress bar for the step in hand, a line for each finished step, each gate with its figures, retries
and fallbacks, and at the end a table. Anywhere else (a pipe, a log file): the same as a few plain lines, without bars
and control characters. Nothing is shown that is not in the events.

    with ConsoleListener() as view, EventLog(path) as log:
        log.subscribe(view)
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from phase8.codecs.stages import BY_LEVEL
from phase8.events import (
    Activity,
    Allocated,
    Event,
    Failed,
    Log,
    Paused,
    PhaseComplete,
    QualityGate,
    Recommended,
    Resumed,
    RetryStart,
    RunResumed,
    RunStart,
    StageComplete,
    StageStart,
    StepComplete,
    TrainingRestart,
)
from phase8.judge.retention import items_needed, resolution
from phase8.watch import wording
from phase8.watch.view import BASELINE, Attempt, RunView, Stage, mapping


class _TimeLeft(ProgressColumn):
    """Time left at the rate measured over the last seconds; empty until there is a rate."""

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        if left is None or task.total is None or task.completed <= 0:
            return Text("")
        return Text(f"{wording.seconds(left)} left")


class ConsoleListener:
    """Listener that draws a run on a rich console.

    Args:
        console: where to draw; the standard output by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal
        self.view = RunView()
        self._progress: Progress | None = None
        self._task: tuple[str | None, str, TaskID] | None = None

    def __enter__(self) -> ConsoleListener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Takes the progress bar off the screen and gives the cursor back."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = None

    def __call__(self, event: Event) -> None:
        self.view.feed(event)
        stage = event.stage
        match event.data:
            case RunStart():
                self._run_start()
            case RunResumed() as data:
                self._line(f"going on where the run ended: {len(data.finished)} steps are done", style="bold")
            case StageStart():
                self._stage_start(self.view.stages[stage] if stage else None)
            case Activity() as data if self.live:
                self._activity(stage, data)
            case StepComplete() as data:
                self._step_complete(data)
            case Allocated() as data:
                self._allocation(stage, data)
            case TrainingRestart() as data:
                self._line(f"{self._name(stage)}: {data.reason}")
            case QualityGate() if stage:
                self._gate(self.view.stages[stage])
            case Recommended() as data:
                self._line(f"{self._name(stage)}: {wording.words(data.action)}: {data.reason}", style="yellow")
            case RetryStart() as data:
                changes = wording.settings(data.adjustments)
                self._line(f"{self._name(stage)}: trying once more with {changes}", style="yellow")
            case StageComplete() as data if stage:
                self._stage_complete(self.view.stages[stage], data)
            case Paused() as data:
                self._drop_bar()
                self._line(f"paused{f': {data.reason}' if data.reason else ''}", style="yellow")
            case Resumed() as data:
                self._line(f"going on after a pause of {wording.seconds(data.paused_s)}", style="yellow")
            case Log() as data:
                self._log(data)
            case Failed():
                self.close()
            case PhaseComplete():
                self._summary(mapping(self.view.result))

    # Lines

    def _line(self, text: str, style: str = "") -> None:
        self.console.print(
            Text(wording.clean(text) if not text.startswith(" ") else f"  {wording.clean(text)}", style), soft_wrap=True
        )

    @staticmethod
    def _name(stage: str | None) -> str:
        return wording.stage_name(stage) if stage else "Run"

    def _run_start(self) -> None:
        view = self.view
        size = f"{wording.size(view.original_bytes)} in FP32"
        if view.parameters is not None:
            size = f"{view.parameters:,.0f} parameters, {size}"
        self._line(f"phase8: compressor {view.compressor}, model {view.model} ({size})", style="bold")
        self._line(f"output: {_short(view.run_dir)}")

    def _stage_start(self, stage: Stage | None) -> None:
        self._drop_bar()
        if self.live and stage is not None and stage.last is not None:
            attempt = f", attempt {stage.last.order}" if stage.last.order > 1 else ""
            self.console.print(Text(f"{self._name(stage.name)}{attempt}", "bold"))

    def _step_complete(self, data: StepComplete) -> None:
        self._drop_bar()
        if self.live:  # elsewhere the steps share a line, when the stage's figures are there
            step, seconds = wording.words(data.step), wording.seconds(data.seconds)
            self._line(f"  {step:<9} {seconds:>12}", style="dim")

    def _allocation(self, stage: str | None, data: Allocated) -> None:
        """The budget, and how many tensors got which settings."""
        figures = {"bits_per_weight", "relative_error", "divergence"}
        chosen = Counter(
            wording.settings({key: value for key, value in tensor.items() if key not in figures})
            for tensor in data.tensors.values()
        )
        budget, size = wording.size(data.budget_bytes), wording.size(data.size_bytes)
        self._line(f"{self._name(stage)}: {data.limit} allows {budget}, encoded into {size}")
        for settings, count in chosen.most_common():
            self._line(f"  {count} tensors: {settings}", style="dim")

    def _figures(self, stage: Stage, attempt: Attempt) -> None:
        """Sizes of an attempt and, without a terminal, the time of its steps."""
        parts = []
        if attempt.compressed_bytes is not None and stage.name != BASELINE:
            parts += [
                wording.size(attempt.compressed_bytes),
                f"ratio {wording.times(attempt.ratio)}",
                f"{wording.figure(attempt.bits_per_weight)} bits/weight",
            ]
        if attempt.held_out is not None:
            before, after = map(wording.figure, attempt.held_out)
            parts.append(f"held-out loss {before} to {after}")
        if not self.live:
            parts += [f"{wording.words(step)} {wording.seconds(time)}" for step, time in attempt.steps.items()]
        if parts:
            self._line(f"{self._name(stage.name)}: {', '.join(parts)}")

    def _gate(self, stage: Stage) -> None:
        self._drop_bar()
        attempt = stage.last
        if attempt is None:
            return
        self._figures(stage, attempt)
        checks = attempt.checks
        held = sum(check.passed is True for check in checks)
        idle = sum(check.passed is None for check in checks)
        verdict = "passed" if attempt.passed else "FAILED"
        self._line(
            f"{self._name(stage.name)}: gate {verdict}, {held} of {len(checks)} conditions hold"
            + (f", {idle} could not be judged" if idle else ""),
            style="green" if attempt.passed else "red",
        )
        for check in checks:
            failed = check.passed is False
            # What fails and the core figures; the report lists every condition.
            if failed or check.name.startswith("core_retention"):
                state = {True: "holds", False: "fails"}.get(check.passed, "not judged")
                note = f" ({wording.clean(check.note)})" if check.note else ""
                spread = wording.spread(check)
                spread = f" [{spread}]" if spread else ""
                self._line(
                    f"  {state}: {wording.words(check.name)} {wording.figure(check.value)}{spread}, "
                    f"threshold {wording.figure(check.threshold)}{note}",
                    style="red" if failed else "dim",
                )
        bits = wording.bits_per_byte(attempt.gate)
        if bits:
            self._line(f"  {bits}", style="dim")
        if attempt.gate is not None and attempt.gate.wording:
            self._line(f"  {wording.clean(attempt.gate.wording)}", style="dim")
        if attempt.gate is not None and attempt.gate.abort:
            reasons = wording.clean(attempt.gate.abort).split("; ")
            more = f" (and {len(reasons) - 2} more)" if len(reasons) > 2 else ""
            self._line(f"{self._name(stage.name)}: going no further down: {'; '.join(reasons[:2])}{more}", style="red")

    def _resolution(self, items: list[int]) -> None:
        """What the smallest of the benchmarks that tell anything can tell, and what one point would take."""
        if not items:
            return
        points = 100 * resolution(min(items))
        more = f"; for 1 point take {items_needed(0.01):,}" if points > 1 else ""
        self._line(f"{min(items):,} items resolve {points:.1f} points of one benchmark{more}", style="dim")

    def _stage_complete(self, stage: Stage, data: StageComplete) -> None:
        self._drop_bar()
        if stage.name == BASELINE and stage.last is not None:
            scores = [
                f"{wording.clean(result.task)} {wording.percent(result.score)}"
                + ("" if result.informative else " (not above chance)")
                for result in stage.last.results.values()
            ]
            if scores:
                self._line(f"Baseline: {', '.join(scores)}")
                self._resolution([r.n for r in stage.last.results.values() if r.n and r.informative])
        attempt = stage.last
        if attempt is None:
            return
        if attempt.gate is None and stage.name != BASELINE:
            self._figures(stage, attempt)
        name, time = self._name(stage.name), wording.seconds(data.seconds)
        if stage.name == BASELINE and data.bits_per_byte is not None:
            text = f" ({wording.clean(data.text)})" if data.text else ""
            self._line(f"{name}: held-out text{text} takes {data.bits_per_byte:.4f} bits per byte")
        if data.passed:
            self._line(f"{name}: done in {time}", style="bold")
        elif data.final:
            kept = [self._name(other.name) for other in self.view.compressing if other.kept is not None]
            answer = kept[-1] if kept else "the input model"
            self._line(f"{name}: not kept after {time}; falling back to {answer}", style="red")
        else:
            self._line(f"{name}: attempt {attempt.order} not kept, {time}", style="yellow")

    def _log(self, data: Log) -> None:
        level = data.level
        if level != "debug":
            style = {"error": "red", "warning": "yellow"}.get(level, "")
            prefix = "" if level == "info" else f"{level}: "
            self._line(f"{prefix}{wording.clean(data.text)}", style=style)

    # The progress bar

    def _activity(self, stage: str | None, data: Activity) -> None:
        step, total, done = wording.words(data.step), data.total, data.done
        if self._progress is None:
            self._progress = Progress(
                TextColumn("  {task.description}", markup=False),
                BarColumn(bar_width=28),
                TextColumn("{task.fields[count]:>12}"),
                _TimeLeft(),
                TextColumn("{task.fields[text]}", style="dim", markup=False),
                console=self.console,
                transient=True,
                refresh_per_second=4,  # a redraw costs a core milliseconds that the run needs
                speed_estimate_period=60.0,
            )
            self._progress.start()
        if self._task is None or self._task[:2] != (stage, step):
            self._drop_bar()
            identity = self._progress.add_task(step, total=total, completed=0, count="", text="")
            self._task = (stage, step, identity)
        count = f"{done:,}" if total is None else f"{done:,}/{total:,}"
        text = wording.clean(data.text)[:40]
        self._progress.update(self._task[2], completed=done, total=total, count=count, text=text)

    def _drop_bar(self) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.remove_task(self._task[2])
        self._task = None

    # The end

    def _summary(self, result: Mapping[str, Any]) -> None:
        self.close()
        columns = ("Stage", "Size", "Ratio", "Bits per\nweight", "Core\nraw", "Core\ncorrected", "Gate")
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index in (0, 6) else "right", no_wrap=True)
        table.add_row("input, FP32", wording.size(self.view.original_bytes), "", "", "", "", "")
        for stage in self.view.compressing:
            attempt = stage.shown
            if attempt is None:
                continue
            verdict = {True: "passed", False: "failed", None: "not asked"}[attempt.passed]
            table.add_row(
                self._name(stage.name),
                wording.size(attempt.compressed_bytes),
                wording.times(attempt.ratio),
                wording.figure(attempt.bits_per_weight),
                wording.percent(attempt.core_retention()),
                wording.percent(attempt.core_retention(corrected=True)),
                Text(verdict, {True: "green", False: "red", None: ""}[attempt.passed]),
            )
        self.console.print()
        self.console.print(table)
        self.console.print()
        level = str(result.get("compression_level", "")) or "none"
        stopped = "interrupted; " if result.get("interrupted") is True else ""
        reached = (
            f"level reached: {self._name(BY_LEVEL[level])}" if level in BY_LEVEL else "no artifact passed its gate"
        )
        self._line(f"{stopped}{reached}", style="bold")
        self._line(f"report: {_short(str(Path(self.view.run_dir) / 'report.html'))}")
        artifact = self._artifact(level)
        if artifact is None:
            self._line("the input model stays the answer")
            return
        self._line("try next:")
        for command in (
            f"inspect {artifact}",
            f'generate {artifact} "Once upon a time"',
            f"decompress {artifact} {artifact}-decompressed",
        ):
            self._line(f"  python -m phase8 {command}")

    def _artifact(self, level: str) -> str | None:
        stage = self.view.stages.get(BY_LEVEL.get(level, level))
        if stage is None or stage.kept is None or stage.kept.complete is None or not stage.kept.complete.artifact:
            return None
        path = _short(stage.kept.complete.artifact)
        return f"'{path}'" if " " in path else path


def _short(path: str) -> str:
    """A path relative to the working directory where that is below it."""
    working = Path(os.getcwd())
    return str(Path(path).relative_to(working)) if Path(path).is_relative_to(working) else path
