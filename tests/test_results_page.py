"""docs/results.md is what its generator writes, and its figures are those of the files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from experiments import default_run, page_words, results_page
from phase8.errors import ArtifactError

RUN = Path(__file__).parent / "data" / "run"


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A copy of experiments/results/ that the generator reads."""
    copy = tmp_path / "results"
    shutil.copytree(page_words.RESULTS, copy, ignore=shutil.ignore_patterns("*.png"))
    monkeypatch.setattr(page_words, "RESULTS", copy)
    monkeypatch.setattr(results_page, "RESULTS", copy)
    return copy


def test_the_committed_page_is_what_the_generator_writes():
    page = results_page.PAGE.read_text(encoding="utf-8")
    assert page == results_page.page(), "python -m experiments.results_page"


def test_every_figure_file_is_on_the_page():
    page = results_page.page()
    for path in page_words.RESULTS.glob("*.md"):
        assert f"`{path.name}`" in page


def test_the_default_runs_figures_are_those_of_its_run(results):
    found = default_run.summary(RUN, "abc1234", "one core")
    (results / "default_run.json").write_text(json.dumps(found))
    result = json.loads((RUN / "result.json").read_text())
    page = "\n\n".join(results_page.the_default_run())
    attempts = [(stage, one) for stage, entry in result["stages"].items() for one in entry["attempts"]]
    assert len(found["tries"]) == len(attempts) > 2
    for (stage, attempt), row in zip(attempts, found["tries"], strict=True):
        assert (row["stage"], row["try"], row["passed"]) == (stage, attempt["attempt"], attempt["passed"])
        assert row["retention_raw"] == pytest.approx(attempt["core_retention"], abs=1e-6)
        assert row["minutes"] == pytest.approx(attempt["seconds"] / 60, abs=1e-6)
        assert (row["failed"] == []) is attempt["passed"]
        line = next(line for line in page.splitlines() if f"| {attempt['bytes']:,} |" in line)
        for figure in (attempt["core_retention"], attempt["core_retention_corrected"]):
            assert f"| {figure:.3f} (" in line
        assert f"| {attempt['edge_of_chaos']['accuracy']:.3f} |" in line
    assert "commit abc1234" in page and f"`success: {str(result['success']).lower()}`" in page


def test_a_run_that_succeeds_ends_at_its_last_stage(results):
    found = json.loads((results / "default_run.json").read_text())
    last = found["tries"][-1] | {"passed": True, "failed": []}
    found |= {"success": True, "ends_at": "hypercompression", "tries": [*found["tries"][:-1], last]}
    (results / "default_run.json").write_text(json.dumps(found))
    page = " ".join(results_page.page().split())
    assert f"It ends at the trained stage, {last['ratio']:.1f}x, with `success: true`." in page


def test_a_run_that_has_not_ended_has_no_figures(tmp_path):
    with pytest.raises(ArtifactError, match="the run has not ended"):
        default_run.summary(tmp_path, "abc1234", "one core")


def test_what_is_old_says_so_until_it_is_measured_anew(results):
    (results / "old.json").write_text(json.dumps({"variants": "other settings"}))
    assert "## The variants (old)" in results_page.page() and "**These rows are old**" in results_page.page()
    (results / "old.json").write_text("{}")
    page = results_page.page()
    assert "(old" not in page and "rows are old" not in page and "What is old" not in page


def test_a_changed_figure_changes_the_page(results):
    fuzz = json.loads((results / "fuzz.json").read_text())
    (results / "fuzz.json").write_text(json.dumps(fuzz | {"mutations": 4321, "failures": ["one"]}))
    assert "--mutations 4321`): 1 failures" in " ".join(results_page.page().split())
