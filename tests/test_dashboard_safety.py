"""Who may ask the dashboard's server, and what may be asked."""

from __future__ import annotations

import asyncio
import http.client
import json
from urllib.parse import urlsplit

import pytest
import socketio

from phase8.errors import ConfigError
from phase8.watch.server.guard import is_loopback
from phase8.watch.server.page import policy
from phase8.watch.server.schema import Start
from phase8.watch.server.serve import Options
from phase8.watch.server.settings import Project, settings
from tests import invented_log
from tests.dashboard_server import REPOSITORY as REPOSITORY_DIRECTORY
from tests.dashboard_server import served

TOKEN = "a-token-of-some-length"
REPOSITORY = Project(REPOSITORY_DIRECTORY)


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    invented_log.write(runs / "a")
    with served(runs, token=TOKEN) as server:
        yield server


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    invented_log.write(runs / "a")
    with served(runs) as server:
        yield server


CALLS = [("GET", "runs"), ("GET", "settings"), ("GET", "openapi.json"), ("POST", "start"), ("GET", "compare?runs=a,b")]


@pytest.mark.parametrize(("method", "path"), CALLS)
@pytest.mark.parametrize("header", [None, "Bearer wrong", f"Basic {TOKEN}", "Bearer ", f"Bearer {TOKEN}x", "Bearer ü"])
def test_every_call_but_health_needs_the_token(closed, method, path, header):
    answer = closed.ask(path, method, {} if method == "POST" else None, {"Authorization": header})
    assert answer.status == 401 and answer.json["error"]["fix"]
    assert closed.ask("health", headers={"Authorization": None}).json["token_required"] is True


def test_the_right_token_opens(closed):
    assert closed.ask("runs").json["total"] == 1


def test_sockets_need_the_token(closed):
    async def connect(auth):
        client = socketio.AsyncClient(reconnection=False)
        await client.connect(closed.url, transports=["websocket"], auth=auth, wait_timeout=60)
        await client.disconnect()

    for auth in (None, {}, {"token": "wrong"}, {"token": ["x"]}, "text"):
        with pytest.raises(socketio.exceptions.ConnectionError):
            asyncio.run(connect(auth))
    asyncio.run(connect({"token": TOKEN}))


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8008", "127.0.0.1.evil.example", "", "localhost@evil.example"]
)
@pytest.mark.parametrize("path", ["/api/phase8/runs", "/socket.io/?EIO=4&transport=polling", "/"])
def test_names_that_are_not_ours_are_refused(opened, host, path):
    assert opened.ask(path, headers={"Host": host}).status in (400, 421)


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost:1", "null", "file://"])
@pytest.mark.parametrize("path", ["/api/phase8/runs", "/socket.io/?EIO=4&transport=polling"])
def test_pages_from_elsewhere_are_refused(opened, origin, path):
    answer = opened.ask(path, headers={"Origin": origin})
    assert answer.status == 403
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert opened.ask(path, headers={"Sec-Fetch-Site": "cross-site"}).status == 403


def test_the_own_page_is_let_in(opened):
    assert opened.ask("runs", headers={"Origin": opened.url, "Sec-Fetch-Site": "same-origin"}).status == 200


def test_a_socket_of_a_page_from_elsewhere_is_refused(opened):
    async def connect(origin):
        client = socketio.AsyncClient(reconnection=False)
        await client.connect(opened.url, transports=["websocket"], headers={"Origin": origin}, wait_timeout=60)
        await client.disconnect()

    with pytest.raises(socketio.exceptions.ConnectionError):
        asyncio.run(connect("https://evil.example"))
    asyncio.run(connect(opened.url))


@pytest.mark.parametrize("path", ["start", "pause/{run}", "abort/{run}", "replay/{run}"])
def test_a_form_cannot_change_anything(opened, path):
    run = opened.only_run()
    answer = opened.ask(path.format(run=run), "POST", {}, {"X-Phase8": None})
    assert answer.status == 403 and answer.json["error"]["where"] == "X-Phase8"


def test_a_preflight_is_not_answered(opened):
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST", "X-Phase8": None}
    answer = opened.ask("start", "OPTIONS", headers=headers)
    assert answer.status == 403 and not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_long_bodies_are_refused(opened):
    assert opened.ask("start", "POST", b"x" * 70_000).status == 413
    place = urlsplit(opened.url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
    try:  # without a length, in pieces
        connection.putrequest("POST", "/api/phase8/start")
        for name, value in (("X-Phase8", "1"), ("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")):
            connection.putheader(name, value)
        connection.endheaders()
        for _ in range(20):
            connection.send(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
        connection.send(b"0\r\n\r\n")
        assert connection.getresponse().status >= 400
    except (http.client.HTTPException, OSError):
        pass  # hung up on
    finally:
        connection.close()
    assert opened.ask("health").status == 200


def test_headers_that_keep_browsers_strict(opened):
    for path in ("/", "/api/phase8/runs"):
        headers = opened.ask(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Frame-Options"] == "DENY"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_the_page_s_scripts_are_allowed_by_their_hash():
    page = b"<script>alert(1)</script><script src='/a.js'></script>"
    allowed = policy(page)
    assert "'sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI='" in allowed  # of alert(1)
    assert "unsafe-inline" not in allowed.partition("style-src")[0] and allowed.count("sha256-") == 1


def test_beyond_this_machine_there_is_always_a_token():
    assert Options().token is None
    made = {Options(host="0.0.0.0").token for _ in range(2)}
    assert len(made) == 2 and all(token and len(token) >= 24 for token in made)
    with pytest.raises(ConfigError, match="fewer than 16"):
        Options(host="0.0.0.0", token="short")
    assert is_loopback("::1") and is_loopback("127.8.0.1") and not is_loopback("192.168.0.2") and not is_loopback("x")


REFUSED = [
    {"variant": "../../etc"},
    {"variant": "default,max_compression"},
    {"model": "/etc"},
    {"experiment": "quick;rm"},
    {"settings": {"paths.output_dir": "/etc"}},
    {"settings": {"model.path": "/etc"}},
    {"settings": {"hydra.run.dir": "/etc"}},
    {"settings": {"+hydra.launcher": "x"}},
    {"settings": {"benchmarks.run_generated_code": True}},
    {"settings": {"calibration_text": "/etc/passwd"}},
    {"settings": {"resume": "/etc"}},
    {"settings": {"seed": "0 hydra.run.dir=/etc"}},
    {"settings": {"seed": "1,2"}},
    {"settings": {"max_retries": 6}},
    {"settings": {"max_retries": True}},
    {"settings": {"gates.core.seedlm": 1.5}},
    {"settings": {"gates.policy": "none of them"}},
    {"settings": {"vptq.codebook_size": 1}},
    {"settings": {"seedlm.enabled": False, "vptq.enabled": False, "hyper.enabled": False}},
    {"settings": {"vptq.codebok_size": 256}},
]


@pytest.mark.parametrize("wanted", REFUSED)
def test_start_refuses_what_it_does_not_know(opened, wanted):
    answer = opened.ask("start", "POST", wanted)
    assert answer.status == 422 and answer.json["error"]["what"]
    assert not opened.server.hub.library.jobs.all()


def test_a_start_becomes_the_command_that_a_person_would_type(tmp_path):
    wanted = Start(variant="skip_hyper", settings={"max_retries": 0, "gates.policy": "not_worse", "target_ratio": None})
    words = REPOSITORY.overrides(wanted, tmp_path / "it's here")
    assert words == [
        "compressor=skip_hyper", "max_retries=0", "gates.policy=not_worse", "target_ratio=null",
        f"hydra.run.dir='{tmp_path}/it\\'s here'",
    ]  # fmt: skip


def test_every_default_that_is_offered_is_accepted(tmp_path):
    """The values that the page's form starts with make a run, as they are."""
    everything = {name: setting.default for name, setting in settings().items()}
    assert REPOSITORY.overrides(Start(settings=everything), tmp_path)
    assert {"max_retries", "hyper.enabled", "gates.core.seedlm", "max_accuracy_loss"} <= everything.keys()
    assert not [name for name in everything if name.startswith(("paths", "model", "device", "hydra"))]


def test_openapi_names_every_call(opened):
    described = json.loads(opened.ask("openapi.json").body)
    assert {
        "/api/phase8/start", "/api/phase8/status/{job}", "/api/phase8/benchmarks/{job}", "/api/phase8/pause/{job}",
        "/api/phase8/resume/{job}", "/api/phase8/abort/{job}", "/api/phase8/export/{job}",
        "/api/phase8/recommendations/{job}/{stage}",
    } <= described["paths"].keys()  # fmt: skip


def test_settings_have_the_values_that_a_variant_and_an_experiment_give(opened):
    def value(query: str, name: str):
        return {s["name"]: s["default"] for s in opened.ask(f"settings{query}").json["settings"]}[name]

    for query in ("", "?variant=default", "?variant=quality_preserving&experiment=quick"):
        asked = dict(pair.split("=") for pair in query[1:].split("&") if pair)
        start = Start.model_validate(asked | {"settings": {}})
        words = [w for w in REPOSITORY.overrides(start, REPOSITORY_DIRECTORY / "outputs" / "x") if "run.dir" not in w]
        config = REPOSITORY._compose([*words, "paths.output_dir=outputs/x"])
        assert value(query, "max_retries") == config.max_retries
        assert value(query, "vptq.vector_dim") == config.vptq.vector_dim
        assert value(query, "training.steps") == config.training.steps
    assert value("", "max_retries") != value("?experiment=quick", "max_retries")  # else nothing was tried
    refused = opened.ask("settings?variant=none+such")
    assert refused.status == 422 and "default" in refused.json["error"]["what"]
