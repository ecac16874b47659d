"""The page's files as the server hands them out: compressed where the browser takes it, with their policy and age."""

from __future__ import annotations

import gzip

import pytest

from phase8.watch.server.page import accepted
from tests.dashboard_server import served

HTML, SCRIPT = b"<!doctype html><script>1</script>" + b" " * 2000, b"let a = 1;" * 200


@pytest.fixture
def server(tmp_path):
    """A page of two files; stands for Brotli's bytes: some that say so."""
    page = tmp_path / "page"
    scripts = page / "_next" / "static"
    scripts.mkdir(parents=True)
    for path, content in ((page / "index.html", HTML), (scripts / "a.js", SCRIPT)):
        path.write_bytes(content)
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
        path.with_name(f"{path.name}.br").write_bytes(b"brotli of " + path.name.encode())
    (page / "plain.txt").write_bytes(b"plain")
    with served(tmp_path / "runs", page=page) as server:
        yield server


def test_a_browser_gets_the_best_encoding_that_it_takes(server):
    for path, name, content in (("/", "index.html", HTML), ("/_next/static/a.js", "a.js", SCRIPT)):
        best = server.ask(path, headers={"Accept-Encoding": "gzip, deflate, br, zstd"})
        assert best.headers["Content-Encoding"] == "br" and best.body == b"brotli of " + name.encode()
        next_best = server.ask(path, headers={"Accept-Encoding": "gzip, br;q=0"})
        assert next_best.headers["Content-Encoding"] == "gzip" and gzip.decompress(next_best.body) == content
        none = server.ask(path, headers={"Accept-Encoding": "identity"})
        assert none.headers["Content-Encoding"] is None and none.body == content
        kinds = {answer.headers["Content-Type"] for answer in (best, next_best, none)}
        assert len(kinds) == 1 and {answer.headers["Vary"] for answer in (best, next_best, none)} == {"Accept-Encoding"}
    assert server.ask("/plain.txt", headers={"Accept-Encoding": "br"}).body == b"plain"


def test_policy_and_age_do_not_depend_on_the_encoding(server):
    for encoding in ("br", "gzip", "identity"):
        page = server.ask("/", headers={"Accept-Encoding": encoding})
        assert "'sha256-" in page.headers["Content-Security-Policy"] and page.headers["Cache-Control"] == "no-cache"
        script = server.ask("/_next/static/a.js", headers={"Accept-Encoding": encoding})
        assert "immutable" in script.headers["Cache-Control"]
        again = server.ask("/", headers={"Accept-Encoding": encoding, "If-None-Match": page.headers["ETag"]})
        assert again.status == 304


def test_what_a_header_takes():
    assert accepted("gzip, br;q=0, deflate;q=0.5") == {"gzip", "deflate"}
    assert accepted("br; q=0.000") == set()


def test_answers_about_runs_are_compressed_too(server):
    answer = server.ask("openapi.json", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["Content-Encoding"] == "gzip" and b'"openapi"' in gzip.decompress(answer.body)
