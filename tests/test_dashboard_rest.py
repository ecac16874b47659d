"""The dashboard's REST calls, over HTTP, on runs on disk."""

from __future__ import annotations

import csv
import io
import json
import shutil

import numpy as np
import pytest

from phase8.files import write_sealed
from phase8.watch.server.pairs import paired_interval
from tests import invented_log
from tests.dashboard_server import Served, served


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Served:
    runs = tmp_path_factory.mktemp("runs")
    invented_log.write(runs / "2026-11-26" / "21-00-00")
    with served(runs) as server:
        yield server


def test_list_holds_what_the_log_says(one):
    answer = one.ask("runs").json
    assert answer["total"] == 1
    run = answer["runs"][0]
    assert run["name"] == "2026-11-26/21-00-00" and run["state"] == "complete" and run["source"] == "command line"
    assert run["ratio"] == pytest.approx(invented_log.ORIGINAL / 1_202_000)
    assert run["compressed_bytes"] == 1_202_000 and run["core_retention"] == 0.97 and run["level"] == "vptq"
    assert run["core_retention_interval"] == pytest.approx([0.96, 0.98])
    states = {stage["stage"]: stage["state"] for stage in run["stages"]}
    assert states == {"baseline": "passed", "seedlm": "passed", "vptq": "passed", "hyper": "failed"}
    assert {s["stage"]: s["attempts"] for s in run["stages"]} == {"baseline": 1, "seedlm": 1, "vptq": 2, "hyper": 1}
    assert not run["steerable"]


@pytest.mark.parametrize(
    ("query", "found"),
    [("21-00", 1), ("reference default", 1), ("vptq.codebook_size=256", 1), ("vptq.codebook_size=512", 0), ("zzz", 0)],
)
def test_search(one, query, found):
    assert one.ask(f"runs?query={query.replace(' ', '%20')}").json["total"] == found


def test_status(one):
    run = one.only_run()
    status = one.ask(f"status/{run}").json
    assert status["activity"] is None and status["elapsed"] == 12.5
    assert [line["text"] for line in status["log"]] == ["seedlm begins", "vptq begins", "vptq begins", "hyper begins"]


def test_events_whole_compacted_and_from_a_line_on(one):
    run = one.only_run()
    lines = (one.runs / "2026-11-26" / "21-00-00" / "events.jsonl").read_text().splitlines()
    events = one.ask(f"runs/{run}/events").json
    assert events["next"] == len(lines)
    for event, line in zip(events["events"], lines, strict=True):
        assert {k: v for k, v in event.items() if k != "seq"} == json.loads(line)
    later = one.ask(f"runs/{run}/events?after=5").json["events"]
    assert [event["seq"] for event in later] == list(range(5, len(lines)))
    compact = one.ask(f"runs/{run}/events?compact=true").json["events"]
    steps = [(e["stage"], e["data"]["step"]) for e in compact if e["kind"] == "activity"]
    assert len(steps) == len(set(steps)) == 4
    assert len(compact) < len(lines) and [e for e in compact if e["kind"] != "activity"] == [
        e for e in events["events"] if e["kind"] != "activity"
    ]


def test_result_and_settings(one):
    run = one.only_run()
    saved = json.loads((one.runs / "2026-11-26" / "21-00-00" / "result.json").read_text())
    assert one.ask(f"runs/{run}/result").json == saved
    assert one.ask(f"runs/{run}/config").json["settings"] == {"seed": 0, "vptq.codebook_size": 256}


def test_benchmarks_take_the_attempt_that_counts(one):
    answer = one.ask(f"benchmarks/{one.only_run()}").json
    assert answer["stages"] == ["seedlm", "vptq", "hyper"]
    row = next(row for row in answer["benchmarks"] if row["task"] == "mini_mmlu")
    assert row["baseline"] == {"score": 0.9, "stderr": 0.02, "also": {"acc_norm,none": 0.9}}
    assert row["stages"]["vptq"]["attempt"] == 2 and row["stages"]["vptq"]["retention"] == 0.97
    assert row["stages"]["hyper"]["retention"] == 0.30


def test_recommendations(one):
    run = one.only_run()
    assert one.ask(f"recommendations/{run}/vptq").json["recommendations"] == [
        {"attempt": 1, "action": "raise_rate", "adjustments": {"seed": 1}, "reason": "bits"}
    ]
    assert one.ask(f"recommendations/{run}/seedlm").json["recommendations"] == []
    assert one.ask(f"recommendations/{run}/nothing").status == 404


def test_export_as_csv_and_json(one):
    run = one.only_run()
    answer = one.ask(f"export/{run}?format=csv")
    assert "attachment" in answer.headers["Content-Disposition"]
    rows = list(csv.DictReader(io.StringIO(answer.body.decode())))
    assert len(rows) == 5 * 3  # baseline and four attempts, three benchmarks each
    kept = next(r for r in rows if r["stage"] == "vptq" and r["attempt"] == "2" and r["task"] == "mini_arc")
    assert float(kept["retention"]) == 0.97 and kept["passed"] == "true" and kept["bytes"] == "1202000"
    whole = one.ask(f"export/{run}?format=json").json
    assert whole["summary"]["run"] == run and [gate["passed"] for gate in whole["gates"]["vptq"]] == [False, True]


def test_unknown_runs_and_wrong_numbers(one):
    for path in ("status/0123456789abcdef", "benchmarks/replay-0123456789ab", "runs/0123456789abcdef/events"):
        answer = one.ask(path)
        assert answer.status == 404 and answer.json["error"]["what"]
    for path in ("status/..%2F..%2Fetc", "status/abc", "runs?limit=0", "runs?state=happy"):
        assert one.ask(path).status in (404, 422)
    assert one.ask("nothing").status == 404


def test_compare(tmp_path):
    for name, kept, size in (("a", 0.97, 256), ("b", 0.95, 512)):
        directory = tmp_path / "runs" / name
        settings = f"seed: 0\nvptq: {{codebook_size: {size}}}\npaths: {{x: {name}}}\n"
        invented_log.write(directory, invented_log.whole(directory, kept), settings)
        scores = {"missing": [], "bits_per_byte": None}
        for place, hits in (("baseline_1", 200), ("vptq_2", 198 if name == "a" else 190)):
            (directory / "state" / place).mkdir(parents=True)
            entry = {"task": "mini_arc", "items": [1.0] * hits + [0.0] * (200 - hits), "clusters": []}
            write_sealed(directory / "state" / place / "scores.json", json.dumps(scores | {"scores": [entry]}))
    with served(tmp_path / "runs") as server:
        listed = server.wait("runs", lambda answer: answer["total"] == 2)["runs"]
        numbers = {run["name"]: run["run"] for run in listed}
        a, b = numbers["a"], numbers["b"]
        answer = server.ask(f"compare?runs={a},{b}").json
        assert answer["settings"] == [{"name": "vptq.codebook_size", "values": {a: 256, b: 512}}]
        best = [p for p in answer["frontier"] if p["stage"] == "vptq" and p["attempt"] == 2]
        assert {p["run"]: (p["core_retention"], p["on_frontier"]) for p in best} == {a: (0.97, True), b: (0.95, False)}
        assert {p["threshold"] for p in best} == {0.84}, "the gates' own, drawn as a line"
        arc = next(d for d in answer["differences"] if d["task"] == "mini_arc")
        assert arc["paired"] and arc["difference"] == pytest.approx(-0.02)
        low, high = arc["interval"]
        assert low < -0.04 < high < 0  # eight items of 200, a binomial's 2 standard errors around -0.04
        other = next(d for d in answer["differences"] if d["task"] == "mini_mmlu")
        assert not other["paired"] and other["interval"] is None
        assert server.ask(f"compare?runs={a}").status == 422


def test_summary_of_runs_that_ended_otherwise(tmp_path):
    runs = tmp_path / "runs"
    line = invented_log.Lines()
    lost = [*invented_log.head(line, runs), *invented_log.attempt(line, runs, "seedlm", 1, 0.99, True, True)]
    invented_log.write(runs / "lost", iter(lost))
    failed = line("failed", None, error="ModelError", what="the model is gone", where="model.path", fix="bring it back")
    invented_log.write(runs / "failed", iter([*lost, failed]))
    aborted = [line("aborted", None, by="control", reason="too slow", step="encode")]
    ending = list(invented_log.tail(line, 0.99, 1_701_000, interrupted=True, stopped="too slow"))
    invented_log.write(runs / "aborted", iter([*lost, *aborted, *ending]))
    (runs / "damaged").mkdir()
    (runs / "damaged" / "events.jsonl").write_text("".join(lost[:5]) + "not json\n[1]\n" + lost[5])
    with served(runs) as server:
        listed = server.wait("runs", lambda answer: answer["total"] == 4)["runs"]
        found = {run["name"]: run for run in listed}
        assert {name: run["state"] for name, run in found.items()} == {
            "lost": "lost", "failed": "failed", "aborted": "aborted", "damaged": "lost"
        }  # fmt: skip
        assert found["failed"]["error"]["fix"] == "bring it back"
        assert found["aborted"]["reason"] == "too slow" and found["aborted"]["compressed_bytes"] == 1_701_000
        assert found["damaged"]["events"] == 8  # lines that are no events keep their numbers
        states = {stage["stage"]: stage["state"] for stage in found["lost"]["stages"]}
        assert states == {"baseline": "passed", "seedlm": "passed", "vptq": "skipped", "hyper": "skipped"}


def test_a_study_names_itself(tmp_path):
    study = tmp_path / "runs" / "2026-11-26" / "22-00-00"
    for number in "01":
        invented_log.write(study / number)
    (study / "multirun.yaml").write_text("{}")
    with served(tmp_path / "runs") as server:
        listed = server.wait("runs", lambda answer: answer["total"] == 2)["runs"]
        assert {run["study"] for run in listed} == {"2026-11-26/22-00-00"}


def test_runs_in_hidden_places_and_links_are_not_runs(tmp_path):
    invented_log.write(tmp_path / "elsewhere")
    runs = tmp_path / "runs"
    invented_log.write(runs / ".hidden")
    invented_log.write(runs / "run")
    invented_log.write(runs / "run" / "inside")
    (runs / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with served(runs) as server:
        assert [run["name"] for run in server.ask("runs").json["runs"]] == ["run"]


def test_secrets_in_settings_are_left_out(tmp_path):
    invented_log.write(tmp_path / "runs" / "a", settings="seed: 3\nhub: {api_key: abc, token: def}\n")
    with served(tmp_path / "runs") as server:
        run = server.only_run()
        assert server.ask(f"runs/{run}/config").json["settings"] == {"seed": 3}
        assert b"abc" not in server.ask(f"export/{run}").body


def test_runs_that_come_and_go(tmp_path):
    invented_log.write(tmp_path / "runs" / "first")
    with served(tmp_path / "runs") as server:
        assert server.only_run()
        invented_log.write(tmp_path / "runs" / "2026" / "second")
        server.wait("runs", lambda answer: {run["name"] for run in answer["runs"]} == {"first", "2026/second"})
        shutil.rmtree(tmp_path / "runs" / "first")
        server.wait("runs", lambda answer: [run["name"] for run in answer["runs"]] == ["2026/second"])


def test_the_interval_of_a_difference_is_that_of_the_gates():
    """Another way to the same figure: the draws that the gates are judged by."""
    from phase8.benchmarks.evaluate import Score
    from phase8.judge.resample import mean_draws

    random = np.random.default_rng(3)
    scores = [(random.random(200) < share).astype(float) for share in (0.9, 0.8, 0.75)]
    for clusters in ([], [f"passage {number // 5}" for number in range(200)]):
        before, left, right = ((items, clusters) for items in scores)
        low, high = paired_interval(before, before, left, right)
        models = [
            Score(
                task="t", role="core", stands_for="t", experts=(), chance=0.0, items=tuple(s), clusters=tuple(clusters)
            )
            for s in scores
        ]
        x, a, b = mean_draws(models, draws=4000)
        expected = np.quantile((b - a) / x, [0.025, 0.975])
        assert (low, high) == pytest.approx(tuple(expected), abs=0.006)
        assert paired_interval(before, (scores[1], clusters), left, right) is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [("https://wandb.example/a/b\n", "https://wandb.example/a/b"), ("javascript:alert(1)", None), (None, None)],
)
def test_the_page_of_a_run_at_wandb(tmp_path, text, shown):
    run = invented_log.write(tmp_path / "runs" / "a")
    if text is not None:
        (run / "wandb").mkdir()
        (run / "wandb" / "url.txt").write_text(text)
    with served(tmp_path / "runs") as server:
        assert server.ask(f"status/{server.only_run()}").json["summary"]["wandb_url"] == shown
