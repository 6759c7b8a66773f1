"""/sessions: create, list, export and delete sessions; each key sees only its own."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from itertools import chain
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gateway import bodies, core, documented, exports, images, store
from gateway.bodies import Strict, as_json
from gateway.core import Authenticated, RateLimited
from gateway.errors import Problem
from gateway.sessions import Sessions

router = APIRouter(tags=["Sessions"])

ERRORS = (400, 401, 404, 408, 413, 415, 422, 429, 500, 507)


class NewSession(Strict):
    title: str = Field("", max_length=200)


class NewTurn(Strict):
    """A question and its answer from /v1/chat/completions."""

    question: str = Field("", max_length=200_000)
    answer: str = Field("", max_length=1_000_000)
    model: str = Field("", max_length=256)


def sessions_of(request: Request) -> Sessions:
    return core.of(request).sessions


@router.post(
    "/sessions",
    status_code=201,
    responses=documented.problems(*ERRORS, 409),
    openapi_extra=documented.json_body(NewSession),
)
async def create(request: Request, caller: RateLimited) -> Response:
    """Begin a session."""
    body = await bodies.read(request, NewSession)
    return as_json(await sessions_of(request).create(caller, body.title), 201)


@router.get("/sessions", responses=documented.problems(401, 500))
async def listed(request: Request, caller: Authenticated) -> Response:
    """This key's sessions, the last changed first."""
    sessions = sessions_of(request)

    def read() -> list[dict[str, Any]]:
        short = []
        for path in sessions.store.of(caller):
            # Another request or the sweep may have removed it since.
            with suppress(Problem):
                document = sessions.store.read(path.parent)
                # All of a key's turns would not fit into memory.
                short.append(document | {"turns": len(document["turns"])})
        return sorted(short, key=lambda each: -each["changed"])

    return as_json({"sessions": await asyncio.to_thread(read)})


@router.get("/sessions/{session}", responses=documented.problems(401, 404, 500))
async def read_session(request: Request, session: str, caller: Authenticated) -> Response:
    """A session with all of its turns."""
    return as_json(await sessions_of(request).read(caller, session))


@router.patch(
    "/sessions/{session}",
    responses=documented.problems(*ERRORS),
    openapi_extra=documented.json_body(NewSession),
)
async def rename(request: Request, session: str, caller: RateLimited) -> Response:
    """Give a session another title."""
    sessions = sessions_of(request)
    folder = sessions.store.folder(caller, session)
    body = await bodies.read(request, NewSession)
    change = {"title": body.title}
    return as_json(
        await asyncio.to_thread(
            sessions.store.change, folder, lambda document: document.update(change)
        )
    )


@router.post(
    "/sessions/{session}/turns",
    status_code=201,
    responses=documented.problems(*ERRORS, 409),
    openapi_extra=documented.json_body(NewTurn),
)
async def add_turn(request: Request, session: str, caller: RateLimited) -> Response:
    """Keep a question and an answer that another route gave."""
    sessions = sessions_of(request)
    sessions.store.folder(caller, session)
    body = await bodies.read(request, NewTurn)
    turn = {
        "time": time.time(),
        "task": "chat",
        "model": body.model,
        "question": body.question,
        "media": [],
        "answer": {"text": body.answer},
    }
    return as_json(await sessions.add(caller, session, turn), 201)


@router.delete("/sessions/{session}", status_code=204, responses=documented.problems(401, 404, 500))
async def delete(request: Request, session: str, caller: Authenticated) -> Response:
    """Forget a session and its media."""
    sessions = sessions_of(request)
    folder = sessions.store.folder(caller, session)
    await asyncio.to_thread(sessions.store.remove, folder)
    return Response(status_code=204)


@router.get(
    "/sessions/{session}/export",
    response_class=Response,
    responses=documented.problems(401, 404, 422, 500)
    | documented.answer(*(media_type.partition(";")[0] for media_type in exports.TYPES.values())),
)
async def export(
    request: Request,
    session: str,
    caller: Authenticated,
    format: Literal["json", "md", "csv", "html", "pdf"] = "json",
) -> Response:
    """A session as a file."""
    sessions = sessions_of(request)
    document = await sessions.read(caller, session)
    media = sessions.store.folder(caller, session) / store.MEDIA
    font = core.of(request).settings.pdf_font
    pieces = exports.export(document, format, media, font)
    # A file that cannot be made is a problem, not half an answer.
    first = await asyncio.to_thread(next, pieces)
    headers = {"Content-Disposition": f'attachment; filename="session-{session[:8]}.{format}"'}
    if format == "html":
        headers["Content-Security-Policy"] = exports.CSP
    return StreamingResponse(chain([first], pieces), 200, headers, exports.TYPES[format])


@router.get(
    "/sessions/{session}/media/{sha256}",
    response_class=Response,
    responses=documented.problems(401, 404, 500) | documented.answer(*images.MIME.values()),
)
async def medium(request: Request, session: str, sha256: str, caller: Authenticated) -> Response:
    """An image of a session."""
    content, mime = await sessions_of(request).medium(caller, session, sha256)
    return Response(content, 200, {"Cache-Control": "private"}, mime)
