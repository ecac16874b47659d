"""How fast the dashboard's page is, in Chromium: `python -m experiments.dashboard_page` (needs the built page).

load            from asking for a run's page to its ten parts being drawn, over a throttled connection: Lighthouse's
                "slow 4G" (1.6 Mbit/s, 150 ms) and Chromium's "fast 4G" (9 Mbit/s, 165 ms); bytes transferred
event to pixel  from a line being appended to a run's log to the frame after it stands in the page
10,000 events   appended at once: the longest frames while the page takes them in
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

PROFILES = {"slow 4G": (1.6e6, 150), "fast 4G": (9e6, 165)}
EVENTS = 60

_WATCH = """() => {
  window.seen = {};
  const look = () => {
    const text = document.querySelector('[data-figure=log]')?.innerText ?? '';
    for (const [, mark] of text.matchAll(/mark (\\d+)/g)) if (!(mark in window.seen)) {
      window.seen[mark] = 0;
      requestAnimationFrame(() => setTimeout(() => { window.seen[mark] = Date.now() / 1000; }, 0));
    }
  };
  new MutationObserver(look).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""
_FRAMES = """() => {
  window.frames_ms = [];
  let last = performance.now();
  const step = now => { window.frames_ms.push(now - last); last = now; requestAnimationFrame(step); };
  requestAnimationFrame(step);
}"""


def main() -> None:
    import invented_log
    from browser import launched, opened, page_directory
    from dashboard_server import served

    directory = Path(tempfile.mkdtemp())
    run_dir = directory / "runs" / "a"
    line = invented_log.Lines(time.time())
    invented_log.write(run_dir, iter(list(invented_log.whole(run_dir))))
    growing = directory / "runs" / "b"
    invented_log.write(growing, iter([*invented_log.head(line, growing), line("stage_start", "seedlm", attempt=1)]))

    with served(directory / "runs", page=page_directory()) as server, launched() as browser:
        runs = {found["name"]: found["run"] for found in server.wait("runs", lambda a: a["total"] == 2)["runs"]}
        for name, (bits, latency) in PROFILES.items():
            with opened(browser, "about:blank") as page:
                network = page.context.new_cdp_session(page)
                network.send("Network.enable")
                received: list[int] = []
                network.on(
                    "Network.loadingFinished", lambda event, got=received: got.append(event["encodedDataLength"])
                )
                throttle = {
                    "offline": False,
                    "latency": latency,
                    "downloadThroughput": bits / 8,
                    "uploadThroughput": bits / 8,
                }
                network.send("Network.emulateNetworkConditions", throttle)
                begin = time.monotonic()
                page.goto(f"{server.url}/run/?id={runs['a']}", wait_until="commit")
                page.locator("[data-part=timeline] [data-stage=vptq]").wait_for()
                parts = time.monotonic() - begin
                page.locator("[data-part=tradeoff] table").wait_for(state="attached")
                whole = time.monotonic() - begin
                print(f"{name}: figures after {parts:.2f} s, charts after {whole:.2f} s, {sum(received):,} bytes")

        with opened(browser, f"{server.url}/run/?id={runs['b']}") as page, (growing / "events.jsonl").open("a") as log:
            page.locator("[data-figure=log] li").first.wait_for()
            page.evaluate(_WATCH)
            sent = {}
            for mark in range(EVENTS):
                log.write(line("log", "seedlm", level="info", text=f"mark {mark}"))
                sent[str(mark)] = time.time()
                log.flush()
                time.sleep(0.25)
            page.wait_for_function("n => window.seen[n] > 0", arg=str(EVENTS - 1))
            seen = page.evaluate("window.seen")
            delays = sorted(1000 * (seen[mark] - moment) for mark, moment in sent.items() if seen.get(mark))
            p95 = delays[int(0.95 * len(delays))]
            print(
                f"event to pixel: median {statistics.median(delays):.0f} ms, 95th percentile {p95:.0f} ms, "
                f"{len(delays)} events"
            )

            page.evaluate(_FRAMES)
            log.writelines(line("log", "seedlm", level="info", text=f"line {number}") for number in range(10_000))
            log.flush()
            page.locator("[data-figure=events]").get_by_text("line 9999", exact=True).wait_for()
            time.sleep(1)
            frames = sorted(page.evaluate("window.frames_ms"))
            over = sum(frame > 50 for frame in frames)
            print(
                f"10,000 events: {len(frames)} frames, median {statistics.median(frames):.0f} ms, "
                f"longest {frames[-1]:.0f} ms, over 50 ms {over}"
            )


if __name__ == "__main__":
    main()
