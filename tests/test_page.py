"""The dashboard's page in a browser: it shows what `result.json` holds, steers, and keeps up."""

from __future__ import annotations

import csv
import io
import json
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from phase8.watch import wording
from tests import invented_log
from tests.browser import launched, opened, page_directory, press_until, violations
from tests.dashboard_server import REPOSITORY, served

RECORDED = Path(__file__).parent / "data" / "run"
"""A run of the embedded model."""


@pytest.fixture(scope="module")
def browser():
    page_directory()
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """A directory with a real run and an invented one."""
    runs = tmp_path_factory.mktemp("runs")
    shutil.copytree(RECORDED, runs / "2026-11-26" / "real")
    invented_log.write(runs / "2026-11-26" / "invented")
    return runs


@pytest.fixture(scope="module")
def server(recorded):
    with served(recorded, page=page_directory()) as server:
        server.wait("runs", lambda answer: answer["total"] == 2)
        yield server


@pytest.fixture(scope="module")
def run(server) -> str:
    runs = server.ask("runs").json["runs"]
    return next(found["run"] for found in runs if found["name"].endswith("real"))


@pytest.fixture(scope="module")
def result(recorded) -> dict:
    return json.loads((recorded / "2026-11-26" / "real" / "result.json").read_text())


@pytest.fixture(scope="module")
def shown(browser, server, run):
    """The run's page, wholly drawn."""
    with opened(browser, f"{server.url}/run/?id={run}") as page:
        page.wait_for_selector("[data-part=tradeoff] table", state="attached")
        page.wait_for_selector("[data-part=compression] table", state="attached")
        yield page


def part(page, name: str):
    return page.locator(f"[data-part={name}]")


def rows(page, name: str) -> list[list[str]]:
    """The cells of a part's table, row by row."""
    return (
        part(page, name)
        .locator("table")
        .first.evaluate(
            "table => [...table.tBodies[0].rows].map(row => [...row.cells].map(cell => cell.innerText.trim()))"
        )
    )


def best(stage: dict) -> dict:
    """The attempt that passed, else the last: what the page's tables show of a stage."""
    return next((found for found in reversed(stage["attempts"]) if found["passed"]), stage["attempts"][-1])


def ending(result: dict) -> str | None:
    return {"hypercompression": "hyper", "phase7_fallback": None}.get(
        result["compression_level"], result["compression_level"]
    )


def retention(result: dict, task: str) -> float:
    return result["metrics"]["benchmarks"][task]["retention"]


# The ten parts, each against result.json


def test_1_timeline(shown, result):
    for name, stage in result["stages"].items():
        step = part(shown, "timeline").locator(f"[data-stage={name}]")
        told = best(stage)
        assert wording.size(told["bytes"]) in step.inner_text()
        assert wording.times(told["ratio"]) in step.inner_text()
        assert ("Complete" if stage["passed"] else "Failed") in step.inner_text()
    baseline = part(shown, "timeline").locator("[data-stage=baseline]").inner_text()
    assert wording.size(result["metrics"]["original_size_mb"] * 1e6) in baseline and "Complete" in baseline


def test_2_current_stage(shown, result):
    current = part(shown, "current")
    assert current.locator("[data-figure=stage]").inner_text() == "Ended"
    assert current.locator("[data-figure=elapsed]").inner_text() == wording.seconds(result["seconds"])
    assert current.locator("[data-figure=log] li").count() == 5


def test_3_compression_progress(shown, result):
    found = [row[1:] for row in rows(shown, "compression")]
    wanted = [[wording.size(result["metrics"]["original_size_mb"] * 1e6), "1.0×"]]
    for stage in result["stages"].values():
        wanted += [[wording.size(tried["bytes"]), wording.times(tried["ratio"])] for tried in stage["attempts"]]
    assert found == wanted
    assert part(shown, "compression").locator("svg.recharts-surface circle").count() == len(wanted)


def test_4_quality(shown, result):
    meter = part(shown, "quality").get_by_role("meter")
    assert wording.percent(result["metrics"]["core_retention"]) in meter.get_attribute("aria-valuetext")
    core = [task for task, row in result["metrics"]["benchmarks"].items() if row["role"] == "core"]
    assert part(shown, "quality").locator("[data-task]").count() == len(core) == 7
    for task in core:
        card = part(shown, "quality").locator(f"[data-task={task}] [data-figure=retention]")
        assert card.inner_text() == wording.percent(retention(result, task))


def test_5_benchmark_table(shown, result):
    for task, row in result["metrics"]["benchmarks"].items():
        line = part(shown, "benchmarks").locator(f"tr[data-task={task}]")
        assert line.locator("[data-stage=baseline]").inner_text().startswith(wording.percent(row["baseline"]))
        for name, stage in result["stages"].items():
            score = best(stage)["benchmarks"][task]["final"]
            assert line.locator(f"[data-stage={name}]").inner_text().startswith(wording.percent(score))
        if row["role"] != "integration" and ending(result):
            assert line.locator("[data-figure=retention]").inner_text() == wording.percent(row["retention"])


def test_5_table_sorts_opens_and_is_saved(shown, result):
    table = part(shown, "benchmarks")
    heading = table.get_by_role("columnheader").filter(has_text="Baseline")
    order = lambda: [row.get_attribute("data-task") for row in table.locator("tr[data-task]").all()]  # noqa: E731
    before = order()
    baseline = {task: row["baseline"] for task, row in result["metrics"]["benchmarks"].items()}
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert [baseline[task] for task in order()] == sorted(baseline.values())
    heading.get_by_role("button").click()
    assert [baseline[task] for task in order()] == sorted(baseline.values(), reverse=True)
    heading.get_by_role("button").click()
    assert order() == before

    first = table.locator("tr[data-task] button[aria-expanded]").first
    count = table.locator("tbody tr").count()
    first.click()
    assert first.get_attribute("aria-expanded") == "true" and table.locator("tbody tr").count() > count
    first.click()

    with shown.expect_download() as saved:
        table.get_by_role("button", name="Save table as CSV").click()
    lines = {row["benchmark"]: row for row in csv.DictReader(io.StringIO(Path(saved.value.path()).read_text()))}
    assert {task: float(row["baseline"]) for task, row in lines.items()} == baseline
    for name, stage in result["stages"].items():
        for task, row in best(stage)["benchmarks"].items():
            assert float(lines[task][name]) == row["final"]


def test_6_quality_against_compression(shown, result):
    told = sorted((best(stage) for stage in result["stages"].values()), key=lambda tried: tried["ratio"])
    found = [row[:2] for row in rows(shown, "tradeoff")]
    kept = [next(c["value"] for c in tried["checks"] if c["name"] == "core_retention_cumulative") for tried in told]
    assert found == [
        ["1.0×", "100.0 %"],
        *([wording.times(tried["ratio"]), wording.percent(mean)] for tried, mean in zip(told, kept, strict=True)),
    ]
    lines = part(shown, "tradeoff").get_by_role("group", name="Lines shown").get_by_role("button")
    drawn = part(shown, "tradeoff").locator("path.recharts-line-curve")
    before = drawn.count()
    lines.first.click()
    assert lines.first.get_attribute("aria-pressed") == "false" and drawn.count() == before - 1
    lines.first.click()
    assert drawn.count() == before


def test_7_experts(shown, result):
    experts = result["metrics"]["expert_retention"]
    assert experts, "the recorded run measures experts"
    stage = ending(result) or next(iter(result["stages"]))
    for expert, value in experts.items():
        cell = part(shown, "experts").locator(f"tr[data-expert={expert}] td[data-stage={stage}]")
        if ending(result):
            assert cell.inner_text() == wording.percent(value)
    assert part(shown, "experts").locator(".recharts-radar-polygon").count() >= 1


def test_8_integration(shown, result):
    panel = part(shown, "integration")
    for name, stage in result["stages"].items():
        told = best(stage)
        edge = panel.locator(f"li[data-stage={name}] [data-figure=edge]").inner_text()
        assert edge == wording.percent(told["edge_of_chaos"]["accuracy"])
        for rule, value in told["eudaimonia"].items():
            cell = panel.locator(f"tr[data-rule={rule}] td[data-stage={name}] [data-figure=rule]")
            assert cell.inner_text() == f"{value:.3f}"


def test_9_event_log(shown, recorded):
    lines = (recorded / "2026-11-26" / "real" / "events.jsonl").read_text().splitlines()
    kinds = [json.loads(line)["kind"] for line in lines]
    listed = [kind for kind in kinds if kind not in ("log_start", "activity", "training_progress")]
    log = part(shown, "events").locator("[data-figure=events]")
    assert log.get_attribute("data-count") == str(len(listed))
    assert log.locator("li").count() < 80  # only what is in sight
    assert "Run ends at" in log.inner_text()  # follows the end
    part(shown, "events").get_by_role("button", name="Gates and retries").click()
    wanted = ("quality_gate", "stage_complete", "phase_complete", "recommendation", "retry_start")
    assert int(log.get_attribute("data-count")) >= sum(kind in wanted for kind in listed)
    row = log.get_by_role("button").filter(has_text="gate").first
    row.click()
    assert '"core_retention_cumulative"' in log.locator("pre").inner_text()
    row.click()
    part(shown, "events").get_by_role("button", name="All").click()


def test_10_controls_and_export(shown, server, run):
    controls = part(shown, "controls")
    for name in ("Pause", "Resume", "Abort"):
        assert controls.get_by_role("button", name=name).is_disabled()
    for name, kind in (("Save as CSV", "csv"), ("Save as JSON", "json")):
        controls.get_by_role("button", name="Export").click()
        with shown.expect_download() as saved:
            shown.get_by_role("dialog").get_by_role("button", name=name).click()
        assert Path(saved.value.path()).read_bytes() == server.ask(f"export/{run}?format={kind}").body
        shown.get_by_role("dialog").wait_for(state="hidden")


# Steering


@pytest.fixture
def steered(tmp_path):
    """A server whose runs are pretended."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "conf").symlink_to(REPOSITORY / "conf")
    shutil.copy(REPOSITORY / "tests" / "invented_log.py", project)
    shutil.copy(REPOSITORY / "tests" / "pretended_run.py", project / "run.py")
    with served(tmp_path / "runs", project=project, page=page_directory()) as server:
        yield server


def test_start_pause_resume_abort_and_export_with_the_keyboard_alone(browser, steered):
    with opened(browser, steered.url) as page:
        page.get_by_text("No runs yet").wait_for()
        assert violations(page) == []
        press_until(page, "Tab", "Start a run")
        page.keyboard.press("Enter")
        page.get_by_role("dialog").get_by_label("Retries (0 to 5)").wait_for()
        assert violations(page) == []
        press_until(page, "Tab", "Retries (0 to 5)")
        page.keyboard.press("ArrowUp")
        press_until(page, "Tab", "Hyper")
        page.keyboard.press("Space")
        press_until(page, "Tab", "Start the run")
        page.keyboard.press("Enter")
        state = page.locator("h1").locator("xpath=preceding-sibling::p")
        state.get_by_text("Running").wait_for()
        job = steered.only_run()
        settings = steered.ask(f"runs/{job}/config").json["settings"]
        assert steered.ask(f"status/{job}").json["summary"]["source"] == "dashboard", settings

        press_until(page, "Tab", "Pause")
        page.keyboard.press("Enter")
        state.get_by_text("Paused").wait_for(timeout=600_000)  # at the next safe point: a busy machine takes its time
        assert violations(page) == []
        press_until(page, "Tab", "Resume")
        page.keyboard.press("Space")
        state.get_by_text("Running").wait_for()

        press_until(page, "Tab", "Export")
        page.keyboard.press("Enter")
        press_until(page, "Tab", "Save as JSON")
        with page.expect_download() as saved:
            page.keyboard.press("Enter")
        assert json.loads(Path(saved.value.path()).read_text())["summary"]["run"] == job

        press_until(page, "Tab", "Abort")
        page.keyboard.press("Enter")
        page.get_by_role("dialog").get_by_label("Reason").wait_for()
        assert violations(page) == []
        page.keyboard.type("it loses too much")
        press_until(page, "Tab", "Abort the run")
        page.keyboard.press("Enter")
        state.get_by_text("Aborted").wait_for()
        page.get_by_text("stopped: it loses too much").wait_for()
        assert steered.ask(f"status/{job}").json["summary"]["reason"] == "it loses too much"


# Late, cut off, two at once


def whole_text(page) -> str:
    """What the run's parts say, but for the clock and the rows in sight of the log."""
    page.locator(DRAWN["run"]).wait_for(state="attached")
    names = ("timeline", "compression", "quality", "tradeoff", "experts", "integration", "benchmarks")
    return "\n".join(part(page, name).inner_text() for name in names)


def test_late_and_early_pages_agree_and_a_new_server_is_taken_up(browser, tmp_path):
    run_dir = tmp_path / "runs" / "a"
    lines = list(invented_log.whole(run_dir))
    half = len(lines) // 2
    invented_log.write(run_dir, iter(lines[:half]))

    def add(more: list[str]) -> None:
        with (run_dir / "events.jsonl").open("a") as log:
            log.writelines(more)

    def wait_for(page, count: int) -> None:
        page.wait_for_function(
            "count => Number(document.querySelector('[data-next]')?.dataset.next) === count", arg=count
        )

    with ExitStack() as first:
        server = first.enter_context(served(run_dir.parent, page=page_directory()))
        address = f"{server.url}/run/?id={server.only_run()}"
        with opened(browser, address) as early:
            wait_for(early, half)
            add(lines[half : half + 10])
            wait_for(early, half + 10)
            with opened(browser, address) as late:
                wait_for(late, half + 10)
                assert whole_text(early) == whole_text(late)
            early.evaluate("window.before = true")
            first.close()  # the server goes
            early.locator("[data-connection=disconnected]").wait_for()
            assert violations(early) == []
            add(lines[half + 10 :])
            port = int(server.url.rpartition(":")[2])
            with served(run_dir.parent, page=page_directory(), port=port):
                wait_for(early, len(lines))
                assert early.evaluate("window.before"), "the page went on without being loaded again"
                with opened(browser, address) as fresh:
                    wait_for(fresh, len(lines))
                    assert whole_text(early) == whole_text(fresh)
                    assert "ends at VPTQ" in part(fresh, "result").inner_text()


def test_a_replay_ends_as_its_run_did(browser, server, run):
    job = server.ask(f"replay/{run}", "POST", {"speed": 1000, "longest_gap_s": 0.1}).json["job"]
    with (
        opened(browser, f"{server.url}/run/?id={job}") as page,
        opened(browser, f"{server.url}/run/?id={run}") as itself,
    ):
        page.locator("[data-part=result]").wait_for()
        itself.locator("[data-part=result]").wait_for()
        assert whole_text(page) == whole_text(itself)
        assert page.get_by_role("group", name="Replay").is_visible()
    server.ask(f"replay/{job}", "DELETE")


def test_ten_thousand_events_draw_only_what_is_in_sight(browser, tmp_path):
    run_dir = tmp_path / "runs" / "a"
    line = invented_log.Lines()
    begin = list(invented_log.head(line, run_dir))
    invented_log.write(run_dir, iter(begin))
    with served(run_dir.parent, page=page_directory()) as server:
        with opened(browser, f"{server.url}/run/?id={server.only_run()}") as page:
            log = page.locator("[data-figure=events]")
            log.wait_for()
            before = int(log.get_attribute("data-count"))
            with (run_dir / "events.jsonl").open("a") as file:
                file.writelines(line("log", "seedlm", level="info", text=f"line {number}") for number in range(10_000))
            page.wait_for_function(
                "n => document.querySelector('[data-figure=events]').dataset.count == n", arg=before + 10_000
            )
            log.get_by_text("line 9999", exact=True).wait_for()
            assert log.locator("li").count() < 80
            log.evaluate("box => box.scrollTo(0, 0)")
            log.get_by_text("Run begins").wait_for()
            assert not page.get_by_label("Follow").is_checked()


# Everybody


PAGES = {
    "list": "/",
    "run": "/run/?id={run}",
    "compare": "/compare/?runs={run},{other}",
    "nothing to compare": "/compare/",
    "artifact that is missing": "/artifact/?run={run}&name=none",
    "run that is missing": "/run/?id=0000000000000000",
}
DRAWN = {"run": "[data-part=tradeoff] table", "compare": "[data-part=frontier] table", "list": "tr[data-run]"}


@pytest.fixture(scope="module")
def addresses(server, run) -> dict[str, str]:
    other = next(found["run"] for found in server.ask("runs").json["runs"] if found["run"] != run)
    return {name: server.url + path.format(run=run, other=other) for name, path in PAGES.items()}


@pytest.mark.parametrize("name", PAGES)
def test_no_violation_of_wcag(browser, addresses, name):
    with opened(browser, addresses[name]) as page:
        page.locator(DRAWN.get(name, "main h1, main [role=alert]")).first.wait_for(state="attached")
        assert violations(page) == []


@pytest.mark.parametrize("width", [320, 768, 1280])
def test_nothing_is_wider_than_the_screen(browser, addresses, width):
    for name in ("list", "run", "compare"):
        with opened(browser, addresses[name], width) as page:
            page.locator(DRAWN[name]).first.wait_for(state="attached")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            if name == "run":
                lefts = page.locator(
                    "[data-part=current], [data-part=compression], [data-part=integration]"
                ).evaluate_all("parts => new Set(parts.map(part => part.getBoundingClientRect().left)).size")
                assert lefts == {320: 1, 768: 2, 1280: 3}[width]


def test_a_token_is_asked_for_and_kept_out_of_the_address(browser, recorded):
    with served(recorded, page=page_directory(), token="a-long-secret-token") as server:
        with opened(browser, server.url) as page:
            page.get_by_label("Token").wait_for()
            assert violations(page) == []
            page.get_by_label("Token").fill("a-long-secret-token")
            page.keyboard.press("Enter")
            page.locator("tr[data-run]").first.wait_for()
        with opened(browser, f"{server.url}/#token=a-long-secret-token") as page:
            page.locator("tr[data-run]").first.wait_for()
            assert "token" not in page.url


def test_the_list_finds_runs_and_compares_them(browser, server, run):
    from playwright.sync_api import expect

    with opened(browser, server.url) as page:
        page.locator("tr[data-run]").first.wait_for()
        assert page.locator("tr[data-run]").count() == 2
        page.get_by_role("searchbox").fill("real")
        expect(page.locator("tr[data-run]")).to_have_count(1)
        assert page.locator("tr[data-run]").get_attribute("data-run") == run
        page.get_by_role("searchbox").fill("")
        expect(page.locator("tr[data-run]")).to_have_count(2)
        for box in page.get_by_role("checkbox").all():
            box.check()
        page.get_by_role("button", name="Compare").click()
        page.locator("[data-part=frontier] table").wait_for(state="attached")
        assert page.locator("[data-part=picked] tbody tr").count() == 2
