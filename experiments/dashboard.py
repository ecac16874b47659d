"""What the dashboard costs: event to pixel, load over a slow line, ten thousand events, the run that is watched.

    python -m experiments.dashboard            # all five; needs the built page, Chromium and Playwright
    python -m experiments.dashboard pixel load # some

    pixel    An event is appended to a run's log; the page says when the frame that shows it begins; all on one machine.
    load     A first visit to a recorded run's page with nothing cached, over Chromium's "fast 4G" (9 Mbit/s, 165 ms)
             and Lighthouse's "slow 4G" (1.6 Mbit/s, 150 ms), until its figures stand there, and until its charts do;
             bytes as they crossed the line, without the socket's.
    flood    10,000 events, 1,000 a second, while the page shows the run: the longest frame, and the longest task of
             the page's main thread in processor time, which other programs on the machine do not lengthen.
    watched  `python run.py experiment=quick` with small settings, in pairs: once not watched, once watched by an open
             page, which goes first changes from pair to pair. Wall time and processor time of the run, watched over
             not watched, as the mean of the pairs' ratios with the 95 % interval of a t-distribution over pairs; and
             the server's processor time beside it. A first run, not counted, fills the cache.
    distant  The same, watched by a page on another machine: here a client that takes what a page takes and draws
             nothing, so that the run shares its cores with the server alone, not with a browser.

Writes experiments/results/dashboard.md and dashboard.json. Figures of a run replace those before, part by part. Beside
each stand the machine's load and the priority (`nice`) of the script, its server and its browser.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import socketio
from scipy import stats

REPOSITORY = Path(__file__).parent.parent
RESULTS = REPOSITORY / "experiments" / "results"
PROBES = 100
FLOOD = 10_000
RATE = 1000
LINES = {"fast 4G": (9e6, 165), "slow 4G": (1.6e6, 150)}
"""Bits per second, and milliseconds added to each request."""
PAIRS = 5
QUICK = (
    "experiment=quick", "benchmark_samples=8", "grokfast.iterations=2", "optimizer.held_out_sequences=4",
    "optimizer.calibration_sequences=32", "vptq.enabled=false", "hyper.enabled=false", "logger=none", "threads=1",
)  # fmt: skip
WATCH = """() => {
  window.__seen = {};
  const note = (text) => {
    for (const found of (text ?? "").matchAll(/probe (\\d+)\\./g)) {
      const number = found[1];
      if (!(number in window.__seen)) {
        window.__seen[number] = 0;
        requestAnimationFrame(() => { window.__seen[number] = Date.now() / 1000; });
      }
    }
  };
  new MutationObserver((changes) => {
    for (const change of changes) {
      note(change.target.textContent);
    }
  }).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""
FRAMES = """() => {
  window.__frames = [];
  let last = performance.now();
  const tick = (now) => { window.__frames.push(now - last); last = now; requestAnimationFrame(tick); };
  requestAnimationFrame(tick);
}"""


class Log:
    """A run's log, written as a run writes it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self.file = (directory / "events.jsonl").open("ab", buffering=0)
        sys.path.insert(0, str(REPOSITORY / "tests"))
        import invented_log

        self.line = invented_log.Lines(time.time())
        self.write("".join(invented_log.head(self.line, directory)))
        self.tell("stage_start", "seedlm", attempt=1)

    def write(self, text: str) -> None:
        self.file.write(text.encode())

    def tell(self, kind: str, stage: str | None = None, **data: Any) -> None:
        self.write(self.line(kind, stage, **data))


@contextlib.contextmanager
def dashboard(runs: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A server in a process of its own; its address and process."""
    said = runs.parent / "server.txt"
    with said.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "phase8", "dashboard", "--runs", str(runs), "--no-build"], stdout=out, cwd=REPOSITORY
        )
    try:
        while "dashboard: " not in (text := said.read_text()):
            if server.poll() is not None:
                raise SystemExit("the dashboard did not start")
            time.sleep(0.2)
        url = text.split("dashboard: ")[1].split()[0]
        with urllib.request.urlopen(url, timeout=60) as answer:
            if answer.status != 200:
                raise SystemExit("the page is not built: make page")
        yield url, psutil.Process(server.pid)
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        raise SystemExit("no Chromium here: apt-get install chromium")
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


def number_of(url: str, name: str) -> str:
    """A run's number by its name."""
    while True:
        with urllib.request.urlopen(f"{url}api/phase8/runs", timeout=60) as answer:
            found = [run["run"] for run in json.loads(answer.read())["runs"] if run["name"] == name]
        if found:
            return found[0]
        time.sleep(0.2)


def open_run(chromium: Any, url: str, name: str) -> Any:
    page = chromium.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.set_default_timeout(120_000)
    page.goto(f"{url}run/?id={number_of(url, name)}")
    page.locator("[data-part=events] [data-figure=events] li").first.wait_for()
    return page


def pixel(runs: Path, url: str, chromium: Any) -> dict[str, Any]:
    """Milliseconds from the write of an event to the frame that shows it."""
    log = Log(runs / "pixel")
    page = open_run(chromium, url, "pixel")
    page.evaluate(WATCH)
    written = {}
    for number in range(PROBES):
        line = log.line("log", "seedlm", level="info", text=f"probe {number}.")
        written[number] = time.time()
        log.write(line)
        time.sleep(0.2)
    page.wait_for_function(f"() => Object.values(window.__seen).filter(Boolean).length >= {PROBES * 0.95}")
    time.sleep(1)
    seen = page.evaluate("window.__seen")
    ms = np.array([1000 * (seen[str(n)] - at) for n, at in written.items() if seen.get(str(n))])
    page.context.close()
    return {
        "events": PROBES, "seen": len(ms), "median_ms": float(np.median(ms)), "p95_ms": float(np.quantile(ms, 0.95)),
        "max_ms": float(ms.max()),
    }  # fmt: skip


def load(runs: Path, url: str, chromium: Any) -> dict[str, Any]:
    """Seconds until a first visit shows a finished run, its charts too, and bytes over the line."""
    shutil.copytree(REPOSITORY / "tests" / "data" / "run", runs / "recorded")
    number = number_of(url, "recorded")
    return {name: _load(f"{url}run/?id={number}", chromium, *line) for name, line in LINES.items()}


def _load(address: str, chromium: Any, bits_s: float, latency_ms: float) -> dict[str, Any]:
    figures, charts, sizes = [], [], []
    for _ in range(3):
        context = chromium.new_context(viewport={"width": 1280, "height": 900})
        page = context.new_page()
        page.set_default_timeout(120_000)
        line = context.new_cdp_session(page)
        line.send("Network.enable")
        speed = {"downloadThroughput": bits_s / 8, "uploadThroughput": bits_s / 8}
        line.send("Network.emulateNetworkConditions", {"offline": False, "latency": latency_ms, **speed})
        received: list[float] = []
        line.on("Network.loadingFinished", lambda event, to=received: to.append(event["encodedDataLength"]))
        begin = time.monotonic()
        page.goto(address, wait_until="commit")
        page.locator("[data-part=quality] [data-task]").first.wait_for()
        figures.append(time.monotonic() - begin)
        page.locator("[data-part=tradeoff] table").wait_for(state="attached")
        charts.append(time.monotonic() - begin)
        page.wait_for_timeout(1000)
        sizes.append(sum(received))
        context.close()
    return {
        "figures_s": float(np.median(figures)), "charts_s": float(np.median(charts)), "bytes": float(np.median(sizes)),
        "each_s": figures,
    }  # fmt: skip


def flood(runs: Path, url: str, chromium: Any) -> dict[str, Any]:
    """Frames and tasks of the page while ten thousand events come."""
    log = Log(runs / "flood")
    page = open_run(chromium, url, "flood")
    page.wait_for_timeout(2000)
    chromium.start_tracing(
        page=page, categories=["toplevel", "devtools.timeline", "disabled-by-default-devtools.timeline"]
    )
    page.evaluate(FRAMES)
    begin = time.monotonic()
    for number in range(FLOOD):
        match number % 5:
            case 0:
                log.tell("activity", "seedlm", step="encode", done=number, total=FLOOD, text="seedlm weights")
            case 1:
                log.tell("training_progress", "seedlm", attempt=1, step=number, steps=FLOOD, loss=1 / (number + 1))
            case _:
                log.tell("log", "seedlm", level="info", text=f"line {number}")
        if number % 10 == 9:
            time.sleep(max(0.0, begin + number / RATE - time.monotonic()))
    seconds = time.monotonic() - begin
    page.wait_for_function(
        f"() => document.querySelector('[data-part=events]').innerText.includes('line {FLOOD - 1}')", timeout=120_000
    )
    page.wait_for_timeout(500)
    frames = np.array(page.evaluate("window.__frames"))
    trace = json.loads(chromium.stop_tracing())["traceEvents"]
    page.context.close()
    mains = {
        (event["pid"], event["tid"])
        for event in trace
        if event.get("name") == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    tasks = np.array([
        event["tdur"] / 1000
        for event in trace
        if event.get("name") == "RunTask" and "tdur" in event and (event["pid"], event["tid"]) in mains
    ])  # fmt: skip
    return {
        "events": FLOOD, "seconds": seconds, "frames": len(frames), "median_frame_ms": float(np.median(frames)),
        "longest_frame_ms": float(frames.max()), "frames_over_50_ms": int((frames > 50).sum()),
        "longest_task_cpu_ms": float(tasks.max()) if len(tasks) else None,
        "tasks_over_50_cpu_ms": int((tasks > 50).sum()), "tasks": len(tasks),
    }  # fmt: skip


def watched(runs: Path, url: str, chromium: Any, server: psutil.Process) -> dict[str, Any]:
    """Wall and processor time of runs that a page watches over those of runs that nobody watches."""
    return _pairs(runs, server, lambda name: open_run(chromium, url, name))


def distant(runs: Path, url: str, chromium: Any, server: psutil.Process) -> dict[str, Any]:
    """The same of runs that a page on another machine watches."""
    return _pairs(runs / "distant", server, lambda name: Listener(url, number_of(url, f"distant/{name}")))


class Listener:
    """Takes every event of a run, as a page does, until it is closed."""

    def __init__(self, url: str, run: str) -> None:
        self.context, self.taken = self, 0
        self._loop = asyncio.new_event_loop()
        self._client = socketio.AsyncClient(reconnection=False)
        self._client.on("*", self._take)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._do(self._client.connect(url, transports=["websocket"]))
        self._do(self._client.call("phase8:subscribe", {"run": run}, timeout=60))

    async def _take(self, name: str, data: dict[str, Any]) -> None:
        self.taken += 1

    def _do(self, what: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(60)

    def close(self) -> None:
        """Ends the connection."""
        self._do(self._client.disconnect())
        self._loop.call_soon_threadsafe(self._loop.stop)
        if not self.taken:
            raise SystemExit("the listener heard nothing: the figures would be those of a run that nobody watches")


def _pairs(runs: Path, server: psutil.Process, look: Any) -> dict[str, Any]:
    cache = runs.parent / "cache"
    _run(runs, "warm", cache, server)
    pairs = []
    for number in range(PAIRS):
        pair = {}
        for watching in (True, False) if number % 2 else (False, True):
            watch = look if watching else None
            pair["watched" if watching else "alone"] = _run(runs, f"{number}-{watching}", cache, server, watch)
        pairs.append(pair)
        print(json.dumps(pair), flush=True)
    share = [pair["watched"]["server_cpu_s"] / pair["watched"]["wall_s"] for pair in pairs]
    return {
        "pairs": pairs, "wall": _ratio(pairs, "wall_s"), "run_cpu": _ratio(pairs, "cpu_s"),
        "server_cpu_share": float(np.mean(share)),
    }  # fmt: skip


def _run(runs: Path, name: str, cache: Path, server: psutil.Process, look: Any = None) -> dict[str, float]:
    """One run's seconds; `look` opens a page on it once its log is there."""
    before_server = sum(server.cpu_times()[:2])
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.monotonic()
    run = subprocess.Popen(
        [sys.executable, "run.py", *QUICK, f"hydra.run.dir={runs / name}", f"paths.cache_dir={cache}"],
        cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    page = None
    if look is not None:
        while not (runs / name / "events.jsonl").is_file() and run.poll() is None:
            time.sleep(0.2)
        page = look(name)
    if run.wait() != 0:
        raise SystemExit(f"the run ended with {run.returncode}")
    wall = time.monotonic() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = sum(server.cpu_times()[:2]) - before_server
    if page is not None:
        page.context.close()
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": wall, "cpu_s": cpu, "server_cpu_s": spent}


def _ratio(pairs: list[dict[str, dict[str, float]]], name: str) -> dict[str, float]:
    """Watched over alone: the geometric mean over pairs, with its 95 % interval."""
    logs = np.array([math.log(pair["watched"][name] / pair["alone"][name]) for pair in pairs])
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    mean = logs.mean()
    return {"ratio": math.exp(mean), "low": math.exp(mean - half), "high": math.exp(mean + half)}


def report(found: dict[str, Any]) -> str:
    """The table."""
    lines = ["# What the dashboard costs", "", "`python -m experiments.dashboard`; see the script for how.", ""]
    lines += ["| what | figure | aim |", "| --- | --- | --- |"]
    if row := found.get("pixel"):
        figure = f"median {row['median_ms']:.0f} ms, 95th percentile {row['p95_ms']:.0f} ms ({row['seen']} events)"
        lines.append(f"| event to pixel | {figure} | under 100 ms |")
    for name, row in found.get("load", {}).items():
        figure = f"{row['figures_s']:.2f} s, charts {row['charts_s']:.2f} s; {row['bytes'] / 1e3:.0f} kB"
        lines.append(f"| first load over {name} | {figure} | under 2 s |")
    if row := found.get("flood"):
        figure = f"longest {row['longest_frame_ms']:.0f} ms, {row['frames_over_50_ms']} of {row['frames']} over 50 ms"
        lines.append(
            f"| frames while {row['events']:,} events come in {row['seconds']:.0f} s | {figure} | none over 50 ms |"
        )
        figure = f"{row['longest_task_cpu_ms']:.0f} ms, {row['tasks_over_50_cpu_ms']} of {row['tasks']:,} over 50 ms"
        lines.append(f"| longest task of the page in processor time | {figure} | none over 50 ms |")
    for part, where in (("watched", "by a page beside it"), ("distant", "by a page elsewhere")):
        if part not in found:
            continue
        row = found[part]
        for name, title in (("run_cpu", "processor time of a run"), ("wall", "wall time of a run")):
            told = row[name]
            spread = f"{100 * told['low'] - 100:+.1f} to {100 * told['high'] - 100:+.1f} %"
            figure = f"{100 * told['ratio'] - 100:+.1f} % ({spread}, {len(row['pairs'])} pairs)"
            lines.append(f"| {title}, watched {where}, over not watched | {figure} | at most 1 % more |")
        lines.append(f"| the server's share of a core meanwhile | {100 * row['server_cpu_share']:.2f} % | |")
    lines += ["", f"On {os.cpu_count()} cores that were shared. When each part was measured:", ""]
    for part, beside in found.get("beside", {}).items():
        lines.append(f"- {part}: load {beside['load_average']:.1f}, priority (nice) {beside['nice']}")
    return "\n".join([*lines, ""])


def main(parts: list[str]) -> None:
    """Measures, and writes both files."""
    saved = RESULTS / "dashboard.json"
    found = json.loads(saved.read_text()) if saved.is_file() else {}
    found.pop("load_average", None)
    with tempfile.TemporaryDirectory() as place:
        runs = Path(place) / "runs"
        with dashboard(runs) as (url, server), browser() as chromium:
            for part in parts or ["pixel", "load", "flood", "watched", "distant"]:
                more = (server,) if part in ("watched", "distant") else ()
                found[part] = globals()[part](runs, url, chromium, *more)
                found.setdefault("beside", {})[part] = {"load_average": os.getloadavg()[0], "nice": os.nice(0)}
                print(part, json.dumps(found[part]), flush=True)
    saved.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "dashboard.md").write_text(report(found), encoding="utf-8")
    print(report(found))


if __name__ == "__main__":
    main(sys.argv[1:])
