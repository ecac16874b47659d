"""The REST calls and the page's files; `serve.py` puts them behind sockets and guard."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi import Path as PathField
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from phase8.errors import ConfigError, OutputError, Phase8Error
from phase8.watch.server import compare as comparing
from phase8.watch.server import schema
from phase8.watch.server.artifacts import detail, lines, original_of
from phase8.watch.server.fold import mapping
from phase8.watch.server.hub import REPLAYS, Hub, is_over
from phase8.watch.server.library import Run, run_id
from phase8.watch.server.replay import Replay
from phase8.watch.server.settings import Project
from phase8.watch.server.tail import compacted
from phase8.watch.server.workers import Busy, Workers

try:
    VERSION = version("phase8")
except PackageNotFoundError:  # run from a checkout that is not installed
    VERSION = "0"

RunPath = Annotated[str, PathField(pattern=schema.RUN_ID, description="a run's number, from the list of runs")]
ReplayPath = Annotated[str, PathField(pattern=r"^replay-[0-9a-f]{12}$", description="a replay's number")]
ArtifactPath = Annotated[str, PathField(pattern=schema.ARTIFACT_NAME, description="such as vptq or vptq_retry1")]
StagePath = Annotated[str, PathField(pattern=schema.STAGE_NAME, description="such as vptq")]
MOST_JOBS = 1
"""Runs started from the page that may be at work at once."""


class Refused(Exception):
    """A call that cannot be met, with its status."""

    def __init__(self, status: int, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.status, self.text = status, schema.ErrorText(what=what, where=where, fix=fix)


@dataclass
class Dashboard:
    """What the calls work with."""

    hub: Hub
    project: Project
    workers: Workers
    token_required: bool = False
    most_jobs: int = MOST_JOBS

    def run(self, run: str) -> Run:
        """Raises `Refused` where there is no such run."""
        found = self.hub.get(run)
        if found is None:
            raise Refused(404, "there is no such run", where=run, fix="take its number from the list of runs")
        return found


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors that a call may answer with, for its description."""
    words = {
        400: "the body cannot be read",
        401: "token missing or wrong",
        403: "not from this page",
        404: "no such run, stage or artifact",
        409: "makes no sense now",
        413: "body too long",
        421: "unknown host",
        422: "not understood or not accepted",
        503: "too much at once",
    }
    always = (400, 401, 403, 413, 421)
    return {status: {"model": schema.ErrorBody, "description": words[status]} for status in (*always, *statuses)}


def make_app(dashboard: Dashboard) -> FastAPI:
    """The REST application."""
    app = FastAPI(
        title="Phase 8 dashboard",
        version=VERSION,
        description=(
            "Watch, start and steer runs. Where the server has a token, every call but `health` needs it. Calls that "
            "change something need the header `X-Phase8: 1`."
        ),
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/phase8/openapi.json",
        separate_input_output_schemas=False,
    )
    _describe(app)
    app.include_router(_reading(dashboard))
    app.include_router(_steering(dashboard))
    app.include_router(_artifacts(dashboard))

    def refuse(status: int, error: schema.ErrorText) -> JSONResponse:
        return JSONResponse(schema.ErrorBody(error=error).model_dump(), status)

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return refuse(error.status, error.text)

    @app.exception_handler(Phase8Error)
    async def ours(_: Request, error: Phase8Error) -> JSONResponse:
        status = 503 if isinstance(error, Busy | OutputError) else 422 if isinstance(error, ConfigError) else 404
        return refuse(status, schema.ErrorText(what=error.what, where=error.where, fix=error.fix))

    @app.exception_handler(RequestValidationError)
    async def not_understood(_: Request, error: RequestValidationError) -> JSONResponse:
        rows = [f"{'.'.join(map(str, row['loc']))}: {row['msg']}" for row in error.errors()]
        return refuse(422, schema.ErrorText(what="\n".join(rows)[:4000], where="request"))

    @app.exception_handler(HTTPException)
    async def plain(_: Request, error: HTTPException) -> Response:
        response = refuse(error.status_code, schema.ErrorText(what=str(error.detail)))
        response.headers.update(error.headers or {})
        return response

    return app


def _describe(app: FastAPI) -> None:
    """Adds the token to the OpenAPI description."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        described = make()
        schemes = described.setdefault("components", {}).setdefault("securitySchemes", {})
        schemes["token"] = {"type": "http", "scheme": "bearer"}
        described["security"] = [{"token": []}, {}]
        return described

    app.openapi = openapi  # type: ignore[method-assign]


def _reading(dashboard: Dashboard) -> APIRouter:
    router, hub = APIRouter(prefix="/api/phase8", tags=["runs"]), dashboard.hub

    @router.get("/health")
    async def health() -> schema.Health:
        """Whether the server is there, and whether it wants a token."""
        return schema.Health(ok=True, version=VERSION, token_required=dashboard.token_required)

    @router.get("/runs", responses=answers(422))
    def runs(
        query: Annotated[str, Query(max_length=300)] = "",
        state: schema.RunState | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
    ) -> schema.RunList:
        """Runs, the newest first."""
        found = [run for run in hub.library.find(query) if state is None or run.state() == state]
        chosen = found[offset : offset + limit]
        return schema.RunList(runs=[run.summary() for run in chosen], total=len(found))

    @router.get("/status/{job}", responses=answers(404, 422))
    async def status(job: RunPath) -> schema.Status:
        """Where a run is, and its last five log lines."""
        run = dashboard.run(job)
        await hub.advance(run)
        summary, since = run.summary(), run.fold.running_since
        elapsed = summary.seconds
        if not is_over(run) and since is not None and not isinstance(run, Replay):
            elapsed = max(0.0, time.time() - since)
        return schema.Status(
            summary=summary, activity=run.fold.activity, elapsed=elapsed, log=list(run.fold.log), next=run.fold.events
        )

    @router.get("/runs/{job}/events", responses=answers(404, 422))
    def events(
        job: RunPath,
        after: Annotated[int, Query(ge=0, le=2**53)] = 0,
        limit: Annotated[int, Query(ge=1, le=100_000)] = 10_000,
        compact: bool = False,
    ) -> schema.Events:
        """The run's events from a line of its log on; `compact` leaves out progress that later progress overtook."""
        found = [record for record in dashboard.run(job).records() if record["seq"] >= after][:limit]
        following = found[-1]["seq"] + 1 if found else after
        return schema.Events(
            run=job, events=[schema.RunEvent(**r) for r in (compacted(found) if compact else found)], next=following
        )

    @router.get("/runs/{job}/result", responses=answers(404, 422))
    def result(job: RunPath) -> dict[str, Any]:
        """The content of `result.json`."""
        run = dashboard.run(job)
        found = run.result() if not isinstance(run, Replay) or is_over(run) else None
        if found is None:
            raise Refused(404, "the run has no result yet", where=run.name, fix="wait until it has ended")
        return found

    @router.get("/runs/{job}/config", responses=answers(404, 422))
    def config(job: RunPath) -> schema.SettingsOf:
        """The run's settings by dotted name."""
        return schema.SettingsOf(settings=dashboard.run(job).settings())

    @router.get("/benchmarks/{job}", responses=answers(404, 422))
    def benchmarks(job: RunPath) -> schema.Benchmarks:
        """Every benchmark, at the baseline and at each stage."""
        return comparing.benchmarks(dashboard.run(job))

    @router.get("/recommendations/{job}/{stage}", responses=answers(404, 422))
    def recommendations(job: RunPath, stage: StagePath) -> schema.Recommendations:
        """What each failed attempt of a stage was advised to change."""
        run = dashboard.run(job)
        if stage not in run.fold.stages and stage not in run.fold.planned:
            raise Refused(404, "the run has no such stage", where=stage, fix=f"it has {', '.join(run.fold.planned)}")
        return comparing.recommendations(run, stage)

    @router.get(
        "/export/{job}",
        responses=answers(404, 422) | {200: {"content": {"text/csv": {"schema": {"type": "string"}}}}},
        response_model=dict[str, Any],
    )
    def export(job: RunPath, format: Literal["json", "csv"] = "json") -> Response:
        """Everything measured, as a file: CSV has a row per stage, attempt and benchmark."""
        run = dashboard.run(job)
        name = f"phase8-{run.id}.{format}"
        disposition = {"Content-Disposition": f'attachment; filename="{name}"'}
        if format == "csv":
            return Response(comparing.export_csv(run), media_type="text/csv", headers=disposition)
        return Response(
            json.dumps(comparing.export_json(run), indent=1), media_type="application/json", headers=disposition
        )

    @router.get("/compare", responses=answers(404, 422))
    def compare(
        runs: Annotated[str, Query(max_length=1000, description="numbers of 2 to 20 runs, with commas")],
    ) -> schema.Comparison:
        """Runs side by side."""
        names = list(dict.fromkeys(filter(None, runs.split(","))))
        if not 2 <= len(names) <= 20:
            raise Refused(422, "2 to 20 runs can be compared", where="runs", fix="runs=NUMBER,NUMBER")
        return comparing.compare([dashboard.run(name) for name in names])

    return router


def _steering(dashboard: Dashboard) -> APIRouter:
    router, hub = APIRouter(prefix="/api/phase8", tags=["steering"]), dashboard.hub

    @router.get("/settings", responses=answers(422))
    def settings(
        variant: Annotated[str, Query(max_length=64)] = "default",
        experiment: Annotated[str, Query(max_length=64, description="empty for none")] = "",
    ) -> schema.Startable:
        """What `start` accepts; each setting's default is the value that this variant and experiment give it."""
        return dashboard.project.startable(schema.Start(variant=variant, experiment=experiment or None))

    @router.post("/start", status_code=201, responses=answers(409, 422, 503))
    def start(wanted: schema.Start) -> schema.Started:
        """Starts a run with settings that were checked; it is known by its number at once."""
        if hub.library.jobs.working() >= dashboard.most_jobs:
            raise Refused(409, "a run that was started here is still at work", where="start", fix="wait, or abort it")
        name = f"{time.strftime('%Y-%m-%d/%H-%M-%S')}-{secrets.token_hex(2)}"
        directory = hub.library.roots[0] / name
        command = dashboard.project.command(dashboard.project.overrides(wanted, directory))
        job = hub.library.jobs.start(run_id(directory), directory, command, cwd=dashboard.project.directory)
        hub.library.scan()
        run = dashboard.run(job.run)
        return schema.Started(job=run.id, summary=run.summary())

    async def steer(job: str, state: Literal["run", "pause", "abort"], reason: str = "") -> schema.RunSummary:
        run = dashboard.run(job)
        await hub.advance(run)
        now = run.state()
        allowed = {
            "run": ("paused", "pausing"),
            "pause": ("starting", "running"),
            "abort": ("starting", "running", "pausing", "paused"),
        }[state]
        if now not in allowed:
            verb = {"run": "resumed", "pause": "paused", "abort": "aborted"}[state]
            raise Refused(409, f"the run is {now}: it cannot be {verb} now", where=run.name)
        run.ask(state, reason)
        await hub.announce(run)
        return run.summary()

    @router.post("/pause/{job}", status_code=202, responses=answers(404, 409, 422, 503))
    async def pause(job: RunPath, _: schema.Nothing | None = None) -> schema.RunSummary:
        """Asks the run to hold at the next safe point; nothing is lost."""
        return await steer(job, "pause")

    @router.post("/resume/{job}", status_code=202, responses=answers(404, 409, 422, 503))
    async def resume(job: RunPath, _: schema.Nothing | None = None) -> schema.RunSummary:
        """Lets a run that holds go on."""
        return await steer(job, "run")

    @router.post("/abort/{job}", status_code=202, responses=answers(404, 409, 422, 503))
    async def abort(job: RunPath, why: schema.Abort) -> schema.RunSummary:
        """Asks the run to end; the last artifact that passed stays the answer."""
        return await steer(job, "abort", why.reason)

    @router.post("/replay/{job}", status_code=201, responses=answers(404, 409, 422))
    async def replay(job: RunPath, wanted: schema.StartReplay) -> schema.Started:
        """Plays a finished run again, as if it happened now."""
        run = dashboard.run(job)
        if isinstance(run, Replay) or not is_over(run) or not run.fold.events:
            raise Refused(409, "only a finished run can be played again", where=run.name)
        if hub.replays() >= REPLAYS:
            raise Refused(409, f"there are {REPLAYS} replays already", where="replay", fix="end one")
        played = Replay(run, speed=wanted.speed, longest_gap_s=wanted.longest_gap_s)
        played.refresh()
        hub.play(played)
        await hub.announce(played)
        return schema.Started(job=played.id, summary=played.summary())

    @router.patch("/replay/{replay}", responses=answers(404, 422))
    async def change(replay: ReplayPath, wanted: schema.ChangeReplay) -> schema.RunSummary:
        """Changes a replay's speed or place."""
        run = dashboard.run(replay)
        assert isinstance(run, Replay)
        await hub.advance(run)
        if wanted.speed is not None:
            run.speed = wanted.speed
        if wanted.position is not None:
            await hub.wind(run, wanted.position)
        await hub.announce(run)
        return run.summary()

    @router.delete("/replay/{replay}", status_code=204, responses=answers(404, 422))
    async def end(replay: ReplayPath) -> None:
        """Ends and forgets a replay."""
        hub.drop(dashboard.run(replay))

    return router


def _artifacts(dashboard: Dashboard) -> APIRouter:
    router = APIRouter(prefix="/api/phase8", tags=["artifacts"])

    def place(job: str, name: str) -> tuple[Run, Path]:
        run = dashboard.run(job)
        known = {line.name for line in lines(run)}
        directory = run.directory / "artifacts" / name
        if name not in known or not directory.is_dir():
            raise Refused(404, "the run has no such artifact", where=name, fix=f"it has {', '.join(sorted(known))}")
        return run, directory

    @router.get("/artifacts/{job}", responses=answers(404, 422))
    def artifacts(job: RunPath) -> schema.Artifacts:
        """The run's artifacts, one per attempt."""
        return schema.Artifacts(artifacts=lines(dashboard.run(job)))

    @router.get("/artifacts/{job}/{name}", responses=answers(404, 422))
    async def artifact(job: RunPath, name: ArtifactPath) -> schema.ArtifactDetail:
        """Where an artifact's bytes are."""
        _, directory = place(job, name)
        return detail(name, await dashboard.workers.account(directory))

    @router.post(
        "/talk/{job}/{name}",
        responses=answers(404, 422, 503) | {200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}},
        response_class=StreamingResponse,
    )
    async def talk(job: RunPath, name: ArtifactPath, wanted: schema.Talk) -> StreamingResponse:
        """The original's and the compressed model's continuation of a prompt, a line of JSON for each token."""
        run, directory = place(job, name)
        original = original_of(mapping(run.settings()).get("model.path"))
        stream = dashboard.workers.talk(directory, original, wanted.model_dump())
        first = await anext(stream)

        async def told() -> AsyncIterator[bytes]:
            try:
                yield first
                async for line in stream:
                    yield line
            finally:
                await stream.aclose()

        return StreamingResponse(told(), media_type="application/x-ndjson")

    return router
