"""Every state of every page for everybody: WCAG 2.1 A and AA, light and dark, at three widths, nothing cut off."""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import invented_log
from tests.browser import findings, launched, opened, page_directory
from tests.dashboard_server import REPOSITORY, Served, served

PROMPT, TOKENS = "Question: What does the", 12


@pytest.fixture(scope="module")
def browser():
    page_directory()
    with launched() as browser:
        yield browser


def at_work(run_dir: Path) -> Iterator[str]:
    """A run in the middle of a training."""
    line = invented_log.Lines(time.time() - 60)
    yield from invented_log.head(line, run_dir)
    yield from invented_log.attempt(line, run_dir, "seedlm", 1, 0.99, True, True)
    yield from invented_log.attempt(line, run_dir, "vptq", 1, 0.80, False, False)
    yield line("retry_start", "vptq", attempt=2, action="raise_rate", adjustments={"seed": 1}, reason="bits")
    yield line("stage_start", "vptq", attempt=2)
    for step in range(1, 40):
        yield line("training_progress", "vptq", attempt=2, step=step, steps=50, loss=1 / step, divergence=1 / step,
                   estimated_bytes=2_000_000 - 20_000 * step, budget_bytes=1_200_000, seconds_left=30.0)  # fmt: skip
    yield line("activity", "vptq", step="train", done=39, total=50, text="39 of 50", seconds_left=30.0)


def waiting(run_dir: Path) -> Iterator[str]:
    """A run that waits for somebody's decision."""
    line = invented_log.Lines(time.time() - 60)
    yield from invented_log.head(line, run_dir)
    yield from invented_log.attempt(line, run_dir, "seedlm", 1, 0.60, False, True)
    yield line("paused", "seedlm", step="fallback", reason="SeedLM failed its gate for good")


def failed(run_dir: Path) -> Iterator[str]:
    line = invented_log.Lines()
    yield from invented_log.head(line, run_dir)
    yield line("failed", None, error="ModelError", what="the model is gone", where="model.path", fix="bring it back")


def lost(run_dir: Path) -> Iterator[str]:
    yield from list(invented_log.whole(run_dir))[:20]


def aborted(run_dir: Path) -> Iterator[str]:
    line = invented_log.Lines()
    yield from invented_log.head(line, run_dir)
    yield from invented_log.attempt(line, run_dir, "seedlm", 1, 0.99, True, True)
    yield line("aborted", None, by="control", reason="it loses too much", step="encode")
    yield from invented_log.tail(line, 0.99, 1_701_000, interrupted=True, stopped="it loses too much")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Runs in every state: a real one with its artifact, invented ones, and a study of three."""
    runs = tmp_path_factory.mktemp("runs")
    shutil.copytree(REPOSITORY / "tests" / "data" / "run", runs / "real")
    shutil.copy(
        REPOSITORY / "phase8" / "assets" / "reference" / "tokenizer.json", runs / "real" / "artifacts" / "hyper"
    )
    (runs / "study").mkdir()
    (runs / "study" / "multirun.yaml").write_text("")
    for number in range(3):
        lines = invented_log.whole(runs / "study" / str(number), 0.9 + 0.03 * number, invented_log.BEGIN + 100 * number)
        invented_log.write(runs / "study" / str(number), lines, f"seed: {number}\n")
    with ExitStack() as held:
        for told in (at_work, waiting, failed, lost, aborted):
            invented_log.write(runs / told.__name__, told(runs / told.__name__))
            if told in (at_work, waiting):
                log = held.enter_context((runs / told.__name__ / "events.jsonl").open("a"))
                fcntl.flock(log, fcntl.LOCK_EX)
        server = held.enter_context(served(runs, page=page_directory()))
        server.wait("runs", lambda answer: answer["total"] == 9)
        yield server


@pytest.fixture(scope="module")
def numbers(server) -> dict[str, str]:
    """The runs' numbers by their names, and that of a replay that stands still half way."""
    found = {run["name"].replace("/", "_"): run["run"] for run in server.ask("runs").json["runs"]}
    replay = server.ask(f"replay/{found['real']}", "POST", {"speed": 1}).json["job"]
    server.ask(f"pause/{replay}", "POST", {})
    server.ask(f"replay/{replay}", "PATCH", {"position": 0.5})
    return {**found, "replay": replay}


def hold(pattern: str) -> Callable[[Any], None]:
    """Leaves calls without an answer, and the socket without a word."""

    def prepare(page: Any) -> None:
        page.route(pattern, lambda route: None)
        page.route_web_socket("**/socket.io/**", lambda socket: None)

    return prepare


def refuse(pattern: str, status: int = 503) -> Callable[[Any], None]:
    """Lets calls fail."""
    error = {"what": "too much at once", "where": "this server", "fix": "try again in a minute"}

    def prepare(page: Any) -> None:
        page.route(pattern, lambda route: route.fulfill(status=status, json={"error": error}))

    return prepare


def press(name: str) -> Callable[[Any], None]:
    return lambda page: page.get_by_role("button", name=name, exact=True).first.click()


def open_everything(page: Any) -> None:
    """What opens on a run's page: the success criteria, a benchmark, an event."""
    page.locator("[data-part=result] summary").click()
    page.locator("[data-part=benchmarks] tr[data-task] button[aria-expanded]").first.click()
    page.locator("[data-part=events] li button").last.click()
    page.locator("[data-part=events] pre").wait_for()


def ask(page: Any) -> None:
    page.get_by_label("Prompt").fill(PROMPT)
    page.get_by_label("Tokens").fill(str(TOKENS))
    page.get_by_role("button", name="Continue it").click()


@dataclass(frozen=True)
class State:
    """How to come to a state: an address, what is there once it is reached, what to do before and then."""

    address: str
    there: str
    prepare: Callable[[Any], None] | None = None
    act: Callable[[Any], None] | None = None
    then: str | None = None


RUN, ARTIFACT, CHARTS = (
    "/run/?id={real}",
    "/artifact/?run={real}&name=hyper",
    "[data-part=tradeoff] svg.recharts-surface",
)
BUTTON = "dialog[open] button"
STATES = {
    "list": State("/", "tr[data-run]"),
    "list without a match": State("/", "tr[data-run]", act=lambda page: page.get_by_role("searchbox").fill("none such"),
                                  then="text=No run matches"),
    "list loading": State("/", "main .animate-pulse", hold("**/api/**")),
    "list refused": State("/", "main [role=alert]", refuse("**/api/**")),
    "start form": State("/", "tr[data-run]", act=press("Start a run"), then="dialog[open] [type=number]"),
    "run": State(RUN, CHARTS, act=open_everything),
    "run loading": State(RUN, "text=Loading the run", hold("**/api/**")),
    "run that is missing": State("/run/?id=0000000000000000", "main [role=alert]"),
    "run without a number": State("/run/", "main [role=alert]"),
    "run at work": State("/run/?id={at_work}", "[data-figure=training-loss]"),
    "run that waits": State("/run/?id={waiting}", "text=Resume goes on"),
    "run failed": State("/run/?id={failed}", "main [role=alert]"),
    "run lost": State("/run/?id={lost}", "main [role=alert]"),
    "run aborted": State("/run/?id={aborted}", "text=stopped: it loses too much"),
    "replay": State("/run/?id={replay}", "[role=group][aria-label=Replay]"),
    "abort": State("/run/?id={at_work}", "[data-part=controls]", act=press("Abort"), then=BUTTON),
    "export": State(RUN, "[data-part=controls]", act=press("Export"), then=BUTTON),
    "comparison": State("/compare/?runs={real},{at_work},{failed}", "[data-part=frontier] svg.recharts-surface"),
    "comparison of a study": State("/compare/?runs={study_0},{study_1},{study_2}", "[data-part=differences] table"),
    "comparison of nothing": State("/compare/", "text=Pick at least two runs"),
    "comparison loading": State("/compare/?runs={real},{lost}", "main .animate-pulse", hold("**/api/phase8/compare*")),
    "comparison refused": State("/compare/?runs={real},0000000000000000", "main [role=alert]"),
    "artifact": State(ARTIFACT, "[data-part=bytes] svg rect"),
    "artifact loading": State(ARTIFACT, "main .animate-pulse", hold("**/api/**")),
    "artifact that is missing": State("/artifact/?run={real}&name=none", "main [role=alert]"),
    "artifact without a name": State("/artifact/", "main [role=alert]"),
    "talk under way": State(ARTIFACT, "[data-part=bytes] svg rect", hold("**/api/phase8/talk/**"), ask, "text=Stop"),
    "talk refused": State(ARTIFACT, "[data-part=bytes] svg rect", refuse("**/api/phase8/talk/**"), ask,
                          "[data-part=talk] [role=alert]"),
    "no such page": State("/nowhere/", "text=There is no such page"),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_a_state_is_for_everybody(browser, server, numbers, name):
    state = STATES[name]
    with opened(browser, server.url + state.address.format(**numbers), prepare=state.prepare) as page:
        page.locator(state.there).first.wait_for()
        if state.act is not None:
            state.act(page)
        if state.then is not None:
            page.locator(state.then).first.wait_for()
        assert findings(page) == []


def test_an_artifact_that_speaks_is_for_everybody(browser, server, numbers):
    """The treemap is drawn, and both continuations stand there token by token."""
    told = server.ask(f"artifacts/{numbers['real']}/hyper").json
    with opened(browser, server.url + ARTIFACT.format(**numbers)) as page:
        boxes = page.locator("[data-part=bytes] svg rect title")
        boxes.first.wait_for(state="attached")
        sections = told["tree"]["children"]
        assert boxes.count() == sum(
            sum(part["bytes"] > 0 for part in section["children"] or [section]) for section in sections
        )
        assert page.locator("[data-figure=bytes]").inner_text().replace(" ", " ").replace(" ", "") in (
            f"{told['bytes']:,}".replace(",", separator) for separator in (",", "", " ", " ")
        )
        ask(page)
        for side in ("original", "compressed"):
            column = page.locator(f"[data-side={side}]")
            column.get_by_text(f"{TOKENS} tokens").or_(column.get_by_text("end of text")).wait_for()
            assert 0 < column.locator("[data-token]").count() <= TOKENS
        lines = [json.loads(line) for line in talk(server, numbers["real"]).splitlines()]
        for side in ("original", "compressed"):
            said = "".join(line["text"] for line in lines if line["kind"] == "token" and line["side"] == side)
            shown = page.locator(f"[data-side={side}] [data-token]").evaluate_all(
                "spans => spans.map(span => span.textContent).join('')"
            )
            assert shown == said
        assert findings(page) == []


def talk(server: Served, run: str) -> bytes:
    return server.ask(f"talk/{run}/hyper", "POST", {"prompt": PROMPT, "tokens": TOKENS, "temperature": 0}).body


@pytest.mark.parametrize("address", ["/", "/run/?id={run}", "/compare/", "/artifact/?run={run}&name=none"])
def test_a_page_whose_server_is_gone_is_for_everybody(browser, tmp_path, address):
    invented_log.write(tmp_path / "runs" / "a")
    with ExitStack() as first:
        server = first.enter_context(served(tmp_path / "runs", page=page_directory()))
        with opened(browser, server.url + address.format(run=server.only_run())) as page:
            page.locator("[data-connection=connected]").wait_for()
            page.locator("main").get_by_role("heading").or_(page.locator("main [role=alert]")).first.wait_for()
            first.close()
            page.locator("[data-connection=disconnected]").wait_for()
            assert findings(page) == []


def test_an_empty_list_is_for_everybody(browser, tmp_path):
    with served(tmp_path / "runs", page=page_directory()) as server, opened(browser, server.url) as page:
        page.get_by_text("No runs yet").wait_for()
        assert findings(page) == []


def test_the_question_for_the_token_is_for_everybody(browser, tmp_path):
    with served(tmp_path / "runs", page=page_directory(), token="a-long-secret-token") as server:
        with opened(browser, server.url) as page:
            page.get_by_label("Token").wait_for()
            assert findings(page) == []
