"""Every call of the OpenAPI description, with what the description allows and with what it does not (schemathesis).

Each answer must be one that the description names: status, headers, content type and body. A server error is a failure.
"""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests import invented_log
from tests.dashboard_server import served

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
known: dict[str, str] = {}


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """The description of a server with one finished run, and nothing to start."""
    runs = tmp_path_factory.mktemp("runs")
    invented_log.write(runs / "a")
    with served(runs, project=runs) as server:
        known["job"] = server.only_run()
        known["replay"] = server.ask(f"replay/{known['job']}", "POST", {"speed": 1000}).json["job"]
        yield schemathesis.openapi.from_url(f"{server.url}/api/phase8/openapi.json")


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    """Every second time the run that there is, else almost no call would find one."""
    given = dict(path_parameters or {})
    for name, value in known.items():
        if name in given and sum(map(ord, str(given[name]))) % 2 and context.operation.method != "delete":
            given[name] = value
    return given


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_call_answers_as_described(described, mode):
    """`mode`: what the description allows, and what it does not."""
    called = []
    for found in described.get_all_operations():
        operation = found.ok()

        @settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case):
            answer = case.call(headers={"X-Phase8": "1"}, timeout=60)
            case.validate_response(answer, checks=CHECKS)

        try:
            ask()
        except Unsatisfiable:  # a call without parameters has nothing that can be wrong
            assert mode is GenerationMode.NEGATIVE, operation.label
            continue
        called.append(operation.label)
    assert len(called) >= 15
