"""The desk as an application: who may review and who may train, and what they may do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from loraline.errors import TryAgain, UserError
from loraline.profiles import catalog
from loraline.tracking import store
from loraline_cli.desk import forms, loss, review
from loraline_cli.desk.argo import Argo
from loraline_cli.desk.people import REVIEWER, TRAINER, People, Person, Turned
from loraline_cli.desk.training import Trainings

REPORT_CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"


Version = Annotated[str, Field(pattern=r"^models:/[A-Za-z0-9][A-Za-z0-9._-]{0,62}/[0-9]{1,9}$")]


class Move(BaseModel):
    """What a reviewer decided about the version that they looked at."""

    model_config = ConfigDict(extra="forbid")

    act: Literal["promote", "reject", "rollback"]
    version: str | None = Field(None, pattern=r"^[0-9]{1,9}$")
    reason: str | None = Field(None, max_length=1000)


class Vote(BaseModel):
    """A blind vote on registered versions; bases that took part are not named."""

    model_config = ConfigDict(extra="forbid")

    compared: list[Version] = Field(min_length=1, max_length=4)
    best: Version | Literal["other"] | None = None
    """`other` where a base was best, None where no answer was."""


class Recipe(BaseModel):
    """A requested training: a profile, data, and keys that override the profile's."""

    model_config = ConfigDict(extra="forbid")

    profile: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    data: str = Field("", max_length=4096)
    overrides: list[Annotated[str, Field(pattern=r"^[\w.]+=", max_length=1000)]] = Field(
        default_factory=list, max_length=100
    )


def who(request: Request) -> Person:
    people: People = request.app.state.people
    return people.who(request)


def reviewer(person: Annotated[Person, Depends(who)]) -> Person:
    person.expect(REVIEWER)
    return person


def trainer(person: Annotated[Person, Depends(who)]) -> Person:
    person.expect(TRAINER)
    return person


def trainings(request: Request) -> Trainings:
    service: Trainings = request.app.state.trainings
    return service


def argo(request: Request) -> Argo:
    cluster: Argo = request.app.state.argo
    return cluster


Known = Annotated[Person, Depends(who)]
Reviewer = Annotated[Person, Depends(reviewer)]
Trainer = Annotated[Person, Depends(trainer)]
Work = Annotated[Trainings, Depends(trainings)]
Cluster = Annotated[Argo, Depends(argo)]
router = APIRouter()


def create_app(keys_file: Path | None, namespace: str | None = None) -> FastAPI:
    """The application; UserError for an invalid keys' file. `namespace` is where trainings are
    submitted to Argo, if at all."""
    app = FastAPI(title="loraline desk", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.people = People(keys_file)
    app.state.trainings = Trainings()
    app.state.argo = Argo(namespace)
    app.include_router(router)
    app.add_exception_handler(Turned, on_turned)  # type: ignore[arg-type]
    app.add_exception_handler(UserError, on_mistake)  # type: ignore[arg-type]
    app.add_exception_handler(TryAgain, on_trouble)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, on_field)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, on_failure)
    return app


@router.get("/health")
def health() -> Response:
    return JSONResponse({"status": "alive"})


@router.get("/me")
def me(person: Known) -> Response:
    """The caller's name, and what they may do here."""
    return JSONResponse({"name": person.name, "roles": sorted(person.roles)})


@router.get("/models")
def models(_: Reviewer) -> Response:
    return JSONResponse({"models": review.models(store.connect())})


@router.get("/models/{model}")
def board(model: str, _: Reviewer) -> Response:
    return JSONResponse(review.board(store.connect(), model))


@router.get("/models/{model}/versions/{version}/report")
def report(model: str, version: str, _: Reviewer) -> Response:
    html = review.report(store.connect(), model, version)
    return HTMLResponse(html, headers={"Content-Security-Policy": REPORT_CSP})


@router.post("/models/{model}/moves")
def move(model: str, order: Move, person: Reviewer, cluster: Cluster) -> Response:
    """Promote, reject or roll back in this person's name, and answer the workflows that wait."""
    done = review.move(store.connect(), model, person.name, order.act, order.version, order.reason)
    answered = review.answered(cluster, model, order.act, order.version)
    return JSONResponse({"done": " ".join(filter(None, (done, answered)))})


@router.post("/votes", status_code=204)
def vote(ballot: Vote, person: Known) -> Response:
    """Keep a blind vote in the registry; everybody with a key may vote."""
    review.vote(store.connect(), person.name, ballot.compared, ballot.best)
    return Response(status_code=204)


@router.get("/profiles")
def profile_names(_: Trainer) -> Response:
    return JSONResponse({"profiles": catalog.names()})


@router.get("/profiles/{profile}")
def profile_form(profile: str, _: Trainer) -> Response:
    """The profile's keys with their bounds and their documentation from the source."""
    return JSONResponse(forms.form(profile))


@router.post("/checks")
def check(recipe: Recipe, work: Work, _: Trainer) -> Response:
    """The checks of prepare_data, before anything starts."""
    return JSONResponse(work.check(recipe.profile, recipe.data, recipe.overrides))


@router.get("/runs")
def listed(work: Work, _: Trainer) -> Response:
    return JSONResponse({"runs": work.listed()})


@router.post("/runs", status_code=201)
def start(recipe: Recipe, work: Work, _: Trainer) -> Response:
    """Start the pipeline here, as `make pipeline` does."""
    return JSONResponse({"name": work.start(recipe.profile, recipe.data, recipe.overrides)}, 201)


@router.get("/runs/{name}")
def run(name: str, work: Work, _: Trainer) -> Response:
    return JSONResponse(work.status(name))


@router.get("/runs/{name}/loss")
def run_loss(name: str, work: Work, _: Trainer) -> Response:
    return JSONResponse(loss.of(store.connect(), name, work.read(name)))


@router.post("/runs/{name}/stop")
def stop(name: str, work: Work, _: Trainer) -> Response:
    work.stop(name)
    return JSONResponse({"name": name})


@router.post("/runs/{name}/resume")
def resume(name: str, work: Work, _: Trainer) -> Response:
    return JSONResponse({"name": work.resume(name)})


@router.get("/workflows")
def submitted(cluster: Cluster, _: Trainer) -> Response:
    """Pipelines on the cluster, or why there are none."""
    names: list[str] = []
    reason = cluster.missing()
    if reason is None:
        try:
            names = cluster.listed()
        except (UserError, TryAgain) as error:
            # Trainings of this machine are shown all the same.
            reason = str(error)
    return JSONResponse({"workflows": names, "missing": reason})


@router.post("/workflows", status_code=201)
def submit(recipe: Recipe, cluster: Cluster, _: Trainer) -> Response:
    """Submit the pipeline to Argo, as `make submit` does."""
    return JSONResponse(
        {"name": cluster.submit(recipe.profile, recipe.data, recipe.overrides)}, 201
    )


@router.get("/workflows/{name}")
def workflow(name: str, cluster: Cluster, _: Trainer) -> Response:
    return JSONResponse(cluster.status(name))


@router.get("/workflows/{name}/loss")
def workflow_loss(name: str, cluster: Cluster, _: Trainer) -> Response:
    return JSONResponse(loss.of(store.connect(), name, cluster.read(name)))


@router.post("/workflows/{name}/stop")
def stop_workflow(name: str, cluster: Cluster, _: Trainer) -> Response:
    cluster.stop(name)
    return JSONResponse({"name": name})


@router.post("/workflows/{name}/resume")
def resume_workflow(name: str, cluster: Cluster, _: Trainer) -> Response:
    cluster.resume(name)
    return JSONResponse({"name": name})


def problem(status: int, sentence: str) -> Response:
    return JSONResponse(
        {"status": status, "detail": sentence}, status, media_type="application/problem+json"
    )


async def on_turned(_: Request, error: Turned) -> Response:
    return problem(error.status, error.sentence)


async def on_mistake(_: Request, error: UserError) -> Response:
    return problem(422, str(error))


async def on_trouble(_: Request, error: TryAgain) -> Response:
    return problem(503, str(error))


async def on_field(_: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    return problem(422, f"{first['loc'][-1]}: {first['msg']}")


async def on_failure(_: Request, error: Any) -> Response:
    """MLflow's refusals and outages in a sentence; anything else is a bug, and its words stay in
    the log."""
    if refused := store.refusal(error):
        return problem(422, refused)
    if store.is_outage(error):
        return problem(503, "MLflow does not answer; try again in a moment.")
    return problem(500, "The desk failed; its log says why.")
