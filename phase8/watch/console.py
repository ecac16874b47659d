"""What a person sees in the terminal while a run goes on: a listener of the event log.

What happens, how long it will take, what came out, what to do next; the words are in `sentences.py`. In a terminal a
progress bar shows the step in hand with the time left. Anywhere else (a pipe, a log file) there are plain lines,
without bars and control characters, and once a minute how far a long step is. `verbose` adds the steps' times,
intervals, every condition that fails and the log's remarks; the rest is in the report. Nothing is shown that is not in
the events.

    with ConsoleListener() as view, EventLog(path) as log:
        log.subscribe(view)
"""

from __future__ import annotations

import os
import shlex
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
    CheckResult,
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
from phase8.watch import sentences, wording
from phase8.watch.view import BASELINE, Attempt, RunView, Stage, mapping

STILL_S = 60.0
"""So often, in seconds of the run, a line without a terminal tells how far a long step is."""


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
        verbose: also tell details.
    """

    def __init__(self, console: Console | None = None, verbose: bool = False) -> None:
        self.console = console or Console(highlight=False)
        self.verbose = verbose
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal
        self.view = RunView()
        self._progress: Progress | None = None
        self._task: tuple[str | None, str, TaskID] | None = None
        self._step: tuple[str | None, str] | None = None
        self._told: float = 0.0
        """When a line last said something of that step."""

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
                self._line(f"Going on where the run ended: {len(data.finished)} steps are done", style="bold")
            case StageStart():
                self._stage_start(self.view.stages[stage] if stage else None)
            case Activity() as data:
                self._bar(stage, data) if self.live else self._still(stage, data, event.time)
            case StepComplete() as data:
                self._step_complete(data)
            case Allocated() as data if self.verbose:
                self._allocation(data)
            case TrainingRestart() as data:
                self._detail(data.reason)
            case QualityGate() if stage:
                self._gate(self.view.stages[stage])
            case Recommended() as data if not data.adjustments:
                self._line(f"  {data.reason}", style="yellow")
            case RetryStart() as data:
                self._line(f"{self._name(stage)}: trying once more. {data.reason}", style="yellow")
                self._detail(f"with {wording.settings(data.adjustments)}")
            case StageComplete() as data if stage:
                self._stage_complete(self.view.stages[stage], data)
            case Paused() as data:
                self._drop_bar()
                self._line(f"Paused{f': {data.reason}' if data.reason else ''}", style="yellow")
            case Resumed() as data:
                self._line(f"Going on after a pause of {wording.seconds(data.paused_s)}", style="yellow")
            case Log() as data:
                self._log(data)
            case Failed():
                self._failed()
            case PhaseComplete():
                self._summary(mapping(self.view.result))

    # Lines

    def _line(self, text: str, style: str = "") -> None:
        indent = text[: len(text) - len(text.lstrip(" "))]
        self.console.print(Text(indent + wording.clean(text), style), soft_wrap=True)

    @staticmethod
    def _name(stage: str | None) -> str:
        return wording.stage_name(stage) if stage else "Run"

    def _detail(self, text: str, style: str = "dim") -> None:
        if self.verbose:
            self._line(f"    {text}", style=style)

    def _run_start(self) -> None:
        view, stages = self.view, [self._name(stage) for stage in self.view.planned]
        size = wording.size(view.original_bytes)
        weights = "" if view.parameters is None else f"{view.parameters:,.0f} weights, "
        self._line(f"Phase 8 makes {view.model} smaller ({weights}{size} as 32-bit numbers)", style="bold")
        if stages:
            count = f"{len(stages)} stages" if len(stages) > 1 else "one stage"
            told = "judged by what it keeps" if len(stages) == 1 else "each one smaller and judged by what it keeps"
            self._line(f"{count}, {told}: {', '.join(stages)}")
        self._line(f"everything is written to {_short(view.run_dir)}")
        if self.verbose:
            self._line(f"compressor {view.compressor}", style="dim")

    def _stage_start(self, stage: Stage | None) -> None:
        self._drop_bar()
        if stage is None:
            return
        if stage.name == BASELINE:
            self._line("Original model: what can it do?", style="bold")
            return
        planned = self.view.planned
        place = f", stage {planned.index(stage.name) + 1} of {len(planned)}" if stage.name in planned else ""
        again = f", try {stage.last.order}" if stage.last is not None and stage.last.order > 1 else ""
        self._line(f"{self._name(stage.name)}{place}{again}", style="bold")

    def _step_complete(self, data: StepComplete) -> None:
        self._drop_bar()
        if self.view.run_dir:
            self._detail(f"{sentences.step(data.step)}: {wording.seconds(data.seconds)}")

    def _allocation(self, data: Allocated) -> None:
        """The budget, and how many tensors got which settings."""
        figures = {"bits_per_weight", "relative_error", "divergence"}
        chosen = Counter(
            wording.settings({key: value for key, value in tensor.items() if key not in figures})
            for tensor in data.tensors.values()
        )
        budget, size = wording.size(data.budget_bytes), wording.size(data.size_bytes)
        self._detail(f"{data.limit} allows {budget}, encoded into {size}")
        for settings, count in chosen.most_common():
            self._detail(f"{count} tensors: {settings}")

    def _figures(self, attempt: Attempt) -> None:
        """How small an attempt is."""
        if attempt.compressed_bytes is not None:
            size, times = wording.size(attempt.compressed_bytes), wording.times(attempt.ratio)
            self._line(f"  {size}, {times} smaller than the original")
            self._detail(f"{wording.figure(attempt.bits_per_weight)} bits per weight")
        if attempt.held_out is not None:
            before, after = map(wording.figure, attempt.held_out)
            self._detail(f"training: divergence on held-out text {before} to {after} nats per token")

    def _gate(self, stage: Stage) -> None:
        self._drop_bar()
        attempt = stage.last
        if attempt is None or attempt.gate is None:
            return
        self._figures(attempt)
        kept = attempt.core_retention()
        keeps = f"keeps {wording.percent(kept)} of the original's core scores" if kept is not None else ""
        if attempt.passed:
            self._line(f"  passed{f': {keeps}' if keeps else ''}", style="green")
        else:
            self._line(f"  {keeps}" if keeps else "")
            self._line(f"  failed at {sentences.failures(attempt.checks) or 'its gate'}", style="red")
        for check in attempt.checks if self.verbose else ():
            failed = check.passed is False
            if failed or check.name.startswith("core_retention"):
                self._condition(check, failed)
        bits = wording.bits_per_byte(attempt.gate)
        if bits:
            self._detail(bits)
        if attempt.gate.abort:
            reasons = wording.clean(attempt.gate.abort).split("; ")
            self._line(f"  too much is lost for another try: {reasons[0]}", style="red")
            for reason in reasons[1:]:
                self._detail(reason)

    def _condition(self, check: CheckResult, failed: bool) -> None:
        state = {True: "holds", False: "fails"}.get(check.passed, "not judged")
        note = f" ({wording.clean(check.note)})" if check.note else ""
        spread = wording.spread(check)
        spread = f" [{spread}]" if spread else ""
        self._detail(
            f"{state}: {wording.words(check.name)} {wording.figure(check.value)}{spread}, "
            f"threshold {wording.figure(check.threshold)}{note}",
            style="red" if failed else "dim",
        )

    def _stage_complete(self, stage: Stage, data: StageComplete) -> None:
        self._drop_bar()
        attempt, time = stage.last, wording.seconds(data.seconds)
        if attempt is None:
            return
        if stage.name == BASELINE:
            results = list(attempt.results.values())
            needed = self.view.limits.min_informative if self.view.limits is not None else 1
            for text in sentences.original(results, needed):
                self._line(f"  {text}")
            for result in results:
                self._detail(f"{wording.clean(result.task)} {wording.percent(result.score)}")
            if items := sentences.judging_items(results, needed):
                points = 100 * resolution(items)
                self._detail(f"{items:,} items resolve {points:.1f} points; 1 point takes {items_needed(0.01):,}")
            if data.bits_per_byte is not None:
                text = f" ({wording.clean(data.text)})" if data.text else ""
                self._detail(f"held-out text{text} takes {data.bits_per_byte:.4f} bits per byte")
            self._line(f"  took {time}")
            return
        if attempt.gate is None:
            self._figures(attempt)
        if data.passed:
            to_go = sentences.to_go(self.view, stage)
            self._line(f"  took {time}{f'; {to_go}' if to_go else ''}")
        elif data.final:
            kept = [self._name(other.name) for other in self.view.compressing if other.kept is not None]
            answer = f"{kept[-1]}, the last stage that passed" if kept else "the original model"
            self._line(f"  took {time}; falling back to {answer}", style="yellow")
        else:
            self._line(f"  took {time}")

    def _log(self, data: Log) -> None:
        text = wording.clean(data.text)
        if data.level == "info":
            self._detail(text)
        elif data.level != "debug":
            style = {"error": "red", "warning": "yellow"}.get(data.level, "")
            self._line(f"{data.level}: {text}", style=style)

    def _failed(self) -> None:
        """The error itself is printed by whoever began the run."""
        self.close()
        if self.view.run_dir:
            self._line(f"The run stopped. Once the error is mended, go on with: {self._resume()}", style="yellow")

    def _resume(self) -> str:
        return f"python run.py resume={shlex.quote(_short(self.view.run_dir))}"

    # Progress

    def _still(self, stage: str | None, data: Activity, time: float) -> None:
        """Without a terminal: now and then how far a long step is."""
        if self._step != (stage, data.step):
            self._step, self._told = (stage, data.step), time
        if time - self._told < STILL_S:
            return
        self._told = time
        part = f"{data.done:,}" if not data.total else f"{100 * data.done / data.total:.0f} %"
        left = "" if data.seconds_left is None else f", {wording.seconds(data.seconds_left)} left"
        self._line(f"  {sentences.step(data.step)}: {part} done{left}", style="dim")

    def _bar(self, stage: str | None, data: Activity) -> None:
        step, total, done = sentences.step(data.step), data.total, data.done
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
        self._table()
        level = str(result.get("compression_level", "")) or "none"
        artifact, interrupted = self._artifact(level), result.get("interrupted") is True
        if interrupted:
            self._line("The run was stopped before its end.", style="yellow")
        stage = self.view.stages.get(BY_LEVEL.get(level, level))
        best = stage.kept if stage is not None else None
        if stage is not None and best is not None:
            size, times = wording.size(best.compressed_bytes), wording.times(best.ratio)
            self._line(f"Result: {self._name(stage.name)}, {size}, {times} smaller than the original", style="bold")
        else:
            self._line("Result: no stage kept enough; the original model stays the answer", style="bold")
        if not interrupted and best is not None:
            self._goals(result)
        self._line("What to do next:")
        for purpose, command in self._next(artifact, interrupted):
            self._line(f"  {purpose + ':':<14}{command}")

    def _table(self) -> None:
        columns = ("Stage", "Size", "Times\nsmaller", "Bits per\nweight", "Scores\nkept", "beyond\nguessing", "")
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index in (0, 6) else "right", no_wrap=True)
        table.add_row("original", wording.size(self.view.original_bytes), "", "32", "", "", "")
        for stage in self.view.compressing:
            attempt = stage.shown
            if attempt is None:
                continue
            verdict = {True: "passed", False: "failed", None: "not finished"}[attempt.passed]
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

    def _goals(self, result: Mapping[str, Any]) -> None:
        """Whether the run's success criteria hold, and what is short where they do not."""
        criteria = [CheckResult(**criterion) for criterion in result.get("criteria", ())]
        short = [sentences.shortfall(criterion) for criterion in criteria if criterion.passed is False]
        short += [f"{sentences.condition(one.name)}: could not be judged" for one in criteria if one.passed is None]
        if result.get("success") is True:
            self._line(f"success: all {len(criteria)} goals of the run are met", style="green")
        elif short:
            self._line(f"not all goals of the run are met: {'; '.join(short)}", style="yellow")

    def _next(self, artifact: str | None, interrupted: bool) -> list[tuple[str, str]]:
        """What can be done, and the command."""
        ways = []
        if interrupted:
            ways.append(("go on", self._resume()))
        if artifact is not None:
            ways += [
                ("let it speak", f'python -m phase8 generate {artifact} "Once upon a time"'),
                ("look inside", f"python -m phase8 inspect {artifact}"),
                ("unpack it", f"python -m phase8 decompress {artifact} {artifact}-decompressed"),
            ]
        elif not interrupted:
            ways.append(("keep more", "python run.py compressor=quality_preserving"))
        return [*ways, ("all figures", _short(str(Path(self.view.run_dir) / "report.html")))]

    def _artifact(self, level: str) -> str | None:
        stage = self.view.stages.get(BY_LEVEL.get(level, level))
        if stage is None or stage.kept is None or stage.kept.complete is None or not stage.kept.complete.artifact:
            return None
        return shlex.quote(_short(stage.kept.complete.artifact))


def _short(path: str) -> str:
    """A path relative to the working directory where that is below it."""
    working = Path(os.getcwd())
    return str(Path(path).relative_to(working)) if Path(path).is_relative_to(working) else path
